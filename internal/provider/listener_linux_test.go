package provider

import (
	"errors"
	"net/http"
	"os"
	"strconv"
	"syscall"
	"testing"

	"github.com/ccgrkc/ccgrkc/internal/endpoint"
)

// breakListener makes accept(2) fail for good on this process's listener with the port.
func breakListener(t *testing.T, port int) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range fds {
		fd, err := strconv.Atoi(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		listening, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_ACCEPTCONN)
		if err != nil || listening == 0 {
			continue
		}
		name, err := syscall.Getsockname(fd)
		if a, ok := name.(*syscall.SockaddrInet4); err != nil || !ok || a.Port != port {
			continue
		}
		if err := syscall.Shutdown(fd, syscall.SHUT_RDWR); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatalf("no listener on port %d", port)
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
	breakListener(t, int(before.Port))
	breakListener(t, metrics.Port)
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
