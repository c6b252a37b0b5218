package servingcert

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ccgrkc/ccgrkc/internal/kube"
	"github.com/ccgrkc/ccgrkc/internal/kube/kubetest"
	"github.com/ccgrkc/ccgrkc/internal/mtls"
)

func poolOf(bundle []byte) *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(bundle)
	return pool
}

// some starts n keepers with self-issued certificates.
func (a *apiServer) some(t *testing.T, n int, c *clock) []*replica {
	var all []*replica
	for i := range n {
		all = append(all, a.start(t, fmt.Sprintf("keeper-%d", i), self(), c, 0))
	}
	return all
}

// changed waits until all replicas use the same certificate, which is not old.
func changed(t *testing.T, old *pair, replicas ...*replica) *pair {
	t.Helper()
	eventually(t, "all use the same new certificate", func() bool {
		p := replicas[0].current()
		if p == nil || p.same(old) {
			return false
		}
		for _, r := range replicas {
			if !r.current().same(p) {
				return false
			}
		}
		return true
	})
	return replicas[0].current()
}

func TestReplicasShareOneCertificateAndRenewItOnce(t *testing.T) {
	for _, n := range []int{1, 2, 5} {
		t.Run(fmt.Sprint(n), inBubble(func(t *testing.T) {
			a, c := newAPI(t), &clock{}
			a.put(map[string][]byte{"notes": []byte("foreign")})
			all := a.some(t, n, c)
			a.ready(t, c, all...)
			first := changed(t, nil, all...)
			want := map[string]int{
				"secret":                          1,
				"mutatingwebhookconfigurations":   1,
				"validatingwebhookconfigurations": 1,
			}
			if diff := cmp.Diff(want, a.counted()); diff != "" {
				t.Errorf("writes of the first certificate: -want +got\n%s", diff)
			}
			left := all[0].Expiry().Sub(c.now())
			if left < DefaultLifetime-time.Minute || left > DefaultLifetime+time.Second {
				t.Errorf("it expires in %s", left)
			}

			c.advance(DefaultLifetime * 2 / 3)
			end := a.load(t, c, all...)
			second := changed(t, first, all...)
			time.Sleep(3 * settle) // further writes would happen now
			end()
			// The next certificate, the CA in both configurations, and the change.
			want = map[string]int{"secret": 3, "mutatingwebhookconfigurations": 2, "validatingwebhookconfigurations": 2}
			if diff := cmp.Diff(want, a.counted()); diff != "" {
				t.Errorf("writes with the renewal: -want +got\n%s", diff)
			}
			if second.issuer.Equal(first.issuer) {
				t.Error("two certificates have the same CA: its key was kept")
			}
			data := a.data()
			if data["next.crt"] != nil || data["next.key"] != nil || string(data["notes"]) != "foreign" {
				t.Errorf("the Secret contains %d keys, notes %q", len(data), data["notes"])
			}
			if cas := certificates(data["ca.crt"]); len(cas) != 2 {
				t.Errorf("the Secret contains %d CAs, want 2", len(cas))
			}
			a.mu.Lock()
			labels := metadata(a.secret)["labels"]
			a.mu.Unlock()
			if diff := cmp.Diff(any(map[string]any{"helm": "yes"}), labels); diff != "" {
				t.Errorf("labels of the Secret: %s", diff)
			}

			c.advance(DefaultLifetime/3 + time.Minute) // the first has expired
			eventually(t, "the expired CA is removed", func() bool {
				return bytes.Equal(a.data()["ca.crt"], bundle([]*x509.Certificate{second.issuer}))
			})
			a.ready(t, c, all...)
			for _, r := range all {
				if strings.Contains(r.log.String(), "level=ERROR") {
					t.Error("the log contains an error because another replica was faster")
				}
			}
		}))
	}
}

func TestNoHandshakeFailsWhileTheCAChanges(t *testing.T) {
	inBubble(func(t *testing.T) {
		a, c := newAPI(t), &clock{}
		all := a.some(t, 3, c)
		a.ready(t, c, all...)
		a.load(t, c, all...)
		p := changed(t, nil, all...)
		for range 4 {
			c.advance(DefaultLifetime*2/3 + time.Minute)
			p = changed(t, p, all...)
		}
	})(t)
}

func TestClocksCanDifferByMinutes(t *testing.T) {
	inBubble(func(t *testing.T) {
		a, c := newAPI(t), &clock{}
		all := []*replica{
			a.start(t, "right", self(), c, 0),
			a.start(t, "fast", self(), c, 5*time.Minute),
			a.start(t, "slow", self(), c, -5*time.Minute),
		}
		a.ready(t, c, all...)
		end := a.load(t, c, all...)
		p := changed(t, nil, all...)
		for range 2 {
			c.advance(DefaultLifetime * 2 / 3)
			p = changed(t, p, all...)
		}
		time.Sleep(2 * settle)
		end()
		if n := a.counted()["secret"]; n > 6 { // the first, two writes for each renewal, and perhaps an expired CA
			t.Errorf("the Secret was written %d times: replicas conflict", n)
		}
	})(t)
}

// A replica on a node with a wrong clock uses the API server's, writes nothing, and uses the same certificate as the
// others.
func TestAWrongClockOfANodeHasNoEffect(t *testing.T) {
	for name, skew := range map[string]time.Duration{
		"3 hours behind": -3 * time.Hour,
		"31 days ahead":  31 * 24 * time.Hour,
	} {
		t.Run(name, inBubble(func(t *testing.T) {
			a, c := newAPI(t), &clock{}
			good := a.start(t, "good", self(), c, 0)
			a.ready(t, c, good)
			time.Sleep(settle)
			before := a.counted()
			end := a.load(t, c, good)
			bad := a.start(t, "bad", self(), c, skew)
			a.ready(t, c, good, bad)
			time.Sleep(3 * settle)
			end()
			if diff := cmp.Diff(before, a.counted()); diff != "" {
				t.Errorf("writes: %s", diff)
			}
			warned := strings.Contains(bad.log.String(), "this node's clock differs from the API server's")
			if !good.current().same(bad.current()) || !warned {
				t.Error("another certificate, or no warning")
			}
		}))
	}
}

// The clock of one of several API servers is hours behind. A replica that uses this one issues no certificate.
func TestAWrongClockOfAnAPIServerIsReported(t *testing.T) {
	inBubble(func(t *testing.T) {
		a, c := newAPI(t), &clock{}
		good := a.start(t, "good", self(), c, 0)
		a.ready(t, c, good)
		time.Sleep(settle)
		a.mu.Lock()
		a.behind = map[string]time.Duration{"bad": 3 * time.Hour}
		a.mu.Unlock()
		before := a.counted()
		end := a.load(t, c, good)
		bad := a.start(t, "bad", self(), c, 0)
		time.Sleep(3 * settle)
		end()
		if diff := cmp.Diff(before, a.counted()); diff != "" {
			t.Errorf("writes: %s", diff)
		}
		for _, text := range []string{"Secret gmsa/web-tls: the certificate is valid from ", "behind the issuer's"} {
			if err := bad.Ready(); err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("ready: %v, want %q", err, text)
			}
		}
		a.mu.Lock()
		a.behind = nil
		a.mu.Unlock()
		a.ready(t, c, good, bad)
	})(t)
}

// Someone replaces the Secret's data with a certificate of another CA, or restores an old backup.
func TestAForeignCertificateIsUsedInTheRightOrder(t *testing.T) {
	for _, what := range []string{"foreign", "backup"} {
		t.Run(what, inBubble(func(t *testing.T) {
			a, c := newAPI(t), &clock{}
			all := a.some(t, 2, c)
			a.ready(t, c, all...)
			first := changed(t, nil, all...)
			put := a.data()
			if what == "foreign" {
				key := newKey(t)
				cert, pem, ca := signed(t, key, &key.PublicKey, dnsName, time.Now().Add(100*time.Hour))
				put = map[string][]byte{"tls.crt": cert, "tls.key": pem, "ca.crt": ca}
			} else {
				c.advance(DefaultLifetime * 2 / 3)
				first = changed(t, first, all...)
				time.Sleep(2 * settle)
			}
			end := a.load(t, c, all...)
			a.put(put)
			second := changed(t, first, all...)
			time.Sleep(2 * settle)
			end()
			if what == "foreign" && !bytes.Equal(second.cert, put["tls.crt"]) {
				t.Error("the foreign certificate was not used")
			}
		}))
	}
}

// A foreign CA with a lifetime of ten years is removed. The CAs in use remain.
func TestACAWithALongLifetimeIsRemoved(t *testing.T) {
	inBubble(func(t *testing.T) {
		a, c := newAPI(t), &clock{}
		source := Self{Namespace: "gmsa", Secret: "web-tls", Lifetime: DefaultLifetime, overlap: 2 * settle}
		all := []*replica{a.start(t, "one", source, c, 0), a.start(t, "two", source, c, 0)}
		a.ready(t, c, all...)
		first := changed(t, nil, all...)
		data := a.data()
		key := newKey(t)
		_, _, ca := signed(t, key, &key.PublicKey, dnsName, time.Now().Add(10*365*24*time.Hour))
		data["ca.crt"] = append(data["ca.crt"], ca...)
		end := a.load(t, c, all...)
		a.put(data)
		want := bundle([]*x509.Certificate{first.issuer})
		eventually(t, "the CA is known", func() bool { return !bytes.Equal(a.trusted()[0], want) })
		eventually(t, "the CA is removed", func() bool {
			return bytes.Equal(a.data()["ca.crt"], want) && bytes.Equal(a.trusted()[0], want)
		})
		end()
		if !all[0].current().same(first) {
			t.Error("the certificate changed")
		}
	})(t)
}

func TestRenewalWaitsUntilEveryAPIServerKnowsTheCA(t *testing.T) {
	inBubble(func(t *testing.T) {
		a, c := newAPI(t), &clock{}
		all := a.some(t, 2, c)
		a.ready(t, c, all...)
		first := changed(t, nil, all...)
		c.advance(DefaultLifetime * 2 / 3)
		eventually(t, "the next certificate exists", func() bool { return a.data()["next.crt"] != nil })
		// As helm upgrade --force does, remove the CAs repeatedly. Each time the waiting time starts again.
		for range 4 {
			time.Sleep(settle / 2)
			a.overwrite(nil)
		}
		last := time.Now()
		second := changed(t, first, all...)
		if took := time.Since(last); took < settle {
			t.Errorf("used %s after the configurations changed, want at least %s", took, settle)
		}
		a.ready(t, c, all...)
		if err := dial(all[0].listener, c, bundle([]*x509.Certificate{second.issuer})); err != nil {
			t.Error(err)
		}
	})(t)
}

func TestAnOverwrittenCABundleIsRestored(t *testing.T) {
	inBubble(func(t *testing.T) {
		a, c := newAPI(t), &clock{}
		all := a.some(t, 2, c)
		a.ready(t, c, all...)
		other, err := mtls.IssueServer("x", dnsName, c.now(), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		bundles := map[string][]byte{"emptied": nil, "not PEM": []byte("nonsense"), "foreign CA": other.CA}
		for name, bundle := range bundles {
			a.overwrite(bundle)
			want := a.data()["ca.crt"]
			eventually(t, name+": every caBundle is restored", func() bool {
				a.mu.Lock()
				defer a.mu.Unlock()
				for _, c := range a.configs {
					for _, b := range c.bundles() {
						if !bytes.Equal(b, want) {
							return false
						}
					}
				}
				return true
			})
		}
		a.ready(t, c, all...)
		if n := a.counted()["secret"]; n != 1 {
			t.Errorf("the Secret was written %d times, want once", n)
		}
	})(t)
}

// signed issues a certificate and its CA, as PEM.
func signed(t *testing.T, key any, public any, name string, notAfter time.Time) (cert, keyPEM, ca []byte) {
	t.Helper()
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "foreign"},
		NotBefore:             time.Now().Add(-2 * time.Hour),
		NotAfter:              notAfter,
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &caKey.PublicKey, caKey)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		DNSNames:              []string{name},
		NotBefore:             template.NotBefore,
		NotAfter:              notAfter,
		BasicConstraintsValid: true,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, template, public, caKey)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	encode := func(kind string, b []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}) }
	return encode("CERTIFICATE", leafDER), encode("PRIVATE KEY", keyDER), encode("CERTIFICATE", der)
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestAnUnusableSecretIsReplaced(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ecKey := newKey(t)
	// Issued inside the bubble, whose time differs.
	issue := func(t *testing.T, key, public any, name string, lifetime time.Duration) map[string][]byte {
		cert, keyPEM, ca := signed(t, key, public, name, time.Now().Add(lifetime))
		return map[string][]byte{"tls.crt": cert, "tls.key": keyPEM, "ca.crt": ca}
	}
	good := func(t *testing.T) map[string][]byte { return issue(t, ecKey, &ecKey.PublicKey, dnsName, time.Hour) }
	for _, c := range []struct {
		name   string
		damage func(t *testing.T, current map[string][]byte) map[string][]byte
	}{
		{"emptied", func(*testing.T, map[string][]byte) map[string][]byte { return nil }},
		{"nonsense", func(*testing.T, map[string][]byte) map[string][]byte {
			return map[string][]byte{"tls.crt": []byte("a"), "tls.key": []byte("b"), "ca.crt": []byte("c")}
		}},
		{"without a key", func(_ *testing.T, d map[string][]byte) map[string][]byte { delete(d, "tls.key"); return d }},
		{"without a CA", func(_ *testing.T, d map[string][]byte) map[string][]byte { delete(d, "ca.crt"); return d }},
		{"key and certificate exchanged", func(_ *testing.T, d map[string][]byte) map[string][]byte {
			d["tls.crt"], d["tls.key"] = d["tls.key"], d["tls.crt"]
			return d
		}},
		{"a certificate for another name", func(t *testing.T, _ map[string][]byte) map[string][]byte {
			return issue(t, ecKey, &ecKey.PublicKey, "other.gmsa.svc", time.Hour)
		}},
		{"an RSA certificate", func(t *testing.T, _ map[string][]byte) map[string][]byte {
			return issue(t, rsaKey, &rsaKey.PublicKey, dnsName, time.Hour)
		}},
		{"an expired certificate", func(t *testing.T, _ map[string][]byte) map[string][]byte {
			return issue(t, ecKey, &ecKey.PublicKey, dnsName, -time.Minute)
		}},
		{"another key", func(t *testing.T, _ map[string][]byte) map[string][]byte {
			d := good(t)
			d["tls.key"] = issue(t, rsaKey, &rsaKey.PublicKey, dnsName, time.Hour)["tls.key"]
			return d
		}},
		{"another CA", func(t *testing.T, d map[string][]byte) map[string][]byte {
			other := good(t)
			other["ca.crt"] = d["ca.crt"]
			return other
		}},
	} {
		t.Run(c.name, inBubble(func(t *testing.T) {
			a, clock := newAPI(t), &clock{}
			all := a.some(t, 2, clock)
			a.ready(t, clock, all...)
			first := changed(t, nil, all...)
			end := a.load(t, clock, all...)
			a.put(c.damage(t, maps.Clone(a.data())))
			second := changed(t, first, all...)
			time.Sleep(2 * lag)
			end()
			data := a.data()
			p, err := parse(data["tls.crt"], data["tls.key"], certificates(data["ca.crt"]), dnsName, clock.now())
			if err != nil || !p.same(second) || data["next.key"] != nil {
				t.Errorf("the Secret does not contain the certificate in use: %v", err)
			}
			for _, ca := range certificates(data["ca.crt"]) {
				if ca.Subject.CommonName == "foreign" {
					t.Error("the foreign CA is still trusted")
				}
			}
			const warning = "level=WARN msg=\"the Secret contains no usable certificate"
			if log := all[0].log.String() + all[1].log.String(); !strings.Contains(log, warning) {
				t.Errorf("no warning:\n%s", log)
			}

			// Without a certificate in use, there is nothing to wait for.
			for _, r := range all {
				r.stop()
			}
			a.put(c.damage(t, maps.Clone(a.data())))
			fresh := a.start(t, "fresh", self(), clock, 0)
			a.ready(t, clock, fresh)
		}))
	}
}

// A keeper dies at each write, before or after it is completed. A new keeper continues.
func TestAKeeperCanDieAtAnyStep(t *testing.T) {
	for _, what := range []string{"the first certificate", "a renewal"} {
		for step := range map[string]int{"the first certificate": 3, "a renewal": 4}[what] {
			for _, how := range []fault{lost, silent} {
				name := fmt.Sprintf("%s/write %d/%s", what, step+1, map[fault]string{lost: "lost", silent: "done"}[how])
				t.Run(name, inBubble(func(t *testing.T) {
					a, c := newAPI(t), &clock{}
					dead := make(chan struct{})
					die := func() {
						n := 0
						a.setFault(func(agent, _ string) fault {
							if agent != "keeper" {
								return none
							}
							n++
							switch {
							case n <= step:
								return none
							case n == step+1:
								close(dead)
								return how
							}
							return lost
						})
					}
					if what == "the first certificate" {
						die()
					}
					keeper := a.start(t, "keeper", self(), c, 0)
					end := func() {}
					if what == "a renewal" {
						a.ready(t, c, keeper)
						die()
						c.advance(DefaultLifetime*2/3 + time.Minute)
						end = a.load(t, c, keeper)
					}
					<-dead
					end()
					old := keeper.current()
					keeper.stop()
					other := a.start(t, "other", self(), c, 0)
					a.ready(t, c, other)
					end = a.load(t, c, other)
					if what == "a renewal" {
						// The dead keeper can have used a certificate whose write was lost.
						if p := other.current(); p.same(old) {
							changed(t, old, other)
						}
					}
					eventually(t, "next.crt is removed", func() bool { return a.data()["next.crt"] == nil })
					time.Sleep(2 * lag)
					end()
					if n := len(certificates(a.data()["ca.crt"])); n > 2 {
						t.Errorf("%d CAs for two certificates", n)
					}
				}))
			}
		}
	}
}

func TestTheAPIServerIsUnavailable(t *testing.T) {
	inBubble(func(t *testing.T) {
		a, c := newAPI(t), &clock{}
		a.setDown(true)
		all := a.some(t, 2, c)
		time.Sleep(300 * time.Millisecond)
		for _, r := range all {
			if err := r.Ready(); err == nil || !strings.Contains(err.Error(), "API server") {
				t.Errorf("without an API server: %v", err)
			}
			if _, err := r.GetCertificate(nil); err == nil {
				t.Error("a certificate is used that no API server knows")
			}
		}
		a.setDown(false)
		a.ready(t, c, all...)
		first := changed(t, nil, all...)

		a.setDown(true)
		end := a.load(t, c, all...)
		c.advance(DefaultLifetime*2/3 + time.Minute)
		time.Sleep(2 * settle)
		for _, r := range all {
			if err := r.Ready(); err != nil || !r.current().same(first) {
				t.Errorf("%s while the API server is unavailable: %v", r.name, err)
			}
		}
		a.setDown(false)
		changed(t, first, all...)
		end()

		a.setDown(true)
		c.advance(DefaultLifetime * 2)
		if err := all[0].Ready(); err == nil || !strings.Contains(err.Error(), "is valid from") {
			t.Errorf("with an expired certificate: %v", err)
		}
		a.setDown(false)
		a.ready(t, c, all...) // waiting would not help after the expiry
	})(t)
}

// A replica is disconnected during a renewal. Its certificate is trusted until it expires.
func TestADisconnectedReplicaIsStillTrusted(t *testing.T) {
	inBubble(func(t *testing.T) {
		a, c := newAPI(t), &clock{}
		all := a.some(t, 2, c)
		a.ready(t, c, all...)
		first := changed(t, nil, all...)
		end := a.load(t, c, all...)
		// The old certificate, as a disconnected replica would use it.
		old, err := all[1].GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		config := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*old}, Time: c.now}
		l := kubetest.Listen()
		defer l.Close()
		go accept(tls.NewListener(l, config))
		c.advance(DefaultLifetime * 2 / 3)
		changed(t, first, all...)
		time.Sleep(2 * lag)
		if err := a.dial(l, c); err != nil {
			t.Error(err)
		}
		end()
	})(t)
}

// A keeper is delayed between reading the Secret and writing the configurations, while another one renews.
func TestADelayedKeeperRemovesNoCA(t *testing.T) {
	inBubble(func(t *testing.T) {
		a, c := newAPI(t), &clock{}
		slow := a.start(t, "slow", self(), c, 0)
		a.ready(t, c, slow)
		first := slow.current()
		delayed := make(chan struct{}, 10)
		a.setFault(func(agent, _ string) fault {
			if agent != "slow" {
				return none
			}
			delayed <- struct{}{}
			return late
		})
		a.overwrite(nil)
		<-delayed
		fast := a.start(t, "fast", self(), c, 0)
		a.ready(t, c, fast)
		time.Sleep(2 * lag) // until the API server applies it
		a.load(t, c, fast)
		c.advance(DefaultLifetime * 2 / 3)
		changed(t, first, fast)
		changed(t, first, slow) // after the delay
		time.Sleep(2 * lag)
	})(t)
}

func TestLifetimesOfReplicasCanDiffer(t *testing.T) {
	inBubble(func(t *testing.T) {
		a, c := newAPI(t), &clock{}
		long := a.start(t, "long", self(), c, 0)
		a.ready(t, c, long)
		first := long.current()
		short := a.start(t, "short", Self{Namespace: "gmsa", Secret: "web-tls", Lifetime: 24 * time.Hour}, c, 0)
		second := changed(t, first, long, short) // 720 h exceed the new lifetime
		if left := short.Expiry().Sub(c.now()); left > 24*time.Hour+time.Second {
			t.Errorf("the certificate has %s left", left)
		}
		time.Sleep(3 * settle)
		if !long.current().same(second) || a.counted()["secret"] != 3 {
			t.Errorf("replicas conflict: the Secret was written %d times", a.counted()["secret"])
		}
	})(t)
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
	m, err := mtls.IssueServer("cert-manager", dnsName, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{"tls.crt": m.ServerCert, "tls.key": m.ServerKey, "ca.crt": m.CA}
}

// The kubelets of two nodes update the mounted certificate at different times.
func TestADirectoryGetsANewCA(t *testing.T) {
	inBubble(func(t *testing.T) {
		a, c := newAPI(t), &clock{}
		files := issued(t)
		dirs := []*mounted{mount(t, files), mount(t, files)}
		var all []*replica
		for i, m := range dirs {
			all = append(all, a.start(t, fmt.Sprintf("keeper-%d", i), &Dir{Path: m.dir, overlap: 3 * settle}, c, 0))
		}
		a.ready(t, c, all...)
		end := a.load(t, c, all...)
		p := changed(t, nil, all...)
		for range 3 {
			files = issued(t)
			dirs[0].swap(files)
			time.Sleep(settle)
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
		for start := time.Now(); time.Since(start) < 2*settle; time.Sleep(settle / 30) {
			if err := other.Ready(); err != nil {
				t.Fatalf("not ready during a change of the CA: %v", err)
			}
		}
		end()
	})(t)
}

// During a change from one source to the other, replicas of both write the configurations. The new ones must become
// ready, or the rollout would never finish.
func TestAChangeOfSourceFinishes(t *testing.T) {
	inBubble(func(t *testing.T) {
		a, c := newAPI(t), &clock{}
		old := a.start(t, "old", self(), c, 0)
		a.ready(t, c, old)
		dir := a.start(t, "new", &Dir{Path: mount(t, issued(t)).dir}, c, 0)
		eventually(t, "the new replica is ready", func() bool { return dir.Ready() == nil })
		old.stop()
		a.ready(t, c, dir)
		again := a.start(t, "again", self(), c, 0)
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
		key := newKey(t)
		nameCert, nameKey, nameCA := signed(t, key, &key.PublicKey, "other.gmsa.svc", time.Now().Add(time.Hour))
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
			time.Sleep(2 * settle)
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
		time.Sleep(lag + settle/4)
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
		key := newKey(t)
		cert, keyPEM, ca := signed(t, key, &key.PublicKey, dnsName, time.Now().Add(time.Hour))
		m := mount(t, map[string][]byte{"tls.crt": cert, "tls.key": keyPEM})
		r := a.start(t, "keeper", &Dir{Path: m.dir}, c, 0)
		eventually(t, "ready", func() bool { return r.Ready() == nil })
		if err := dial(r.listener, c, ca); err != nil {
			t.Error(err)
		}
		first := r.current()
		cert, keyPEM, ca = signed(t, key, &key.PublicKey, dnsName, time.Now().Add(time.Hour))
		m.swap(map[string][]byte{"tls.crt": cert, "tls.key": keyPEM})
		changed(t, first, r)
		if err := dial(r.listener, c, ca); err != nil {
			t.Error(err)
		}
	})(t)
}

func TestOnlyClientsOfTheCACanConnect(t *testing.T) {
	t.Parallel()
	key := newKey(t)
	server := issued(t)
	pair, err := tls.X509KeyPair(server["tls.crt"], server["tls.key"])
	if err != nil {
		t.Fatal(err)
	}
	client := func(name string) (cert tls.Certificate, ca []byte) {
		c, k, ca := signed(t, key, &key.PublicKey, name, time.Now().Add(time.Hour))
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
		"no Service":        func(c *Config) { c.DNSName = "web" },
		"no configuration":  func(c *Config) { c.Mutating = "" },
		"a negative settle": func(c *Config) { c.Settle = -1 },
		"no time for a renewal": func(c *Config) {
			c.Source = Self{Namespace: "gmsa", Secret: "web-tls", Lifetime: 2 * time.Minute}
		},
		"no Secret":          func(c *Config) { c.Source = Self{Namespace: "gmsa", Lifetime: time.Hour} },
		"no directory":       func(c *Config) { c.Source = &Dir{} },
		"a long settle time": func(c *Config) { c.Settle = DefaultLifetime },
	} {
		c := good
		change(&c)
		if _, err := New(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
