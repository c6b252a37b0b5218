package kubelet_test

import (
	"strings"
	"testing"
	"time"

	"github.com/ccgrkc/ccgrkc/lab/env/kubelet"
	"github.com/ccgrkc/ccgrkc/lab/labtest"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const tokenFile = "/var/run/secrets/kubernetes.io/serviceaccount/token"

func TestLinuxPodRunsInitContainersFirst(t *testing.T) {
	c := newCluster(t)
	c.node(t, kubelet.Options{Name: "linux-1", OS: "linux"})
	pod := c.podOf("job", "linux-1", "linux", "cat", tokenFile, "cat", "/shared/note",
		"env", "FROM_IMAGE", "env", "NAME", "wd", "in", "exit", "3")
	pod.Spec.RestartPolicy = corev1.RestartPolicyNever
	pod.Spec.Volumes = []corev1.Volume{{
		Name:         "shared",
		VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}},
	}}
	mounts := []corev1.VolumeMount{{Name: "shared", MountPath: "/shared"}}
	pod.Spec.InitContainers = []corev1.Container{{
		Name:         "init",
		Image:        c.image,
		Command:      []string{"/prog", "write", "/shared/note"},
		VolumeMounts: mounts,
	}}
	main := &pod.Spec.Containers[0]
	main.VolumeMounts, main.WorkingDir = mounts, "/shared"
	main.Env = []corev1.EnvVar{
		{Name: "POD", ValueFrom: field("metadata.name")},
		{Name: "NAME", Value: "is $(POD)"},
	}
	c.create(t, pod)
	got := c.waitPod(t, "job", "it fails", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
	if code := got.Status.ContainerStatuses[0].State.Terminated.ExitCode; code != 3 {
		t.Errorf("exit code %d, want 3", code)
	}
	log := c.logs(t, "job", nil)
	for _, want := range []string{"token: ey", "note: written", "FROM_IMAGE=yes", "NAME=is job", "in /shared"} {
		if !strings.Contains(log, want) {
			t.Errorf("no %q in the log:\n%s", want, log)
		}
	}
	c.delete(t, "job", 30)
	c.waitGone(t, "job")
}

func TestHostProcessContainerHasVolumesAtContainerdsPaths(t *testing.T) {
	c := newCluster(t)
	for _, test := range []struct {
		name    string
		sandbox kubelet.Sandbox
		direct  string // the container's view of the mountPath
	}{
		{"win-17", kubelet.Containerd17, `token: ey`},
		{"win-16", kubelet.Containerd16, `token: cannot read`},
	} {
		t.Run(string(test.sandbox), func(t *testing.T) {
			node := labtest.Node(t)
			before := disk(t, node)
			c.node(t, kubelet.Options{Name: test.name, OS: "windows", Wine: node, Sandbox: test.sandbox})
			const direct = `C:\var\run\secrets\kubernetes.io\serviceaccount\token`
			const inSandbox = `%CONTAINER_SANDBOX_MOUNT_POINT%\var\run\secrets\kubernetes.io\serviceaccount\token`
			pod := c.podOf(test.name, test.name, "windows", "cat", direct, "cat", inSandbox,
				"env", "CONTAINER_SANDBOX_MOUNT_POINT", "wd", "in", "wait")
			c.create(t, pod)
			c.waitPod(t, test.name, "it is ready", ready)
			var log string
			labtest.Eventually(t, 20*time.Second, "the program waits", func() bool {
				log = c.logs(t, test.name, nil)
				return strings.Contains(log, "waiting")
			})
			lines := strings.Split(log, "\n")
			if !strings.Contains(lines[0], test.direct) {
				t.Errorf("at the mountPath: %s", lines[0])
			}
			if !strings.Contains(lines[1], "token: ey") {
				t.Errorf("below the sandbox mount point: %s", lines[1])
			}
			if out, _ := node.Run(t.Context(), "cmd", "/c", "type", direct); strings.HasPrefix(string(out), "ey") {
				t.Errorf("the node can read the container's token: %s", out)
			}
			c.delete(t, test.name, 30)
			began := time.Now()
			c.waitGone(t, test.name)
			if d := time.Since(began); d > 15*time.Second {
				t.Errorf("the container handles the signal but took %s to exit", d)
			}
			if after := disk(t, node); strings.Join(after, "\n") != strings.Join(before, "\n") {
				t.Errorf("the node's disk has %q, before it had %q", after, before)
			}
		})
	}
}

func TestHostProcessContainerWithoutVolumesUsesTheNodesRegistry(t *testing.T) {
	c := newCluster(t)
	node := labtest.Node(t)
	c.node(t, kubelet.Options{Name: "win-1", OS: "windows", Wine: node})
	no := false
	pod := c.podOf("installer", "win-1", "windows")
	pod.Spec.AutomountServiceAccountToken, pod.Spec.RestartPolicy = &no, corev1.RestartPolicyNever
	pod.Spec.Containers[0].Command = []string{"reg", "add", `HKLM\SOFTWARE\Lab`, "/v", "x", "/d", "from the pod", "/f"}
	c.create(t, pod)
	c.waitPod(t, "installer", "it succeeds", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded })
	out, err := node.Run(t.Context(), "reg", "query", `HKLM\SOFTWARE\Lab`)
	if err != nil || !strings.Contains(string(out), "from the pod") {
		t.Errorf("the node's registry: %v\n%s", err, out)
	}
}

func TestSecretUpdateReachesTheVolume(t *testing.T) {
	c := newCluster(t)
	c.node(t, kubelet.Options{Name: "linux-1", OS: "linux"})
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "s", Namespace: namespace},
		StringData: map[string]string{"key": "old", "gone": "x"},
	}
	secret, err := c.client.CoreV1().Secrets(namespace).Create(t.Context(), secret, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pod := c.podOf("p", "linux-1", "linux", "cat", "/s/key", "wait")
	pod.Spec.Volumes = []corev1.Volume{{
		Name:         "s",
		VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "s"}},
	}}
	pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "s", MountPath: "/s"}}
	pod.Spec.Containers[0].LivenessProbe = nil
	exists := &corev1.ExecAction{Command: []string{"/prog", "test", "/s/gone"}}
	pod.Spec.Containers[0].ReadinessProbe = probe(1, corev1.ProbeHandler{Exec: exists})
	c.create(t, pod)
	c.waitPod(t, "p", "it is ready", ready)
	secret.Data = map[string][]byte{"key": []byte("new")}
	if _, err := c.client.CoreV1().Secrets(namespace).Update(t.Context(), secret, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.waitPod(t, "p", "it is not ready, because the key is gone", func(p *corev1.Pod) bool { return !ready(p) })
}

func TestRestartsBackOffAndKeepThePreviousLog(t *testing.T) {
	c := newCluster(t)
	c.node(t, kubelet.Options{Name: "linux-1", OS: "linux"})
	c.create(t, c.podOf("p", "linux-1", "linux", "echo", "once", "exit", "7"))
	got := c.waitPod(t, "p", "it backs off", func(p *corev1.Pod) bool {
		s := p.Status.ContainerStatuses
		return len(s) == 1 && s[0].RestartCount >= 2 &&
			s[0].State.Waiting != nil && s[0].State.Waiting.Reason == "CrashLoopBackOff"
	})
	last := got.Status.ContainerStatuses[0].LastTerminationState.Terminated
	if last == nil || last.ExitCode != 7 || last.Reason != "Error" {
		t.Errorf("the last state: %+v", last)
	}
	if log := c.logs(t, "p", &corev1.PodLogOptions{Previous: true}); log != "once\n" {
		t.Errorf("the log of the previous run: %q", log)
	}
	events, err := c.client.CoreV1().Events(namespace).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	reasons := map[string]bool{}
	for _, e := range events.Items {
		reasons[e.Reason] = true
	}
	for _, want := range []string{"Pulled", "Created", "Started", "BackOff"} {
		if !reasons[want] {
			t.Errorf("no event %s among %v", want, reasons)
		}
	}
}
