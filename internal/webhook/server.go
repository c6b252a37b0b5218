// Package webhook is the HTTP server of the admission webhook: admission requests over TLS, and probes and metrics over
// plain HTTP. Package admission answers the requests.
package webhook

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/admission"
	"github.com/ccgrkc/ccgrkc/internal/connlimit"
	"github.com/ccgrkc/ccgrkc/internal/servingcert"
)

// drainTimeout limits how long admission requests can take after the shutdown delay. Together they stay below the 30 s
// that Kubernetes gives a pod to terminate.
const drainTimeout = 20 * time.Second

var (
	admissionLimits = connlimit.Limits{
		// An API server sends up to 600 requests at once by default (--max-requests-inflight and
		// --max-mutating-requests-inflight), each on its own connection, because it uses only HTTP/1.1 for webhooks
		// (k8s.io/apiserver/pkg/util/webhook).
		Connections: 768,
		HeaderBytes: 8 << 10,
		Bodies:      16 << 20,         // 600 pods of 27 KiB
		Header:      10 * time.Second, // the handshakes of 600 connections can wait for each other
		Request:     35 * time.Second, // an API server waits at most 30 s
		Idle:        2 * time.Minute,  // an API server keeps idle connections for 90 s
	}
	// maxUnauthenticated is the maximum number of connections of clients without a certificate, if it is required.
	maxUnauthenticated = 128

	healthLimits = connlimit.Limits{
		Connections: 256,
		HeaderBytes: 4 << 10,
		Header:      5 * time.Second,
		Request:     10 * time.Second,
		Idle:        10 * time.Second,
	}
)

// Server serves admission requests, probes and metrics. All fields but Clients are required.
type Server struct {
	Listen        string // address for admission requests, over TLS
	HealthListen  string // address for /livez, /readyz and /metrics, over plain HTTP
	Clients       servingcert.Clients
	Keeper        *servingcert.Keeper
	Metrics       *admission.Metrics
	Admission     http.Handler
	ShutdownDelay time.Duration // how long admission requests are accepted after Run's context is done
	Log           *slog.Logger

	stopping atomic.Bool
}

// Run serves until ctx is done, and then shuts down gracefully. It returns nil after a complete shutdown.
func (s *Server) Run(ctx context.Context) error {
	config := &tls.Config{
		MinVersion:     tls.VersionTLS13,
		GetCertificate: s.Keeper.GetCertificate,
		NextProtos:     []string{"http/1.1"},
	}
	limits := admissionLimits
	if s.Clients.CAFile != "" {
		var err error
		if config, err = s.Clients.Demand(config); err != nil {
			return fmt.Errorf("--client-ca-file: %w", err)
		}
		limits.Unauthenticated = maxUnauthenticated
	}
	requests, err := net.Listen("tcp", s.Listen)
	if err != nil {
		return fmt.Errorf("--listen %q: %w", s.Listen, err)
	}
	defer requests.Close()
	health, err := net.Listen("tcp", s.HealthListen)
	if err != nil {
		return fmt.Errorf("--health-listen %q: %w", s.HealthListen, err)
	}
	defer health.Close()

	// The certificate is renewed until the last request is answered.
	running, stop := context.WithCancel(context.Background())
	defer stop()
	go s.Keeper.Run(running)

	server := connlimit.New(connlimit.Config{
		Handler: s.closeWhenStopping(s.Admission),
		TLS:     config,
		Limits:  limits,
		Log:     s.Log.With("listener", "admission"),
	})
	healthServer := connlimit.New(connlimit.Config{
		Handler: s.health(),
		Limits:  healthLimits,
		Log:     s.Log.With("listener", "health"),
	})
	s.Log.Info("serving", "admission", requests.Addr().String(), "health", health.Addr().String())
	go keep(running, server, requests)
	go keep(running, healthServer, health)

	<-ctx.Done()
	s.Log.Info("shutting down", "delay", s.ShutdownDelay)
	s.stopping.Store(true)
	time.Sleep(s.ShutdownDelay)
	draining, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	if err := server.Shutdown(draining); err != nil {
		return fmt.Errorf("admission requests still in progress after %s: %w", drainTimeout, err)
	}
	s.Log.Info("stopped")
	return nil
}

// keep serves on l until ctx is done, and listens on the same address again if l fails.
func keep(ctx context.Context, server *connlimit.Server, l net.Listener) {
	server.Keep(ctx, l, func() (net.Listener, error) { return net.Listen("tcp", l.Addr().String()) })
}

// closeWhenStopping makes clients close their connections during shutdown. If the server closed an idle connection, a
// request sent at that moment would fail. Instead each connection ends with a response, and the next request goes to
// another replica.
func (s *Server) closeWhenStopping(next http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if s.stopping.Load() {
			rw.Header().Set("Connection", "close")
		}
		next.ServeHTTP(rw, r)
	})
}

// health answers GET /livez, /readyz and /metrics.
func (s *Server) health() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(rw http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(rw, "ok\n") })
	mux.HandleFunc("GET /readyz", func(rw http.ResponseWriter, _ *http.Request) {
		err := s.Keeper.Ready()
		if s.stopping.Load() {
			err = errors.New("shutting down")
		}
		if err != nil {
			http.Error(rw, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(rw, "ok\n")
	})
	mux.HandleFunc("GET /metrics", func(rw http.ResponseWriter, _ *http.Request) { s.Metrics.Write(rw) })
	return mux
}
