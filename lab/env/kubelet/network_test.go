package kubelet_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/ccgrkc/ccgrkc/lab/env/kubelet"
	"github.com/ccgrkc/ccgrkc/lab/labtest"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// speaker is a pod that responds on port 8080 with its name and address.
func (c *cluster) speaker(name, node string) *corev1.Pod {
	pod := c.podOf(name, node, "linux", "api", "/version", "say", name, "wait")
	pod.Labels = map[string]string{"app": "speaker"}
	main := &pod.Spec.Containers[0]
	main.Env = []corev1.EnvVar{{Name: "SERVE", Value: ":8080"},
		{Name: "ADDRESS", ValueFrom: field("status.podIP")}}
	port := intstr.FromInt32(8080)
	main.ReadinessProbe = probe(1, corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: port}})
	main.LivenessProbe = probe(2, corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: port}})
	return pod
}

// callService calls a Service through the API server.
func (c *cluster) callService(t *testing.T, service string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	answer, err := c.client.CoreV1().Services(namespace).ProxyGet("http", service, "80", "/", nil).DoRaw(ctx)
	return string(answer), err
}

func TestPodsOfLinuxNodesHaveAddressesThatServicesReach(t *testing.T) {
	c := newCluster(t)
	n := c.node(t, kubelet.Options{Name: "linux-1", OS: "linux"})
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "speaker"}, Spec: corev1.ServiceSpec{
		Selector: map[string]string{"app": "speaker"},
		Ports:    []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}},
	}}
	services := c.client.CoreV1().Services(namespace)
	if _, err := services.Create(t.Context(), service, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{}
	for _, name := range []string{"a", "b"} {
		c.create(t, c.speaker(name, "linux-1"))
		p := c.waitPod(t, name, "it is ready", ready)
		if p.Status.PodIP == "127.0.0.1" || p.Status.PodIP == "" || p.Status.HostIP != "127.0.0.1" {
			t.Errorf("pod %s has the address %q, its host %q", name, p.Status.PodIP, p.Status.HostIP)
		}
		if log := c.logs(t, name, nil); !strings.Contains(log, "the API server answered 200") {
			t.Errorf("pod %s cannot reach the API server: %s", name, log)
		}
		want[fmt.Sprint(name, " at ", p.Status.PodIP)] = true
	}
	heard := map[string]bool{}
	labtest.Eventually(t, 20*time.Second, "the Service reaches both pods", func() bool {
		answer, err := c.callService(t, "speaker")
		if err != nil {
			return false
		}
		if !want[answer] {
			t.Fatalf("the Service answered %q, want one of %v", answer, want)
		}
		heard[answer] = true
		return len(heard) == 2
	})

	// The API server cannot reach the pods of a cut-off node, but they remain healthy.
	n.CutOff()
	if answer, err := c.callService(t, "speaker"); err == nil {
		t.Errorf("a pod of a cut-off node answered %q", answer)
	}
	time.Sleep(2 * time.Second)
	n.Reconnect()
	labtest.Eventually(t, 20*time.Second, "the Service answers again", func() bool {
		_, err := c.callService(t, "speaker")
		return err == nil
	})
	for _, name := range []string{"a", "b"} {
		if p := c.get(t, name); p.Status.ContainerStatuses[0].RestartCount != 0 {
			t.Errorf("pod %s was restarted because its node was cut off", name)
		}
	}

	// The network is removed with the pod, and with the node.
	machines := func(name string) string { // the machine's address of a pod's network
		address := net.ParseIP(c.get(t, name).Status.PodIP).To4()
		address[3]--
		return address.String() + "/31"
	}
	a, b := machines("a"), machines("b")
	if addresses := machine(t); !strings.Contains(addresses, a) || !strings.Contains(addresses, b) {
		t.Errorf("the machine's addresses %s lack %s or %s", addresses, a, b)
	}
	c.delete(t, "a", 5)
	c.waitGone(t, "a")
	if addresses := machine(t); strings.Contains(addresses, a) {
		t.Errorf("the machine's addresses %s include %s of a deleted pod", addresses, a)
	}
	n.Kill()
	if addresses := machine(t); strings.Contains(addresses, b) {
		t.Errorf("the machine's addresses %s include %s of a killed node's pod", addresses, b)
	}
}

func machine(t *testing.T) string {
	t.Helper()
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(addresses)
}

func TestPodWithHostNetworkHasTheNodesAddress(t *testing.T) {
	c := newCluster(t)
	c.node(t, kubelet.Options{Name: "linux-1", OS: "linux"})
	pod := c.podOf("p", "linux-1", "linux", "env", "ADDRESS", "api", "/version", "wait")
	pod.Spec.HostNetwork = true
	pod.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "ADDRESS", ValueFrom: field("status.podIP")}}
	c.create(t, pod)
	p := c.waitPod(t, "p", "it is ready", ready)
	labtest.Eventually(t, 20*time.Second, "the program waits", func() bool {
		return strings.Contains(c.logs(t, "p", nil), "waiting")
	})
	log := c.logs(t, "p", nil)
	if p.Status.PodIP != "127.0.0.1" || !strings.Contains(log, "ADDRESS=127.0.0.1") ||
		!strings.Contains(log, "the API server answered 200") {
		t.Errorf("the pod's address is %s; its log: %s", p.Status.PodIP, log)
	}
}
