package kubelet_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ccgrkc/ccgrkc/lab/env/kubelet"
	"github.com/ccgrkc/ccgrkc/lab/env/tools"
	"github.com/ccgrkc/ccgrkc/lab/labtest"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// kubectl runs kubectl and returns its output and exit code.
func (c *cluster) kubectl(t *testing.T, stdin string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	path, err := tools.Path(t.Context(), tools.Kubectl, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	global := []string{"--kubeconfig", c.Kubeconfig, "--namespace", namespace}
	cmd := exec.CommandContext(ctx, path, append(global, args...)...)
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errOut
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

func TestKubectlExecAndLogs(t *testing.T) {
	c := newCluster(t)
	node := labtest.Node(t)
	c.node(t, kubelet.Options{Name: "win-1", OS: "windows", Wine: node})
	c.node(t, kubelet.Options{Name: "linux-1", OS: "linux"})
	for _, test := range []struct{ name, node, goos, program, file string }{
		{"lin", "linux-1", "linux", "/prog", tokenFile},
		{"win", "win-1", "windows", "prog.exe", `C:\var\run\secrets\kubernetes.io\serviceaccount\token`},
	} {
		t.Run(test.goos, func(t *testing.T) {
			c.create(t, c.podOf(test.name, test.node, test.goos, "echo", "one", "echo", "two", "wait"))
			c.waitPod(t, test.name, "it is ready", ready)
			labtest.Eventually(t, 20*time.Second, "the program waits", func() bool {
				return strings.Contains(c.logs(t, test.name, nil), "waiting")
			})
			out, errOut, code := c.kubectl(t, "from here", "exec", "-i", test.name, "--",
				test.program, "cat", test.file, "stdin", "it", "stderr", "complaint", "exit", "5")
			if code != 5 || !strings.Contains(out, "token: ey") || !strings.Contains(out, `it read "from here"`) ||
				!strings.Contains(errOut, "complaint") {
				t.Errorf("exec: code %d\n%s\n%s", code, out, errOut)
			}
			out, errOut, code = c.kubectl(t, "", "logs", "--tail=2", test.name)
			if code != 0 || out != "two\nwaiting\n" {
				t.Errorf("logs: code %d, %q, %q", code, out, errOut)
			}
			followed := make(chan string)
			go func() {
				out, _, _ := c.kubectl(t, "", "logs", "--follow", test.name)
				followed <- out
			}()
			time.Sleep(time.Second)
			c.delete(t, test.name, 20)
			if out := <-followed; !strings.HasSuffix(out, "told to exit\n") {
				t.Errorf("followed logs: %q", out)
			}
		})
	}
}

func TestProbesDriveReadinessAndRestarts(t *testing.T) {
	c := newCluster(t)
	c.node(t, kubelet.Options{Name: "linux-1", OS: "linux"})
	const port = 8080
	state := t.TempDir()
	pod := c.podOf("p", "linux-1", "linux", "serve", "/state/good", "wait")
	pod.Spec.Volumes = []corev1.Volume{{
		Name:         "state",
		VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: state}},
	}}
	main := &pod.Spec.Containers[0]
	main.VolumeMounts = []corev1.VolumeMount{{Name: "state", MountPath: "/state"}}
	main.Env = []corev1.EnvVar{{Name: "SERVE", Value: fmt.Sprintf(":%d", port)}}
	main.ReadinessProbe = probe(1, corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt(port)}})
	exists := &corev1.ExecAction{Command: []string{"/prog", "test", "/state/alive"}}
	main.LivenessProbe = probe(2, corev1.ProbeHandler{Exec: exists})
	good, alive := filepath.Join(state, "good"), filepath.Join(state, "alive")
	write(t, alive)
	c.create(t, pod)
	running := func(p *corev1.Pod) bool {
		return p.Status.Phase == corev1.PodRunning && p.Status.ContainerStatuses[0].State.Running != nil
	}
	c.waitPod(t, "p", "it runs", running)
	time.Sleep(2 * time.Second)
	if ready(c.get(t, "p")) {
		t.Error("the container is ready although the probe gets 503")
	}
	write(t, good)
	p := c.waitPod(t, "p", "it is ready", ready)
	if n := p.Status.ContainerStatuses[0].RestartCount; n != 0 {
		t.Errorf("%d restarts of a healthy container", n)
	}
	if err := os.Remove(alive); err != nil {
		t.Fatal(err)
	}
	c.waitPod(t, "p", "it is restarted", func(p *corev1.Pod) bool {
		return p.Status.ContainerStatuses[0].RestartCount > 0
	})
	write(t, alive)
	c.waitPod(t, "p", "it is ready again", ready)
}

func write(t *testing.T, file string) {
	t.Helper()
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestContainerThatIgnoresSignalsIsKilledAfterTheGracePeriod(t *testing.T) {
	c := newCluster(t)
	c.node(t, kubelet.Options{Name: "linux-1", OS: "linux"})
	c.create(t, c.podOf("p", "linux-1", "linux", "wait", "deaf"))
	c.waitPod(t, "p", "it is ready", ready)
	labtest.Eventually(t, 10*time.Second, "the program waits", func() bool {
		return strings.Contains(c.logs(t, "p", nil), "waiting")
	})
	began := time.Now()
	c.delete(t, "p", 3)
	c.waitGone(t, "p")
	if d := time.Since(began); d < 2900*time.Millisecond || d > 8*time.Second {
		t.Errorf("the pod was gone after %s, want 3 s", d)
	}
}

func TestKilledNodeRunsItsPodsAgain(t *testing.T) {
	c := newCluster(t)
	wineNode := labtest.Node(t)
	o := kubelet.Options{Name: "win-1", OS: "windows", Wine: wineNode, Dir: t.TempDir()}
	n := c.node(t, o)
	c.create(t, c.podOf("p", "win-1", "windows", "wait"))
	c.waitPod(t, "p", "it is ready", ready)
	if err := n.KillContainer(types.NamespacedName{Namespace: namespace, Name: "p"}, "main", "OOMKilled"); err != nil {
		t.Fatal(err)
	}
	p := c.waitPod(t, "p", "it is restarted", func(p *corev1.Pod) bool {
		return p.Status.ContainerStatuses[0].RestartCount == 1 && ready(p)
	})
	last := p.Status.ContainerStatuses[0].LastTerminationState.Terminated
	if last == nil || last.Reason != "OOMKilled" || last.ExitCode != 137 {
		t.Errorf("the last state: %+v", last)
	}
	n.Kill()
	before := c.get(t, "p")
	if !ready(before) {
		t.Error("the API server knows of the power failure")
	}
	n = c.node(t, o)
	c.waitPod(t, "p", "it runs again", func(p *corev1.Pod) bool {
		return p.Status.ContainerStatuses[0].RestartCount == 2 && ready(p)
	})

	n.Stop()
	if ready(c.get(t, "p")) {
		t.Error("the pod is ready although its node was shut down")
	}
	node, err := c.client.CoreV1().Nodes().Get(t.Context(), "win-1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady && condition.Status != corev1.ConditionFalse {
			t.Errorf("the node was shut down and has Ready=%s", condition.Status)
		}
	}
	for _, path := range []string{`C:\hpc`, `C:\var\run`} {
		if _, err := os.Lstat(wineNode.UnixPath(path)); err == nil {
			t.Errorf("%s is left", path)
		}
	}
	c.node(t, o)
	c.waitPod(t, "p", "it runs again", ready)
}

func TestCutOffNodeKeepsItsPodsAndCatchesUp(t *testing.T) {
	c := newCluster(t)
	n := c.node(t, kubelet.Options{Name: "linux-1", OS: "linux"})
	c.create(t, c.podOf("p", "linux-1", "linux", "wait"))
	c.waitPod(t, "p", "it is ready", ready)
	n.CutOff()
	late := c.podOf("late", "linux-1", "linux", "wait")
	c.create(t, late)
	c.delete(t, "p", 5)
	time.Sleep(3 * time.Second)
	if p := c.get(t, "p"); !ready(p) {
		t.Error("the pod ended although its node cannot know of the deletion")
	}
	if p := c.get(t, "late"); p.Status.Phase != corev1.PodPending {
		t.Errorf("the node cannot know of the new pod, but its phase is %s", p.Status.Phase)
	}
	if log := c.logs(t, "p", nil); !strings.Contains(log, "error") {
		t.Errorf("the API server can reach the node: %q", log)
	}
	n.Reconnect()
	c.waitGone(t, "p")
	c.waitPod(t, "late", "it is ready", ready)
}

func TestPodThatUsesAGMSAStartsWhenCCGSucceeds(t *testing.T) {
	c := newCluster(t)
	var refuse atomic.Bool
	refuse.Store(true)
	var got atomic.Value
	ccg := func(_ context.Context, spec []byte) error {
		got.Store(string(spec))
		if refuse.Load() {
			return errors.New("the plug-in returned 0x8007052E")
		}
		return nil
	}
	c.node(t, kubelet.Options{Name: "win-1", OS: "windows", Wine: labtest.Node(t), CCG: ccg})
	pod := c.podOf("web", "win-1", "windows", "wait")
	spec := `{"CmsPlugins":["ActiveDirectory"]}`
	windows := &corev1.WindowsSecurityContextOptions{GMSACredentialSpec: &spec}
	pod.Spec.HostNetwork, pod.Spec.SecurityContext = false, &corev1.PodSecurityContext{WindowsOptions: windows}
	c.create(t, pod)
	p := c.waitPod(t, "web", "its container cannot start", func(p *corev1.Pod) bool {
		s := p.Status.ContainerStatuses
		return len(s) == 1 && s[0].State.Waiting != nil && s[0].State.Waiting.Reason == "RunContainerError"
	})
	message := p.Status.ContainerStatuses[0].State.Waiting.Message
	if !strings.Contains(message, "0x8007052E") || !strings.Contains(message, "3489661095") {
		t.Errorf("the message: %s", message)
	}
	refuse.Store(false)
	c.waitPod(t, "web", "it is ready", ready)
	if got.Load() != spec {
		t.Errorf("ccg got %v", got.Load())
	}
}

func TestFailedImagePullHasAReason(t *testing.T) {
	c := newCluster(t)
	c.node(t, kubelet.Options{Name: "linux-1", OS: "linux"})
	pod := c.podOf("p", "linux-1", "linux")
	pod.Spec.Containers[0].Image = strings.Replace(c.image, "prog:1", "prog:2", 1)
	c.create(t, pod)
	p := c.waitPod(t, "p", "it backs off", func(p *corev1.Pod) bool {
		s := p.Status.ContainerStatuses
		return len(s) == 1 && s[0].State.Waiting != nil && s[0].State.Waiting.Reason == "ImagePullBackOff"
	})
	if message := p.Status.ContainerStatuses[0].State.Waiting.Message; !strings.Contains(message, "MANIFEST_UNKNOWN") {
		t.Errorf("the message: %s", message)
	}
}

func TestFakeNodesMakeTheirPodsReady(t *testing.T) {
	c := newCluster(t)
	var bound, stopped atomic.Int32
	nodes, err := kubelet.StartFakeNodes(t.Context(), kubelet.FakeOptions{
		Names:  []string{"fake-1", "fake-2"},
		OS:     "windows",
		Config: c.NodeConfig,
		Bound: func(context.Context, *corev1.Pod) (func(), error) {
			bound.Add(1)
			return func() { stopped.Add(1) }, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nodes.Stop)
	for _, name := range []string{"fake-1", "fake-2"} {
		c.create(t, c.podOf(name, name, "windows"))
		c.waitPod(t, name, "it is ready", ready)
	}
	c.delete(t, "fake-1", 5)
	c.waitGone(t, "fake-1")
	nodes.Stop()
	if b, s := bound.Load(), stopped.Load(); b != 2 || s != 2 {
		t.Errorf("%d pods bound and %d stopped, want 2 and 2", b, s)
	}
	if c.get(t, "fake-2").DeletionTimestamp != nil {
		t.Error("stopping the nodes deleted a pod")
	}
}
