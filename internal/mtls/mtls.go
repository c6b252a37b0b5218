// Package mtls is the rule by which the Account Provider and the plugin know each other, in one place for both sides:
// TLS 1.3, a certificate that chains to exactly one CA, made for its side's use, and that carries the account's name.
// Nothing here reads the machine's trust store, and nothing here can be turned off.
package mtls

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/credential"
)

// MaxClockSkew is how far in the future a certificate's beginning may lie: the clocks of those who make the two
// certificates, and of the host that checks them, are set by different people.
const MaxClockSkew = 10 * time.Minute

// PeerError says why the other side's certificate is not that of the account.
type PeerError struct {
	Account credential.Reference
	Err     error
}

func (e *PeerError) Error() string {
	return fmt.Sprintf("the certificate that the other side shows is not account %s's: %v", e.Account, e.Err)
}
func (e *PeerError) Unwrap() error { return e.Err }

// ServerConfig is the provider's side. ca, cert and key are PEM.
func ServerConfig(ref credential.Reference, ca, cert, key []byte) (*tls.Config, error) {
	return config(ref, ca, cert, key, x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth)
}

// ClientConfig is the plugin's side. ca, cert and key are PEM.
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
	// One's own certificate is held to the rule of the other side, so that a wrong one is found where it was made and not
	// as a refused call.
	chain, err := parseChain(pair.Certificate)
	if err != nil {
		return nil, fmt.Errorf("certificate of account %s: %w", ref, err)
	}
	if err := verify(ref, roots, chain, own, time.Now()); err != nil {
		return nil, fmt.Errorf("certificate of account %s cannot be used: %w", ref, err)
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{pair},
		ServerName:   ref.CertificateName(),
		// crypto/tls's own check is replaced, not left out: VerifyConnection below runs on both sides, on every
		// connection, and is stricter (it also binds a client's certificate to the account) but for MaxClockSkew.
		InsecureSkipVerify: true,
		ClientAuth:         tls.RequireAnyClientCert,
		VerifyConnection: func(state tls.ConnectionState) error {
			if err := verify(ref, roots, state.PeerCertificates, peer, time.Now()); err != nil {
				return &PeerError{ref, err}
			}
			return nil
		},
		// Connections are kept instead of resumed: one way less by which an old certificate could go on to count.
		SessionTicketsDisabled: true,
	}, nil
}

// verify checks a chain, leaf first, for one use.
func verify(ref credential.Reference, roots *x509.CertPool, chain []*x509.Certificate, usage x509.ExtKeyUsage, now time.Time) error {
	if len(chain) == 0 {
		return errors.New("there is none")
	}
	leaf := chain[0]
	if key, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		return errors.New("its key is not ECDSA P-256")
	}
	if len(leaf.ExtKeyUsage) != 1 || leaf.ExtKeyUsage[0] != usage || len(leaf.UnknownExtKeyUsage) > 0 {
		return fmt.Errorf("it is not for %s alone", usageName(usage))
	}
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	if early := leaf.NotBefore.Sub(now); early > 0 && early <= MaxClockSkew {
		now = leaf.NotBefore
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{usage},
		DNSName: ref.CertificateName(), CurrentTime: now,
	})
	return err
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
		return nil, errors.New("CA certificate: no PEM block in it")
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
