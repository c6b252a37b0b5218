package provider

import (
	"errors"
	"net"
	"net/http"
	"os"
	"testing"

	"github.com/ccgrkc/ccgrkc/internal/connlimit/connlimittest"
	"github.com/ccgrkc/ccgrkc/internal/endpoint"
)

// freeAddress returns an address of the loopback interface that nothing listens on.
func freeAddress(t *testing.T) *net.TCPAddr {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	return l.Addr().(*net.TCPAddr)
}

// The plugin finds the provider again through the endpoint files, on another port. Metrics keep their address.
func TestAFailedListenerIsReplaced(t *testing.T) {
	t.Parallel()
	a, root := newAPIServer(t), t.TempDir()
	metrics := freeAddress(t)
	start(t, root, web, a, func(c *Config) { c.MetricsAddress = metrics.String() })
	before, err := endpoint.Resolve(root, web)
	if err != nil {
		t.Fatal(err)
	}
	scrape := func() error {
		resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get("http://" +
			metrics.String() + "/metrics")
		if err != nil {
			return err
		}
		return resp.Body.Close()
	}
	eventually(t, scrape)
	for _, broken := range []string{address(before), metrics.String()} {
		if err := connlimittest.BreakListener(os.Getpid(), broken); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, func() error {
		e, err := endpoint.Resolve(root, web)
		if err == nil && e.Port == before.Port {
			err = errors.New("the endpoint files contain the old port")
		}
		return err
	})
	if _, err := call(t, root, web); err != nil {
		t.Error(err)
	}
	eventually(t, scrape)
}
