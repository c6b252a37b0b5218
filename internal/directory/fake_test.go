package directory

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	ber "github.com/go-asn1-ber/asn1-ber"
	"github.com/go-ldap/ldap/v3"

	"github.com/ccgrkc/ccgrkc/internal/credential"
)

// fakeDC is an LDAP server whose errors a test selects. It is a fake because a real domain controller does not truncate
// its responses, send one byte per second or have a different forest for each test. The suite lab/suites/ad tests with
// a real one.
type fakeDC struct {
	answer answers
	ports  map[string]string
	roots  *x509.CertPool

	mu       sync.Mutex
	requests []string // in the order of arrival
	filter   string   // of the last search for accounts
}

const fakeDomain = "corp.example.test"

// outsideHost is a host outside the domain. The fake has a valid certificate for it, as the owner of the host would
// have.
const outsideHost = "dc.outside.test"

// answers contains the functions that answer a request, by kind of request: root, bind, domain, partitions, accounts,
// starttls.
type answers map[string]func(c net.Conn, id int64)

func newFakeDC(t *testing.T, answer answers) *fakeDC {
	t.Helper()
	const nc = "DC=corp,DC=example,DC=test"
	f := &fakeDC{answer: answers{
		"bind":     result(ldap.ApplicationBindResponse, 0, ""),
		"root":     entries(rootEntry(nc, nc)),
		"starttls": result(ldap.ApplicationExtendedResponse, 0, ""),
		"domain":   entries(entry{nc, attributes{"objectSid": {sidOf(232)}, "objectGUID": {"0123456789abcdef"}}}),
		"partitions": entries(
			crossRef("CORP,CN=Partitions,CN=Configuration,"+nc, nc, fakeDomain)),
		"accounts": entries(),
	}, ports: map[string]string{}}
	for request, a := range answer {
		f.answer[request] = a
	}
	certificate, roots := newCertificate(t, fakeDomain, "127.0.0.1", outsideHost)
	f.roots = roots
	for port, wrap := range map[string]func(net.Conn) net.Conn{
		"389": func(c net.Conn) net.Conn { return c },
		"636": func(c net.Conn) net.Conn {
			return tls.Server(c, &tls.Config{Certificates: []tls.Certificate{certificate}})
		},
	} {
		_, f.ports[port] = listen(t, func(c net.Conn) { f.serve(wrap(c), &certificate) })
	}
	_, f.ports["88"] = listen(t, func(c net.Conn) {})
	return f
}

// listen serves connections on a free port until the test ends. The cleanup waits for them.
func listen(t *testing.T, serve func(c net.Conn)) (address, port string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = true
			mu.Unlock()
			all.Go(func() {
				defer func() { _ = c.Close() }()
				serve(c)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		all.Wait()
	})
	_, port, _ = net.SplitHostPort(l.Addr().String())
	return l.Addr().String(), port
}

func (f *fakeDC) serve(c net.Conn, certificate *tls.Certificate) {
	for {
		request, err := ber.ReadPacket(c)
		if err != nil || len(request.Children) < 2 {
			return
		}
		id, _ := request.Children[0].Value.(int64)
		operation := request.Children[1]
		kind := "accounts"
		switch operation.Tag {
		case ldap.ApplicationUnbindRequest:
			return
		case ldap.ApplicationBindRequest:
			kind = "bind"
		case ldap.ApplicationExtendedRequest:
			kind = "starttls"
		case ldap.ApplicationSearchRequest:
			base, _ := operation.Children[0].Value.(string)
			scope, _ := operation.Children[1].Value.(int64)
			switch {
			case base == "":
				kind = "root"
			case strings.HasPrefix(base, "CN=Partitions,"):
				kind = "partitions"
			case scope == ldap.ScopeBaseObject:
				kind = "domain"
			default:
				filter, _ := ldap.DecompileFilter(operation.Children[6])
				f.mu.Lock()
				f.filter = filter
				f.mu.Unlock()
			}
		}
		f.mu.Lock()
		f.requests = append(f.requests, kind)
		f.mu.Unlock()
		f.answer[kind](c, id)
		if kind == "starttls" {
			c = tls.Server(c, &tls.Config{Certificates: []tls.Certificate{*certificate}})
		}
	}
}

func (f *fakeDC) received() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(f.requests, " ")
}

func (f *fakeDC) config() Config {
	return Config{
		Domain:   fakeDomain,
		Servers:  []string{"127.0.0.1"},
		Security: LDAPS,
		RootCAs:  f.roots,
		Timeout:  time.Second,
		ports:    f.ports,
	}
}

func reader() credential.Credential {
	return credential.Credential{
		DomainName: fakeDomain,
		Username:   "reader",
		Password:   credential.NewPassword([]byte("m4rker-password")),
	}
}

func (f *fakeDC) bind(t *testing.T) *Session {
	t.Helper()
	s, err := Bind(t.Context(), f.config(), reader())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

type attributes map[string][]string

type entry struct {
	dn         string
	attributes attributes
}

func rootEntry(domain, forest string) entry {
	return entry{"", attributes{
		"dnsHostName":                {"dc1." + fakeDomain},
		"defaultNamingContext":       {domain},
		"rootDomainNamingContext":    {forest},
		"configurationNamingContext": {"CN=Configuration," + forest},
		"currentTime":                {time.Now().UTC().Format("20060102150405.0Z")},
	}}
}

// crossRef returns the crossRef object of a domain. Its NetBIOS name is the first part of name.
func crossRef(name, domain, dnsRoot string) entry {
	netBIOS, _, _ := strings.Cut(name, ",")
	return entry{"CN=" + name, attributes{
		"nCName":      {domain},
		"nETBIOSName": {netBIOS},
		"dnsRoot":     {dnsRoot},
	}}
}

func gmsaEntry(more attributes) entry {
	e := entry{"CN=web01,CN=Managed Service Accounts,DC=corp,DC=example,DC=test", attributes{
		"sAMAccountName":     {"web01$"},
		"objectClass":        {"top", gmsaClass},
		"userAccountControl": {"4096"},
		"objectSid":          {sidOf(80)},
	}}
	for k, v := range more {
		e.attributes[k] = v
	}
	return e
}

// sidOf returns a SID of the domain S-1-5-21-1-2-3. Its relative identifier is 1024 + rid.
func sidOf(rid byte) string {
	return "\x01\x05\x00\x00\x00\x00\x00\x05\x15\x00\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00\x03\x00\x00\x00" +
		string([]byte{rid, 4, 0, 0})
}

func text(s string) *ber.Packet {
	return ber.NewString(ber.ClassUniversal, ber.TypePrimitive, ber.TagOctetString, s, "")
}

func envelope(id int64, operation *ber.Packet) []byte {
	p := ber.Encode(ber.ClassUniversal, ber.TypeConstructed, ber.TagSequence, nil, "")
	p.AppendChild(ber.NewInteger(ber.ClassUniversal, ber.TypePrimitive, ber.TagInteger, id, ""))
	p.AppendChild(operation)
	return p.Bytes()
}

func resultMessage(id int64, tag ber.Tag, code int64, diagnostic string, more ...*ber.Packet) []byte {
	r := ber.Encode(ber.ClassApplication, ber.TypeConstructed, tag, nil, "")
	r.AppendChild(ber.NewInteger(ber.ClassUniversal, ber.TypePrimitive, ber.TagEnumerated, code, ""))
	r.AppendChild(text(""))
	r.AppendChild(text(diagnostic))
	for _, m := range more {
		r.AppendChild(m)
	}
	return envelope(id, r)
}

func result(tag ber.Tag, code int64, diagnostic string, more ...*ber.Packet) func(net.Conn, int64) {
	return func(c net.Conn, id int64) { _, _ = c.Write(resultMessage(id, tag, code, diagnostic, more...)) }
}

func entryMessage(id int64, e entry) []byte {
	list := ber.Encode(ber.ClassUniversal, ber.TypeConstructed, ber.TagSequence, nil, "")
	for name, values := range e.attributes {
		one := ber.Encode(ber.ClassUniversal, ber.TypeConstructed, ber.TagSequence, nil, "")
		one.AppendChild(text(name))
		set := ber.Encode(ber.ClassUniversal, ber.TypeConstructed, ber.TagSet, nil, "")
		for _, v := range values {
			set.AppendChild(text(v))
		}
		one.AppendChild(set)
		list.AppendChild(one)
	}
	p := ber.Encode(ber.ClassApplication, ber.TypeConstructed, ldap.ApplicationSearchResultEntry, nil, "")
	p.AppendChild(text(e.dn))
	p.AppendChild(list)
	return envelope(id, p)
}

func entries(all ...entry) func(net.Conn, int64) {
	return func(c net.Conn, id int64) {
		for _, e := range all {
			_, _ = c.Write(entryMessage(id, e))
		}
		_, _ = c.Write(resultMessage(id, ldap.ApplicationSearchResultDone, 0, ""))
	}
}

func searchResult(code int64, diagnostic string) func(net.Conn, int64) {
	return result(ldap.ApplicationSearchResultDone, code, diagnostic)
}

// newCertificate creates a self-signed certificate for names and addresses, and a pool that contains it as CA.
func newCertificate(t *testing.T, names ...string) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: names[0]},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		IsCA:                  true,
		BasicConstraintsValid: true,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(parsed)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

// slowly sends one byte every 50 ms. This corresponds to one byte per second with all timeouts 20 times as long.
func slowly(message func(id int64) []byte) func(net.Conn, int64) {
	return func(c net.Conn, id int64) {
		for _, b := range message(id) {
			if _, err := c.Write([]byte{b}); err != nil {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
}

// silent reads and never answers.
func silent(c net.Conn, _ int64) { _, _ = io.Copy(io.Discard, c) }
