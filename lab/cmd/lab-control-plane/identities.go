package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

const lifetime = 10 * 365 * 24 * time.Hour

// identities are the API server's clients that this program creates.
type identities struct {
	admin, controllerManager, scheduler identity
}

type identity struct {
	kubeconfig string // path
}

func (i identity) client() (*kubernetes.Clientset, error) {
	config, err := clientcmd.BuildConfigFromFlags("", i.kubeconfig)
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfig(config)
}

// issueIdentities writes keys and certificates to dir, the working directory. It keeps the authorities and the service
// account key of an earlier run, so that its tokens and kubeconfigs remain valid. Leaf certificates are always new.
func issueIdentities(dir, server string, ip net.IP) (identities, error) {
	var none identities
	ca, err := loadOrCreateAuthority("ca", "lab-ca")
	if err != nil {
		return none, err
	}
	frontProxyCA, err := loadOrCreateAuthority("front-proxy-ca", "lab-front-proxy-ca")
	if err != nil {
		return none, err
	}
	if err := createServiceAccountKey(); err != nil {
		return none, err
	}
	err = ca.issueFiles("apiserver", &x509.Certificate{
		Subject:     pkix.Name{CommonName: "kube-apiserver"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
			"kubernetes.default.svc.cluster.local"},
		IPAddresses: []net.IP{ip, net.IPv4(127, 0, 0, 1), net.IPv4(10, 0, 0, 1)},
	})
	if err != nil {
		return none, err
	}
	if err := frontProxyCA.issueFiles("front-proxy", clientTemplate("front-proxy")); err != nil {
		return none, err
	}

	var ids identities
	for _, c := range []struct {
		to       *identity
		file     string
		template *x509.Certificate
	}{
		{&ids.admin, "admin.kubeconfig", clientTemplate("lab-admin", "system:masters")},
		{&ids.controllerManager, "controller-manager.kubeconfig", clientTemplate("system:kube-controller-manager")},
		{&ids.scheduler, "scheduler.kubeconfig", clientTemplate("system:kube-scheduler")},
	} {
		c.to.kubeconfig = filepath.Join(dir, c.file)
		if err := ca.writeKubeconfig(c.to.kubeconfig, server, c.template); err != nil {
			return none, err
		}
	}
	return ids, nil
}

type authority struct {
	certificate *x509.Certificate
	pem         []byte
	key         crypto.Signer
}

func loadOrCreateAuthority(name, commonName string) (*authority, error) {
	a, err := loadAuthority(name)
	if !errors.Is(err, fs.ErrNotExist) {
		return a, err
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: commonName},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature | x509.KeyUsageCRLSign,
	}
	certPEM, keyPEM, err := issue(template, nil)
	if err != nil {
		return nil, err
	}
	// The certificate last: after a kill in between, the next run creates both files again.
	if err := os.WriteFile(name+".key", keyPEM, 0o600); err != nil {
		return nil, err
	}
	if err := writeAtomically(name+".crt", certPEM); err != nil {
		return nil, err
	}
	return loadAuthority(name)
}

func loadAuthority(name string) (*authority, error) {
	certPEM, err := os.ReadFile(name + ".crt")
	if err != nil {
		return nil, err
	}
	keyPEM, err := os.ReadFile(name + ".key")
	if err != nil {
		return nil, err
	}
	certBlock, _ := pem.Decode(certPEM)
	keyBlock, _ := pem.Decode(keyPEM)
	if certBlock == nil || keyBlock == nil {
		return nil, fmt.Errorf("%s.crt or %s.key in the state directory is not PEM; remove the directory", name, name)
	}
	certificate, err := x509.ParseCertificate(certBlock.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s.crt in the state directory: %w", name, err)
	}
	key, err := x509.ParseECPrivateKey(keyBlock.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s.key in the state directory: %w", name, err)
	}
	return &authority{certificate, certPEM, key}, nil
}

// issue creates a key and a certificate, signed by parent or, if parent is nil, self-signed.
func issue(template *x509.Certificate, parent *authority) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, nil, err
	}
	if template.KeyUsage == 0 {
		template.KeyUsage = x509.KeyUsageDigitalSignature
	}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(lifetime)
	signer := &authority{certificate: template, key: key}
	if parent != nil {
		signer = parent
	}
	der, err := x509.CreateCertificate(rand.Reader, template, signer.certificate, key.Public(), signer.key)
	if err != nil {
		return nil, nil, fmt.Errorf("certificate of %s: %w", template.Subject.CommonName, err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	certPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM = pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})
	return certPEM, keyPEM, nil
}

func clientTemplate(commonName string, organizations ...string) *x509.Certificate {
	return &x509.Certificate{
		Subject:     pkix.Name{CommonName: commonName, Organization: organizations},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
}

func (a *authority) issueFiles(name string, template *x509.Certificate) error {
	certPEM, keyPEM, err := issue(template, a)
	if err != nil {
		return err
	}
	if err := os.WriteFile(name+".key", keyPEM, 0o600); err != nil {
		return err
	}
	return os.WriteFile(name+".crt", certPEM, 0o600)
}

func (a *authority) writeKubeconfig(path, server string, template *x509.Certificate) error {
	certPEM, keyPEM, err := issue(template, a)
	if err != nil {
		return err
	}
	config := clientcmdapi.NewConfig()
	config.Clusters["lab"] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: a.pem}
	config.AuthInfos["lab"] = &clientcmdapi.AuthInfo{ClientCertificateData: certPEM, ClientKeyData: keyPEM}
	config.Contexts["lab"] = &clientcmdapi.Context{Cluster: "lab", AuthInfo: "lab"}
	config.CurrentContext = "lab"
	content, err := clientcmd.Write(*config)
	if err != nil {
		return err
	}
	return writeAtomically(path, content)
}

// createServiceAccountKey creates the key that signs service account tokens, if it is missing.
func createServiceAccountKey() error {
	if _, err := os.Stat("service-account.pub"); err == nil {
		return nil
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return err
	}
	private := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	if err := os.WriteFile("service-account.key", private, 0o600); err != nil {
		return err
	}
	return writeAtomically("service-account.pub", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}))
}

// writeAtomically writes a file that is complete or absent, even if the process is killed.
func writeAtomically(path string, content []byte) error {
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
