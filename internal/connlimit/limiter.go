package connlimit

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// limiter closes connections above the limits.
type limiter struct {
	Limits
	gate     *gate // nil without TLS
	rejected func()
	log      *slog.Logger

	mu              sync.Mutex
	addresses       map[netip.Addr]*address
	connections     int
	unauthenticated int // of connections
	bodies          int // bytes, of connections
	evicted         int // since logged
	logged          time.Time
}

// conn is one open connection. The limiter's mutex protects its fields.
type conn struct {
	gated
	address       *address
	gone          bool // evicted or closed
	authenticated bool
	busy          bool      // from the end of a request's header to the end of the response
	since         time.Time // when busy changed last
	body          int       // bytes of the body, while busy
	timer         *time.Timer
}

// address is a client address without the port. It has at least one connection.
type address struct {
	netip.Addr
	conns                   []*conn
	unauthenticated, bodies int // of conns
}

func newLimiter(c Config) *limiter {
	l := &limiter{
		Limits:    c.Limits,
		rejected:  c.Rejected,
		log:       c.Log,
		addresses: map[netip.Addr]*address{},
	}
	if c.TLS != nil {
		l.gate = newGate()
	}
	if l.rejected == nil {
		l.rejected = func() {}
	}
	return l
}

// listener counts the connections that it accepts.
type listener struct {
	net.Listener
	limiter *limiter
}

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.limiter.add(c), nil
}

// connOf returns the connection that http.Server calls nc.
func connOf(nc net.Conn) *conn {
	if t, ok := nc.(*tls.Conn); ok {
		nc = t.NetConn()
	}
	return nc.(*conn)
}

// connState is the ConnState hook of http.Server.
func (l *limiter) connState(nc net.Conn, state http.ConnState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := connOf(nc)
	switch {
	case c.gone:
	case state == http.StateActive:
		l.authenticate(c)
		c.pass()
		c.busy, c.since = true, time.Now()
		c.timer = time.AfterFunc(l.Request, c.abort)
	case state == http.StateIdle:
		c.timer.Stop()
		l.setBody(c, 0)
		c.busy, c.since = false, time.Now()
	case state == http.StateClosed:
		l.remove(c)
	}
}

func (l *limiter) add(nc net.Conn) *conn {
	if t, ok := nc.(*net.TCPConn); ok {
		_, _ = t.SetReadBuffer(bufferBytes), t.SetWriteBuffer(bufferBytes)
	}
	ip := nc.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	c := &conn{since: time.Now()}
	c.Conn, c.gate, c.client, c.timeout, c.aborted = nc, l.gate, ip, l.Header, make(chan struct{})
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.address = l.addresses[ip]; c.address == nil {
		c.address = &address{Addr: ip}
		l.addresses[ip] = c.address
	}
	c.address.conns = append(c.address.conns, c)
	c.address.unauthenticated++
	l.connections++
	l.unauthenticated++
	if l.Unauthenticated == 0 {
		l.authenticate(c) // the listener treats all clients alike
	} else {
		c.timer = time.AfterFunc(handshakeTime, func() { l.evictSlow(c) })
	}
	if l.connections > l.Connections {
		l.evictOne()
	}
	return c
}

func (l *limiter) authenticate(c *conn) {
	if c.authenticated {
		return
	}
	if c.timer != nil {
		c.timer.Stop()
	}
	c.authenticated = true
	c.address.unauthenticated--
	l.unauthenticated--
}

// connKey is the key of a request's connection in the request's context.
type connKey struct{}

func connContext(ctx context.Context, nc net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, connOf(nc))
}

// limitBodies counts the body of each request until the end of the response.
func (l *limiter) limitBodies(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 && l.Bodies > 0 {
			l.countBody(r)
		}
		next.ServeHTTP(w, r)
	})
}

func (l *limiter) countBody(r *http.Request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := r.Context().Value(connKey{}).(*conn)
	if c.gone {
		return
	}
	n := maxCounted
	if r.ContentLength > 0 { // otherwise unknown
		n = int(min(r.ContentLength, maxCounted))
	}
	l.setBody(c, n)
	for l.bodies > l.Bodies {
		l.evict(func(a *address) int { return a.bodies }, func(c *conn) bool { return c.body > 0 })
	}
}

func (l *limiter) setBody(c *conn, n int) {
	l.bodies += n - c.body
	c.address.bodies += n - c.body
	c.body = n
}

func (l *limiter) remove(c *conn) {
	l.authenticate(c) // no longer counted
	l.setBody(c, 0)
	if c.timer != nil {
		c.timer.Stop()
	}
	c.gone = true
	l.connections--
	i := slices.Index(c.address.conns, c)
	if c.address.conns = slices.Delete(c.address.conns, i, i+1); len(c.address.conns) == 0 {
		delete(l.addresses, c.address.Addr)
	}
}

// evictSlow is called when c has been unauthenticated for handshakeTime.
func (l *limiter) evictSlow(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case c.gone || c.authenticated || l.unauthenticated <= l.Unauthenticated:
	case !c.reading.Load(): // it waits for this process, and not for its client
		c.timer.Reset(handshakeTime)
	default:
		for n := l.slow(); n > l.Unauthenticated; n-- {
			l.evict((*address).slow, (*conn).slow)
		}
	}
}

// slow reports whether the client of an unauthenticated connection has had more time than a handshake needs. A burst of
// new connections is not slow.
func (c *conn) slow() bool {
	return !c.authenticated && c.reading.Load() && time.Since(c.since) >= handshakeTime
}

func (a *address) slow() (n int) {
	for _, c := range a.conns {
		if c.slow() {
			n++
		}
	}
	return n
}

func (l *limiter) slow() (n int) {
	for _, a := range l.addresses {
		n += a.slow()
	}
	return n
}

func unauthenticated(a *address) int { return a.unauthenticated }

// evictOne closes an unauthenticated connection, or any connection if all are authenticated.
func (l *limiter) evictOne() {
	if l.unauthenticated > 0 {
		l.evict(unauthenticated, func(c *conn) bool { return !c.authenticated })
		return
	}
	l.evict(func(a *address) int { return len(a.conns) }, func(*conn) bool { return true })
}

// evict closes one of the candidates of the address with the highest count: the one that is idle for longest. If all
// are busy, it is the one that is busy for longest: an admission request takes milliseconds, but an attacker's takes as
// long as possible.
func (l *limiter) evict(count func(*address) int, candidate func(*conn) bool) {
	var victim *conn
	for _, a := range l.addresses {
		if victim != nil && count(a) < count(victim.address) {
			continue
		}
		for _, c := range a.conns {
			if candidate(c) && (victim == nil || count(a) > count(victim.address) || idleLonger(c, victim)) {
				victim = c
			}
		}
	}
	if victim == nil {
		return
	}
	if time.Since(l.logged) >= repeatLog {
		l.log.Warn("too many connections or bytes; closing connections of the address with the most",
			"address", victim.address.String(), "connections", len(victim.address.conns), "limit", l.Connections,
			"closedBefore", l.evicted)
		l.logged, l.evicted = time.Now(), 0
	}
	l.evicted++
	l.rejected()
	l.remove(victim)
	victim.abort()
}

func idleLonger(a, b *conn) bool {
	if a.busy != b.busy {
		return b.busy
	}
	return a.since.Before(b.since)
}

func (l *limiter) closeAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range l.addresses {
		for _, c := range slices.Clone(a.conns) {
			l.remove(c)
			c.abort()
		}
	}
}
