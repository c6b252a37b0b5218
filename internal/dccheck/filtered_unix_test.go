//go:build !windows

package dccheck

import (
	"net"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// silentPort returns a port on loopback where connections get no answer, because the queue of the listener is full.
func silentPort(t *testing.T) int {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	address, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	port := address.(*syscall.SockaddrInet4).Port
	for range 8 { // the queue holds one or two connections
		conn, err := net.DialTimeout("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), 200*time.Millisecond)
		if err != nil {
			return port
		}
		t.Cleanup(func() { conn.Close() })
	}
	t.Fatal("the queue of the listener never fills")
	return 0
}

func TestAPortThatDoesNotAnswerIsFiltered(t *testing.T) {
	t.Parallel()
	port := silentPort(t)
	server := dnsServer(t, "corp.example.com", map[string][]net.IP{"dc1.corp.example.com": {net.IPv4(127, 0, 0, 1)}})
	begin := time.Now()
	// The timeout also applies to the DNS query, which must succeed on a busy machine.
	r := Check(t.Context(), Options{
		Domain:    "corp.example.com",
		DNSServer: server,
		Timeout:   2 * time.Second,
		ports:     []int{port},
	})
	if len(r.Servers) != 1 || r.Servers[0].Ports[strconv.Itoa(port)].State != Filtered {
		t.Errorf("%+v", r)
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
}
