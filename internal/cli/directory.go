package cli

import (
	"crypto/x509"
	"net"
	"os"
	"strings"

	"github.com/ccgrkc/ccgrkc/internal/directory"
	"github.com/ccgrkc/ccgrkc/internal/escape"
	"github.com/ccgrkc/ccgrkc/internal/shell"
)

// directoryConfig returns the connection settings for a domain, from the flags of addDirectoryFlags.
func (g *globals) directoryConfig(domain string) (directory.Config, error) {
	security, err := directory.ParseSecurity(g.ad.security)
	if err != nil {
		return directory.Config{}, usagef("--ldap: %w", err)
	}
	if g.ad.timeout <= 0 {
		return directory.Config{}, usagef("--timeout %s: use a duration greater than 0, such as 5s", g.ad.timeout)
	}
	for _, server := range g.ad.servers {
		if _, port, err := net.SplitHostPort(server); err == nil {
			return directory.Config{}, usagef("--dc %s: remove the port %s; --ldap selects the port", server, port)
		}
	}
	if s := g.ad.dnsServer; s != "" && net.ParseIP(strings.Trim(s, "[]")) == nil {
		if host, _, err := net.SplitHostPort(s); err != nil || net.ParseIP(host) == nil {
			return directory.Config{},
				usagef("--dns-server %s: use an IP address, with or without a port, such as 10.0.0.10:53", s)
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
			return directory.Config{}, usagef(
				"--ldap-ca %s: the file contains no certificate; use the CA certificate in PEM format (BEGIN "+
					"CERTIFICATE)", g.ad.caFile)
		}
	}
	return c, nil
}

// directoryError adds the remedy and the exit code to an error of package directory.
func directoryError(err error) error {
	if _, coded := asExitError(err); coded {
		return err
	}
	code := exitCode(err)
	if cause := directory.CauseOf(err); cause != nil {
		return &exitError{code, escape.Errorf("%w\n%s", err, cause.Remedy)}
	}
	return &exitError{code, err}
}

// enableCommand returns the PowerShell command that enables a gMSA.
func enableCommand(gmsa string) string {
	if !shell.IsPlain(gmsa) {
		gmsa = "<gmsa>"
	}
	return "Enable-ADAccount " + gmsa + "$"
}
