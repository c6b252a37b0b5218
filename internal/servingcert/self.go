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

// DefaultLifetime is the lifetime of self-issued certificates.
const DefaultLifetime = 720 * time.Hour

// Self issues certificates. Replicas share them in one Secret, which must exist, but can be empty.
//
// Each certificate has its own CA, whose key is deleted after signing. Every renewal therefore changes the CA:
//
//  1. A replica writes next.crt, next.key, and the CA into ca.crt.
//  2. Replicas set every caBundle to ca.crt.
//  3. When the configurations have not changed for Settle, next.* becomes tls.*. Each replica uses it in its next pass.
//
// A CA remains in ca.crt until it expires, because a disconnected replica can still use its only certificate. Each
// replica keeps the CA of its current certificate in ca.crt. A pair that someone else writes looks like another
// replica's and is used in the same order.
type Self struct {
	Namespace, Secret string
	Lifetime          time.Duration // renewed when a third of it is left

	overlap time.Duration // 0: overlap
}

const (
	certKey, keyKey         = "tls.crt", "tls.key" // current
	nextCertKey, nextKeyKey = "next.crt", "next.key"
	caKey                   = "ca.crt"
)

func (s Self) check(k *Keeper) error {
	if least := 3 * (k.config.Settle + 3*k.poll); s.Lifetime < least {
		return fmt.Errorf("certificate lifetime %s is too short for a settle time of %s; want at least %s",
			s.Lifetime, k.config.Settle, least)
	}
	if s.Namespace == "" || s.Secret == "" {
		return errors.New("the namespace or the name of the certificate Secret is not set")
	}
	return nil
}

func (Self) injects() bool { return true }

// secret preserves the fields that are not read here.
type secret struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Metadata   json.RawMessage   `json:"metadata"` // with the resourceVersion, which a write must match
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

// state is the wanted content of the Secret.
type state struct {
	inForce, next *pair // next may be nil
	cas           []*x509.Certificate
	events        []func() // log calls after the write
}

// order returns the wanted content of the Secret for its current content.
func (s Self) order(data map[string][]byte, k *Keeper, seen []*configuration, now time.Time) (*state, error) {
	log := k.config.Log
	want := &state{}
	say := func(event func(string, ...any), message string, args ...any) {
		want.events = append(want.events, func() { event(message, args...) })
	}
	known := inDate(certificates(data[caKey]), now)
	read := func(cert, key string) (*pair, error) {
		if len(known) == 0 {
			return nil, errors.New("ca.crt contains no valid CA")
		}
		p, err := parse(data[cert], data[key], known, k.config.DNSName, now)
		if err == nil && !isP256(p.leaf) {
			err = errors.New("the key is not ECDSA P-256")
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
		// The clocks differ, perhaps those of two API servers, so nothing is replaced.
		return nil, fmt.Errorf("%w; correct the API server's clock, or empty the Secret if the issuer's clock was "+
			"wrong", early)
	}
	want.cas = s.bounded(known, k, now)
	if err != nil {
		// A foreign certificate is replaced together with its CAs.
		want.inForce, want.cas = nil, nil
		if len(data) > 0 || k.current() != nil {
			say(log.Warn, "the Secret contains no usable certificate; replacing it",
				"secret", s.Namespace+"/"+s.Secret, "reason", err)
		}
		switch served := k.current(); {
		case served.inDate(now):
			// The current certificate is trusted and remains until the new one is.
			want.inForce, replace = served, true
		case want.next != nil:
			want.inForce, want.next = want.next, nil
		default:
			if want.inForce, err = s.issue(k, now); err != nil {
				return nil, err
			}
			say(log.Info, "certificate issued",
				"certificate", want.inForce.fingerprint(), "expires", want.inForce.leaf.NotAfter)
		}
	}
	if want.next != nil && k.settled(want.next, seen, now) {
		want.inForce, want.next = want.next, nil
		say(log.Info, "certificate renewed",
			"certificate", want.inForce.fingerprint(), "expires", want.inForce.leaf.NotAfter)
	}
	if want.next == nil && (replace || s.due(want.inForce, now)) {
		if want.next, err = s.issue(k, now); err != nil {
			return nil, err
		}
		say(log.Info, "next certificate issued; it is used when every API server knows its CA",
			"certificate", want.next.fingerprint(), "settle", k.config.Settle)
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

// bounded removes CAs that expire later than any that this webhook would issue. They are foreign or from a longer
// lifetime that was configured before. After overlap, no replica uses them.
func (s Self) bounded(cas []*x509.Certificate, k *Keeper, now time.Time) []*x509.Certificate {
	patience := s.overlap
	if patience == 0 {
		patience = overlap
	}
	if time.Since(k.since) < patience {
		return cas
	}
	return slices.DeleteFunc(slices.Clone(cas), func(c *x509.Certificate) bool {
		return c.NotAfter.Sub(now) > s.Lifetime+mtls.Backdate
	})
}

// due reports whether a third or less of the certificate's own lifetime is left, on which replicas with different
// configured lifetimes agree, or more than a new certificate would have.
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

// data returns the wanted data of the Secret. It preserves other keys.
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
