// Package kubetest is a fake API server for unit tests. It serves what a test's handler returns, fails on demand and
// records requests. It implements nothing of the Kubernetes API: the suites in lab/suites run the same code against a
// real API server.
package kubetest

import (
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/ccgrkc/ccgrkc/internal/kube"
)

// Server is a TLS server that ends with the test.
type Server struct {
	*httptest.Server
	listener *Listener // nil for TCP

	mu       sync.Mutex
	requests []string // "METHOD path?query"
	code     int      // status of requests with the prefix; 0: the handler answers
	prefix   string
}

// NewServer starts a server on the loopback interface.
func NewServer(t testing.TB, handler http.HandlerFunc) *Server { return start(t, handler, nil) }

// NewMemoryServer starts a server with connections in memory, for tests in a testing/synctest bubble.
func NewMemoryServer(t testing.TB, handler http.HandlerFunc) *Server {
	return start(t, handler, Listen())
}

func start(t testing.TB, handler http.HandlerFunc, listener *Listener) *Server {
	t.Helper()
	s := &Server{listener: listener}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.record(r) {
			handler(w, r)
			return
		}
		Status(w, s.code, "", "", "failed by the test")
	}))
	if listener != nil {
		s.Listener.Close()
		s.Listener = listener
	}
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// record reports whether the handler answers.
func (s *Server) record(r *http.Request) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, r.Method+" "+r.URL.RequestURI())
	return s.code == 0 || !strings.HasPrefix(r.Method+" "+r.URL.Path, s.prefix)
}

// Fail answers requests that start with prefix, such as "GET /api", with this status. Status 0 ends it.
func (s *Server) Fail(code int, prefix string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.code, s.prefix = code, prefix
}

// Requests returns the requests that start with prefix since the last Reset, as "METHOD path?query".
func (s *Server) Requests(prefix string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []string
	for _, r := range s.requests {
		if strings.HasPrefix(r, prefix) {
			list = append(list, r)
		}
	}
	return list
}

// Reset forgets the recorded requests.
func (s *Server) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = nil
}

// Access writes a token and the server's CA into dir, as Kubernetes mounts them into a pod.
func (s *Server) Access(t testing.TB, dir string) kube.Server {
	t.Helper()
	access := kube.Server{URL: s.URL, TokenFile: filepath.Join(dir, "token"), CAFile: filepath.Join(dir, "ca.crt")}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	err := errors.Join(
		os.WriteFile(access.TokenFile, []byte("token-1\n"), 0o600),
		os.WriteFile(access.CAFile, ca, 0o600))
	if err != nil {
		t.Fatal(err)
	}
	return access
}

// Client returns a client of the server with this user agent.
func (s *Server) Client(t testing.TB, agent string) *kube.Client {
	t.Helper()
	client, err := kube.NewClient(s.Access(t, t.TempDir()), agent)
	if err != nil {
		t.Fatal(err)
	}
	if s.listener != nil {
		client.DialWith(s.listener.Dial)
	}
	return client
}

// Status writes an error response as the API server does.
func Status(w http.ResponseWriter, code int, kind, name, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","code":%d,"message":%q,`+
		`"details":{"kind":%q,"name":%q}}`, code, message, kind, name)
}
