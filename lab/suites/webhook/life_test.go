package webhook

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ccgrkc/ccgrkc/lab/env/cluster"
	"github.com/ccgrkc/ccgrkc/lab/env/tools"
)

// With both versions of helm, and the other two charts installed: install, upgrade, rollback, a second install by
// mistake, and uninstall, which keeps only the CRD and its objects.
func TestLifecycleOfTheChart(t *testing.T) {
	for _, helm := range []tools.Tool{tools.Helm4, tools.Helm3} {
		t.Run(fmt.Sprint(helm), func(t *testing.T) {
			t.Parallel()
			l := own(t)
			ctx := t.Context()
			webhook := l.webhook()
			webhook.Helm = helm
			others := []cluster.Release{
				{Cluster: l.Cluster, Helm: helm, Chart: cluster.Installer, Namespace: system, Name: cluster.Installer},
				{Cluster: l.Cluster, Helm: helm, Chart: cluster.Provider, Namespace: system, Name: "web"},
			}
			for _, r := range append(others, webhook) {
				out, err := r.Install(ctx)
				must(t, err)
				if r.Chart == cluster.Webhook && !strings.Contains(out, "gmsacredentialspecs") {
					t.Errorf("the notes do not explain what a workload needs:\n%s", out)
				}
			}
			must(t, l.PutSecret(ctx, system, "web-creds", "secret"))
			ns := l.namespace("life")
			l.spec("life", input, ns, "default")
			l.spec("nobody", system+":nobody-creds", ns, "default")

			twin := webhook
			twin.Name, twin.Namespace = "twin", "twin-system"
			if out, err := twin.Install(ctx); err == nil || !strings.Contains(out, "is already installed") {
				t.Errorf("a second release: %v\n%s", err, out)
			}

			_, err := webhook.Install(ctx, "--set", "pluginInput=deny", "--set", "randomHostname=true")
			must(t, err)
			l.eventually(20*time.Second, func() error {
				err := l.dryRun(l.pod(ns, "p", "nobody"))
				if err == nil {
					return fmt.Errorf("pluginInput deny: a pod without a release was admitted")
				}
				refused(t, err, 403, "no release of rancher-gmsa-account-provider provides "+system+":nobody-creds")
				return nil
			})
			pod := l.pod(ns, "p", "life")
			got, err := l.admitted(pod)
			must(t, err)
			again, err := l.admitted(pod)
			must(t, err)
			form := regexp.MustCompile(`^gmsa-[a-z0-9]{10}$`)
			if a, b := got.Spec.Hostname, again.Spec.Hostname; !form.MatchString(a) || !form.MatchString(b) || a == b {
				t.Errorf("random host names %q and %q", a, b)
			}
			pod.Spec.Hostname = "mine"
			plain := l.pod(ns, "plain", "")
			plain.Spec.SecurityContext = nil
			if got, err = l.admitted(pod); err != nil || got.Spec.Hostname != "mine" {
				t.Errorf("a pod with a host name got %q, %v", got.Spec.Hostname, err)
			}
			if got, err = l.admitted(plain); err != nil || got.Spec.Hostname != "" {
				t.Errorf("a pod without a gMSA got %q, %v", got.Spec.Hostname, err)
			}

			end := l.load(10, l.pod(ns, "q", "life"))
			_, err = webhook.Rollback(ctx, "1")
			must(t, err)
			l.eventually(20*time.Second, func() error { return l.dryRun(l.pod(ns, "p", "nobody")) })
			noneRefused(t, "a rollback", 10, end)

			for _, r := range append([]cluster.Release{webhook}, others...) {
				if out, err := r.Uninstall(ctx); err != nil {
					t.Errorf("%v\n%s", err, out)
				}
			}
			// No pod is denied any more.
			l.eventually(20*time.Second, func() error { return l.dryRun(l.pod(ns, "p", "nowhere")) })
			out := l.mustKubectl("get", "--all-namespaces", "--selector", "app.kubernetes.io/instance="+cluster.Webhook, "-o", "name",
				"deployments,services,serviceaccounts,secrets,configmaps,roles,rolebindings,clusterroles,clusterrolebindings,poddisruptionbudgets,networkpolicies,"+
					"mutatingwebhookconfigurations,validatingwebhookconfigurations,validatingadmissionpolicies,validatingadmissionpolicybindings,customresourcedefinitions")
			if out = strings.TrimSpace(out); out != "customresourcedefinition.apiextensions.k8s.io/gmsacredentialspecs.windows.k8s.io" {
				t.Errorf("left of the release:\n%s", out)
			}
			if out := l.mustKubectl("get", "gmsacredentialspecs", "-o", "name"); !strings.Contains(out, "/life") {
				t.Errorf("the credential specs after the uninstall: %s", out)
			}

			// Install again, with the existing CRD.
			_, err = webhook.Install(ctx)
			must(t, err)
			l.eventually(20*time.Second, func() error { return l.dryRun(l.pod(ns, "p", "life")) })
		})
	}
}

// Install, upgrade and uninstall do not change a CRD from another source, such as SIG Windows' chart.
func TestAForeignCRDIsNotChanged(t *testing.T) {
	t.Parallel()
	l := own(t)
	must(t, l.InstallCRD(t.Context()))
	l.mustKubectl("annotate", "crd", "gmsacredentialspecs.windows.k8s.io", "owner=somebody")
	uid := func() string {
		return l.mustKubectl("get", "crd", "gmsacredentialspecs.windows.k8s.io", "-o", `jsonpath={.metadata.uid} {.metadata.generation} {.metadata.annotations.owner}`)
	}
	before := uid()
	l.install()
	l.install("--set", "log.level=debug")
	ns := l.namespace("theirs")
	l.spec("theirs", input, ns, "default")
	_, err := l.client.CoreV1().Namespaces().Get(t.Context(), ns, metav1.GetOptions{})
	must(t, err)
	_, err = l.webhook().Uninstall(t.Context())
	must(t, err)
	if after := uid(); after != before {
		t.Errorf("the CRD was %s and is %s", before, after)
	}
}
