// Package servingcert manages the serving certificate of an admission webhook. It signs the certificate with a CA that
// the replicas share, or reads it from a mounted directory, and writes its CA into the two webhook configurations.
// Replicas work without a leader.
//
//	keeper.go    the loop of a replica, and the CA bundles
//	self.go      a CA of this webhook, in a Secret that the replicas share
//	dir.go       certificates from a directory
//	inject.go    the two webhook configurations
//	authority.go a CA and its key
//	pair.go      a serving certificate and its key
//	clocks.go    the time, by two clocks
//	clients.go   required client certificates
//
// There are two duties. In every pass, a replica publishes: the CA of the certificate that it serves is in every
// caBundle, whatever its source contains. The source rotates: a certificate of another CA is served only after every
// API server has had time to learn this CA from the configurations.
package servingcert

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/kube"
)

const (
	// DefaultPropagationDelay is the maximum time until every API server applies a changed configuration. With a
	// working watch this takes about a second. Without one, the API server needs some tens of seconds to restore the
	// watch.
	DefaultPropagationDelay = time.Minute
	// defaultOverlap is how long CAs that the source does not contain remain in the configurations after the last
	// change: replicas of another mode or revision can need them. A healthy kubelet updates a mounted Secret within two
	// minutes.
	defaultOverlap = 15 * time.Minute
	// maxPoll is the longest interval between passes. With a short propagation delay, the interval is a third of it.
	maxPoll = 10 * time.Second
	// callTimeout limits one request to the API server.
	callTimeout = 5 * time.Second
)

// Config configures a keeper.
type Config struct {
	API        *kube.Client
	DNSName    string // name that the API server verifies: <service>.<namespace>.svc
	Mutating   string // name of the MutatingWebhookConfiguration
	Validating string // name of the ValidatingWebhookConfiguration
	Source     Source
	// PropagationDelay is the time from the CA in the configurations to the use of a certificate. 0 means
	// DefaultPropagationDelay.
	PropagationDelay time.Duration
	Log              *slog.Logger
}

// Source provides certificates: Self or *Dir.
type Source interface {
	// check returns an error if the source cannot work.
	check(*Keeper) error
	// injects reports whether the webhook writes the two configurations. Otherwise it does not read them either.
	injects() bool
	// look reads and updates the source, and returns what the keeper must do. seen are the configurations, read before;
	// none if injects is false. The offer is valid even with an error.
	look(ctx context.Context, k *Keeper, seen []*configuration, now clocks) (offer, error)
}

// offer is what a source makes the keeper do.
type offer struct {
	pair  *pair               // the pair to serve; nil: the current one
	early bool                // pair is the first of this replica, and API servers may not know its CA yet
	cas   []*x509.Certificate // for every caBundle
}

// Keeper manages one replica's certificate.
type Keeper struct {
	config  Config
	poll    time.Duration
	overlap time.Duration
	local   func() time.Time // this machine's clock
	steady  func() time.Time // a clock that nobody sets
	ahead   atomic.Int64     // how far the API server's clock is ahead of steady, in nanoseconds

	// Used only by the goroutine of Run.
	versions string    // of the configurations in the last pass
	since    time.Time // when this keeper first saw these versions, by its monotonic clock
	patience time.Time // end of the wait of an early pair
	wrong    bool      // a difference between the clocks was logged
	logged   string    // causes of the last logged error

	mu     sync.Mutex
	served *pair
	doubt  error // why API servers may not trust the current certificate
}

// New returns a keeper. It makes no request before Run.
func New(c Config) (*Keeper, error) {
	if c.PropagationDelay == 0 {
		c.PropagationDelay = DefaultPropagationDelay
	}
	if c.PropagationDelay < 0 {
		return nil, fmt.Errorf("propagation delay %s; want more than 0", c.PropagationDelay)
	}
	if !strings.HasSuffix(c.DNSName, ".svc") || c.Mutating == "" || c.Validating == "" {
		return nil, fmt.Errorf("DNS name %q, configurations %q and %q; want <service>.<namespace>.svc and two names",
			c.DNSName, c.Mutating, c.Validating)
	}
	start := time.Now()
	k := &Keeper{
		config:  c,
		poll:    min(maxPoll, c.PropagationDelay/3),
		overlap: defaultOverlap,
		local:   time.Now,
		steady:  func() time.Time { return start.Add(time.Since(start)) }, // monotonic
		doubt:   errors.New("the API server has not responded yet"),
	}
	if err := c.Source.check(k); err != nil {
		return nil, err
	}
	return k, nil
}

// Run manages the certificate until ctx is done. It retries after errors.
func (k *Keeper) Run(ctx context.Context) {
	for {
		err := k.pass(ctx)
		// Another replica was faster. Usually nothing is left to do.
		for range 3 {
			if errors.Is(err, errOvertaken) {
				err = k.pass(ctx)
			}
		}
		if ctx.Err() != nil {
			return
		}
		k.report(err)
		wait := k.poll
		if k.current() == nil {
			wait = min(wait, time.Second)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// pass reads the current state once and updates it. It can stop at any point, even with the process: each step writes
// one object, and the next pass of any replica continues from there.
func (k *Keeper) pass(ctx context.Context) error {
	var seen []*configuration
	if k.config.Source.injects() {
		// The configurations are read before the source, because inject depends on this order.
		var err error
		if seen, err = k.readConfigurations(ctx); err != nil {
			k.judge(nil, k.now(), err)
			return err
		}
		k.notice(seen)
	}
	now := k.now() // by the API server's last response
	offer, err := k.config.Source.look(ctx, k, seen, now)
	if offer.pair != nil {
		if offer.early {
			// Limited: during a change from one source to the other, both overwrite the configurations repeatedly.
			k.patience = time.Now().Add(3 * k.config.PropagationDelay)
		}
		k.serve(offer.pair)
	}
	err = errors.Join(err, k.publish(ctx, seen, offer.cas, err == nil, now))
	k.notice(seen)
	k.judge(seen, now, err)
	return err
}

// publish writes the source's CAs and that of the current certificate into every caBundle. complete means that the
// source could be read. Otherwise, and for a time after a change, the CAs that are already there remain.
func (k *Keeper) publish(ctx context.Context, seen []*configuration, cas []*x509.Certificate, complete bool,
	now clocks) error {
	wanted := add(nil, cas...)
	if p := k.current(); p != nil {
		wanted = add(wanted, p.issuer)
	}
	if len(wanted) == 0 {
		return nil
	}
	if !complete || now.disagree() || time.Since(k.since) < k.overlap {
		wanted = add(wanted, kept(anywhere(seen), now)...)
	}
	var failed error
	for _, c := range seen {
		failed = errors.Join(failed, k.inject(ctx, c, bundle(wanted)))
	}
	return failed
}

// judge decides whether this replica is ready. seen are the configurations as the API server returned them last; nil if
// they could not be read, which changes nothing: the API server still trusts the same CAs.
func (k *Keeper) judge(seen []*configuration, now clocks, err error) {
	doubt := k.doubt
	switch p := k.current(); {
	case p == nil && errors.Is(err, errOvertaken):
	case p == nil:
		doubt = err
	case seen != nil || !k.config.Source.injects():
		doubt = k.trusts(seen, p, now)
		switch {
		case doubt != nil || time.Now().After(k.patience):
		case k.propagated():
			k.patience = time.Time{} // from now on a replica like any other
		default:
			doubt = fmt.Errorf("waiting until every API server knows the certificate's CA, which takes %s",
				k.config.PropagationDelay)
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.doubt = doubt
}

// notice records changes of the configurations.
func (k *Keeper) notice(seen []*configuration) {
	versions := ""
	for _, c := range seen {
		versions += c.version() + " "
	}
	if versions != k.versions {
		k.versions, k.since = versions, time.Now()
	}
}

// propagated reports whether every API server applies the configurations: they have not changed for the propagation
// delay.
func (k *Keeper) propagated() bool { return time.Since(k.since) >= k.config.PropagationDelay }

func (k *Keeper) current() *pair {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.served
}

func (k *Keeper) serve(p *pair) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.served.same(p) {
		return
	}
	k.served = p
	k.config.Log.Info("using certificate",
		"certificate", fingerprint(p.leaf), "ca", fingerprint(p.issuer), "expires", p.leaf.NotAfter)
}

// report logs each error once for each cause, and when it is over.
func (k *Keeper) report(err error) {
	cause := causes(err)
	if cause == k.logged {
		return
	}
	k.logged = cause
	if err != nil {
		k.config.Log.Error("cannot update the serving certificate; retrying", "error", err)
	} else {
		k.config.Log.Info("the serving certificate is updated again")
	}
}

// now returns the time by both clocks. The API server's is that of its last response. A source that makes no requests
// has only the local clock.
func (k *Keeper) now() clocks {
	return clocks{api: k.steady().Add(time.Duration(k.ahead.Load())), local: k.local()}
}

// setClock sets the API server's time from a response. Its resolution is one second.
func (k *Keeper) setClock(date string) {
	t, err := http.ParseTime(date)
	if err != nil {
		return // keep the previous one
	}
	k.ahead.Store(int64(t.Sub(k.steady())))
	if now := k.now(); now.disagree() != k.wrong {
		k.wrong = now.disagree()
		if k.wrong {
			k.config.Log.Warn("this node's clock differs from the API server's; correct the wrong one",
				"apiServerAhead", now.ahead().Round(time.Second))
		}
	}
}

// get reads an object and sets the clock.
func (k *Keeper) get(ctx context.Context, url string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	body, header, err := k.config.API.Get(ctx, url, 8<<20)
	if err != nil {
		return err
	}
	defer clear(body) // it can contain the CA's key
	k.setClock(header.Get("Date"))
	return json.Unmarshal(body, into)
}

// call makes one request with a time limit.
func (k *Keeper) call(ctx context.Context, method, url string, body, into any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return k.config.API.Call(ctx, method, url, body, into)
}

// GetCertificate returns the current certificate, for tls.Config.
func (k *Keeper) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	p := k.current()
	if p == nil {
		return nil, errors.New("no serving certificate yet")
	}
	return p.tls, nil
}

// Ready returns nil if the certificate is valid now, and the configurations trusted it in the last pass.
func (k *Keeper) Ready() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if now := k.now(); k.served != nil && !k.served.inDate(now) {
		return fmt.Errorf("the serving certificate is valid from %s to %s; the time is %s",
			k.served.leaf.NotBefore.UTC().Format(time.RFC3339),
			k.served.leaf.NotAfter.UTC().Format(time.RFC3339), now.api.UTC().Format(time.RFC3339))
	}
	return k.doubt
}

// Expiry returns the expiry of the current certificate, or the zero time without one.
func (k *Keeper) Expiry() time.Time {
	p := k.current()
	if p == nil {
		return time.Time{}
	}
	return p.leaf.NotAfter
}
