// Package connlimittest attacks listeners with many connections that clients open and hold. It needs no privileges. An
// attack is a process of its own, so that it competes with the attacked program and not with the test's good clients.
package connlimittest

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// MaxMemory is the resident memory in bytes that an attacked program can use: 60 % of the limit in the charts, 128 MiB.
const MaxMemory = 128 << 20 * 6 / 10

// The kinds of attacks.
const (
	Header      = "header"       // 3.9 KB of a header that does not end
	ClientHello = "client hello" // a TLS handshake that does not continue
	HeldTLS     = "held TLS"     // a complete TLS handshake without a client certificate, then an unfinished header
	BusyTLS     = "busy TLS"     // the same, then a request whose body does not end
)

// Target is one attack. After each connection was opened once, those that the server has closed are opened again.
type Target struct {
	Address     string // host:port
	Kind        string
	Connections int
}

const (
	environment = "CCGRKC_ATTACK"
	// sources is the number of loopback addresses that an attack comes from, beginning with 127.0.0.2.
	sources = 15
	// parallelDials is the number of simultaneous dials for each target. Thousands would overflow the kernel's queue of
	// new connections, so that the kernel keeps the attack away from the program.
	parallelDials = 64
	// reopen is the longest pause before a closed connection is opened again.
	reopen = time.Minute
)

// Main attacks and does not return, if this process was started by Start. It must come first in TestMain or main.
func Main() {
	targets := os.Getenv(environment)
	if targets == "" {
		return
	}
	var list []Target
	if err := json.Unmarshal([]byte(targets), &list); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	var first sync.WaitGroup
	for _, t := range list {
		dials := make(chan struct{}, parallelDials)
		first.Add(t.Connections)
		for i := range t.Connections {
			go func() {
				for !t.open(i, dials, first.Done) {
				}
				first.Wait()
				for {
					time.Sleep(rand.N(reopen))
					t.open(i, dials, func() {})
				}
			}()
		}
	}
	first.Wait()
	fmt.Println("opened")
	_, _ = io.Copy(io.Discard, os.Stdin) // until the process that started this one has ended
	os.Exit(0)
}

// Attack is a process that attacks several targets at the same time.
type Attack struct {
	Program string // path of a program that calls Main
	Targets []Target

	cmd    *exec.Cmd
	in     io.Closer
	opened chan struct{}
}

// Start starts the attack and does not wait for it.
func (a *Attack) Start() error {
	targets, err := json.Marshal(a.Targets)
	if err != nil {
		return err
	}
	a.cmd = exec.Command(a.Program)
	a.cmd.Env = append(os.Environ(), environment+"="+string(targets))
	a.cmd.Stderr = os.Stderr
	if a.in, err = a.cmd.StdinPipe(); err != nil {
		return err
	}
	out, err := a.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := a.cmd.Start(); err != nil {
		return err
	}
	a.opened = make(chan struct{})
	go func() {
		if _, err := bufio.NewReader(out).ReadString('\n'); err == nil {
			close(a.opened)
		}
	}()
	return nil
}

// Opened reports whether each connection has been opened once.
func (a *Attack) Opened() bool {
	select {
	case <-a.opened:
		return true
	default:
		return false
	}
}

// Stop ends the attack.
func (a *Attack) Stop() {
	_ = a.in.Close()
	_ = a.cmd.Wait()
}

// open opens a connection, calls opened, and holds the connection until the server closes it. It returns false if it
// cannot connect.
func (t Target) open(i int, dials chan struct{}, opened func()) bool {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+i%sources))}, Timeout: 5 * time.Second}
	dials <- struct{}{}
	c, err := dialer.Dial("tcp", t.Address)
	if err != nil {
		time.Sleep(10 * time.Millisecond)
		<-dials
		return false
	}
	defer c.Close()
	t.send(c)
	<-dials
	opened()
	_, _ = io.Copy(io.Discard, c)
	return true
}

func (t Target) send(c net.Conn) {
	const request = "POST /mutate?timeout=30s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
	header := request + "X: " + strings.Repeat("x", 3900-len(request))
	switch t.Kind {
	case Header:
		_, _ = io.WriteString(c, header)
	case ClientHello:
		_, _ = c.Write(clientHello())
	case HeldTLS, BusyTLS:
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		conn := tls.Client(c, &tls.Config{InsecureSkipVerify: true})
		if t.Kind == BusyTLS {
			header = request + "Content-Length: 65536\r\n\r\n{"
		}
		_, _ = io.WriteString(conn, header)
		_ = c.SetDeadline(time.Time{})
	}
}

// clientHello is the first record of a TLS client.
var clientHello = sync.OnceValue(func() []byte {
	client, server := net.Pipe()
	defer server.Close()
	go func() {
		_ = tls.Client(client, &tls.Config{InsecureSkipVerify: true}).HandshakeContext(context.Background())
	}()
	b := make([]byte, 4096)
	n, err := server.Read(b)
	if err != nil {
		panic(err)
	}
	return b[:n]
})

// Memory returns a line of /proc/<pid>/status in bytes, such as VmHWM, the largest resident memory.
func Memory(pid int, name string) (int, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		var kib int
		if _, err := fmt.Sscanf(line, name+": %d kB", &kib); err == nil {
			return kib << 10, nil
		}
	}
	return 0, fmt.Errorf("no %s in /proc/%d/status", name, pid)
}
