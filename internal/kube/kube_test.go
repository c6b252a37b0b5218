package kube

import (
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Attack: a user creates a token on the host's disk. With containerd 1.6 the token in the container has precedence.
func TestInClusterPrefersTheSandboxMountPoint(t *testing.T) {
	sandbox := t.TempDir()
	env := map[string]string{
		"KUBERNETES_SERVICE_HOST":       "fd00::1",
		"KUBERNETES_SERVICE_PORT":       "6443",
		"CONTAINER_SANDBOX_MOUNT_POINT": sandbox,
	}
	getenv := func(k string) string { return env[k] }
	server, err := InCluster(getenv)
	if err != nil {
		t.Fatal(err)
	}
	if server.URL != "https://[fd00::1]:6443" || strings.HasPrefix(server.TokenFile, sandbox) {
		t.Errorf("containerd 1.7: %+v", server)
	}
	dir := filepath.Join(sandbox, filepath.FromSlash(serviceAccountDir))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "token"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	server, _ = InCluster(getenv)
	if server.TokenFile != filepath.Join(dir, "token") || server.CAFile != filepath.Join(dir, "ca.crt") {
		t.Errorf("containerd 1.6: %+v", server)
	}
	delete(env, "KUBERNETES_SERVICE_HOST")
	if _, err := InCluster(getenv); err == nil || !strings.Contains(err.Error(), "not running in a pod") {
		t.Errorf("outside a pod: %v", err)
	}
}

func TestURLEscapesItsElements(t *testing.T) {
	c, err := NewClient(Server{URL: "https://127.0.0.1:6443"}, "test")
	if err != nil {
		t.Fatal(err)
	}
	got := c.URL(url.Values{"labelSelector": {"a=b"}}, "api", "v1", "namespaces", "x/../y", "pods")
	if want := "https://127.0.0.1:6443/api/v1/namespaces/x%2F..%2Fy/pods?labelSelector=a%3Db"; got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	for _, bad := range []string{"http://127.0.0.1", "127.0.0.1:6443", "https://", ""} {
		if _, err := NewClient(Server{URL: bad}, "test"); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}
