// Package lifecycle holds what must be true of the charts on a cluster: installed, upgraded, broken and uninstalled as users
// do it, with real helm, a real control plane, Windows nodes under Wine. Each test has a cluster of its own.
package lifecycle

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ccgrkc/ccgrkc/lab/cluster"
	"github.com/ccgrkc/ccgrkc/lab/kubelet"
	"github.com/ccgrkc/ccgrkc/lab/labtest"
	"github.com/ccgrkc/ccgrkc/lab/stage"
	"github.com/ccgrkc/ccgrkc/lab/tools"
)

const namespace = "gmsa-system"

// start starts a cluster with the node linux-1 and these Windows nodes. A name that ends with -16 is one with containerd 1.6.
func start(t *testing.T, windows ...string) *cluster.Cluster {
	t.Helper()
	labtest.Require(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	c, err := cluster.Start(ctx, t.TempDir())
	must(t, err)
	t.Cleanup(c.Stop)
	_, err = c.AddLinux(ctx, "linux-1")
	must(t, err)
	for _, name := range windows {
		addWindows(t, c, name)
	}
	return c
}

func addWindows(t *testing.T, c *cluster.Cluster, name string) *cluster.Node {
	t.Helper()
	o := cluster.NodeOptions{}
	if strings.HasSuffix(name, "-16") {
		o.Sandbox = kubelet.Containerd16
	}
	n, err := c.AddWindows(t.Context(), name, o)
	must(t, err)
	return n
}

func installer(c *cluster.Cluster) cluster.Release {
	return cluster.Release{Cluster: c, Chart: cluster.Installer, Namespace: namespace, Name: "plugin"}
}

func provider(c *cluster.Cluster, name string) cluster.Release {
	return cluster.Release{Cluster: c, Chart: cluster.Provider, Namespace: namespace, Name: name}
}

func install(t *testing.T, r cluster.Release, args ...string) {
	t.Helper()
	_, err := r.Install(t.Context(), args...)
	must(t, err)
}

// installBoth installs the plugin and one provider with its Secret, and shows that they work on every node.
func installBoth(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	install(t, installer(c))
	install(t, provider(c, "web"))
	must(t, c.PutSecret(t.Context(), namespace, "web-creds", "secret"))
	for _, n := range c.WindowsNodes() {
		answers(t, n, namespace+":web-creds", "secret")
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// answers waits until ccg on the node gets this password, which may take as long as a node is late and a copy serves.
func answers(t *testing.T, n *cluster.Node, input, password string) {
	t.Helper()
	must(t, cluster.Eventually(t.Context(), time.Minute, func() error {
		a, err := n.Stage.Fetch(t.Context(), input)
		if err == nil && a.PasswordFingerprint != stage.Fingerprint(password) {
			err = fmt.Errorf("ccg on %s got %+v for %s", n.Name, a, input)
		}
		return err
	}))
}

// refused shows that ccg on the node is refused with this HRESULT.
func refused(t *testing.T, n *cluster.Node, input, hresult string) {
	t.Helper()
	must(t, cluster.Eventually(t.Context(), time.Minute, func() error {
		a, err := n.Stage.Fetch(t.Context(), input)
		if err == nil && a.HResult != hresult {
			err = fmt.Errorf("ccg on %s got %+v for %s, want %s", n.Name, a, input, hresult)
		}
		return err
	}))
}

// nothingLeft shows that the node is as it was before anything was installed.
func nothingLeft(t *testing.T, n *cluster.Node) {
	t.Helper()
	must(t, cluster.Eventually(t.Context(), 10*time.Second, func() error {
		left, err := n.Left(t.Context())
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("left on %s:\n%s", n.Name, strings.Join(left, "\n"))
		}
		return err
	}))
}

// nothingLeftInTheCluster shows that no object of a release is left, the user's Secrets apart.
func nothingLeftInTheCluster(t *testing.T, c *cluster.Cluster, release string) {
	t.Helper()
	out, err := c.Run(t.Context(), tools.Kubectl, "get", "all,serviceaccounts,roles,rolebindings,secrets,configmaps", "--namespace", namespace,
		"--selector", "app.kubernetes.io/instance="+release, "-o", "name")
	must(t, err)
	if strings.Contains(out, "/") {
		t.Errorf("left of release %s in the cluster:\n%s", release, out)
	}
}

// load has ccg on a node call 20 times a second, and returns a function that waits for the end and says what came of it.
func load(t *testing.T, n *cluster.Node, input string, calls int) (wait func() loadReport) {
	t.Helper()
	done := make(chan loadReport, 1)
	go func() {
		out, err := n.Stage.CCG(t.Context(), "--input", input, "--calls", fmt.Sprint(calls), "--parallel", "4", "--every", "50ms")
		var r loadReport
		if jsonErr := json.Unmarshal(out, &r); jsonErr != nil {
			t.Errorf("the emulator printed %q: %v, %v", out, jsonErr, err)
		}
		done <- r
	}()
	return func() loadReport { return <-done }
}

type loadReport struct {
	Calls, Succeeded int
	HResults         map[string]int
	Errors           map[string]int
	ElapsedMs, MaxMs float64
}

func (r loadReport) mustHaveSucceeded(t *testing.T) {
	t.Helper()
	if r.Calls == 0 || r.Succeeded != r.Calls {
		t.Errorf("%d of %d calls succeeded: %v %v", r.Succeeded, r.Calls, r.HResults, r.Errors)
	}
	t.Logf("%d calls in %.1f s, all answered: %v; the slowest took %.0f ms", r.Calls, r.ElapsedMs/1000, r.Succeeded == r.Calls, r.MaxMs)
}

// The life of both charts with each helm: installed before the Secret exists, tested, upgraded and rolled back under calls,
// uninstalled with nothing left on any node.
func TestLifeOfBothCharts(t *testing.T) {
	for _, helm := range []tools.Tool{tools.Helm4, tools.Helm3} {
		t.Run(fmt.Sprint(helm), func(t *testing.T) {
			t.Parallel()
			c := start(t, "win-1", "win-2-16")
			ctx := t.Context()
			plugin, web := installer(c), provider(c, "web")
			plugin.Helm, web.Helm = helm, helm
			const input = namespace + ":web-creds"

			install(t, plugin)
			install(t, web) // is ready without its Secret
			if out, err := web.Test(ctx); err == nil || !strings.Contains(out, "no good copy of the Secret") {
				t.Errorf("helm test without the Secret: %v\n%s", err, out)
			}
			must(t, c.CreateAppPod(ctx, "default", "app", "win-1", input))
			message, err := c.WaitForRefusal(ctx, "default", "app", "secret-not-found", 2*time.Minute)
			must(t, err)
			if !strings.Contains(message, "#3489661095") {
				t.Errorf("the pod says %q, which is not what Windows says", message)
			}
			must(t, c.PutSecret(ctx, namespace, "web-creds", "first"))
			must(t, c.WaitForPod(ctx, "default", "app", 2*time.Minute))
			for _, n := range c.WindowsNodes() {
				answers(t, n, input, "first")
			}
			for _, r := range []cluster.Release{plugin, web} {
				out, err := r.Test(ctx)
				if err != nil {
					t.Errorf("helm test: %v\n%s", err, out)
				}
			}

			// 20 calls a second while both charts are upgraded at once, and rolled back.
			wait := load(t, c.Node("win-1"), input, 900)
			upgraded := make(chan error, 1)
			go func() {
				_, err := plugin.Install(ctx, "--set", "log.level=debug")
				upgraded <- err
			}()
			install(t, web, "--set", "log.level=debug", "--set", "podAnnotations.upgraded=yes")
			must(t, <-upgraded)
			if _, err := web.Rollback(ctx, "1"); err != nil {
				t.Error(err)
			}
			wait().mustHaveSucceeded(t)
			if _, err := plugin.Rollback(ctx, "1"); err != nil {
				t.Error(err)
			}
			for _, n := range c.WindowsNodes() {
				answers(t, n, input, "first")
			}

			_, err = c.Run(ctx, tools.Kubectl, "delete", "pod", "app")
			must(t, err)
			for _, r := range []cluster.Release{web, plugin} {
				if out, err := r.Uninstall(ctx); err != nil {
					t.Errorf("%v\n%s", err, out)
				}
				nothingLeftInTheCluster(t, c, r.Name)
			}
			for _, n := range c.WindowsNodes() {
				nothingLeft(t, n)
			}
			if _, err := c.ControlPlane.Client().CoreV1().Secrets(namespace).Get(ctx, "web-creds", metav1.GetOptions{}); err != nil {
				t.Errorf("the user's Secret: %v", err)
			}
		})
	}
}

// Attack: a workload on a node outside the nodeSelector wants the account. That node never gets a pod, a token, a file or a
// port, also not when its neighbour does.
func TestANodeOutsideTheSelectorGetsNothing(t *testing.T) {
	t.Parallel()
	c := start(t, "win-1", "win-2")
	ctx := t.Context()
	must(t, c.Label(ctx, "win-1", "gmsa=web"))
	install(t, installer(c))
	install(t, provider(c, "web"), "--set", "nodeSelector.gmsa=web")
	must(t, c.PutSecret(ctx, namespace, "web-creds", "secret"))
	const input = namespace + ":web-creds"
	answers(t, c.Node("win-1"), input, "secret")
	outside := func() {
		t.Helper()
		refused(t, c.Node("win-2"), input, "0xA0040001")
		if _, err := c.Pod(ctx, namespace, "web", "win-2"); err == nil {
			t.Error("the provider runs on win-2")
		}
		if files, _ := filepath.Glob(c.Node("win-2").Stage.Node.Path(`C:\var\lib\rancher\gmsa`) + "/*"); len(files) > 0 {
			t.Errorf("on win-2: %q", files)
		}
	}
	outside()

	// What win-2's kubelet may do with its own rights: no token of the account, no Secret of it.
	config, err := c.ControlPlane.NodeConfig(ctx, "win-2")
	must(t, err)
	mustBeForbidden(t, config, namespace, "web", "web-creds")

	// The label moves: so does the access.
	must(t, c.Label(ctx, "win-1", "gmsa=none"))
	must(t, c.Label(ctx, "win-2", "gmsa=web"))
	answers(t, c.Node("win-2"), input, "secret")
	refused(t, c.Node("win-1"), input, "0xA0040001")
	must(t, c.Label(ctx, "win-2", "gmsa=none"))
	outside()
}

// Two releases in one namespace, and releases of equal name in two namespaces, on one node: each answers for its own account,
// and goes without the others.
func TestReleasesSideBySide(t *testing.T) {
	t.Parallel()
	c := start(t, "win-1")
	ctx := t.Context()
	install(t, installer(c))
	elsewhere := provider(c, "web")
	elsewhere.Namespace = "other-system"
	accounts := map[string]cluster.Release{"gmsa-system:web-creds": provider(c, "web"), "gmsa-system:shop-creds": provider(c, "shop"), "other-system:web-creds": elsewhere}
	for input, r := range accounts {
		install(t, r)
		must(t, c.PutSecret(ctx, r.Namespace, r.Name+"-creds", "password of "+input))
	}
	n := c.Node("win-1")
	for input := range accounts {
		answers(t, n, input, "password of "+input)
	}
	if out, err := elsewhere.Uninstall(ctx); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	refused(t, n, "other-system:web-creds", "0xA0040001")
	delete(accounts, "other-system:web-creds")
	for input := range accounts {
		answers(t, n, input, "password of "+input)
	}
	for _, r := range accounts {
		if out, err := r.Uninstall(ctx); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	if files, _ := filepath.Glob(n.Stage.Node.Path(`C:\var`) + "/*"); len(files) > 0 {
		t.Errorf("left: %q", files)
	}
}

// Values that cannot work are refused before anything is created, not even the namespace's first object.
func TestWrongValuesCreateNothing(t *testing.T) {
	t.Parallel()
	c := start(t)
	for _, wrong := range []struct{ set, says string }{
		{"credentials.secretNam=x", "secretNam"},
		{"credentials.maxStale=1 day", "maxStale"},
		{"credentials.secretName=a/b", "secretName"},
		{"certificates.mode=certManager", "cert-manager.io"},
	} {
		for _, helm := range []tools.Tool{tools.Helm3, tools.Helm4} {
			r := provider(c, "web")
			r.Helm = helm
			out, err := r.Install(t.Context(), "--set", wrong.set)
			if err == nil || !strings.Contains(out, wrong.says) {
				t.Errorf("%v with %s: %v\n%s", helm, wrong.set, err, out)
			}
		}
	}
	_, err := c.ControlPlane.Client().CoreV1().Namespaces().Get(t.Context(), namespace, metav1.GetOptions{})
	if !apierrors.IsNotFound(err) {
		t.Errorf("the namespace: %v", err)
	}
}
