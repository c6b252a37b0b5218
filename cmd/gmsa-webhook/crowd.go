package main

import (
	"crypto/tls"
	"net"
	"net/http"
	"slices"
	"sync"
)

// maxConnections bounds what strangers can have this process hold, at some 50 KiB each. An API server needs a few.
const maxConnections = 512

// crowd holds at most maxConnections. When one too many comes, the one goes that has had nothing to do for longest: API servers
// that ask now and then find room, whoever else opens connections and keeps them.
type crowd struct {
	mu   sync.Mutex
	all  map[net.Conn]bool
	idle []net.Conn // for longest first; a new one has asked nothing yet
}

// connState is for http.Server.
func (c *crowd) connState(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := slices.Index(c.idle, conn); i >= 0 {
		c.idle = slices.Delete(c.idle, i, i+1)
	}
	switch state {
	case http.StateNew:
		c.all[conn] = true
		c.idle = append(c.idle, conn)
	case http.StateIdle:
		c.idle = append(c.idle, conn)
	case http.StateClosed, http.StateHijacked:
		delete(c.all, conn)
	}
	if len(c.all) > maxConnections && len(c.idle) > 0 {
		oldest := c.idle[0]
		c.idle = c.idle[1:]
		delete(c.all, oldest)
		// Not Close of the tls.Conn, which waits to say goodbye.
		if t, ok := oldest.(*tls.Conn); ok {
			oldest = t.NetConn()
		}
		go oldest.Close()
	}
}
