package main

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
	"github.com/ccgrkc/ccgrkc/internal/servingcert"
)

// drainTimeout is how long reviews that are under way may take at the end. With --shutdown-delay it is less than the 30 s
// that a pod has.
const drainTimeout = 20 * time.Second

// webhook is the two servers and what they show.
type webhook struct {
	*flags
	source  servingcert.Source
	keeper  *servingcert.Keeper
	metrics *admission.Metrics
	reviews http.Handler
	log     *slog.Logger

	ending atomic.Bool
}

// run serves until ctx ends, and then ends in order.
func (w *webhook) run(ctx context.Context) error {
	config := &tls.Config{
		MinVersion:     tls.VersionTLS13,
		GetCertificate: w.keeper.GetCertificate,
		// API servers speak nothing else to webhooks (k8s.io/apiserver/pkg/util/webhook), and one request a connection at a time
		// makes maxConnections a bound of requests too.
		NextProtos: []string{"http/1.1"},
	}
	if w.clients.CAFile != "" {
		var err error
		if config, err = w.clients.Demand(config); err != nil {
			return fmt.Errorf("--client-ca-file: %w", err)
		}
	}
	reviews, err := net.Listen("tcp", w.listen)
	if err != nil {
		return fmt.Errorf("--listen %q: %w", w.listen, err)
	}
	defer reviews.Close()
	health, err := net.Listen("tcp", w.healthListen)
	if err != nil {
		return fmt.Errorf("--health-listen %q: %w", w.healthListen, err)
	}
	defer health.Close()

	// The certificate is looked after until the last review is answered.
	keeping, stopKeeping := context.WithCancel(context.Background())
	defer stopKeeping()
	go w.keeper.Run(keeping)

	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	// What strangers send is told at debug level: anybody in the cluster's network may send it.
	errorLog := slog.NewLogLogger(w.log.Handler(), slog.LevelDebug)
	server := &http.Server{
		Handler: w.tellsTheEnd(w.reviews), Protocols: protocols, TLSConfig: config, ErrorLog: errorLog, MaxHeaderBytes: 16 << 10,
		// An API server waits 30 s at most, and keeps connections between reviews for 90 s.
		ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 35 * time.Second, IdleTimeout: 2 * time.Minute,
		ConnState: newCrowd().connState,
	}
	healthServer := &http.Server{
		Handler: w.health(), ErrorLog: errorLog, MaxHeaderBytes: 4 << 10,
		ReadTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: 10 * time.Second,
	}
	failed := make(chan error, 2)
	go func() { failed <- server.ServeTLS(reviews, "", "") }()
	go func() { failed <- healthServer.Serve(health) }()
	defer healthServer.Close()
	defer server.Close()
	w.log.Info("serving", "reviews", reviews.Addr().String(), "health", health.Addr().String())

	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	w.log.Info("ending", "after", w.shutdownDelay)
	w.ending.Store(true)
	time.Sleep(w.shutdownDelay)
	draining, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	if err := server.Shutdown(draining); err != nil {
		return fmt.Errorf("reviews were still under way after %s: %w", drainTimeout, err)
	}
	w.log.Info("ended")
	return nil
}

// tellsTheEnd has clients close their connections once this process is ending. An idle connection that the server closes may be
// taken for a review at that very moment, which then fails: so each goes with an answer, and the next review to another replica.
func (w *webhook) tellsTheEnd(next http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if w.ending.Load() {
			rw.Header().Set("Connection", "close")
		}
		next.ServeHTTP(rw, r)
	})
}

// health answers GET /livez, /readyz and /metrics.
func (w *webhook) health() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(rw http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(rw, "ok\n") })
	mux.HandleFunc("GET /readyz", func(rw http.ResponseWriter, _ *http.Request) {
		err := w.keeper.Ready()
		if w.ending.Load() {
			err = errors.New("it is ending")
		}
		if err != nil {
			http.Error(rw, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(rw, "ok\n")
	})
	mux.HandleFunc("GET /metrics", func(rw http.ResponseWriter, _ *http.Request) { w.metrics.Write(rw) })
	return mux
}
