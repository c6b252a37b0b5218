// Package dccheck tells what this host can reach of an Active Directory domain: its domain controllers by DNS, the TCP ports
// that a gMSA needs of each of them, and this host's clock, to be compared with theirs. It binds nowhere and sends nothing
// but DNS questions; whether the controllers let anybody in is package directory's to tell.
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
)

// Ports are the TCP ports that a gMSA needs of a domain controller: DNS, Kerberos, LDAP, LDAPS and Active Directory Web
// Services.
var Ports = []int{53, 88, 389, 636, 9389}

// State is what became of a connection.
type State string

const (
	Open     State = "open"
	Closed   State = "closed"   // refused: the host is there, and nothing listens
	Filtered State = "filtered" // no answer, or a router's refusal: usually a firewall
)

// Options say what to look at.
type Options struct {
	Domain    string        // DNS name
	DNSServer string        // address[:port] of the server to ask; "": the system's
	Timeout   time.Duration // of one DNS question and of one connection; 0: DefaultTimeout

	ports []int // of tests, instead of Ports
}

// DefaultTimeout is longer than Windows takes to report a refused connection: it tries three times, half a second apart.
const DefaultTimeout = 3 * time.Second

// MaxServers is how many domain controllers are tried. A domain may have hundreds in its one DNS answer.
const MaxServers = 16

// maxAddresses is how many addresses of one domain controller are tried.
const maxAddresses = 4

// Report is what was found.
type Report struct {
	Domain string `json:"domain"`
	// Time is this host's clock when the check began: UTC, RFC 3339 with milliseconds.
	Time string `json:"time"`
	// Found is how many domain controllers DNS names. Servers has the first MaxServers of them, in the order to try them.
	Found   int      `json:"found"`
	Servers []Server `json:"servers"`
	// Error is why there are no servers.
	Error string `json:"error,omitempty"`
}

// Server is one domain controller. Ports has the port's number as its key. Of several addresses, it is the one that answers best.
type Server struct {
	Host    string          `json:"host"`
	Address string          `json:"address,omitempty"`
	Ports   map[string]Port `json:"ports,omitempty"`
	Error   string          `json:"error,omitempty"` // why it has no address
}

// Port is one TCP port.
type Port struct {
	State State   `json:"state"`
	Ms    float64 `json:"ms"` // until it answered, or was given up
}

const clockFormat = "2006-01-02T15:04:05.000Z07:00"

// Check looks. What it cannot find stands in the report.
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
	name := "_ldap._tcp.dc._msdcs." + strings.TrimSuffix(o.Domain, ".") + "."
	dns, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	_, records, err := resolver.LookupSRV(dns, "", "", name)
	if err != nil && len(records) == 0 { // with some records in it, the error is about others
		r.Error = fmt.Sprintf("the SRV record %s is not found: %v; domain controllers register it, so this host does not ask a DNS server "+
			"that knows the domain, or the domain's name is wrong", strings.TrimSuffix(name, "."), err)
		return r
	}
	r.Found = len(records)
	records = records[:min(len(records), MaxServers)]
	r.Servers = make([]Server, len(records))
	var wg sync.WaitGroup
	for i, record := range records {
		wg.Go(func() { r.Servers[i] = checkServer(ctx, o, resolver, strings.TrimSuffix(record.Target, ".")) })
	}
	wg.Wait()
	return r
}

// newResolver returns the system's resolver, or one that asks a server of one's own.
func newResolver(server string) (*net.Resolver, error) {
	if server == "" {
		return net.DefaultResolver, nil
	}
	if net.ParseIP(server) != nil {
		server = net.JoinHostPort(server, "53")
	}
	host, port, err := net.SplitHostPort(server)
	if err != nil || net.ParseIP(host) == nil || port == "" {
		return nil, fmt.Errorf("DNS server %q is not an address with or without a port; write for example 10.0.0.10 or 10.0.0.10:53", server)
	}
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, network, server)
		if err != nil && strings.HasPrefix(network, "udp") {
			// Wine 8 lacks an option that Go sets on every UDP socket. DNS servers of a domain answer over TCP as well.
			return d.DialContext(ctx, "tcp", server)
		}
		return conn, err
	}}, nil
}

func checkServer(ctx context.Context, o Options, resolver *net.Resolver, host string) Server {
	s := Server{Host: host}
	dns, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	addresses, err := resolver.LookupIPAddr(dns, host)
	if err != nil {
		s.Error = fmt.Sprintf("the address of domain controller %s is not found: %v", host, err)
		return s
	}
	// A domain controller may register addresses that lead nowhere from here, an IPv6 address above all. They are tried at the
	// same time: one that does not answer takes the whole timeout.
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

// inOrder is IPv4 first: many a network has IPv6 addresses and no way between them.
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

// rank tells how well an address answers: by its open ports and, where none is open, by those that say so.
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

// Clock is the host's clock when the check began, the zero time if Time cannot be read.
func (r Report) Clock() time.Time {
	t, err := time.Parse(clockFormat, r.Time)
	if err != nil {
		return time.Time{}
	}
	return t
}

// Reachable tells whether a domain controller was found that answers on the ports of Kerberos and LDAP.
func (r Report) Reachable() bool {
	for _, s := range r.Servers {
		if s.Ports["88"].State == Open && (s.Ports["389"].State == Open || s.Ports["636"].State == Open) {
			return true
		}
	}
	return false
}

// WriteText writes the report as a table for people.
func (r Report) WriteText(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if len(r.Servers) > 0 {
		fmt.Fprint(table, "DOMAIN CONTROLLER\tADDRESS")
		for _, port := range Ports {
			fmt.Fprintf(table, "\t%d", port)
		}
		fmt.Fprintln(table)
	}
	for _, s := range r.Servers {
		if s.Error != "" {
			fmt.Fprintf(table, "%s\t%s\n", s.Host, s.Error)
			continue
		}
		fmt.Fprintf(table, "%s\t%s", s.Host, s.Address)
		for _, port := range Ports {
			p := s.Ports[strconv.Itoa(port)]
			fmt.Fprintf(table, "\t%s %.0f ms", p.State, p.Ms)
		}
		fmt.Fprintln(table)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	var b strings.Builder
	if r.Error != "" {
		fmt.Fprintln(&b, r.Error)
	}
	if r.Found > len(r.Servers) {
		fmt.Fprintf(&b, "DNS names %d domain controllers; the first %d were tried\n", r.Found, len(r.Servers))
	}
	fmt.Fprintln(&b, "this host's clock:", r.Time)
	_, err := io.WriteString(w, b.String())
	return err
}
