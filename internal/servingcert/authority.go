package servingcert

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"
)

// backdate is how far NotBefore of a CA is in the past, for API servers whose clock is behind.
const backdate = 24 * time.Hour

// errNoCA is the error for a Secret that is empty or has the earlier format.
var errNoCA = errors.New("the CA or its key is missing")

// authority is a CA with its key. It can sign only serving certificates for one DNS name.
type authority struct {
	cert            *x509.Certificate
	key             *ecdsa.PrivateKey
	certPEM, keyPEM []byte
}

// newAuthority creates a CA for dnsName.
func newAuthority(dnsName string, notBefore, notAfter time.Time) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "gmsa-webhook " + rand.Text()},
		NotBefore:             notBefore,
		NotAfter:              wholeSecond(notAfter),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		// RFC 5280, 4.2.1.10. It constrains only names of the listed kinds, so all addresses are excluded as well.
		PermittedDNSDomainsCritical: true,
		PermittedDNSDomains:         []string{dnsName},
		ExcludedIPRanges: []*net.IPNet{
			{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
			{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)},
		},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	defer clear(keyDER)
	return parseAuthority(
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
		dnsName)
}

// parseAuthority decodes a CA, and verifies that its only permitted DNS name is the webhook's, and that API servers
// accept what it signs. It does not check the time.
func parseAuthority(certPEM, keyPEM []byte, dnsName string) (*authority, error) {
	if len(certPEM) == 0 || len(keyPEM) == 0 {
		return nil, errNoCA
	}
	both, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, err
	}
	key, ok := both.PrivateKey.(*ecdsa.PrivateKey)
	ca := both.Leaf
	switch {
	case !ok || key.Curve != elliptic.P256():
		return nil, errors.New("the CA's key is not ECDSA P-256")
	case !constrained(ca, dnsName):
		return nil, fmt.Errorf("the CA is for the names %q; want %q", ca.PermittedDNSDomains, dnsName)
	}
	a := &authority{cert: ca, key: key, certPEM: certPEM, keyPEM: keyPEM}
	trial, err := a.sign(dnsName, ca.NotAfter)
	if err != nil {
		return nil, err
	}
	at := clocks{api: ca.NotBefore, local: ca.NotBefore}
	if _, err := trial.verify([]*x509.Certificate{ca}, dnsName, at); err != nil {
		return nil, fmt.Errorf("API servers would reject certificates of the CA: %w", err)
	}
	return a, nil
}

// constrained reports whether a certificate is a CA that can sign DNS names for dnsName only.
func constrained(c *x509.Certificate, dnsName string) bool {
	return c.IsCA && slices.Equal(c.PermittedDNSDomains, []string{dnsName})
}

// sign creates a key, which exists only in memory, and a serving certificate. Its validity begins with the CA's.
func (a *authority) sign(dnsName string, notAfter time.Time) (*pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "gmsa-webhook"},
		DNSNames:              []string{dnsName},
		NotBefore:             a.cert.NotBefore,
		NotAfter:              notAfter,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &pair{
		leaf:   leaf,
		issuer: a.cert,
		tls:    &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf},
	}, nil
}

// wholeSecond rounds up, because certificates have a resolution of one second.
func wholeSecond(t time.Time) time.Time { return t.Truncate(time.Second).Add(time.Second) }
