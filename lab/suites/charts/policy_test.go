package charts

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/ccgrkc/ccgrkc/internal/credspec"
)

// warnings records the warnings that the API server sent to a client.
type warnings struct {
	mu    sync.Mutex
	texts []string
}

func (h *warnings) HandleWarningHeaderWithContext(_ context.Context, _ int, _ string, text string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.texts = append(h.texts, text)
}

// dynamicClient returns a client and the warnings that it receives.
func (c *cluster) dynamicClient(t *testing.T) (dynamic.Interface, *warnings) {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	h := &warnings{}
	config = rest.CopyConfig(config)
	config.QPS, config.WarningHandlerWithContext = -1, h
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client, h
}

// applyOnly applies the objects of these kinds.
func (c *cluster) applyOnly(t *testing.T, objects []*unstructured.Unstructured, kinds ...string) {
	t.Helper()
	var chosen []string
	for _, o := range objects {
		if slices.Contains(kinds, o.GetKind()) {
			text, err := o.MarshalJSON()
			if err != nil {
				t.Fatal(err)
			}
			chosen = append(chosen, string(text))
		}
	}
	if _, err := c.run(t.Context(), strings.Join(chosen, "\n---\n"), c.kubectl, "apply", "--filename=-"); err != nil {
		t.Fatal(err)
	}
	if slices.Contains(kinds, "CustomResourceDefinition") {
		if _, err := c.run(t.Context(), "", c.kubectl, "wait", "crd", "--all", "--for=condition=Established", "--timeout=1m"); err != nil {
			t.Fatal(err)
		}
	}
}

// eventually waits for a state that API servers reach after a watch event.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !f(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("timeout after a minute: %s", what)
		}
	}
}

// gmsaPod returns a pod with an init container and a container. f sets their Windows options.
func gmsaPod(name string, f func(pod, init, web *corev1.WindowsSecurityContextOptions)) *corev1.Pod {
	var pod, init, web corev1.WindowsSecurityContextOptions
	if f != nil {
		f(&pod, &init, &web)
	}
	container := func(name string, o *corev1.WindowsSecurityContextOptions) corev1.Container {
		c := corev1.Container{Name: name, Image: "none.example.com/none"}
		if *o != (corev1.WindowsSecurityContextOptions{}) {
			c.SecurityContext = &corev1.SecurityContext{WindowsOptions: o}
		}
		return c
	}
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{
		InitContainers: []corev1.Container{container("prepare", &init)},
		Containers:     []corev1.Container{container("web", &web), {Name: "side", Image: "none.example.com/none"}},
		// No node runs it.
		NodeSelector: map[string]string{"none": "such"},
	}}
	if pod != (corev1.WindowsSecurityContextOptions{}) {
		p.Spec.SecurityContext = &corev1.PodSecurityContext{WindowsOptions: &pod}
	}
	return p
}

func ephemeral(name string, o corev1.WindowsSecurityContextOptions) corev1.EphemeralContainer {
	return corev1.EphemeralContainer{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: name, Image: "none.example.com/none",
		TerminationMessagePolicy: corev1.TerminationMessageReadFile, ImagePullPolicy: corev1.PullAlways, SecurityContext: &corev1.SecurityContext{WindowsOptions: &o}}}
}

type windowsOptions = corev1.WindowsSecurityContextOptions

func named(name string) windowsOptions  { return windowsOptions{GMSACredentialSpecName: &name} }
func inline(text string) windowsOptions { return windowsOptions{GMSACredentialSpec: &text} }
func both(name, text string) windowsOptions {
	return windowsOptions{GMSACredentialSpecName: &name, GMSACredentialSpec: &text}
}

// TestPoliciesApplyWithoutTheWebhook applies only the policies and the CustomResourceDefinition to an API server.
func TestPoliciesApplyWithoutTheWebhook(t *testing.T) {
	c := newCluster(t, "gmsa-system", "shop", "disabled")
	objects := rendering{chart: webhook}.mustRender(t)
	ctx := t.Context()
	if _, err := c.run(ctx, "", c.kubectl, "label", "namespace", "disabled", "windows.k8s.io/disabled=true"); err != nil {
		t.Fatal(err)
	}
	pods := c.Client().CoreV1().Pods("shop")
	// Pods that existed before the policies.
	old := []*corev1.Pod{
		gmsaPod("plain", nil),
		gmsaPod("with-gmsa", func(pod, _, _ *windowsOptions) { *pod = named("web01") }),
		gmsaPod("without-name", func(pod, _, web *windowsOptions) { *pod, *web = inline("[]"), named("web01") }),
	}
	for i, pod := range old {
		var err error
		if old[i], err = pods.Create(ctx, pod, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	c.grantUse(t, "shop", "default", "web01", "pod", "init", "web", "look", "other")
	c.applyOnly(t, objects, "CustomResourceDefinition", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
	dryRun := metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}
	smuggled := gmsaPod("smuggled", func(pod, _, _ *windowsOptions) { *pod = inline("{}") })
	eventually(t, "the policy for pods", func() bool {
		_, err := pods.Create(ctx, smuggled, dryRun)
		return err != nil
	})

	t.Run("inline credential specs without a name are denied, and names without an inline credential spec", func(t *testing.T) {
		const (
			noName       = ": gmsaCredentialSpec is set without gmsaCredentialSpecName"
			notPopulated = ": GMSACredentialSpec web01 was not populated"
		)
		for _, tt := range []struct {
			name string
			f    func(pod, init, web *windowsOptions)
			want string
		}{
			{"no gMSA", nil, ""},
			{"a name", func(pod, _, _ *windowsOptions) { *pod = named("web01") }, "the pod's securityContext" + notPopulated},
			{"a name in a container", func(pod, _, web *windowsOptions) { *pod, *web = both("web01", "{}"), named("web01") }, "container web" + notPopulated},
			{"a name with an inline credential spec, which the webhook validates", func(_, _, web *windowsOptions) { *web = both("web01", "{}") }, ""},
			{"other Windows options", func(pod, _, _ *windowsOptions) { user := "ContainerUser"; pod.RunAsUserName = &user }, ""},
			{"in the pod", func(pod, _, _ *windowsOptions) { *pod = inline("{}") }, "the pod's securityContext" + noName},
			{"in a container, with a name in the pod", func(pod, _, web *windowsOptions) { *pod, *web = both("web01", "{}"), inline("{}") }, "container web" + noName},
			{"in an init container", func(_, init, _ *windowsOptions) { *init = inline("{}") }, "init container prepare" + noName},
			{"in a container, next to a valid one", func(_, init, web *windowsOptions) { *init, *web = both("web01", "{}"), inline("{}") }, "container web" + noName},
		} {
			_, err := pods.Create(ctx, gmsaPod("a", tt.f), dryRun)
			if tt.want == "" && err != nil || tt.want != "" && (!apierrors.IsForbidden(err) || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("%s: want %q, got %v", tt.name, tt.want, err)
			}
			// The policy ignores these namespaces.
			for _, namespace := range []string{"gmsa-system", "disabled"} {
				if _, err := c.Client().CoreV1().Pods(namespace).Create(ctx, gmsaPod("a", tt.f), dryRun); err != nil {
					t.Errorf("%s, in namespace %s: %v", tt.name, namespace, err)
				}
			}
		}
	})

	t.Run("inline credential specs without a name are denied in kubectl debug", func(t *testing.T) {
		for _, made := range old {
			made.ResourceVersion = "" // the scheduler also changes the pod
			bad := made.DeepCopy()
			bad.Spec.EphemeralContainers = append(bad.Spec.EphemeralContainers, ephemeral("look", inline("{}")))
			if _, err := pods.UpdateEphemeralContainers(ctx, made.Name, bad, metav1.UpdateOptions{}); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "ephemeral container look: gmsaCredentialSpec is set without") {
				t.Errorf("%s: %v", made.Name, err)
			}
			bad.Spec.EphemeralContainers[0] = ephemeral("look", named("web01"))
			if _, err := pods.UpdateEphemeralContainers(ctx, made.Name, bad, metav1.UpdateOptions{}); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "ephemeral container look: GMSACredentialSpec web01 was not populated") {
				t.Errorf("%s: %v", made.Name, err)
			}
			good := made.DeepCopy()
			good.Spec.EphemeralContainers = append(good.Spec.EphemeralContainers, ephemeral("look", both("web01", "{}")))
			if _, err := pods.UpdateEphemeralContainers(ctx, made.Name, good, metav1.UpdateOptions{}); err != nil {
				t.Errorf("%s: %v", made.Name, err)
			}
			if _, err := c.run(ctx, "", c.kubectl, "label", "pod", made.Name, "--namespace=shop", "a=b"); err != nil {
				t.Error(err)
			}
			for _, patch := range []string{
				`{"spec":{"securityContext":{"windowsOptions":{"gmsaCredentialSpecName":"other"}}}}`,
				`{"spec":{"securityContext":{"windowsOptions":{"gmsaCredentialSpec":"{}"}}}}`,
			} {
				if _, err := c.run(ctx, "", c.kubectl, "patch", "pod", made.Name, "--namespace=shop", "--type=merge", "--patch="+patch); err == nil {
					t.Errorf("%s: changed by %s", made.Name, patch)
				}
			}
		}
	})

	// The API server itself rejects such changes of pods before it evaluates policies. So the test uses a custom kind
	// instead of pods: the policy must apply even if a future version allows changes of securityContext, as it does for
	// resources.
	t.Run("gMSA fields do not change", func(t *testing.T) { c.changes(t, objects) })

	t.Run("an invalid GMSACredentialSpec causes warnings for the same fields as in gmsactl", func(t *testing.T) { c.credentialSpecs(t) })
}

// changes applies the policy for pods to a custom kind with the spec of a pod.
func (c *cluster) changes(t *testing.T, objects []*unstructured.Unstructured) {
	const definition = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: twins.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {kind: Twin, plural: twins, singular: twin}
  versions:
    - name: v1
      served: true
      storage: true
      schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`
	if _, err := c.run(t.Context(), definition, c.kubectl, "apply", "--filename=-"); err != nil {
		t.Fatal(err)
	}
	policy := find(t, objects, "ValidatingAdmissionPolicy", "web").DeepCopy()
	policy.SetName("twins")
	rules := []any{map[string]any{"apiGroups": []any{"example.com"}, "apiVersions": []any{"v1"}, "resources": []any{"twins"}, "operations": []any{"CREATE", "UPDATE"}}}
	if err := unstructured.SetNestedSlice(policy.Object, rules, "spec", "matchConstraints", "resourceRules"); err != nil {
		t.Fatal(err)
	}
	binding := find(t, objects, "ValidatingAdmissionPolicyBinding", "web").DeepCopy()
	binding.SetName("twins")
	if err := unstructured.SetNestedField(binding.Object, "twins", "spec", "policyName"); err != nil {
		t.Fatal(err)
	}
	c.applyOnly(t, []*unstructured.Unstructured{policy, binding}, "CustomResourceDefinition", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")

	client, _ := c.dynamicClient(t)
	twins := client.Resource(schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: "twins"}).Namespace("shop")
	twin := func(name string, spec corev1.PodSpec) *unstructured.Unstructured {
		t.Helper()
		text, err := json.Marshal(map[string]any{"apiVersion": "example.com/v1", "kind": "Twin", "metadata": map[string]any{"name": name}, "spec": spec})
		if err != nil {
			t.Fatal(err)
		}
		u := &unstructured.Unstructured{}
		if err := u.UnmarshalJSON(text); err != nil {
			t.Fatal(err)
		}
		return u
	}
	eventually(t, "the policy for twins", func() bool {
		_, err := twins.Create(t.Context(), twin("a", gmsaPod("", func(pod, _, _ *windowsOptions) { *pod = inline("{}") }).Spec), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return apierrors.IsForbidden(err)
	})

	before := gmsaPod("", func(pod, init, web *windowsOptions) {
		*pod, *init, *web = both("pod", "1"), both("init", "2"), both("web", "3")
	}).Spec
	before.EphemeralContainers = []corev1.EphemeralContainer{ephemeral("look", both("look", "4"))}
	const immutable = ": gmsaCredentialSpecName and gmsaCredentialSpec cannot change"
	for i, tt := range []struct {
		name string
		f    func(*corev1.PodSpec)
		want string
	}{
		{"nothing", func(*corev1.PodSpec) {}, ""},
		{"an image", func(s *corev1.PodSpec) { s.Containers[0].Image = "other" }, ""},
		{"the order of containers", func(s *corev1.PodSpec) { slices.Reverse(s.Containers) }, ""},
		{"a new ephemeral container with a name", func(s *corev1.PodSpec) {
			s.EphemeralContainers = append(s.EphemeralContainers, ephemeral("more", both("other", "{}")))
		}, ""},
		{"a new ephemeral container with a name alone", func(s *corev1.PodSpec) {
			s.EphemeralContainers = append(s.EphemeralContainers, ephemeral("more", named("other")))
		}, "ephemeral container more: GMSACredentialSpec other was not populated"},
		{"a new ephemeral container with an inline credential spec", func(s *corev1.PodSpec) {
			s.EphemeralContainers = append(s.EphemeralContainers, ephemeral("more", inline("{}")))
		}, "ephemeral container more: gmsaCredentialSpec is set without"},
		{"the pod's name", func(s *corev1.PodSpec) { *s.SecurityContext.WindowsOptions = both("other", "1") }, "the pod's securityContext" + immutable},
		{"the pod's inline credential spec", func(s *corev1.PodSpec) { *s.SecurityContext.WindowsOptions = both("pod", "0") }, "the pod's securityContext" + immutable},
		{"the pod's, removed", func(s *corev1.PodSpec) { s.SecurityContext = nil }, "the pod's securityContext" + immutable},
		{"all, removed", func(s *corev1.PodSpec) { *s = gmsaPod("", nil).Spec }, "the pod's securityContext" + immutable},
		{"a container's name", func(s *corev1.PodSpec) { *s.Containers[0].SecurityContext.WindowsOptions = both("other", "3") }, "container web" + immutable},
		{"a name for a container that had none", func(s *corev1.PodSpec) {
			o := named("other")
			s.Containers[1].SecurityContext = &corev1.SecurityContext{WindowsOptions: &o}
		}, "container side" + immutable},
		{"an init container's inline credential spec", func(s *corev1.PodSpec) { *s.InitContainers[0].SecurityContext.WindowsOptions = both("init", "0") }, "init container prepare" + immutable},
		{"an ephemeral container's name", func(s *corev1.PodSpec) { s.EphemeralContainers[0] = ephemeral("look", both("other", "4")) }, "ephemeral container look" + immutable},
		{"an ephemeral container, removed", func(s *corev1.PodSpec) { s.EphemeralContainers = nil }, "ephemeral container look" + immutable},
		{"two containers' names, swapped", func(s *corev1.PodSpec) {
			s.Containers[0].Name, s.Containers[1].Name = s.Containers[1].Name, s.Containers[0].Name
		}, "container web" + immutable},
	} {
		made, err := twins.Create(t.Context(), twin(fmt.Sprint("twin-", i), before), metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		after := before.DeepCopy()
		tt.f(after)
		changed := twin(made.GetName(), *after)
		changed.SetResourceVersion(made.GetResourceVersion())
		_, err = twins.Update(t.Context(), changed, metav1.UpdateOptions{})
		if tt.want == "" && err != nil || tt.want != "" && (!apierrors.IsForbidden(err) || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: want %q, got %v", tt.name, tt.want, err)
		}
	}
	// In pods, the API server rejects empty fields.
	for name, f := range map[string]func(pod, init, web *windowsOptions){
		"":                          func(pod, init, web *windowsOptions) { *pod, *init, *web = both("", ""), inline(""), named("") },
		"the pod's securityContext": func(pod, _, web *windowsOptions) { *pod, *web = both("", "{}"), named("web01") },
	} {
		_, err := twins.Create(t.Context(), twin("empty", gmsaPod("", f).Spec), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if name == "" && err != nil || name != "" && (!apierrors.IsForbidden(err) || !strings.Contains(err.Error(), name)) {
			t.Errorf("empty fields: want an error with %q, got %v", name, err)
		}
	}
	// A pod without a gMSA cannot get one.
	made, err := twins.Create(t.Context(), twin("plain", gmsaPod("", nil).Spec), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	changed := twin("plain", gmsaPod("", func(_, _, web *windowsOptions) { *web = named("web01") }).Spec)
	changed.SetResourceVersion(made.GetResourceVersion())
	if _, err := twins.Update(t.Context(), changed, metav1.UpdateOptions{}); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "container web"+immutable) {
		t.Errorf("a name for a container of a pod without a gMSA: %v", err)
	}
}

var (
	warnedField = regexp.MustCompile(`': (credspec[A-Za-z.\[\]]*)`)
	listIndex   = regexp.MustCompile(`\[\d*\]|\.(Name|Scope)$`)
)

// credentialSpecs compares the warnings of the policy with the problems that package credspec finds.
func (c *cluster) credentialSpecs(t *testing.T) {
	good := func() map[string]any {
		spec := credspec.New(credspec.Domain{SID: "S-1-5-21-702590844-1001920913-2680819671", GUID: "56d9b66c-d746-4f87-bd26-26760cfdca2e",
			DNSName: "corp.example.com", NetBIOSName: "CORP", ForestDNSName: "example.com"}, "web01", "gmsa-system:web-creds")
		var m map[string]any
		if err := json.Unmarshal(spec.JSON(), &m); err != nil {
			t.Fatal(err)
		}
		return m
	}
	set := func(path string, value any) func(map[string]any) {
		return func(m map[string]any) {
			if err := unstructured.SetNestedField(m, value, strings.Split(path, ".")...); err != nil {
				t.Fatal(err)
			}
		}
	}
	remove := func(path string) func(map[string]any) {
		return func(m map[string]any) { unstructured.RemoveNestedField(m, strings.Split(path, ".")...) }
	}
	const (
		domain   = "DomainJoinConfig"
		accounts = "ActiveDirectoryConfig.GroupManagedServiceAccounts"
		host     = "ActiveDirectoryConfig.HostAccountConfig"
	)
	account := func(pairs ...string) func(map[string]any) {
		var list []any
		for i := 0; i < len(pairs); i += 2 {
			list = append(list, map[string]any{"Name": pairs[i], "Scope": pairs[i+1]})
		}
		return set(accounts, list)
	}
	type variant struct {
		name string
		f    func(map[string]any)
	}
	variants := []variant{{"valid", func(map[string]any) {}}}
	try := func(path string, values ...string) {
		for _, v := range values {
			variants = append(variants, variant{fmt.Sprintf("%s %.60q", path, v), set(path, v)})
		}
		variants = append(variants, variant{path + " is missing", remove(path)})
	}
	try(domain+".Sid", "", "S-1-5-21-1-2-3", "S-1-5-21-1-2-3-1105", "s-1-5-21-1-2-3", "S-1-5-32-544", "S-1-5-21-1-2", "S-1-5-21-4294967295-0-1", "S-1-5-21-4294967296-2-3", "S-1-5-21-1-2-99999999999",
		"S-1-5-21-1-2-3 ", "S-1-5-21-1-2-3\n", "S-1-5-21--2-3", "S-1-5-21-1-2-3\x01", "S-1-5-21-1-2-3-4-5", strings.Repeat("S-1-5-21-", 2000))
	try(domain+".MachineAccountName", "", "web01$", `CORP\web01`, "web01@corp.example.com", "web 01", " web01", "web01 ", "a234567890123456", "a23456789012345", "web;01", "web/01", "we[b", "web\x01", "wéb01", "$", "we$b")
	try(domain+".Guid", "", "{56d9b66c-d746-4f87-bd26-26760cfdca2e}", "56D9B66C-D746-4F87-BD26-26760CFDCA2E", "56d9b66cd7464f87bd2626760cfdca2e", "00000000-0000-0000-0000-000000000000", "g6d9b66c-d746-4f87-bd26-26760cfdca2e")
	for _, name := range []string{"DnsTreeName", "DnsName"} {
		try(domain+"."+name, "", "CORP", "example.com.", ".example.com", "exa..mple.com", "ldap://example.com", "dc1.example.com:389", "exam ple.com", `CORP\x`, "a@example.com", "exa_mple.com", "example.com\t", "bücher.example")
	}
	try(domain+".NetBiosName", "", "corp", "corp.example.com", "A234567890123456", "A23456789012345", `CORP\x`, "CO:RP", " CORP", "CORP ", "CO RP", "CORP$")
	try(host+".PortableCcgVersion", "", "1.0", "2", "01")
	try(host+".PluginGUID", "", strings.ToLower(credspec.PluginGUID), strings.Trim(credspec.PluginGUID, "{}"), "{E4781092}", "{00000000-1111-2222-3333-444444444444}", "00000000-1111-2222-3333-444444444444", "{"+credspec.PluginGUID+"}")
	try(host+".PluginInput", "", "web", "gmsa-system/web", "gmsa-system:", ":web-creds", "gmsa-system:web-creds:x", "Gmsa-system:web-creds", "gmsa.system:web", "gmsa-system:web..creds", "gmsa-system:-web", "a:b.c-d", "gmsa_system:web",
		" gmsa-system:web-creds", "gmsa-system:web-creds\n", strings.Repeat("a", 63)+":b", strings.Repeat("a", 64)+":b", "a:"+strings.Repeat("b", 253), "a:"+strings.Repeat("b", 254), "a:"+strings.Repeat("b", 64)+".c", "-:b", "a-:b")
	for _, foreign := range credspec.Foreign {
		for _, guid := range []string{foreign.GUID, strings.ToLower(foreign.GUID), strings.Trim(foreign.GUID, "{}")} {
			for _, input := range []string{"their own", "", "gmsa-system:web-creds"} {
				variants = append(variants, variant{fmt.Sprintf("plugin %s with input %q", guid, input), func(m map[string]any) {
					set(host+".PluginGUID", guid)(m)
					set(host+".PluginInput", input)(m)
				}})
			}
		}
	}
	for name, f := range map[string]func(map[string]any){
		"no plugins":                       remove("CmsPlugins"),
		"empty plugins":                    set("CmsPlugins", []any{}),
		"plugin in another case":           set("CmsPlugins", []any{"activeDirectory"}),
		"plugin twice, once in lower case": set("CmsPlugins", []any{"ActiveDirectory", "activedirectory"}),
		"plugin and another":               set("CmsPlugins", []any{"ActiveDirectory", "Other"}),
		"another plugin":                   set("CmsPlugins", []any{"Other"}),
		"no domain":                        remove(domain),
		"an empty domain":                  set(domain, map[string]any{}),
		"no ActiveDirectoryConfig":         remove("ActiveDirectoryConfig"),
		"nothing at all":                   func(m map[string]any) { clear(m) },
		"no accounts":                      remove(accounts),
		"empty accounts":                   set(accounts, []any{}),
		"one name":                         account("web01", "corp.example.com"),
		"the other name":                   account("web01", "CORP"),
		"names in another order":           account("web01", "CORP", "web01", "corp.example.com"),
		"names in another case":            account("WEB01", "corp", "web01", "CORP.example.COM"),
		"DNS names only":                   account("web01", "corp.example.com", "web01", "example.com"),
		"NetBIOS names only":               account("web01", "CORP", "web01", "OTHER"),
		"a name with $":                    account("web01$", "CORP", "web01$", "corp.example.com"),
		"two gMSAs":                        account("web01", "CORP", "web01", "corp.example.com", "web02", "CORP", "web02", "corp.example.com"),
		"the second gMSA once":             account("web01", "CORP", "web01", "corp.example.com", "web02", "CORP"),
		"two gMSAs, once each":             account("web01", "CORP", "web02", "corp.example.com"),
		"another domain's":                 account("web01", "OTHER", "web01", "other.example.com"),
		"an empty name":                    account("", "CORP", "", "corp.example.com"),
		"a name too long":                  account("a234567890123456", "CORP", "a234567890123456", "corp.example.com"),
		"an empty scope":                   account("web01", "CORP", "web01", "corp.example.com", "web01", ""),
		"one empty scope":                  account("web01", "CORP", "web01", ""),
		"a domain of one label": func(m map[string]any) {
			set(domain+".DnsName", "CORP")(m)
			account("web01", "CORP")(m)
		},
		"a domain of one label, with another NetBIOS name": func(m map[string]any) {
			set(domain+".DnsName", "CORP1")(m)
			account("web01", "CORP1")(m)
		},
		"a NetBIOS name with a dot, alone": func(m map[string]any) {
			set(domain+".NetBiosName", "co.rp")(m)
			account("web01", "co.rp")(m)
		},
		"a NetBIOS name with a dot": func(m map[string]any) {
			set(domain+".NetBiosName", "co.rp")(m)
			account("web01", "co.rp", "web01", "corp.example.com")(m)
		},
		"no host": remove(host),
		"an empty host": func(m map[string]any) {
			set(host, map[string]any{})(m)
		},
	} {
		variants = append(variants, variant{name, f})
	}
	// For these, the policy can report more than package credspec, which accepts some misspelled keys.
	unknown := map[string]func(map[string]any){
		"an unknown key on top":             set("Comment", "x"),
		"an unknown key in the domain":      set(domain+".Comment", "x"),
		"an unknown key in ActiveDirectory": set("ActiveDirectoryConfig.Comment", "x"),
		"an unknown key in the host":        set(host+".Comment", "x"),
		"an unknown key in an account":      set(accounts, []any{map[string]any{"Name": "web01", "Scope": "CORP", "Comment": "x"}, map[string]any{"Name": "web01", "Scope": "corp.example.com"}}),
		"a key with control characters":     set(domain+".Com\x01ment", "x"),
		"a key in another case":             func(m map[string]any) { rename(m[domain].(map[string]any), "Sid", "SID") },
		"a section in another case":         func(m map[string]any) { rename(m, domain, "domainJoinConfig") },
		"the host at the wrong place": func(m map[string]any) {
			m["HostAccountConfig"] = m["ActiveDirectoryConfig"].(map[string]any)["HostAccountConfig"]
			remove(host)(m)
		},
		"an account's key in lower case": set(accounts, []any{map[string]any{"name": "web01", "Scope": "CORP"}, map[string]any{"Name": "web01", "Scope": "corp.example.com"}}),
	}
	for _, name := range slices.Sorted(maps.Keys(unknown)) {
		variants = append(variants, variant{"! " + name, unknown[name]})
	}

	client, received := c.dynamicClient(t)
	create := func(version, name string, spec map[string]any) ([]string, error) {
		received.texts = nil
		object := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "windows.k8s.io/" + version, "kind": "GMSACredentialSpec", "metadata": map[string]any{"name": name}, "credspec": spec}}
		_, err := client.Resource(schema.GroupVersionResource{Group: "windows.k8s.io", Version: version, Resource: "gmsacredentialspecs"}).
			Create(t.Context(), object, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return received.texts, err
	}
	eventually(t, "the policy for GMSACredentialSpecs", func() bool {
		texts, err := create("v1", "bad", map[string]any{})
		if err != nil {
			t.Log(err)
		}
		return len(texts) > 0
	})

	invalid := 0
	for _, v := range variants {
		spec := good()
		v.f(spec)
		content, err := json.Marshal(map[string]any{"apiVersion": credspec.APIVersion, "kind": credspec.Kind, "metadata": map[string]any{"name": "a"}, "credspec": spec})
		if err != nil {
			t.Fatal(err)
		}
		documents, err := credspec.Read(content)
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]bool{}
		for _, p := range documents[0].Problems {
			if !p.Warning {
				want[listIndex.ReplaceAllString(p.Field, "")] = true
			}
		}
		texts, err := create("v1", "a", spec)
		if err != nil {
			t.Errorf("%s: want only a warning: %v", v.name, err)
			continue
		}
		got := map[string]bool{}
		for _, text := range texts {
			field := warnedField.FindStringSubmatch(text)
			if field == nil || !strings.HasPrefix(text, "Validation failed for ValidatingAdmissionPolicy 'web-credspecs'") || strings.ContainsAny(text, "\n\r") ||
				!strings.Contains(text, "; write ") && !strings.Contains(text, "; keys are case-sensitive") {
				t.Errorf("%s: the warning has no field or no remedy: %q", v.name, text)
				continue
			}
			got[listIndex.ReplaceAllString(strings.TrimSuffix(listIndex.ReplaceAllString(field[1], ""), "."), "")] = true
		}
		if len(want) > 0 {
			invalid++
		}
		if strings.HasPrefix(v.name, "! ") {
			if (len(want) > 0) != (len(got) > 0) {
				t.Errorf("%s: package credspec reports %v, the policy reports %q", v.name, documents[0].Problems, texts)
			}
			for field := range want {
				if !got[field] && !got["credspec"] {
					t.Errorf("%s: the policy does not report %s, but %q", v.name, field, texts)
				}
			}
		} else if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: fields that package credspec (-) and the policy (+) report\n%s\n%v\n%q", v.name, diff, documents[0].Problems, texts)
		}

		// The old version has the same schema.
		old, err := create("v1alpha1", "a", spec)
		if err != nil {
			t.Errorf("%s, v1alpha1: %v", v.name, err)
		}
		old = slices.DeleteFunc(old, func(text string) bool {
			return strings.Contains(text, "is deprecated; use apiVersion windows.k8s.io/v1")
		})
		if diff := cmp.Diff(texts, old, cmp.Transformer("sort", func(s []string) []string { return slices.Sorted(slices.Values(s)) })); diff != "" && len(texts)+len(old) > 0 {
			t.Errorf("%s, v1alpha1 (-v1 +v1alpha1)\n%s", v.name, diff)
		}
	}
	t.Logf("%d credential specs, %d of them invalid", len(variants), invalid)
	if invalid < 80 || len(variants)-invalid < 30 {
		t.Errorf("%d invalid credential specs of %d: the table is incomplete", invalid, len(variants))
	}

	// Wrong types are rejected, as in SIG Windows' definition. Unknown keys are preserved.
	number := good()
	set(host+".PortableCcgVersion", int64(1))(number)
	if _, err := create("v1", "a", number); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "PortableCcgVersion") {
		t.Errorf("a number instead of a string: %v", err)
	}
	kept := good()
	set(domain+".Future.Deep", "x")(kept)
	resource := client.Resource(schema.GroupVersionResource{Group: "windows.k8s.io", Version: "v1", Resource: "gmsacredentialspecs"})
	if _, err := resource.Create(t.Context(), &unstructured.Unstructured{Object: map[string]any{"apiVersion": credspec.APIVersion, "kind": credspec.Kind, "metadata": map[string]any{"name": "kept"}, "credspec": kept}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, version := range []string{"v1", "v1alpha1"} {
		read, err := client.Resource(schema.GroupVersionResource{Group: "windows.k8s.io", Version: version, Resource: "gmsacredentialspecs"}).Get(t.Context(), "kept", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(any(kept), read.Object["credspec"]); diff != "" {
			t.Errorf("%s: the stored object differs\n%s", version, diff)
		}
	}
}

func rename(m map[string]any, from, to string) {
	m[to] = m[from]
	delete(m, from)
}

// TestOnlyPodsThatUseAGMSAReachTheWebhook applies the webhook configurations while no webhook runs. Requests that reach
// the webhook are denied. All others are allowed, including updates of other fields of a pod that uses a gMSA.
func TestOnlyPodsThatUseAGMSAReachTheWebhook(t *testing.T) {
	c := newCluster(t, "gmsa-system", "shop", "disabled")
	ctx := t.Context()
	if _, err := c.run(ctx, "", c.kubectl, "label", "namespace", "disabled", "windows.k8s.io/disabled=true"); err != nil {
		t.Fatal(err)
	}
	pods := c.Client().CoreV1().Pods("shop")
	// Pods that existed before.
	for _, pod := range []*corev1.Pod{gmsaPod("plain", nil), gmsaPod("with-gmsa", func(_, _, web *windowsOptions) { *web = both("web01", "{}") })} {
		if _, err := pods.Create(ctx, pod, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	objects := rendering{chart: webhook}.mustRender(t)
	c.applyOnly(t, objects, "Service", "MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")

	dryRun := metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}
	reaches := func(err error, path string) bool {
		return err != nil && strings.Contains(err.Error(), `failed calling webhook "`+path+`.gmsa.ccgrkc.github.io"`)
	}
	smuggled := gmsaPod("a", func(pod, _, _ *windowsOptions) { *pod = inline("{}") })
	eventually(t, "the mutating webhook", func() bool {
		_, err := pods.Create(ctx, smuggled, dryRun)
		return reaches(err, "mutate")
	})
	for _, tt := range []struct {
		name    string
		f       func(pod, init, web *windowsOptions)
		reaches bool
	}{
		{"no gMSA", nil, false},
		{"other Windows options", func(pod, init, web *windowsOptions) {
			user := "ContainerUser"
			pod.RunAsUserName, init.RunAsUserName, web.RunAsUserName = &user, &user, &user
		}, false},
		{"a name in the pod", func(pod, _, _ *windowsOptions) { *pod = named("web01") }, true},
		{"an inline credential spec in the pod", func(pod, _, _ *windowsOptions) { *pod = inline("{}") }, true},
		{"a name in an init container", func(_, init, _ *windowsOptions) { *init = named("web01") }, true},
		{"an inline credential spec in an init container", func(_, init, _ *windowsOptions) { *init = inline("{}") }, true},
		{"a name in a container", func(_, _, web *windowsOptions) { *web = named("web01") }, true},
		{"an inline credential spec in a container", func(_, _, web *windowsOptions) { *web = inline("{}") }, true},
	} {
		if _, err := pods.Create(ctx, gmsaPod("a", tt.f), dryRun); reaches(err, "mutate") != tt.reaches || !tt.reaches && err != nil {
			t.Errorf("%s: want that it reaches the webhook: %v, got %v", tt.name, tt.reaches, err)
		}
		for _, namespace := range []string{"gmsa-system", "disabled"} {
			if _, err := c.Client().CoreV1().Pods(namespace).Create(ctx, gmsaPod("a", tt.f), dryRun); err != nil {
				t.Errorf("%s, in namespace %s: %v", tt.name, namespace, err)
			}
		}
	}
	debug := func(name string, options windowsOptions) error {
		pod, err := pods.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		pod.ResourceVersion = ""
		pod.Spec.EphemeralContainers = append(pod.Spec.EphemeralContainers, ephemeral("look", options))
		_, err = pods.UpdateEphemeralContainers(ctx, name, pod, metav1.UpdateOptions{DryRun: []string{metav1.DryRunAll}})
		return err
	}
	for _, tt := range []struct {
		pod     string
		options windowsOptions
		reaches bool
	}{
		{"plain", windowsOptions{}, false},
		{"plain", named("web01"), true},
		{"plain", inline("{}"), true},
		{"with-gmsa", windowsOptions{}, false},
		{"with-gmsa", named("web01"), true},
		{"with-gmsa", inline("{}"), true},
	} {
		err := debug(tt.pod, tt.options)
		if reaches(err, "mutate") != tt.reaches || !tt.reaches && err != nil {
			t.Errorf("kubectl debug %s with %v: want that it reaches the webhook: %v, got %v", tt.pod, tt.options, tt.reaches, err)
		}
	}
	if _, err := c.run(ctx, "", c.kubectl, "delete", "mutatingwebhookconfigurations", "--all"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the validating webhook alone", func() bool { return reaches(debug("plain", named("web01")), "validate") })
	for _, pod := range []string{"plain", "with-gmsa"} {
		if _, err := c.run(ctx, "", c.kubectl, "label", "pod", pod, "--namespace=shop", "a=b"); err != nil {
			t.Error(err)
		}
	}
	if err := pods.Delete(ctx, "with-gmsa", metav1.DeleteOptions{}); err != nil {
		t.Errorf("deleting a pod that uses a gMSA: %v", err)
	}
}

// Attack: a user who can create and label namespaces, but cannot use any GMSACredentialSpec, creates a namespace that
// the webhook ignores.
func TestOnlyAdministratorsCanSetTheDisabledLabel(t *testing.T) {
	c := newCluster(t, "plain", "disabled")
	ctx := t.Context()
	objects := rendering{chart: webhook}.mustRender(t)
	c.applyOnly(t, objects, "CustomResourceDefinition")
	label := func(user, namespace, value string, args ...string) error {
		_, err := c.run(ctx, "", c.kubectl, append([]string{"label", "namespace", namespace, "windows.k8s.io/disabled=" + value, "--overwrite", "--as=" + user}, args...)...)
		return err
	}
	for user, rule := range map[string][]string{
		"tenant": {"--verb=create,update,patch,get,list", "--resource=namespaces,namespaces/status,namespaces/finalize"},
		"user":   {"--verb=*", "--resource=gmsacredentialspecs.windows.k8s.io"},
	} {
		for _, args := range [][]string{
			append([]string{"create", "clusterrole", user}, rule...),
			{"create", "clusterrolebinding", user, "--clusterrole=" + user, "--user=" + user},
		} {
			if _, err := c.run(ctx, "", c.kubectl, args...); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := c.run(ctx, "", c.kubectl, "create", "clusterrolebinding", "both", "--clusterrole=tenant", "--user=user"); err != nil {
		t.Fatal(err)
	}
	if err := label("tenant", "disabled", "true"); err != nil {
		t.Fatalf("without the policy: %v", err)
	}
	c.applyOnly(t, objects, "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
	denied := func(err error) bool {
		return err != nil && strings.Contains(err.Error(), `only users with the "use" permission on all`)
	}
	eventually(t, "the policy for namespaces", func() bool { return denied(label("tenant", "plain", "true", "--dry-run=server")) })

	for _, subresource := range []string{"status", "finalize"} {
		body := `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"plain","labels":{"windows.k8s.io/disabled":"true"}},"spec":{"finalizers":["kubernetes"]}}`
		if _, err := c.run(ctx, body, c.kubectl, "replace", "--raw=/api/v1/namespaces/plain/"+subresource, "--filename=-", "--as=tenant"); !denied(err) {
			t.Errorf("through %s: %v", subresource, err)
		}
	}
	body := `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"new","labels":{"windows.k8s.io/disabled":"true"}}}`
	if _, err := c.run(ctx, body, c.kubectl, "create", "--filename=-", "--as=tenant"); !denied(err) {
		t.Errorf("in a new namespace: %v", err)
	}
	// Allowed: another value, setting the label with the use permission, and no change.
	if err := errors.Join(label("tenant", "plain", "false"), label("user", "plain", "true"), label("tenant", "disabled", "true")); err != nil {
		t.Error(err)
	}
	if _, err := c.run(ctx, "", c.kubectl, "label", "namespace", "disabled", "team=a", "--as=tenant"); err != nil {
		t.Errorf("another label of the namespace: %v", err)
	}
	if err := label("tenant", "plain", "false"); err != nil {
		t.Errorf("removing the label: %v", err)
	}
	if err := label("tenant", "plain", "true"); !denied(err) {
		t.Errorf("setting the label again: %v", err)
	}
}
