// Package directory is an Active Directory client for an impersonation account. It finds domain controllers, binds with
// the account's password, reads the domain, a gMSA and its managed password, and gets a Kerberos ticket as the gMSA.
// ccg.exe takes the same steps with the credentials that the plugin returns.
//
// Each failure is an Error with one of the Causes. The package does not log. It reads no machine configuration such as
// /etc/krb5.conf, except that the system's resolver is the default.
//
// Passwords in memory: callers pass them as credential.Password, and the package does not keep them after the call.
// During the call, the Kerberos key derivation and the LDAP library copy them into strings. These copies remain until
// the Go runtime reuses the memory. A Session contains session keys and no password.
package directory

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"
)

// Config selects the domain and the connection.
type Config struct {
	Domain    string         // DNS name of the domain
	Servers   []string       // host names or addresses, in the order to try; empty: from the SRV record
	DNSServer string         // address or address:port of the DNS server; "": the system's
	Security  Security       // protection of the connection; "": Auto
	RootCAs   *x509.CertPool // for LDAPS and StartTLS; nil: the system's
	Timeout   time.Duration  // of one exchange: a connection, or a request and its response; 0: 5 s

	ports map[string]string // for tests: the ports of a fake instead of 88, 389 and 636, which need privileges
}

// Security is the protection of an LDAP connection. A password is never sent over an unprotected connection.
type Security string

const (
	// Auto is Kerberos first. If Kerberos is unavailable or its answer is imprecise, it is LDAPS, then StartTLS.
	Auto Security = "auto"
	// Kerberos is port 389 with SASL GSSAPI, signed and sealed. It also needs port 88, but no certificate.
	Kerberos Security = "kerberos"
	// LDAPS is port 636 with a simple bind. The certificate must contain the server's name from Servers or DNS.
	LDAPS Security = "ldaps"
	// StartTLS is port 389 with TLS before a simple bind. The certificate must meet the same condition as for LDAPS.
	StartTLS Security = "starttls"
)

// ParseSecurity parses user input; "" is Auto.
func ParseSecurity(s string) (Security, error) {
	switch security := Security(strings.ToLower(s)); security {
	case "":
		return Auto, nil
	case Auto, Kerberos, LDAPS, StartTLS:
		return security, nil
	}
	return "", fmt.Errorf("LDAP protection %.20q is unknown: use auto, kerberos, ldaps or starttls", s)
}

// complete validates the configuration and sets defaults.
func (c Config) complete() (Config, error) {
	c.Domain = strings.TrimSuffix(c.Domain, ".")
	if c.Domain == "" || len(c.Domain) > 253 || strings.ContainsAny(c.Domain, " \t\r\n\x00/\\@:") {
		return c, DNSNotFound.of(fmt.Sprintf("domain %.80q", c.Domain), "", errors.New("this is not a valid DNS name"))
	}
	var err error
	if c.Security, err = ParseSecurity(string(c.Security)); err != nil {
		return c, Unexpected.of("domain "+c.Domain, "", err)
	}
	if c.Timeout <= 0 {
		c.Timeout = 5 * time.Second
	}
	if c.DNSServer != "" {
		if _, _, err := net.SplitHostPort(c.DNSServer); err != nil {
			c.DNSServer = net.JoinHostPort(strings.Trim(c.DNSServer, "[]"), "53")
		}
	}
	return c, nil
}

// realm returns the Kerberos realm of the domain: its DNS name in upper case ([MS-KILE] 3.1.1).
func (c Config) realm() string { return strings.ToUpper(c.Domain) }

// exchange limits ctx to the timeout of one exchange.
func (c Config) exchange(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, c.Timeout)
}
