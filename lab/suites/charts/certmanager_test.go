package charts

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	corev1 "k8s.io/api/core/v1"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/mtls"
	"github.com/ccgrkc/ccgrkc/lab/env/certmanager"
)

// TestCertManagerMakesWhatBothSidesAccept lets cert-manager's own controllers work on what the chart makes, and holds the
// certificates to the rule of the provider and of the plugin.
func TestCertManagerMakesWhatBothSidesAccept(t *testing.T) {
	c := newCluster(t, "gmsa-system")
	if err := certmanager.InstallCRDs(t.Context(), c.Kubeconfig); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(t.TempDir(), "log")
	stop, err := certmanager.Start(t.Context(), c.Kubeconfig, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)

	const values = `certificates: {mode: certManager}`
	releases := []rendering{{chart: provider, release: "web", values: values}, {chart: provider, release: "corp", values: values}}
	material := map[string]*mtls.Material{}
	for i, r := range releases {
		r := r.withDefaults()
		notes, err := c.helm(t, helms(t)[i], r, "install")
		if err != nil {
			t.Fatal(err)
		}
		// What helm uninstall leaves is named in a command that removes it.
		for _, made := range []string{"kubectl delete secret", r.release + "-server", r.release + "-client", r.release + "-ca"} {
			if !strings.Contains(notes, made) {
				t.Errorf("the notes do not say %q:\n%s", made, notes)
			}
		}
		secret := func(name string) map[string][]byte {
			t.Helper()
			for range 600 {
				s, err := c.Client().CoreV1().Secrets(r.namespace).Get(t.Context(), name, metav1.GetOptions{})
				if err == nil && len(s.Data[corev1.TLSCertKey]) > 0 {
					return s.Data
				}
				if err != nil && !apierrors.IsNotFound(err) {
					t.Fatal(err)
				}
				time.Sleep(100 * time.Millisecond)
			}
			said, _ := os.ReadFile(log)
			t.Fatalf("cert-manager did not make Secret %s in a minute:\n%s", name, said)
			return nil
		}
		server, client := secret(r.release+"-server"), secret(r.release+"-client")
		if string(server["ca.crt"]) != string(client["ca.crt"]) {
			t.Errorf("%s: server and client come from different CAs", r.release)
		}
		ref := credential.Reference{Namespace: r.namespace, Secret: r.release + "-creds"}
		if _, err := mtls.ServerConfig(ref, server["ca.crt"], server["tls.crt"], server["tls.key"]); err != nil {
			t.Errorf("%s, server: %v", r.release, err)
		}
		if _, err := mtls.ClientConfig(ref, client["ca.crt"], client["tls.crt"], client["tls.key"]); err != nil {
			t.Errorf("%s, client: %v", r.release, err)
		}
		if _, err := mtls.ServerConfig(ref, client["ca.crt"], client["tls.crt"], client["tls.key"]); err == nil {
			t.Errorf("%s: the client's certificate is good for a server", r.release)
		}
		material[r.release] = &mtls.Material{CA: server["ca.crt"], ClientCert: client["tls.crt"], ClientKey: client["tls.key"]}
	}
	if string(material["web"].CA) == string(material["corp"].CA) {
		t.Error("two releases share a CA")
	}
}
