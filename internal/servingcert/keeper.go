// Package servingcert keeps the serving certificate of an admission webhook: it makes and renews it, or reads it from a
// mounted directory, and writes the CA that signed it into the webhook's two configurations, which is how an API server
// knows the webhook. Several replicas do so side by side without a leader.
//
//	keeper.go what a replica does every few seconds
//	self.go   certificates of its own, in a Secret that the replicas share
//	dir.go    certificates from a directory
//	inject.go the two configurations
//	pair.go   a certificate and its key
//	clients.go who may connect
//
// One order holds throughout: a certificate is served only once the configurations have told every API server about its CA.
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
	// DefaultSettle is how long every API server takes at most to learn of a change of a configuration. It watches them, and
	// mostly knows within a second; one that had lost its watch comes back within some tens.
	DefaultSettle = time.Minute
	// maxPoll is how often a keeper looks, at most; with a short Settle, three times in it.
	maxPoll = 10 * time.Second
	// callTimeout bounds one request to the API server.
	callTimeout = 5 * time.Second
)

// Config is a keeper's whole configuration.
type Config struct {
	API        *kube.Client
	DNSName    string // that the API server asks for: <service>.<namespace>.svc
	Mutating   string // name of the MutatingWebhookConfiguration
	Validating string // name of the ValidatingWebhookConfiguration
	Source     Source
	Settle     time.Duration // between the CA in the configurations and the certificate in use; 0: DefaultSettle
	Log        *slog.Logger
}

// Source is where certificates come from: Self or *Dir.
type Source interface {
	// check refuses a source that cannot work.
	check(*Keeper) error
	// injects tells whether the two configurations are this webhook's to write. Otherwise they are not even read.
	injects() bool
	// look reads what there is, brings it into order, and says what to do. seen is the configurations as they were before; none
	// if they are not read. With an error the offer still counts.
	look(ctx context.Context, k *Keeper, seen []*configuration, now time.Time) (offer, error)
}

// offer is what a source wants done.
type offer struct {
	pair   *pair  // to be served; nil: what is served goes on
	bundle []byte // PEM, to be every caBundle; nil: they are left alone
	early  bool   // pair is the first that is served, and API servers go by the CA of another one yet
}

// Keeper keeps one replica's certificate.
type Keeper struct {
	config Config
	poll   time.Duration
	local  func() time.Time // this machine's clock
	ahead  atomic.Int64     // how much the API server's is ahead of it, in nanoseconds

	// Only Run's goroutine uses these.
	versions  string    // of the configurations when last seen
	since     time.Time // when this keeper first saw them; by its own monotonic clock, so that replicas' clocks may differ
	patience  time.Time // until when an early pair waits for every API server to know its CA
	wrong     bool      // the local clock was complained of
	complaint string    // that was logged last

	mu     sync.Mutex
	served *pair
	doubt  error // why the certificate that is served may not be trusted
}

// New returns a keeper. It asks nobody until it runs.
func New(c Config) (*Keeper, error) {
	if c.Settle == 0 {
		c.Settle = DefaultSettle
	}
	if c.Settle < 0 {
		return nil, fmt.Errorf("settle %s: want more than 0", c.Settle)
	}
	if !strings.HasSuffix(c.DNSName, ".svc") || c.Mutating == "" || c.Validating == "" {
		return nil, fmt.Errorf("certificate for %q in configurations %q and %q: want <service>.<namespace>.svc and two names", c.DNSName, c.Mutating, c.Validating)
	}
	start := time.Now()
	k := &Keeper{config: c, poll: min(maxPoll, c.Settle/3), doubt: errors.New("the API server has not answered yet")}
	// It goes on evenly when somebody sets the machine's clock.
	k.local = func() time.Time { return start.Add(time.Since(start)) }
	if err := c.Source.check(k); err != nil {
		return nil, err
	}
	return k, nil
}

// Run keeps the certificate until ctx ends. Whatever fails is tried again.
func (k *Keeper) Run(ctx context.Context) {
	for {
		err := k.pass(ctx)
		// Another replica was faster, and has mostly done what was to do.
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

// pass looks once at all there is, and does what is to do. It may be cut short anywhere, also by the end of the process:
// every step is one write of one object, and the next pass, of whichever replica, goes on from what it finds.
func (k *Keeper) pass(ctx context.Context) error {
	var seen []*configuration
	if k.config.Source.injects() {
		// The configurations come before the source: inject relies on it.
		var err error
		if seen, err = k.readConfigurations(ctx); err != nil {
			return k.unsure(err)
		}
		k.notice(seen)
	}
	now := k.now() // by the API server's last answer
	offer, problem := k.config.Source.look(ctx, k, seen, now)
	if problem != nil && offer.bundle == nil {
		return k.unsure(problem)
	}
	if p, old := offer.pair, k.current(); p != nil && (!old.inDate(now) || k.settled(p, seen, now) || k.trusts(seen, old, now) != nil) {
		if offer.early {
			// Not for ever: while a change from one source to the other is rolled out, each writes the configurations over and over.
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
			k.patience = time.Time{} // from now on it is like any other replica
		default:
			doubt = fmt.Errorf("the configurations hold the CA of the certificate for less than %s, and not every API server may know it", k.config.Settle)
		}
	}
	k.mu.Lock()
	k.doubt = doubt
	k.mu.Unlock()
	return problem
}

// unsure keeps why there is no certificate yet. Once there is one, an API server that does not answer changes nothing: what
// it trusted it still trusts.
func (k *Keeper) unsure(err error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.served == nil && !errors.Is(err, errOvertaken) {
		k.doubt = err
	}
	return err
}

// notice sees whether the configurations are as they were.
func (k *Keeper) notice(seen []*configuration) {
	versions := ""
	for _, c := range seen {
		versions += c.version() + " "
	}
	if versions != k.versions {
		k.versions, k.since = versions, time.Now()
	}
}

// settled tells whether every API server trusts p by now: the configurations do, and have not changed for long enough.
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
		k.served.key.Wipe() // the text; handshakes under way need the key itself
	}
	k.served = p
	k.config.Log.Info("serving certificate", "certificate", p.fingerprint(), "expires", p.leaf.NotAfter)
}

// report logs what is wrong once, and that it is over.
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
		k.config.Log.Error("the serving certificate could not be looked after; this is tried again", "error", err)
	} else {
		k.config.Log.Info("the serving certificate is looked after again")
	}
}

// now is the time by the API server's clock, which all replicas share: they decide by it about one Secret, and it is the clock by
// which their certificate is judged. A source that asks no API server goes by the local clock.
func (k *Keeper) now() time.Time { return k.local().Add(time.Duration(k.ahead.Load())) }

// setClock takes the time of an answer, in whole seconds.
func (k *Keeper) setClock(date string) {
	t, err := http.ParseTime(date)
	if err != nil {
		return // as good as the one before
	}
	ahead := t.Sub(k.local())
	k.ahead.Store(int64(ahead))
	if wrong := ahead.Abs() > 5*time.Minute; wrong != k.wrong {
		k.wrong = wrong
		if wrong {
			k.config.Log.Warn("this node's clock is not the API server's; certificates go by the API server's", "apiServerAhead", ahead.Round(time.Second))
		}
	}
}

// get is call for reading, and sets the clock.
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
		_ = json.Unmarshal(body, refusal) // what is no Status is told by the code
		refusal.Code = resp.StatusCode
		return refusal
	}
	return json.Unmarshal(body, into)
}

// call makes one request of bounded time.
func (k *Keeper) call(ctx context.Context, method, url string, body, into any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return k.config.API.Call(ctx, method, url, body, into)
}

// GetCertificate is for tls.Config: the certificate as it is now.
func (k *Keeper) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	p := k.current()
	if p == nil {
		return nil, errors.New("there is no serving certificate yet")
	}
	return p.tls, nil
}

// Ready is nil if a certificate in date is served, and the configurations trusted it when they were last seen.
func (k *Keeper) Ready() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.served != nil && !k.served.inDate(k.now()) {
		return fmt.Errorf("the serving certificate counts from %s to %s, and the clock says %s", k.served.leaf.NotBefore.UTC().Format(time.RFC3339),
			k.served.leaf.NotAfter.UTC().Format(time.RFC3339), k.now().UTC().Format(time.RFC3339))
	}
	return k.doubt
}

// Expiry is when the certificate that is served expires; the zero time if there is none.
func (k *Keeper) Expiry() time.Time {
	p := k.current()
	if p == nil {
		return time.Time{}
	}
	return p.leaf.NotAfter
}
