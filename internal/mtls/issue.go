package mtls

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/credential"
)

// Material is one generation of certificates and keys, as PEM.
type Material struct {
	CA                    []byte
	ServerCert, ServerKey []byte
	ClientCert, ClientKey []byte
	NotAfter              time.Time // the earliest expiry
}

// Backdate is how far NotBefore is in the past, for hosts whose clock is behind.
const Backdate = time.Hour

// Issue creates a CA and signs one certificate for each side. It does not keep the CA's key, so no other certificate
// can be signed.
func Issue(ref credential.Reference, now time.Time, lifetime time.Duration) (*Material, error) {
	ca, m, err := newAuthority(now, lifetime)
	if err != nil {
		return nil, err
	}
	const holder = "gmsa-account-provider"
	if m.ServerCert, m.ServerKey, err = ca.sign(holder, ref.CertificateName(), x509.ExtKeyUsageServerAuth); err != nil {
		return nil, err
	}
	if m.ClientCert, m.ClientKey, err = ca.sign(holder, ref.CertificateName(), x509.ExtKeyUsageClientAuth); err != nil {
		return nil, err
	}
	return m, nil
}

// authority is a CA with its key.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// newAuthority creates a CA, and a Material with it.
func newAuthority(now time.Time, lifetime time.Duration) (*authority, *Material, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("create a CA: %w", err)
	}
	ca := &x509.Certificate{
		SerialNumber: nil, // CreateCertificate generates one
		Subject:      pkix.Name{CommonName: "CCGRKC " + rand.Text()},
		NotBefore:    now.Add(-Backdate),
		// Certificates have a resolution of one second. Rounding down could return an expired one.
		NotAfter:              now.Add(lifetime).Truncate(time.Second).Add(time.Second),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, &key.PublicKey, key)
	if err != nil {
		return nil, nil, fmt.Errorf("create a CA: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, fmt.Errorf("create a CA: %w", err)
	}
	return &authority{cert, key}, &Material{CA: encode("CERTIFICATE", der), NotAfter: ca.NotAfter}, nil
}

// sign creates a key and a certificate for it. The certificate expires with the CA's.
func (a *authority) sign(holder, dnsName string, usage x509.ExtKeyUsage) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("create a certificate for %s: %w", usageName(usage), err)
	}
	leaf := &x509.Certificate{
		Subject:               pkix.Name{CommonName: holder},
		DNSNames:              []string{dnsName},
		NotBefore:             a.cert.NotBefore,
		NotAfter:              a.cert.NotAfter,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{usage},
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return nil, nil, fmt.Errorf("create a certificate for %s: %w", usageName(usage), err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("create a certificate for %s: %w", usageName(usage), err)
	}
	defer clear(keyDER)
	return encode("CERTIFICATE", der), encode("PRIVATE KEY", keyDER), nil
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
