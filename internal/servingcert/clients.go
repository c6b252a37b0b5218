package servingcert

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
)

// Clients are the clients that can connect: those with a certificate from a CA in CAFile and, unless Name is empty, the
// common name Name. An API server presents a client certificate only if its AdmissionConfiguration sets one.
type Clients struct{ CAFile, Name string }

// Demand returns base with required client certificates. CAFile must be valid now, and is read again for each
// connection.
func (c Clients) Demand(base *tls.Config) (*tls.Config, error) {
	if _, err := c.pool(); err != nil {
		return nil, err
	}
	config := base.Clone()
	config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		pool, err := c.pool()
		if err != nil {
			return nil, err
		}
		one := base.Clone()
		one.ClientAuth, one.ClientCAs = tls.RequireAndVerifyClientCert, pool
		one.SessionTicketsDisabled = true // a resumed session would not be checked against the current file
		one.VerifyConnection = func(state tls.ConnectionState) error {
			if is := state.PeerCertificates[0].Subject.CommonName; c.Name != "" && is != c.Name {
				return fmt.Errorf("client certificate has common name %q; want %q", is, c.Name)
			}
			return nil
		}
		return one, nil
	}
	return config, nil
}

func (c Clients) pool() (*x509.CertPool, error) {
	pem, err := os.ReadFile(c.CAFile)
	if err != nil {
		return nil, fmt.Errorf("client CA: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("client CA: %s contains no certificate", c.CAFile)
	}
	return pool, nil
}
