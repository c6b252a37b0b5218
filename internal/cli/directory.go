package cli

import (
	"crypto/x509"
	"net"
	"os"
	"strings"

	"github.com/ccgrkc/ccgrkc/internal/directory"
	"github.com/ccgrkc/ccgrkc/internal/shell"
)

// directoryConfig returns how to reach a domain, by the flags of addDirectoryFlags.
func (g *globals) directoryConfig(domain string) (directory.Config, error) {
	security, err := directory.ParseSecurity(g.ad.security)
	if err != nil {
		return directory.Config{}, usagef("--ldap: %w", err)
	}
	if g.ad.timeout <= 0 {
		return directory.Config{}, usagef("--timeout %s: use a time greater than 0, such as 5s", g.ad.timeout)
	}
	for _, server := range g.ad.servers {
		if _, port, err := net.SplitHostPort(server); err == nil {
			return directory.Config{}, usagef("--dc %s: leave out the port %s; --ldap says which is used", server, port)
		}
	}
	if s := g.ad.dnsServer; s != "" && net.ParseIP(strings.Trim(s, "[]")) == nil {
		if host, _, err := net.SplitHostPort(s); err != nil || net.ParseIP(host) == nil {
			return directory.Config{}, usagef("--dns-server %s: write its address, with or without a port: 10.0.0.10 or 10.0.0.10:53", s)
		}
	}
	c := directory.Config{
		Domain:    domain,
		Servers:   g.ad.servers,
		DNSServer: g.ad.dnsServer,
		Security:  security,
		Timeout:   g.ad.timeout,
	}
	if g.ad.caFile != "" {
		pem, err := os.ReadFile(g.ad.caFile)
		if err != nil {
			return directory.Config{}, usagef("--ldap-ca: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return directory.Config{}, usagef("--ldap-ca %s: there is no certificate in it; use the CA's certificate in PEM (BEGIN CERTIFICATE)", g.ad.caFile)
		}
	}
	return c, nil
}

// directoryError adds the remedy to an error of package directory, and ends gmsactl with its code.
func directoryError(err error) error {
	if _, coded := asFailure(err); coded {
		return err
	}
	code := exitCode(err)
	if cause := directory.CauseOf(err); cause != nil {
		return &failure{code, withRemedy{err, cause.Remedy}}
	}
	return &failure{code, err}
}

// withRemedy is an error and, on a line of its own, what to do about it.
type withRemedy struct {
	error
	remedy string
}

func (e withRemedy) Error() string { return e.error.Error() + "\n" + e.remedy }
func (e withRemedy) Unwrap() error { return e.error }

// enableCommand is the PowerShell command that enables a gMSA.
func enableCommand(gmsa string) string {
	if !shell.IsPlain(gmsa) {
		gmsa = "<gmsa>"
	}
	return "Enable-ADAccount " + gmsa + "$"
}
