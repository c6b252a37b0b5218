// Package webhook tests the admission webhook: the chart, installed with helm on a real control plane, and pods that run on a
// Windows node under Wine.
package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/ccgrkc/ccgrkc/lab/env/cluster"
	"github.com/ccgrkc/ccgrkc/lab/env/tools"
	"github.com/ccgrkc/ccgrkc/lab/env/winnode"
	"github.com/ccgrkc/ccgrkc/lab/labtest"
)

const (
	system = "cattle-windows-gmsa-system" // namespace of all three charts
	input  = system + ":web-creds"
)

// One cluster serves the tests that leave the webhook as it is: all three charts, the Secret, and the Windows node win-1. A test
// has a namespace of its own.
var (
	sharedCluster *cluster.Cluster
	started       sync.Once
	startErr      error
	stop          []func()
)

func TestMain(m *testing.M) {
	code := m.Run()
	for _, f := range stop {
		f()
	}
	os.Exit(code)
}

// lab is a cluster with a webhook.
type lab struct {
	*cluster.Cluster
	t      *testing.T
	client kubernetes.Interface
}

func shared(t *testing.T) *lab {
	t.Helper()
	labtest.Require(t)
	started.Do(func() {
		dir, err := os.MkdirTemp("", "admission-test-")
		if err != nil {
			startErr = err
			return
		}
		stop = append(stop, func() { os.RemoveAll(dir) })
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
		defer cancel()
		if sharedCluster, startErr = cluster.Start(ctx, dir); startErr != nil {
			return
		}
		stop = append([]func(){sharedCluster.Stop}, stop...)
		startErr = furnish(ctx, sharedCluster)
	})
	must(t, startErr)
	return &lab{sharedCluster, t, sharedCluster.ControlPlane.Client()}
}

func furnish(ctx context.Context, c *cluster.Cluster) error {
	if _, err := c.AddLinux(ctx, "linux-1"); err != nil {
		return err
	}
	if _, err := c.AddWindows(ctx, "win-1", cluster.NodeOptions{}); err != nil {
		return err
	}
	if _, err := webhookOf(c).Install(ctx); err != nil {
		return err
	}
	for chart, name := range map[string]string{cluster.Installer: cluster.Installer, cluster.Provider: "web"} {
		r := cluster.Release{Cluster: c, Chart: chart, Namespace: system, Name: name}
		if _, err := r.Install(ctx); err != nil {
			return err
		}
	}
	return c.PutSecret(ctx, system, "web-creds", "secret")
}

// own is a cluster of the test's own, with the node linux-1 and no webhook yet.
func own(t *testing.T) *lab {
	t.Helper()
	labtest.Require(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	c, err := cluster.Start(ctx, t.TempDir())
	must(t, err)
	t.Cleanup(c.Stop)
	_, err = c.AddLinux(ctx, "linux-1")
	must(t, err)
	return &lab{c, t, c.ControlPlane.Client()}
}

func webhookOf(c *cluster.Cluster) cluster.Release {
	return cluster.Release{Cluster: c, Chart: cluster.Webhook, Namespace: system, Name: cluster.Webhook}
}

func (l *lab) webhook() cluster.Release { return webhookOf(l.Cluster) }

func (l *lab) install(args ...string) {
	l.t.Helper()
	_, err := l.webhook().Install(l.t.Context(), args...)
	must(l.t, err)
}

// namespace creates a namespace and waits until pods can be created in it.
func (l *lab) namespace(name string, labels ...string) string {
	l.t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}}}
	for _, label := range labels {
		key, value, _ := strings.Cut(label, "=")
		ns.Labels[key] = value
	}
	_, err := l.client.CoreV1().Namespaces().Create(l.t.Context(), ns, metav1.CreateOptions{})
	must(l.t, err)
	l.eventually(30*time.Second, func() error {
		_, err := l.client.CoreV1().ServiceAccounts(name).Get(l.t.Context(), "default", metav1.GetOptions{})
		return err
	})
	return name
}

// spec creates a GMSACredentialSpec that these ServiceAccounts can use, and returns its credential spec.
func (l *lab) spec(name, input, namespace string, serviceAccounts ...string) []byte {
	l.t.Helper()
	contents, err := json.Marshal(winnode.CredentialSpec(input))
	must(l.t, err)
	l.put(name, contents, namespace, serviceAccounts...)
	return contents
}

func (l *lab) put(name string, contents []byte, namespace string, serviceAccounts ...string) {
	l.t.Helper()
	must(l.t, l.PutCredentialSpec(l.t.Context(), name, contents))
	for _, account := range serviceAccounts {
		must(l.t, l.GrantUse(l.t.Context(), name, namespace, account))
	}
	if len(serviceAccounts) == 0 {
		return
	}
	// The API server's authorizer applies the permission with some delay.
	l.eventually(20*time.Second, func() error { return l.dryRun(l.pod(namespace, "can-use", name)) })
}

// pod returns a pod for win-1 that references a credential spec.
func (l *lab) pod(namespace, name, spec string) *corev1.Pod {
	return l.SpecNamePod(namespace, name, "win-1", spec, "")
}

func (l *lab) create(pod *corev1.Pod) (*corev1.Pod, error) {
	return l.client.CoreV1().Pods(pod.Namespace).Create(l.t.Context(), pod, metav1.CreateOptions{})
}

func (l *lab) dryRun(pod *corev1.Pod) error {
	_, err := l.admitted(pod)
	return err
}

// admitted returns the pod as the API server would store it.
func (l *lab) admitted(pod *corev1.Pod) (*corev1.Pod, error) {
	return l.client.CoreV1().Pods(pod.Namespace).Create(l.t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
}

func (l *lab) kubectl(args ...string) (string, error) {
	return l.Run(l.t.Context(), tools.Kubectl, args...)
}

func (l *lab) mustKubectl(args ...string) string {
	l.t.Helper()
	out, err := l.kubectl(args...)
	must(l.t, err)
	return out
}

func (l *lab) eventually(within time.Duration, f func() error) {
	l.t.Helper()
	must(l.t, cluster.Eventually(l.t.Context(), within, f))
}

// refused checks that err is a denial with this code and these texts.
func refused(t *testing.T, err error, code int32, texts ...string) {
	t.Helper()
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		t.Errorf("got %v, want a denial with code %d", err, code)
		return
	}
	if got := status.Status().Code; got != code {
		t.Errorf("denied with code %d, want %d: %v", got, code, err)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("the denial lacks %q: %v", text, err)
		}
	}
}

// same compares two JSON documents as values.
func same(t *testing.T, what string, got *string, want []byte) {
	t.Helper()
	if got == nil {
		t.Errorf("%s: not populated", what)
		return
	}
	var a, b any
	if err := errors.Join(json.Unmarshal([]byte(*got), &a), json.Unmarshal(want, &b)); err != nil {
		t.Errorf("%s: %v in %s", what, err, *got)
	}
	if d := cmp.Diff(b, a); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

func windows(name string) *corev1.SecurityContext {
	return &corev1.SecurityContext{WindowsOptions: &corev1.WindowsSecurityContextOptions{GMSACredentialSpecName: &name}}
}

func windowsWith(name, contents string) *corev1.SecurityContext {
	s := windows(name)
	s.WindowsOptions.GMSACredentialSpec = &contents
	if name == "" {
		s.WindowsOptions.GMSACredentialSpecName = nil
	}
	return s
}

// replicas returns the running pods of the webhook.
func (l *lab) replicas() ([]corev1.Pod, error) {
	list, err := l.client.CoreV1().Pods(system).List(l.t.Context(), metav1.ListOptions{LabelSelector: "app.kubernetes.io/instance=" + cluster.Webhook})
	if err != nil {
		return nil, err
	}
	var running []corev1.Pod
	for _, pod := range list.Items {
		if pod.DeletionTimestamp == nil && pod.Status.Phase == corev1.PodRunning {
			running = append(running, pod)
		}
	}
	return running, nil
}

// noRestarts checks that the webhook's two replicas have not restarted.
func (l *lab) noRestarts() {
	l.t.Helper()
	pods, err := l.replicas()
	must(l.t, err)
	if len(pods) != 2 {
		l.t.Errorf("%d replicas, want 2", len(pods))
	}
	for _, pod := range pods {
		for _, c := range pod.Status.ContainerStatuses {
			if c.RestartCount != 0 {
				l.t.Errorf("replica %s was restarted %d times: %+v", pod.Name, c.RestartCount, c.LastTerminationState)
			}
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// load creates pods at this rate until end is called, as dry runs with complete admission. A denied pod is retried after a
// second, and lost after 20 s. At most 100 requests are concurrent, so that they do not accumulate on a busy machine.
func (l *lab) load(perSecond int, pod *corev1.Pod) (end func() loaded) {
	ctx, cancel := context.WithCancel(l.t.Context())
	var mu sync.Mutex
	var wg sync.WaitGroup
	var r loaded
	began, room := time.Now(), make(chan struct{}, 100)
	one := func(i int) {
		p := pod.DeepCopy()
		p.Name = fmt.Sprintf("%s-%d", pod.Name, i)
		var err error
		for try := range 20 {
			if err = l.dryRun(p); err == nil {
				break
			}
			mu.Lock()
			if try == 0 {
				r.again = append(r.again, err)
			}
			mu.Unlock()
			time.Sleep(time.Second)
		}
		mu.Lock()
		defer mu.Unlock()
		r.all++
		if err != nil {
			r.lost = append(r.lost, err)
		}
	}
	wg.Go(func() {
		tick := time.NewTicker(time.Second / time.Duration(perSecond))
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			select {
			case <-ctx.Done():
				return
			case room <- struct{}{}:
				wg.Go(func() {
					defer func() { <-room }()
					one(i)
				})
			}
		}
	})
	return func() loaded {
		cancel()
		wg.Wait()
		r.took = time.Since(began)
		return r
	}
}

// loaded is the result of a load.
type loaded struct {
	all         int
	took        time.Duration // until the last one finished
	again, lost []error       // denied at first, and lost
}

func (r loaded) String() string {
	s := fmt.Sprintf("%d admissions in %.1f s, %d denied at first, %d lost", r.all, r.took.Seconds(), len(r.again), len(r.lost))
	reasons := map[string]int{} // by the last part of the text
	for _, err := range r.again {
		text := err.Error()
		reasons[text[strings.LastIndex(text, ": ")+1:]]++
	}
	if len(r.again) > 0 {
		s += fmt.Sprintf(", %v, such as: %s", reasons, r.again[0])
	}
	return s
}
