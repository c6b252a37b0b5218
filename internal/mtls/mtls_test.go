package mtls

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/credential"
)

var (
	web  = credential.Reference{Namespace: "gmsa-system", Secret: "web-creds"}
	shop = credential.Reference{Namespace: "gmsa-system", Secret: "shop-creds"}
)

func issue(t *testing.T, ref credential.Reference) *Material {
	t.Helper()
	m, err := Issue(ref, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func server(t *testing.T, ref credential.Reference, m *Material) *tls.Config {
	t.Helper()
	c, err := ServerConfig(ref, m.CA, m.ServerCert, m.ServerKey)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func client(t *testing.T, ref credential.Reference, m *Material) *tls.Config {
	t.Helper()
	c, err := ClientConfig(ref, m.CA, m.ClientCert, m.ClientKey)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// connect runs one handshake and gives each side's error. got is how many bytes of the client's request the server
// read.
func connect(t *testing.T, srv, cli *tls.Config) (got int, serverErr, clientErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		raw, err := l.Accept()
		if err != nil {
			serverErr = err
			return
		}
		defer raw.Close()
		_ = raw.SetDeadline(time.Now().Add(10 * time.Second))
		c := tls.Server(raw, srv)
		if serverErr = c.Handshake(); serverErr != nil {
			return
		}
		got, _ = c.Read(make([]byte, 64))
		_, _ = c.Write([]byte("secret"))
	}()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(10 * time.Second))
	c := tls.Client(raw, cli)
	if clientErr = c.Handshake(); clientErr == nil {
		// In TLS 1.3, a client gets the rejection with its first read.
		_, _ = c.Write([]byte("request"))
		_, clientErr = c.Read(make([]byte, 64))
	}
	raw.Close()
	<-done
	return got, serverErr, clientErr
}

func TestBothSidesOfOneAccountConnect(t *testing.T) {
	m := issue(t, web)
	got, s, c := connect(t, server(t, web, m), client(t, web, m))
	if s != nil || c != nil || got == 0 {
		t.Errorf("server: %v, client: %v, %d bytes", s, c, got)
	}
}

// sharedCA is a CA outside both accounts, as certificates.mode "secrets" may have.
type sharedCA struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newSharedCA(t *testing.T) *sharedCA {
	t.Helper()
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	tmpl := &x509.Certificate{NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &sharedCA{t, cert, key}
}

func (ca *sharedCA) pem() []byte { return encode("CERTIFICATE", ca.cert.Raw) }

func (ca *sharedCA) sign(tmpl *x509.Certificate) (cert, key []byte) {
	ca.t.Helper()
	k, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	return ca.signKey(tmpl, &k.PublicKey, k)
}

func (ca *sharedCA) signKey(tmpl *x509.Certificate, public, private any) (cert, key []byte) {
	ca.t.Helper()
	if tmpl.NotAfter.IsZero() {
		tmpl.NotBefore, tmpl.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, public, ca.key)
	if err != nil {
		ca.t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		ca.t.Fatal(err)
	}
	return encode("CERTIFICATE", der), encode("PRIVATE KEY", keyDER)
}

func leaf(ref credential.Reference, usage ...x509.ExtKeyUsage) *x509.Certificate {
	return &x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: []string{ref.CertificateName()}, ExtKeyUsage: usage}
}

// raw is a TLS configuration of an attacker, without checks.
func raw(t *testing.T, cert, key []byte) *tls.Config {
	t.Helper()
	c := &tls.Config{InsecureSkipVerify: true, ClientAuth: tls.RequestClientCert}
	if cert != nil {
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c
}

func TestTheServerRejectsForeignClientCertificates(t *testing.T) {
	m, other, ca := issue(t, web), issue(t, web), newSharedCA(t)
	shopMaterial := issue(t, shop)
	selfCert, selfKey := newSharedCA(t).sign(leaf(web, x509.ExtKeyUsageClientAuth))
	for name, cli := range map[string]*tls.Config{
		"no certificate":               raw(t, nil, nil),
		"self-made certificate":        raw(t, selfCert, selfKey),
		"the server's own certificate": raw(t, m.ServerCert, m.ServerKey),
		"an earlier generation's":      raw(t, other.ClientCert, other.ClientKey),
		"another account's":            raw(t, shopMaterial.ClientCert, shopMaterial.ClientKey),
		"a certificate of the wrong root CA": raw(t, ca.pem(),
			func() []byte { k, _ := x509.MarshalPKCS8PrivateKey(ca.key); return encode("PRIVATE KEY", k) }()),
	} {
		got, s, c := connect(t, server(t, web, m), cli)
		if s == nil || c == nil || got > 0 {
			t.Errorf("%s: server: %v, client: %v, %d bytes", name, s, c, got)
		}
	}
	old := raw(t, m.ClientCert, m.ClientKey)
	old.MaxVersion = tls.VersionTLS12
	if _, s, c := connect(t, server(t, web, m), old); s == nil || c == nil {
		t.Error("TLS 1.2 was accepted")
	}
}

// Attack: another process listens on the port of a killed provider, with any certificate.
func TestTheClientSendsNothingToAForeignServer(t *testing.T) {
	m, other, shopMaterial := issue(t, web), issue(t, web), issue(t, shop)
	selfCert, selfKey := newSharedCA(t).sign(leaf(web, x509.ExtKeyUsageServerAuth))
	for name, srv := range map[string]*tls.Config{
		"self-made certificate":                       raw(t, selfCert, selfKey),
		"the client's certificate read from the disk": raw(t, m.ClientCert, m.ClientKey),
		"an earlier generation's":                     raw(t, other.ServerCert, other.ServerKey),
		"another account's":                           raw(t, shopMaterial.ServerCert, shopMaterial.ServerKey),
	} {
		got, s, c := connect(t, srv, client(t, web, m))
		var peer *PeerError
		if c == nil || got > 0 || !errors.As(c, &peer) {
			t.Errorf("%s: server: %v, client: %v, %d bytes", name, s, c, got)
		}
	}
}

// One CA, such as a cluster's, can issue the certificates of two accounts. Neither gives access to the other.
func TestASharedCAGivesNoAccessToTheOtherAccount(t *testing.T) {
	ca := newSharedCA(t)
	webServer, webServerKey := ca.sign(leaf(web, x509.ExtKeyUsageServerAuth))
	webClient, webClientKey := ca.sign(leaf(web, x509.ExtKeyUsageClientAuth))
	shopServer, shopServerKey := ca.sign(leaf(shop, x509.ExtKeyUsageServerAuth))
	shopClient, shopClientKey := ca.sign(leaf(shop, x509.ExtKeyUsageClientAuth))
	config := func(f func(credential.Reference, []byte, []byte, []byte) (*tls.Config, error), ref credential.Reference,
		cert, key []byte) *tls.Config {
		c, err := f(ref, ca.pem(), cert, key)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	ws, wc := config(ServerConfig, web, webServer, webServerKey), config(ClientConfig, web, webClient, webClientKey)
	if _, s, c := connect(t, ws, wc); s != nil || c != nil {
		t.Fatalf("the same account: %v, %v", s, c)
	}
	if got, s, _ := connect(t, ws, raw(t, shopClient, shopClientKey)); s == nil || got > 0 {
		t.Error("the other account's client was let in")
	}
	if got, _, c := connect(t, raw(t, shopServer, shopServerKey), wc); c == nil || got > 0 {
		t.Error("the other account's server was believed")
	}
	if _, err := ServerConfig(web, ca.pem(), shopServer, shopServerKey); err == nil {
		t.Error("a server starts with the other account's certificate")
	}
}

// Attack: under a shared CA, a tenant gets a certificate that names its own account and others. Neither side accepts
// such a certificate as its own or from the peer.
func TestACertificateHasExactlyOneName(t *testing.T) {
	ca := newSharedCA(t)
	own, other := web.CertificateName(), shop.CertificateName()
	const wildcard = "*.gmsa-system.gmsa-account-provider"
	// An otherName (RFC 5280, 4.2.1.6), which package x509 ignores, beside the account's name.
	value, err := asn1.Marshal([]asn1.RawValue{
		{Class: asn1.ClassContextSpecific, Tag: 2, Bytes: []byte(own)},
		{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: []byte{6, 1, 42, 0xa0, 2, 5, 0}},
	})
	if err != nil {
		t.Fatal(err)
	}
	otherName := pkix.Extension{Id: subjectAltName, Value: value}
	uri := &url.URL{Scheme: "spiffe", Host: "cluster.local"}
	attacks := map[string]x509.Certificate{
		"another account's name after the own one": {DNSNames: []string{own, other}},
		"another account's name before it":         {DNSNames: []string{other, own}},
		"the own name twice":                       {DNSNames: []string{own, own}},
		"a wildcard":                               {DNSNames: []string{wildcard}},
		"a wildcard after the own name":            {DNSNames: []string{own, wildcard}},
		"the own name in upper case":               {DNSNames: []string{strings.ToUpper(own)}},
		"only a common name":                       {Subject: pkix.Name{CommonName: own}},
		"an address":                               {DNSNames: []string{own}, IPAddresses: []net.IP{{127, 0, 0, 1}}},
		"a mail address":                           {DNSNames: []string{own}, EmailAddresses: []string{"a@b.test"}},
		"a URI":                                    {DNSNames: []string{own}, URIs: []*url.URL{uri}},
		"an otherName":                             {ExtraExtensions: []pkix.Extension{otherName}},
	}
	mentionsName := func(err error) bool { return err != nil && strings.Contains(err.Error(), own) }
	pair := func(template x509.Certificate, usage x509.ExtKeyUsage) (cert, key []byte) {
		template.SerialNumber, template.ExtKeyUsage = big.NewInt(2), []x509.ExtKeyUsage{usage}
		return ca.sign(&template)
	}
	goodServer, goodServerKey := pair(*leaf(web), x509.ExtKeyUsageServerAuth)
	goodClient, goodClientKey := pair(*leaf(web), x509.ExtKeyUsageClientAuth)
	srv, err := ServerConfig(web, ca.pem(), goodServer, goodServerKey)
	if err != nil {
		t.Fatal(err)
	}
	cli, err := ClientConfig(web, ca.pem(), goodClient, goodClientKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, template := range attacks {
		serverCert, serverKey := pair(template, x509.ExtKeyUsageServerAuth)
		clientCert, clientKey := pair(template, x509.ExtKeyUsageClientAuth)
		if _, err := ServerConfig(web, ca.pem(), serverCert, serverKey); !mentionsName(err) {
			t.Errorf("%s: a server starts with it, or the error does not contain the expected name: %v", name, err)
		}
		if _, err := ClientConfig(web, ca.pem(), clientCert, clientKey); !mentionsName(err) {
			t.Errorf("%s: a client uses it, or the error does not contain the expected name: %v", name, err)
		}
		if got, s, _ := connect(t, srv, raw(t, clientCert, clientKey)); s == nil || got > 0 {
			t.Errorf("%s: the server accepts it from a client", name)
		}
		if got, _, c := connect(t, raw(t, serverCert, serverKey), cli); c == nil || got > 0 {
			t.Errorf("%s: the client accepts it from a server", name)
		}
	}
}

func TestInvalidOwnCertificatesAreRejected(t *testing.T) {
	ca := newSharedCA(t)
	now := time.Now()
	with := func(f func(*x509.Certificate)) *x509.Certificate {
		c := leaf(web, x509.ExtKeyUsageServerAuth)
		c.NotBefore, c.NotAfter = now.Add(-time.Minute), now.Add(time.Hour)
		f(c)
		return c
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	good, goodKey := ca.sign(with(func(*x509.Certificate) {}))
	if _, err := ServerConfig(web, ca.pem(), good, goodKey); err != nil {
		t.Fatal(err)
	}
	pairs := map[string][2][]byte{}
	add := func(name string, cert, key []byte) { pairs[name] = [2][]byte{cert, key} }
	sign := func(name string, f func(*x509.Certificate)) { c, k := ca.sign(with(f)); add(name, c, k) }
	sign("expired", func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(-time.Hour), now.Add(-time.Second) })
	sign("begins tomorrow", func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = now.Add(24*time.Hour),
			now.Add(48*time.Hour)
	})
	sign("both uses", func(c *x509.Certificate) {
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	})
	sign("client's use", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })
	sign("no use", func(c *x509.Certificate) { c.ExtKeyUsage = nil })
	sign("any use", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} })
	sign("no name", func(c *x509.Certificate) { c.DNSNames = nil })
	sign("wildcard", func(c *x509.Certificate) { c.DNSNames = []string{"*.gmsa-account-provider"} })
	sign("other account", func(c *x509.Certificate) { c.DNSNames = []string{shop.CertificateName()} })
	c, k := ca.signKey(with(func(*x509.Certificate) {}), &rsaKey.PublicKey, rsaKey)
	add("RSA", c, k)
	c, k = ca.signKey(with(func(*x509.Certificate) {}), &p384.PublicKey, p384)
	add("P-384", c, k)
	c, _ = ca.sign(with(func(*x509.Certificate) {}))
	add("the key of another", c, goodKey)
	add("nothing", nil, nil)
	for name, p := range pairs {
		if _, err := ServerConfig(web, ca.pem(), p[0], p[1]); err == nil {
			t.Errorf("%s: accepted", name)
		} else if strings.Contains(err.Error(), "PRIVATE") {
			t.Errorf("%s: the error quotes a key", name)
		}
	}
	for _, bad := range [][]byte{nil, []byte("x"), goodKey} {
		if _, err := ServerConfig(web, bad, good, goodKey); err == nil {
			t.Errorf("the CA %q was accepted", bad)
		}
	}
}

// The makers of the two certificates have clocks 5 minutes apart, in either direction, and the host's is between.
func TestClocksCanDifferByFiveMinutes(t *testing.T) {
	ca := newSharedCA(t)
	at := func(d time.Duration, usage x509.ExtKeyUsage) (cert, key []byte) {
		c := leaf(web, usage)
		c.NotBefore, c.NotAfter = time.Now().Add(d), time.Now().Add(d+time.Hour)
		return ca.sign(c)
	}
	for _, d := range []time.Duration{5 * time.Minute, -5 * time.Minute} {
		serverCert, serverKey := at(d, x509.ExtKeyUsageServerAuth)
		clientCert, clientKey := at(0, x509.ExtKeyUsageClientAuth)
		srv, err := ServerConfig(web, ca.pem(), serverCert, serverKey)
		if err != nil {
			t.Fatal(err)
		}
		cli, err := ClientConfig(web, ca.pem(), clientCert, clientKey)
		if err != nil {
			t.Fatal(err)
		}
		if _, s, c := connect(t, srv, cli); s != nil || c != nil {
			t.Errorf("%v: %v, %v", d, s, c)
		}
	}
}

func TestAnExpiredCertificateIsRejectedOnANewConnection(t *testing.T) {
	m, err := Issue(web, time.Now(), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	srv, cli := server(t, web, m), client(t, web, m)
	time.Sleep(time.Until(m.NotAfter) + 50*time.Millisecond)
	if got, s, c := connect(t, srv, cli); s == nil && c == nil || got > 0 {
		t.Errorf("server: %v, client: %v", s, c)
	}
}

// The CA's certificate alone, which the plugin's identity may read, signs nothing: its key is nowhere.
func TestMaterialContainsNoCAKey(t *testing.T) {
	m := issue(t, web)
	for _, key := range [][]byte{m.ServerKey, m.ClientKey} {
		if _, err := tls.X509KeyPair(m.CA, key); err == nil {
			t.Error("a key in the material is the CA's")
		}
	}
}
