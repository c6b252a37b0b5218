package servingcert

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"slices"
	"time"
)

// pair is a serving certificate and its key.
type pair struct {
	leaf   *x509.Certificate
	issuer *x509.Certificate // the CA of the leaf; the leaf itself without a CA
	tls    *tls.Certificate
}

// parse decodes a pair and verifies it as the API server does: name, validity, key usage and a chain to one of the CAs.
// Without CAs it verifies no chain.
func parse(cert, key []byte, cas []*x509.Certificate, dnsName string, now clocks) (*pair, error) {
	if len(cert) == 0 || len(key) == 0 {
		return nil, errors.New("the certificate or its key is missing")
	}
	both, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	p := &pair{leaf: both.Leaf, tls: &both}
	if len(cas) == 0 {
		cas = []*x509.Certificate{p.leaf}
	}
	chains, err := p.verify(cas, dnsName, now)
	if err != nil {
		return nil, err
	}
	p.issuer = chains[0][len(chains[0])-1]
	return p, nil
}

// verify verifies the pair as the API server does with a caBundle, by either clock.
func (p *pair) verify(cas []*x509.Certificate, dnsName string, now clocks) ([][]*x509.Certificate, error) {
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, ca := range cas {
		roots.AddCert(ca)
	}
	for _, der := range p.tls.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		between.AddCert(c)
	}
	at := func(t time.Time) ([][]*x509.Certificate, error) {
		return p.leaf.Verify(x509.VerifyOptions{
			DNSName:       dnsName,
			Roots:         roots,
			Intermediates: between,
			CurrentTime:   t,
			KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		})
	}
	chains, err := at(now.api)
	if err != nil {
		if chains, other := at(now.local); other == nil {
			return chains, nil
		}
	}
	return chains, err
}

// inDate is false for nil.
func (p *pair) inDate(now clocks) bool { return p != nil && now.valid(p.leaf) }

// same reports whether two pairs have the same leaf, and therefore the same key.
func (p *pair) same(q *pair) bool { return p != nil && q != nil && p.leaf.Equal(q.leaf) }

// fingerprint identifies a certificate in the log.
func fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:8])
}

// certificates decodes the certificates in PEM, without duplicates. It ignores everything else.
func certificates(data []byte) []*x509.Certificate {
	var all []*x509.Certificate
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return all
		}
		if c, err := x509.ParseCertificate(block.Bytes); err == nil {
			all = add(all, c)
		}
	}
}

// add appends certificates, without duplicates.
func add(all []*x509.Certificate, more ...*x509.Certificate) []*x509.Certificate {
	for _, c := range more {
		if !slices.ContainsFunc(all, c.Equal) {
			all = append(all, c)
		}
	}
	return all
}

// maxKept limits the certificates that are kept although they are not this replica's: an object has a maximum size, and
// those in use must fit.
const maxKept = 32

// kept returns the certificates that have not expired, at most those that expire last.
func kept(all []*x509.Certificate, now clocks) []*x509.Certificate {
	all = slices.DeleteFunc(slices.Clone(all), now.expired)
	slices.SortFunc(all, func(a, b *x509.Certificate) int { return b.NotAfter.Compare(a.NotAfter) })
	return all[:min(len(all), maxKept)]
}

// bundle encodes certificates as PEM in a fixed order, so that replicas with the same certificates write equal bytes.
func bundle(all []*x509.Certificate) []byte {
	all = slices.Clone(all)
	slices.SortFunc(all, func(a, b *x509.Certificate) int {
		if c := a.NotAfter.Compare(b.NotAfter); c != 0 {
			return c
		}
		return bytes.Compare(a.Raw, b.Raw)
	})
	var out []byte
	for _, c := range all {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}
