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

// Dir serves the certificate in a mounted directory: tls.crt, tls.key and, if the CA is to be written into the
// configurations, ca.crt. It is read again all the time. Replicas see a change at different times, because each node's
// kubelet brings it.
type Dir struct {
	Path string

	cas     []*x509.Certificate // of the pair that was read last and was good
	changed time.Time           // when they did
	overlap time.Duration
}

// overlap is how long the CAs of others stay in the configurations when nothing has changed any more. A kubelet that is well
// brings a changed Secret within two minutes.
const overlap = 15 * time.Minute

func (d *Dir) check(*Keeper) error {
	if d.Path == "" {
		return errors.New("the directory of certificates has no name")
	}
	if d.overlap == 0 {
		d.overlap = overlap
	}
	return nil
}

func (d *Dir) injects() bool {
	_, err := os.Stat(filepath.Join(d.Path, caKey))
	return err == nil || len(d.cas) > 0 // also while files are being exchanged
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
			// A replica that comes while API servers go by another CA, with which older replicas serve, is not needed before its own
			// is known. If they go by none, none serves.
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

// wanted are the CAs that the configurations are to hold: the directory's own, that of the certificate which is still
// served, and those that other replicas need: what is there stays until nothing has changed for a while.
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
	// The kubelet changes all files at once, by what ..data points at: all are read from the one directory.
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
		return nil, nil, errors.New("ca.crt holds no certificate; leave it out if the configurations have their caBundle from elsewhere")
	}
	p, err := parse(cert, key, cas, dnsName, now)
	return p, cas, err
}
