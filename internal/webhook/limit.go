package webhook

import (
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"time"
)

// maxConnections bounds what strangers can have this process hold, at some 50 KiB each, a small body more. An API server needs a
// few, and one for each review under way: a connection has one at a time (HTTP/1.1).
const maxConnections = 512

// crowd holds at most maxConnections. When one too many comes, one of those goes that the remote address with the most of them
// has: whoever opens connections and keeps them, or keeps them busy, makes room for the others by itself.
type crowd struct {
	mu  sync.Mutex
	all map[net.Conn]*guest
}

// guest is a connection.
type guest struct {
	address string // without the port
	idle    bool   // a new one is: it has asked nothing yet
	since   time.Time
}

func newCrowd() *crowd { return &crowd{all: map[net.Conn]*guest{}} }

// connState is for http.Server.
func (c *crowd) connState(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch g := c.all[conn]; {
	case state == http.StateNew:
		address, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
		c.all[conn] = &guest{address, true, time.Now()}
	case state == http.StateClosed || state == http.StateHijacked:
		delete(c.all, conn)
	case g != nil: // else it has been sent away
		g.idle, g.since = state == http.StateIdle, time.Now()
	}
	if len(c.all) > maxConnections {
		c.sendAway()
	}
}

// sendAway closes one connection of the address that has the most: of the idle ones that which is so for longest; if all are
// busy, the one that is for longest, as no API server's is that has other addresses beside it, and few are that share theirs: a
// review takes milliseconds, and a stranger's request as long as it can.
func (c *crowd) sendAway() {
	count := map[string]int{}
	for _, g := range c.all {
		count[g.address]++
	}
	var chosen net.Conn
	for conn, g := range c.all {
		if chosen == nil || c.goesFirst(g, c.all[chosen], count) {
			chosen = conn
		}
	}
	delete(c.all, chosen)
	// Not Close of the tls.Conn, which waits to say goodbye.
	if t, ok := chosen.(*tls.Conn); ok {
		chosen = t.NetConn()
	}
	go chosen.Close()
}

func (c *crowd) goesFirst(a, b *guest, count map[string]int) bool {
	switch {
	case count[a.address] != count[b.address]:
		return count[a.address] > count[b.address]
	case a.idle != b.idle:
		return a.idle
	}
	return a.since.Before(b.since)
}
