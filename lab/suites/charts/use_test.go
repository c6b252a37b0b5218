package charts

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ccgrkc/ccgrkc/internal/credspec"
)

// grantUse grants a ServiceAccount the use permission on GMSACredentialSpecs, and waits until the authorizer applies it.
func (c *cluster) grantUse(t *testing.T, namespace, account string, specs ...string) {
	t.Helper()
	var lists []string
	for _, spec := range specs {
		lists = append(lists, string(credspec.UseRBACManifest(spec, namespace, account)))
	}
	if _, err := c.run(t.Context(), strings.Join(lists, "\n---\n"), c.kubectl, "apply", "--filename=-"); err != nil {
		t.Fatal(err)
	}
	for _, spec := range specs {
		eventually(t, "the use permission", func() bool { return c.canUse(t, namespace, account, spec) })
	}
}

// canUse asks the API server as the webhook does.
func (c *cluster) canUse(t *testing.T, namespace, account, spec string) bool {
	t.Helper()
	review, err := c.Client().AuthorizationV1().SubjectAccessReviews().Create(t.Context(), &authorizationv1.SubjectAccessReview{
		Spec: authorizationv1.SubjectAccessReviewSpec{
			User:   "system:serviceaccount:" + namespace + ":" + account,
			Groups: []string{"system:serviceaccounts", "system:serviceaccounts:" + namespace, "system:authenticated"},
			ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: namespace, Verb: "use", Group: "windows.k8s.io", Version: "v1",
				Resource: "gmsacredentialspecs", Name: spec},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return review.Status.Allowed
}

// Attack: another product excludes namespaces from all webhooks, as AKS does for namespaces with the label
// control-plane=true. A user who can create pods there writes a credential spec name and invented contents. The policy
// alone denies and allows the pods as the webhook does.
func TestPolicyChecksTheUsePermissionWithoutTheWebhook(t *testing.T) {
	c := newCluster(t, "gmsa-system", "shop", "elsewhere")
	ctx := t.Context()
	kubectl := func(input string, args ...string) {
		t.Helper()
		if _, err := c.run(ctx, input, c.kubectl, args...); err != nil {
			t.Fatal(err)
		}
	}
	kubectl("", "label", "namespace", "shop", "control-plane=true")
	for _, account := range []string{"web", "poor"} {
		kubectl("", "create", "serviceaccount", account, "--namespace=shop")
	}
	objects := rendering{chart: webhook}.mustRender(t)
	kinds := []string{"CustomResourceDefinition", "Service", "MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"}
	c.applyOnly(t, objects, kinds...)
	for _, kind := range kinds[2:] {
		kubectl("", "patch", strings.ToLower(kind), "web", "--type=json",
			`--patch=[{"op":"add","path":"/webhooks/0/namespaceSelector/matchExpressions/-","value":{"key":"control-plane","operator":"NotIn","values":["true"]}}]`)
	}
	pods := c.Client().CoreV1().Pods("shop")
	create := func(pod *corev1.Pod, account string) error {
		pod.Spec.ServiceAccountName = account
		_, err := pods.Create(ctx, pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return err
	}
	invented := func(names ...string) *corev1.Pod {
		pod := gmsaPod("a", nil)
		for i, name := range names {
			options := both(name, `{"CmsPlugins":["invented"]}`)
			pod.Spec.InitContainers = append(pod.Spec.InitContainers, corev1.Container{Name: fmt.Sprint("c", i),
				Image: "none.example.com/none", SecurityContext: &corev1.SecurityContext{WindowsOptions: &options}})
		}
		return pod
	}
	eventually(t, "the other product's exclusion", func() bool { return create(invented("web01"), "web") == nil })
	c.applyOnly(t, objects, "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
	eventually(t, "the policy", func() bool { return create(invented("web01"), "web") != nil })
	denied := func(err error, where, account, spec string) bool {
		text := fmt.Sprintf("%s: ServiceAccount shop/%s cannot use GMSACredentialSpec %s: it needs the verb use on "+
			"gmsacredentialspecs.windows.k8s.io. To grant it: echo '%s' | kubectl apply -f -",
			where, account, spec, credspec.UseRBACManifest(spec, "shop", account))
		return apierrors.IsForbidden(err) && strings.Contains(err.Error(), text)
	}

	t.Run("denies and allows as the webhook does", func(t *testing.T) {
		c.grantUse(t, "shop", "web", "web01")
		c.grantUse(t, "shop", "default", "of-default")
		c.grantUse(t, "elsewhere", "web", "of-elsewhere")
		grant := func(name, binding, namespace string, subject map[string]any, verbs, names []string) {
			t.Helper()
			rule := map[string]any{"apiGroups": []string{"windows.k8s.io"}, "resources": []string{"gmsacredentialspecs"}, "verbs": verbs}
			if names != nil {
				rule["resourceNames"] = names
			}
			const group = "rbac.authorization.k8s.io"
			for _, o := range []map[string]any{
				{"apiVersion": group + "/v1", "kind": "ClusterRole", "metadata": map[string]any{"name": name}, "rules": []any{rule}},
				{"apiVersion": group + "/v1", "kind": binding, "metadata": map[string]any{"name": name, "namespace": namespace},
					"roleRef": map[string]any{"apiGroup": group, "kind": "ClusterRole", "name": name}, "subjects": []any{subject}},
			} {
				text, err := json.Marshal(o)
				if err != nil {
					t.Fatal(err)
				}
				kubectl(string(text), "apply", "--filename=-")
			}
		}
		group := func(name string) map[string]any {
			return map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": name}
		}
		use := []string{"use"}
		grant("everywhere", "ClusterRoleBinding", "", map[string]any{"kind": "ServiceAccount", "name": "web", "namespace": "shop"}, use, []string{"everywhere"})
		grant("accounts", "ClusterRoleBinding", "", group("system:serviceaccounts"), use, []string{"of-accounts"})
		grant("namespace", "RoleBinding", "shop", group("system:serviceaccounts:shop"), use, []string{"of-namespace"})
		grant("other-namespace", "RoleBinding", "shop", group("system:serviceaccounts:elsewhere"), use, []string{"of-other-namespace"})
		grant("user", "RoleBinding", "shop", map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:serviceaccount:shop:web"}, use, []string{"of-user"})
		grant("get", "RoleBinding", "shop", group("system:serviceaccounts"), []string{"get", "list"}, nil)
		grant("verbs", "RoleBinding", "shop", map[string]any{"kind": "ServiceAccount", "name": "web", "namespace": "shop"}, []string{"*"}, []string{"of-verbs"})
		eventually(t, "the last permission", func() bool { return c.canUse(t, "shop", "web", "of-verbs") })
		allowed := 0
		for _, account := range []string{"web", "poor", "default"} {
			for _, spec := range []string{"web01", "web02", "of-default", "of-elsewhere", "everywhere", "of-accounts", "of-namespace", "of-other-namespace", "of-user", "of-verbs"} {
				want := c.canUse(t, "shop", account, spec)
				err := create(invented(spec), account)
				if want && err != nil || !want && !denied(err, "init container c0", account, spec) {
					t.Errorf("ServiceAccount %s, GMSACredentialSpec %s: the webhook would allow it: %t; the policy: %v", account, spec, want, err)
				}
				if want {
					allowed++
				}
			}
		}
		// Two groups for each account, four others for web and one for default.
		if allowed != 3*2+4+1 {
			t.Errorf("%d combinations are allowed, want 11", allowed)
		}
		// The one difference: every authenticated user is in this group, but the policy does not know it.
		grant("authenticated", "RoleBinding", "shop", group("system:authenticated"), use, []string{"of-authenticated"})
		eventually(t, "the permission of the group", func() bool { return c.canUse(t, "shop", "web", "of-authenticated") })
		if err := create(invented("of-authenticated"), "web"); !denied(err, "init container c0", "web", "of-authenticated") {
			t.Errorf("with a permission of system:authenticated: %v", err)
		}
	})

	var eight []string
	for i := range 8 {
		eight = append(eight, fmt.Sprint("spec", i))
	}
	c.grantUse(t, "shop", "default", eight...)
	t.Run("every name is checked", func(t *testing.T) {
		if err := create(invented(eight...), ""); err != nil {
			t.Errorf("eight names with permission: %v", err)
		}
		for i := range eight {
			names := append([]string{}, eight...)
			names[i] = "web02"
			if err := create(invented(names...), "default"); !denied(err, fmt.Sprint("init container c", i), "default", "web02") {
				t.Errorf("name %d has no permission: %v", i, err)
			}
		}
		nine := append([]string{"web02"}, eight...)
		if err := create(invented(nine...), "default"); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "more than 8 different GMSACredentialSpecs") {
			t.Errorf("nine names: %v", err)
		}
		// As many places as the webhook allows, with eight names.
		var many []string
		for i := range 256 {
			many = append(many, eight[i%8])
		}
		if err := create(invented(many...), "default"); err != nil {
			t.Errorf("256 places: %v", err)
		}
		many[255] = "web02"
		if err := create(invented(many...), "default"); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "more than 8 different") {
			t.Errorf("256 places and nine names: %v", err)
		}
	})

	t.Run("only new references are checked", func(t *testing.T) {
		pod := invented("spec0")
		pod.Spec.InitContainers = pod.Spec.InitContainers[1:]
		made, err := pods.Create(ctx, pod, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		kubectl("", "delete", "rolebinding", "gmsa-spec0:default", "--namespace=shop")
		eventually(t, "the permission is revoked", func() bool { return !c.canUse(t, "shop", "default", "spec0") })
		kubectl("", "label", "pod", "a", "--namespace=shop", "x=y")
		debug := func(spec string) error {
			changed := made.DeepCopy()
			changed.ResourceVersion = ""
			changed.Spec.EphemeralContainers = []corev1.EphemeralContainer{ephemeral("look", both(spec, "{}"))}
			_, err := pods.UpdateEphemeralContainers(ctx, "a", changed, metav1.UpdateOptions{DryRun: []string{metav1.DryRunAll}})
			return err
		}
		if err := debug("spec1"); err != nil {
			t.Errorf("kubectl debug with a permission: %v", err)
		}
		for _, spec := range []string{"spec0", "web02"} {
			if err := debug(spec); !denied(err, "ephemeral container look", "default", spec) {
				t.Errorf("kubectl debug with %s: %v", spec, err)
			}
		}
	})

	// Before another gMSA webhook is uninstalled, the value standby excludes all pods from ours. The policy still applies.
	t.Run("standby", func(t *testing.T) {
		kubectl("", "create", "serviceaccount", "default-use", "--namespace=elsewhere")
		c.grantUse(t, "elsewhere", "default-use", "of-elsewhere")
		try := func(spec string) error {
			pod := invented(spec)
			pod.Spec.ServiceAccountName = "default-use"
			_, err := c.Client().CoreV1().Pods("elsewhere").Create(ctx, pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
			return err
		}
		if err := try("of-elsewhere"); err == nil || !strings.Contains(err.Error(), "failed calling webhook") {
			t.Errorf("no webhook runs, but a pod that uses a gMSA gets %v", err)
		}
		c.applyOnly(t, rendering{chart: webhook, values: "standby: true"}.mustRender(t), kinds[2:]...)
		eventually(t, "standby", func() bool { return try("of-elsewhere") == nil })
		if err := try("web02"); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "cannot use GMSACredentialSpec web02") {
			t.Errorf("a pod without permission on standby: %v", err)
		}
	})

	for _, name := range []string{"web", "web-tokens"} {
		eventually(t, "type checking of the policy "+name, func() bool {
			policy, err := c.Client().AdmissionregistrationV1().ValidatingAdmissionPolicies().Get(ctx, name, metav1.GetOptions{})
			if err != nil || policy.Status.TypeChecking == nil {
				return false
			}
			if w := policy.Status.TypeChecking.ExpressionWarnings; len(w) > 0 {
				t.Errorf("type checking of the policy %s: %v", name, w)
			}
			return true
		})
	}
}
