package servingcert

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/credential"
)

// pair is a serving certificate and its key.
type pair struct {
	cert   []byte              // PEM: the leaf and intermediate certificates
	key    credential.Password // PEM
	leaf   *x509.Certificate
	issuer *x509.Certificate // the CA of the leaf; the leaf itself without a CA
	tls    *tls.Certificate
}

// parse decodes a pair and verifies it as the API server does: name, validity, key usage and a chain to one of the CAs.
// Without CAs it verifies no chain.
func parse(cert, key []byte, cas []*x509.Certificate, dnsName string, now time.Time) (*pair, error) {
	if len(cert) == 0 || len(key) == 0 {
		return nil, errors.New("the certificate or its key is missing")
	}
	both, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	p := &pair{cert: cert, leaf: both.Leaf, tls: &both}
	if len(cas) == 0 {
		cas = []*x509.Certificate{p.leaf}
	}
	chains, err := p.verify(cas, dnsName, now)
	if err != nil {
		if from := p.leaf.NotBefore; now.Before(from) {
			if _, later := p.verify(cas, dnsName, from); later == nil {
				return nil, &notYetError{from, now}
			}
		}
		return nil, err
	}
	p.issuer = chains[0][len(chains[0])-1]
	p.key = credential.NewPassword(bytes.Clone(key))
	return p, nil
}

// notYetError is the error for a pair that is not valid yet.
type notYetError struct{ from, now time.Time }

func (e *notYetError) Error() string {
	return fmt.Sprintf("the certificate is valid from %s; the time is %s: the clock is behind the issuer's",
		e.from.UTC().Format(time.RFC3339), e.now.UTC().Format(time.RFC3339))
}

// verify verifies the pair as the API server does with a caBundle.
func (p *pair) verify(cas []*x509.Certificate, dnsName string, now time.Time) ([][]*x509.Certificate, error) {
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
	return p.leaf.Verify(x509.VerifyOptions{
		DNSName: dnsName, Roots: roots, Intermediates: between, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
}

// inDate is false for nil.
func (p *pair) inDate(now time.Time) bool {
	return p != nil && !now.Before(p.leaf.NotBefore) && now.Before(p.leaf.NotAfter)
}

// same reports whether two pairs have the same leaf, and therefore the same key.
func (p *pair) same(q *pair) bool { return p != nil && q != nil && p.leaf.Equal(q.leaf) }

// fingerprint identifies a certificate in the log.
func (p *pair) fingerprint() string {
	sum := sha256.Sum256(p.leaf.Raw)
	return hex.EncodeToString(sum[:8])
}

func isP256(c *x509.Certificate) bool {
	key, ok := c.PublicKey.(*ecdsa.PublicKey)
	return ok && key.Curve == elliptic.P256()
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

// inDate returns the certificates that have not expired.
func inDate(all []*x509.Certificate, now time.Time) []*x509.Certificate {
	return slices.DeleteFunc(slices.Clone(all), func(c *x509.Certificate) bool { return !now.Before(c.NotAfter) })
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
