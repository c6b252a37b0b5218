// Package provider is the Account Provider: it reads one Secret from the API server as its ServiceAccount, and serves it
// over mutual TLS on a loopback port to whoever may read the files that it publishes on the host. It knows nothing of
// the plugin but those files and the wire form.
//
//	kubernetes.go   asks the API server
//	source.go       decides whether a copy may serve
//	server.go       listens and answers
//	certificates.go where certificates come from
//	provider.go     the life of it all
//	check.go        the view from outside: health check and clean-up
package provider

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/endpoint"
	"github.com/ccgrkc/ccgrkc/internal/kube"
	"github.com/ccgrkc/ccgrkc/internal/version"
)

const (
	// watchEvery is how often the provider looks whether it can still be found, and whether its certificates changed.
	watchEvery = 2 * time.Second
	// overlap is how long a generation serves after the next one is published, or until its certificates expire.
	overlap = time.Minute
	// retryEvery is how long it waits after a renewal that failed.
	retryEvery = 5 * time.Second
)

// Config is a provider's whole configuration.
type Config struct {
	Account        credential.Reference
	API            kube.Server
	Publisher      endpoint.Publisher
	Certificates   Certificates
	MaxStale       time.Duration
	MetricsAddress string // host:port; empty: off
	Instance       string // told in the health, so that a pod knows its own answer; may be empty
	Log            *slog.Logger
}

// Run serves until ctx ends and then withdraws what it published. It returns an error only if it could not begin.
func Run(ctx context.Context, c Config) error {
	log := c.Log.With("account", c.Account.String())
	reader, err := newSecretReader(c.API, c.Account)
	if err != nil {
		return err
	}
	if c.MetricsAddress != "" {
		if _, err := net.ResolveTCPAddr("tcp", c.MetricsAddress); err != nil {
			return fmt.Errorf("metrics address %q: %w; want host:port", c.MetricsAddress, err)
		}
	}
	m := newMetrics()
	src := &source{ctx: ctx, read: reader.read, maxStale: c.MaxStale, log: log, metrics: m}
	// The first fetch runs while certificates are made. It also puts a copy in place before an outage may come.
	go func() {
		if cred, _, err := src.get(ctx); err == nil {
			cred.Password.Wipe()
		}
	}()

	p := &provider{config: c, log: log, handler: handler(src, m, c.Instance, log), gate: &gate{metrics: m}}
	defer p.end()
	if err := p.renew(); err != nil {
		return err
	}
	m.watch(src, func() time.Time { return time.Unix(p.expiry.Load(), 0) })
	if c.MetricsAddress != "" {
		go serveMetrics(ctx, c.MetricsAddress, m, log)
	}
	log.Info("serving", "version", version.String(), "port", p.current.endpoint.Port, "apiServer", c.API.URL, "certificatesExpire", p.current.notAfter)
	p.serve(ctx)
	return nil
}

// provider is the generations of one account: the one in force, and older ones whose certificates still count.
type provider struct {
	config  Config
	log     *slog.Logger
	handler http.Handler
	gate    *gate

	current     *generation
	publication *endpoint.Publication
	older       []*generation
	expiry      atomic.Int64 // of current, Unix seconds
	complaint   string       // why the last renewal failed
}

func (p *provider) serve(ctx context.Context) {
	watch := time.NewTicker(watchEvery)
	defer watch.Stop()
	renewal := time.NewTimer(p.config.Certificates.renewIn(p.current.notAfter))
	defer renewal.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-renewal.C:
			p.renewOrRetry(renewal)
		case <-watch.C:
			if p.config.Certificates.due(p.current.notAfter) {
				p.renewOrRetry(renewal)
			}
			if !p.found(ctx) {
				p.log.Info("the endpoint on the host leads to no provider; publishing this one again")
				if err := p.publish(p.current); err != nil {
					p.log.Error("the plugin cannot find this provider", "error", err)
				}
			}
			p.closeOld()
		}
	}
}

// found tells whether readers find a provider: this one or, in a rolling update, another one of the account that answers.
// One that was killed leaves an endpoint that looks whole.
func (p *provider) found(ctx context.Context) bool {
	if p.publication.InForce() {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, watchEvery)
	defer cancel()
	_, err := Check(ctx, p.config.Publisher.Root, p.config.Account, false)
	return err == nil || ctx.Err() == context.Canceled
}

func (p *provider) renewOrRetry(timer *time.Timer) {
	if err := p.renew(); err != nil {
		if err.Error() != p.complaint { // once, not with every try
			p.log.Error("certificates were not renewed; the old ones serve until they expire", "error", err, "expire", p.current.notAfter)
		}
		p.complaint = err.Error()
		timer.Reset(retryEvery)
		return
	}
	p.complaint = ""
	p.log.Info("certificates renewed", "port", p.current.endpoint.Port, "expire", p.current.notAfter)
	timer.Reset(p.config.Certificates.renewIn(p.current.notAfter))
}

// renew starts a new generation and makes it the one that is found. The one before goes on to serve for a while, so that
// no call that read the files a moment ago fails.
func (p *provider) renew() error {
	material, err := p.config.Certificates.next(p.config.Account)
	if err != nil {
		return err
	}
	g, err := listen(p.config.Account, material, p.handler, p.gate, p.log)
	if err != nil {
		return fmt.Errorf("account %s: %w", p.config.Account, err)
	}
	clear(material.ServerKey)
	if err := p.publish(g); err != nil {
		g.close()
		return err
	}
	if p.current != nil {
		p.current.closeAt = time.Now().Add(overlap)
		if p.current.notAfter.Before(p.current.closeAt) {
			p.current.closeAt = p.current.notAfter
		}
		p.older = append(p.older, p.current)
	}
	p.current = g
	p.expiry.Store(g.notAfter.Unix())
	return nil
}

func (p *provider) publish(g *generation) error {
	publication, err := p.config.Publisher.Publish(p.config.Account, g.endpoint)
	if err != nil {
		return err
	}
	p.publication = publication
	return nil
}

// closeOld ends the generations that have been replaced for long enough.
func (p *provider) closeOld() {
	left := p.older[:0]
	for _, g := range p.older {
		if time.Now().After(g.closeAt) {
			go g.close()
		} else {
			left = append(left, g)
		}
	}
	p.older = left
}

// end withdraws first, so that nobody finds a server that is about to stop.
func (p *provider) end() {
	if p.publication != nil {
		if err := p.publication.Withdraw(); err != nil {
			p.log.Error("the endpoint was not withdrawn; the next provider or cleanup removes it", "error", err)
		}
	}
	for _, g := range append(p.older, p.current) {
		if g != nil {
			g.close()
			g.endpoint.Wipe()
		}
	}
	p.log.Info("stopped")
}

// serveMetrics serves until ctx ends. In a rolling update the pod before still holds the port: it waits for it, and the
// account is served meanwhile.
func serveMetrics(ctx context.Context, address string, m *metrics, log *slog.Logger) {
	l, err := net.Listen("tcp", address)
	for try := 0; err != nil; l, err = net.Listen("tcp", address) {
		if try++; try%12 == 1 { // once a minute
			log.Warn("metrics are not served yet; releases that share a node need different ports", "address", address, "error", err, "retryEvery", retryEvery)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(retryEvery):
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) { m.write(w) })
	srv := &http.Server{Handler: mux, ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderBytes}
	context.AfterFunc(ctx, func() { _ = srv.Close() })
	log.Info("metrics", "address", l.Addr().String())
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		log.Error("metrics ended", "error", err)
	}
}
