package servingcert

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/kube"
	"github.com/ccgrkc/ccgrkc/internal/mtls"
)

// DefaultLifetime is the lifetime of certificates that the webhook makes itself.
const DefaultLifetime = 720 * time.Hour

// Self makes certificates itself. Replicas share them in one Secret, which must be there, and may be empty.
//
// A certificate comes with a CA of its own whose key nobody has, so that every renewal is a change of the CA, and there is
// one way for both:
//
//  1. next.crt and next.key are written, and the CA into ca.crt.
//  2. Every caBundle becomes ca.crt.
//  3. When the configurations have stood so for Settle, next.* becomes tls.*, and each replica serves it when it looks next.
//
// A CA stays in ca.crt until it expires. It vouches for one certificate only, which a replica that was cut off may still
// serve. The CA of what a replica serves is in ca.crt whatever else somebody writes there, and a pair that somebody writes, which
// cannot be told from another replica's, is served in the same order.
type Self struct {
	Namespace, Secret string
	Lifetime          time.Duration // renewed when a third of it is left

	overlap time.Duration // 0: overlap
}

const (
	certKey, keyKey         = "tls.crt", "tls.key" // in force
	nextCertKey, nextKeyKey = "next.crt", "next.key"
	caKey                   = "ca.crt"
)

func (s Self) check(k *Keeper) error {
	if least := 3 * (k.config.Settle + 3*k.poll); s.Lifetime < least {
		return fmt.Errorf("certificate lifetime %s: a renewal has a third of it, and takes %s to settle: want at least %s", s.Lifetime, k.config.Settle, least)
	}
	if s.Namespace == "" || s.Secret == "" {
		return errors.New("the Secret for certificates has no namespace or no name")
	}
	return nil
}

func (Self) injects() bool { return true }

// secret keeps what is not read here as it was.
type secret struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Metadata   json.RawMessage   `json:"metadata"` // with the resourceVersion, on which a write depends
	Immutable  *bool             `json:"immutable,omitempty"`
	Data       map[string][]byte `json:"data,omitempty"`
	Type       string            `json:"type,omitempty"`
}

func (s Self) look(ctx context.Context, k *Keeper, seen []*configuration, now time.Time) (offer, error) {
	url := k.config.API.URL(nil, "api", "v1", "namespaces", s.Namespace, "secrets", s.Secret)
	name := "Secret " + s.Namespace + "/" + s.Secret
	var object secret
	if err := k.call(ctx, http.MethodGet, url, nil, &object); err != nil {
		return offer{}, fmt.Errorf("%s: %w%s", name, err, remedy(err, "get"))
	}
	defer clear(object.Data[keyKey])
	defer clear(object.Data[nextKeyKey])
	want, err := s.order(object.Data, k, seen, now)
	if err != nil {
		return offer{}, fmt.Errorf("%s: %w", name, err)
	}
	if data := want.data(object.Data); !maps.EqualFunc(data, object.Data, bytes.Equal) {
		object.Data = data
		if err := k.call(ctx, http.MethodPut, url, object, nil); err != nil {
			if kube.Code(err) == http.StatusConflict {
				return offer{}, fmt.Errorf("%s: %w: %w", name, errOvertaken, err)
			}
			return offer{}, fmt.Errorf("%s: %w%s", name, err, remedy(err, "update"))
		}
		for _, event := range want.events {
			event()
		}
	}
	if want.next != nil {
		defer want.next.key.Wipe()
	}
	return offer{pair: want.inForce, bundle: bundle(want.cas)}, nil
}

// state is what the Secret is to hold.
type state struct {
	inForce, next *pair // next may be nil
	cas           []*x509.Certificate
	events        []func() // what to log once it does
}

// order says what the Secret is to hold, given what it holds.
func (s Self) order(data map[string][]byte, k *Keeper, seen []*configuration, now time.Time) (*state, error) {
	log := k.config.Log
	want := &state{}
	say := func(event func(string, ...any), message string, args ...any) {
		want.events = append(want.events, func() { event(message, args...) })
	}
	known := inDate(certificates(data[caKey]), now)
	read := func(cert, key string) (*pair, error) {
		if len(known) == 0 {
			return nil, errors.New("ca.crt holds no CA in date")
		}
		p, err := parse(data[cert], data[key], known, k.config.DNSName, now)
		if err == nil && !isP256(p.leaf) {
			err = errors.New("its key is not ECDSA P-256")
		}
		return p, err
	}
	var err error
	replace := false
	var early *notYetError
	want.next, err = read(nextCertKey, nextKeyKey)
	if err != nil {
		want.next = nil
	}
	notYet := errors.As(err, &early)
	want.inForce, err = read(certKey, keyKey)
	if notYet || errors.As(err, &early) {
		// Another clock counts, perhaps that of another API server: this one replaces nothing.
		return nil, fmt.Errorf("%w; set the API server's clock right, or, if the other one was wrong, empty the Secret", early)
	}
	want.cas = s.bounded(known, k, now)
	if err != nil {
		// Somebody else's CAs go with somebody else's certificate.
		want.inForce, want.cas = nil, nil
		if len(data) > 0 || k.current() != nil {
			say(log.Warn, "the Secret holds no certificate that this webhook can use; it gets a new one", "secret", s.Namespace+"/"+s.Secret, "reason", err)
		}
		switch served := k.current(); {
		case served.inDate(now):
			// What is served and trusted goes on, and a new one takes over in due order.
			want.inForce, replace = served, true
		case want.next != nil:
			want.inForce, want.next = want.next, nil
		default:
			if want.inForce, err = s.issue(k, now); err != nil {
				return nil, err
			}
			say(log.Info, "certificate made", "certificate", want.inForce.fingerprint(), "expires", want.inForce.leaf.NotAfter)
		}
	}
	if want.next != nil && k.settled(want.next, seen, now) {
		want.inForce, want.next = want.next, nil
		say(log.Info, "certificate renewed", "certificate", want.inForce.fingerprint(), "expires", want.inForce.leaf.NotAfter)
	}
	if want.next == nil && (replace || s.due(want.inForce, now)) {
		if want.next, err = s.issue(k, now); err != nil {
			return nil, err
		}
		say(log.Info, "next certificate made; it is served once every API server knows its CA", "certificate", want.next.fingerprint(), "settle", k.config.Settle)
	}
	want.cas = add(want.cas, want.inForce.issuer)
	if served := k.current(); served.inDate(now) {
		want.cas = add(want.cas, served.issuer)
	}
	if want.next != nil {
		want.cas = add(want.cas, want.next.issuer)
	}
	return want, nil
}

// bounded leaves out the CAs that last longer than any of this webhook's would, which somebody has written, or which are of a longer
// lifetime that was configured before: a replica that still serves by one has had the time to change.
func (s Self) bounded(cas []*x509.Certificate, k *Keeper, now time.Time) []*x509.Certificate {
	patience := s.overlap
	if patience == 0 {
		patience = overlap
	}
	if time.Since(k.since) < patience {
		return cas
	}
	return slices.DeleteFunc(slices.Clone(cas), func(c *x509.Certificate) bool { return c.NotAfter.Sub(now) > s.Lifetime+mtls.Backdate })
}

// due is when a third of a certificate's own time is left, which replicas that were given different lifetimes agree on; or
// when it has more left than it would be given now.
func (s Self) due(p *pair, now time.Time) bool {
	left, life := p.leaf.NotAfter.Sub(now), p.leaf.NotAfter.Sub(p.leaf.NotBefore)-mtls.Backdate
	return left <= max(life/3, 0) || left > s.Lifetime+mtls.Backdate
}

func (s Self) issue(k *Keeper, now time.Time) (*pair, error) {
	m, err := mtls.IssueServer("gmsa-webhook", k.config.DNSName, now, s.Lifetime)
	if err != nil {
		return nil, err
	}
	defer clear(m.ServerKey)
	return parse(m.ServerCert, m.ServerKey, certificates(m.CA), k.config.DNSName, now)
}

// data is what the Secret is to hold, with all that is not a keeper's as it was.
func (w *state) data(old map[string][]byte) map[string][]byte {
	data := maps.Clone(old)
	if data == nil {
		data = map[string][]byte{}
	}
	data[certKey], data[keyKey], data[caKey] = w.inForce.cert, w.inForce.key.Reveal(), bundle(w.cas)
	delete(data, nextCertKey)
	delete(data, nextKeyKey)
	if w.next != nil {
		data[nextCertKey], data[nextKeyKey] = w.next.cert, w.next.key.Reveal()
	}
	return data
}
