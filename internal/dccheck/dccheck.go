// Package dccheck checks the connectivity of this host to an Active Directory domain: the DNS look-up of its domain
// controllers and the TCP ports that a gMSA needs. It also reports this host's clock. It sends DNS queries and no other
// data; package directory authenticates.
package dccheck

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/directory/srv"
	"github.com/ccgrkc/ccgrkc/internal/escape"
)

// Ports are the TCP ports of a domain controller that a gMSA needs: DNS, Kerberos, LDAP, LDAPS and Active Directory Web
// Services.
var Ports = []int{53, 88, 389, 636, 9389}

// State is the result of a connection attempt.
type State string

const (
	Open     State = "open"
	Closed   State = "closed"   // refused: the host is up, and nothing listens
	Filtered State = "filtered" // no answer, or rejected by a router: usually a firewall
)

// Options select the domain.
type Options struct {
	Domain    string        // DNS name
	DNSServer string        // address[:port]; "": the system's
	Timeout   time.Duration // for one DNS query and for one connection; 0: DefaultTimeout

	ports []int // for tests, instead of Ports
}

// DefaultTimeout is longer than Windows needs to report a refused connection: it tries three times, half a second
// apart.
const DefaultTimeout = 3 * time.Second

// maxAddresses is the number of addresses to try for one domain controller.
const maxAddresses = 4

// Report is the result of Check.
type Report struct {
	Domain string `json:"domain"`
	// Time is this host's clock at the start of the check: UTC, RFC 3339 with milliseconds.
	Time string `json:"time"`
	// Found is the number of domain controllers in DNS. Servers contains the first srv.MaxServers, in the order to try
	// them.
	Found   int      `json:"found"`
	Servers []Server `json:"servers"`
	// Error is the reason why there are no servers.
	Error string `json:"error,omitempty"`
}

// Server is one domain controller. The keys of Ports are port numbers. If the host has several addresses, Address is
// the one with the most open ports.
type Server struct {
	Host    string          `json:"host"`
	Address string          `json:"address,omitempty"`
	Ports   map[string]Port `json:"ports,omitempty"`
	Error   string          `json:"error,omitempty"` // the reason why there is no address
}

// Port is one TCP port.
type Port struct {
	State State   `json:"state"`
	Ms    float64 `json:"ms"` // until the answer, or the timeout
}

const clockFormat = "2006-01-02T15:04:05.000Z07:00"

// Check runs the check. The report contains the errors.
func Check(ctx context.Context, o Options) Report {
	if o.Timeout <= 0 {
		o.Timeout = DefaultTimeout
	}
	if o.ports == nil {
		o.ports = Ports
	}
	r := Report{Domain: o.Domain, Time: time.Now().UTC().Format(clockFormat), Servers: []Server{}}
	resolver, err := newResolver(o.DNSServer)
	if err != nil {
		r.Error = err.Error()
		return r
	}
	dns, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	hosts, err := srv.DomainControllers(dns, resolver, o.Domain)
	if err != nil {
		r.Error = fmt.Sprintf("no domain controllers found with SRV record %s: %v; check the domain's name, and that this "+
			"host uses a DNS server that knows the domain", srv.Name(o.Domain), err)
		return r
	}
	r.Found = len(hosts)
	hosts = hosts[:min(len(hosts), srv.MaxServers)]
	r.Servers = make([]Server, len(hosts))
	var wg sync.WaitGroup
	for i, host := range hosts {
		wg.Go(func() { r.Servers[i] = checkServer(ctx, o, resolver, host) })
	}
	wg.Wait()
	return r
}

// newResolver returns the system's resolver, or one that queries the given server.
func newResolver(server string) (*net.Resolver, error) {
	if server == "" {
		return srv.Resolver(""), nil
	}
	if net.ParseIP(server) != nil {
		server = net.JoinHostPort(server, "53")
	}
	host, port, err := net.SplitHostPort(server)
	if err != nil || net.ParseIP(host) == nil || port == "" {
		return nil, fmt.Errorf("DNS server %q is not an IP address with or without a port; "+
			"use for example 10.0.0.10 or 10.0.0.10:53", server)
	}
	return srv.Resolver(server), nil
}

func checkServer(ctx context.Context, o Options, resolver *net.Resolver, host string) Server {
	s := Server{Host: host}
	dns, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	addresses, err := resolver.LookupIPAddr(dns, host)
	if err != nil {
		s.Error = fmt.Sprintf("domain controller %s has no address: %v", host, err)
		return s
	}
	// A domain controller can register addresses that are unreachable from here, often an IPv6 address. Each takes the
	// whole timeout, so all addresses are tried at the same time.
	list := inOrder(addresses)
	list = list[:min(len(list), maxAddresses)]
	ports := make([]map[string]Port, len(list))
	var wg sync.WaitGroup
	for i, address := range list {
		wg.Go(func() { ports[i] = checkPorts(ctx, o, address) })
	}
	wg.Wait()
	best := 0
	for i := range ports {
		if rank(ports[i]) > rank(ports[best]) {
			best = i
		}
	}
	s.Address, s.Ports = list[best], ports[best]
	return s
}

// inOrder returns the IPv4 addresses first: many networks have IPv6 addresses without routes between them.
func inOrder(addresses []net.IPAddr) []string {
	var four, six []string
	for _, a := range addresses {
		if a.IP.To4() != nil {
			four = append(four, a.String())
		} else {
			six = append(six, a.String())
		}
	}
	return append(four, six...)
}

// rank orders addresses by the number of open ports, then by the number of closed ports.
func rank(ports map[string]Port) int {
	n := 0
	for _, p := range ports {
		switch p.State {
		case Open:
			n += len(ports) + 1
		case Closed:
			n++
		}
	}
	return n
}

func checkPorts(ctx context.Context, o Options, address string) map[string]Port {
	ports := map[string]Port{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, port := range o.ports {
		wg.Go(func() {
			p := checkPort(ctx, net.JoinHostPort(address, strconv.Itoa(port)), o.Timeout)
			mu.Lock()
			defer mu.Unlock()
			ports[strconv.Itoa(port)] = p
		})
	}
	wg.Wait()
	return ports
}

func checkPort(ctx context.Context, address string, timeout time.Duration) Port {
	begin := time.Now()
	d := net.Dialer{Timeout: timeout}
	conn, err := d.DialContext(ctx, "tcp", address)
	p := Port{State: Open, Ms: float64(time.Since(begin).Microseconds()) / 1000}
	switch {
	case err == nil:
		_ = conn.Close()
	case errors.Is(err, connectionRefused):
		p.State = Closed
	default:
		p.State = Filtered
	}
	return p
}

// Clock returns Time, or the zero time if Time is invalid.
func (r Report) Clock() time.Time {
	t, err := time.Parse(clockFormat, r.Time)
	if err != nil {
		return time.Time{}
	}
	return t
}

// Reachable reports whether a domain controller has an open Kerberos port and an open LDAP or LDAPS port.
func (r Report) Reachable() bool {
	for _, s := range r.Servers {
		if s.Ports["88"].State == Open && (s.Ports["389"].State == Open || s.Ports["636"].State == Open) {
			return true
		}
	}
	return false
}

// WriteText writes the report as a table.
func (r Report) WriteText(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if len(r.Servers) > 0 {
		escape.Fprintf(table, "DOMAIN CONTROLLER\tADDRESS")
		for _, port := range Ports {
			escape.Fprintf(table, "\t%d", port)
		}
		escape.Fprintf(table, "\n")
	}
	for _, s := range r.Servers {
		if s.Error != "" {
			escape.Fprintf(table, "%s\t%s\n", s.Host, s.Error)
			continue
		}
		escape.Fprintf(table, "%s\t%s", s.Host, s.Address)
		for _, port := range Ports {
			p := s.Ports[strconv.Itoa(port)]
			escape.Fprintf(table, "\t%s %.0f ms", p.State, p.Ms)
		}
		escape.Fprintf(table, "\n")
	}
	if err := table.Flush(); err != nil {
		return err
	}
	var b strings.Builder
	if r.Error != "" {
		escape.Fprintf(&b, "%s\n", r.Error)
	}
	if r.Found > len(r.Servers) {
		escape.Fprintf(&b, "DNS has %d domain controllers; the first %d were checked\n", r.Found, len(r.Servers))
	}
	escape.Fprintf(&b, "Clock of this host: %s\n", r.Time)
	_, err := io.WriteString(w, b.String())
	return err
}
