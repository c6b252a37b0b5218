package webhook

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ccgrkc/ccgrkc/lab/env/cluster"
	"github.com/ccgrkc/ccgrkc/lab/labtest"
)

// Loss of one replica, the API server, all replicas and the webhook configurations, in this order.
func TestOutages(t *testing.T) {
	labtest.Alone(t) // others would take from the machine what 50 creations a second need
	l := own(t)
	ctx := t.Context()
	l.install()
	ns := l.namespace("outages")
	contents := string(l.spec("outages", input, ns, "default"))
	plain := l.pod(ns, "plain", "")
	plain.Spec.SecurityContext = nil
	smuggled := l.pod(ns, "smuggled", "")
	smuggled.Spec.SecurityContext = &corev1.PodSecurityContext{WindowsOptions: windowsWith("", contents).WindowsOptions}
	ready := func(want int) {
		t.Helper()
		l.eventually(time.Minute, func() error {
			replicas, err := l.replicas()
			n := 0
			for _, r := range replicas {
				if len(r.Status.ContainerStatuses) == 1 && r.Status.ContainerStatuses[0].Ready {
					n++
				}
			}
			if err == nil && n != want {
				err = fmt.Errorf("%d replicas are ready, want %d", n, want)
			}
			return err
		})
	}

	// A deleted replica completes its requests. No request fails.
	replicas, err := l.replicas()
	must(t, err)
	end := l.load(50, l.pod(ns, "deleted", "outages"))
	time.Sleep(time.Second)
	must(t, l.client.CoreV1().Pods(system).Delete(ctx, replicas[0].Name, metav1.DeleteOptions{}))
	ready(2)
	time.Sleep(time.Second)
	noneRefused(t, "one replica deleted under 50 creations a second", 50, end)

	// A killed replica causes failures until it is back or the API server knows. No pod is lost.
	replicas, err = l.replicas()
	must(t, err)
	end = l.load(50, l.pod(ns, "killed", "outages"))
	time.Sleep(time.Second)
	must(t, l.Node("linux-1").KillContainer(types.NamespacedName{Namespace: system, Name: replicas[0].Name}, "webhook", "Error"))
	time.Sleep(3 * time.Second)
	ready(2)
	killed := end()
	t.Logf("one replica killed under 50 creations a second: %s", killed)
	if len(killed.lost) > 0 {
		t.Errorf("lost: %v", killed.lost)
	}

	// The API server restarts. The webhook does not.
	before, err := l.replicas()
	must(t, err)
	must(t, l.ControlPlane.Restart(ctx))
	l.eventually(time.Minute, func() error { return l.dryRun(l.pod(ns, "restarted", "outages")) })
	ready(2)
	after, err := l.replicas()
	must(t, err)
	for i := range before {
		if before[i].UID != after[i].UID || before[i].Status.ContainerStatuses[0].RestartCount != after[i].Status.ContainerStatuses[0].RestartCount {
			t.Errorf("replica %s was restarted with the API server", before[i].Name)
		}
	}

	// Without a replica, only pods that use a gMSA are denied.
	l.mustKubectl("scale", "deployment", cluster.Webhook, "--namespace", system, "--replicas=0")
	ready(0)
	l.eventually(20*time.Second, func() error {
		if err := l.dryRun(l.pod(ns, "down", "outages")); !apierrors.IsInternalError(err) || !strings.Contains(err.Error(), "failed calling webhook") {
			return fmt.Errorf("a pod that uses a gMSA while the webhook is unavailable: %v", err)
		}
		return nil
	})
	if err := l.dryRun(smuggled); err == nil {
		t.Error("an inline credential spec without a name was accepted while the webhook is unavailable")
	}
	_, err = l.create(plain)
	must(t, err)
	if out, err := l.kubectl("label", "pod", "plain", "--namespace", ns, "a=b"); err != nil {
		t.Errorf("a label on a pod without a gMSA: %v\n%s", err, out)
	}
	if _, err := l.debug(ns, "plain", "x", nil); err != nil {
		t.Errorf("a debugger for a pod without a gMSA: %v", err)
	}
	if _, err := l.debug(ns, "plain", "y", windowsWith("", contents)); err == nil {
		t.Error("kubectl debug added an inline credential spec without a name while the webhook is unavailable")
	}

	// Without the webhook configurations, an inline credential spec still needs a name.
	for _, kind := range []string{"mutatingwebhookconfiguration", "validatingwebhookconfiguration"} {
		l.mustKubectl("delete", kind, cluster.Webhook)
	}
	l.eventually(20*time.Second, func() error {
		err := l.dryRun(smuggled)
		if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "ValidatingAdmissionPolicy") {
			return fmt.Errorf("an inline credential spec without a name, without webhook configurations: %v", err)
		}
		return nil
	})
	if _, err := l.debug(ns, "plain", "z", windowsWith("", contents)); !apierrors.IsForbidden(err) {
		t.Errorf("kubectl debug with an inline credential spec without a name, without webhook configurations: %v", err)
	}

	// A name that is not populated is denied, which helm test detects.
	refused(t, l.dryRun(l.pod(ns, "p", "outages")), 403, "was not populated", "MutatingWebhookConfiguration "+cluster.Webhook+" exists")
	if out, err := l.webhook().Test(ctx); err == nil || !strings.Contains(out, "was not populated") {
		t.Errorf("helm test, without webhook configurations: %v\n%s", err, out)
	}

	// An upgrade restores everything.
	l.install()
	l.eventually(time.Minute, func() error { return l.dryRun(l.pod(ns, "back", "outages")) })
	if out, err := l.webhook().Test(ctx); err != nil {
		t.Errorf("helm test: %v\n%s", err, out)
	}
}

// Concurrent large pods do not delay small ones, although all admission requests share connections.
func TestLargePodsDoNotDelaySmallOnes(t *testing.T) {
	labtest.Alone(t)
	l := shared(t)
	ns := l.namespace("large")
	l.spec("large", input, ns, "default")
	large := l.pod(ns, "large", "large")
	large.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "LARGE", Value: strings.Repeat("x", 1<<20)}}
	end := l.load(10, l.pod(ns, "small", "large"))
	largeEnd := l.load(20, large)
	time.Sleep(3 * time.Second)
	larges, smalls := largeEnd(), end()
	t.Logf("pods of 1 MiB: %s; small pods: %s", larges, smalls)
	if len(smalls.again) > 0 || len(larges.lost) > 0 {
		t.Errorf("pods of 1 MiB: %s; small pods: %s", larges, smalls)
	}
}

// An API server processes up to 600 requests at the same time, by default 400 that read and 200 that write, and none of
// an administrator's wait. One replica admits as many new pods.
func TestOneReplicaAdmits600PodsAtOnce(t *testing.T) {
	labtest.Alone(t)
	l := own(t)
	l.install("--set", "replicas=1", "--set", "timeoutSeconds=30") // a slow machine is no reason for a denial
	ns := l.namespace("burst")
	l.spec("burst", input, ns, "default")
	errs := make([]error, 600)
	var all sync.WaitGroup
	began := time.Now()
	for i := range errs {
		all.Go(func() { errs[i] = l.dryRun(l.pod(ns, fmt.Sprint("p", i), "burst")) })
	}
	all.Wait()
	t.Logf("%d pods in %s", len(errs), time.Since(began).Round(time.Millisecond))
	denied := slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	if len(denied) > 0 {
		t.Errorf("%d of 600 pods were denied, such as: %v", len(denied), denied[0])
	}
}
