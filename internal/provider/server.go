package provider

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/connlimit"
	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/endpoint"
	"github.com/ccgrkc/ccgrkc/internal/mtls"
	"github.com/ccgrkc/ccgrkc/internal/version"
)

var (
	limits = connlimit.Limits{
		Connections:     512,
		Unauthenticated: 64,
		HeaderBytes:     4 << 10,
		Header:          5 * time.Second,
		Request:         10 * time.Second,
		Idle:            2 * time.Minute,
	}
	metricsLimits = connlimit.Limits{
		Connections: 256,
		HeaderBytes: 4 << 10,
		Header:      5 * time.Second,
		Request:     10 * time.Second,
		Idle:        2 * time.Minute,
	}
)

// generation is one listener with one generation of certificates. Each generation has its own listener, so that none
// has to distinguish clients by their certificates.
type generation struct {
	server   *connlimit.Server
	endpoint endpoint.Endpoint
	notAfter time.Time
	closeAt  time.Time   // once it has been replaced
	failed   atomic.Bool // it can't accept connections any more
}

// listen serves handler on a free loopback port with the certificates of m.
func listen(ref credential.Reference, m *mtls.Material, handler http.Handler, metrics *metrics, log *slog.Logger) (
	*generation, error) {
	config, err := mtls.ServerConfig(ref, m.CA, m.ServerCert, m.ServerKey)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	log = log.With("listener", l.Addr().String())
	g := &generation{
		server: connlimit.New(connlimit.Config{
			Handler:  handler,
			TLS:      config,
			Limits:   limits,
			Rejected: func() { metrics.rejectedConnection(reasonLimit) },
			Log:      log,
		}),
		endpoint: endpoint.Endpoint{
			Port:       uint16(l.Addr().(*net.TCPAddr).Port),
			CA:         m.CA,
			ClientCert: m.ClientCert,
			ClientKey:  m.ClientKey,
		},
		notAfter: m.NotAfter,
	}
	go func() {
		// Its port could be in use afterwards, so a new generation replaces it.
		if err := g.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Error("the provider stopped listening; renewing the certificates with another port", "error", err)
			g.failed.Store(true)
		}
	}()
	return g, nil
}

// close waits for running calls, for at most 2 seconds.
func (g *generation) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if g.server.Shutdown(ctx) != nil {
		g.server.Close()
	}
}

// refreshQuery is the query of a health check that reads the Secret first, unless the cached credentials are fresh.
const refreshQuery = "refresh"

// handler serves credentials and health.
func handler(s *secretCache, m *metrics, instance string, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/credentials", func(w http.ResponseWriter, r *http.Request) {
		cred, stale, err := s.get(r.Context())
		if err != nil {
			var problem *credential.Problem
			if !errors.As(err, &problem) {
				return // the client has disconnected
			}
			m.requests(string(problem.Code), 1)
			log.Debug("request failed", "code", problem.Code)
			writeProblem(w, problem)
			return
		}
		body, err := credential.Encode(cred)
		cred.Password.Wipe()
		defer clear(body)
		if err != nil {
			log.Error("the credentials could not be encoded", "error", err)
			writeProblem(w, &credential.Problem{Code: credential.ProblemUnavailable, Detail: err.Error()})
			return
		}
		m.requests(resultOK, 1)
		if stale {
			m.staleResponse()
		}
		log.Debug("request succeeded", "stale", stale)
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		_, _ = w.Write(body)
	})
	mux.HandleFunc("GET /v1/health", func(w http.ResponseWriter, r *http.Request) {
		// Without this query, health checks send no requests to the API server.
		if r.URL.RawQuery == refreshQuery {
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
			h.CacheAgeSeconds = &seconds
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(h)
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		if r.ContentLength != 0 {
			w.Header().Set("Connection", "close")
			http.Error(w, "a request must not have a body", http.StatusRequestEntityTooLarge)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// status maps each problem code to the closest HTTP status.
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
