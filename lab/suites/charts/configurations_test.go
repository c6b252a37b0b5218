package charts

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Attack: with the webhook's token, an attacker changes the webhook configurations to receive Secrets or all pods, or
// to make requests fail. The test changes each field of the API in turn. Only caBundle can change.
func TestWebhookCanChangeOnlyItsCABundle(t *testing.T) {
	c := newCluster(t, "gmsa-system")
	ctx := t.Context()
	objects := rendering{chart: webhook}.mustRender(t)
	c.applyOnly(t, objects, "Service", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition", "MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")
	admin, _ := c.dynamicClient(t)
	// A token instead of impersonation, because an attacker has the token.
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "token", Annotations: map[string]string{corev1.ServiceAccountNameKey: "web"}}, Type: corev1.SecretTypeServiceAccountToken}
	if _, err := c.Client().CoreV1().Secrets("gmsa-system").Create(ctx, secret, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the token", func() (done bool) {
		secret, _ = c.Client().CoreV1().Secrets("gmsa-system").Get(ctx, "token", metav1.GetOptions{})
		return len(secret.Data[corev1.ServiceAccountTokenKey]) > 0
	})
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	config = rest.AnonymousClientConfig(config)
	config.BearerToken, config.QPS = string(secret.Data[corev1.ServiceAccountTokenKey]), -1
	attacker, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	resource := func(kind string) schema.GroupVersionResource {
		return schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: kind + "webhookconfigurations"}
	}
	patch := func(client dynamic.Interface, kind string, operations ...map[string]any) error {
		t.Helper()
		text, err := json.Marshal(operations)
		if err != nil {
			t.Fatal(err)
		}
		_, err = client.Resource(resource(kind)).Patch(ctx, "web", types.JSONPatchType, text, metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}})
		return err
	}
	op := func(op, path string, value any) map[string]any {
		return map[string]any{"op": op, "path": path, "value": value}
	}
	const message = ": the webhook can change only clientConfig.caBundle of its configurations"
	denied := func(err error, field string) bool {
		return apierrors.IsForbidden(err) && strings.Contains(err.Error(), field+message)
	}
	secrets := op("replace", "/webhooks/0/rules/0/resources/0", "secrets")
	if err := patch(attacker, "mutating", secrets); err != nil {
		t.Fatalf("without the policy: %v", err)
	}
	c.applyOnly(t, objects, "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
	eventually(t, "the policy for configurations", func() bool { return denied(patch(attacker, "mutating", secrets), "") })

	// The new values of each field. The test fails if the API has a field that is not listed.
	selector := map[string]any{"matchLabels": map[string]any{"a": "b"}}
	ofWebhooks := map[string][]any{
		"Name":                    {"other.gmsa.ccgrkc.github.io"},
		"Rules":                   {[]any{}, []any{map[string]any{"apiGroups": []any{""}, "apiVersions": []any{"v1"}, "resources": []any{"secrets"}, "operations": []any{"UPDATE"}}}},
		"FailurePolicy":           {"Ignore"},
		"MatchPolicy":             {"Exact"},
		"NamespaceSelector":       {selector, map[string]any{}},
		"ObjectSelector":          {selector},
		"SideEffects":             {"NoneOnDryRun"},
		"TimeoutSeconds":          {1},
		"AdmissionReviewVersions": {[]any{"v1", "v1beta1"}},
		"ReinvocationPolicy":      {"Never"},
		"MatchConditions":         {[]any{}, []any{map[string]any{"name": "gmsa-set-or-changed", "expression": "true"}}},
	}
	ofClients := map[string][]any{
		"URL":     {map[string]any{"url": "https://evil.example.com/"}},
		"Service": {},
	}
	for field, value := range map[string]any{"Name": "other", "Namespace": "default", "Path": "/other", "Port": 444} {
		service := map[string]any{"name": "web", "namespace": "gmsa-system", "path": "/mutate", "port": 443}
		service[strings.ToLower(field)] = value
		ofClients["Service"] = append(ofClients["Service"], map[string]any{"service": service})
	}
	ofServices := []string{"Name", "Namespace", "Path", "Port"}
	ofMetadata := map[string][]any{
		"Labels":          {map[string]any{}, map[string]any{"app.kubernetes.io/name": "other"}},
		"Annotations":     {map[string]any{}, map[string]any{"a": "b"}},
		"OwnerReferences": {[]any{map[string]any{"apiVersion": "v1", "kind": "Namespace", "name": "gmsa-system", "uid": "00000000-0000-0000-0000-000000000000"}}},
		"Finalizers":      {[]any{"example.com/stay"}},
		"GenerateName":    {"w"},
	}
	// Only the API server sets these.
	serverSet := []string{"Name", "Namespace", "SelfLink", "UID", "ResourceVersion", "Generation", "CreationTimestamp", "DeletionTimestamp", "DeletionGracePeriodSeconds", "ManagedFields"}
	fields := func(of reflect.Type, known []string) {
		t.Helper()
		var all []string
		for i := range of.NumField() {
			all = append(all, of.Field(i).Name)
		}
		for _, name := range known {
			if !slices.Contains(all, name) {
				t.Errorf("%s has no field %s", of, name)
			}
		}
		for _, name := range all {
			if !slices.Contains(known, name) {
				t.Errorf("%s has the field %s: check that the policy denies a change of it, and add values here", of, name)
			}
		}
	}
	keys := func(m map[string][]any, more ...string) []string {
		return append(slices.Collect(maps.Keys(m)), more...)
	}
	fields(reflect.TypeFor[admissionregistrationv1.MutatingWebhook](), keys(ofWebhooks, "ClientConfig"))
	fields(reflect.TypeFor[admissionregistrationv1.WebhookClientConfig](), keys(ofClients, "CABundle"))
	fields(reflect.TypeFor[admissionregistrationv1.ServiceReference](), ofServices)
	fields(reflect.TypeFor[metav1.ObjectMeta](), keys(ofMetadata, serverSet...))

	for _, kind := range []string{"mutating", "validating"} {
		before, err := admin.Resource(resource(kind)).Get(ctx, "web", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		webhook := before.Object["webhooks"].([]any)[0].(map[string]any)
		name := webhook["name"].(string)
		type change struct {
			what, field string
			operations  []map[string]any
		}
		var changes []change
		add := func(field string, operations ...map[string]any) {
			changes = append(changes, change{fmt.Sprint(field, " ", operations), field, operations})
		}
		key := func(field string) string { return strings.ToLower(field[:1]) + field[1:] }
		for field, values := range ofWebhooks {
			if kind == "validating" && field == "ReinvocationPolicy" {
				continue // only of mutating webhooks
			}
			for _, value := range values {
				where := "webhooks[" + name + "]." + key(field)
				if field == "Name" {
					where = "" // another name is another webhook, of which every field is new
				}
				add(where, op("add", "/webhooks/0/"+key(field), value))
			}
		}
		for field, values := range ofClients {
			for _, value := range values {
				add("webhooks["+name+"].clientConfig."+strings.ToLower(field), op("replace", "/webhooks/0/clientConfig", value))
			}
		}
		for field, values := range ofMetadata {
			for _, value := range values {
				add("metadata."+key(field), op("add", "/metadata/"+key(field), value))
			}
		}
		another := map[string]any{}
		maps.Copy(another, webhook)
		another["name"] = "another.gmsa.ccgrkc.github.io"
		add("", op("add", "/webhooks/-", another))
		add("webhooks", op("replace", "/webhooks", []any{}))
		add("webhooks["+name+"].rules", op("add", "/webhooks/0/clientConfig/caBundle", []byte(testCA)), secrets)
		for _, change := range changes {
			if err := patch(attacker, kind, change.operations...); !denied(err, change.field) {
				t.Errorf("%s, %s: %v", kind, change.what, err)
			}
			// Others can make the change, so the policy denied the webhook and not an invalid change.
			if err := patch(admin, kind, change.operations...); err != nil {
				t.Errorf("%s, %s, by an administrator: %v", kind, change.what, err)
			}
		}
		for _, value := range []string{testCA, testCA + testCA} {
			text, err := json.Marshal([]any{op("add", "/webhooks/0/clientConfig/caBundle", []byte(value))})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := attacker.Resource(resource(kind)).Patch(ctx, "web", types.JSONPatchType, text, metav1.PatchOptions{}); err != nil {
				t.Errorf("%s: caBundle: %v", kind, err)
			}
		}
	}
	var policy *admissionregistrationv1.ValidatingAdmissionPolicy
	eventually(t, "type checking of the policy", func() bool {
		policy, err = c.Client().AdmissionregistrationV1().ValidatingAdmissionPolicies().Get(ctx, "web-configurations", metav1.GetOptions{})
		return err == nil && policy.Status.TypeChecking != nil
	})
	if w := policy.Status.TypeChecking.ExpressionWarnings; len(w) > 0 {
		t.Errorf("type checking: %v", w)
	}
}
