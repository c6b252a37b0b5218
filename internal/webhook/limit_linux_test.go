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
	"strings"
	"testing"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/admission"
	"github.com/ccgrkc/ccgrkc/internal/credential"
)

const review = `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u-1","operation":"CREATE","namespace":"shop",
"kind":{"group":"","version":"v1","kind":"Pod"},"resource":{"group":"","version":"v1","resource":"pods"},
"object":{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{"containers":[{"name":"c"}],
"securityContext":{"windowsOptions":{"gmsaCredentialSpecName":"web"}}}}}}`

// from dials from an address of this machine, so that a test can be two machines.
func from(address string) *net.Dialer {
	return &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}, Timeout: 10 * time.Second}
}

// crowded serves with a crowd as the program does.
func crowded(t *testing.T, handler http.Handler) (*httptest.Server, *crowd) {
	t.Helper()
	c := newCrowd()
	server := httptest.NewUnstartedServer(handler)
	server.Config.ConnState = c.connState
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	return server, c
}

// apiServer is a client with an address of its own.
func apiServer(t *testing.T, server *httptest.Server, address string) *http.Client {
	transport := server.Client().Transport.(*http.Transport).Clone()
	transport.DialContext = from(address).DialContext
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 10 * time.Second}
}

// Attack: strangers open connections, with a handshake or without, and keep them. An API server finds room all the while, on the
// connection that it has and on a new one, also if it has the stranger's address (a proxy before both).
func TestStrangersMakeRoomForWhoAsksNow(t *testing.T) {
	for _, address := range []string{"127.0.0.1", "127.0.0.2"} {
		t.Run(address, func(t *testing.T) {
			t.Parallel()
			server, c := crowded(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }))
			ask := func(client *http.Client) {
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
			ask(api)
			for i := range maxConnections + 100 {
				conn, err := from(address).Dial("tcp", server.Listener.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { conn.Close() })
				if i%2 == 0 {
					// One that was closed meanwhile is what this is about.
					_ = tls.Client(conn, &tls.Config{InsecureSkipVerify: true}).Handshake()
				}
				if i%50 == 0 {
					ask(api)
				}
			}
			ask(api)
			ask(apiServer(t, server, "127.0.0.1"))
			c.mu.Lock()
			defer c.mu.Unlock()
			if n := len(c.all); n > maxConnections {
				t.Errorf("%d connections are held, %d are the most", n, maxConnections)
			}
		})
	}
}

// fixed is a cluster that answers at once.
type fixed struct{}

func (fixed) CredentialSpec(context.Context, string) ([]byte, error) { return []byte(`{"a":1}`), nil }
func (fixed) MayUse(context.Context, string, string, string) (bool, string, error) {
	return true, "", nil
}
func (fixed) Account(context.Context, credential.Reference) (admission.Account, error) {
	return admission.AccountThere, nil
}

// Attack: a stranger keeps more connections than there is room for busy with reviews that never end, and opens each again
// when it is closed. The API server is answered throughout, on the connection that it has and on new ones.
func TestAStrangersBusyConnectionsAreHisOwnLoss(t *testing.T) {
	// Not beside the other tests: the stranger's handshakes would take from them what they need.
	server, _ := crowded(t, admission.NewHandler(admission.Config{
		Cluster: fixed{}, Metrics: admission.NewMetrics(func() time.Time { return time.Time{} }), Log: slog.New(slog.DiscardHandler),
	}))
	for range maxConnections + 60 {
		go func() {
			for t.Context().Err() == nil {
				raw, err := from("127.0.0.2").Dial("tcp", server.Listener.Addr().String())
				if err != nil {
					return
				}
				conn := tls.Client(raw, &tls.Config{InsecureSkipVerify: true})
				stop := context.AfterFunc(t.Context(), func() { raw.Close() })
				_, _ = io.WriteString(conn, "POST /mutate?timeout=30s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 300\r\n\r\n{")
				_, _ = conn.Read(make([]byte, 100))
				stop()
				conn.Close()
				time.Sleep(200 * time.Millisecond) // the same processors make both ends of the handshakes
			}
		}()
	}
	time.Sleep(3 * time.Second)
	api := apiServer(t, server, "127.0.0.1")
	for i := range 30 {
		for _, client := range []*http.Client{api, apiServer(t, server, "127.0.0.1")} {
			kept := false
			ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) { kept = c.Reused }})
			r, err := http.NewRequestWithContext(ctx, http.MethodPost, server.URL+"/mutate?timeout=5s", strings.NewReader(review))
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
			if client == api && i > 0 && !kept {
				t.Error("the connection that it had is gone")
			}
		}
		time.Sleep(300 * time.Millisecond)
	}
}
