// Package lifecycle holds what must be true of the charts on a cluster: installed, upgraded, broken and uninstalled as users
// do it, with real helm, a real control plane, Windows nodes under Wine. Each test has a cluster of its own.
package lifecycle

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ccgrkc/ccgrkc/lab/env/cluster"
	"github.com/ccgrkc/ccgrkc/lab/env/kubelet"
	"github.com/ccgrkc/ccgrkc/lab/env/tools"
	"github.com/ccgrkc/ccgrkc/lab/env/winnode"
	"github.com/ccgrkc/ccgrkc/lab/labtest"
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
		if err == nil && a.PasswordFingerprint != winnode.Fingerprint(password) {
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

// nothingLeft shows that the node is as it was before anything was installed. It does not wait: helm uninstall did.
func nothingLeft(t *testing.T, n *cluster.Node) {
	t.Helper()
	must(t, isEmpty(t, n))
}

// nothingLeftSoon is nothingLeft in the middle of an uninstall.
func nothingLeftSoon(t *testing.T, n *cluster.Node) {
	t.Helper()
	must(t, cluster.Eventually(t.Context(), 2*time.Minute, func() error { return isEmpty(t, n) }))
}

func isEmpty(t *testing.T, n *cluster.Node) error {
	left, err := n.Leftovers(t.Context())
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("left on %s:\n%s", n.Name, strings.Join(left, "\n"))
	}
	return err
}

// nothingLeftInTheCluster shows that no object of a release is left, the user's Secrets apart. The pods of its hooks may still
// be ending: Kubernetes collects them after their owners, and Helm does not wait for that.
func nothingLeftInTheCluster(t *testing.T, c *cluster.Cluster, release string) {
	t.Helper()
	left := func(what string) error {
		out, err := c.Run(t.Context(), tools.Kubectl, "get", what, "--namespace", namespace, "--selector", "app.kubernetes.io/instance="+release, "-o", "name")
		if err == nil && strings.Contains(out, "/") {
			err = fmt.Errorf("left of release %s in the cluster:\n%s", release, out)
		}
		return err
	}
	must(t, left("daemonsets,deployments,jobs,services,serviceaccounts,roles,rolebindings,secrets,configmaps"))
	must(t, cluster.Eventually(t.Context(), time.Minute, func() error { return left("pods") }))
}

// load has ccg on a node call 20 times a second until the function that it returns is called, and no call may have failed then.
func load(t *testing.T, n *cluster.Node, input string) (end func()) {
	t.Helper()
	stop, err := n.Load(t.Context(), input)
	must(t, err)
	return func() {
		t.Helper()
		r, err := stop()
		if err != nil {
			t.Error(err)
		}
		t.Logf("%s: %d calls in %.1f s, %d answered, the slowest in %.0f ms", n.Name, r.Calls, r.ElapsedMs/1000, r.Succeeded, r.MaxMs)
	}
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
			message, err := c.WaitForStartFailure(ctx, "default", "app", "secret-not-found", 2*time.Minute)
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
			var ends []func()
			for _, n := range c.WindowsNodes() {
				ends = append(ends, load(t, n, input))
			}
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
			for _, end := range ends {
				end()
			}
			if _, err := plugin.Rollback(ctx, "1"); err != nil {
				t.Error(err)
			}
			for _, n := range c.WindowsNodes() {
				answers(t, n, input, "first")
			}

			// What is to be gone afterwards is seen now.
			left, err := c.Node("win-1").Leftovers(ctx)
			must(t, err)
			for _, what := range []string{`Control\CCG\COMClasses\{`, `EventLog\Application\CCGRKC`, `CLSID\{`, "ccg-plugin-", "client.key"} {
				if !strings.Contains(strings.ToUpper(strings.Join(left, "\n")), strings.ToUpper(what)) {
					t.Errorf("with both charts installed no %s is seen in:\n%s", what, strings.Join(left, "\n"))
				}
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
	const label = "node-restriction.kubernetes.io/gmsa-account"
	c := start(t, "win-1", "win-2")
	ctx := t.Context()
	must(t, c.Label(ctx, "win-1", label+"=web"))
	install(t, installer(c))
	install(t, provider(c, "web"), "--set", `nodeSelector.node-restriction\.kubernetes\.io/gmsa-account=web`)
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

	// A node that somebody broke into would give itself the label. Below node-restriction.kubernetes.io/ it may not.
	config, err := c.ControlPlane.NodeConfig(ctx, "win-2")
	must(t, err)
	mustNotLabelItself(t, config, "win-2", label, "web")

	// What win-2's kubelet may do with its own rights: no token of the account, no Secret of it.
	mustBeForbidden(t, config, namespace, "web", "web-creds")

	// The label moves: so does the access.
	must(t, c.Label(ctx, "win-1", label+"=none"))
	must(t, c.Label(ctx, "win-2", label+"=web"))
	answers(t, c.Node("win-2"), input, "secret")
	refused(t, c.Node("win-1"), input, "0xA0040001")
	must(t, c.Label(ctx, "win-2", label+"=none"))
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

// Two releases for one Secret on one node are a mistake that values.yaml warns of. The uninstall of one says what is wrong, and
// takes nothing from the other.
func TestTwoReleasesOfOneSecretAreTold(t *testing.T) {
	t.Parallel()
	c := start(t, "win-1")
	ctx := t.Context()
	install(t, installer(c))
	install(t, provider(c, "web"))
	must(t, c.PutSecret(ctx, namespace, "web-creds", "secret"))
	answers(t, c.Node("win-1"), input, "secret")
	_, err := c.Run(ctx, tools.Helm4, "install", "twin", cluster.Chart(cluster.Provider), "--namespace", namespace,
		"--set", "credentials.secretName=web-creds", "--set", "uninstall.timeout=20s")
	must(t, err)
	must(t, cluster.Eventually(ctx, time.Minute, func() error {
		_, err := c.Pod(ctx, namespace, "twin", "win-1")
		return err
	}))
	out, err := provider(c, "twin").Uninstall(ctx)
	if err == nil || !strings.Contains(out, "win-1") || !strings.Contains(out, "a provider still serves it") {
		t.Errorf("%v\n%s", err, out)
	}
	answers(t, c.Node("win-1"), input, "secret")
}
