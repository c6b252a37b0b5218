// Package kube makes requests to the API server from inside a pod, as the pod's ServiceAccount. It is not a general
// client library: the product's pods make only a few kinds of requests.
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

// serviceAccountDir contains the token of the pod's ServiceAccount and the API server's CA.
const serviceAccountDir = "/var/run/secrets/kubernetes.io/serviceaccount"

// Server is the address of the API server and the credentials for it.
type Server struct {
	URL       string // https://host:port
	TokenFile string // read for every request, because the kubelet renews it
	CAFile    string // PEM; also read for every request
}

// InCluster returns the configuration that Kubernetes gives every pod.
func InCluster(getenv func(string) string) (Server, error) {
	host, port := getenv("KUBERNETES_SERVICE_HOST"), getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return Server{}, errors.New("KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set: not running in " +
			"a pod")
	}
	token := MountedFile(getenv, serviceAccountDir+"/token")
	return Server{
		URL:       "https://" + net.JoinHostPort(host, port),
		TokenFile: token,
		CAFile:    filepath.Join(filepath.Dir(token), "ca.crt"),
	}, nil
}

// MountedFile returns the path in the container of a file that the pod mounts at path. With containerd 1.6, a
// HostProcess container has its volumes below %CONTAINER_SANDBOX_MOUNT_POINT% (KEP-1981). A file there has precedence:
// without the prefix, the path is on the host's disk, where another user could have created the file.
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

// Client makes requests to one API server.
type Client struct {
	server Server
	base   *url.URL
	agent  string

	mu     sync.Mutex
	ca     []byte // the CA that client trusts
	client *http.Client

	idle int
	dial func(ctx context.Context, network, address string) (net.Conn, error) // nil: net.Dialer.DialContext
}

// NewClient returns a client with the user agent agent. It does not connect.
func NewClient(server Server, agent string) (*Client, error) {
	base, err := url.Parse(server.URL)
	if err != nil || base.Scheme != "https" || base.Host == "" {
		return nil, fmt.Errorf("API server %q: want a URL of the form https://host:port", server.URL)
	}
	return &Client{server: server, base: base, agent: agent, idle: 1}, nil
}

// KeepIdle sets the number of idle connections, by default one. Call it before the first request.
func (c *Client) KeepIdle(connections int) { c.idle = connections }

// DialWith replaces net.Dialer.DialContext. Call it before the first request.
func (c *Client) DialWith(dial func(ctx context.Context, network, address string) (net.Conn, error)) {
	c.dial = dial
}

// URL returns the URL with these path elements, which it escapes.
func (c *Client) URL(query url.Values, elements ...string) string {
	u := c.base
	for _, e := range elements {
		u = u.JoinPath(url.PathEscape(e))
	}
	withQuery := *u
	withQuery.RawQuery = query.Encode()
	return withQuery.String()
}

// Do makes one request without a body, with the current token and CA. The caller closes the response body.
func (c *Client) Do(ctx context.Context, method, url string) (*http.Response, error) {
	return c.send(ctx, method, url, nil, "")
}

func (c *Client) send(ctx context.Context, method, url string, body []byte, contentType string) (
	*http.Response, error) {
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

// clientForCA returns a client that trusts the current CA file.
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
		return nil, fmt.Errorf("API server's CA: %s contains no certificate", c.server.CAFile)
	}
	if c.client != nil {
		c.client.CloseIdleConnections()
	}
	c.ca = ca
	c.client = &http.Client{
		// No proxy from the environment and no redirects: the token goes only to the API server.
		Transport: &http.Transport{
			TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
			MaxIdleConns:        c.idle,
			MaxIdleConnsPerHost: c.idle,
			IdleConnTimeout:     30 * time.Second,
			DialContext:         c.dial,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c.client, nil
}
