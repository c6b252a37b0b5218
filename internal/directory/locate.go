package directory

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"

	"github.com/ccgrkc/ccgrkc/internal/directory/srv"
)

// Locate returns the domain controllers in the order to try: Config.Servers or, if there are none, the first
// srv.MaxServers hosts of the domain's SRV record.
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
	hosts, err := srv.DomainControllers(ctx, srv.Resolver(c.DNSServer), c.Domain)
	if err != nil {
		return nil, c.dnsError(err)
	}
	return hosts[:min(len(hosts), srv.MaxServers)], nil
}

// dnsError converts the error of a DNS query. The text of a net.DNSError contains the system's DNS server, even if the
// query went to another one.
func (c Config) dnsError(err error) *Error {
	cause, server := DNSNotFound, c.DNSServer
	if e, ok := errors.AsType[*net.DNSError](err); ok {
		if !e.IsNotFound {
			cause = DNSUnreachable
		}
		if server == "" {
			server = e.Server
		}
		err = fmt.Errorf("%s: %s", sanitize(e.Name), sanitize(e.Err))
	}
	return cause.of("domain "+c.Domain, server, err)
}

// dial connects to a port of a server, given as host name or address. Each error is an Error.
func (c Config) dial(ctx context.Context, server, port string) (net.Conn, error) {
	ctx, cancel := c.exchange(ctx)
	defer cancel()
	to := port
	if other := c.ports[port]; other != "" {
		to = other
	}
	dialer := net.Dialer{Resolver: srv.Resolver(c.DNSServer)}
	conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(strings.Trim(server, "[]"), to))
	if err == nil {
		return conn, nil
	}
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		return nil, c.dnsError(err)
	}
	what := "nothing listens on TCP port " + port
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() || ctx.Err() != nil {
		what = fmt.Sprintf("TCP port %s did not answer within %s: the server is down or a firewall drops the packets",
			port, c.Timeout)
	} else if !isRefused(err) {
		what = "TCP port " + port + ": " + err.Error()
	}
	return nil, DCUnreachable.of("domain "+c.Domain, server, &dialError{port, what})
}

// dialError contains the port, so that the caller does not try the same port again.
type dialError struct{ port, what string }

func (e *dialError) Error() string { return e.what }

// isRefused reports whether the host refused the connection. 10061 is Windows' WSAECONNREFUSED.
func isRefused(err error) bool {
	e, ok := errors.AsType[syscall.Errno](err)
	return ok && (e == syscall.ECONNREFUSED || e == 10061)
}
