package servingcert

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"maps"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ccgrkc/ccgrkc/internal/kube/kubetest"
	"github.com/ccgrkc/ccgrkc/internal/servingcert/certtest"
)

// some starts n keepers that share a CA.
func (a *apiServer) some(t *testing.T, n int, c *clock) []*replica {
	var all []*replica
	for i := range n {
		all = append(all, a.start(t, fmt.Sprintf("keeper-%d", i), self(), c, 0))
	}
	return all
}

// untilRotation is the time after which a CA is due.
const untilRotation = caLifetime * 2 / 3

func TestReplicasShareOneCAAndRotateItOnce(t *testing.T) {
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
				t.Errorf("writes of the first CA: -want +got\n%s", diff)
			}
			if left := all[0].Expiry().Sub(c.now()); left < maxLeafLifetime || left > maxLeafLifetime+time.Minute {
				t.Errorf("the certificate expires in %s", left)
			}
			if n > 1 && all[0].current().same(all[1].current()) {
				t.Error("two replicas have the same key")
			}

			c.pass(untilRotation - time.Hour)
			if diff := cmp.Diff(want, a.counted()); diff != "" || !all[0].current().issuer.Equal(first.issuer) {
				t.Errorf("writes before the rotation: -want +got\n%s", diff)
			}
			end := a.load(t, c, all...)
			c.advance(2 * time.Hour)
			second := changed(t, first, all...)
			time.Sleep(3 * delay) // further writes would happen now
			end()
			// The next CA, in both configurations, and the change.
			want = map[string]int{"secret": 3, "mutatingwebhookconfigurations": 2, "validatingwebhookconfigurations": 2}
			if diff := cmp.Diff(want, a.counted()); diff != "" {
				t.Errorf("writes with the rotation: -want +got\n%s", diff)
			}
			data := a.data()
			if data[nextCert] != nil || data[nextKey] != nil || string(data["notes"]) != "foreign" {
				t.Errorf("the Secret contains %d keys, notes %q", len(data), data["notes"])
			}
			if cas := certificates(data[caKey]); len(cas) != 2 {
				t.Errorf("the Secret contains %d CAs, want 2", len(cas))
			}
			a.mu.Lock()
			labels := metadata(a.secret)["labels"]
			a.mu.Unlock()
			if diff := cmp.Diff(any(map[string]any{"helm": "yes"}), labels); diff != "" {
				t.Errorf("labels of the Secret: %s", diff)
			}

			c.pass(caLifetime/3 + time.Hour) // the first CA has expired
			eventually(t, "the expired CA is removed", func() bool {
				want := bundle([]*x509.Certificate{second.issuer})
				return bytes.Equal(a.data()[caKey], want) && bytes.Equal(a.trusted()[0], want)
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

// The CA's key is in the Secret. It is of no use for another name.
func TestTheCASignsOnlyForTheWebhook(t *testing.T) {
	t.Parallel()
	now := time.Now()
	ca, err := newAuthority(dnsName, now.Add(-time.Hour), now.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{dnsName: true, "kubernetes.default.svc": false, "10.0.0.1": false} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{NotBefore: now, NotAfter: now.Add(time.Minute), DNSNames: []string{name}}
		if ip := net.ParseIP(name); ip != nil {
			template.DNSNames, template.IPAddresses = nil, []net.IP{ip}
		}
		der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, &key.PublicKey, ca.key)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		verify := func(usage x509.ExtKeyUsage) error {
			_, err := leaf.Verify(x509.VerifyOptions{
				DNSName:   name,
				Roots:     poolOf(ca.certPEM),
				KeyUsages: []x509.ExtKeyUsage{usage},
			})
			return err
		}
		if err := verify(x509.ExtKeyUsageServerAuth); (err == nil) != want {
			t.Errorf("%s: accepted %t: %v", name, err == nil, err)
		}
		if verify(x509.ExtKeyUsageClientAuth) == nil {
			t.Errorf("%s: accepted as a client", name)
		}
	}
}

func TestNoHandshakeFailsWhileTheCAChanges(t *testing.T) {
	inBubble(func(t *testing.T) {
		a, c := newAPI(t), &clock{}
		all := a.some(t, 3, c)
		a.ready(t, c, all...)
		p := changed(t, nil, all...)
		for range 4 {
			c.pass(untilRotation - time.Hour)
			end := a.load(t, c, all...)
			c.advance(2 * time.Hour)
			p = changed(t, p, all...)
			time.Sleep(2 * lag)
			end()
		}
	})(t)
}

func TestClocksCanDifferByMinutes(t *testing.T) {
	inBubble(func(t *testing.T) {
		a, c := newAPI(t), &clock{}
		all := []*replica{
			a.start(t, "right", self(), c, 0),
			a.start(t, "fast", self(), c, 4*time.Minute),
			a.start(t, "slow", self(), c, -4*time.Minute),
		}
		a.ready(t, c, all...)
		p := changed(t, nil, all...)
		for range 2 {
			c.pass(untilRotation - time.Hour)
			end := a.load(t, c, all...)
			c.advance(2 * time.Hour)
			p = changed(t, p, all...)
			time.Sleep(2 * delay)
			end()
		}
		if n := a.counted()["secret"]; n > 6 { // the first, two writes for each rotation, and perhaps an expired CA
			t.Errorf("the Secret was written %d times: replicas conflict", n)
		}
	})(t)
}

// A replica on a node with a wrong clock writes nothing, and uses the same CA as the others.
func TestAWrongClockOfANodeHasNoEffect(t *testing.T) {
	for name, skew := range map[string]time.Duration{
		"3 hours behind": -3 * time.Hour,
		"31 days ahead":  31 * 24 * time.Hour,
	} {
		t.Run(name, inBubble(func(t *testing.T) {
			a, c := newAPI(t), &clock{}
			good := a.start(t, "good", self(), c, 0)
			a.ready(t, c, good)
			time.Sleep(delay)
			before := a.counted()
			end := a.load(t, c, good)
			bad := a.start(t, "bad", self(), c, skew)
			a.ready(t, c, good, bad)
			time.Sleep(3 * delay)
			end()
			if diff := cmp.Diff(before, a.counted()); diff != "" {
				t.Errorf("writes: %s", diff)
			}
			warned := strings.Contains(bad.log.String(), "this node's clock differs from the API server's")
			if !good.current().issuer.Equal(bad.current().issuer) || !warned {
				t.Error("another CA, or no warning")
			}
		}))
	}
}

// The Date header of an API server is wrong for a moment. In each of these situations, no handshake of a ready replica
// fails, fresh replicas become ready during and after it, and nothing remains wrong.
func TestAWrongDateHealsByItself(t *testing.T) {
	const day = 24 * time.Hour
	for name, ahead := range map[string]time.Duration{
		"25 days ahead": 25 * day, "60 days ahead": 60 * day, "10 years ahead": 3650 * day,
		"3 hours behind": -3 * time.Hour, "60 days behind": -60 * day,
	} {
		for situation, age := range map[string]time.Duration{
			"before the first CA":    -1,
			"with a new CA":          0,
			"before a rotation":      untilRotation - day,
			"for one replica of two": 10 * day,
		} {
			if os.Getenv("CCGRKC_LAB") == "" && age != 0 && name != "60 days ahead" {
				continue // make test runs every combination
			}
			t.Run(situation+"/"+name, inBubble(func(t *testing.T) {
				a, c := newAPI(t), &clock{}
				var all []*replica
				var end func()
				if age < 0 {
					a.setDate("", ahead)
					all = a.some(t, 2, c)
					a.ready(t, c, all...)
					end = a.load(t, c, all...)
				} else {
					all = a.some(t, 2, c)
					a.ready(t, c, all...)
					c.pass(age)
					end = a.load(t, c, all...)
					a.setDate(map[bool]string{true: "keeper-0"}[situation == "for one replica of two"], ahead)
				}
				fresh := a.start(t, "fresh", self(), c, 0)
				a.ready(t, c, fresh)
				time.Sleep(4 * delay)
				a.setDate("", 0)
				time.Sleep(4 * delay)
				all = append(all, fresh, a.start(t, "last", self(), c, 0))
				a.ready(t, c, all...)
				p := changed(t, nil, all...)
				writes := a.counted()["secret"]
				time.Sleep(4 * delay)
				end()
				if n := a.counted()["secret"]; n != writes || n > 5 {
					t.Errorf("the Secret was written %d times, then %d times more", writes, n-writes)
				}
				if left := p.issuer.NotAfter.Sub(c.now()); left <= 0 || left > 2*caLifetime+time.Minute {
					t.Errorf("the CA expires in %s", left)
				}
				for _, r := range all {
					if err := r.Ready(); err != nil || strings.Contains(r.log.String(), "level=ERROR") {
						t.Errorf("%s: %v", r.name, err)
					}
				}
			}))
		}
	}
}

// The clocks of two API servers differ for ever. Each replica uses another one. Both are ready, and do not replace each
// other's CA again and again. If the difference is possible with a CA's lifetime, the API server trusts its replica.
func TestTwoAPIServersDisagreeForever(t *testing.T) {
	const day = 24 * time.Hour
	for name, ahead := range map[string]time.Duration{
		"45 days ahead": 45 * day, "10 years ahead": 3650 * day, "20 hours behind": -20 * time.Hour,
		"45 days behind": -45 * day,
	} {
		t.Run(name, inBubble(func(t *testing.T) {
			a, c := newAPI(t), &clock{}
			a.setDate("wrong", ahead)
			all := []*replica{a.start(t, "right", self(), c, 0)}
			a.ready(t, c, all...)
			all = append(all, a.start(t, "wrong", self(), c, 0))
			a.ready(t, c, all...)
			end := a.load(t, c, all...)
			time.Sleep(20 * delay)
			end()
			a.ready(t, c, all...)
			if n := a.counted()["secret"]; n > 5 {
				t.Errorf("the Secret was written %d times", n)
			}
			wrong := &clock{}
			wrong.advance(ahead)
			if err := a.dial(all[1].listener, wrong); err != nil && ahead < caLifetime && ahead > -day {
				t.Errorf("the API server with the wrong clock: %v", err)
			}
			if err := a.dial(all[0].listener, wrong); err != nil && ahead < 0 && ahead > -day {
				t.Errorf("the API server with the wrong clock, to the other replica: %v", err)
			}
		}))
	}
}

// While the clocks disagree, nothing is removed from the CA bundle, even if it is unknown or has expired by one clock.
func TestNothingIsRemovedWhileTheClocksDisagree(t *testing.T) {
	inBubble(func(t *testing.T) {
		a, c := newAPI(t), &clock{}
		all := a.some(t, 2, c)
		a.ready(t, c, all...)
		foreign, _, _ := certtest.Issue(t, dnsName, 24*time.Hour)
		a.setDate("", 10*24*time.Hour)
		time.Sleep(2 * poll)
		a.overwrite(foreign)
		time.Sleep(3 * overlap)
		if now := a.trusted(); len(now) != 1 || !bytes.Contains(now[0], foreign) {
			t.Error("a CA was removed")
		}
		a.setDate("", 0)
		eventually(t, "the foreign CA is removed", func() bool {
			return len(a.trusted()) == 1 && !bytes.Contains(a.trusted()[0], foreign)
		})
	})(t)
}

// All clocks were a year ahead, as on a machine that starts with a wrong clock, and then became right. The CA is not
// valid yet.
func TestTheRightTimeReturns(t *testing.T) {
	inBubble(func(t *testing.T) {
		a, c := newAPI(t), &clock{}
		c.advance(365 * 24 * time.Hour)
		all := a.some(t, 2, c)
		a.ready(t, c, all...)
		first := changed(t, nil, all...)
		c.advance(-365 * 24 * time.Hour)
		changed(t, first, all...)
		a.ready(t, c, all...)
	})(t)
}

// Someone replaces the Secret's data with another CA, or restores an old backup.
func TestAForeignCAIsUsedInTheRightOrder(t *testing.T) {
	for _, what := range []string{"foreign", "backup"} {
		t.Run(what, inBubble(func(t *testing.T) {
			a, c := newAPI(t), &clock{}
			all := a.some(t, 2, c)
			a.ready(t, c, all...)
			first := changed(t, nil, all...)
			put := a.data()
			if what == "foreign" {
				ca := anAuthority(t, c)
				put = map[string][]byte{authorityCert: ca.certPEM, authorityKey: ca.keyPEM}
			} else {
				c.pass(untilRotation)
				first = changed(t, first, all...)
				time.Sleep(2 * delay)
			}
			end := a.load(t, c, all...)
			a.put(put)
			second := changed(t, first, all...)
			time.Sleep(2 * delay)
			end()
			if what == "foreign" && !bytes.Equal(bundle([]*x509.Certificate{second.issuer}), put[authorityCert]) {
				t.Error("the foreign CA was not used")
			}
		}))
	}
}

func anAuthority(t *testing.T, c *clock) *authority {
	t.Helper()
	ca, err := newAuthority(dnsName, c.now().Add(-time.Hour), c.now().Add(caLifetime))
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// Attack: somebody adds a CA of their own to the Secret, so that the API server trusts its certificates.
func TestAForeignCAIsRemoved(t *testing.T) {
	long, err := newAuthority(dnsName, time.Now(), time.Now().Add(10*365*24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	year, _, _ := certtest.Issue(t, dnsName, 365*24*time.Hour)
	yearsCA, yearsCert, _ := certtest.Issue(t, dnsName, 365*24*time.Hour)
	_, noCA, _ := certtest.Issue(t, dnsName, time.Hour)
	for name, data := range map[string]map[string][]byte{
		"for all names":                {caKey: year},
		"with a certificate of the CA": {caKey: yearsCA, certKey: yearsCert},
		"for ten years":                {caKey: long.certPEM},
		"no CA":                        {caKey: noCA},
	} {
		t.Run(name, func(t *testing.T) { aForeignCAIsRemoved(t, data) })
	}
}

// The CAs in use remain.
func aForeignCAIsRemoved(t *testing.T, planted map[string][]byte) {
	inBubble(func(t *testing.T) {
		a, c := newAPI(t), &clock{}
		all := a.some(t, 2, c)
		a.ready(t, c, all...)
		first := changed(t, nil, all...)
		data := a.data()
		ca := planted[caKey]
		data[certKey] = planted[certKey]
		data[caKey] = append(data[caKey], ca...)
		end := a.load(t, c, all...)
		a.put(data)
		a.overwrite(ca)
		time.Sleep(2 * poll)
		want := bundle([]*x509.Certificate{first.issuer})
		eventually(t, "the CA is removed", func() bool {
			return bytes.Equal(a.data()[caKey], want) && len(a.trusted()) == 1 && bytes.Equal(a.trusted()[0], want)
		})
		end()
		if !all[0].current().same(first) {
			t.Error("the certificate changed")
		}
	})(t)
}

func TestRotationWaitsUntilEveryAPIServerKnowsTheCA(t *testing.T) {
	inBubble(func(t *testing.T) {
		a, c := newAPI(t), &clock{}
		all := a.some(t, 2, c)
		a.ready(t, c, all...)
		first := changed(t, nil, all...)
		c.pass(untilRotation - time.Hour)
		c.advance(2 * time.Hour)
		eventually(t, "the next CA exists", func() bool { return a.data()[nextCert] != nil })
		// As helm upgrade --force does, remove the CAs repeatedly. Each time the waiting time starts again.
		for range 4 {
			time.Sleep(delay / 2)
			a.recreate()
		}
		last := time.Now()
		second := changed(t, first, all...)
		if took := time.Since(last); took < delay {
			t.Errorf("used %s after the configurations changed, want at least %s", took, delay)
		}
		a.ready(t, c, all...)
		if err := dial(all[0].listener, c, bundle([]*x509.Certificate{second.issuer})); err != nil {
			t.Error(err)
		}
	})(t)
}

// The CA bundle is repaired in the next pass, whatever the Secret contains.
func TestAnOverwrittenCABundleIsRestored(t *testing.T) {
	for name, damage := range map[string]func(a *apiServer){
		"with a good Secret":       func(*apiServer) {},
		"with a deleted Secret":    func(a *apiServer) { a.remove(true) },
		"with an emptied Secret":   func(a *apiServer) { a.put(nil) },
		"with a Secret of rubbish": func(a *apiServer) { a.put(map[string][]byte{caKey: {1}, authorityKey: {2}}) },
		"with a Secret that is read-only": func(a *apiServer) {
			a.put(nil)
			a.setFault(func(_, write string) fault { return map[bool]fault{true: refused}[write == "secret"] })
		},
	} {
		t.Run(name, inBubble(func(t *testing.T) {
			a, c := newAPI(t), &clock{}
			all := a.some(t, 2, c)
			a.ready(t, c, all...)
			damage(a)
			foreign, _, _ := certtest.Issue(t, dnsName, time.Hour)
			for what, bundle := range map[string][]byte{"emptied": nil, "not PEM": {1}, "foreign CA": foreign} {
				a.overwrite(bundle)
				time.Sleep(2*poll + lag)
				for _, r := range all {
					if err := a.dial(r.listener, c); err != nil || r.Ready() != nil {
						t.Errorf("%s: not repaired after two passes: %v, %v", what, err, r.Ready())
					}
				}
			}
			a.recreate()
			time.Sleep(2*poll + lag)
			a.ready(t, c, all...)
			if name == "with a good Secret" {
				eventually(t, "only the Secret's CA remains", func() bool {
					now := a.trusted()
					return len(now) == 1 && bytes.Equal(now[0], a.data()[caKey])
				})
				if n := a.counted()["secret"]; n != 1 {
					t.Errorf("the Secret was written %d times, want once", n)
				}
			}
			// With the Secret restored, everything is as before.
			a.setFault(func(string, string) fault { return none })
			a.mu.Lock()
			a.deleted = false
			a.mu.Unlock()
			end := a.load(t, c, all...)
			eventually(t, "the Secret has a CA", func() bool { return a.data()[authorityCert] != nil })
			fresh := a.start(t, "fresh", self(), c, 0)
			a.ready(t, c, append(all, fresh)...)
			changed(t, nil, append(all, fresh)...)
			end()
		}))
	}
}

// A replica reports that it is not ready while the API server does not trust its certificate.
func TestReadinessReportsWhatTheAPIServerSees(t *testing.T) {
	inBubble(func(t *testing.T) {
		a, c := newAPI(t), &clock{}
		r := a.start(t, "keeper", self(), c, 0)
		a.ready(t, c, r)
		a.setFault(func(string, string) fault { return refused })
		a.overwrite(nil)
		time.Sleep(2 * poll)
		if err := r.Ready(); err == nil || !strings.Contains(err.Error(), "caBundle of webhook") {
			t.Errorf("ready without a CA in the configuration: %v", err)
		}
		time.Sleep(10 * delay)
		// Each refusal has another text.
		if n := strings.Count(r.log.String(), "level=ERROR"); n != 1 {
			t.Errorf("one cause was logged %d times", n)
		}
		a.setDown(true)
		time.Sleep(2 * poll)
		a.setDown(false)
		a.setFault(func(string, string) fault { return none })
		a.ready(t, c, r)
		if n := strings.Count(r.log.String(), "level=ERROR"); n != 2 {
			t.Errorf("two causes were logged %d times", n)
		}
	})(t)
}

func TestAnUnusableSecretIsReplaced(t *testing.T) {
	other := func(t *testing.T, c *clock, dnsName string, from, to time.Duration) map[string][]byte {
		ca, err := newAuthority(dnsName, c.now().Add(from), c.now().Add(to))
		if err != nil {
			t.Fatal(err)
		}
		return map[string][]byte{authorityCert: ca.certPEM, authorityKey: ca.keyPEM, caKey: ca.certPEM}
	}
	for name, damage := range map[string]func(t *testing.T, c *clock, d map[string][]byte) map[string][]byte{
		"emptied": func(*testing.T, *clock, map[string][]byte) map[string][]byte { return nil },
		"nonsense": func(*testing.T, *clock, map[string][]byte) map[string][]byte {
			return map[string][]byte{authorityCert: []byte("a"), authorityKey: []byte("b"), caKey: []byte("c")}
		},
		"without a key": func(_ *testing.T, _ *clock, d map[string][]byte) map[string][]byte {
			delete(d, authorityKey)
			return d
		},
		"key and CA exchanged": func(_ *testing.T, _ *clock, d map[string][]byte) map[string][]byte {
			d[authorityCert], d[authorityKey] = d[authorityKey], d[authorityCert]
			return d
		},
		"a CA for another name": func(t *testing.T, c *clock, _ map[string][]byte) map[string][]byte {
			return other(t, c, "other.gmsa.svc", -time.Hour, caLifetime)
		},
		"a certificate that is no CA": func(t *testing.T, _ *clock, d map[string][]byte) map[string][]byte {
			_, d[authorityCert], d[authorityKey] = certtest.Issue(t, dnsName, time.Hour)
			return d
		},
		"an expired CA": func(t *testing.T, c *clock, _ map[string][]byte) map[string][]byte {
			return other(t, c, dnsName, -time.Hour, -time.Minute)
		},
		"a CA that is not valid yet": func(t *testing.T, c *clock, _ map[string][]byte) map[string][]byte {
			return other(t, c, dnsName, time.Hour, caLifetime)
		},
		"the key of another CA": func(t *testing.T, c *clock, d map[string][]byte) map[string][]byte {
			d[authorityKey] = other(t, c, dnsName, -time.Hour, caLifetime)[authorityKey]
			return d
		},
	} {
		t.Run(name, inBubble(func(t *testing.T) {
			a, c := newAPI(t), &clock{}
			all := a.some(t, 2, c)
			a.ready(t, c, all...)
			first := changed(t, nil, all...)
			end := a.load(t, c, all...)
			a.put(damage(t, c, maps.Clone(a.data())))
			second := changed(t, first, all...)
			time.Sleep(2 * lag)
			end()
			data := a.data()
			ca, err := parseAuthority(data[authorityCert], data[authorityKey], dnsName)
			if err != nil || !ca.cert.Equal(second.issuer) || data[nextKey] != nil {
				t.Errorf("the Secret does not contain the CA in use: %v", err)
			}
			for _, ca := range certificates(data[caKey]) {
				if !constrained(ca, dnsName) {
					t.Errorf("a foreign CA is still trusted: %s for %q", ca.Subject, ca.PermittedDNSDomains)
				}
			}
			const warning = "level=WARN msg=\"the Secret contains no usable CA"
			if log := all[0].log.String() + all[1].log.String(); strings.Count(log, warning) != 1 {
				t.Errorf("no warning, or several:\n%s", log)
			}

			// A fresh replica waits while others serve certificates of another CA.
			a.put(damage(t, c, maps.Clone(a.data())))
			for _, r := range all {
				r.stop()
			}
			fresh := a.start(t, "fresh", self(), c, 0)
			a.ready(t, c, fresh)

			// Without any trusted CA, there is nothing to wait for.
			fresh.stop()
			a.put(damage(t, c, maps.Clone(a.data())))
			a.recreate()
			last := a.start(t, "last", self(), c, 0)
			time.Sleep(2 * poll)
			if err := last.Ready(); err != nil {
				t.Errorf("no replica is in use, but: %v", err)
			}
		}))
	}
}

// The Secret is deleted and, by helm upgrade, created again without data. No handshake fails, and the new CA is used
// in the right order.
func TestTheSecretIsDeleted(t *testing.T) {
	inBubble(func(t *testing.T) {
		a, c := newAPI(t), &clock{}
		all := a.some(t, 2, c)
		a.ready(t, c, all...)
		first := changed(t, nil, all...)
		end := a.load(t, c, all...)
		a.remove(true)
		time.Sleep(5 * delay)
		fresh := a.start(t, "fresh", self(), c, 0)
		time.Sleep(delay)
		if err := fresh.Ready(); err == nil || !strings.Contains(err.Error(), "restore it with helm upgrade") {
			t.Errorf("a fresh replica without the Secret: %v", err)
		}
		a.ready(t, c, all...)
		a.remove(false)
		all = append(all, fresh)
		changed(t, first, all...)
		a.ready(t, c, all...)
		end()
		if n := strings.Count(all[0].log.String(), "level=ERROR"); n != 1 {
			t.Errorf("the missing Secret was logged %d times", n)
		}
	})(t)
}

// The Secret has the format of an earlier version, and its replicas run until the new ones are ready. They write all
// CAs in ca.crt, and only those, into the configurations.
func TestUpgradeFromACertificateWithoutTheCAsKey(t *testing.T) {
	inBubble(func(t *testing.T) {
		a, c := newAPI(t), &clock{}
		ca, cert, key := certtest.Issue(t, dnsName, 20*24*time.Hour)
		a.put(map[string][]byte{"tls.crt": cert, "tls.key": key, caKey: ca})
		a.publish(ca)
		a.mu.Lock()
		a.clock = c
		a.mu.Unlock()
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		old := &replica{name: "old", listener: kubetest.Listen()}
		config := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, Time: c.now}
		go accept(tls.NewListener(old.listener, config))
		defer old.listener.Close()
		stopped := make(chan struct{})
		defer close(stopped)
		go func() {
			for {
				select {
				case <-stopped:
					return
				case <-time.After(poll):
					a.publish(a.data()[caKey])
				}
			}
		}()
		time.Sleep(2 * lag)
		end := a.load(t, c, old)
		all := a.some(t, 2, c)
		time.Sleep(lag)
		for _, r := range all {
			if err := r.Ready(); err == nil || !strings.Contains(err.Error(), "waiting until every API server knows") {
				t.Errorf("%s: ready before API servers know its CA: %v", r.name, err)
			}
		}
		a.ready(t, c, all...)
		end()
		end = a.load(t, c, append(all, old)...)
		time.Sleep(4 * delay)
		if data := a.data(); !bytes.Equal(data["tls.crt"], cert) || len(certificates(data[caKey])) != 2 {
			t.Error("the keys that old replicas need are missing")
		}
		end()
		c.pass(21 * 24 * time.Hour)
		if data := a.data(); data["tls.key"] != nil || len(certificates(data[caKey])) != 1 {
			t.Error("the expired certificate is still there")
		}
		a.ready(t, c, all...)
	})(t)
}

// A keeper dies at each write, before or after it is completed. A new keeper continues.
func TestAKeeperCanDieAtAnyStep(t *testing.T) {
	for _, what := range []string{"the first CA", "a rotation"} {
		for step := range map[string]int{"the first CA": 3, "a rotation": 4}[what] {
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
					if what == "the first CA" {
						die()
					}
					keeper := a.start(t, "keeper", self(), c, 0)
					end := func() {}
					if what == "a rotation" {
						a.ready(t, c, keeper)
						c.pass(untilRotation - time.Hour)
						die()
						c.advance(2 * time.Hour)
						end = a.load(t, c, keeper)
					}
					<-dead
					end()
					old := keeper.current()
					keeper.stop()
					other := a.start(t, "other", self(), c, 0)
					a.ready(t, c, other)
					end = a.load(t, c, other)
					if what == "a rotation" {
						// The dead keeper can have used a CA whose write was lost.
						if p := other.current(); p.issuer.Equal(old.issuer) {
							changed(t, old, other)
						}
					}
					eventually(t, "the next CA is in use", func() bool { return a.data()[nextCert] == nil })
					time.Sleep(2 * lag)
					end()
					if n := len(certificates(a.data()[caKey])); n > 2 {
						t.Errorf("%d CAs for one rotation", n)
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
		first := all[0].current()

		a.setDown(true)
		end := a.load(t, c, all...)
		c.advance(maxLeafLifetime*2/3 + time.Hour)
		time.Sleep(2 * delay)
		for _, r := range all {
			if err := r.Ready(); err != nil {
				t.Errorf("%s while the API server is unavailable: %v", r.name, err)
			}
		}
		a.setDown(false)
		eventually(t, "a new certificate", func() bool { return !all[0].current().same(first) })
		end()

		a.setDown(true)
		c.advance(2 * caLifetime)
		if err := all[0].Ready(); err == nil || !strings.Contains(err.Error(), "is valid from") {
			t.Errorf("with an expired certificate: %v", err)
		}
		a.setDown(false)
		a.ready(t, c, all...) // waiting would not help after the expiry
	})(t)
}

// A replica is disconnected during a rotation. Its certificate is trusted until it expires.
func TestADisconnectedReplicaIsStillTrusted(t *testing.T) {
	inBubble(func(t *testing.T) {
		a, c := newAPI(t), &clock{}
		all := a.some(t, 2, c)
		a.ready(t, c, all...)
		first := changed(t, nil, all...)
		c.pass(untilRotation - time.Hour)
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
		c.advance(2 * time.Hour)
		changed(t, first, all...)
		time.Sleep(2 * overlap)
		if err := a.dial(l, c); err != nil {
			t.Error(err)
		}
		end()
	})(t)
}

// A keeper is delayed between reading the Secret and writing the configurations, while another one rotates.
func TestADelayedKeeperRemovesNoCA(t *testing.T) {
	inBubble(func(t *testing.T) {
		a, c := newAPI(t), &clock{}
		slow := a.start(t, "slow", self(), c, 0)
		a.ready(t, c, slow)
		first := slow.current()
		c.pass(untilRotation - time.Hour)
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
		c.advance(2 * time.Hour)
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
		short := a.start(t, "short", Self{Namespace: "gmsa", Secret: "web-tls", CALifetime: 24 * time.Hour}, c, 0)
		second := changed(t, first, long, short) // 60 days exceed the new lifetime
		if left := second.issuer.NotAfter.Sub(c.now()); left > 24*time.Hour+time.Second {
			t.Errorf("the CA has %s left", left)
		}
		time.Sleep(3 * delay)
		if !long.current().issuer.Equal(second.issuer) || a.counted()["secret"] != 3 {
			t.Errorf("replicas conflict: the Secret was written %d times", a.counted()["secret"])
		}
	})(t)
}
