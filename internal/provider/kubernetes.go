package provider

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/credential"
)

// serviceAccountDir is where a pod finds its ServiceAccount's token and the API server's CA.
const serviceAccountDir = "/var/run/secrets/kubernetes.io/serviceaccount"

const (
	// fetchTimeout bounds one request to the API server. A call to the provider waits for at most one.
	fetchTimeout = 2 * time.Second
	// maxSecretLength bounds an answer of the API server: a Secret has at most 1 MiB of data, which base64 and metadata
	// make longer.
	maxSecretLength = 3 << 20
)

// APIServer tells how to reach the Kubernetes API and as whom.
type APIServer struct {
	URL       string // https://host:port
	TokenFile string // read again for every request: the kubelet renews it
	CAFile    string // PEM; read again likewise
}

// InCluster is the configuration that Kubernetes gives every pod. Under containerd 1.6 a HostProcess container finds its
// volumes below %CONTAINER_SANDBOX_MOUNT_POINT% (KEP-1981). What is there comes first: the same path without the prefix
// is then the host's own disk, where somebody else could have put a file.
func InCluster(getenv func(string) string) (APIServer, error) {
	host, port := getenv("KUBERNETES_SERVICE_HOST"), getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return APIServer{}, errors.New("KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set; this is not a pod, so name the API server with --kube-api-server, --kube-token-file and --kube-ca-file")
	}
	dir := filepath.FromSlash(serviceAccountDir)
	if sandbox := getenv("CONTAINER_SANDBOX_MOUNT_POINT"); sandbox != "" {
		inside := filepath.Join(sandbox, dir)
		if _, err := os.Stat(filepath.Join(inside, "token")); err == nil {
			dir = inside
		}
	}
	return APIServer{
		URL:       "https://" + net.JoinHostPort(host, port),
		TokenFile: filepath.Join(dir, "token"),
		CAFile:    filepath.Join(dir, "ca.crt"),
	}, nil
}

// secretReader reads one Secret and can read no other.
type secretReader struct {
	api APIServer
	ref credential.Reference
	url string

	mu     sync.Mutex
	ca     []byte // what client was made for
	client *http.Client
}

func newSecretReader(api APIServer, ref credential.Reference) (*secretReader, error) {
	base, err := url.Parse(api.URL)
	if err != nil || base.Scheme != "https" || base.Host == "" {
		return nil, fmt.Errorf("API server %q: want a URL of the form https://host:port", api.URL)
	}
	return &secretReader{api: api, ref: ref, url: base.JoinPath("api/v1/namespaces", ref.Namespace, "secrets", ref.Secret).String()}, nil
}

// read asks the API server once. A *credential.Problem is an answer: the cluster says no. Any other error is an outage.
func (r *secretReader) read(ctx context.Context) (credential.Credential, []string, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	client, err := r.clientForCA()
	if err != nil {
		return credential.Credential{}, nil, err
	}
	token, err := os.ReadFile(r.api.TokenFile)
	if err != nil {
		return credential.Credential{}, nil, fmt.Errorf("ServiceAccount token: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url, nil)
	if err != nil {
		return credential.Credential{}, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+string(bytes.TrimSpace(token)))
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "gmsa-account-provider")
	resp, err := client.Do(req)
	if err != nil {
		return credential.Credential{}, nil, fmt.Errorf("API server: %w", err)
	}
	defer resp.Body.Close()
	body, err := readAndWipeCopies(resp.Body, maxSecretLength)
	defer clear(body)
	if err != nil {
		return credential.Credential{}, nil, fmt.Errorf("API server: %w", err)
	}
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return credential.Credential{}, nil, &credential.Problem{Code: credential.ProblemSecretNotFound, Detail: fmt.Sprintf(
			"secret %s/%s does not exist; make it with: kubectl create secret generic %s --namespace %s --from-literal=domainName=<DNS name> --from-literal=username=<account> --from-file=password=<file>",
			r.ref.Namespace, r.ref.Secret, r.ref.Secret, r.ref.Namespace)}
	case http.StatusForbidden:
		return credential.Credential{}, nil, &credential.Problem{Code: credential.ProblemForbidden, Detail: fmt.Sprintf(
			"the provider's ServiceAccount may not get secret %s/%s; restore the release's Role and RoleBinding (helm upgrade does)", r.ref.Namespace, r.ref.Secret)}
	case http.StatusUnauthorized:
		return credential.Credential{}, nil, &credential.Problem{Code: credential.ProblemForbidden, Detail: fmt.Sprintf(
			"the API server does not accept the provider's ServiceAccount token for secret %s/%s; the ServiceAccount may have been deleted: restore it and restart the provider's pod", r.ref.Namespace, r.ref.Secret)}
	default:
		return credential.Credential{}, nil, fmt.Errorf("API server: status %d", resp.StatusCode)
	}

	var secret struct {
		Kind string            `json:"kind"`
		Data map[string][]byte `json:"data"`
	}
	defer func() {
		for _, v := range secret.Data {
			clear(v)
		}
	}()
	if err := json.Unmarshal(body, &secret); err != nil || secret.Kind != "Secret" {
		return credential.Credential{}, nil, errors.New("API server: the answer is not a Secret") // err could quote the body
	}
	cred, warnings, err := credential.FromSecret(secret.Data)
	if err != nil {
		return credential.Credential{}, warnings, &credential.Problem{Code: credential.ProblemSecretInvalid,
			Detail: fmt.Sprintf("secret %s/%s: %v", r.ref.Namespace, r.ref.Secret, err)}
	}
	return cred, warnings, nil
}

// clientForCA returns a client that trusts what the CA file holds now.
func (r *secretReader) clientForCA() (*http.Client, error) {
	ca, err := os.ReadFile(r.api.CAFile)
	if err != nil {
		return nil, fmt.Errorf("API server's CA: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.client != nil && bytes.Equal(ca, r.ca) {
		return r.client, nil
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("API server's CA: %s holds no certificate", r.api.CAFile)
	}
	if r.client != nil {
		r.client.CloseIdleConnections()
	}
	r.ca = ca
	r.client = &http.Client{
		// No proxy from the environment, and no redirect: the token goes to the API server and nowhere else.
		Transport: &http.Transport{
			TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
			MaxIdleConns:    1,
			IdleConnTimeout: 30 * time.Second,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return r.client, nil
}

// readAndWipeCopies is io.ReadAll with a bound, and without leaving the smaller buffers behind that it grew out of.
func readAndWipeCopies(r io.Reader, limit int) ([]byte, error) {
	b := make([]byte, 0, 16<<10)
	for {
		if len(b) == cap(b) {
			if cap(b) >= limit {
				clear(b)
				return nil, fmt.Errorf("the answer is longer than %d bytes", limit)
			}
			grown := make([]byte, len(b), min(2*cap(b), limit))
			copy(grown, b)
			clear(b)
			b = grown
		}
		n, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if err == io.EOF {
			return b, nil
		}
		if err != nil {
			clear(b)
			return nil, err
		}
	}
}
