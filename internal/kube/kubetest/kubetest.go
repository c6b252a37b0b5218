// Package kubetest is a fake API server for unit tests. It serves what a test's handler returns, fails on demand and
// records requests. It implements nothing of the Kubernetes API: the suites in lab/suites run the same code against a
// real API server.
package kubetest

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

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
	readyz   http.HandlerFunc
	asked    int // requests for /readyz
}

// NewServer starts a server on the loopback interface.
func NewServer(t testing.TB, handler http.HandlerFunc) *Server { return start(t, handler, nil) }

// NewMemoryServer starts a server with connections in memory, for tests in a testing/synctest bubble.
func NewMemoryServer(t testing.TB, handler http.HandlerFunc) *Server {
	return start(t, handler, Listen())
}

func start(t testing.TB, handler http.HandlerFunc, listener *Listener) *Server {
	t.Helper()
	s := &Server{listener: listener, readyz: func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") }}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w = responseTo{w, r}
		if r.URL.Path == "/readyz" {
			s.mu.Lock()
			s.asked++
			readyz := s.readyz
			s.mu.Unlock()
			readyz(w, r)
			return
		}
		if r.URL.Path == "/"+knownPath {
			http.NotFound(w, r)
			return
		}
		if code := s.record(r); code != 0 {
			Status(w, code, "", "", "failed by the test")
			return
		}
		handler(w, r)
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

// record returns the status that Fail demands, or 0 if the handler answers.
func (s *Server) record(r *http.Request) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, r.Method+" "+r.URL.RequestURI())
	if !strings.HasPrefix(r.Method+" "+r.URL.Path, s.prefix) {
		return 0
	}
	return s.code
}

// Fail answers requests that start with prefix, such as "GET /api", with this status. Status 0 ends it.
func (s *Server) Fail(code int, prefix string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.code, s.prefix = code, prefix
}

// Readyz replaces the response to /readyz, which is 200 by default.
func (s *Server) Readyz(handler http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.readyz = handler
}

// ReadyzRequests returns the number of requests for /readyz. The handler does not get them, and Requests omits them.
func (s *Server) ReadyzRequests() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
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

// knownPath is a path that is always refused, and not recorded.
const knownPath = "kubetest"

// Dial connects to a memory server, for kube.Client.DialWith.
func (s *Server) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return s.listener.Dial(ctx, network, address)
}

// Client returns a client of the server with this user agent. Unless the server fails, the client's idle connection is
// known to lead to a ready API server. On an unknown connection, a client sends the first refused request twice, which
// tests need not count.
func (s *Server) Client(t testing.TB, agent string) *kube.Client {
	t.Helper()
	client := s.NewClient(t, agent)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, _, _ = client.Get(ctx, client.URL(nil, knownPath), 1<<10)
	return client
}

// NewClient returns a client that has not connected.
func (s *Server) NewClient(t testing.TB, agent string) *kube.Client {
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

// responseTo is a ResponseWriter that knows its request.
type responseTo struct {
	http.ResponseWriter
	request *http.Request
}

func (w responseTo) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Status writes an error response as the API server does. If kind and name are empty, it names the requested object.
func Status(w http.ResponseWriter, code int, kind, name, message string) {
	group := ""
	if r, ok := w.(responseTo); ok {
		of := Object(r.request.URL.Path)
		if group = of.Group; kind == "" && name == "" {
			kind, name = of.Kind, of.Name
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","code":%d,"message":%q,`+
		`"details":{"kind":%q,"group":%q,"name":%q}}`, code, message, kind, group, name)
}

// Details are what a Status says about its object.
type Details struct{ Group, Kind, Name string }

var objectPath = regexp.MustCompile(`^/(?:api|apis/([^/]+))/[^/]+/(?:namespaces/[^/]+/)?([^/]+)(?:/([^/]+))?`)

// Object returns the details of the object with this path. Those of a list have no name.
func Object(path string) Details {
	m := objectPath.FindStringSubmatch(path)
	if m == nil {
		return Details{}
	}
	return Details{Group: m[1], Kind: m[2], Name: m[3]}
}
