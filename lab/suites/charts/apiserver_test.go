package charts

import (
	"bytes"
	"context"
	"encoding/base64"
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
	"github.com/ccgrkc/ccgrkc/internal/credspec"
	"github.com/ccgrkc/ccgrkc/lab/env/certmanager"
	"github.com/ccgrkc/ccgrkc/lab/env/controlplane"
	"github.com/ccgrkc/ccgrkc/lab/env/tools"
	"github.com/ccgrkc/ccgrkc/lab/labtest"
)

// cluster is a control plane with kubectl.
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

// run runs a program against the cluster, with a home directory and an input.
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

// TestAPIServerAcceptsEveryRendering verifies that there are no unknown or duplicate fields and no warnings.
func TestAPIServerAcceptsEveryRendering(t *testing.T) {
	c := newCluster(t, "gmsa-system", "456")
	if err := certmanager.InstallCRDs(t.Context(), c.Kubeconfig); err != nil {
		t.Fatal(err)
	}
	c.applyOnly(t, rendering{chart: webhook}.mustRender(t), "CustomResourceDefinition")
	for _, r := range matrix {
		r := r.withDefaults()
		t.Run(r.chart+"/"+r.name, func(t *testing.T) {
			text, err := r.render(t, helms(t)[1], kubeVersion)
			if err != nil {
				t.Fatal(err)
			}
			// A pod requires its ServiceAccount, so the test creates the ServiceAccounts.
			accounts, others, count := "", "", 0
			for _, o := range parse(t, text) {
				content, err := o.MarshalJSON()
				if err != nil {
					t.Fatal(err)
				}
				if o.GetKind() == "CustomResourceDefinition" {
					continue // it exists
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

// TestCommandsInNotesWork runs the command that creates the Secret, and parses the plugin input as the plugin does.
func TestCommandsInNotesWork(t *testing.T) {
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
			t.Fatalf("the command did not create the Secret of the plugin input: %v", err)
		}
		if _, warnings, err := credential.FromSecret(secret.Data); err != nil || len(warnings) > 0 {
			t.Errorf("the Secret: %v, %v", err, warnings)
		}
	}
}

// TestCommandsInWebhookNotesWork runs the command that grants the use permission, and the one that tests the webhook.
func TestCommandsInWebhookNotesWork(t *testing.T) {
	c := newCluster(t, "gmsa-system")
	out, err := c.helm(t, helms(t)[0], rendering{chart: webhook}.withDefaults(), "install")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(c.kubectl, filepath.Join(c.home, "kubectl")); err != nil {
		t.Fatal(err)
	}
	shell := func(from, to string) error {
		t.Helper()
		_, command, found := strings.Cut(out, "\n  "+from)
		command, _, foundEnd := strings.Cut(command, to)
		if !found || !foundEnd {
			t.Fatalf("the notes have no %q:\n%s", from, out)
		}
		_, err := c.run(t.Context(), "", "sh", "-c", "PATH="+c.home+":$PATH; "+from+command)
		return err
	}
	grant := string(credspec.UseRBACManifest("web01", "default", "default"))
	if !strings.Contains(out, "\n  echo '"+grant+"' | kubectl apply -f -\n") {
		t.Errorf("the notes do not have the same manifest as the webhook's denials: %s", grant)
	}
	allowed := func() bool {
		t.Helper()
		review, err := c.Client().AuthorizationV1().SubjectAccessReviews().Create(t.Context(), &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
			User:               "system:serviceaccount:default:default",
			ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: "default", Verb: "use", Group: "windows.k8s.io", Resource: "gmsacredentialspecs", Name: "web01"},
		}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return review.Status.Allowed
	}
	if allowed() {
		t.Fatal("the ServiceAccount can use web01 before the command ran")
	}
	if err := shell("echo '", "\n"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the permission", allowed)
	// The webhook does not run here.
	eventually(t, "the API server calls the webhook", func() bool {
		err := shell("kubectl run ", "\n\n")
		return err != nil && strings.Contains(err.Error(), `failed calling webhook "mutate.gmsa.ccgrkc.github.io"`)
	})
}

// TestUninstallKeepsCredentialSpecs also verifies that install and uninstall do not change a CustomResourceDefinition
// of another owner, and that a second release is rejected.
func TestUninstallKeepsCredentialSpecs(t *testing.T) {
	c := newCluster(t, "gmsa-system")
	ctx := t.Context()
	r := rendering{chart: webhook}.withDefaults()
	kubectl := func(input string, args ...string) string {
		t.Helper()
		out, err := c.run(ctx, input, c.kubectl, args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	ofReleases := func() string {
		return kubectl("", "get", "--all-namespaces", "--output=name", "--selector=app.kubernetes.io/part-of=ccgrkc",
			"deployments,replicasets,services,secrets,serviceaccounts,roles,rolebindings,clusterroles,clusterrolebindings,networkpolicies,poddisruptionbudgets,"+
				"mutatingwebhookconfigurations,validatingwebhookconfigurations,validatingadmissionpolicies,validatingadmissionpolicybindings")
	}
	const spec = `{"apiVersion":"windows.k8s.io/v1","kind":"GMSACredentialSpec","metadata":{"name":"web01"},"credspec":{}}`
	for _, h := range helms(t) {
		if _, err := c.helm(t, h, r, "install"); err != nil {
			t.Fatal(err)
		}
		kubectl(spec, "apply", "--filename=-")
		// The webhook writes the Secret and the CA bundle. An upgrade must not change them.
		kubectl("", "patch", "secret", "web-tls", "--namespace=gmsa-system", "--type=merge", `--patch={"data":{"tls.crt":"eA=="}}`)
		for _, kind := range []string{"mutatingwebhookconfiguration", "validatingwebhookconfiguration"} {
			kubectl("", "patch", kind, "web", "--type=json", `--patch=[{"op":"add","path":"/webhooks/0/clientConfig/caBundle","value":"`+base64.StdEncoding.EncodeToString([]byte(testCA))+`"}]`)
		}
		upgraded := r
		upgraded.values = "replicas: 3"
		if _, err := c.helm(t, h, upgraded, "upgrade"); err != nil {
			t.Fatal(err)
		}
		if got := kubectl("", "get", "secret", "web-tls", "--namespace=gmsa-system", `--output=jsonpath={.data.tls\.crt}`); got != "eA==" {
			t.Errorf("%s: after an upgrade, the Secret contains %q", h.name, got)
		}
		for _, kind := range []string{"mutatingwebhookconfiguration", "validatingwebhookconfiguration"} {
			if kubectl("", "get", kind, "web", "--output=jsonpath={.webhooks[0].clientConfig.caBundle}") == "" {
				t.Errorf("%s: an upgrade removed the CA bundle from the %s", h.name, kind)
			}
		}
		second := r
		second.release = "another"
		if _, err := c.helm(t, h, second, "install"); err == nil || !strings.Contains(err.Error(), "helm uninstall web --namespace gmsa-system") {
			t.Errorf("%s does not reject a second release: %v", h.name, err)
		}
		if _, err := c.run(ctx, "", h.path, "uninstall", r.release, "--namespace", r.namespace, "--wait"); err != nil {
			t.Fatal(err)
		}
		// The garbage collector deletes the objects of the Deployment later.
		eventually(t, "the deletion of all objects", func() bool { return ofReleases() == "" })
		if got := kubectl("", "get", "gmsacredentialspecs", "--output=name"); got != "gmsacredentialspec.windows.k8s.io/web01\n" {
			t.Errorf("%s: after an uninstall, the GMSACredentialSpecs are %q", h.name, got)
		}
	}

	kubectl("", "delete", "crd", "gmsacredentialspecs.windows.k8s.io")
	foreign := strings.ReplaceAll(`{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"gmsacredentialspecs.windows.k8s.io",
		"annotations":{"api-approved.kubernetes.io":"https://example.com","owner":"somebody else"}},"spec":{"group":"windows.k8s.io","scope":"Cluster",
		"names":{"kind":"GMSACredentialSpec","plural":"gmsacredentialspecs"},"versions":[{"name":"v1","served":true,"storage":true,
		"schema":{"openAPIV3Schema":{"type":"object","properties":{"credspec":{"type":"object"}}}}}]}}`, "\n", "")
	kubectl(foreign, "create", "--filename=-")
	before := kubectl("", "get", "crd", "gmsacredentialspecs.windows.k8s.io", "--output=jsonpath={.metadata.uid} {.metadata.generation} {.metadata.annotations.owner} {.metadata.labels}")
	for _, h := range helms(t) {
		notes, err := c.helm(t, h, r, "install")
		if err != nil || !strings.Contains(notes, "already existed and remains unchanged. Its owner:\nno Helm release.") {
			t.Errorf("%s: %v\n%s", h.name, err, notes)
		}
		if _, err := c.run(ctx, "", h.path, "uninstall", r.release, "--namespace", r.namespace, "--wait"); err != nil {
			t.Fatal(err)
		}
		if after := kubectl("", "get", "crd", "gmsacredentialspecs.windows.k8s.io", "--output=jsonpath={.metadata.uid} {.metadata.generation} {.metadata.annotations.owner} {.metadata.labels}"); after != before {
			t.Errorf("%s: the definition was %q and is %q", h.name, before, after)
		}
	}
}

// TestTwoReleasesCanUseOneSecret on different nodes. The second does not change the ServiceAccount that marks the
// Secret.
func TestTwoReleasesCanUseOneSecret(t *testing.T) {
	c := newCluster(t, "gmsa-system")
	accounts := c.Client().CoreV1().ServiceAccounts("gmsa-system")
	for i, h := range helms(t) {
		r := rendering{chart: provider, release: fmt.Sprint("r", i), values: `credentials: {secretName: shared}`}.withDefaults()
		for _, command := range []string{"install", "upgrade"} {
			notes, err := c.helm(t, h, r, command)
			if err != nil {
				t.Fatal(err)
			}
			if reported := strings.Contains(notes, "Release r0 also uses Secret shared."); reported != (i > 0) {
				t.Errorf("%s of release %d: the notes report another release: %v\n%s", command, i, reported, notes)
			}
		}
		mark, err := accounts.Get(t.Context(), "gmsa-secret-shared", metav1.GetOptions{})
		if err != nil || mark.Labels["app.kubernetes.io/instance"] != "r0" {
			t.Fatalf("%v, %v", mark.Labels, err)
		}
	}
	// An existing ServiceAccount with this name can have permissions that the webhook must not get.
	if _, err := accounts.Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "gmsa-secret-web-creds"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.helm(t, helms(t)[0], rendering{chart: provider}.withDefaults(), "install"); err != nil {
		t.Fatal(err)
	}
	if role, err := c.Client().RbacV1().Roles("gmsa-system").Get(t.Context(), "web:webhook", metav1.GetOptions{}); err == nil {
		t.Errorf("the webhook can request a token of an existing ServiceAccount: %v", role.Rules)
	}
}

// TestReleasesHaveOnlyTheListedPermissions compares the permissions that the API server reports for the ServiceAccounts
// of a release, without those of every ServiceAccount.
func TestReleasesHaveOnlyTheListedPermissions(t *testing.T) {
	c := newCluster(t, "gmsa-system", "other")
	h := helms(t)[1]
	for _, r := range []rendering{{chart: provider, release: "web"}, {chart: provider, release: "other"}, {chart: installer, release: "plugin"},
		{chart: webhook, release: "rancher-gmsa-webhook"}} {
		r := r.withDefaults()
		if _, err := c.helm(t, h, r, "install"); err != nil {
			t.Fatal(err)
		}
		// The objects of the uninstall hook exist only while it runs, so the test creates them.
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
		if len(hooks) == 0 {
			continue
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
	// The permissions of the webhook in all namespaces.
	everywhere := []string{
		rule([]string{"get"}, "windows.k8s.io", "gmsacredentialspecs"),
		rule([]string{"create"}, "authorization.k8s.io", "subjectaccessreviews"),
		strings.Replace(rule([]string{"get", "patch"}, "admissionregistration.k8s.io", "mutatingwebhookconfigurations", "rancher-gmsa-webhook"),
			`"mutatingwebhookconfigurations"`, `"mutatingwebhookconfigurations","validatingwebhookconfigurations"`, 1),
	}
	for _, tt := range []struct {
		account string
		want    []string
	}{
		{"gmsa-secret-web-creds", nil},
		{"rancher-gmsa-webhook", []string{
			rule([]string{"get", "update"}, "", "secrets", "rancher-gmsa-webhook-tls"),
			rule([]string{"create"}, "", "serviceaccounts/token", "gmsa-secret-web-creds"),
			rule([]string{"create"}, "", "serviceaccounts/token", "gmsa-secret-other-creds"),
		}},
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
			if tt.account == "rancher-gmsa-webhook" {
				for _, r := range everywhere {
					want[r] = true
				}
			}
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
				t.Errorf("permissions of %s in namespace %s (-want +got)\n%s", tt.account, namespace, diff)
			}
		}
	}
}

// TestFailedInstallCreatesNothing verifies that all checks that need the cluster run before the first object is
// created.
func TestFailedInstallCreatesNothing(t *testing.T) {
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
	// An interrupted uninstall left its DaemonSet.
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
			{rendering{chart: provider, release: "corp", values: `certificates: {mode: certManager}`}, "does not have the API cert-manager.io/v1"},
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
		t.Errorf("objects before:\n%sand after:\n%s", before, after)
	}

	// Without the DaemonSet, the install succeeds. With a new one, an upgrade fails.
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
			t.Errorf("%s upgrades during an unfinished uninstall: %v", h.name, err)
		}
		remove()
	}
}
