package webhook

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ccgrkc/ccgrkc/lab/env/cluster"
	"github.com/ccgrkc/ccgrkc/lab/env/tools"
	"github.com/ccgrkc/ccgrkc/lab/labtest"
)

// served returns the certificate that each replica uses.
func (l *lab) served() ([]*x509.Certificate, error) {
	replicas, err := l.replicas()
	if err != nil {
		return nil, err
	}
	var served []*x509.Certificate
	for _, r := range replicas {
		// The API server verifies the CA. This does not.
		conn, err := tls.Dial("tcp", net.JoinHostPort(r.Status.PodIP, "9443"), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			return nil, err
		}
		served = append(served, conn.ConnectionState().PeerCertificates[0])
		conn.Close()
	}
	if len(served) != 2 {
		return nil, fmt.Errorf("%d replicas, want 2", len(served))
	}
	return served, nil
}

// renewed waits until both replicas use certificates of the same CA, which is not that of before. In mode self, each
// replica has its own certificate.
func (l *lab) renewed(before *x509.Certificate, within time.Duration) *x509.Certificate {
	l.t.Helper()
	var now []*x509.Certificate
	l.eventually(within, func() (err error) {
		if now, err = l.served(); err != nil {
			return err
		}
		a, b := string(now[0].AuthorityKeyId), string(now[1].AuthorityKeyId)
		if a != b || before != nil && a == string(before.AuthorityKeyId) {
			return fmt.Errorf("the replicas use certificates of the CAs %x and %x", a, b)
		}
		return nil
	})
	return now[0]
}

// noneRefused ends a load and fails the test if a request was denied.
func noneRefused(t *testing.T, what string, least int, end func() loaded) {
	t.Helper()
	r := end()
	t.Logf("%s: %s", what, r)
	if r.all < least || len(r.again) > 0 {
		t.Errorf("%s: %s; want at least %d and none denied", what, r, least)
	}
}

// A CA with a lifetime of a minute: 1,000 admission requests during several rotations and upgrades with both versions of
// helm cause no denial and no restart.
func TestTheCAIsRotated(t *testing.T) {
	labtest.Alone(t)
	t.Parallel()
	l := own(t)
	values := []string{"--set", "certificates.caLifetime=1m", "--set", "certificates.propagationDelay=3s"}
	l.install(values...)
	ns := l.namespace("renewed")
	l.spec("renewed", input, ns, "default")
	end := l.load(10, l.pod(ns, "p", "renewed"))
	began := time.Now()
	last := l.renewed(nil, 20*time.Second)
	for i := range 2 {
		last = l.renewed(last, time.Minute)
		// An upgrade keeps the CA, or the webhook restores it in time.
		helm3 := l.webhook()
		helm3.Helm = []tools.Tool{tools.Helm4, tools.Helm3}[i]
		if _, err := helm3.Install(t.Context(), append(values, "--set", fmt.Sprintf("podDisruptionBudget.maxUnavailable=%d", 2+i))...); err != nil {
			t.Error(err)
		}
	}
	l.renewed(last, time.Minute)
	if rest := 105*time.Second - time.Since(began); rest > 0 {
		time.Sleep(rest)
	}
	noneRefused(t, "three rotations", 1000, end)
	l.noRestarts()
}

// The Secret with the CA is emptied or deleted, and the CA bundle overwritten. The webhook repairs what it can, and helm
// upgrade the rest. No admission request is denied, except while the CA bundle is wrong.
func TestTheSecretWithTheCAIsLost(t *testing.T) {
	labtest.Alone(t)
	t.Parallel()
	l := own(t)
	values := []string{"--set", "certificates.propagationDelay=3s"}
	l.install(values...)
	ns := l.namespace("lost")
	l.spec("lost", input, ns, "default")
	secrets := l.client.CoreV1().Secrets(system)
	overwrite := func() {
		t.Helper()
		_, err := l.client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Patch(t.Context(), cluster.Webhook, types.JSONPatchType,
			[]byte(`[{"op":"remove","path":"/webhooks/0/clientConfig/caBundle"}]`), metav1.PatchOptions{})
		must(t, err)
		l.eventually(20*time.Second, func() error { return l.dryRun(l.pod(ns, "p", "lost")) })
	}
	first := l.renewed(nil, 20*time.Second)
	overwrite()

	end := l.load(10, l.pod(ns, "p", "lost"))
	_, err := secrets.Patch(t.Context(), cluster.Webhook+"-tls", types.JSONPatchType, []byte(`[{"op":"remove","path":"/data"}]`), metav1.PatchOptions{})
	must(t, err)
	second := l.renewed(first, time.Minute)
	noneRefused(t, "an emptied Secret", 20, end)

	must(t, secrets.Delete(t.Context(), cluster.Webhook+"-tls", metav1.DeleteOptions{}))
	overwrite()
	end = l.load(10, l.pod(ns, "p", "lost"))
	l.install(values...)
	l.renewed(second, time.Minute)
	noneRefused(t, "a deleted Secret", 20, end)
	l.noRestarts()
}

// Certificates from cert-manager's real controllers, and from the user's Secret. A new CA causes no denial.
func TestCertificatesFromOtherSources(t *testing.T) {
	labtest.Alone(t)
	t.Parallel()
	l := own(t)
	ctx := t.Context()
	must(t, l.StartCertManager(ctx))
	l.install("--set", "certificates.mode=certManager", "--set", "certificates.propagationDelay=5s")
	ns := l.namespace("elsewhere")
	l.spec("elsewhere", input, ns, "default")
	first := l.renewed(nil, 20*time.Second)
	end := l.load(10, l.pod(ns, "p", "elsewhere"))
	// The CA and its certificate are reissued.
	for _, secret := range []string{cluster.Webhook + "-ca", cluster.Webhook + "-cert"} {
		l.mustKubectl("delete", "secret", secret, "--namespace", system)
		l.eventually(time.Minute, func() error {
			s, err := l.client.CoreV1().Secrets(system).Get(ctx, secret, metav1.GetOptions{})
			if err == nil && len(s.Data["tls.crt"]) == 0 {
				err = fmt.Errorf("secret %s is empty", secret)
			}
			return err
		})
	}
	l.renewed(first, 90*time.Second)
	noneRefused(t, "cert-manager's renewal with a new CA", 50, end)
	l.noRestarts()

	_, err := l.webhook().Uninstall(ctx)
	must(t, err)
	ca, key := authority(t)
	l.provide(ca, key)
	l.install("--set", "certificates.mode=provided", "--set", "certificates.provided.secretName=mine", "--set", "certificates.propagationDelay=5s")
	first = l.renewed(nil, 20*time.Second)
	l.eventually(20*time.Second, func() error { return l.dryRun(l.pod(ns, "p", "elsewhere")) })
	end = l.load(10, l.pod(ns, "q", "elsewhere"))
	ca, key = authority(t)
	l.provide(ca, key)
	l.renewed(first, 90*time.Second)
	noneRefused(t, "a provided certificate with a new CA", 50, end)
	l.noRestarts()

	// With the CA in the chart, the webhook has no permission for the configurations. Helm 4 needs --force-conflicts,
	// because the webhook owns the field caBundle.
	l.install("--set", "certificates.mode=provided", "--set", "certificates.provided.secretName=mine", "--set-literal", "certificates.provided.caBundle="+string(ca), "--force-conflicts")
	l.eventually(20*time.Second, func() error { return l.dryRun(l.pod(ns, "r", "elsewhere")) })
	for _, verb := range []string{"get", "patch"} {
		if out, err := l.kubectl("auth", "can-i", verb, "validatingwebhookconfiguration/"+cluster.Webhook, "--as", "system:serviceaccount:"+system+":"+cluster.Webhook); err == nil {
			t.Errorf("the webhook can %s its configuration: %s", verb, out)
		}
	}
}

// The mode changes by upgrade and rollback, with both versions of helm. If helm writes the CA bundle, pods can be denied
// during the change. They are retried, and none is lost.
func TestChangesOfTheMode(t *testing.T) {
	labtest.Alone(t)
	t.Parallel()
	l := own(t)
	ctx := t.Context()
	must(t, l.StartCertManager(ctx))
	ns := l.namespace("modes")
	ca, key := authority(t)
	mode := func(name string, more ...string) []string {
		return append([]string{"--set", "certificates.propagationDelay=5s", "--set", "certificates.mode=" + name}, more...)
	}
	for _, helm := range []tools.Tool{tools.Helm4, tools.Helm3} {
		webhook := l.webhook()
		webhook.Helm = helm
		_, err := webhook.Install(ctx, mode("self")...)
		must(t, err)
		l.provide(ca, key)
		l.spec("modes", input, ns, "default")
		last := l.renewed(nil, 30*time.Second)
		install := func(args []string) func() (string, error) {
			return func() (string, error) { return webhook.Install(ctx, args...) }
		}
		rollback := func(revision string) func() (string, error) {
			return func() (string, error) { return webhook.Rollback(ctx, revision) }
		}
		provided := mode("provided", "--set", "certificates.provided.secretName=mine", "--set-literal", "certificates.provided.caBundle="+string(ca))
		if helm == tools.Helm4 {
			provided = append(provided, "--force-conflicts")
		}
		for _, change := range []struct {
			to string
			do func() (string, error)
		}{
			{"certManager", install(mode("certManager"))},
			{"self, by a rollback", rollback("1")},
			{"certManager, by a rollback", rollback("2")},
			{"self", install(mode("self"))},
			{"provided with a caBundle", install(provided)},
			{"self, from a caBundle", install(mode("self"))},
		} {
			end := l.load(10, l.pod(ns, "p", "modes"))
			if out, err := change.do(); err != nil {
				t.Fatalf("%s, to %s: %v\n%s", helm, change.to, err, out)
			}
			last = l.renewed(last, time.Minute)
			r := end()
			t.Logf("%s, to %s: %s", helm, change.to, r)
			if r.all < 20 || len(r.lost) > 0 {
				t.Errorf("%s, to %s: want at least 20 and none lost", helm, change.to)
			}
			untrusted := func(err error) bool { return strings.Contains(err.Error(), "failed to verify certificate") }
			if !strings.Contains(change.to, "caBundle") && slices.ContainsFunc(r.again, untrusted) {
				t.Errorf("%s, to %s: an API server did not trust a replica", helm, change.to)
			}
		}
		l.noRestarts()
		_, err = webhook.Uninstall(ctx)
		must(t, err)
	}
}

// provide creates the Secret mine with a certificate from this CA.
func (l *lab) provide(ca []byte, key *ecdsa.PrivateKey) {
	l.t.Helper()
	certPEM, keyPEM := issue(l.t, ca, key, &x509.Certificate{DNSNames: []string{cluster.Webhook + "." + system + ".svc"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	secrets := l.client.CoreV1().Secrets(system)
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "mine"}, Data: map[string][]byte{"tls.crt": certPEM, "tls.key": keyPEM, "ca.crt": ca}}
	_ = secrets.Delete(context.WithoutCancel(l.t.Context()), "mine", metav1.DeleteOptions{}) // it may not exist
	_, err := secrets.Create(l.t.Context(), secret, metav1.CreateOptions{})
	must(l.t, err)
}
