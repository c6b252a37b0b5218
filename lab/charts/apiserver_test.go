package charts

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/lab/certmanager"
	"github.com/ccgrkc/ccgrkc/lab/controlplane"
	"github.com/ccgrkc/ccgrkc/lab/labtest"
	"github.com/ccgrkc/ccgrkc/lab/tools"
)

// cluster is a real control plane with the programs to talk to it.
type cluster struct {
	*controlplane.ControlPlane
	kubectl string
	home    string
}

func newCluster(t *testing.T, namespaces ...string) *cluster {
	t.Helper()
	cp := labtest.ControlPlane(t)
	kubectl, err := tools.Path(t.Context(), tools.Kubectl, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{cp, kubectl, t.TempDir()}
	for _, namespace := range namespaces {
		if err := cp.CreateNamespace(t.Context(), namespace); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// run runs a program against the cluster in a directory of the test's own, with a text as its input.
func (c *cluster) run(ctx context.Context, input, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + c.home, "KUBECONFIG=" + c.Kubeconfig}
	cmd.Dir = c.home
	cmd.Stdin = strings.NewReader(input)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w\n%s", filepath.Base(program), args[0], err, stderr.String())
	}
	return stdout.String(), nil
}

// helm runs Helm on a rendering.
func (c *cluster) helm(t *testing.T, h helm, r rendering, command ...string) (string, error) {
	t.Helper()
	chart, err := filepath.Abs(filepath.Join(chartsDir, r.chart))
	if err != nil {
		t.Fatal(err)
	}
	args := append(slices.Clone(command), r.release, chart, "--namespace", r.namespace, "--values", "-")
	return c.run(t.Context(), r.values, h.path, args...)
}

// TestEveryRenderingIsAcceptedByTheAPIServer, without an unknown or doubled field, and without a warning.
func TestEveryRenderingIsAcceptedByTheAPIServer(t *testing.T) {
	c := newCluster(t, "gmsa-system", "456")
	if err := certmanager.InstallCRDs(t.Context(), c.Kubeconfig); err != nil {
		t.Fatal(err)
	}
	for _, r := range matrix {
		r := r.withDefaults()
		t.Run(r.chart+"/"+r.name, func(t *testing.T) {
			text, err := r.render(t, helms(t)[1], kubeVersion)
			if err != nil {
				t.Fatal(err)
			}
			// A pod is refused where its ServiceAccount does not exist, so these are made.
			accounts, others, count := "", "", 0
			for _, o := range parse(t, text) {
				content, err := o.MarshalJSON()
				if err != nil {
					t.Fatal(err)
				}
				if o.GetKind() == "ServiceAccount" {
					accounts += "\n---\n" + string(content)
				} else {
					others += "\n---\n" + string(content)
					count++
				}
			}
			kubectl := func(input string, args ...string) string {
				t.Helper()
				cmd := exec.CommandContext(t.Context(), c.kubectl, append(args, "--filename=-")...)
				cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + c.home, "KUBECONFIG=" + c.Kubeconfig}
				cmd.Stdin = strings.NewReader(input)
				out, err := cmd.CombinedOutput()
				if err != nil || strings.Contains(string(out), "Warning") {
					t.Errorf("%v\n%s", err, out)
				}
				return string(out)
			}
			kubectl(accounts, "create", "--validate=strict")
			defer kubectl(accounts, "delete")
			if got := strings.Count(kubectl(others, "create", "--dry-run=server", "--validate=strict"), "created (server dry run)"); got != count {
				t.Errorf("%d objects of %d were accepted", got, count)
			}
		})
	}
}

// TestNotesSayWhatWorks runs the command that makes the Secret as it is printed, and reads the plugin input as the plugin does.
func TestNotesSayWhatWorks(t *testing.T) {
	c := newCluster(t, "gmsa-system")
	if err := os.WriteFile(filepath.Join(c.home, "password.txt"), []byte("correct horse"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, h := range helms(t) {
		r := rendering{chart: provider, release: h.name}.withDefaults()
		out, err := c.helm(t, h, r, "install")
		if err != nil {
			t.Fatal(err)
		}
		_, command, _ := strings.Cut(out, "\n  kubectl create secret")
		command, _, _ = strings.Cut(command, "\n\n")
		path := filepath.Dir(c.kubectl)
		if err := os.Symlink(c.kubectl, filepath.Join(c.home, "kubectl")); err == nil {
			path = c.home
		}
		if out, err := c.run(t.Context(), "", "sh", "-c", "PATH="+path+":"+c.home+":$PATH; kubectl create secret"+command); err != nil {
			t.Fatalf("%v %s\nthe notes were:\n%s", err, out, command)
		}
		_, input, _ := strings.Cut(out, `PluginInput: "`)
		input, _, _ = strings.Cut(input, `"`)
		ref, err := credential.ParseReference(input)
		if err != nil {
			t.Fatal(err)
		}
		secret, err := c.Client().CoreV1().Secrets(ref.Namespace).Get(t.Context(), ref.Secret, metav1.GetOptions{})
		if err != nil {
			t.Fatalf("the plugin input names a Secret that the command did not make: %v", err)
		}
		if _, warnings, err := credential.FromSecret(secret.Data); err != nil || len(warnings) > 0 {
			t.Errorf("the Secret: %v, %v", err, warnings)
		}
	}
}

// TestAReleaseMayDoNoMore asks the API server what the two ServiceAccounts of a release may do, beside what every
// ServiceAccount may.
func TestAReleaseMayDoNoMore(t *testing.T) {
	c := newCluster(t, "gmsa-system", "other")
	h := helms(t)[1]
	for _, r := range []rendering{{chart: provider, release: "web"}, {chart: provider, release: "other"}, {chart: installer, release: "plugin"}} {
		r := r.withDefaults()
		if _, err := c.helm(t, h, r, "install"); err != nil {
			t.Fatal(err)
		}
		// The uninstall's objects are there only while it runs.
		var hooks []string
		for _, o := range r.mustRender(t) {
			if strings.Contains(o.GetName(), "-uninstall") && slices.Contains([]string{"ServiceAccount", "Role", "RoleBinding"}, o.GetKind()) {
				text, err := o.MarshalJSON()
				if err != nil {
					t.Fatal(err)
				}
				hooks = append(hooks, string(text))
			}
		}
		if _, err := c.run(t.Context(), strings.Join(hooks, "\n---\n"), c.kubectl, "create", "--filename=-"); err != nil {
			t.Fatal(err)
		}
	}
	rules := func(account, namespace string) map[string]bool {
		t.Helper()
		config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
		if err != nil {
			t.Fatal(err)
		}
		config.Impersonate = rest.ImpersonationConfig{UserName: "system:serviceaccount:gmsa-system:" + account,
			Groups: []string{"system:serviceaccounts", "system:serviceaccounts:gmsa-system", "system:authenticated"}}
		client, err := kubernetes.NewForConfig(config)
		if err != nil {
			t.Fatal(err)
		}
		review, err := client.AuthorizationV1().SelfSubjectRulesReviews().Create(t.Context(),
			&authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: namespace}}, metav1.CreateOptions{})
		if err != nil || review.Status.Incomplete {
			t.Fatal(review, err)
		}
		found := map[string]bool{}
		for _, rule := range review.Status.ResourceRules {
			text, err := json.Marshal(rule)
			if err != nil {
				t.Fatal(err)
			}
			found[string(text)] = true
		}
		return found
	}
	rule := func(verbs []string, group, resource string, names ...string) string {
		text, err := json.Marshal(authorizationv1.ResourceRule{Verbs: verbs, APIGroups: []string{group}, Resources: []string{resource}, ResourceNames: names})
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	everyone := rules("nobody", "gmsa-system")
	for _, tt := range []struct {
		account string
		want    []string
	}{
		{"web", []string{rule([]string{"get"}, "", "secrets", "web-creds")}},
		{"plugin", nil},
		{"web-uninstall-nodes", nil},
		{"web-uninstall", []string{
			rule([]string{"delete"}, "apps", "daemonsets", "web"),
			rule([]string{"get"}, "apps", "daemonsets", "web-uninstall"),
			rule([]string{"list"}, "", "pods"),
		}},
	} {
		for _, namespace := range []string{"gmsa-system", "other"} {
			want := map[string]bool{}
			if namespace == "gmsa-system" {
				for _, r := range tt.want {
					want[r] = true
				}
			}
			got := rules(tt.account, namespace)
			for r := range everyone {
				delete(got, r)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s in namespace %s, beside what everyone may (-want +got)\n%s", tt.account, namespace, diff)
			}
		}
	}
}

// TestNothingIsCreatedWhereTheInstallIsRefused: what Helm finds out from the cluster, it finds out first.
func TestNothingIsCreatedWhereTheInstallIsRefused(t *testing.T) {
	c := newCluster(t, "gmsa-system")
	ctx := t.Context()
	objects := func() string {
		t.Helper()
		out, err := c.run(ctx, "", c.kubectl, "get", "--namespace=gmsa-system", "--output=name", "daemonsets,serviceaccounts,roles,rolebindings,jobs,pods,secrets")
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	// An uninstall that was cut off left its DaemonSet.
	left := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Name: "web-uninstall"}, Spec: appsv1.DaemonSetSpec{
		Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"a": "b"}},
			Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "a", Image: "a"}}}},
	}}
	if _, err := c.Client().AppsV1().DaemonSets("gmsa-system").Create(ctx, left, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	before := objects()
	for _, h := range helms(t) {
		for _, tt := range []struct {
			r    rendering
			want string
		}{
			{rendering{chart: installer}, "kubectl delete daemonset web-uninstall --namespace gmsa-system"},
			{rendering{chart: provider}, "kubectl delete daemonset web-uninstall --namespace gmsa-system"},
			{rendering{chart: provider, release: "corp", values: `certificates: {mode: certManager}`}, "does not know cert-manager.io/v1"},
			{rendering{chart: provider, release: "corp", values: `credentials: {secretName: a/b}`}, "lower_case_letters"},
			{rendering{chart: provider, release: "corp", values: `surprise: 1`}, "'surprise' not allowed"},
		} {
			_, err := c.helm(t, h, tt.r.withDefaults(), "install")
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s, %s: want %q, got %v", h.name, tt.r.chart, tt.want, err)
			}
		}
	}
	if after := objects(); before != after {
		t.Errorf("there was\n%sand there is\n%s", before, after)
	}

	// With the DaemonSet gone, the install goes through, and an upgrade is refused when it is there again.
	remove := func() {
		t.Helper()
		if _, err := c.run(ctx, "", c.kubectl, "delete", "daemonset", "web-uninstall", "--namespace", "gmsa-system"); err != nil {
			t.Fatal(err)
		}
	}
	remove()
	for _, h := range helms(t) {
		r := rendering{chart: provider, release: "web"}.withDefaults()
		if _, err := c.helm(t, h, r, "upgrade", "--install"); err != nil {
			t.Errorf("%s: %v", h.name, err)
		}
		if _, err := c.Client().AppsV1().DaemonSets("gmsa-system").Create(ctx, left, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := c.helm(t, h, r, "upgrade"); err == nil || !strings.Contains(err.Error(), "kubectl delete daemonset web-uninstall") {
			t.Errorf("%s upgrades beside an unfinished uninstall: %v", h.name, err)
		}
		remove()
	}
}
