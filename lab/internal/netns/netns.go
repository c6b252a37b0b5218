// Package netns makes network namespaces that only this machine reaches: each has an address of its own, and a route to the
// machine and to nothing else. It needs root and the right CAP_NET_ADMIN, and no program.
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

// Namespace is a network namespace. It has no name: the kernel removes it, with its link and its address, when this process
// and the processes in it have ended, however they do.
type Namespace struct {
	Address netip.Addr

	file *os.File
	link int // the machine's end of the pair
}

// New makes a namespace, with its loopback and its address up.
//
// The addresses are pairs, /31, of 198.19.0.0/16, which RFC 2544 gives to tests: the even one is the machine's, the odd one
// the namespace's. A link's name holds its pair, and no two links of a machine have one name, so the kernel sees to it that
// no two processes use one pair.
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
		return nil, fmt.Errorf("making a network namespace: %w", err)
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
		return errors.New("no free address was found in 198.19.0.0/16: remove the links ccgrkc-*, whose processes have ended")
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

// Close takes the address away at once, whoever still holds the namespace open.
func (n *Namespace) Close() {
	if n.link != 0 {
		_ = deleteLink(n.link) // gone already
	}
	if n.file != nil {
		n.file.Close()
	}
}

// Path is a name for nsenter, good until Close.
func (n *Namespace) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.file.Fd()) }

// Listen opens a TCP port within.
func (n *Namespace) Listen(address string) (l net.Listener, _ error) {
	err := n.do(func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	})
	return l, err
}

// DialContext calls a TCP port, given with an IP address, from within.
func (n *Namespace) DialContext(ctx context.Context, network, address string) (conn net.Conn, _ error) {
	err := n.do(func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Cut has what the machine sends to the address vanish, as where packets are dropped; connections from within to within go
// on. Cut with false ends it.
func (n *Namespace) Cut(cut bool) error { return setLost(n.link, n.Address.As4(), cut) }

func (n *Namespace) do(f func() error) error {
	return inThread(func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("entering a network namespace: %w", err)
		}
		return f()
	})
}

// inThread calls f, which may change the thread's namespace, and brings the thread back. A thread that cannot be brought back
// ends with its goroutine; one that can must not end, for it may be the parent of processes that die with it.
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
