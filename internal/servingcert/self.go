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
)

// DefaultCALifetime is the lifetime of a CA of this webhook.
const DefaultCALifetime = 365 * 24 * time.Hour

// maxLeafLifetime is the longest lifetime of a serving certificate. A replica signs a new one when a third is left.
const maxLeafLifetime = 7 * 24 * time.Hour

// Self signs certificates with a CA. Replicas share the CA and its key in one Secret, which must exist, but can be
// empty. Each replica keeps its certificate's key in memory. The CA is rotated after two thirds of its lifetime:
//
//  1. A replica writes a new CA into next-authority.crt, next-authority.key and ca.crt.
//  2. Replicas add it to every caBundle.
//  3. When the configurations have not changed for the propagation delay, a replica makes it authority.*. Each replica
//     then signs its next certificate with it. The key of the previous CA is gone.
//
// A CA remains in ca.crt until it expires, because a disconnected replica can still serve a certificate of it. A CA
// with its key that someone else writes looks like another replica's and is used in the same order. A CA that could
// sign for other names than the webhook's is removed.
type Self struct {
	Namespace, Secret string
	CALifetime        time.Duration
}

const (
	authorityCert, authorityKey = "authority.crt", "authority.key"           // the CA that signs
	nextCert, nextKey           = "next-authority.crt", "next-authority.key" // the CA that will sign
	caKey                       = "ca.crt"                                   // all CAs for the configurations
)

// legacyKeys are the keys of an earlier format: serving certificates whose CA, without a key, is in ca.crt. Replicas of
// that version, which can run during an upgrade, need them and ca.crt.
var legacyKeys = []string{certKey, keyKey, "next.crt", "next.key"}

// legacyLifetime is a little more than the default lifetime of the earlier format's certificates, 30 days.
const legacyLifetime = 32 * 24 * time.Hour

func (s Self) check(k *Keeper) error {
	// A serving certificate lives for at most a third of the CA's lifetime, and is renewed when a third is left.
	// Without the CA's key, this rest must be enough for a new CA.
	if least := 18 * k.config.PropagationDelay; s.CALifetime < least {
		return fmt.Errorf("CA lifetime %s is too short for a propagation delay of %s; want at least %s",
			s.CALifetime, k.config.PropagationDelay, least)
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

func (s Self) look(ctx context.Context, k *Keeper, seen []*configuration, now clocks) (offer, error) {
	url := k.config.API.URL(nil, "api", "v1", "namespaces", s.Namespace, "secrets", s.Secret)
	name := "Secret " + s.Namespace + "/" + s.Secret
	var object secret
	if err := k.call(ctx, http.MethodGet, url, nil, &object); err != nil {
		return offer{}, &problem{"get Secret", fmt.Errorf("%s: %w%s", name, err, remedy(err, "get"))}
	}
	defer clear(object.Data[authorityKey])
	defer clear(object.Data[nextKey])
	stored := s.read(object.Data, k.config.DNSName, now)
	wanted, err := s.rotate(stored, k, seen, now)
	if err != nil {
		return offer{}, fmt.Errorf("create a CA: %w", err)
	}
	defer wanted.wipe()
	if data := wanted.data(object.Data, now); !maps.EqualFunc(data, object.Data, bytes.Equal) {
		object.Data = data
		if err := k.call(ctx, http.MethodPut, url, object, nil); err != nil {
			if kube.Code(err) == http.StatusConflict {
				err = fmt.Errorf("%w: %w", errOvertaken, err)
			}
			// The other replicas know only what is stored.
			o, _ := s.serve(stored, k, seen, now)
			return o, &problem{"update Secret", fmt.Errorf("%s: %w%s", name, err, remedy(err, "update"))}
		}
		s.log(stored, wanted, k)
	}
	return s.serve(wanted, k, seen, now)
}

// state is the content of the Secret. current and next can be nil.
type state struct {
	current, next *authority
	cas           []*x509.Certificate
	unusable      error // why there is no current CA
}

// own returns the CAs with a key.
func (st state) own() []*authority {
	return slices.DeleteFunc([]*authority{st.current, st.next}, func(a *authority) bool { return a == nil })
}

func (s Self) read(data map[string][]byte, dnsName string, now clocks) state {
	usable := func(cert, key string) (*authority, error) {
		a, err := parseAuthority(data[cert], data[key], dnsName)
		if err == nil && !now.valid(a.cert) {
			return nil, fmt.Errorf("the CA is valid from %s to %s", a.cert.NotBefore.UTC().Format(time.RFC3339),
				a.cert.NotAfter.UTC().Format(time.RFC3339))
		}
		return a, err
	}
	var st state
	st.current, st.unusable = usable(authorityCert, authorityKey)
	st.next, _ = usable(nextCert, nextKey)
	st.cas = slices.DeleteFunc(kept(certificates(data[caKey]), now), func(c *x509.Certificate) bool {
		return s.excessive(c.NotAfter, now) || !constrained(c, dnsName) && !legacy(c, data[certKey], now)
	})
	return st
}

// legacy reports whether a CA without name constraints issued the certificate of the earlier format, which expired
// within a month. Until then, old replicas can serve it.
func legacy(ca *x509.Certificate, certPEM []byte, now clocks) bool {
	return ca.NotAfter.Sub(now.later()) <= legacyLifetime &&
		slices.ContainsFunc(certificates(certPEM), func(c *x509.Certificate) bool {
			return !now.expired(c) && c.CheckSignatureFrom(ca) == nil
		})
}

// rotate returns the wanted content of the Secret.
func (s Self) rotate(st state, k *Keeper, seen []*configuration, now clocks) (state, error) {
	if st.next != nil && k.propagated() && everywhere(seen, st.next.cert) {
		st.current, st.next = st.next, nil
	}
	notBefore, notAfter := now.earlier().Add(-backdate), now.later().Add(s.CALifetime)
	due := st.current == nil ||
		// If a new CA would be due as well, it is no improvement: the clocks differ by more than its lifetime.
		s.due(st.current.cert.NotBefore, st.current.cert.NotAfter, now) && !s.due(notBefore, notAfter, now)
	if st.next == nil && due {
		created, err := newAuthority(k.config.DNSName, notBefore, notAfter)
		if err != nil {
			return state{}, err
		}
		if st.current == nil && k.current() == nil && !others(seen, created.cert, now) {
			st.current = created // no replica is in use, so there is nothing to wait for
		} else {
			st.next = created
		}
	}
	for _, a := range st.own() {
		st.cas = add(slices.Clone(st.cas), a.cert)
	}
	return st, nil
}

// due reports whether a third or less of a CA's lifetime is left by the API server's clock.
func (s Self) due(notBefore, notAfter time.Time, now clocks) bool {
	life := notAfter.Sub(notBefore) - backdate
	return notAfter.Sub(now.api) <= max(life/3, 0) || s.excessive(notAfter, now)
}

// excessive reports whether a CA expires much later than one that this webhook would create. It is foreign, or from a
// longer lifetime that was configured before, or from a time when a clock was far ahead.
func (s Self) excessive(notAfter time.Time, now clocks) bool {
	return notAfter.Sub(now.later()) > 2*s.CALifetime+backdate
}

// serve returns what the keeper must do with this content of the Secret.
func (s Self) serve(st state, k *Keeper, seen []*configuration, now clocks) (offer, error) {
	o := offer{cas: st.cas}
	from, served := st.current, k.current()
	if from == nil {
		from = st.next
	}
	if from == nil {
		return o, nil
	}
	life := min(maxLeafLifetime, s.CALifetime/3)
	notAfter := wholeSecond(now.later().Add(life))
	if from.cert.NotAfter.Before(notAfter) {
		notAfter = from.cert.NotAfter
	}
	switch {
	case !served.inDate(now):
		o.early = served == nil && others(seen, from.cert, now) && (st.current == nil || !everywhere(seen, from.cert))
	case served.issuer.Equal(from.cert):
		if served.leaf.NotAfter.Sub(now.api) > life/3 || !notAfter.After(served.leaf.NotAfter) {
			return o, nil
		}
	case st.current == nil || !k.propagated() || !everywhere(seen, from.cert):
		return o, nil
	}
	var err error
	o.pair, err = from.sign(k.config.DNSName, notAfter)
	return o, err
}

// log logs a write of the Secret.
func (s Self) log(before, after state, k *Keeper) {
	log := k.config.Log.With("secret", s.Namespace+"/"+s.Secret)
	if before.unusable != nil && before.next == nil && (before.unusable != errNoCA || k.current() != nil) {
		log.Warn("the Secret contains no usable CA; replacing it", "reason", before.unusable)
	}
	if after.current != nil && after.current != before.current {
		log.Info("CA in use", "ca", fingerprint(after.current.cert), "expires", after.current.cert.NotAfter)
	}
	if after.next != nil && after.next != before.next {
		log.Info("next CA created; it is used when every API server knows it",
			"ca", fingerprint(after.next.cert), "propagationDelay", k.config.PropagationDelay)
	}
}

// data returns the data of the Secret. It preserves other keys.
func (st state) data(old map[string][]byte, now clocks) map[string][]byte {
	data := maps.Clone(old)
	if data == nil {
		data = map[string][]byte{}
	}
	put := func(a *authority, cert, key string) {
		delete(data, cert)
		delete(data, key)
		if a != nil {
			data[cert], data[key] = a.certPEM, a.keyPEM
		}
	}
	put(st.current, authorityCert, authorityKey)
	put(st.next, nextCert, nextKey)
	data[caKey] = bundle(st.cas)
	if !slices.ContainsFunc(certificates(data[certKey]), func(c *x509.Certificate) bool { return !now.expired(c) }) {
		for _, key := range legacyKeys {
			delete(data, key)
		}
	}
	return data
}

// wipe clears the encoded keys.
func (st state) wipe() {
	for _, a := range st.own() {
		clear(a.keyPEM)
	}
}
