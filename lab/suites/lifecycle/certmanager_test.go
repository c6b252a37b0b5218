package lifecycle

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ccgrkc/ccgrkc/lab/env/cluster"
	"github.com/ccgrkc/ccgrkc/lab/env/tools"
	"github.com/ccgrkc/ccgrkc/lab/labtest"
)

// With certificates from cert-manager's real controllers, calls succeed, also during a renewal. No pod has the CA's
// key.
func TestCertificatesFromCertManager(t *testing.T) {
	t.Parallel()
	c := start(t, "win-1", "win-2-16")
	ctx := t.Context()
	labtest.Must(t, c.StartCertManager(ctx))
	install(t, installer(c))
	install(t, provider(c, "web"), "--set", "certificates.mode=certManager")
	labtest.Must(t, c.PutSecret(ctx, namespace, "web-creds", "secret"))
	for _, n := range c.WindowsNodes() {
		waitForPassword(t, n, input, "secret")
	}
	first := serverCertificate(t, c)
	if first.PublicKeyAlgorithm != x509.ECDSA || time.Until(first.NotAfter) > 25*time.Hour {
		t.Errorf("the certificate is %s until %s", first.PublicKeyAlgorithm, first.NotAfter)
	}

	pods, err := c.ControlPlane.Client().CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	labtest.Must(t, err)
	for _, pod := range pods.Items {
		for _, v := range pod.Spec.Volumes {
			if v.Secret != nil && strings.Contains(v.Secret.SecretName, "-ca") {
				t.Errorf("pod %s mounts Secret %s", pod.Name, v.Secret.SecretName)
			}
		}
	}

	// After the deletion of a certificate's Secret, cert-manager issues a new certificate and key, as for a renewal.
	end := load(t, c.Node("win-1"), input)
	for _, side := range []string{"web-server", "web-client"} {
		_, err := c.Run(ctx, tools.Kubectl, "delete", "secret", side, "--namespace", namespace)
		labtest.Must(t, err)
	}
	labtest.Must(t, cluster.Eventually(ctx, time.Minute, func() error {
		if second := serverCertificate(t, c); second == nil || second.SerialNumber.Cmp(first.SerialNumber) == 0 {
			return fmt.Errorf("cert-manager has not renewed the server's certificate")
		}
		return nil
	}))
	// The kubelet updates the node within seconds. Then the provider publishes the certificate.
	labtest.Must(t, cluster.Eventually(ctx, 2*time.Minute, func() error {
		out, err := c.Run(ctx, tools.Kubectl, "logs", "--namespace", namespace, "daemonset/web", "--tail=-1")
		if err == nil && !strings.Contains(out, "certificates renewed") {
			err = fmt.Errorf("the provider's log:\n%s", out)
		}
		return err
	}))
	end()
	waitForPassword(t, c.Node("win-2-16"), input, "secret")

	if out, err := provider(c, "web").Uninstall(ctx); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func serverCertificate(t *testing.T, c *cluster.Cluster) *x509.Certificate {
	t.Helper()
	secrets := c.ControlPlane.Client().CoreV1().Secrets(namespace)
	secret, err := secrets.Get(t.Context(), "web-server", metav1.GetOptions{})
	if err != nil {
		return nil
	}
	block, _ := pem.Decode(secret.Data["tls.crt"])
	if block == nil {
		return nil
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	labtest.Must(t, err)
	return certificate
}
