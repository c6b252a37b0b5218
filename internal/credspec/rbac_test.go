package credspec

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestUseRBACManifestGrantsOneVerbOnOneObjectToOneServiceAccount(t *testing.T) {
	var got any
	text := UseRBACManifest("web01.corp", "shop", "web")
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	type object = map[string]any
	want := object{
		"apiVersion": "v1",
		"kind":       "List",
		"items": []any{
			object{
				"apiVersion": "rbac.authorization.k8s.io/v1",
				"kind":       "ClusterRole",
				"metadata":   object{"name": "gmsa-web01.corp"},
				"rules": []any{object{
					"apiGroups":     []any{"windows.k8s.io"},
					"resources":     []any{"gmsacredentialspecs"},
					"resourceNames": []any{"web01.corp"},
					"verbs":         []any{"use"},
				}},
			},
			object{
				"apiVersion": "rbac.authorization.k8s.io/v1",
				"kind":       "RoleBinding",
				"metadata":   object{"name": "gmsa-web01.corp:web", "namespace": "shop"},
				"roleRef": object{
					"apiGroup": "rbac.authorization.k8s.io",
					"kind":     "ClusterRole",
					"name":     "gmsa-web01.corp",
				},
				"subjects": []any{object{
					"kind":      "ServiceAccount",
					"name":      "web",
					"namespace": "shop",
				}},
			},
		},
	}
	if diff := cmp.Diff(any(want), got); diff != "" {
		t.Error(diff)
	}
	if strings.Contains(string(text), "\n") {
		t.Errorf("more than one line: %q", text)
	}
}

// Users paste the manifest into a shell, between single quotes.
func TestUseRBACManifestContainsNoSingleQuote(t *testing.T) {
	const odd = "it's $(date)"
	text := string(UseRBACManifest(odd, odd, odd))
	if strings.Contains(text, "'") || !json.Valid([]byte(text)) {
		t.Error(text)
	}
	var list struct {
		Items []struct{ Metadata struct{ Namespace string } }
	}
	if err := json.Unmarshal([]byte(text), &list); err != nil || list.Items[1].Metadata.Namespace != odd {
		t.Errorf("%v: %s", err, text)
	}
}

// With a name that another binding has, the API server would replace its subject or reject the other role.
func TestUseRBACManifestGivesEachBindingItsOwnName(t *testing.T) {
	name := func(spec, account string) string {
		var list struct {
			Items []struct{ Metadata struct{ Name string } }
		}
		if err := json.Unmarshal(UseRBACManifest(spec, "n", account), &list); err != nil {
			t.Fatal(err)
		}
		return list.Items[1].Metadata.Name
	}
	if a, b := name("web-a", "b"), name("web", "a-b"); a == b {
		t.Errorf("both are %s", a)
	}
}
