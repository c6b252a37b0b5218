package lifecycle

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ccgrkc/ccgrkc/lab/env/cluster"
	"github.com/ccgrkc/ccgrkc/lab/env/tools"
	"github.com/ccgrkc/ccgrkc/lab/labtest"
)

const input = namespace + ":web-creds"

// The longest test is first, so that the others run in parallel with it.

// While a node is down, the uninstallation fails and reports the node, cleans up the others, and Helm keeps the
// release. When the node is back, the uninstallation succeeds. A deleted node does not block it either.
func TestUninstallReportsNodesThatAreDown(t *testing.T) {
	t.Parallel()
	c := start(t, "win-1", "win-2", "win-3")
	ctx := t.Context()
	for _, r := range []cluster.Release{installer(c), provider(c, "web")} {
		install(t, r, "--set", "uninstall.timeout=20s")
	}
	labtest.Must(t, c.PutSecret(ctx, namespace, "web-creds", "secret"))
	for _, n := range c.WindowsNodes() {
		waitForPassword(t, n, input, "secret")
	}
	c.Node("win-2").Kill()
	c.Node("win-3").Kill()

	for _, r := range []cluster.Release{provider(c, "web"), installer(c)} {
		began := time.Now()
		out, err := r.Uninstall(ctx)
		if err == nil || !strings.Contains(out, "win-2") || !strings.Contains(out, "win-3") ||
			strings.Contains(out, "win-1 (") {
			t.Errorf("uninstall of %s: %v\n%s", r.Name, err, out)
		}
		if took := time.Since(began); took > 4*time.Minute { // less than helm's own timeout for a hook
			t.Errorf("uninstall of %s waited for %s", r.Name, took)
		}
		list, err := c.Run(ctx, tools.Helm4, "list", "--uninstalling", "--namespace", namespace, "--short")
		if err != nil || !strings.Contains(list, r.Name) {
			t.Errorf("the release %s is gone: %q, %v", r.Name, list, err)
		}
	}
	checkClean(t, c.Node("win-1"))

	labtest.Must(t, c.Restart(ctx, "win-2"))
	_, err := c.Run(ctx, tools.Kubectl, "delete", "node", "win-3")
	labtest.Must(t, err)
	for _, r := range []cluster.Release{provider(c, "web"), installer(c)} {
		if out, err := r.Uninstall(ctx); err != nil {
			t.Errorf("with the node back: %v\n%s", err, out)
		}
		checkClusterClean(t, c, r.Name)
	}
	checkClean(t, c.Node("win-1"))
	checkClean(t, c.Node("win-2"))
}

// Nodes join during the installation and the uninstallation of the charts. A node that is down makes helm wait until
// the others have joined. When it is back, helm succeeds.
func TestNodesJoinDuringInstallAndUninstall(t *testing.T) {
	t.Parallel()
	c := start(t, "win-1", "win-2")
	ctx := t.Context()
	c.Node("win-2").Kill()
	installed := make(chan error, 2)
	for _, r := range []cluster.Release{installer(c), provider(c, "web")} {
		go func() {
			_, err := r.Install(ctx)
			installed <- err
		}()
	}
	addWindows(t, c, "win-3")
	labtest.Must(t, c.PutSecret(ctx, namespace, "web-creds", "secret"))
	waitForPassword(t, c.Node("win-1"), input, "secret")
	waitForPassword(t, c.Node("win-3"), input, "secret")
	if len(installed) > 0 {
		t.Errorf("helm did not wait for win-2: %v", <-installed)
	}
	labtest.Must(t, c.Restart(ctx, "win-2"))
	labtest.Must(t, <-installed)
	labtest.Must(t, <-installed)
	waitForPassword(t, c.Node("win-2"), input, "secret")

	c.Node("win-2").Kill()
	uninstalled := make(chan error, 2)
	for _, r := range []cluster.Release{installer(c), provider(c, "web")} {
		go func() {
			_, err := r.Uninstall(ctx)
			uninstalled <- err
		}()
	}
	addWindows(t, c, "win-4")
	waitClean(t, c.Node("win-1"))
	if len(uninstalled) > 0 {
		t.Errorf("helm did not wait for win-2: %v", <-uninstalled)
	}
	labtest.Must(t, c.Restart(ctx, "win-2"))
	labtest.Must(t, <-uninstalled)
	labtest.Must(t, <-uninstalled)
	for _, n := range c.WindowsNodes() {
		checkClean(t, n)
	}
}

// The provider's container is killed repeatedly, as by the kernel when memory is low. After each restart, calls
// succeed.
func TestKilledProviderComesBack(t *testing.T) {
	t.Parallel()
	c := start(t, "win-1")
	installBoth(t, c)
	n := c.Node("win-1")
	for range 4 {
		pod, err := c.Pod(t.Context(), namespace, "web", "win-1")
		labtest.Must(t, err)
		labtest.Must(t, cluster.Eventually(t.Context(), time.Minute, func() error {
			return n.KillContainer(types.NamespacedName{Namespace: namespace, Name: pod}, "provider", "OOMKilled")
		}))
		waitForPassword(t, n, input, "secret")
	}
	out, err := c.Run(t.Context(), tools.Kubectl, "get", "pods", "--namespace", namespace, "-o",
		"jsonpath={.items[*].status.containerStatuses[*].lastState.terminated.reason}")
	if err != nil || !strings.Contains(out, "OOMKilled") {
		t.Errorf("the pod's last state: %q, %v", out, err)
	}
	if r, err := provider(c, "web").Uninstall(t.Context()); err != nil {
		t.Errorf("%v\n%s", err, r)
	}
	if files, _ := filepath.Glob(n.Stage.Node.Path(`C:\var`) + "/*"); len(files) > 0 {
		t.Errorf("files left: %q", files)
	}
}

// The installer's pod is deleted without a grace period when it begins to write. The next pod completes the
// installation.
func TestNextPodCompletesAnInterruptedInstallation(t *testing.T) {
	t.Parallel()
	c := start(t, "win-1")
	ctx := t.Context()
	n := c.Node("win-1")
	_, err := c.Run(ctx, tools.Helm4, "install", "plugin", cluster.Chart(cluster.Installer),
		"--namespace", namespace, "--create-namespace")
	labtest.Must(t, err)
	for range 3 {
		labtest.Must(t, cluster.Eventually(ctx, time.Minute, func() error {
			_, err := os.Stat(n.Stage.Node.Path(`C:\Program Files\CCGRKC`))
			return err
		}))
		pods, err := c.ControlPlane.Client().CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
		labtest.Must(t, err)
		for _, pod := range pods.Items {
			_, err := c.Run(ctx, tools.Kubectl, "delete", "pod", pod.Name, "--namespace", namespace,
				"--grace-period=0", "--force")
			labtest.Must(t, err)
		}
	}
	install(t, installer(c))
	install(t, provider(c, "web"))
	labtest.Must(t, c.PutSecret(ctx, namespace, "web-creds", "secret"))
	waitForPassword(t, n, input, "secret")
}

// The namespace is deleted with both releases in it. The providers remove their files; the plugin remains registered
// and reports the missing endpoint. A new installation and its uninstallation leave nothing.
func TestReinstallAfterTheNamespaceWasDeleted(t *testing.T) {
	t.Parallel()
	c := start(t, "win-1")
	ctx := t.Context()
	installBoth(t, c)
	n := c.Node("win-1")
	_, err := c.Run(ctx, tools.Kubectl, "delete", "namespace", namespace, "--timeout=2m")
	labtest.Must(t, err)
	waitForHResult(t, n, input, "0xA0040001")
	if files, _ := filepath.Glob(n.Stage.Node.Path(`C:\var\lib\rancher\gmsa`) + "/*"); len(files) > 0 {
		t.Errorf("files left: %q", files)
	}

	installBoth(t, c)
	for _, r := range []cluster.Release{installer(c), provider(c, "web")} {
		if out, err := r.Uninstall(ctx); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	checkClean(t, n)
}

// Both charts are upgraded to another version of the image and downgraded. The DLL on the node follows.
func TestUpgradeAndDowngradeOfTheImage(t *testing.T) {
	t.Parallel()
	c := start(t, "win-1")
	ctx := t.Context()
	installBoth(t, c)
	n := c.Node("win-1")
	before := dlls(t, n)
	labtest.Must(t, c.PushOtherVersion(ctx, "v999.0.0"))
	for _, step := range []struct {
		tag     string
		changed bool
	}{{"v999.0.0", true}, {"", false}} {
		done := make(chan error, 1)
		go func() {
			_, err := installer(c).Install(ctx, "--set", "image.tag="+step.tag)
			done <- err
		}()
		install(t, provider(c, "web"), "--set", "image.tag="+step.tag)
		labtest.Must(t, <-done)
		labtest.Must(t, cluster.Eventually(ctx, 90*time.Second, func() error {
			now := dlls(t, n)
			if len(now) != 1 || (now[0] != before[0]) != step.changed {
				return fmt.Errorf("with tag %q the DLLs on the node are %q, before %q", step.tag, now, before)
			}
			return nil
		}))
		waitForPassword(t, n, input, "secret")
	}
}

func dlls(t *testing.T, n *cluster.Node) []string {
	t.Helper()
	files, err := filepath.Glob(n.Stage.Node.Path(`C:\Program Files\CCGRKC`) + "/*.dll")
	labtest.Must(t, err)
	return files
}
