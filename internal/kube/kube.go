// Package kube is what a pod knows of the Kubernetes API: where the API server is, as whom to ask it, and one way to ask. It
// is no client library: the product's pods make a handful of different requests, and each of them can be read here and there.
package kube

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// serviceAccountDir is where a pod finds its ServiceAccount's token and the API server's CA.
const serviceAccountDir = "/var/run/secrets/kubernetes.io/serviceaccount"

// Server tells how to reach the API server and as whom.
type Server struct {
	URL       string // https://host:port
	TokenFile string // read again for every request: the kubelet renews it
	CAFile    string // PEM; read again likewise
}

// InCluster is the configuration that Kubernetes gives every pod.
func InCluster(getenv func(string) string) (Server, error) {
	host, port := getenv("KUBERNETES_SERVICE_HOST"), getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return Server{}, errors.New("KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set: this is not a pod")
	}
	token := MountedFile(getenv, serviceAccountDir+"/token")
	return Server{
		URL:       "https://" + net.JoinHostPort(host, port),
		TokenFile: token,
		CAFile:    filepath.Join(filepath.Dir(token), "ca.crt"),
	}, nil
}

// MountedFile is the path at which the container finds a file that the pod mounts at path. Under containerd 1.6 a
// HostProcess container finds its volumes below %CONTAINER_SANDBOX_MOUNT_POINT% (KEP-1981). What is there comes first: the
// same path without the prefix is then the host's own disk, where somebody else could have put a file.
func MountedFile(getenv func(string) string, path string) string {
	path = filepath.FromSlash(path)
	if sandbox := getenv("CONTAINER_SANDBOX_MOUNT_POINT"); sandbox != "" {
		inside := filepath.Join(sandbox, path[len(filepath.VolumeName(path)):])
		if _, err := os.Stat(inside); err == nil {
			return inside
		}
	}
	return path
}

// Client asks one API server.
type Client struct {
	server Server
	base   *url.URL
	agent  string

	mu     sync.Mutex
	ca     []byte // what client was made for
	client *http.Client

	idle int
}

// NewClient returns a client that calls itself agent. It does not connect.
func NewClient(server Server, agent string) (*Client, error) {
	base, err := url.Parse(server.URL)
	if err != nil || base.Scheme != "https" || base.Host == "" {
		return nil, fmt.Errorf("API server %q: want a URL of the form https://host:port", server.URL)
	}
	return &Client{server: server, base: base, agent: agent, idle: 1}, nil
}

// KeepIdle says how many connections stay open between requests; without it, one. It is called before the first request.
func (c *Client) KeepIdle(connections int) { c.idle = connections }

// URL is the address of the resource with these path elements, which are escaped.
func (c *Client) URL(query url.Values, elements ...string) string {
	u := c.base
	for _, e := range elements {
		u = u.JoinPath(url.PathEscape(e))
	}
	withQuery := *u
	withQuery.RawQuery = query.Encode()
	return withQuery.String()
}

// Do makes one request without a body, with the token and the CA as they are now. The caller closes the answer's body.
func (c *Client) Do(ctx context.Context, method, url string) (*http.Response, error) {
	return c.send(ctx, method, url, nil, "")
}

func (c *Client) send(ctx context.Context, method, url string, body []byte, contentType string) (*http.Response, error) {
	client, err := c.clientForCA()
	if err != nil {
		return nil, err
	}
	token, err := os.ReadFile(c.server.TokenFile)
	if err != nil {
		return nil, fmt.Errorf("ServiceAccount token: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	req.Header.Set("Authorization", "Bearer "+string(bytes.TrimSpace(token)))
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", c.agent)
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("API server: %w", err)
	}
	return resp, nil
}

// clientForCA returns a client that trusts what the CA file holds now.
func (c *Client) clientForCA() (*http.Client, error) {
	ca, err := os.ReadFile(c.server.CAFile)
	if err != nil {
		return nil, fmt.Errorf("API server's CA: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.client != nil && bytes.Equal(ca, c.ca) {
		return c.client, nil
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("API server's CA: %s holds no certificate", c.server.CAFile)
	}
	if c.client != nil {
		c.client.CloseIdleConnections()
	}
	c.ca = ca
	c.client = &http.Client{
		// No proxy from the environment, and no redirect: the token goes to the API server and nowhere else.
		Transport: &http.Transport{
			TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
			MaxIdleConns:        c.idle,
			MaxIdleConnsPerHost: c.idle,
			IdleConnTimeout:     30 * time.Second,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c.client, nil
}
