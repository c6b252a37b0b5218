package servingcert

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/kube"
	"github.com/ccgrkc/ccgrkc/internal/servingcert/certtest"
)

func poolOf(bundle []byte) *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(bundle)
	return pool
}

// changed waits until all replicas serve certificates of the same CA, which is not that of old.
func changed(t *testing.T, old *pair, replicas ...*replica) *pair {
	t.Helper()
	eventually(t, "all use the same new CA", func() bool {
		p := replicas[0].current()
		if p == nil || old != nil && p.issuer.Equal(old.issuer) {
			return false
		}
		for _, r := range replicas {
			if q := r.current(); q == nil || !q.issuer.Equal(p.issuer) {
				return false
			}
		}
		return true
	})
	return replicas[0].current()
}

// mounted is a directory with the layout of a Secret that the kubelet mounts.
type mounted struct {
	t   *testing.T
	dir string
	n   int
}

func mount(t *testing.T, files map[string][]byte) *mounted {
	m := &mounted{t: t, dir: t.TempDir()}
	m.swap(files)
	for name := range files {
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(m.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// swap replaces all files atomically, and removes the old ones.
func (m *mounted) swap(files map[string][]byte) {
	m.t.Helper()
	old, _ := os.Readlink(filepath.Join(m.dir, "..data"))
	m.n++
	now := fmt.Sprintf("..%d", m.n)
	if err := os.Mkdir(filepath.Join(m.dir, now), 0o700); err != nil {
		m.t.Fatal(err)
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(m.dir, now, name), data, 0o600); err != nil {
			m.t.Fatal(err)
		}
	}
	if err := os.Symlink(now, filepath.Join(m.dir, "..tmp")); err != nil {
		m.t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(m.dir, "..tmp"), filepath.Join(m.dir, "..data")); err != nil {
		m.t.Fatal(err)
	}
	if old != "" {
		if err := os.RemoveAll(filepath.Join(m.dir, old)); err != nil {
			m.t.Fatal(err)
		}
	}
}

func issued(t *testing.T) map[string][]byte {
	t.Helper()
	ca, cert, key := certtest.Issue(t, dnsName, time.Hour)
	return map[string][]byte{"tls.crt": cert, "tls.key": key, "ca.crt": ca}
}

// The kubelets of two nodes update the mounted certificate at different times.
func TestADirectoryGetsANewCA(t *testing.T) {
	inBubble(func(t *testing.T) {
		a, c := newAPI(t), &clock{}
		files := issued(t)
		dirs := []*mounted{mount(t, files), mount(t, files)}
		var all []*replica
		for i, m := range dirs {
			all = append(all, a.start(t, fmt.Sprintf("keeper-%d", i), &Dir{Path: m.dir}, c, 0))
		}
		a.ready(t, c, all...)
		end := a.load(t, c, all...)
		p := changed(t, nil, all...)
		for range 3 {
			files = issued(t)
			dirs[0].swap(files)
			time.Sleep(delay)
			dirs[1].swap(files)
			p = changed(t, p, all...)
		}
		eventually(t, "the previous CAs are removed", func() bool {
			for _, b := range a.trusted() {
				if !bytes.Equal(b, files["ca.crt"]) {
					return false
				}
			}
			return true
		})
		end()
		if data := a.data(); len(data) != 0 {
			t.Error("the Secret was written")
		}
	})(t)
}

// A new replica with a new CA becomes ready when API servers have had time to learn it. The first replica of all, and
// one with a known CA, are ready without this wait.
func TestANewReplicaWaitsUntilItsCAIsKnown(t *testing.T) {
	inBubble(func(t *testing.T) {
		a, c := newAPI(t), &clock{}
		files := issued(t)
		readyNow := func(name string) *replica {
			r := a.start(t, name, &Dir{Path: mount(t, files).dir}, c, 0)
			eventually(t, name+" is ready", func() bool {
				err := r.Ready()
				if err != nil && strings.Contains(err.Error(), "waiting until") {
					t.Fatalf("%s waits", name)
				}
				return err == nil
			})
			return r
		}
		first := readyNow("first")
		a.ready(t, c, first)
		readyNow("same")
		end := a.load(t, c, first)
		m := mount(t, issued(t))
		other := a.start(t, "other", &Dir{Path: m.dir}, c, 0)
		eventually(t, "the reason is reported", func() bool {
			err := other.Ready()
			return err != nil && strings.Contains(err.Error(), "waiting until every API server knows")
		})
		eventually(t, "ready", func() bool { return other.Ready() == nil })
		if err := a.dial(other.listener, c); err != nil {
			t.Errorf("ready, but not trusted: %v", err)
		}
		// After this, another new CA does not make it unready.
		m.swap(issued(t))
		for start := time.Now(); time.Since(start) < 2*delay; time.Sleep(delay / 30) {
			if err := other.Ready(); err != nil {
				t.Fatalf("not ready during a change of the CA: %v", err)
			}
		}
		end()
	})(t)
}

// During a change from one source to the other, replicas of both write the configurations. The new ones must become
// ready, or the rollout would never finish. No handshake with a ready replica fails.
func TestAChangeOfSourceFinishes(t *testing.T) {
	inBubble(func(t *testing.T) {
		a, c := newAPI(t), &clock{}
		old := a.start(t, "old", self(), c, 0)
		a.ready(t, c, old)
		time.Sleep(2 * overlap)
		end := a.load(t, c, old)
		dir := a.start(t, "new", &Dir{Path: mount(t, issued(t)).dir}, c, 0)
		eventually(t, "the new replica is ready", func() bool { return dir.Ready() == nil })
		end()
		old.stop()
		time.Sleep(2 * overlap)
		end = a.load(t, c, dir)
		again := a.start(t, "again", self(), c, 0)
		eventually(t, "the next replica is ready", func() bool { return again.Ready() == nil })
		end()
		a.ready(t, c, again)
	})(t)
}

func TestABrokenDirectoryKeepsTheOldCertificate(t *testing.T) {
	inBubble(func(t *testing.T) {
		a, c := newAPI(t), &clock{}
		good, other := issued(t), issued(t)
		m := mount(t, good)
		r := a.start(t, "keeper", &Dir{Path: m.dir}, c, 0)
		a.ready(t, c, r)
		first := r.current()
		end := a.load(t, c, r)
		nameCA, nameCert, nameKey := certtest.Issue(t, "other.gmsa.svc", time.Hour)
		for name, broken := range map[string]map[string][]byte{
			"another key":  {"tls.crt": other["tls.crt"], "tls.key": good["tls.key"], "ca.crt": other["ca.crt"]},
			"another CA":   {"tls.crt": other["tls.crt"], "tls.key": other["tls.key"], "ca.crt": good["ca.crt"]},
			"no key":       {"tls.crt": other["tls.crt"], "ca.crt": other["ca.crt"]},
			"a wrong name": {"tls.crt": nameCert, "tls.key": nameKey, "ca.crt": nameCA},
			"not PEM":      {"tls.crt": []byte("a"), "tls.key": []byte("b"), "ca.crt": []byte("c")},
			"nothing":      {},
		} {
			before := strings.Count(r.log.String(), "level=ERROR")
			m.swap(broken)
			eventually(t, name+" is reported", func() bool {
				return strings.Count(r.log.String(), "level=ERROR") > before
			})
			time.Sleep(2 * delay)
			if err := r.Ready(); err != nil || !r.current().same(first) {
				t.Errorf("%s: the old certificate is not in use: %v", name, err)
			}
		}
		end()
		a.overwrite(nil)
		a.ready(t, c, r) // the CA is restored meanwhile
		// The CA of the certificate in use is also restored while another one is pending.
		m.swap(other)
		a.overwrite(nil)
		time.Sleep(lag + delay/4)
		end = a.load(t, c, r)
		changed(t, first, r)
		end()
	})(t)
}

// Without ca.crt, something else manages the configurations, and the webhook cannot read them.
func TestADirectoryWithoutACA(t *testing.T) {
	inBubble(func(t *testing.T) {
		a, c := newAPI(t), &clock{}
		a.setDown(true)
		ca, cert, keyPEM := certtest.Issue(t, dnsName, time.Hour)
		m := mount(t, map[string][]byte{"tls.crt": cert, "tls.key": keyPEM})
		r := a.start(t, "keeper", &Dir{Path: m.dir}, c, 0)
		eventually(t, "ready", func() bool { return r.Ready() == nil })
		if err := dial(r.listener, c, ca); err != nil {
			t.Error(err)
		}
		first := r.current()
		ca, cert, keyPEM = certtest.Issue(t, dnsName, time.Hour)
		m.swap(map[string][]byte{"tls.crt": cert, "tls.key": keyPEM})
		changed(t, first, r)
		if err := dial(r.listener, c, ca); err != nil {
			t.Error(err)
		}
	})(t)
}

func TestOnlyClientsOfTheCACanConnect(t *testing.T) {
	t.Parallel()
	server := issued(t)
	pair, err := tls.X509KeyPair(server["tls.crt"], server["tls.key"])
	if err != nil {
		t.Fatal(err)
	}
	client := func(name string) (cert tls.Certificate, ca []byte) {
		ca, c, k := certtest.Issue(t, name, time.Hour)
		cert, err := tls.X509KeyPair(c, k)
		if err != nil {
			t.Fatal(err)
		}
		return cert, ca
	}
	api, ca := client("kube-apiserver")
	kubelet, kubeletCA := client("kubelet")
	other, _ := client("kube-apiserver")
	file := filepath.Join(t.TempDir(), "ca.crt")
	write := func(data []byte) {
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	base := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}}
	if _, err := (Clients{CAFile: file}).Demand(base); err == nil {
		t.Error("a missing file was accepted")
	}
	write([]byte("nonsense"))
	if _, err := (Clients{CAFile: file}).Demand(base); err == nil {
		t.Error("a file without a certificate was accepted")
	}
	write(append(ca, kubeletCA...))
	config, err := Clients{CAFile: file, Name: "kube-apiserver"}.Demand(base)
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go accept(l)
	connect := func(certs ...tls.Certificate) error {
		conn, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{
			RootCAs:      poolOf(server["ca.crt"]),
			ServerName:   dnsName,
			Certificates: certs,
		})
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.Read(make([]byte, 1)) // with TLS 1.3 the server rejects the client after the handshake
		return err
	}
	if err := connect(api); err != nil {
		t.Errorf("the API server was rejected: %v", err)
	}
	for name, certs := range map[string][]tls.Certificate{
		"none":         nil,
		"another name": {kubelet},
		"another CA":   {other},
	} {
		if connect(certs...) == nil {
			t.Errorf("client certificate: %s; connected", name)
		}
	}
	write(kubeletCA)
	if connect(api) == nil {
		t.Error("a CA that was removed from the file is still trusted")
	}
}

func TestInvalidConfigurationsAreRejected(t *testing.T) {
	t.Parallel()
	client, err := kube.NewClient(kube.Server{URL: "https://127.0.0.1:1"}, "test")
	if err != nil {
		t.Fatal(err)
	}
	good := Config{API: client, DNSName: dnsName, Mutating: "m", Validating: "v", Source: self()}
	if _, err := New(good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Config){
		"no Service":       func(c *Config) { c.DNSName = "web" },
		"no configuration": func(c *Config) { c.Mutating = "" },
		"a negative delay": func(c *Config) { c.PropagationDelay = -1 },
		"no time for a rotation": func(c *Config) {
			c.Source = Self{Namespace: "gmsa", Secret: "web-tls", CALifetime: 17 * time.Minute}
		},
		"no Secret":    func(c *Config) { c.Source = Self{Namespace: "gmsa", CALifetime: time.Hour} },
		"no directory": func(c *Config) { c.Source = &Dir{} },
		"a long delay": func(c *Config) { c.PropagationDelay = caLifetime },
	} {
		c := good
		change(&c)
		if _, err := New(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
