// Package lifecycle tests the charts on a cluster: installation, upgrade, failures and uninstallation, with real helm,
// a real control plane and Windows nodes under Wine. Each test has its own cluster.
package lifecycle

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/lab/env/cluster"
	"github.com/ccgrkc/ccgrkc/lab/env/kubelet"
	"github.com/ccgrkc/ccgrkc/lab/env/tools"
	"github.com/ccgrkc/ccgrkc/lab/env/winnode"
	"github.com/ccgrkc/ccgrkc/lab/labtest"
)

const namespace = "gmsa-system"

// start starts a cluster with the node linux-1 and these Windows nodes. A node whose name ends in -16 has containerd
// 1.6.
func start(t *testing.T, windows ...string) *cluster.Cluster {
	t.Helper()
	labtest.Require(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	c, err := cluster.Start(ctx, t.TempDir())
	labtest.Must(t, err)
	t.Cleanup(c.Stop)
	_, err = c.AddLinux(ctx, "linux-1")
	labtest.Must(t, err)
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
	labtest.Must(t, err)
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
	labtest.Must(t, err)
}

// installBoth installs the plugin and a provider with its Secret, and verifies that they work on every node.
func installBoth(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	install(t, installer(c))
	install(t, provider(c, "web"))
	labtest.Must(t, c.PutSecret(t.Context(), namespace, "web-creds", "secret"))
	for _, n := range c.WindowsNodes() {
		waitForPassword(t, n, namespace+":web-creds", "secret")
	}
}

// waitForPassword waits until the emulator on the node gets this password. A slow node or cached credentials can delay
// it.
func waitForPassword(t *testing.T, n *cluster.Node, input, password string) {
	t.Helper()
	labtest.Must(t, cluster.Eventually(t.Context(), time.Minute, func() error {
		a, err := n.Stage.Fetch(t.Context(), input)
		if err == nil && a.PasswordFingerprint != winnode.Fingerprint(password) {
			err = fmt.Errorf("the emulator on %s got %+v for %s", n.Name, a, input)
		}
		return err
	}))
}

// waitForHResult waits until the emulator's calls on the node fail with this HRESULT.
func waitForHResult(t *testing.T, n *cluster.Node, input, hresult string) {
	t.Helper()
	labtest.Must(t, cluster.Eventually(t.Context(), time.Minute, func() error {
		a, err := n.Stage.Fetch(t.Context(), input)
		if err == nil && a.HResult != hresult {
			err = fmt.Errorf("the emulator on %s got %+v for %s, want %s", n.Name, a, input, hresult)
		}
		return err
	}))
}

// checkClean verifies that nothing of the product is on the node. It does not wait, because helm uninstall has waited.
func checkClean(t *testing.T, n *cluster.Node) {
	t.Helper()
	labtest.Must(t, isClean(t, n))
}

// waitClean is checkClean during an uninstallation.
func waitClean(t *testing.T, n *cluster.Node) {
	t.Helper()
	labtest.Must(t, cluster.Eventually(t.Context(), 2*time.Minute, func() error { return isClean(t, n) }))
}

func isClean(t *testing.T, n *cluster.Node) error {
	left, err := n.Leftovers(t.Context())
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("files or registry keys are left on %s:\n%s", n.Name, strings.Join(left, "\n"))
	}
	return err
}

// checkClusterClean verifies that no object of a release is left, except the user's Secrets. It waits for the pods of
// the hooks: Kubernetes deletes them after their owners, and Helm does not wait for that.
func checkClusterClean(t *testing.T, c *cluster.Cluster, release string) {
	t.Helper()
	left := func(what string) error {
		out, err := c.Run(t.Context(), tools.Kubectl, "get", what, "--namespace", namespace,
			"--selector", "app.kubernetes.io/instance="+release, "-o", "name")
		if err == nil && strings.Contains(out, "/") {
			err = fmt.Errorf("objects of release %s are left:\n%s", release, out)
		}
		return err
	}
	labtest.Must(t, left("daemonsets,deployments,jobs,services,serviceaccounts,roles,rolebindings,secrets,configmaps"))
	labtest.Must(t, cluster.Eventually(t.Context(), time.Minute, func() error { return left("pods") }))
}

// load makes the emulator on a node call 20 times per second until end is called. end fails the test if a call failed.
func load(t *testing.T, n *cluster.Node, input string) (end func()) {
	t.Helper()
	stop, err := n.Load(t.Context(), input)
	labtest.Must(t, err)
	return func() {
		t.Helper()
		r, err := stop()
		if err != nil {
			t.Error(err)
		}
		t.Logf("%s: %d calls in %.1f s, %d succeeded, slowest %.0f ms",
			n.Name, r.Calls, r.ElapsedMs/1000, r.Succeeded, r.MaxMs)
	}
}

// Both charts with each helm: installed before the Secret exists, tested, upgraded and rolled back during calls, and
// uninstalled with nothing left on any node.
func TestInstallUpgradeRollbackAndUninstall(t *testing.T) {
	for _, helm := range []tools.Tool{tools.Helm4, tools.Helm3} {
		t.Run(fmt.Sprint(helm), func(t *testing.T) {
			t.Parallel()
			c := start(t, "win-1", "win-2-16")
			ctx := t.Context()
			plugin, web := installer(c), provider(c, "web")
			plugin.Helm, web.Helm = helm, helm
			const input = namespace + ":web-creds"

			install(t, plugin)
			install(t, web) // becomes ready without its Secret
			if out, err := web.Test(ctx); err == nil || !strings.Contains(out, "the provider has no credentials") {
				t.Errorf("helm test without the Secret: %v\n%s", err, out)
			}
			labtest.Must(t, c.CreateAppPod(ctx, "default", "app", "win-1", input))
			message, err := c.WaitForStartFailure(ctx, "default", "app", "secret-not-found", 2*time.Minute)
			labtest.Must(t, err)
			if !strings.Contains(message, "#3489661095") {
				t.Errorf("the pod has the message %q, want the error number of Windows", message)
			}
			labtest.Must(t, c.PutSecret(ctx, namespace, "web-creds", "first"))
			labtest.Must(t, c.WaitForPod(ctx, "default", "app", 2*time.Minute))
			for _, n := range c.WindowsNodes() {
				waitForPassword(t, n, input, "first")
			}
			for _, r := range []cluster.Release{plugin, web} {
				out, err := r.Test(ctx)
				if err != nil {
					t.Errorf("helm test: %v\n%s", err, out)
				}
			}

			// 20 calls per second during a simultaneous upgrade of both charts and a rollback.
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
			labtest.Must(t, <-upgraded)
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
				waitForPassword(t, n, input, "first")
			}

			// Leftovers must find the installed files and keys, so that the check after the uninstallation is valid.
			left, err := c.Node("win-1").Leftovers(ctx)
			labtest.Must(t, err)
			for _, what := range []string{
				`Control\CCG\COMClasses\{`,
				`EventLog\Application\CCGRKC`,
				`CLSID\{`,
				"ccg-plugin-",
				"client.key",
			} {
				if !strings.Contains(strings.ToUpper(strings.Join(left, "\n")), strings.ToUpper(what)) {
					t.Errorf("with both charts installed, %s is missing in:\n%s", what, strings.Join(left, "\n"))
				}
			}
			_, err = c.Run(ctx, tools.Kubectl, "delete", "pod", "app")
			labtest.Must(t, err)
			for _, r := range []cluster.Release{web, plugin} {
				if out, err := r.Uninstall(ctx); err != nil {
					t.Errorf("%v\n%s", err, out)
				}
				checkClusterClean(t, c, r.Name)
			}
			for _, n := range c.WindowsNodes() {
				checkClean(t, n)
			}
			secrets := c.ControlPlane.Client().CoreV1().Secrets(namespace)
			if _, err := secrets.Get(ctx, "web-creds", metav1.GetOptions{}); err != nil {
				t.Errorf("the user's Secret: %v", err)
			}
		})
	}
}

// Attack: a workload on a node outside the nodeSelector tries to get the account. That node never gets a pod, token,
// file or port, even if another node has them.
func TestNodeOutsideTheSelectorGetsNothing(t *testing.T) {
	t.Parallel()
	const label = "node-restriction.kubernetes.io/gmsa-account"
	c := start(t, "win-1", "win-2")
	ctx := t.Context()
	labtest.Must(t, c.Label(ctx, "win-1", label+"=web"))
	install(t, installer(c))
	install(t, provider(c, "web"), "--set", `nodeSelector.node-restriction\.kubernetes\.io/gmsa-account=web`)
	labtest.Must(t, c.PutSecret(ctx, namespace, "web-creds", "secret"))
	const input = namespace + ":web-creds"
	waitForPassword(t, c.Node("win-1"), input, "secret")
	outside := func() {
		t.Helper()
		waitForHResult(t, c.Node("win-2"), input, "0xA0040001")
		if _, err := c.Pod(ctx, namespace, "web", "win-2"); err == nil {
			t.Error("the provider runs on win-2")
		}
		published := c.Node("win-2").Stage.Node.Path(winnode.HostPath)
		if files, _ := filepath.Glob(published + "/*"); len(files) > 0 {
			t.Errorf("on win-2: %q", files)
		}
	}
	outside()

	// A compromised node cannot set the label on itself, because of the prefix node-restriction.kubernetes.io/.
	config, err := c.ControlPlane.NodeConfig(ctx, "win-2")
	labtest.Must(t, err)
	mustNotLabelItself(t, config, "win-2", label, "web")

	// The kubelet of win-2 cannot get a token or the Secret of the account.
	mustBeForbidden(t, config, namespace, "web", "web-creds")

	// When the label moves, the access moves.
	labtest.Must(t, c.Label(ctx, "win-1", label+"=none"))
	labtest.Must(t, c.Label(ctx, "win-2", label+"=web"))
	waitForPassword(t, c.Node("win-2"), input, "secret")
	waitForHResult(t, c.Node("win-1"), input, "0xA0040001")
	labtest.Must(t, c.Label(ctx, "win-2", label+"=none"))
	outside()
}

// Two releases in one namespace, and releases with the same name in two namespaces, on one node: each provides its own
// account, and its uninstallation does not affect the others.
func TestReleasesOnOneNodeAreIndependent(t *testing.T) {
	t.Parallel()
	c := start(t, "win-1")
	ctx := t.Context()
	install(t, installer(c))
	elsewhere := provider(c, "web")
	elsewhere.Namespace = "other-system"
	accounts := map[string]cluster.Release{
		"gmsa-system:web-creds":  provider(c, "web"),
		"gmsa-system:shop-creds": provider(c, "shop"),
		"other-system:web-creds": elsewhere,
	}
	for input, r := range accounts {
		install(t, r)
		labtest.Must(t, c.PutSecret(ctx, r.Namespace, credential.SecretName(r.Name), "password of "+input))
	}
	n := c.Node("win-1")
	for input := range accounts {
		waitForPassword(t, n, input, "password of "+input)
	}
	if out, err := elsewhere.Uninstall(ctx); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	waitForHResult(t, n, "other-system:web-creds", "0xA0040001")
	delete(accounts, "other-system:web-creds")
	for input := range accounts {
		waitForPassword(t, n, input, "password of "+input)
	}
	for _, r := range accounts {
		if out, err := r.Uninstall(ctx); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	if files, _ := filepath.Glob(n.Stage.Node.Path(`C:\var`) + "/*"); len(files) > 0 {
		t.Errorf("files left: %q", files)
	}
}

// values.yaml warns against two releases for the same Secret on one node. The uninstallation of one reports the mistake
// and does not affect the other.
func TestUninstallReportsAnotherReleaseForTheSameSecret(t *testing.T) {
	t.Parallel()
	c := start(t, "win-1")
	ctx := t.Context()
	install(t, installer(c))
	install(t, provider(c, "web"))
	labtest.Must(t, c.PutSecret(ctx, namespace, "web-creds", "secret"))
	waitForPassword(t, c.Node("win-1"), input, "secret")
	_, err := c.Run(ctx, tools.Helm4, "install", "twin", cluster.Chart(cluster.Provider), "--namespace", namespace,
		"--set", "credentials.secretName=web-creds", "--set", "uninstall.timeout=20s")
	labtest.Must(t, err)
	labtest.Must(t, cluster.Eventually(ctx, time.Minute, func() error {
		_, err := c.Pod(ctx, namespace, "twin", "win-1")
		return err
	}))
	out, err := provider(c, "twin").Uninstall(ctx)
	if err == nil || !strings.Contains(out, "win-1") || !strings.Contains(out, "a provider of this account is still running") {
		t.Errorf("%v\n%s", err, out)
	}
	waitForPassword(t, c.Node("win-1"), input, "secret")
}
