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

// serve answers each connection on the port, which every namespace has for itself, with a word.
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

func ask(dial func(ctx context.Context, network, address string) (net.Conn, error), n *netns.Namespace) (string, error) {
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

func TestTheMachineReachesEachNamespaceAndNoneReachesAnother(t *testing.T) {
	labtest.Require(t)
	a, b := namespace(t), namespace(t)
	serve(t, a, "a")
	serve(t, b, "b")
	machine := new(net.Dialer).DialContext
	for n, want := range map[*netns.Namespace]string{a: "a", b: "b"} {
		if got, err := ask(machine, n); err != nil || got != want {
			t.Errorf("the machine got %q, %v, want %q", got, err, want)
		}
		if got, err := ask(n.DialContext, n); err != nil || got != want {
			t.Errorf("from within came %q, %v, want %q", got, err, want)
		}
	}
	if got, err := ask(a.DialContext, b); err == nil {
		t.Errorf("one namespace got %q from another", got)
	}
	out, err := exec.Command("/usr/bin/nsenter", "--net="+a.Path(), "--", "cat", "/proc/net/route").CombinedOutput()
	if routes := strings.Count(string(out), "\n") - 1; err != nil || routes != 1 {
		t.Errorf("not one route within but %d: %v\n%s", routes, err, out)
	}
}

func TestCutNamespaceDropsWhatTheMachineSends(t *testing.T) {
	labtest.Require(t)
	n := namespace(t)
	serve(t, n, "a")
	machine := new(net.Dialer).DialContext
	for range 2 { // cut before and after anybody knows its Ethernet address
		if err := n.Cut(true); err != nil {
			t.Fatal(err)
		}
		var timeout net.Error
		if got, err := ask(machine, n); !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("the machine got %q, %v, want no answer", got, err)
		}
		if got, err := ask(n.DialContext, n); err != nil || got != "a" {
			t.Errorf("from within came %q, %v", got, err)
		}
		if err := n.Cut(false); err != nil {
			t.Fatal(err)
		}
		if got, err := ask(machine, n); err != nil || got != "a" {
			t.Errorf("the machine got %q, %v", got, err)
		}
	}
}

// What a process that is killed leaves goes by itself.
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
	said := make([]byte, 64)
	n, err := stdout.Read(said)
	killed := errors.Join(cmd.Process.Kill(), err)
	_ = cmd.Wait() // it was killed
	if killed != nil {
		t.Fatal(killed)
	}
	address := net.ParseIP(string(said[:n-1])).To4()
	if address == nil {
		t.Fatalf("the child said %q", said[:n])
	}
	address[3]-- // the machine's end
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		addresses, err := net.InterfaceAddrs()
		if err != nil {
			t.Fatal(err)
		}
		there := false
		for _, a := range addresses {
			there = there || a.(*net.IPNet).IP.Equal(address)
		}
		if !there {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is still there", address)
		}
	}
}
