package provider

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/endpoint"
	"github.com/ccgrkc/ccgrkc/internal/mtls"
	"github.com/ccgrkc/ccgrkc/internal/version"
)

const (
	maxHeaderBytes = 4 << 10
	readTimeout    = 5 * time.Second // the TLS handshake and one request's header, each
	writeTimeout   = 10 * time.Second
	idleTimeout    = 2 * time.Minute
	// maxStrangers is how many connections may be open that have not yet shown a good certificate and sent a request.
	maxStrangers = 64
)

// generation is one listener with one generation of certificates. The next generation has a listener of its own, so that
// neither needs to know which certificates a caller has.
type generation struct {
	http     *http.Server
	endpoint endpoint.Endpoint
	notAfter time.Time
	closeAt  time.Time // once it has been replaced
}

// listen serves handler on a free loopback port with the certificates of m.
func listen(ref credential.Reference, m *mtls.Material, handler http.Handler, gate *gate, log *slog.Logger) (*generation, error) {
	config, err := mtls.ServerConfig(ref, m.CA, m.ServerCert, m.ServerKey)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	g := &generation{
		http: &http.Server{
			Handler:   handler,
			TLSConfig: config,
			// An empty map keeps HTTP/2 out: less code that bytes from outside reach.
			TLSNextProto:      map[string]func(*http.Server, *tls.Conn, http.Handler){},
			MaxHeaderBytes:    maxHeaderBytes,
			ReadHeaderTimeout: readTimeout, ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout,
			ErrorLog:  slog.NewLogLogger(log.With("listener", l.Addr().String()).Handler(), slog.LevelDebug),
			ConnState: gate.connState,
		},
		endpoint: endpoint.Endpoint{Port: uint16(l.Addr().(*net.TCPAddr).Port), CA: m.CA, ClientCert: m.ClientCert, ClientKey: m.ClientKey},
		notAfter: m.NotAfter,
	}
	go func() {
		if err := g.http.ServeTLS(l, "", ""); !errors.Is(err, http.ErrServerClosed) {
			log.Error("the provider stopped listening", "port", g.endpoint.Port, "error", err)
		}
	}()
	return g, nil
}

// close lets the calls in flight end, for a moment.
func (g *generation) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if g.http.Shutdown(ctx) != nil {
		_ = g.http.Close()
	}
}

// gate bounds what processes without a certificate can hold open. When one connection too many comes, the oldest goes, so
// that somebody who opens many cannot keep the plugin out.
type gate struct {
	mu        sync.Mutex
	strangers []net.Conn // oldest first
	metrics   *metrics
}

func (g *gate) connState(c net.Conn, state http.ConnState) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if state == http.StateNew {
		g.strangers = append(g.strangers, c)
		if len(g.strangers) > maxStrangers {
			oldest := g.strangers[0]
			g.strangers = g.strangers[1:]
			g.metrics.refused("crowded-out")
			// Not Close of the tls.Conn, which waits to say goodbye.
			go closeNow(oldest)
		}
		return
	}
	for i, s := range g.strangers {
		if s == c {
			g.strangers = append(g.strangers[:i], g.strangers[i+1:]...)
			return
		}
	}
}

func closeNow(c net.Conn) {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	_ = c.Close()
}

// askNow is the query of a health check that looks at the Secret first, if the copy is no longer fresh.
const askNow = "ask-now"

// handler answers the two requests that there are.
func handler(s *source, m *metrics, instance string, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/credentials", func(w http.ResponseWriter, r *http.Request) {
		cred, stale, err := s.get(r.Context())
		if err != nil {
			var problem *credential.Problem
			if !errors.As(err, &problem) {
				return // the caller has gone
			}
			m.called(string(problem.Code), 1)
			log.Debug("call refused", "code", problem.Code)
			writeProblem(w, problem)
			return
		}
		body, err := credential.Encode(cred)
		cred.Password.Wipe()
		defer clear(body)
		if err != nil {
			log.Error("call not answered", "error", err)
			writeProblem(w, &credential.Problem{Code: credential.ProblemUnavailable, Detail: err.Error()})
			return
		}
		m.called("ok", 1)
		if stale {
			m.stale()
		}
		log.Debug("call answered", "stale", stale)
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		_, _ = w.Write(body)
	})
	mux.HandleFunc("GET /v1/health", func(w http.ResponseWriter, r *http.Request) {
		// Without this a health check asks the API server nothing, however often it comes.
		if r.URL.RawQuery == askNow {
			if cred, _, err := s.get(r.Context()); err == nil {
				cred.Password.Wipe()
			}
		}
		age, have, problem := s.state()
		h := Health{Version: version.String(), Instance: instance}
		if problem != nil {
			h.Problem, h.Detail = problem.Code, problem.Detail
		}
		if have {
			seconds := age.Seconds()
			h.CopyAgeSeconds = &seconds
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(h)
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		if r.ContentLength != 0 {
			w.Header().Set("Connection", "close")
			http.Error(w, "a request has no body here", http.StatusRequestEntityTooLarge)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// status gives each problem the HTTP status that says most to a reader who knows no codes.
var status = map[credential.ProblemCode]int{
	credential.ProblemSecretNotFound: http.StatusNotFound,
	credential.ProblemSecretInvalid:  http.StatusUnprocessableEntity,
	credential.ProblemForbidden:      http.StatusForbidden,
	credential.ProblemUnavailable:    http.StatusServiceUnavailable,
}

func writeProblem(w http.ResponseWriter, p *credential.Problem) {
	body, err := json.Marshal(p)
	if err != nil {
		http.Error(w, string(p.Code), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", credential.ProblemMediaType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status[p.Code])
	_, _ = w.Write(body)
}
