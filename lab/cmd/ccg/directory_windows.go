package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
	"unicode/utf16"

	"github.com/ccgrkc/ccgrkc/internal/com"
	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/credspec"
	"github.com/ccgrkc/ccgrkc/internal/directory"
	"golang.org/x/sys/windows"
)

// gMSA is a gMSA with its managed password.
type gMSA struct {
	spec  credspec.Spec
	clsid windows.GUID

	session  *directory.Session
	password *directory.ManagedPassword
	due      time.Time // when to read the password again, from Active Directory
}

// login gets the account from the plugin, reads the managed password as that account, and gets a ticket as the gMSA.
func (g *gMSA) login(ctx context.Context) (com.Result, directory.Ticket, error) {
	result, err := fetch(g.clsid, g.spec.ActiveDirectoryConfig.HostAccountConfig.PluginInput)
	if err != nil {
		return com.Result{}, directory.Ticket{}, err
	}
	account := credential.Credential{
		DomainName: result.DomainName,
		Username:   result.Username,
		Password:   credential.NewPassword([]byte(string(utf16.Decode(result.Password.Reveal())))),
	}
	defer account.Password.Wipe()
	session, err := directory.Bind(ctx, directory.Config{Domain: result.DomainName}, account)
	if err != nil {
		return result, directory.Ticket{}, err
	}
	password, err := session.ManagedPassword(ctx, g.spec.GMSAName())
	if err != nil {
		session.Close()
		return result, directory.Ticket{}, err
	}
	ticket, err := session.TicketAs(ctx, g.spec.GMSAName(), password)
	if err != nil {
		password.Wipe()
		session.Close()
		return result, directory.Ticket{}, err
	}
	g.forget()
	g.session, g.password, g.due = session, password, time.Now().Add(password.Query)
	return result, ticket, nil
}

func (g *gMSA) forget() {
	if g.session != nil {
		g.session.Close()
		g.password.Wipe()
		g.session, g.password = nil, nil
	}
}

// renewal is the state of a gMSA in use. Each change is printed as one line.
type renewal struct {
	Tickets   int    `json:"tickets"`   // including the first
	Refetches int    `json:"refetches"` // of the managed password, through the plugin
	Failures  int    `json:"failures"`  // attempts without a ticket
	Error     string `json:"error,omitempty"`
	Cause     string `json:"cause,omitempty"`
}

// renew gets tickets until the file is deleted, like the services of a container. If the domain controller rejects the
// managed password, or the password is due, renew reads it again through the plugin: event 7 of ccg.exe.
func (g *gMSA) renew(ctx context.Context, file string, every time.Duration) {
	r := renewal{Tickets: 1}
	for {
		time.Sleep(every)
		if _, err := os.Stat(file); err != nil {
			print(r)
			return
		}
		before := r
		err := errors.New("the password is due")
		if g.password != nil && time.Now().Before(g.due) {
			_, err = g.session.TicketAs(ctx, g.spec.GMSAName(), g.password)
		}
		if err != nil {
			if _, _, err = g.login(ctx); err == nil {
				r.Refetches++
			}
		}
		r.Error, r.Cause = "", ""
		if err != nil {
			r.Failures++
			r.Error, r.Cause = g.failure(err), causeName(err)
		} else {
			r.Tickets++
		}
		if r.Refetches != before.Refetches || r.Error != before.Error {
			print(r)
		}
	}
}

// failure is the text that ccg.exe logs. Its event 8 reports that Active Directory rejected the account.
func (g *gMSA) failure(err error) string {
	if _, plugin := hresult(err); plugin {
		return err.Error()
	}
	class := g.spec.ActiveDirectoryConfig.HostAccountConfig.PluginGUID
	return fmt.Sprintf("Container Credential Guard failed to fetch gmsa credentials for %s using plugin %s. "+
		"Error reason: %v", g.spec.GMSAName(), class, err)
}

func causeName(err error) string {
	if cause := directory.CauseOf(err); cause != nil {
		return cause.Name
	}
	return ""
}
