package kubelet

import (
	"io"
	"net"
	"sync"
)

// gate forwards TCP connections to one address. A cut closes open connections; new ones are accepted and hang, as if
// packets were dropped, until the end of the cut closes them.
type gate struct {
	listener net.Listener
	target   string

	mu     sync.Mutex
	isCut  bool
	closed bool
	conns  map[net.Conn]bool
}

func newGate(target string) (*gate, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	g := &gate{listener: listener, target: target, conns: map[net.Conn]bool{}}
	go g.accept(listener)
	return g, nil
}

func (g *gate) port() int { return g.listener.Addr().(*net.TCPAddr).Port }

// accept serves a listener until it is closed. The gate can have further listeners in the namespaces of pods.
func (g *gate) accept(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return // closed
		}
		g.mu.Lock()
		isCut, closed := g.isCut, g.closed
		g.conns[conn] = !closed
		g.mu.Unlock()
		switch {
		case closed:
			g.drop(conn)
		case !isCut:
			go g.pass(conn)
		}
	}
}

func (g *gate) pass(in net.Conn) {
	out, err := net.Dial("tcp", g.target)
	if err != nil {
		g.drop(in)
		return
	}
	g.mu.Lock()
	if !g.conns[in] { // cut meanwhile
		g.mu.Unlock()
		out.Close()
		return
	}
	g.conns[out] = true
	g.mu.Unlock()
	var wg sync.WaitGroup
	for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
		wg.Go(func() {
			_, _ = io.Copy(way[1], way[0])
			_ = way[1].(*net.TCPConn).CloseWrite()
		})
	}
	wg.Wait()
	g.drop(in, out)
}

func (g *gate) drop(conns ...net.Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, conn := range conns {
		conn.Close()
		delete(g.conns, conn)
	}
}

func (g *gate) cut(cut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.isCut == cut {
		return
	}
	g.isCut = cut
	g.closeAll()
}

func (g *gate) closeAll() {
	for conn := range g.conns {
		conn.Close()
	}
	clear(g.conns)
}

func (g *gate) close() {
	g.listener.Close()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	g.closeAll()
}
