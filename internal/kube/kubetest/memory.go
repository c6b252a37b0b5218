package kubetest

import (
	"bytes"
	"context"
	"io"
	"net"
	"sync"
	"time"
)

// Listener accepts connections in memory. A goroutine in a testing/synctest bubble that waits for one does not keep the
// bubble's time from advancing, as it would with a socket.
type Listener struct {
	conns chan net.Conn
	done  chan struct{}
	close func()
}

// Listen returns an open Listener.
func Listen() *Listener {
	l := &Listener{conns: make(chan net.Conn), done: make(chan struct{})}
	l.close = sync.OnceFunc(func() { close(l.done) })
	return l
}

// Dial connects to the listener. It has the signature of net.Dialer.DialContext and ignores the address.
func (l *Listener) Dial(ctx context.Context, _, _ string) (net.Conn, error) {
	near, far := newConns()
	select {
	case l.conns <- far:
		return near, nil
	case <-l.done:
	case <-ctx.Done():
	}
	near.Close()
	far.Close()
	return nil, net.ErrClosed
}

func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *Listener) Close() error {
	l.close()
	return nil
}

func (l *Listener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }

// conn is one end of a connection. Unlike net.Pipe it has a write buffer: both sides of TLS write when they close.
type conn struct {
	net.Conn               // the read end of a pipe
	out      chan []byte   // to the write end of the other pipe
	closed   chan struct{} // by Close
	broken   chan struct{} // the other side has closed
	close    func()
}

func newConns() (a, b *conn) {
	aIn, bOut := net.Pipe()
	bIn, aOut := net.Pipe()
	return newConn(aIn, aOut), newConn(bIn, bOut)
}

func newConn(in, out net.Conn) *conn {
	c := &conn{Conn: in, out: make(chan []byte, 64), closed: make(chan struct{}), broken: make(chan struct{})}
	c.close = sync.OnceFunc(func() {
		close(c.closed)
		in.Close()
	})
	go c.pump(out)
	return c
}

// pump writes the buffer until the connection ends.
func (c *conn) pump(out net.Conn) {
	defer out.Close()
	defer close(c.broken)
	for {
		var data []byte
		select {
		case data = <-c.out:
		case <-c.closed:
			select {
			case data = <-c.out:
			default:
				return
			}
		}
		if _, err := out.Write(data); err != nil {
			return
		}
	}
}

func (c *conn) Write(p []byte) (int, error) {
	select {
	case c.out <- bytes.Clone(p):
		return len(p), nil
	case <-c.closed:
	case <-c.broken:
	}
	return 0, io.ErrClosedPipe
}

func (c *conn) Close() error {
	c.close()
	return nil
}

func (c *conn) SetDeadline(t time.Time) error    { return c.SetReadDeadline(t) }
func (c *conn) SetWriteDeadline(time.Time) error { return nil }
func (c *conn) LocalAddr() net.Addr              { return (*Listener)(nil).Addr() }
func (c *conn) RemoteAddr() net.Addr             { return (*Listener)(nil).Addr() }
