// Package provider is the Account Provider: it reads one Secret from the API server as its ServiceAccount, and provides
// it over mutual TLS on a loopback port. Clients need the files that it publishes on the host. The files and the wire
// form are its only interface to the plugin.
//
//	kubernetes.go   reads the Secret from the API server
//	secretcache.go  caches the credentials
//	server.go       listens and responds
//	certificates.go issues or reads certificates
//	provider.go     runs all of it
//	check.go        the client side: health check and clean-up
//	selfcheck.go    records health checks for the container's probes
package provider

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/connlimit"
	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/endpoint"
	"github.com/ccgrkc/ccgrkc/internal/kube"
	"github.com/ccgrkc/ccgrkc/internal/logonce"
	"github.com/ccgrkc/ccgrkc/internal/selfcheck/record"
	"github.com/ccgrkc/ccgrkc/internal/version"
)

// Variables, because the tests shorten them.
var (
	// watchInterval is how often the provider checks its endpoint files and its certificates for changes.
	watchInterval = 2 * time.Second
	// retryInterval is the pause after a failed renewal.
	retryInterval = 5 * time.Second
)

// overlap is how long a generation still serves after its replacement, unless its certificates expire before.
const overlap = time.Minute

// Config is the configuration of a provider.
type Config struct {
	Account        credential.Reference
	API            kube.Server
	Publisher      endpoint.Publisher
	Certificates   Certificates
	MaxStale       time.Duration
	MetricsAddress string // host:port; empty means off
	Instance       string // part of the health, so that a pod recognizes its own provider; can be empty
	// SelfCheck gets the results of the provider's checks of itself; nil outside of a container.
	SelfCheck *record.Recorder
	Log       *slog.Logger
}

// Run serves until ctx ends and then removes its endpoint files. It returns an error only if it could not start.
func Run(ctx context.Context, c Config) error {
	log := c.Log.With("account", c.Account.String())
	reader, err := newSecretReader(c.API, c.Account)
	if err != nil {
		return err
	}
	if c.MetricsAddress != "" {
		if _, err := net.ResolveTCPAddr("tcp", c.MetricsAddress); err != nil {
			return fmt.Errorf("metrics address %q: %w; the form is host:port", c.MetricsAddress, err)
		}
	}
	m := newMetrics()
	cache := &secretCache{ctx: ctx, read: reader.read, maxStale: c.MaxStale, log: log, metrics: m}
	// The first fetch runs while certificates are issued. It also fills the cache before a possible outage.
	go func() {
		if cred, _, err := cache.get(ctx); err == nil {
			cred.Password.Wipe()
		}
	}()

	p := &provider{
		config:  c,
		log:     log,
		handler: handler(cache, m, c.Instance, log),
		metrics: m,
	}
	defer p.stop()
	if err := p.renew(); err != nil {
		return err
	}
	m.addGauges(cache, func() time.Time { return time.Unix(p.expiry.Load(), 0) })
	if c.MetricsAddress != "" {
		go serveMetrics(ctx, c.MetricsAddress, m, log)
	}
	log.Info("serving", "version", version.String(), "port", p.current.endpoint.Port, "apiServer", c.API.URL,
		"certificatesExpire", p.current.notAfter)
	if c.SelfCheck != nil {
		go checkSelf(ctx, c, c.SelfCheck)
	}
	p.serve(ctx)
	return nil
}

// provider holds the generations of one account: the active one, and older ones whose certificates are still valid.
type provider struct {
	config  Config
	log     *slog.Logger
	handler http.Handler
	metrics *metrics

	current     *generation
	publication *endpoint.Publication
	older       []*generation
	expiry      atomic.Int64 // of current, Unix seconds

	retryAt      time.Time      // of a failed renewal
	renewals     logonce.Errors // of renewOrRetry
	publications logonce.Errors // of publishAgain
}

func (p *provider) serve(ctx context.Context) {
	watch := time.NewTicker(watchInterval)
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
			if p.current.failed.Load() || p.config.Certificates.due(p.current.notAfter) {
				p.renewOrRetry(renewal)
			}
			if !p.found(ctx) {
				p.publishAgain()
			}
			p.closeOld()
		}
	}
}

// found reports whether the endpoint files lead to a running provider: this one or, during a rolling update, another
// one of the account. The files of a killed provider can be complete, so the other one must respond.
func (p *provider) found(ctx context.Context) bool {
	if p.publication.InForce() {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, watchInterval)
	defer cancel()
	_, err := Check(ctx, p.config.Publisher.Root, p.config.Account, false)
	return err == nil || ctx.Err() == context.Canceled
}

// publishAgain is called at every watchInterval until the endpoint files lead to a provider.
func (p *provider) publishAgain() {
	err := p.publish(p.current)
	switch isNew := p.publications.New(err); {
	case err == nil:
		p.log.Info("the endpoint files led to no running provider; they are published again")
	case isNew:
		p.log.Error("the plugin cannot find this provider; retrying", "error", err, "retryInterval", watchInterval)
	}
}

// renewOrRetry sets timer to the next renewal. After a failure, it does nothing before retryInterval has passed.
func (p *provider) renewOrRetry(timer *time.Timer) {
	if time.Now().Before(p.retryAt) {
		return
	}
	err := p.renew()
	if isNew := p.renewals.New(err); err != nil {
		if isNew {
			p.log.Error("the certificates could not be renewed; the provider uses the old ones until they expire",
				"error", err, "expire", p.current.notAfter, "retryInterval", retryInterval)
		}
		p.retryAt = time.Now().Add(retryInterval)
		timer.Reset(retryInterval)
		return
	}
	p.log.Info("certificates renewed", "port", p.current.endpoint.Port, "expire", p.current.notAfter)
	timer.Reset(p.config.Certificates.renewIn(p.current.notAfter))
}

// renew starts a new generation and publishes it. The previous one still serves for a while, for plugins that have just
// read its files.
func (p *provider) renew() error {
	material, err := p.config.Certificates.next(p.config.Account)
	if err != nil {
		return err
	}
	g, err := listen(p.config.Account, material, p.handler, p.metrics, p.log)
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

// closeOld closes the generations whose overlap has passed.
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

// stop removes the endpoint files first, so that no plugin finds a provider that is about to stop.
func (p *provider) stop() {
	if p.publication != nil {
		if err := p.publication.Withdraw(); err != nil {
			p.log.Error("the endpoint files could not be removed; the next provider or cleanup removes them", "error",
				err)
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

// serveMetrics serves metrics until ctx ends. During a rolling update the previous pod still uses the port.
func serveMetrics(ctx context.Context, address string, m *metrics, log *slog.Logger) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) { m.write(w) })
	server := connlimit.New(connlimit.Config{
		Handler:  mux,
		Limits:   metricsLimits,
		Rejected: func() { m.rejectedConnection(reasonLimit) },
		Log:      log.With("listener", "metrics"),
	})
	server.Keep(ctx, nil, func() (net.Listener, error) {
		l, err := net.Listen("tcp", address)
		if err != nil {
			return nil, fmt.Errorf("%w; releases on the same node need different ports", err)
		}
		return l, nil
	})
}
