package dccheck

import (
	"encoding/json"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/ccgrkc/ccgrkc/internal/directory/srv"
	"github.com/ccgrkc/ccgrkc/internal/escape/hostile"
)

// dnsServer answers on loopback with the SRV records of one domain. The lab's Active Directory has a real DNS server;
// this one can return no domain controllers, hundreds of them, or some that do not exist.
func dnsServer(t *testing.T, domain string, hosts map[string][]net.IP) string {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		packet := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(packet)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(packet[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			q := m.Questions[0]
			m.Response, m.Additionals = true, nil
			header := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 60}
			name := strings.TrimSuffix(q.Name.String(), ".")
			switch {
			case q.Type == dnsmessage.TypeSRV && name == "_ldap._tcp.dc._msdcs."+domain:
				for host := range hosts {
					body := &dnsmessage.SRVResource{Port: 389, Target: dnsmessage.MustNewName(host + ".")}
					m.Answers = append(m.Answers, dnsmessage.Resource{Header: header, Body: body})
				}
			case hosts[name] != nil && q.Type == dnsmessage.TypeA:
				for _, ip := range hosts[name] {
					body := &dnsmessage.AResource{A: [4]byte(ip.To4())}
					m.Answers = append(m.Answers, dnsmessage.Resource{Header: header, Body: body})
				}
			case hosts[name] != nil:
			default:
				m.RCode = dnsmessage.RCodeNameError
			}
			if reply, err := m.Pack(); err == nil {
				_, _ = conn.WriteTo(reply, from)
			}
		}
	}()
	return conn.LocalAddr().String()
}

// ports returns an open and a closed port on loopback.
func ports(t *testing.T) (open, closed int) {
	t.Helper()
	var got []int
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if got = append(got, l.Addr().(*net.TCPAddr).Port); len(got) == 1 {
			t.Cleanup(func() { l.Close() })
		} else {
			l.Close()
		}
	}
	return got[0], got[1]
}

func TestOpenAndClosedPortsAreDistinguished(t *testing.T) {
	t.Parallel()
	open, closed := ports(t)
	server := dnsServer(t, "corp.example.com", map[string][]net.IP{"dc1.corp.example.com": {net.IPv4(127, 0, 0, 1)}})
	begin := time.Now()
	r := Check(t.Context(), Options{Domain: "corp.example.com", DNSServer: server, ports: []int{open, closed}})
	if r.Error != "" || len(r.Servers) != 1 {
		t.Fatalf("%+v", r)
	}
	s := r.Servers[0]
	if s.Host != "dc1.corp.example.com" || s.Address != "127.0.0.1" {
		t.Errorf("found %+v", s)
	}
	if got := s.Ports[strconv.Itoa(open)].State; got != Open {
		t.Errorf("the open port is %s", got)
	}
	if got := s.Ports[strconv.Itoa(closed)].State; got != Closed {
		t.Errorf("the closed port is %s", got)
	}
	if c := r.Clock(); c.Before(begin.Add(-time.Second)) || c.After(time.Now().Add(time.Second)) || c.Location() != time.UTC {
		t.Errorf("the clock is %v, %q", c, r.Time)
	}
}

func TestADomainUnknownToDNSIsReported(t *testing.T) {
	t.Parallel()
	server := dnsServer(t, "corp.example.com", nil)
	r := Check(t.Context(), Options{Domain: "other.example.net", DNSServer: server})
	if !strings.Contains(r.Error, "_ldap._tcp.dc._msdcs.other.example.net") || len(r.Servers) != 0 {
		t.Errorf("%+v", r)
	}
	if b, _ := json.Marshal(r); !strings.Contains(string(b), `"servers":[]`) {
		t.Errorf("JSON without a list of servers: %s", b)
	}
}

func TestADNSServerThatDoesNotAnswerIsReported(t *testing.T) {
	t.Parallel()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0") // receives each query and answers none
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	begin := time.Now()
	r := Check(t.Context(), Options{
		Domain:    "corp.example.com",
		DNSServer: conn.LocalAddr().String(),
		Timeout:   300 * time.Millisecond,
	})
	if r.Error == "" || time.Since(begin) > 2*time.Second {
		t.Errorf("after %v: %+v", time.Since(begin), r)
	}
}

func TestADomainControllerWithoutAddressDoesNotHideTheOthers(t *testing.T) {
	t.Parallel()
	open, _ := ports(t)
	hosts := map[string][]net.IP{"dc1.corp.example.com": {net.IPv4(127, 0, 0, 1)}, "gone.corp.example.com": nil}
	server := dnsServer(t, "corp.example.com", hosts)
	r := Check(t.Context(), Options{Domain: "corp.example.com", DNSServer: server, ports: []int{open}})
	if len(r.Servers) != 2 {
		t.Fatalf("%+v", r)
	}
	for _, s := range r.Servers {
		if s.Host == "gone.corp.example.com" && (s.Error == "" || s.Ports != nil) {
			t.Errorf("%+v", s)
		}
		if s.Host == "dc1.corp.example.com" && s.Ports[strconv.Itoa(open)].State != Open {
			t.Errorf("%+v", s)
		}
	}
}

// The first address in DNS belongs to another host, or to none.
func TestTheAddressWithTheMostOpenPortsIsReported(t *testing.T) {
	t.Parallel()
	open, _ := ports(t)
	for _, other := range []net.IP{
		net.IPv4(127, 77, 255, 1), // refuses connections
		net.IPv4(240, 0, 0, 1),    // not assigned to any host (RFC 1112 4)
	} {
		hosts := map[string][]net.IP{"dc1.corp.example.com": {other, net.IPv4(127, 0, 0, 1)}}
		r := Check(t.Context(), Options{
			Domain:    "corp.example.com",
			DNSServer: dnsServer(t, "corp.example.com", hosts),
			Timeout:   500 * time.Millisecond,
			ports:     []int{open},
		})
		if len(r.Servers) != 1 || r.Servers[0].Address != "127.0.0.1" ||
			r.Servers[0].Ports[strconv.Itoa(open)].State != Open {
			t.Errorf("with %s before it: %+v", other, r)
		}
	}
}

func TestIPv4AddressesComeFirst(t *testing.T) {
	t.Parallel()
	six, four := net.IPAddr{IP: net.ParseIP("fe80::1"), Zone: "eth0"}, net.IPAddr{IP: net.IPv4(10, 0, 0, 1)}
	got := inOrder([]net.IPAddr{six, four, {IP: net.ParseIP("2001:db8::1")}, {IP: net.IPv4(10, 0, 0, 2)}})
	if !slices.Equal(got, []string{"10.0.0.1", "10.0.0.2", "fe80::1%eth0", "2001:db8::1"}) {
		t.Errorf("%q", got)
	}
}

func TestAnOpenPortOutranksAllClosedPorts(t *testing.T) {
	t.Parallel()
	of := func(states ...State) map[string]Port {
		ports := map[string]Port{}
		for i, state := range states {
			ports[strconv.Itoa(i)] = Port{State: state}
		}
		return ports
	}
	better := []map[string]Port{
		of(Open, Open, Filtered),
		of(Open, Closed, Closed),
		of(Open, Filtered, Filtered),
		of(Closed, Closed, Closed),
		of(Closed, Filtered, Filtered),
		of(Filtered, Filtered, Filtered),
	}
	for i := range better[1:] {
		if rank(better[i]) <= rank(better[i+1]) {
			t.Errorf("%v is not better than %v", better[i], better[i+1])
		}
	}
}

func TestTheNumberOfDomainControllersIsLimited(t *testing.T) {
	t.Parallel()
	open, _ := ports(t)
	hosts := map[string][]net.IP{}
	for i := range srv.MaxServers + 1 {
		hosts["d"+strconv.Itoa(i)+".x.example"] = []net.IP{net.IPv4(127, 0, 0, 1)}
	}
	r := Check(t.Context(), Options{Domain: "x.example", DNSServer: dnsServer(t, "x.example", hosts), ports: []int{open}})
	if r.Found != srv.MaxServers+1 || len(r.Servers) != srv.MaxServers {
		t.Errorf("found %d, checked %d: %s", r.Found, len(r.Servers), r.Error)
	}
}

func TestADNSServerMustBeAnAddress(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"dc1", "dc1:53", "10.0.0.1:", ":53", "10.0.0.1:53:53"} {
		if r := Check(t.Context(), Options{Domain: "corp.example.com", DNSServer: bad}); !strings.Contains(r.Error, "10.0.0.10:53") {
			t.Errorf("%q: %+v", bad, r)
		}
	}
	for _, good := range []string{"10.0.0.1", "10.0.0.1:5353", "::1", "[::1]:53"} {
		if _, err := newResolver(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
}

func TestReachableNeedsKerberosAndLDAPOnOneDomainController(t *testing.T) {
	t.Parallel()
	server := func(open ...string) Server {
		s := Server{Ports: map[string]Port{}}
		for _, p := range open {
			s.Ports[p] = Port{State: Open}
		}
		return s
	}
	for name, c := range map[string]struct {
		servers []Server
		want    bool
	}{
		"none":                     {nil, false},
		"Kerberos alone":           {[]Server{server("88")}, false},
		"LDAP":                     {[]Server{server("88", "389")}, true},
		"LDAPS":                    {[]Server{server("88", "636")}, true},
		"half of each":             {[]Server{server("88"), server("389")}, false},
		"the second":               {[]Server{server(), server("88", "389")}, true},
		"only web services, DNS":   {[]Server{server("53", "9389")}, false},
		"LDAP without a KDC":       {[]Server{server("389", "636")}, false},
		"the first has no address": {[]Server{{Error: "x"}, server("88", "636")}, true},
	} {
		if got := (Report{Servers: c.servers}).Reachable(); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestTheTextHasAColumnForEachPort(t *testing.T) {
	t.Parallel()
	s := Server{Host: "dc1.corp.example.com", Address: "10.0.0.1", Ports: map[string]Port{}}
	for _, p := range Ports {
		s.Ports[strconv.Itoa(p)] = Port{State: Open, Ms: 1}
	}
	s.Ports["9389"] = Port{State: Filtered, Ms: 3000}
	var b strings.Builder
	if err := (Report{Servers: []Server{s}, Found: 20, Time: "2026-01-02T03:04:05.678Z"}).WriteText(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"9389", "filtered 3000 ms", "dc1.corp.example.com", "20 domain controllers", "03:04:05.678Z"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
}

// Attack: a DNS server chooses the names of domain controllers, and the texts of errors contain them.
func TestNoNameInDNSControlsTheTerminal(t *testing.T) {
	for what, value := range hostile.Values("dc1") {
		r := Report{
			Domain:  value,
			Time:    value,
			Found:   3,
			Servers: []Server{{Host: value, Address: value}, {Host: value, Error: value}},
			Error:   value,
		}
		var text strings.Builder
		if err := r.WriteText(&text); err != nil {
			t.Fatal(err)
		}
		if err := hostile.Check(text.String()); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if n := strings.Count(text.String(), "\n"); n != 6 {
			t.Errorf("%s: %d lines, want 6:\n%s", what, n, text.String())
		}
	}
}
