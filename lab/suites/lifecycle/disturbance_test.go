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
)

const input = namespace + ":web-creds"

// The longest test comes first, so that the others run beside it.

// For five minutes a node does not reach the API server, nor that the node. Calls are answered from the copy all the while,
// and a password that changed meanwhile is there soon afterwards.
func TestANodeIsCutOffForFiveMinutes(t *testing.T) {
	t.Parallel()
	c := start(t, "win-1")
	installBoth(t, c)
	n := c.Node("win-1")
	n.CutOff()
	cutOff := time.Now()
	must(t, c.PutSecret(t.Context(), namespace, "web-creds", "changed"))
	for calls := 0; time.Since(cutOff) < 5*time.Minute; calls++ {
		a, err := n.Stage.Fetch(t.Context(), input)
		if err != nil || a.HResult != "" {
			t.Fatalf("call %d, %s after the cut: %+v, %v", calls, time.Since(cutOff).Round(time.Second), a, err)
		}
		time.Sleep(10 * time.Second)
	}
	n.Reconnect()
	answers(t, n, input, "changed")
	must(t, cluster.Eventually(t.Context(), time.Minute, func() error {
		_, err := c.Run(t.Context(), tools.Kubectl, "wait", "node/win-1", "--for=condition=Ready", "--timeout=1s")
		return err
	}))
}

// A node is down during the uninstall: it is named, the others are clean, and the release stays. When the node is back, the
// uninstall goes through. A node that is gone for good is deleted, and does not keep anybody either.
func TestUninstallNamesTheNodeThatIsDown(t *testing.T) {
	t.Parallel()
	c := start(t, "win-1", "win-2", "win-3")
	ctx := t.Context()
	for _, r := range []cluster.Release{installer(c), provider(c, "web")} {
		install(t, r, "--set", "uninstall.timeout=20s")
	}
	must(t, c.PutSecret(ctx, namespace, "web-creds", "secret"))
	for _, n := range c.WindowsNodes() {
		answers(t, n, input, "secret")
	}
	c.Node("win-2").Kill()
	c.Node("win-3").Kill()

	for _, r := range []cluster.Release{provider(c, "web"), installer(c)} {
		began := time.Now()
		out, err := r.Uninstall(ctx)
		if err == nil || !strings.Contains(out, "win-2") || !strings.Contains(out, "win-3") || strings.Contains(out, "win-1 (") {
			t.Errorf("uninstall of %s: %v\n%s", r.Name, err, out)
		}
		if took := time.Since(began); took > 4*time.Minute { // less than helm's own timeout for a hook
			t.Errorf("uninstall of %s waited for %s", r.Name, took)
		}
		if list, err := c.Run(ctx, tools.Helm4, "list", "--uninstalling", "--namespace", namespace, "--short"); err != nil || !strings.Contains(list, r.Name) {
			t.Errorf("the release %s is gone: %q, %v", r.Name, list, err)
		}
	}
	nothingLeft(t, c.Node("win-1"))

	must(t, c.Restart(ctx, "win-2"))
	_, err := c.Run(ctx, tools.Kubectl, "delete", "node", "win-3")
	must(t, err)
	for _, r := range []cluster.Release{provider(c, "web"), installer(c)} {
		if out, err := r.Uninstall(ctx); err != nil {
			t.Errorf("with the node back: %v\n%s", err, out)
		}
		nothingLeftInTheCluster(t, c, r.Name)
	}
	nothingLeft(t, c.Node("win-1"))
	nothingLeft(t, c.Node("win-2"))
}

// Nodes join while the charts are installed and while they are uninstalled. A node that is down keeps helm waiting meanwhile,
// so that the others join in the middle; when it is back, both go through.
func TestNodesComeAndGoMeanwhile(t *testing.T) {
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
	must(t, c.PutSecret(ctx, namespace, "web-creds", "secret"))
	answers(t, c.Node("win-1"), input, "secret")
	answers(t, c.Node("win-3"), input, "secret")
	if len(installed) > 0 {
		t.Errorf("helm did not wait for win-2: %v", <-installed)
	}
	must(t, c.Restart(ctx, "win-2"))
	must(t, <-installed)
	must(t, <-installed)
	answers(t, c.Node("win-2"), input, "secret")

	c.Node("win-2").Kill()
	uninstalled := make(chan error, 2)
	for _, r := range []cluster.Release{installer(c), provider(c, "web")} {
		go func() {
			_, err := r.Uninstall(ctx)
			uninstalled <- err
		}()
	}
	addWindows(t, c, "win-4")
	nothingLeftSoon(t, c.Node("win-1"))
	if len(uninstalled) > 0 {
		t.Errorf("helm did not wait for win-2: %v", <-uninstalled)
	}
	must(t, c.Restart(ctx, "win-2"))
	must(t, <-uninstalled)
	must(t, <-uninstalled)
	for _, n := range c.WindowsNodes() {
		nothingLeft(t, n)
	}
}

// The provider's container is killed again and again, as by the kernel when memory is short. Between two deaths it serves,
// and afterwards it stays.
func TestAProviderThatIsKilledInALoopComesBack(t *testing.T) {
	t.Parallel()
	c := start(t, "win-1")
	installBoth(t, c)
	n := c.Node("win-1")
	for range 4 {
		pod, err := c.Pod(t.Context(), namespace, "web", "win-1")
		must(t, err)
		must(t, cluster.Eventually(t.Context(), time.Minute, func() error {
			return n.KillContainer(types.NamespacedName{Namespace: namespace, Name: pod}, "provider", "OOMKilled")
		}))
		answers(t, n, input, "secret")
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
		t.Errorf("left: %q", files)
	}
}

// The installer's pod is deleted, without grace, as soon as it has begun to write: the next one finishes the work.
func TestTheInstallersPodIsDeletedInTheMiddle(t *testing.T) {
	t.Parallel()
	c := start(t, "win-1")
	ctx := t.Context()
	n := c.Node("win-1")
	_, err := c.Run(ctx, tools.Helm4, "install", "plugin", cluster.Chart(cluster.Installer), "--namespace", namespace, "--create-namespace")
	must(t, err)
	for range 3 {
		must(t, cluster.Eventually(ctx, time.Minute, func() error {
			_, err := os.Stat(n.Stage.Node.Path(`C:\Program Files\CCGRKC`))
			return err
		}))
		pods, err := c.ControlPlane.Client().CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
		must(t, err)
		for _, pod := range pods.Items {
			_, err := c.Run(ctx, tools.Kubectl, "delete", "pod", pod.Name, "--namespace", namespace, "--grace-period=0", "--force")
			must(t, err)
		}
	}
	install(t, installer(c))
	install(t, provider(c, "web"))
	must(t, c.PutSecret(ctx, namespace, "web-creds", "secret"))
	answers(t, n, input, "secret")
}

// The namespace is deleted with both releases in it. The providers take their files with them; the plugin stays registered
// and says what is missing. A new install and its uninstall leave nothing.
func TestTheNamespaceIsDeletedWithTheReleasesInIt(t *testing.T) {
	t.Parallel()
	c := start(t, "win-1")
	ctx := t.Context()
	installBoth(t, c)
	n := c.Node("win-1")
	_, err := c.Run(ctx, tools.Kubectl, "delete", "namespace", namespace, "--timeout=2m")
	must(t, err)
	refused(t, n, input, "0xA0040001")
	if files, _ := filepath.Glob(n.Stage.Node.Path(`C:\var\lib\rancher\gmsa`) + "/*"); len(files) > 0 {
		t.Errorf("left: %q", files)
	}

	installBoth(t, c)
	for _, r := range []cluster.Release{installer(c), provider(c, "web")} {
		if out, err := r.Uninstall(ctx); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	nothingLeft(t, n)
}

// Up to another version of the plugin and down again, both charts at once: the DLL on the node follows.
func TestUpgradeAndDowngradeOfTheImage(t *testing.T) {
	t.Parallel()
	c := start(t, "win-1")
	ctx := t.Context()
	installBoth(t, c)
	n := c.Node("win-1")
	before := dlls(t, n)
	must(t, c.PushOtherVersion(ctx, "v999.0.0"))
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
		must(t, <-done)
		must(t, cluster.Eventually(ctx, 90*time.Second, func() error {
			now := dlls(t, n)
			if len(now) != 1 || (now[0] != before[0]) != step.changed {
				return fmt.Errorf("with tag %q the DLLs on the node are %q, at first %q", step.tag, now, before)
			}
			return nil
		}))
		answers(t, n, input, "secret")
	}
}

func dlls(t *testing.T, n *cluster.Node) []string {
	t.Helper()
	files, err := filepath.Glob(n.Stage.Node.Path(`C:\Program Files\CCGRKC`) + "/*.dll")
	must(t, err)
	return files
}
