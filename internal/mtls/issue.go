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

// Material is what one generation of certificates consists of, as PEM.
type Material struct {
	CA                    []byte
	ServerCert, ServerKey []byte
	ClientCert, ClientKey []byte    // none of a server that asks for no certificate
	NotAfter              time.Time // when the first of them expires
}

// Backdate is how long before now a certificate of Issue begins, for hosts whose clock is behind.
const Backdate = time.Hour

// Issue makes a CA, has it sign one certificate for each side, and forgets its key: nobody, this process included, can ever
// sign a third.
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

// IssueServer makes a CA, has it sign one server certificate for dnsName, and forgets its key as Issue does. holder is the
// certificate's common name: who holds it, for people.
func IssueServer(holder, dnsName string, now time.Time, lifetime time.Duration) (*Material, error) {
	ca, m, err := newAuthority(now, lifetime)
	if err != nil {
		return nil, err
	}
	m.ServerCert, m.ServerKey, err = ca.sign(holder, dnsName, x509.ExtKeyUsageServerAuth)
	if err != nil {
		return nil, err
	}
	return m, nil
}

// authority is a CA while it has its key.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// newAuthority makes a CA, and the Material that it is the CA of.
func newAuthority(now time.Time, lifetime time.Duration) (*authority, *Material, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a CA: %w", err)
	}
	ca := &x509.Certificate{
		SerialNumber: nil, // CreateCertificate makes a random one
		Subject:      pkix.Name{CommonName: "CCGRKC " + rand.Text()},
		NotBefore:    now.Add(-Backdate),
		// Certificates count in whole seconds; rounding down could give back an expired one.
		NotAfter: now.Add(lifetime).Truncate(time.Second).Add(time.Second),
		IsCA:     true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, &key.PublicKey, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make a CA: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, fmt.Errorf("make a CA: %w", err)
	}
	return &authority{cert, key}, &Material{CA: encode("CERTIFICATE", der), NotAfter: ca.NotAfter}, nil
}

// sign makes a key and a certificate for it that lasts as long as the CA's.
func (a *authority) sign(holder, dnsName string, usage x509.ExtKeyUsage) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a certificate for %s: %w", usageName(usage), err)
	}
	leaf := &x509.Certificate{
		Subject:   pkix.Name{CommonName: holder},
		DNSNames:  []string{dnsName},
		NotBefore: a.cert.NotBefore, NotAfter: a.cert.NotAfter,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{usage},
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return nil, nil, fmt.Errorf("make a certificate for %s: %w", usageName(usage), err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("make a certificate for %s: %w", usageName(usage), err)
	}
	defer clear(keyDER)
	return encode("CERTIFICATE", der), encode("PRIVATE KEY", keyDER), nil
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
