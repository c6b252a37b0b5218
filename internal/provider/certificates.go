package provider

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/mtls"
)

// DefaultLifetime is the lifetime of embedded certificates.
const DefaultLifetime = 24 * time.Hour

// Certificates is the source of each generation's certificates.
type Certificates interface {
	// next returns the certificates for a new generation.
	next(credential.Reference) (*mtls.Material, error)
	// renewIn returns the time from now until the replacement of a generation that expires at notAfter.
	renewIn(notAfter time.Time) time.Duration
	// due reports whether to replace a generation that expires at notAfter now, before renewIn has passed.
	due(notAfter time.Time) bool
}

// Embedded issues the certificates of each generation itself, with a new CA for each.
type Embedded struct{ Lifetime time.Duration }

func (e Embedded) next(ref credential.Reference) (*mtls.Material, error) {
	return mtls.Issue(ref, time.Now(), e.Lifetime)
}

// renewIn leaves a third of the lifetime for failed renewals.
func (Embedded) renewIn(notAfter time.Time) time.Duration {
	return max(time.Until(notAfter)*2/3, time.Second/2)
}

// due compares with the wall clock: it can jump, and timers stop while a machine is suspended.
func (e Embedded) due(notAfter time.Time) bool {
	left := time.Until(notAfter)
	return left < e.Lifetime/3-watchInterval || left > e.Lifetime+mtls.Backdate
}

// FromSecrets reads certificates from two mounted Secrets of type kubernetes.io/tls, each with tls.crt, tls.key and the
// same ca.crt, as cert-manager creates them.
type FromSecrets struct {
	ServerDir, ClientDir string

	read [sha256.Size]byte // hash of the files that next returned, to detect a change
}

func (f *FromSecrets) next(ref credential.Reference) (*mtls.Material, error) {
	files, sum, err := f.files()
	if err != nil {
		return nil, err
	}
	f.read = sum
	m := &mtls.Material{
		ServerCert: files[0],
		ServerKey:  files[1],
		CA:         files[2],
		ClientCert: files[3],
		ClientKey:  files[4],
	}
	if string(files[2]) != string(files[5]) {
		return nil, fmt.Errorf("certificates of account %s: ca.crt differs between %s and %s; one CA must sign both",
			ref, f.ServerDir, f.ClientDir)
	}
	// listen checks the server certificate. The client certificate is checked here, so that this provider logs the
	// error and not only the plugin.
	if _, err := mtls.ClientConfig(ref, m.CA, m.ClientCert, m.ClientKey); err != nil {
		return nil, fmt.Errorf("client certificate in %s: %w", f.ClientDir, err)
	}
	for _, cert := range [][]byte{m.ServerCert, m.ClientCert} {
		notAfter, err := expiry(cert)
		if err != nil {
			return nil, fmt.Errorf("certificates of account %s: %w", ref, err)
		}
		if m.NotAfter.IsZero() || notAfter.Before(m.NotAfter) {
			m.NotAfter = notAfter
		}
	}
	return m, nil
}

// renewIn never expires: the issuer of the Secrets renews the certificates, and due detects it.
func (*FromSecrets) renewIn(time.Time) time.Duration { return math.MaxInt64 }

// due reports a change of the files, but not while one of them is missing or unreadable: the kubelet replaces the two
// mounts one after the other.
func (f *FromSecrets) due(time.Time) bool {
	_, sum, err := f.files()
	return err == nil && sum != f.read
}

func (f *FromSecrets) files() (files [6][]byte, sum [sha256.Size]byte, err error) {
	hash := sha256.New()
	i := 0
	for _, dir := range []string{f.ServerDir, f.ClientDir} {
		for _, name := range []string{"tls.crt", "tls.key", "ca.crt"} {
			b, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				return files, sum, fmt.Errorf("certificates from Secrets: %w", err)
			}
			files[i] = b
			i++
			one := sha256.Sum256(b)
			hash.Write(one[:])
		}
	}
	return files, [sha256.Size]byte(hash.Sum(nil)), nil
}

func expiry(cert []byte) (time.Time, error) {
	block, _ := pem.Decode(cert)
	if block == nil {
		return time.Time{}, errors.New("no PEM block in a certificate")
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return time.Time{}, err
	}
	return c.NotAfter, nil
}
