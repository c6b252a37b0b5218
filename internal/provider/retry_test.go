package provider

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/endpoint"
	"github.com/ccgrkc/ccgrkc/internal/mtls"
)

// failing is a source of certificates that are due and cannot be issued.
type failing struct {
	cause    error
	attempts []time.Time
}

func (f *failing) next(credential.Reference) (*mtls.Material, error) {
	f.attempts = append(f.attempts, time.Now())
	return nil, fmt.Errorf("%w", &fs.PathError{Op: "open", Path: fmt.Sprint("g-", rand.Int()), Err: f.cause})
}

func (*failing) renewIn(time.Time) time.Duration { return retryInterval }
func (*failing) due(time.Time) bool              { return true }

func TestAFailedRenewalIsRetriedAtItsIntervalAndLoggedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		f := &failing{cause: syscall.ENOSPC}
		p := &provider{
			config:  Config{Account: web, Certificates: f},
			log:     slog.New(slog.NewTextHandler(&log, nil)),
			current: &generation{},
		}
		var err error
		if p.publication, err = (endpoint.Publisher{Root: t.TempDir()}).Publish(web, material(t)); err != nil {
			t.Fatal(err)
		}
		run := func(within time.Duration) {
			ctx, cancel := context.WithTimeout(t.Context(), within)
			defer cancel()
			p.serve(ctx)
		}
		run(100 * retryInterval)
		if n := strings.Count(log.String(), "could not be renewed"); n != 1 {
			t.Errorf("logged %d times:\n%s", n, &log)
		}
		for i := range f.attempts[1:] {
			pause := f.attempts[i+1].Sub(f.attempts[i])
			if pause < retryInterval || pause > retryInterval+watchInterval {
				t.Fatalf("%s between two attempts", pause)
			}
		}
		f.cause = syscall.EIO
		run(10 * retryInterval)
		if n := strings.Count(log.String(), "could not be renewed"); n != 2 {
			t.Errorf("with a second cause, logged %d times:\n%s", n, &log)
		}
	})
}

func TestAFailedPublicationIsLoggedOnce(t *testing.T) {
	var log bytes.Buffer
	file := filepath.Join(t.TempDir(), "file")
	write(t, file, nil)
	e := material(t)
	p := &provider{
		config:  Config{Account: web, Publisher: endpoint.Publisher{Root: filepath.Join(file, "root")}},
		log:     slog.New(slog.NewTextHandler(&log, nil)),
		current: &generation{endpoint: e},
	}
	for range 5 {
		p.publishAgain()
	}
	p.config.Publisher.Root = t.TempDir()
	p.publishAgain()
	if failed, again := strings.Count(log.String(), "cannot find this provider"),
		strings.Count(log.String(), "published again"); failed != 1 || again != 1 {
		t.Errorf("log:\n%s", &log)
	}
}

func material(t *testing.T) endpoint.Endpoint {
	t.Helper()
	m, err := mtls.Issue(web, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return endpoint.Endpoint{Port: 1, CA: m.CA, ClientCert: m.ClientCert, ClientKey: m.ClientKey}
}
