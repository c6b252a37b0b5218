package servingcert

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

const certKey, keyKey = "tls.crt", "tls.key"

// Dir uses the certificate in a mounted directory: tls.crt, tls.key and optionally ca.crt. With ca.crt, the keeper
// writes the CA into the webhook configurations. The files are read in every pass. Replicas see a change at different
// times, because each node's kubelet updates its mount.
type Dir struct {
	Path string

	cas []*x509.Certificate // of the last valid pair
}

func (d *Dir) check(*Keeper) error {
	if d.Path == "" {
		return errors.New("the certificate directory is not set")
	}
	return nil
}

func (d *Dir) injects() bool {
	_, err := os.Stat(filepath.Join(d.Path, caKey))
	return err == nil || len(d.cas) > 0 // also while the kubelet replaces the files
}

func (d *Dir) look(_ context.Context, k *Keeper, seen []*configuration, now clocks) (offer, error) {
	p, cas, err := d.read(k.config.DNSName, now)
	if err != nil {
		return offer{cas: d.cas}, fmt.Errorf("certificate in %s: %w", d.Path, err)
	}
	d.cas = cas
	o, served := offer{cas: cas}, k.current()
	known := k.trusts(seen, p, now) == nil
	if !served.inDate(now) || !served.same(p) && k.propagated() && known {
		o.pair = p
		// If API servers trust another CA, older replicas serve with it, and a new replica can wait until its CA is
		// known. If they trust none, no replica serves yet.
		o.early = served == nil && !known && others(seen, p.issuer, now)
	}
	return o, nil
}

func (d *Dir) read(dnsName string, now clocks) (*pair, []*x509.Certificate, error) {
	// The kubelet replaces all files atomically through the link ..data, so all are read from its target.
	dir, err := filepath.EvalSymlinks(filepath.Join(d.Path, "..data"))
	if err != nil {
		dir = d.Path
	}
	read := func(name string) ([]byte, error) {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return nil, &problem{"read " + name, err} // the target's name changes
		}
		return data, nil
	}
	cert, err := read(certKey)
	if err != nil {
		return nil, nil, err
	}
	key, err := read(keyKey)
	if err != nil {
		return nil, nil, err
	}
	defer clear(key)
	ca, err := read(caKey)
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
