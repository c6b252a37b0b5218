// Package netns creates network namespaces that only this machine can reach. Each has its own address and one route, to
// the machine. The package needs root and CAP_NET_ADMIN, but no external program.
package netns

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Namespace is a network namespace without a name: the kernel removes it, with its link and address, when this process
// and the processes in it have ended.
type Namespace struct {
	Address netip.Addr

	file *os.File
	link int // the machine's end of the pair
}

// New creates a namespace with its loopback interface and its address.
//
// The addresses are /31 pairs of 198.19.0.0/16, which RFC 2544 reserves for tests. The machine has the even address,
// the namespace the odd one. The link's name contains the pair. Link names are unique on a machine, so two processes
// cannot use the same pair.
func New() (*Namespace, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("a network namespace needs root; run the lab as root")
	}
	n := &Namespace{}
	err := inThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		var err error
		if n.file, err = os.Open("/proc/thread-self/ns/net"); err != nil {
			return err
		}
		return up("lo")
	})
	if err == nil {
		err = n.connect()
	}
	if err != nil {
		n.Close()
		return nil, fmt.Errorf("creating a network namespace: %w", err)
	}
	return n, nil
}

func (n *Namespace) connect() error {
	const inside = "eth0"
	var name string
	var pair [4]byte
	for range 200 {
		i := 2 * rand.IntN(1<<15)
		pair = [4]byte{198, 19, byte(i >> 8), byte(i)}
		name = fmt.Sprintf("ccgrkc-%04x", i)
		err := createPair(name, inside, n.file.Fd())
		if errors.Is(err, unix.EEXIST) {
			name = ""
			continue
		}
		if err != nil {
			return err
		}
		break
	}
	if name == "" {
		return errors.New("no free address in 198.19.0.0/16: delete the links ccgrkc-* of processes that have ended")
	}
	link, err := net.InterfaceByName(name)
	if err != nil {
		return err
	}
	n.link = link.Index
	if err := errors.Join(addAddress(name, pair), up(name)); err != nil {
		return err
	}
	pair[3]++
	n.Address = netip.AddrFrom4(pair)
	return n.do(func() error { return errors.Join(addAddress(inside, pair), up(inside)) })
}

// Close removes the address immediately, even if a process still uses the namespace.
func (n *Namespace) Close() {
	if n.link != 0 {
		_ = deleteLink(n.link) // fails only if the link is gone
	}
	if n.file != nil {
		n.file.Close()
	}
}

// Path is the namespace's path for nsenter. It is valid until Close.
func (n *Namespace) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.file.Fd()) }

// Listen listens on a TCP port in the namespace.
func (n *Namespace) Listen(address string) (l net.Listener, _ error) {
	err := n.do(func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	})
	return l, err
}

// DialContext connects to a TCP port from within the namespace. The host must be an IP address.
func (n *Namespace) DialContext(ctx context.Context, network, address string) (conn net.Conn, _ error) {
	err := n.do(func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Cut with true drops the packets that the machine sends to the address. Connections inside the namespace continue. Cut
// with false ends this.
func (n *Namespace) Cut(cut bool) error { return setLost(n.link, n.Address.As4(), cut) }

func (n *Namespace) do(f func() error) error {
	return inThread(func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("entering a network namespace: %w", err)
		}
		return f()
	})
}

// inThread calls f, which can change the thread's namespace, and then restores the namespace. If that fails, the thread
// ends with its goroutine. Otherwise the thread must not end: it can be the parent of processes that die with it.
func inThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		before, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		defer before.Close()
		err = f()
		if back := unix.Setns(int(before.Fd()), unix.CLONE_NEWNET); back != nil {
			err = errors.Join(err, fmt.Errorf("leaving a network namespace: %w", back))
		} else {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}
