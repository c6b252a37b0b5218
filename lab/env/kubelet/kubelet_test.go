package kubelet_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ccgrkc/ccgrkc/lab/env/controlplane"
	"github.com/ccgrkc/ccgrkc/lab/env/kubelet"
	"github.com/ccgrkc/ccgrkc/lab/env/wine"
	"github.com/ccgrkc/ccgrkc/lab/labtest"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

const namespace = "default"

// cluster is a control plane with a registry that holds the image of testdata/prog.
type cluster struct {
	*controlplane.ControlPlane
	client kubernetes.Interface
	image  string
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	cp := labtest.ControlPlane(t)
	c := &cluster{ControlPlane: cp, client: cp.Client(), image: pushImage(t)}
	// Pods need this ConfigMap. A controller creates it soon after the start.
	labtest.Eventually(t, 30*time.Second, "the namespace has the ConfigMap kube-root-ca.crt", func() bool {
		_, err := c.client.CoreV1().ConfigMaps(namespace).Get(t.Context(), "kube-root-ca.crt", metav1.GetOptions{})
		return err == nil
	})
	return c
}

// node starts a node and stops it at the test's end.
func (c *cluster) node(t *testing.T, o kubelet.Options) *kubelet.Node {
	t.Helper()
	config, err := c.NodeConfig(t.Context(), o.Name)
	if err != nil {
		t.Fatal(err)
	}
	o.Config = config
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	n, err := kubelet.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Kill)
	return n
}

var programs = sync.OnceValues(func() (map[string][]byte, error) {
	dir, err := os.MkdirTemp("", "lab-kubelet-test-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	built := map[string][]byte{}
	for _, goos := range []string{"linux", "windows"} {
		out := filepath.Join(dir, goos)
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, "./testdata/prog")
		cmd.Env = append(os.Environ(), "GOOS="+goos, "GOARCH=amd64", "CGO_ENABLED=0", "GOFLAGS=")
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%w\n%s", err, out)
		}
		if built[goos], err = os.ReadFile(out); err != nil {
			return nil, err
		}
	}
	return built, nil
})

// pushImage pushes an index with an image for each operating system to a registry for this test.
func pushImage(t *testing.T) string {
	t.Helper()
	built, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	ref, err := name.ParseReference(strings.TrimPrefix(server.URL, "http://") + "/test/prog:1")
	if err != nil {
		t.Fatal(err)
	}
	index := mutate.IndexMediaType(empty.Index, "application/vnd.oci.image.index.v1+json")
	for goos, path := range map[string]string{"linux": "prog", "windows": "Files/prog.exe"} {
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
			return io.NopCloser(tarOf(t, path, built[goos])), nil
		})
		if err != nil {
			t.Fatal(err)
		}
		img, err := mutate.AppendLayers(empty.Image, layer)
		if err != nil {
			t.Fatal(err)
		}
		img, err = mutate.ConfigFile(img, &v1.ConfigFile{
			OS:           goos,
			Architecture: "amd64",
			Config:       v1.Config{Env: []string{"FROM_IMAGE=yes"}},
			RootFS:       v1.RootFS{Type: "layers", DiffIDs: diffIDs(t, layer)},
		})
		if err != nil {
			t.Fatal(err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add:        img,
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: goos, Architecture: "amd64"}},
		})
	}
	if err := remote.WriteIndex(ref, index); err != nil {
		t.Fatal(err)
	}
	return ref.String()
}

func diffIDs(t *testing.T, layer v1.Layer) []v1.Hash {
	t.Helper()
	id, err := layer.DiffID()
	if err != nil {
		t.Fatal(err)
	}
	return []v1.Hash{id}
}

func tarOf(t *testing.T, path string, content []byte) io.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	header := &tar.Header{Name: path, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(content))}
	if err := w.WriteHeader(header); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

// podOf is a pod for a node, whose container runs testdata/prog with these arguments.
func (c *cluster) podOf(name, node, goos string, args ...string) *corev1.Pod {
	program := "/prog"
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace},
		Spec: corev1.PodSpec{
			NodeName:    node,
			Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
		},
	}
	if goos == "windows" {
		program = "prog.exe"
		yes, system := true, `NT AUTHORITY\SYSTEM`
		pod.Spec.HostNetwork = true
		windows := &corev1.WindowsSecurityContextOptions{HostProcess: &yes, RunAsUserName: &system}
		pod.Spec.SecurityContext = &corev1.PodSecurityContext{WindowsOptions: windows}
	}
	pod.Spec.Containers = []corev1.Container{{
		Name:    "main",
		Image:   c.image,
		Command: append([]string{program}, args...),
	}}
	return pod
}

// probe is a probe with a period of one second.
func probe(failures int32, handler corev1.ProbeHandler) *corev1.Probe {
	return &corev1.Probe{PeriodSeconds: 1, FailureThreshold: failures, ProbeHandler: handler}
}

// field is a value of the downward API.
func field(path string) *corev1.EnvVarSource {
	return &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}
}

func (c *cluster) create(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	// The controller can create the service account a little later.
	labtest.Eventually(t, 10*time.Second, "pod "+pod.Name+" is created", func() bool {
		_, err := c.client.CoreV1().Pods(namespace).Create(t.Context(), pod, metav1.CreateOptions{})
		if err != nil {
			t.Log(err)
		}
		return err == nil
	})
}

func (c *cluster) get(t *testing.T, pod string) *corev1.Pod {
	t.Helper()
	p, err := c.client.CoreV1().Pods(namespace).Get(t.Context(), pod, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (c *cluster) waitPod(t *testing.T, pod, what string, holds func(*corev1.Pod) bool) *corev1.Pod {
	t.Helper()
	var p *corev1.Pod
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if p = c.get(t, pod); holds(p) {
			return p
		}
		if time.Now().After(deadline) {
			t.Fatalf("pod %s: timeout waiting until %s; status: %+v\nlog: %s", pod, what, p.Status, c.logs(t, pod, nil))
		}
	}
}

func ready(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

func (c *cluster) logs(t *testing.T, pod string, o *corev1.PodLogOptions) string {
	t.Helper()
	if o == nil {
		o = &corev1.PodLogOptions{}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	b, err := c.client.CoreV1().Pods(namespace).GetLogs(pod, o).DoRaw(ctx)
	if err != nil {
		return fmt.Sprintf("%s(error: %v)", b, err)
	}
	return string(b)
}

func (c *cluster) delete(t *testing.T, pod string, grace int64) {
	t.Helper()
	options := metav1.DeleteOptions{GracePeriodSeconds: &grace}
	if err := c.client.CoreV1().Pods(namespace).Delete(t.Context(), pod, options); err != nil {
		t.Fatal(err)
	}
}

func (c *cluster) waitGone(t *testing.T, pod string) {
	t.Helper()
	labtest.Eventually(t, 30*time.Second, "pod "+pod+" is gone", func() bool {
		_, err := c.client.CoreV1().Pods(namespace).Get(t.Context(), pod, metav1.GetOptions{})
		return err != nil
	})
}

// disk lists the files on a Wine node's drive C, except those of Windows.
func disk(t *testing.T, node *wine.Node) []string {
	t.Helper()
	root := node.UnixPath(`C:\`)
	var found []string
	err := filepath.WalkDir(root, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(root, path)
		if name == "windows" || name == "users" || name == "lab/images" {
			return filepath.SkipDir
		}
		found = append(found, name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
