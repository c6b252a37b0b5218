package connlimit

import (
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// gate limits how many TLS handshakes use a processor at the same time. Each needs about half a millisecond. Without
// the limit, hundreds of them would delay the acceptance of new connections, until the kernel's queue of them is full.
// The address with the fewest waiting connections comes first, and of these the newest: its client still waits.
type gate struct {
	mu      sync.Mutex
	free    int
	waiting []waiter // oldest first
	counts  map[netip.Addr]int
}

type waiter struct {
	address netip.Addr
	turn    chan struct{}
}

// One processor is left for accepting connections.
func newGate() *gate {
	return &gate{free: max(1, runtime.GOMAXPROCS(0)-1), counts: map[netip.Addr]int{}}
}

// enter waits for its turn. It returns false after timeout, or when closed is closed.
func (g *gate) enter(address netip.Addr, closed <-chan struct{}, timeout time.Duration) bool {
	g.mu.Lock()
	if g.free > 0 {
		g.free--
		g.mu.Unlock()
		return true
	}
	w := waiter{address, make(chan struct{}, 1)}
	g.waiting = append(g.waiting, w)
	g.counts[address]++
	g.mu.Unlock()
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-w.turn:
		return true
	case <-closed:
	case <-timer.C:
	}
	g.mu.Lock()
	i := slices.Index(g.waiting, w)
	if i >= 0 {
		g.remove(i)
	}
	g.mu.Unlock()
	if i < 0 { // its turn came at this moment
		g.leave()
	}
	return false
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.waiting) == 0 {
		g.free++
		return
	}
	next := 0
	for i, w := range g.waiting {
		if g.counts[w.address] <= g.counts[g.waiting[next].address] {
			next = i
		}
	}
	g.waiting[next].turn <- struct{}{}
	g.remove(next)
}

func (g *gate) remove(i int) {
	address := g.waiting[i].address
	g.waiting = slices.Delete(g.waiting, i, i+1)
	if g.counts[address]--; g.counts[address] == 0 {
		delete(g.counts, address)
	}
}

// gated is a connection. Until its first request, it enters the gate when it has received bytes, and leaves it when it
// sends an answer or waits for more bytes.
type gated struct {
	net.Conn
	gate    *gate // can be nil
	client  netip.Addr
	timeout time.Duration // at the gate
	reading atomic.Bool   // waits for its client
	inside  atomic.Bool
	passed  atomic.Bool // no longer enters
	aborted chan struct{}
	once    sync.Once
}

func (c *gated) Read(b []byte) (int, error) {
	c.leave()
	c.reading.Store(true)
	n, err := c.Conn.Read(b)
	c.reading.Store(false)
	if n == 0 || c.gate == nil || c.passed.Load() {
		return n, err
	}
	if !c.gate.enter(c.client, c.aborted, c.timeout) {
		return 0, os.ErrDeadlineExceeded
	}
	c.inside.Store(true)
	return n, err
}

func (c *gated) Write(b []byte) (int, error) {
	c.leave()
	return c.Conn.Write(b)
}

func (c *gated) Close() error {
	c.leave()
	return c.Conn.Close()
}

func (c *gated) pass() {
	c.passed.Store(true)
	c.leave()
}

func (c *gated) leave() {
	if c.inside.CompareAndSwap(true, false) {
		c.gate.leave()
	}
}

// abort closes the connection and discards the kernel's buffers, which would otherwise remain until the client has read
// them. It does not wait, unlike Close of a tls.Conn, which sends an alert.
func (c *gated) abort() {
	c.once.Do(func() {
		close(c.aborted)
		if t, ok := c.Conn.(*net.TCPConn); ok {
			_ = t.SetLinger(0)
		}
		_ = c.Conn.Close()
	})
}
