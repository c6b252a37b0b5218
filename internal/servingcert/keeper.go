// Package servingcert manages the serving certificate of an admission webhook. It issues and renews the certificate or
// reads it from a mounted directory, and writes its CA into the two webhook configurations. Replicas work without a
// leader.
//
//	keeper.go  the loop of a replica
//	self.go    self-issued certificates, in a Secret that the replicas share
//	dir.go     certificates from a directory
//	inject.go  the two webhook configurations
//	pair.go    a certificate and its key
//	clients.go required client certificates
//
// A certificate is used only after every API server has had time to learn its CA from the configurations.
package servingcert

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/kube"
)

const (
	// DefaultSettle is the maximum time until every API server applies a changed configuration. With a working watch
	// this takes about a second. Without one, the API server needs some tens of seconds to restore the watch.
	DefaultSettle = time.Minute
	// maxPoll is the longest interval between passes. With a short Settle, the interval is a third of it.
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
	Settle     time.Duration // from the CA in the configurations to the use of the certificate; 0: DefaultSettle
	Log        *slog.Logger
}

// Source provides certificates: Self or *Dir.
type Source interface {
	// check returns an error if the source cannot work.
	check(*Keeper) error
	// injects reports whether the webhook writes the two configurations. Otherwise it does not read them either.
	injects() bool
	// look reads and updates the source, and returns what the keeper must do. seen are the configurations, read before;
	// none if injects is false. The offer is valid even with an error.
	look(ctx context.Context, k *Keeper, seen []*configuration, now time.Time) (offer, error)
}

// offer is what a source makes the keeper do.
type offer struct {
	pair   *pair  // the pair to use; nil: keep the current one
	bundle []byte // PEM for every caBundle; nil: no change
	early  bool   // pair is the first of this replica, and API servers still trust another CA
}

// Keeper manages one replica's certificate.
type Keeper struct {
	config Config
	poll   time.Duration
	local  func() time.Time // this machine's clock
	ahead  atomic.Int64     // how far the API server's clock is ahead, in nanoseconds

	// Used only by the goroutine of Run.
	versions  string    // of the configurations in the last pass
	since     time.Time // when this keeper first saw these versions, by its monotonic clock
	patience  time.Time // end of the wait of an early pair
	wrong     bool      // a wrong local clock was logged
	complaint string    // the last logged error

	mu     sync.Mutex
	served *pair
	doubt  error // why API servers may not trust the current certificate
}

// New returns a keeper. It makes no request before Run.
func New(c Config) (*Keeper, error) {
	if c.Settle == 0 {
		c.Settle = DefaultSettle
	}
	if c.Settle < 0 {
		return nil, fmt.Errorf("settle time %s; want more than 0", c.Settle)
	}
	if !strings.HasSuffix(c.DNSName, ".svc") || c.Mutating == "" || c.Validating == "" {
		return nil, fmt.Errorf("DNS name %q, configurations %q and %q; want <service>.<namespace>.svc and two names",
			c.DNSName, c.Mutating, c.Validating)
	}
	start := time.Now()
	k := &Keeper{config: c, poll: min(maxPoll, c.Settle/3), doubt: errors.New("the API server has not responded yet")}
	// Monotonic, so that setting the machine's clock has no effect.
	k.local = func() time.Time { return start.Add(time.Since(start)) }
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
			return k.unsure(err)
		}
		k.notice(seen)
	}
	now := k.now() // by the API server's last response
	offer, problem := k.config.Source.look(ctx, k, seen, now)
	if problem != nil && offer.bundle == nil {
		return k.unsure(problem)
	}
	p, old := offer.pair, k.current()
	if p != nil && (!old.inDate(now) || k.settled(p, seen, now) || k.trusts(seen, old, now) != nil) {
		if offer.early {
			// Limited: during a change from one source to the other, both overwrite the configurations repeatedly.
			k.patience = time.Now().Add(3 * k.config.Settle)
		}
		k.serve(p)
	}
	if offer.bundle != nil {
		for _, c := range seen {
			if err := k.inject(ctx, c, offer.bundle); err != nil {
				return k.unsure(err)
			}
		}
		k.notice(seen)
	}
	doubt := problem
	if p := k.current(); p != nil {
		doubt = k.trusts(seen, p, now)
		switch {
		case doubt != nil || time.Now().After(k.patience):
		case k.settled(p, seen, now):
			k.patience = time.Time{} // from now on a replica like any other
		default:
			doubt = fmt.Errorf("waiting until every API server knows the certificate's CA, which takes %s",
				k.config.Settle)
		}
	}
	k.mu.Lock()
	k.doubt = doubt
	k.mu.Unlock()
	return problem
}

// unsure records why the certificate is still missing. With a certificate, an unavailable API server changes nothing: it
// still trusts the same CAs.
func (k *Keeper) unsure(err error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.served == nil && !errors.Is(err, errOvertaken) {
		k.doubt = err
	}
	return err
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

// settled reports whether every API server trusts p: the configurations do, and have not changed for Settle.
func (k *Keeper) settled(p *pair, seen []*configuration, now time.Time) bool {
	return time.Since(k.since) >= k.config.Settle && k.trusts(seen, p, now) == nil
}

func (k *Keeper) current() *pair {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.served
}

func (k *Keeper) serve(p *pair) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.served.same(p) {
		if k.served != p {
			p.key.Wipe()
		}
		return
	}
	if k.served != nil {
		k.served.key.Wipe() // only the PEM; handshakes in progress still use the decoded key
	}
	k.served = p
	k.config.Log.Info("using certificate", "certificate", p.fingerprint(), "expires", p.leaf.NotAfter)
}

// report logs each error once, and when it is over.
func (k *Keeper) report(err error) {
	complaint := ""
	if err != nil {
		complaint = err.Error()
	}
	if complaint == k.complaint {
		return
	}
	k.complaint = complaint
	if err != nil {
		k.config.Log.Error("cannot update the serving certificate; retrying", "error", err)
	} else {
		k.config.Log.Info("the serving certificate is updated again")
	}
}

// now is the API server's time. All replicas share it for their decisions about the Secret, and the API server verifies
// the certificate with it. A source that makes no requests uses the local clock.
func (k *Keeper) now() time.Time { return k.local().Add(time.Duration(k.ahead.Load())) }

// setClock sets the API server's time from a response. Its resolution is one second.
func (k *Keeper) setClock(date string) {
	t, err := http.ParseTime(date)
	if err != nil {
		return // keep the previous one
	}
	ahead := t.Sub(k.local())
	k.ahead.Store(int64(ahead))
	if wrong := ahead.Abs() > 5*time.Minute; wrong != k.wrong {
		k.wrong = wrong
		if wrong {
			k.config.Log.Warn("this node's clock differs from the API server's, which applies to certificates",
				"apiServerAhead", ahead.Round(time.Second))
		}
	}
}

// get reads an object and sets the clock.
func (k *Keeper) get(ctx context.Context, url string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := k.config.API.Do(ctx, http.MethodGet, url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	k.setClock(resp.Header.Get("Date"))
	body, err := io.ReadAll(io.LimitReader(resp.Body, 8<<20))
	if err != nil {
		return fmt.Errorf("API server: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		refusal := &kube.StatusError{}
		_ = json.Unmarshal(body, refusal) // without a Status the code is enough
		refusal.Code = resp.StatusCode
		return refusal
	}
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
	if k.served != nil && !k.served.inDate(k.now()) {
		return fmt.Errorf("the serving certificate is valid from %s to %s; the time is %s",
			k.served.leaf.NotBefore.UTC().Format(time.RFC3339),
			k.served.leaf.NotAfter.UTC().Format(time.RFC3339), k.now().UTC().Format(time.RFC3339))
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
