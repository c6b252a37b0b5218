package ad

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/directory"
	"github.com/ccgrkc/ccgrkc/lab/labtest"
)

func start(t *testing.T, o Options) *Domain {
	t.Helper()
	labtest.Require(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	d, err := Start(ctx, filepath.Join(t.TempDir(), "ad"), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Stop)
	return d
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func bind(t *testing.T, d *Domain, security directory.Security, c credential.Credential) (*directory.Session, error) {
	t.Helper()
	config, err := d.Config(security)
	must(t, err)
	s, err := directory.Bind(t.Context(), config, c)
	if err == nil {
		t.Cleanup(s.Close)
	}
	return s, err
}

func bound(t *testing.T, d *Domain, security directory.Security) *directory.Session {
	t.Helper()
	s, err := bind(t, d, security, d.Reader)
	must(t, err)
	return s
}

func wantCause(t *testing.T, err error, names ...string) {
	t.Helper()
	cause := directory.CauseOf(err)
	for _, name := range names {
		if cause != nil && cause.Name == name {
			return
		}
	}
	t.Errorf("got %v, want one of %q", err, names)
}

func TestAManagedPasswordCanBeReadAndChanged(t *testing.T) {
	t.Parallel()
	d := start(t, Corp)
	ctx := t.Context()
	s := bound(t, d, directory.Kerberos)
	before, err := s.ManagedPassword(ctx, d.GMSA)
	must(t, err)
	for range 5 {
		ticket, err := s.TicketAs(ctx, d.GMSA, before)
		must(t, err)
		if ticket.Client != "web01$@CORP.EXAMPLE.COM" || ticket.Previous {
			t.Fatalf("the ticket is %+v", ticket)
		}
		must(t, d.RollManagedPassword(ctx, d.GMSA))
		if _, err := s.TicketAs(ctx, d.GMSA, before); err == nil {
			t.Error("the old password is still valid")
		}
		after, err := s.ManagedPassword(ctx, d.GMSA)
		must(t, err)
		if bytes.Equal(after.Current.Reveal(), before.Current.Reveal()) || !bytes.Equal(after.Previous.Reveal(), before.Current.Reveal()) {
			t.Fatal("after the change, the old password is not the previous one")
		}
		before = after
	}
	if err := d.RollManagedPassword(ctx, d.GMSA); err == nil || !strings.Contains(err.Error(), "supports no further change") {
		t.Errorf("the sixth change: %v", err)
	}
	if _, err := s.TicketAs(ctx, d.GMSA, before); err != nil {
		t.Errorf("after the failed change: %v", err)
	}
}

// In the five minutes before a change, a domain controller returns the next password as the current one. Changes are at
// full hours, so the test sets the domain controller's clock. Kerberos rejects the difference, so the test uses LDAPS.
func TestTheNextPasswordIsReturnedAsCurrentJustBeforeAChange(t *testing.T) {
	t.Parallel()
	const cycle = 10 * time.Hour
	sinceFILETIME := time.Since(time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC)) + 11644473600%36000*time.Second
	o := Corp
	o.ClockOffset = cycle - sinceFILETIME%cycle - 2*time.Minute
	d := start(t, o)
	must(t, d.do(t.Context(), "backdate", with{"gmsa": d.GMSA, "cycles": 71})) // of 72; two minutes remain
	m, err := bound(t, d, directory.LDAPS).ManagedPassword(t.Context(), d.GMSA)
	must(t, err)
	if m.Query > 2*time.Minute || m.Unchanged < 29*24*time.Hour {
		t.Errorf("query in %s, unchanged for %s: want at most 2 minutes, and about 30 days", m.Query, m.Unchanged)
	}
	if len(m.Previous.Reveal()) != 256 || bytes.Equal(m.Previous.Reveal(), m.Current.Reveal()) {
		t.Error("the valid password is not the previous one")
	}
}

func TestAccountStatesLeadToTheirCauses(t *testing.T) {
	t.Parallel()
	d := start(t, Corp)
	ctx := t.Context()
	password := NewPassword()
	for name, test := range map[string]struct {
		do             func(ctx context.Context, name string) error
		kerberos, ldap string // "" is success
	}{
		"fine":     {func(context.Context, string) error { return nil }, "", ""},
		"disabled": {d.Disable, "account-disabled", "account-disabled"},
		"enabled":  {func(ctx context.Context, n string) error { return errors.Join(d.Disable(ctx, n), d.Enable(ctx, n)) }, "", ""},
		"locked":   {d.Lock, "account-locked", "account-locked"},
		"unlocked": {func(ctx context.Context, n string) error { return errors.Join(d.Lock(ctx, n), d.Unlock(ctx, n)) }, "", ""},
		"expired":  {d.Expire, "account-expired", "account-expired"},
		"old":      {d.ExpirePassword, "password-expired", "password-expired"},
		"must": {func(ctx context.Context, n string) error { return d.MustChange(ctx, n, password) },
			"must-change-password", "must-change-password"},
		"hours":    {d.RestrictLogonHours, "logon-restricted", "logon-restricted"},
		"station":  {d.RestrictWorkstations, "", "logon-restricted"}, // a Kerberos request does not need to contain the workstation
		"other":    {func(ctx context.Context, n string) error { return d.SetPassword(ctx, n, NewPassword()) }, "wrong-password", "wrong-password"},
		"gone":     {d.Remove, "unknown-account", "wrong-password"},
		"o'zażółć": {func(context.Context, string) error { return nil }, "", ""},
	} {
		must(t, d.AddUser(ctx, name, password, Group))
		if err := test.do(ctx, name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for security, want := range map[directory.Security]string{directory.Kerberos: test.kerberos, directory.LDAPS: test.ldap, directory.StartTLS: test.ldap} {
			_, err := bind(t, d, security, credential.Credential{DomainName: d.DNSName, Username: name, Password: password})
			if cause := directory.CauseOf(err); (err == nil) != (want == "") || cause != nil && cause.Name != want {
				// Kerberos has the same code for an expired password and for one that must be changed.
				if !(security == directory.Kerberos && want == "must-change-password" && cause == directory.PasswordExpired) {
					t.Errorf("%s over %s: %v, want %q", name, security, err, want)
				}
			}
		}
	}
}

func TestGMSAStatesLeadToTheirCauses(t *testing.T) {
	t.Parallel()
	d := start(t, Corp)
	ctx := t.Context()
	s := bound(t, d, directory.Kerberos)
	must(t, d.AddGMSA(ctx, "free", d.Reader.Username))
	must(t, d.AddGMSA(ctx, "closed"))
	free, err := s.ManagedPassword(ctx, "free")
	must(t, err)
	_, err = s.TicketAs(ctx, "free", free)
	must(t, err)
	_, err = s.ManagedPassword(ctx, "closed")
	wantCause(t, err, "no-read-permission")

	must(t, d.Grant(ctx, "closed", d.Reader.Username))
	_, err = s.ManagedPassword(ctx, "closed")
	must(t, err)
	must(t, d.Revoke(ctx, "closed", d.Reader.Username))
	_, err = s.ManagedPassword(ctx, "closed")
	wantCause(t, err, "no-read-permission")

	must(t, d.DisableGMSA(ctx, "free"))
	_, err = s.TicketAs(ctx, "free", free)
	wantCause(t, err, "gmsa-disabled")
	must(t, d.Enable(ctx, "free"))
	_, err = s.TicketAs(ctx, "free", free)
	must(t, err)
	must(t, d.RemoveGMSA(ctx, "free"))
	_, err = s.GMSA(ctx, "free")
	wantCause(t, err, "gmsa-not-found")

	// The groups are in the ticket, so a removed member has access until the next logon.
	must(t, d.RemoveMember(ctx, Group, d.Reader.Username))
	_, err = bound(t, d, directory.LDAPS).ManagedPassword(ctx, d.GMSA)
	wantCause(t, err, "no-read-permission")
	must(t, d.AddMember(ctx, Group, d.Reader.Username))
	_, err = bound(t, d, directory.LDAPS).ManagedPassword(ctx, d.GMSA)
	must(t, err)

	must(t, d.RemoveKDSKeys(ctx))
	_, err = s.ManagedPassword(ctx, d.GMSA)
	wantCause(t, err, "no-kds-key")
	if err := d.AddGMSA(ctx, "late"); err == nil {
		t.Error("a gMSA was created without a KDS root key")
	}
	must(t, d.AddKDSKey(ctx))
	must(t, d.AddGMSA(ctx, "late", d.Reader.Username))
	_, err = s.ManagedPassword(ctx, "late")
	must(t, err)
}

func TestTwoDomainsRunTogetherAndOneDNSServerResolvesBoth(t *testing.T) {
	t.Parallel()
	labtest.Require(t)
	ctx := t.Context()
	corp, other, err := StartPair(ctx, t.TempDir())
	must(t, err)
	t.Cleanup(corp.Stop)
	t.Cleanup(other.Stop)
	for _, d := range []*Domain{corp, other} {
		config, err := d.Config(directory.Auto)
		must(t, err)
		config.DNSServer = corp.Address
		s, err := directory.Bind(ctx, config, d.Reader)
		must(t, err)
		defer s.Close()
		m, err := s.ManagedPassword(ctx, d.GMSA)
		must(t, err)
		ticket, err := s.TicketAs(ctx, d.GMSA, m)
		must(t, err)
		if want := d.GMSA + "$@" + strings.ToUpper(d.DNSName); ticket.Client != want {
			t.Errorf("the ticket is for %s, want %s", ticket.Client, want)
		}
	}
	_, err = bind(t, other, directory.Kerberos, corp.Reader)
	wantCause(t, err, "unknown-account")
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, net.JoinHostPort(corp.Address, "53"))
	}}
	begin := time.Now()
	_, err = resolver.LookupHost(ctx, "nowhere.example.org.")
	if e, ok := errors.AsType[*net.DNSError](err); !ok || !e.IsNotFound || time.Since(begin) > 2*time.Second {
		t.Errorf("a name that does not exist: %v after %s", err, time.Since(begin))
	}
}

func TestADomainControllerThatIsDownIsSkipped(t *testing.T) {
	t.Parallel()
	d := start(t, Corp)
	ctx := t.Context()
	dead, err := d.AddDeadDC(ctx, "dc2", 0)
	must(t, err)
	config, err := d.Config(directory.Auto)
	must(t, err)
	both, err := directory.Locate(ctx, config)
	must(t, err)
	if len(both) != 2 || !strings.Contains(strings.Join(both, " "), dead) {
		t.Fatalf("domain controllers in DNS: %q", both)
	}
	config.Servers = []string{dead, d.DC}
	s, err := directory.Bind(ctx, config, d.Reader)
	must(t, err)
	s.Close()
	config.Servers = []string{dead}
	_, err = directory.Bind(ctx, config, d.Reader)
	wantCause(t, err, "dc-unreachable")
}

func TestAKilledDomainControllerCanBeRestarted(t *testing.T) {
	t.Parallel()
	d := start(t, Corp)
	ctx := t.Context()
	s := bound(t, d, directory.Kerberos)
	d.Kill()
	if _, err := s.GMSA(ctx, d.GMSA); err == nil {
		t.Error("a killed domain controller answers")
	}
	must(t, d.SetPassword(ctx, d.Reader.Username, NewPassword())) // while it is down
	must(t, d.Restart(ctx))
	_, err := bound(t, d, directory.Kerberos).ManagedPassword(ctx, d.GMSA)
	must(t, err)
}

func TestAWrongClockHasACause(t *testing.T) {
	t.Parallel()
	o := Corp
	o.ClockOffset = 20 * time.Minute
	d := start(t, o)
	_, err := bind(t, d, directory.Kerberos, d.Reader)
	wantCause(t, err, "clock-skew")
	s := bound(t, d, directory.LDAPS)
	if off := s.Offset().Abs(); off < 19*time.Minute || off > 21*time.Minute {
		t.Errorf("the clocks differ by %s, want 20 minutes", off)
	}
}

func TestPathsCanBeLong(t *testing.T) {
	t.Parallel()
	labtest.Require(t)
	d, err := Start(t.Context(), filepath.Join(t.TempDir(), strings.Repeat("a-long-name-", 12), "ad"), Corp)
	must(t, err)
	defer d.Stop()
	bound(t, d, directory.Kerberos)
}

// If a process that started a domain is killed, the domain's processes end and its address is free.
func TestADomainEndsWithTheProcessThatStartedIt(t *testing.T) {
	if dir := os.Getenv("AD_TEST_DIR"); dir != "" {
		d, err := Start(t.Context(), dir, Corp)
		must(t, err)
		fmt.Printf("pids %d %d %s\n", d.PID(), d.console.process.PID(), d.Address)
		select {}
	}
	t.Parallel()
	labtest.Require(t)
	cmd := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), "AD_TEST_DIR="+filepath.Join(t.TempDir(), "ad"))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	var samba, console int
	var address string
	_, err = fmt.Fscanf(out, "pids %d %d %s\n", &samba, &console, &address)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	must(t, err)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		gone := true
		for _, pid := range []int{samba, console} {
			gone = gone && syscall.Kill(pid, 0) != nil
		}
		if gone && isFree(address) == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("processes %d and %d, or the ports of %s, are still in use", samba, console, address)
		}
	}
}
