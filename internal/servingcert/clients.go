package servingcert

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
)

// Clients are those who may connect: whoever has a certificate of a CA in File, with Name as its common name unless Name is
// empty. An API server shows one only if its AdmissionConfiguration tells it to.
type Clients struct{ CAFile, Name string }

// Demand returns base with a demand for such a certificate. The file is read again for each connection, and must be good now.
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
		one.SessionTicketsDisabled = true // a resumed session would not be checked against the file of now
		one.VerifyConnection = func(state tls.ConnectionState) error {
			if is := state.PeerCertificates[0].Subject.CommonName; c.Name != "" && is != c.Name {
				return fmt.Errorf("client %q is not %q", is, c.Name)
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
		return nil, fmt.Errorf("CA of clients: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("CA of clients: %s holds no certificate", c.CAFile)
	}
	return pool, nil
}
