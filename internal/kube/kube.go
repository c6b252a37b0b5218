// Package kube makes requests to the API server from inside a pod, as the pod's ServiceAccount. It is not a general
// client library: the product's pods make only a few kinds of requests.
//
//	kube.go     the configuration of a client
//	call.go     requests and their errors
//	verdict.go  tells a verdict of the API server from a failure of it
//	lane.go     connections
package kube

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
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

// DefaultTimeout is the maximum duration of one HTTP request, from the connection to the end of the response.
const DefaultTimeout = 10 * time.Second

// Client makes requests to one API server. Its methods can be called concurrently. A method takes at most the timeout
// of one HTTP request, and ConfirmTimeout if the API server refuses.
type Client struct {
	server  Server
	base    *url.URL
	agent   string
	timeout time.Duration

	mu    sync.Mutex
	ca    []byte         // content of the CA file
	roots *x509.CertPool // the same, parsed
	lanes []*lane        // not in use, the last used one last

	idle int
	dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// NewClient returns a client with the user agent agent. It does not connect.
func NewClient(server Server, agent string) (*Client, error) {
	base, err := url.Parse(server.URL)
	if err != nil || base.Scheme != "https" || base.Host == "" {
		return nil, fmt.Errorf("API server %q: want a URL of the form https://host:port", server.URL)
	}
	dialer := &net.Dialer{Timeout: connectTimeout}
	return &Client{
		server:  server,
		base:    base,
		agent:   agent,
		timeout: DefaultTimeout,
		idle:    1,
		dial:    dialer.DialContext,
	}, nil
}

// KeepIdle sets the number of idle connections, by default one. Call it before the first request.
func (c *Client) KeepIdle(connections int) { c.idle = connections }

// SetTimeout replaces DefaultTimeout. Call it before the first request.
func (c *Client) SetTimeout(timeout time.Duration) { c.timeout = timeout }

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
