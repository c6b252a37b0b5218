package directory

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"time"
)

// maxServers is how many of the domain controllers that DNS names are tried. A domain may have hundreds, and each that is
// dead takes a Timeout or two.
const maxServers = 16

// Locate returns the domain controllers in the order to try: Config.Servers as they are or, where none are given, the
// targets of the SRV record that Windows' own locator uses ([MS-ADTS] 6.3.6), by priority and at random by weight.
func Locate(ctx context.Context, c Config) (_ []string, err error) {
	defer func() { err = interrupted(ctx, err) }()
	if c, err = c.complete(); err != nil {
		return nil, err
	}
	return c.locate(ctx)
}

func (c Config) locate(ctx context.Context) ([]string, error) {
	if len(c.Servers) > 0 {
		return c.Servers, nil
	}
	ctx, cancel := c.exchange(ctx)
	defer cancel()
	// The dot at the end keeps the resolver from trying the machine's search domains.
	name := "_ldap._tcp.dc._msdcs." + c.Domain + "."
	_, records, err := c.resolver().LookupSRV(ctx, "", "", name)
	var hosts []string
	for _, r := range records { // records may come with an error, about others that are damaged
		if host := strings.TrimSuffix(r.Target, "."); host != "" { // "." means: no such service (RFC 2782)
			hosts = append(hosts, host)
		}
	}
	if len(hosts) > 0 {
		return hosts[:min(len(hosts), maxServers)], nil
	}
	if err == nil {
		err = fmt.Errorf("the SRV record %s names no host", name)
	}
	return nil, c.dnsError(err)
}

func (c Config) resolver() *net.Resolver {
	if c.DNSServer == "" {
		return net.DefaultResolver
	}
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, c.DNSServer)
		if err == nil { // the resolver heeds the deadline of ctx, not its end
			context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
		}
		return conn, err
	}}
}

// dnsError is an Error for a failed look-up. The text of net's own error names the system's DNS server, also where
// another was asked.
func (c Config) dnsError(err error) *Error {
	cause, server := DNSNotFound, c.DNSServer
	if e, ok := errors.AsType[*net.DNSError](err); ok {
		if !e.IsNotFound {
			cause = DNSUnreachable
		}
		if server == "" {
			server = e.Server
		}
		err = fmt.Errorf("%s: %s", said(e.Name), said(e.Err))
	}
	return cause.of("domain "+c.Domain, server, err)
}

// dial connects to a port of a server, which is a host name or an address. Its errors have a cause.
func (c Config) dial(ctx context.Context, server, port string) (net.Conn, error) {
	ctx, cancel := c.exchange(ctx)
	defer cancel()
	to := port
	if other := c.ports[port]; other != "" {
		to = other
	}
	conn, err := (&net.Dialer{Resolver: c.resolver()}).DialContext(ctx, "tcp", net.JoinHostPort(strings.Trim(server, "[]"), to))
	if err == nil {
		return conn, nil
	}
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		return nil, c.dnsError(err)
	}
	what := "nothing listens on TCP port " + port
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() || ctx.Err() != nil {
		what = fmt.Sprintf("TCP port %s did not answer within %s: the server is off, or a firewall drops the packets", port, c.Timeout)
	} else if !isRefused(err) {
		what = "TCP port " + port + ": " + err.Error()
	}
	return nil, DCUnreachable.of("domain "+c.Domain, server, &dialError{port, what})
}

// dialError tells the caller which port it was, so that it need not be tried again in another way.
type dialError struct{ port, what string }

func (e *dialError) Error() string { return e.what }

// isRefused tells whether the host answered that nothing listens. 10061 is Windows' WSAECONNREFUSED.
func isRefused(err error) bool {
	e, ok := errors.AsType[syscall.Errno](err)
	return ok && (e == syscall.ECONNREFUSED || e == 10061)
}
