package charts

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

// value is one value of a chart.
type value struct {
	path        string // with dots
	def         string // YAML in one line
	description string // from the comment above it
}

// readValues returns the values of a chart in the order of values.yaml. A map without comments is one value.
func readValues(t *testing.T, chart string) []value {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(chartsDir, chart, "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var document yaml.Node
	if err := yaml.Unmarshal(content, &document); err != nil {
		t.Fatal(err)
	}
	var values []value
	var walk func(prefix string, node *yaml.Node)
	walk = func(prefix string, node *yaml.Node) {
		for i := 0; i < len(node.Content); i += 2 {
			key, child := node.Content[i], node.Content[i+1]
			if child.Kind == yaml.MappingNode && hasComments(child) {
				walk(prefix+key.Value+".", child)
				continue
			}
			description := strings.Join(strings.Fields(strings.ReplaceAll("\n"+key.HeadComment, "\n#", "\n")), " ")
			if description == "" {
				t.Errorf("%s: values.yaml: %s%s has no description; add a comment above it", chart, prefix, key.Value)
			}
			values = append(values, value{prefix + key.Value, inOneLine(t, child), description})
		}
	}
	walk("", document.Content[0])
	return values
}

func hasComments(node *yaml.Node) bool {
	for _, n := range node.Content {
		if n.HeadComment != "" || hasComments(n) {
			return true
		}
	}
	return false
}

func inOneLine(t *testing.T, node *yaml.Node) string {
	t.Helper()
	var plain any
	if err := node.Decode(&plain); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(plain)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func table(values []value) string {
	var b strings.Builder
	b.WriteString("| value | default | meaning |\n|---|---|---|\n")
	for _, v := range values {
		escape := strings.NewReplacer("|", `\|`, "<", "&lt;", ">", "&gt;")
		fmt.Fprintf(&b, "| `%s` | `%s` | %s |\n", v.path, v.def, escape.Replace(v.description))
	}
	return b.String()
}

// TestValuesAreDescribedEverywhere verifies that the comments of values.yaml are in README.md, docs/values.md and the
// schema, and that the schema has the same values.
func TestValuesAreDescribedEverywhere(t *testing.T) {
	var docs strings.Builder
	docs.WriteString(`# Values of the charts

Generated from the comments in the values.yaml of each chart. Helm validates the values against the chart's
values.schema.json before it installs anything, and rejects unknown values.
`)
	for _, chart := range charts {
		values := readValues(t, chart)
		fmt.Fprintf(&docs, "\n## %s\n\n%s", chart, table(values))

		readme := filepath.Join(chartsDir, chart, "README.md")
		content, err := os.ReadFile(readme)
		if err != nil {
			t.Fatal(err)
		}
		const begin, end = "<!-- values: generated from values.yaml -->\n", "<!-- end of values -->\n"
		before, rest, found := strings.Cut(string(content), begin)
		_, after, foundEnd := strings.Cut(rest, end)
		if !found || !foundEnd {
			t.Fatalf("%s does not contain the lines %q and %q", readme, begin, end)
		}
		generated(t, readme, before+begin+table(values)+end+after)
		generated(t, filepath.Join(chartsDir, chart, "values.schema.json"), describedSchema(t, chart, values))
	}
	generated(t, "../../../docs/values.md", docs.String())
}

// describedSchema returns the schema of a chart with the descriptions of the values, which editors show.
func describedSchema(t *testing.T, chart string, values []value) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(chartsDir, chart, "values.schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	var schema map[string]any
	if err := json.Unmarshal(content, &schema); err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, v := range values {
		node := schema
		for part := range strings.SplitSeq(v.path, ".") {
			properties, _ := node["properties"].(map[string]any)
			next, ok := properties[part].(map[string]any)
			if !ok {
				t.Fatalf("%s: values.schema.json does not contain %s", chart, v.path)
			}
			node = next
		}
		node["description"] = v.description
		known[v.path] = true
	}
	var walk func(prefix string, node map[string]any)
	walk = func(prefix string, node map[string]any) {
		properties, _ := node["properties"].(map[string]any)
		for name, child := range properties {
			if !known[prefix+name] {
				if child := child.(map[string]any); child["properties"] != nil {
					walk(prefix+name+".", child)
				} else {
					t.Errorf("%s: values.schema.json contains %s%s, but values.yaml does not", chart, prefix, name)
				}
			}
		}
	}
	walk("", schema)
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(schema); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func generated(t *testing.T, path, want string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("%s does not match values.yaml; run: go test ./suites/charts -update (-want +got)\n%s", path, diff)
	}
}

// TestQuestionsMatchTheValues verifies that the values in Rancher's form exist and have the same defaults.
func TestQuestionsMatchTheValues(t *testing.T) {
	type question struct {
		Variable     string
		Default      any
		Subquestions []question
	}
	for _, chart := range charts {
		content, err := os.ReadFile(filepath.Join(chartsDir, chart, "questions.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		var form struct{ Questions []question }
		if err := yaml.Unmarshal(content, &form); err != nil || len(form.Questions) == 0 {
			t.Fatalf("%s: no questions: %v", chart, err)
		}
		defaults := map[string]string{}
		for _, v := range readValues(t, chart) {
			defaults[v.path] = v.def
		}
		questions := form.Questions
		for _, q := range form.Questions {
			questions = append(questions, q.Subquestions...)
		}
		for _, q := range questions {
			got, err := json.Marshal(q.Default)
			if want, ok := defaults[q.Variable]; err != nil || !ok || want != string(got) {
				t.Errorf("%s: the default of %s is %s in questions.yaml, but %q in values.yaml",
					chart, q.Variable, got, want)
			}
		}
	}
}
