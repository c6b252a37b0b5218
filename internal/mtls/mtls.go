// Package mtls defines how the Account Provider and the plugin verify each other, for both sides: TLS 1.3, and a
// certificate that chains to the account's CA, has only the key usage of its side, and has only the account's name. It
// does not use the machine's trust store, and no check can be disabled.
package mtls

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/credential"
)

// MaxClockSkew is how far NotBefore can be in the future: the clock of the issuer can differ from the host's clock.
const MaxClockSkew = 10 * time.Minute

// PeerError is the error for a peer whose certificate is not valid for the account.
type PeerError struct {
	Account credential.Reference
	Err     error
}

func (e *PeerError) Error() string {
	return fmt.Sprintf("the peer's certificate is not valid for account %s: %v", e.Account, e.Err)
}
func (e *PeerError) Unwrap() error { return e.Err }

// ServerConfig returns the configuration of the provider. ca, cert and key are PEM.
func ServerConfig(ref credential.Reference, ca, cert, key []byte) (*tls.Config, error) {
	return config(ref, ca, cert, key, x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth)
}

// ClientConfig returns the configuration of the plugin. ca, cert and key are PEM.
func ClientConfig(ref credential.Reference, ca, cert, key []byte) (*tls.Config, error) {
	return config(ref, ca, cert, key, x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth)
}

func config(ref credential.Reference, ca, cert, key []byte, own, peer x509.ExtKeyUsage) (*tls.Config, error) {
	roots, err := parseCA(ca)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("certificate and key of account %s: %w", ref, err)
	}
	// Verify the own certificate as the peer does, so that the side that has an invalid one reports it.
	chain, err := parseChain(pair.Certificate)
	if err != nil {
		return nil, fmt.Errorf("certificate of account %s: %w", ref, err)
	}
	if err := verify(ref, roots, chain, own, time.Now()); err != nil {
		return nil, fmt.Errorf("certificate of account %s is not valid: %w", ref, err)
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{pair},
		ServerName:   ref.CertificateName(),
		// VerifyConnection below replaces the check of crypto/tls. It runs on both sides, on every connection, and is
		// stricter, except for MaxClockSkew: it also binds the client certificate to the account.
		InsecureSkipVerify: true,
		ClientAuth:         tls.RequireAnyClientCert,
		VerifyConnection: func(state tls.ConnectionState) error {
			if err := verify(ref, roots, state.PeerCertificates, peer, time.Now()); err != nil {
				return &PeerError{ref, err}
			}
			return nil
		},
		// The plugin reuses connections and needs no session resumption, which could extend the use of an old
		// certificate.
		SessionTicketsDisabled: true,
	}, nil
}

// verify checks a chain, leaf first, for one key usage.
func verify(ref credential.Reference, roots *x509.CertPool, chain []*x509.Certificate, usage x509.ExtKeyUsage,
	now time.Time) error {
	if len(chain) == 0 {
		return errors.New("the peer sent no certificate")
	}
	leaf := chain[0]
	if key, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		return errors.New("the key is not ECDSA P-256")
	}
	if len(leaf.ExtKeyUsage) != 1 || leaf.ExtKeyUsage[0] != usage || len(leaf.UnknownExtKeyUsage) > 0 {
		return fmt.Errorf("the extended key usage is not only %s", usageName(usage))
	}
	if err := CheckName(leaf, ref); err != nil {
		return err
	}
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	if early := leaf.NotBefore.Sub(now); early > 0 && early <= MaxClockSkew {
		now = leaf.NotBefore
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: intermediates,
		KeyUsages:     []x509.ExtKeyUsage{usage},
		DNSName:       ref.CertificateName(),
		CurrentTime:   now,
	})
	return err
}

// subjectAltName is the extension with the names of a certificate (RFC 5280, 4.2.1.6).
var subjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// CheckName checks that the certificate has exactly one subject alternative name, which is the account's DNS name. One
// CA can issue the certificates of several accounts. There, a wildcard or a second name would give the holder access to
// another account. Names of every type count, also those that package x509 ignores.
func CheckName(leaf *x509.Certificate, ref credential.Reference) error {
	var names []asn1.RawValue
	for _, e := range leaf.Extensions {
		if !e.Id.Equal(subjectAltName) {
			continue
		}
		if _, err := asn1.Unmarshal(e.Value, &names); err != nil {
			return fmt.Errorf("subject alternative names: %w", err)
		}
	}
	name := ref.CertificateName()
	if len(names) != 1 || len(leaf.DNSNames) != 1 || leaf.DNSNames[0] != name {
		return fmt.Errorf("it has %d subject alternative names (DNS names: %q); it must have exactly one, the DNS "+
			"name %s", len(names), leaf.DNSNames, name)
	}
	return nil
}

func usageName(usage x509.ExtKeyUsage) string {
	if usage == x509.ExtKeyUsageServerAuth {
		return "server authentication"
	}
	return "client authentication"
}

func parseCA(ca []byte) (*x509.CertPool, error) {
	pool, n := x509.NewCertPool(), 0
	for rest := ca; ; n++ {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("CA certificate: %w", err)
		}
		pool.AddCert(cert)
	}
	if n == 0 {
		return nil, errors.New("CA certificate: no PEM block found")
	}
	return pool, nil
}

func parseChain(der [][]byte) ([]*x509.Certificate, error) {
	chain := make([]*x509.Certificate, len(der))
	for i, d := range der {
		c, err := x509.ParseCertificate(d)
		if err != nil {
			return nil, err
		}
		chain[i] = c
	}
	return chain, nil
}
