package webhook

import (
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"time"
)

// maxConnections limits what unauthenticated clients can make this process hold: about 50 KiB per connection, plus a
// small body. An API server needs a few connections and one for each concurrent admission request (HTTP/1.1).
const maxConnections = 512

// connLimiter limits the number of connections to maxConnections. Above it, the limiter closes a connection of the
// client address that has the most. A client that keeps many connections therefore loses only its own.
type connLimiter struct {
	mu    sync.Mutex
	conns map[net.Conn]*conn
}

type conn struct {
	address string // without the port
	idle    bool   // also true for a new connection
	since   time.Time
}

func newConnLimiter() *connLimiter { return &connLimiter{conns: map[net.Conn]*conn{}} }

// connState is the ConnState hook of http.Server.
func (l *connLimiter) connState(nc net.Conn, state http.ConnState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch c := l.conns[nc]; {
	case state == http.StateNew:
		address, _, _ := net.SplitHostPort(nc.RemoteAddr().String())
		l.conns[nc] = &conn{address: address, idle: true, since: time.Now()}
	case state == http.StateClosed || state == http.StateHijacked:
		delete(l.conns, nc)
	case c != nil: // nil after evict
		c.idle, c.since = state == http.StateIdle, time.Now()
	}
	if len(l.conns) > maxConnections {
		l.evict()
	}
}

// evict closes one connection of the address that has the most: the one that is idle for longest, or if all are busy,
// the one that is busy for longest. An admission request takes milliseconds, but an attacker's request takes as long as
// possible.
func (l *connLimiter) evict() {
	count := map[string]int{}
	for _, c := range l.conns {
		count[c.address]++
	}
	var victim net.Conn
	for nc, c := range l.conns {
		if victim == nil || evictBefore(c, l.conns[victim], count) {
			victim = nc
		}
	}
	delete(l.conns, victim)
	// Close of a tls.Conn would wait to send an alert.
	if t, ok := victim.(*tls.Conn); ok {
		victim = t.NetConn()
	}
	go victim.Close()
}

func evictBefore(a, b *conn, count map[string]int) bool {
	switch {
	case count[a.address] != count[b.address]:
		return count[a.address] > count[b.address]
	case a.idle != b.idle:
		return a.idle
	}
	return a.since.Before(b.since)
}
