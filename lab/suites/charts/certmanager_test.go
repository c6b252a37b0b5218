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

// TestCertManagerCertificatesAreValid runs cert-manager's controllers and validates the certificates as provider and
// plugin do.
func TestCertManagerCertificatesAreValid(t *testing.T) {
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
	releases := []rendering{
		{chart: provider, release: "web", values: values},
		{chart: provider, release: "corp", values: values},
	}
	material := map[string]*mtls.Material{}
	for i, r := range releases {
		r := r.withDefaults()
		notes, err := c.helm(t, helms(t)[i], r, "install")
		if err != nil {
			t.Fatal(err)
		}
		// The notes have a command that deletes the objects that remain after "helm uninstall".
		for _, text := range []string{
			"kubectl delete secret", r.release + "-server", r.release + "-client", r.release + "-ca",
		} {
			if !strings.Contains(notes, text) {
				t.Errorf("the notes do not contain %q:\n%s", text, notes)
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
			text, _ := os.ReadFile(log)
			t.Fatalf("cert-manager did not create Secret %s within a minute:\n%s", name, text)
			return nil
		}
		server, client := secret(r.release+"-server"), secret(r.release+"-client")
		if string(server["ca.crt"]) != string(client["ca.crt"]) {
			t.Errorf("%s: server and client have different CAs", r.release)
		}
		ref := credential.Reference{Namespace: r.namespace, Secret: credential.SecretName(r.release)}
		if _, err := mtls.ServerConfig(ref, server["ca.crt"], server["tls.crt"], server["tls.key"]); err != nil {
			t.Errorf("%s, server: %v", r.release, err)
		}
		if _, err := mtls.ClientConfig(ref, client["ca.crt"], client["tls.crt"], client["tls.key"]); err != nil {
			t.Errorf("%s, client: %v", r.release, err)
		}
		if _, err := mtls.ServerConfig(ref, client["ca.crt"], client["tls.crt"], client["tls.key"]); err == nil {
			t.Errorf("%s: the client certificate is valid for a server", r.release)
		}
		material[r.release] = &mtls.Material{
			CA:         server["ca.crt"],
			ClientCert: client["tls.crt"],
			ClientKey:  client["tls.key"],
		}
	}
	if string(material["web"].CA) == string(material["corp"].CA) {
		t.Error("two releases have the same CA")
	}
}
