package servingcert

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Dir uses the certificate in a mounted directory: tls.crt, tls.key and optionally ca.crt. With ca.crt, the keeper
// writes the CA into the webhook configurations. The files are read in every pass. Replicas see a change at different
// times, because each node's kubelet updates its mount.
type Dir struct {
	Path string

	cas     []*x509.Certificate // of the last valid pair
	changed time.Time           // when cas changed
	overlap time.Duration
}

// overlap is how long other replicas' CAs remain in the configurations after the last change. A healthy kubelet updates
// a mounted Secret within two minutes.
const overlap = 15 * time.Minute

func (d *Dir) check(*Keeper) error {
	if d.Path == "" {
		return errors.New("the certificate directory is not set")
	}
	if d.overlap == 0 {
		d.overlap = overlap
	}
	return nil
}

func (d *Dir) injects() bool {
	_, err := os.Stat(filepath.Join(d.Path, caKey))
	return err == nil || len(d.cas) > 0 // also while the kubelet replaces the files
}

func (d *Dir) look(_ context.Context, k *Keeper, seen []*configuration, now time.Time) (offer, error) {
	var o offer
	p, cas, err := d.read(k.config.DNSName, now)
	if err == nil {
		if !slices.EqualFunc(cas, d.cas, (*x509.Certificate).Equal) {
			d.cas, d.changed = cas, time.Now()
		}
		served := k.current()
		if !served.inDate(now) || !served.same(p) && k.settled(p, seen, now) {
			o.pair = p
			// If API servers trust another CA, older replicas serve with it, and a new replica can wait until its CA is
			// known. If they trust none, no replica serves yet.
			o.early = served == nil && k.trusts(seen, p, now) != nil && anyCA(seen)
		} else {
			p.key.Wipe()
		}
	} else {
		err = fmt.Errorf("certificate in %s: %w", d.Path, err)
	}
	if len(d.cas) > 0 {
		o.bundle = bundle(d.wanted(k, seen, now))
	}
	return o, err
}

// wanted returns the CAs for the configurations: the directory's, that of the certificate still in use, and those that
// other replicas can need. Existing CAs remain until overlap after the last change.
func (d *Dir) wanted(k *Keeper, seen []*configuration, now time.Time) []*x509.Certificate {
	all := add(nil, d.cas...)
	if p := k.current(); p != nil {
		all = add(all, p.issuer)
	}
	if time.Since(d.changed) >= d.overlap && time.Since(k.since) >= d.overlap {
		return all
	}
	for _, c := range seen {
		for _, w := range c.Webhooks {
			all = add(all, inDate(certificates(w.ClientConfig.CABundle), now)...)
		}
	}
	return all
}

func anyCA(seen []*configuration) bool {
	for _, c := range seen {
		for _, w := range c.Webhooks {
			if len(certificates(w.ClientConfig.CABundle)) > 0 {
				return true
			}
		}
	}
	return false
}

func (d *Dir) read(dnsName string, now time.Time) (*pair, []*x509.Certificate, error) {
	// The kubelet replaces all files atomically through the link ..data, so all are read from its target.
	dir, err := filepath.EvalSymlinks(filepath.Join(d.Path, "..data"))
	if err != nil {
		dir = d.Path
	}
	cert, err := os.ReadFile(filepath.Join(dir, certKey))
	if err != nil {
		return nil, nil, err
	}
	key, err := os.ReadFile(filepath.Join(dir, keyKey))
	if err != nil {
		return nil, nil, err
	}
	defer clear(key)
	ca, err := os.ReadFile(filepath.Join(dir, caKey))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, err
	}
	cas := certificates(ca)
	if len(ca) > 0 && len(cas) == 0 {
		return nil, nil, errors.New("ca.crt contains no certificate; remove it if something else sets the caBundle " +
			"of the configurations")
	}
	p, err := parse(cert, key, cas, dnsName, now)
	return p, cas, err
}
