package netns_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/ccgrkc/ccgrkc/lab/internal/netns"
	"github.com/ccgrkc/ccgrkc/lab/labtest"
)

func namespace(t *testing.T) *netns.Namespace {
	t.Helper()
	n, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return n
}

// serve listens on port 8080 of the namespace and sends word on each connection.
func serve(t *testing.T, n *netns.Namespace, word string) {
	t.Helper()
	l, err := n.Listen(":8080")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, word)
			conn.Close()
		}
	}()
}

type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

func read(dial dialFunc, n *netns.Namespace) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	conn, err := dial(ctx, "tcp", n.Address.String()+":8080")
	if err != nil {
		return "", err
	}
	defer conn.Close()
	word, err := io.ReadAll(conn)
	return string(word), err
}

func TestMachineReachesNamespacesButNamespacesDoNotReachEachOther(t *testing.T) {
	labtest.Require(t)
	a, b := namespace(t), namespace(t)
	serve(t, a, "a")
	serve(t, b, "b")
	machine := new(net.Dialer).DialContext
	for n, want := range map[*netns.Namespace]string{a: "a", b: "b"} {
		if got, err := read(machine, n); err != nil || got != want {
			t.Errorf("the machine got %q, %v, want %q", got, err, want)
		}
		if got, err := read(n.DialContext, n); err != nil || got != want {
			t.Errorf("inside the namespace: got %q, %v, want %q", got, err, want)
		}
	}
	if got, err := read(a.DialContext, b); err == nil {
		t.Errorf("a namespace got %q from another namespace", got)
	}
	out, err := exec.Command("/usr/bin/nsenter", "--net="+a.Path(), "--", "cat", "/proc/net/route").CombinedOutput()
	if routes := strings.Count(string(out), "\n") - 1; err != nil || routes != 1 {
		t.Errorf("the namespace has %d routes, want 1: %v\n%s", routes, err, out)
	}
}

func TestCutDropsPacketsFromTheMachine(t *testing.T) {
	labtest.Require(t)
	n := namespace(t)
	serve(t, n, "a")
	machine := new(net.Dialer).DialContext
	for range 2 { // cut before and after ARP has found its Ethernet address
		if err := n.Cut(true); err != nil {
			t.Fatal(err)
		}
		var timeout net.Error
		if got, err := read(machine, n); !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("the machine got %q, %v, want a timeout", got, err)
		}
		if got, err := read(n.DialContext, n); err != nil || got != "a" {
			t.Errorf("inside the namespace: got %q, %v", got, err)
		}
		if err := n.Cut(false); err != nil {
			t.Fatal(err)
		}
		if got, err := read(machine, n); err != nil || got != "a" {
			t.Errorf("the machine got %q, %v", got, err)
		}
	}
}

// The kernel removes the namespace of a killed process.
func TestNamespaceEndsWithItsProcess(t *testing.T) {
	labtest.Require(t)
	if os.Getenv("CCGRKC_NETNS_CHILD") != "" {
		n, err := netns.New()
		if err != nil {
			t.Fatal(err)
		}
		_, _ = os.Stdout.WriteString(n.Address.String() + "\n")
		time.Sleep(time.Hour)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestNamespaceEndsWithItsProcess$")
	cmd.Env = append(os.Environ(), "CCGRKC_NETNS_CHILD=1")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	output := make([]byte, 64)
	n, err := stdout.Read(output)
	killed := errors.Join(cmd.Process.Kill(), err)
	_ = cmd.Wait() // it was killed
	if killed != nil {
		t.Fatal(killed)
	}
	address := net.ParseIP(string(output[:n-1])).To4()
	if address == nil {
		t.Fatalf("the child printed %q", output[:n])
	}
	address[3]-- // the machine's end
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		addresses, err := net.InterfaceAddrs()
		if err != nil {
			t.Fatal(err)
		}
		present := false
		for _, a := range addresses {
			present = present || a.(*net.IPNet).IP.Equal(address)
		}
		if !present {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s still exists", address)
		}
	}
}
