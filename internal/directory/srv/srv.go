// Package srv finds the domain controllers of an Active Directory domain in DNS. It imports only the standard library:
// ccg-plugin-installer links it, and must not link LDAP and Kerberos.
package srv

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"
)

// MaxServers is the number of domain controllers to try. A domain can have hundreds, and each unreachable one takes a
// timeout.
const MaxServers = 16

// Resolver returns a resolver that queries the DNS server at address:port, or the system's resolver if server is "".
func Resolver(server string) *net.Resolver {
	if server == "" {
		return net.DefaultResolver
	}
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, network, server)
		if err != nil && strings.HasPrefix(network, "udp") {
			// Wine 8 lacks an option that Go sets on each UDP socket. A domain's DNS servers also support TCP.
			conn, err = d.DialContext(ctx, "tcp", server)
		}
		if err == nil { // the resolver observes the deadline of ctx, but not its cancellation
			context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
		}
		return conn, err
	}}
}

// Name returns the name of the SRV record that Windows' own locator uses ([MS-ADTS] 6.3.6).
func Name(domain string) string {
	return "_ldap._tcp.dc._msdcs." + strings.TrimSuffix(domain, ".")
}

// DomainControllers returns the host names of a domain's domain controllers, by priority and at random by weight.
// Without an error there is at least one.
func DomainControllers(ctx context.Context, r *net.Resolver, domain string) ([]string, error) {
	// The trailing dot keeps the resolver from trying the machine's search domains.
	_, records, err := r.LookupSRV(ctx, "", "", Name(domain)+".")
	var hosts []string
	for _, record := range records { // records can come with an error about other, damaged records
		if host := strings.TrimSuffix(record.Target, "."); host != "" { // "." means: no such service (RFC 2782)
			hosts = append(hosts, host)
		}
	}
	switch {
	case len(hosts) > 0:
		return hosts, nil
	case err != nil:
		return nil, err
	}
	return nil, fmt.Errorf("the SRV record %s has no host", Name(domain))
}
