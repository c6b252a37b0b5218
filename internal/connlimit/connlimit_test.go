package connlimit

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var testLimits = Limits{
	Connections: 10,
	HeaderBytes: 4 << 10,
	Bodies:      1000,
	Header:      5 * time.Second,
	Request:     20 * time.Second,
	Idle:        time.Minute,
}

func config(l Limits, h http.HandlerFunc) Config {
	return Config{Handler: h, Limits: l, Log: slog.New(slog.DiscardHandler)}
}

// memoryListener accepts connections in memory, so that a test can use a fake clock.
type memoryListener struct {
	address string
	conns   chan net.Conn
	failed  chan error
}

func newMemoryListener(address string) *memoryListener {
	return &memoryListener{address, make(chan net.Conn), make(chan error, 1)}
}

func (l *memoryListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case err := <-l.failed:
		return nil, err
	}
}

func (l *memoryListener) Addr() net.Addr { return &net.TCPAddr{} }

func (l *memoryListener) Close() error {
	select {
	case l.failed <- net.ErrClosed:
	default:
	}
	return nil
}

// dial opens a connection from an address. The server has accepted it when dial returns.
func (l *memoryListener) dial(address string) *client {
	near, far := net.Pipe()
	l.conns <- serverConn{far, address}
	c := &client{Conn: near, closed: make(chan struct{})}
	synctest.Wait()
	return c
}

type serverConn struct {
	net.Conn
	address string
}

func (c serverConn) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.ParseIP(c.address), Port: 1} }

type client struct {
	net.Conn
	closed chan struct{}
}

// send writes without waiting for the server, and reads the answers until the server closes the connection.
func (c *client) send(text string) {
	go func() {
		_, _ = io.WriteString(c, text)
	}()
	go func() {
		_, _ = io.Copy(io.Discard, c)
		close(c.closed)
	}()
	synctest.Wait()
}

func (c *client) isClosed() bool {
	synctest.Wait()
	select {
	case <-c.closed:
		return true
	default:
		return false
	}
}

// serve runs a server in memory until the test ends.
func serve(t *testing.T, c Config) (*Server, *memoryListener) {
	s, l := New(c), newMemoryListener("")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Keep(ctx, l, func() (net.Listener, error) { return nil, errors.New("not expected") })
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return s, l
}

const (
	get  = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
	post = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 400\r\n\r\n"
)

// waitForBody answers when the body is complete.
func waitForBody(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }

// Above the limit, the address with the most connections loses the one that is idle for longest, and without an idle
// one the one that is busy for longest.
func TestTheAddressWithTheMostConnectionsLosesThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limits := testLimits
		limits.Bodies = 1 << 20
		limits.Request = time.Hour
		limits.Idle = time.Hour
		rejected := 0
		c := config(limits, waitForBody)
		c.Rejected = func() { rejected++ }
		_, l := serve(t, c)
		open := func(address, request string) *client {
			time.Sleep(time.Second)
			c := l.dial(address)
			c.send(request)
			return c
		}
		probe := open("127.0.0.1", get)
		busy := open("127.0.0.2", post)
		idle := open("127.0.0.2", get)
		for range limits.Connections - 3 {
			open("127.0.0.2", post)
		}
		for _, want := range []*client{idle, busy} {
			if want.isClosed() {
				t.Fatal("closed at the limit")
			}
			open("127.0.0.3", post)
			if !want.isClosed() {
				t.Error("not closed")
			}
		}
		if probe.isClosed() || rejected != 2 {
			t.Errorf("another address lost a connection, or %d were closed", rejected)
		}
		time.Sleep(2 * time.Hour) // the fake clock ends the rest
	})
}

// Where clients need a certificate, connections without one are closed first, and few of them can stay for long. A
// burst of clients that present theirs in time loses nothing.
func TestClientsWithoutACertificateHoldFewConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limits := testLimits
		limits.Unauthenticated = 3
		limits.Header = time.Minute
		_, l := serve(t, config(limits, func(http.ResponseWriter, *http.Request) {}))
		var known, unauthenticated, others []*client
		for range 4 {
			known = append(known, l.dial("127.0.0.1"))
		}
		time.Sleep(handshakeTime / 2)
		for _, c := range known {
			c.send(get)
		}
		count := func(list []*client) (open int) {
			for _, c := range list {
				if !c.isClosed() {
					open++
				}
			}
			return open
		}
		for range 20 {
			c := l.dial("127.0.0.2")
			c.send("GET")
			unauthenticated = append(unauthenticated, c)
		}
		if n := count(unauthenticated); n != limits.Connections-len(known) {
			t.Errorf("%d unauthenticated connections", n)
		}
		time.Sleep(handshakeTime)
		if n := count(unauthenticated); n != limits.Unauthenticated {
			t.Errorf("%d unauthenticated connections after a while, want %d", n, limits.Unauthenticated)
		}
		c := l.dial("127.0.0.3")
		c.send("GET")
		others = append(others, c)
		time.Sleep(handshakeTime)
		if count(others) != 1 || count(unauthenticated) != limits.Unauthenticated-1 {
			t.Error("another address did not get a part")
		}
		if count(known) != len(known) {
			t.Error("a client with a certificate lost a connection")
		}
		time.Sleep(time.Hour)
	})
}

// A burst of new connections of the API server loses nothing, even while an attacker holds as many as are allowed.
func TestABurstLosesNothingToSlowConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limits := testLimits
		limits.Connections, limits.Unauthenticated = 100, 3
		limits.Header = time.Minute
		_, l := serve(t, config(limits, func(http.ResponseWriter, *http.Request) {}))
		open := func(n int, address string) (list []*client) {
			for range n {
				c := l.dial(address)
				c.send("GET")
				list = append(list, c)
			}
			return list
		}
		closed := func(list []*client) (n int) {
			for _, c := range list {
				if c.isClosed() {
					n++
				}
			}
			return n
		}
		attacker := open(20, "127.0.0.2")
		time.Sleep(handshakeTime * 9 / 10)
		burst := open(50, "127.0.0.1")
		time.Sleep(handshakeTime / 2)
		if n := closed(burst); n > 0 {
			t.Errorf("%d connections of the burst were closed", n)
		}
		if n := len(attacker) - closed(attacker); n != limits.Unauthenticated {
			t.Errorf("the attacker holds %d connections, want %d", n, limits.Unauthenticated)
		}
	})
}

func TestBodiesAreLimitedTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, l := serve(t, config(testLimits, waitForBody))
		send := func(address, request string) *client {
			time.Sleep(time.Second)
			c := l.dial(address)
			c.send(request)
			return c
		}
		small := send("127.0.0.1", strings.Replace(post, "400", "1", 1))
		first, second := send("127.0.0.2", post), send("127.0.0.2", post)
		if first.isClosed() {
			t.Error("closed below the limit")
		}
		third := send("127.0.0.3", strings.Replace(post, "400", "300", 1))
		if !first.isClosed() || second.isClosed() || third.isClosed() || small.isClosed() {
			t.Error("not the oldest of the address with the most bytes was closed")
		}
		chunked := send("127.0.0.4", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
		if !chunked.isClosed() {
			t.Error("a body of unknown length does not count")
		}
		time.Sleep(testLimits.Request)
		if again := send("127.0.0.4", post); again.isClosed() {
			t.Error("a body still counts after its request")
		}
		time.Sleep(time.Hour)
	})
}

func TestEachStepHasATimeLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, l := serve(t, config(testLimits, waitForBody))
		for _, c := range []struct {
			what, send string
			limit      time.Duration
		}{
			{"nothing", "", testLimits.Header},
			{"an unfinished header", "GET / HTTP/1.1\r\nX: ", testLimits.Header},
			{"an unfinished body", post, testLimits.Request},
			{"a body that nobody reads", strings.Replace(post, "/", "/unknown", 1), testLimits.Request},
			{"no second request", get, testLimits.Idle},
			{"an unfinished second header", get + "GET / HTTP/1.1\r\n", testLimits.Header},
		} {
			conn := l.dial("127.0.0.1")
			conn.send(c.send)
			time.Sleep(c.limit - time.Millisecond)
			if conn.isClosed() {
				t.Errorf("%s: closed before %s", c.what, c.limit)
			}
			time.Sleep(time.Second)
			if !conn.isClosed() {
				t.Errorf("%s: open after %s", c.what, c.limit)
			}
		}
	})
}

func TestAHeaderHasALimit(t *testing.T) {
	s := New(config(testLimits, func(http.ResponseWriter, *http.Request) {}))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Close)
	for n, want := range map[int]int{testLimits.HeaderBytes - 100: 200, testLimits.HeaderBytes + 8<<10: 431} {
		r, err := http.NewRequest(http.MethodGet, "http://"+l.Addr().String(), nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X", strings.Repeat("x", n))
		resp, err := http.DefaultTransport.RoundTrip(r)
		if err != nil || resp.StatusCode != want {
			t.Errorf("%d bytes: %v, %v; want %d", n, resp, err, want)
			continue
		}
		resp.Body.Close()
	}
}

// A failed listener is replaced, also if the address can't be used for a while. Open connections stay.
func TestAFailedListenerIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(config(testLimits, func(http.ResponseWriter, *http.Request) {}))
		first, second := newMemoryListener("first"), newMemoryListener("second")
		attempts := 0
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.Keep(ctx, first, func() (net.Listener, error) {
				if attempts++; attempts < 3 {
					return nil, errors.New("address already in use")
				}
				return second, nil
			})
		}()
		old := first.dial("127.0.0.1")
		first.failed <- errors.New("invalid argument") // no method Temporary, as for EINVAL
		time.Sleep(3 * relistenPause)
		synctest.Wait()
		fresh := second.dial("127.0.0.1")
		for _, c := range []*client{old, fresh} {
			go func() { _, _ = io.WriteString(c, get) }()
			if resp, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || resp.StatusCode != 200 {
				t.Errorf("%v, %v", resp, err)
			}
		}
		cancel()
		<-done
		if attempts != 3 {
			t.Errorf("%d attempts", attempts)
		}
	})
}

// Keep ends although the address can't be used.
func TestKeepEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Hour, cancel)
		New(config(testLimits, nil)).Keep(ctx, nil, func() (net.Listener, error) { return nil, errors.New("in use") })
	})
}

// Attack: TLS clients do not read. Close of a TLS connection first sends an alert.
func TestCloseDoesNotWaitForClientsThatDoNotRead(t *testing.T) {
	server := httptest.NewUnstartedServer(nil)
	server.StartTLS()
	server.Close()
	synctest.Test(t, func(t *testing.T) {
		c := config(testLimits, waitForBody)
		c.TLS = &tls.Config{Certificates: server.TLS.Certificates, SessionTicketsDisabled: true}
		s, l := serve(t, c)
		for range 2 {
			client := tls.Client(l.dial("127.0.0.1"), &tls.Config{InsecureSkipVerify: true})
			if _, err := io.WriteString(client, post); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		began := time.Now()
		s.Close()
		if took := time.Since(began); took > 0 { // http.Server.Close waits for 5 s for each client
			t.Errorf("took %s", took)
		}
	})
}
