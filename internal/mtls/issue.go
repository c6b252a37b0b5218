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
	ClientCert, ClientKey []byte
	NotAfter              time.Time // when the first of them expires
}

// Backdate is how long before now a certificate of Issue begins, for hosts whose clock is behind.
const Backdate = time.Hour

// Issue makes a CA, has it sign one certificate for each side, and forgets its key: nobody, this process included, can ever
// sign a third.
func Issue(ref credential.Reference, now time.Time, lifetime time.Duration) (*Material, error) {
	// Certificates count in whole seconds; rounding down could give back an expired one.
	m := &Material{NotAfter: now.Add(lifetime).Truncate(time.Second).Add(time.Second)}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a CA: %w", err)
	}
	ca := &x509.Certificate{
		SerialNumber: nil, // CreateCertificate makes a random one
		Subject:      pkix.Name{CommonName: "CCGRKC " + rand.Text()},
		NotBefore:    now.Add(-Backdate), NotAfter: m.NotAfter,
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		return nil, fmt.Errorf("make a CA: %w", err)
	}
	m.CA = encode("CERTIFICATE", caDER)
	parent, err := x509.ParseCertificate(caDER)
	if err != nil {
		return nil, fmt.Errorf("make a CA: %w", err)
	}
	for _, side := range []struct {
		usage     x509.ExtKeyUsage
		cert, key *[]byte
	}{{x509.ExtKeyUsageServerAuth, &m.ServerCert, &m.ServerKey}, {x509.ExtKeyUsageClientAuth, &m.ClientCert, &m.ClientKey}} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("make a certificate for %s: %w", usageName(side.usage), err)
		}
		leaf := &x509.Certificate{
			Subject:   pkix.Name{CommonName: "gmsa-account-provider"},
			DNSNames:  []string{ref.CertificateName()},
			NotBefore: parent.NotBefore, NotAfter: m.NotAfter,
			BasicConstraintsValid: true,
			KeyUsage:              x509.KeyUsageDigitalSignature,
			ExtKeyUsage:           []x509.ExtKeyUsage{side.usage},
		}
		der, err := x509.CreateCertificate(rand.Reader, leaf, parent, &key.PublicKey, caKey)
		if err != nil {
			return nil, fmt.Errorf("make a certificate for %s: %w", usageName(side.usage), err)
		}
		keyDER, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, fmt.Errorf("make a certificate for %s: %w", usageName(side.usage), err)
		}
		*side.cert, *side.key = encode("CERTIFICATE", der), encode("PRIVATE KEY", keyDER)
		clear(keyDER)
	}
	return m, nil
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
