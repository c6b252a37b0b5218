package charts

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestOldestKubernetesKnowsEveryField compares the renderings with the OpenAPI document of the oldest supported
// Kubernetes version: every field must exist and have the right type. TestAPIServerAcceptsEveryRendering tests the
// lab's version.
func TestOldestKubernetesKnowsEveryField(t *testing.T) {
	helms(t)
	for version, charts := range map[string][]string{"1.27.16": onWindows, "1.30.14": {webhook}} {
		t.Run(version, func(t *testing.T) { everyFieldIsKnown(t, version, charts) })
	}
}

func everyFieldIsKnown(t *testing.T, version string, charts []string) {
	download := exec.CommandContext(t.Context(), "go", "mod", "download", "-json", "k8s.io/kubernetes@v"+version)
	download.Dir = t.TempDir() // outside of any module, so that it changes no go.mod
	out, err := download.Output()
	if err != nil {
		t.Fatalf("the sources of Kubernetes %s: %v\n%s", version, err, out)
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(out, &module); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(filepath.Join(module.Dir, "api/openapi-spec/swagger.json"))
	if err != nil {
		t.Fatal(err)
	}
	var api openAPI
	if err := json.Unmarshal(content, &api); err != nil {
		t.Fatal(err)
	}
	kinds := map[string]string{} // from apiVersion/Kind to the name of the definition
	for name, definition := range api.Definitions {
		for _, k := range definition.Kinds {
			kinds[strings.TrimPrefix(k.Group+"/", "/")+k.Version+"/"+k.Kind] = name
		}
	}
	checked := 0
	for _, r := range matrix {
		if !slices.Contains(charts, r.chart) {
			continue
		}
		text, err := r.withDefaults().render(t, helms(t)[0], version)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range parse(t, text) {
			if o.GroupVersionKind().Group == "cert-manager.io" {
				continue
			}
			if o.GetKind() == "CustomResourceDefinition" || o.GetKind() == "GMSACredentialSpec" {
				continue // only an API server can validate them
			}
			name, ok := kinds[o.GetAPIVersion()+"/"+o.GetKind()]
			if !ok {
				t.Fatalf("Kubernetes %s does not have %s %s", version, o.GetAPIVersion(), o.GetKind())
			}
			checked++
			for _, problem := range api.check(o.GetKind(), api.Definitions[name], o.Object) {
				t.Errorf("%s/%s, %s: %s", r.chart, r.name, o.GetName(), problem)
			}
		}
	}
	if checked < 50 {
		t.Errorf("only %d objects were checked", checked)
	}
}

type openAPI struct {
	Definitions map[string]*definition
}

type definition struct {
	Ref                  string `json:"$ref"`
	Type                 string
	Format               string
	Properties           map[string]*definition
	AdditionalProperties *definition
	Items                *definition
	Required             []string
	Kinds                []struct{ Group, Version, Kind string } `json:"x-kubernetes-group-version-kind"`
}

// check returns the problems of the value v at path.
func (api openAPI) check(path string, d *definition, v any) (problems []string) {
	for d.Ref != "" {
		d = api.Definitions[strings.TrimPrefix(d.Ref, "#/definitions/")]
	}
	if v == nil {
		return nil
	}
	var got string
	switch v := v.(type) {
	case map[string]any:
		got = "object"
		if d.Type == "object" {
			for _, name := range d.Required {
				if v[name] == nil {
					problems = append(problems, fmt.Sprintf("%s.%s is missing", path, name))
				}
			}
			for name, child := range v {
				next := d.Properties[name]
				if next == nil {
					next = d.AdditionalProperties
				}
				if next == nil {
					problems = append(problems, fmt.Sprintf("%s.%s does not exist", path, name))
					continue
				}
				problems = append(problems, api.check(path+"."+name, next, child)...)
			}
		}
	case []any:
		got = "array"
		if d.Type == "array" {
			for i, child := range v {
				problems = append(problems, api.check(fmt.Sprintf("%s[%d]", path, i), d.Items, child)...)
			}
		}
	case string:
		got = "string"
	case bool:
		got = "boolean"
	case float64:
		got = "number"
		if v == math.Trunc(v) {
			got = "integer"
		}
	}
	// A quantity is a string in the document, but often a number.
	quantity := strings.HasSuffix(path, ".cpu") || strings.HasSuffix(path, ".memory")
	if got != d.Type && d.Format != "int-or-string" && !quantity {
		problems = append(problems, fmt.Sprintf("%s is %s, not %s", path, got, d.Type))
	}
	return problems
}
