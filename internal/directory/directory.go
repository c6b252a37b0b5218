// Package directory is Active Directory as an impersonation account sees it: it finds domain controllers, binds with the
// account's password, reads the domain and a group Managed Service Account, takes the managed password and gets a Kerberos
// ticket with it. That is what ccg.exe does with what the plugin gives it.
//
// Whatever a domain controller answers becomes an Error with one of the Causes. The package logs nothing and reads no
// configuration of the machine, such as /etc/krb5.conf, except for the system's resolver where none is given.
//
// What remains of a password in memory. Passwords come as credential.Password and are not kept beyond the call that
// needs them. Within that call the key derivation of Kerberos and the LDAP library make copies of their own, as strings,
// which stay in memory until the Go runtime uses it again. A Session holds session keys and no password.
package directory

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"strings"
	"time"
)

// Config says which domain, and how to get there.
type Config struct {
	Domain    string         // DNS name of the domain
	Servers   []string       // domain controllers, host names or addresses, in the order to try; none: by SRV record
	DNSServer string         // address or address:port of the DNS server to ask; "": the system's
	Security  Security       // how the connection is protected; "": Auto
	RootCAs   *x509.CertPool // for LDAPS and StartTLS; nil: the system's
	Timeout   time.Duration  // of one exchange: a connection, a question and its answer; 0: 5 s

	ports map[string]string // tests: where a fake listens in place of 88, 389, 636; it needs no privilege there
}

// Security is how an LDAP connection is protected. A password is never sent over a connection that is not.
type Security string

const (
	// Auto is Kerberos and, where Kerberos is not to be had or its answer is coarse, LDAPS and then StartTLS.
	Auto Security = "auto"
	// Kerberos is port 389 with SASL GSSAPI, signed and sealed. It needs port 88 too, and no certificate.
	Kerberos Security = "kerberos"
	// LDAPS is port 636 with a simple bind. The certificate must carry the server's name as it was given or found.
	LDAPS Security = "ldaps"
	// StartTLS is port 389 with TLS before a simple bind. The certificate is as for LDAPS.
	StartTLS Security = "starttls"
)

// ParseSecurity takes the word that a user writes; "" is Auto.
func ParseSecurity(s string) (Security, error) {
	switch security := Security(strings.ToLower(s)); security {
	case "":
		return Auto, nil
	case Auto, Kerberos, LDAPS, StartTLS:
		return security, nil
	}
	return "", fmt.Errorf("%.20q is no way to protect an LDAP connection: write auto, kerberos, ldaps or starttls", s)
}

// complete checks the configuration and fills in what was left out.
func (c Config) complete() (Config, error) {
	c.Domain = strings.TrimSuffix(c.Domain, ".")
	if c.Domain == "" || len(c.Domain) > 253 || strings.ContainsAny(c.Domain, " \t\r\n\x00/\\@:") {
		return c, DNSNotFound.of(fmt.Sprintf("domain %.80q", c.Domain), "", fmt.Errorf("this is not the DNS name of a domain"))
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

// realm is the Kerberos realm of an Active Directory domain: its DNS name in capitals ([MS-KILE] 3.1.1).
func (c Config) realm() string { return strings.ToUpper(c.Domain) }

// exchange limits ctx to the time of one exchange.
func (c Config) exchange(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, c.Timeout)
}
