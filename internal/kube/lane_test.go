package kube_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/kube"
	"github.com/ccgrkc/ccgrkc/internal/kube/kubetest"
)

// hijack responds with these bytes, and then holds the connection until the client closes it or the test ends.
func hijack(t *testing.T, response string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		t.Cleanup(func() { conn.Close() })
		_, _ = io.WriteString(conn, response)
		_, _ = io.Copy(io.Discard, conn)
	}
}

// Attack: the body of 101 Switching Protocols is the connection itself, whose reads ignore the context.
func TestInformationalResponsesAreErrors(t *testing.T) {
	const upgrade = "Connection: Upgrade\r\nUpgrade: x\r\n"
	const final = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
	for name, c := range map[string]struct {
		response string
		ok       bool
	}{
		"101 with an upgrade":    {"HTTP/1.1 101 Switching Protocols\r\n" + upgrade + "\r\n", false},
		"101 without an upgrade": {"HTTP/1.1 101 Switching Protocols\r\n\r\n", false},
		"102 before 200":         {"HTTP/1.1 102 Processing\r\n\r\n" + final, false},
		"199":                    {"HTTP/1.1 199 x\r\n\r\n", false},
		"099":                    {"HTTP/1.1 099 x\r\n\r\n", false},
		"100 before 200":         {"HTTP/1.1 100 Continue\r\n\r\n" + final, true},
		"103 before 200":         {"HTTP/1.1 103 Early Hints\r\n\r\n" + final, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client := kubetest.NewMemoryServer(t, hijack(t, c.response)).Client(t, "test")
				began := time.Now()
				if err := secretOf(t.Context(), client); (err == nil) != c.ok {
					t.Errorf("%v", err)
				}
				if took := time.Since(began); took > 0 {
					t.Errorf("took %s", took)
				}
			})
		})
	}
}

// A server that stops anywhere in its response does not hold a call for longer than the timeout.
func TestASilentServerIsLeftAfterTheTimeout(t *testing.T) {
	for name, response := range map[string]string{
		"no response":         "",
		"a part of the head":  "HTTP/1.1 200 OK\r\nContent-",
		"a part of the body":  "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{",
		"a part of a refusal": "HTTP/1.1 403 x\r\nContent-Length: 9\r\n\r\n{",
		"endless chunks":      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n \r\n",
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client := kubetest.NewMemoryServer(t, hijack(t, response)).Client(t, "test")
				client.SetTimeout(time.Second)
				began := time.Now()
				if err := secretOf(t.Context(), client); err == nil || kube.Code(err) != 0 {
					t.Errorf("%v", err)
				}
				if took := time.Since(began); took > 1100*time.Millisecond {
					t.Errorf("took %s", took)
				}
			})
		})
	}
}

// The same for /readyz: the whole call takes at most the two documented times.
func TestASilentReadyzIsLeftAfterTheConfirmTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := kubetest.NewMemoryServer(t, respond(403))
		api.Readyz(hijack(t, ""))
		began := time.Now()
		if err := secretOf(t.Context(), api.NewClient(t, "test")); err == nil || kube.Code(err) != 0 {
			t.Errorf("%v", err)
		}
		if took := time.Since(began); took > kube.ConfirmTimeout {
			t.Errorf("took %s", took)
		}
	})
}

// Attack: a server accepts connections and never completes a TLS handshake. The attempts of calls that have ended do
// not accumulate.
func TestAttemptsToConnectEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := kubetest.NewMemoryServer(t, respond(200))
		client := api.NewClient(t, "test")
		silent := kubetest.Listen()
		defer silent.Close()
		client.DialWith(silent.Dial)
		client.SetTimeout(time.Second)
		open := make(chan int, 100)
		go func() {
			for {
				conn, err := silent.Accept()
				if err != nil {
					return
				}
				open <- 1
				go func() {
					_, _ = io.Copy(io.Discard, conn)
					conn.Close()
					open <- -1
				}()
			}
		}()
		for range 10 {
			if err := secretOf(t.Context(), client); err == nil {
				t.Fatal("the server answered")
			}
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		left := 0
		for len(open) > 0 {
			left += <-open
		}
		if left > 0 {
			t.Errorf("%d connections are open", left)
		}
	})
}

// The limit of a response is exact, and the connection stays usable below it.
func TestAResponseIsLimited(t *testing.T) {
	const limit = 40 << 10
	for _, length := range []int{0, 1, 16 << 10, 16<<10 + 1, limit, limit + 1, 4 * limit} {
		client := start(t, func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, strings.Repeat("x", length))
		})
		got, _, err := client.Get(t.Context(), client.URL(nil, "x"), limit)
		if (err == nil) != (length <= limit) || err == nil && len(got) != length {
			t.Errorf("%d bytes: got %d, %v", length, len(got), err)
		}
	}
}

// Consecutive calls share one connection.
func TestConnectionsAreReused(t *testing.T) {
	conns := map[string]bool{}
	client := start(t, func(w http.ResponseWriter, r *http.Request) {
		conns[r.RemoteAddr] = true
		if r.TLS == nil || r.TLS.Version < tls.VersionTLS12 || r.ProtoMajor != 1 {
			t.Errorf("%s %v", r.Proto, r.TLS)
		}
		body := bufio.NewWriter(w)
		fmt.Fprint(body, strings.Repeat(" ", 100_000))
		_ = body.Flush()
	})
	for range 10 {
		if err := secretOf(t.Context(), client); err != nil {
			t.Fatal(err)
		}
	}
	if len(conns) != 1 {
		t.Errorf("%d connections", len(conns))
	}
}
