package webhook

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/admission"
	"github.com/ccgrkc/ccgrkc/internal/credential"
)

const review = `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview",
"request":{"uid":"u-1","operation":"CREATE","namespace":"shop",
"kind":{"group":"","version":"v1","kind":"Pod"},"resource":{"group":"","version":"v1","resource":"pods"},
"object":{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{"containers":[{"name":"c"}],
"securityContext":{"windowsOptions":{"gmsaCredentialSpecName":"web"}}}}}}`

func loadTest(t *testing.T) {
	t.Helper()
	if os.Getenv("CCGRKC_LAB") != "1" {
		t.Skip("load test: runs in make test")
	}
}

// from dials from one of the loopback addresses, so that a test can act as several machines.
func from(address string) *net.Dialer {
	return &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}, Timeout: 10 * time.Second}
}

// startLimited starts a server with a connection limiter, as the program does.
func startLimited(t *testing.T, handler http.Handler) (*httptest.Server, *connLimiter) {
	t.Helper()
	l := newConnLimiter()
	server := httptest.NewUnstartedServer(handler)
	server.Config.ConnState = l.connState
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	return server, l
}

// apiServer returns a client with this address.
func apiServer(t *testing.T, server *httptest.Server, address string) *http.Client {
	transport := server.Client().Transport.(*http.Transport).Clone()
	transport.DialContext = from(address).DialContext
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 10 * time.Second}
}

// fakeConn is a connection that records Close.
type fakeConn struct {
	net.Conn
	address string
	closed  chan struct{}
}

func (c *fakeConn) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.ParseIP(c.address), Port: 1} }

func (c *fakeConn) Close() error {
	close(c.closed)
	return nil
}

// Above the limit, the address with the most connections loses the one that is idle for longest, and without an idle
// one the one that is busy for longest.
func TestTheLimiterEvictsFromTheAddressWithTheMostConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newConnLimiter()
		open := func(address string, state http.ConnState) *fakeConn {
			time.Sleep(time.Second)
			c := &fakeConn{address: address, closed: make(chan struct{})}
			l.connState(c, http.StateNew)
			l.connState(c, state)
			return c
		}
		api := open("127.0.0.1", http.StateIdle)
		busy := open("127.0.0.2", http.StateActive)
		idle := open("127.0.0.2", http.StateIdle)
		for range maxConnections - 3 {
			open("127.0.0.2", http.StateActive)
		}
		for _, want := range []*fakeConn{idle, busy} {
			open("127.0.0.3", http.StateActive)
			<-want.closed
		}
		select {
		case <-api.closed:
			t.Error("another address lost a connection")
		default:
		}
		if len(l.conns) != maxConnections {
			t.Errorf("%d connections, want %d", len(l.conns), maxConnections)
		}
	})
}

// Attack: unauthenticated clients open connections, with or without a TLS handshake, and keep them. The API server can
// use its connection and open new ones, even if it has the attacker's address (behind a proxy).
func TestIdleConnectionsOfAnAttackerAreEvicted(t *testing.T) {
	loadTest(t)
	for _, address := range []string{"127.0.0.1", "127.0.0.2"} {
		t.Run(address, func(t *testing.T) {
			t.Parallel()
			server, l := startLimited(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				_, _ = io.WriteString(w, "ok")
			}))
			get := func(client *http.Client) {
				t.Helper()
				resp, err := client.Get(server.URL)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "ok" {
					t.Fatal(string(body), err)
				}
			}
			api := apiServer(t, server, "127.0.0.1")
			get(api)
			for i := range maxConnections + 100 {
				conn, err := from(address).Dial("tcp", server.Listener.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { conn.Close() })
				if i%2 == 0 {
					// Fails if the limiter has closed the connection.
					_ = tls.Client(conn, &tls.Config{InsecureSkipVerify: true}).Handshake()
				}
				if i%50 == 0 {
					get(api)
				}
			}
			get(api)
			get(apiServer(t, server, "127.0.0.1"))
			l.mu.Lock()
			defer l.mu.Unlock()
			if n := len(l.conns); n > maxConnections {
				t.Errorf("%d connections, want at most %d", n, maxConnections)
			}
		})
	}
}

// fixed is a Cluster with constant answers.
type fixed struct{}

func (fixed) CredentialSpec(context.Context, string) ([]byte, error) { return []byte(`{"a":1}`), nil }
func (fixed) CanUse(context.Context, string, string, string) (bool, string, error) {
	return true, "", nil
}
func (fixed) Account(context.Context, credential.Reference) (admission.AccountState, error) {
	return admission.AccountReady, nil
}

// Attack: an unauthenticated client keeps more connections than the limit busy with incomplete requests, and reopens
// each that is closed. The API server keeps its connection and can open new ones.
func TestBusyConnectionsOfAnAttackerAreEvicted(t *testing.T) {
	loadTest(t)
	// Not parallel: the attacker's handshakes need the processors.
	server, _ := startLimited(t, admission.NewHandler(admission.Config{
		Cluster: fixed{},
		Metrics: admission.NewMetrics(func() time.Time { return time.Time{} }),
		Log:     slog.New(slog.DiscardHandler),
	}))
	const incomplete = "POST /mutate?timeout=30s HTTP/1.1\r\nHost: x\r\n" +
		"Content-Type: application/json\r\nContent-Length: 300\r\n\r\n{"
	for range maxConnections + 60 {
		go func() {
			for t.Context().Err() == nil {
				raw, err := from("127.0.0.2").Dial("tcp", server.Listener.Addr().String())
				if err != nil {
					return
				}
				conn := tls.Client(raw, &tls.Config{InsecureSkipVerify: true})
				stop := context.AfterFunc(t.Context(), func() { raw.Close() })
				_, _ = io.WriteString(conn, incomplete)
				_, _ = conn.Read(make([]byte, 100))
				stop()
				conn.Close()
				time.Sleep(200 * time.Millisecond) // both ends of the handshakes share the processors
			}
		}()
	}
	time.Sleep(3 * time.Second)
	api := apiServer(t, server, "127.0.0.1")
	for i := range 30 {
		for _, client := range []*http.Client{api, apiServer(t, server, "127.0.0.1")} {
			reused := false
			trace := &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) { reused = c.Reused }}
			ctx := httptrace.WithClientTrace(t.Context(), trace)
			url := server.URL + "/mutate?timeout=5s"
			r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(review))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Content-Type", "application/json")
			resp, err := client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
				t.Fatal(resp.Status, err)
			}
			resp.Body.Close()
			if client == api && i > 0 && !reused {
				t.Error("the API server lost its connection")
			}
		}
		time.Sleep(300 * time.Millisecond)
	}
}
