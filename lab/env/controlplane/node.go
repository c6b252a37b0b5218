package controlplane

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// NodeConfig returns the client configuration of a node's kubelet. The cluster signs its client certificate as for a
// real node, so the Node authorizer and NodeRestriction apply.
func (cp *ControlPlane) NodeConfig(ctx context.Context, name string) (*rest.Config, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "system:node:" + name, Organization: []string{"system:nodes"}},
	}, key)
	if err != nil {
		return nil, err
	}
	requests := cp.client.CertificatesV1().CertificateSigningRequests()
	csr, err := requests.Create(ctx, &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{GenerateName: name + "-"},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			Request:    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: request}),
			SignerName: certificatesv1.KubeAPIServerClientKubeletSignerName,
			Usages:     []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageClientAuth},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("certificate of node %s: %w", name, err)
	}
	// The controller manager approves and signs it, because cluster-admin can request the certificate of any node.
	for deadline := time.Now().Add(30 * time.Second); len(csr.Status.Certificate) == 0; {
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("certificate of node %s: not signed within 30 s", name)
		}
		time.Sleep(50 * time.Millisecond)
		if csr, err = requests.Get(ctx, csr.Name, metav1.GetOptions{}); err != nil {
			return nil, fmt.Errorf("certificate of node %s: %w", name, err)
		}
	}
	return &rest.Config{Host: cp.Server, TLSClientConfig: rest.TLSClientConfig{
		CAData:   cp.CA,
		CertData: csr.Status.Certificate,
		KeyData:  pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}),
	}}, nil
}
