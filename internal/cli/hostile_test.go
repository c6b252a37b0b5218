package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/ccgrkc/ccgrkc/internal/credspec"
	"github.com/ccgrkc/ccgrkc/internal/doctor"
	"github.com/ccgrkc/ccgrkc/internal/escape"
	"github.com/ccgrkc/ccgrkc/internal/escape/hostile"
	"github.com/ccgrkc/ccgrkc/internal/verify"
)

// fill sets every string in v to text. Lists and maps get one element.
func fill(v reflect.Value, text string) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(1)
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Field(i).CanSet() {
				fill(v.Field(i), text)
			}
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), text)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), text)
	}
}

// A result with hostile values in all its fields is printed in all formats. This covers what every command prints to
// standard output, wherever a value comes from: the cluster, Active Directory, a node or a file. Text has as many lines
// as with harmless values.
func TestNoValueInAResultControlsTheTerminal(t *testing.T) {
	t.Parallel()
	for name, result := range results() {
		show := func(output, value string) string {
			t.Helper()
			var out bytes.Buffer
			g := &globals{program: "gmsactl", output: output, streams: Streams{Out: &out, ErrOut: &out}}
			fill(reflect.ValueOf(result.value).Elem(), value)
			if err := result.print(g); err != nil {
				t.Errorf("%s, %q, -o %s: %v", name, value, output, err)
			}
			return out.String()
		}
		lines := strings.Count(show(outputText, "web01"), "\n")
		for what, value := range hostile.Values("web01") {
			for _, output := range []string{outputText, outputJSON, outputYAML} {
				text := show(output, value)
				checkOutput(t, name+", "+what, output, text)
				if n := strings.Count(text, "\n"); n != lines && output == outputText && !result.document {
					t.Errorf("%s, %s: %d lines, want %d:\n%s", name, what, n, lines, text)
				}
			}
		}
	}
}

type result struct {
	value    any // a pointer
	print    func(g *globals) error
	document bool // text output is JSON or YAML
}

func results() map[string]result {
	account, apply, check := &accountResult{}, &applyResult{}, &checkResult{}
	verified, report, spec := &verify.Result{}, &doctor.Report{}, &credspec.Spec{}
	return map[string]result{
		"account": {account, func(g *globals) error { return g.printAccount(*account) }, false},
		"credspec create --apply": {apply, func(g *globals) error {
			return g.print(apply, func(w io.Writer) { writeApplied(w, *apply) })
		}, false},
		"credspec create --format docker": {spec, func(g *globals) error {
			return g.printSpec(spec.DomainJoinConfig.Sid, *spec, formatDocker)
		}, true},
		"credspec check": {check, func(g *globals) error {
			return g.print(check, func(w io.Writer) { g.writeCheck(w, *check) })
		}, false},
		"verify": {verified, func(g *globals) error {
			return g.print(verified, func(w io.Writer) { g.writeVerify(w, verified, false) })
		}, false},
		"verify --all-nodes": {verified, func(g *globals) error {
			return g.print(verified, func(w io.Writer) { g.writeVerify(w, verified, true) })
		}, false},
		"doctor": {report, func(g *globals) error {
			return g.print(report, func(w io.Writer) { g.writeReport(w, report) })
		}, false},
	}
}

// checkOutput checks one output of gmsactl.
func checkOutput(t *testing.T, what, output, text string) {
	t.Helper()
	if err := hostile.Check(text); err != nil {
		t.Errorf("%s, -o %s: %v", what, output, err)
	}
	var object any
	switch output {
	case outputJSON:
		if err := json.Unmarshal([]byte(text), &object); err != nil {
			t.Errorf("%s: not JSON: %v\n%s", what, err, text)
		}
	case outputYAML:
		if err := yaml.Unmarshal([]byte(text), &object); err != nil {
			t.Errorf("%s: not YAML: %v\n%s", what, err, text)
		}
	}
}

// The formats for programs keep the value.
func TestEscapedOutputHasTheSameValue(t *testing.T) {
	t.Parallel()
	for what, value := range hostile.Values("web01") {
		if strings.HasPrefix(what, "invalid") {
			continue // JSON and YAML cannot contain it
		}
		for output, unmarshal := range map[string]func([]byte, any) error{
			outputJSON: json.Unmarshal,
			outputYAML: func(b []byte, v any) error { return yaml.Unmarshal(b, v) },
		} {
			var out bytes.Buffer
			g := &globals{output: output, streams: Streams{Out: &out}}
			var got applyResult
			if err := errors.Join(g.print(applyResult{Name: value}, nil), unmarshal(out.Bytes(), &got)); err != nil ||
				got.Name != value {
				t.Errorf("%s, -o %s: %q, %v", what, output, got.Name, err)
			}
		}
	}
}

func TestOnlyPaintColorsTheOutput(t *testing.T) {
	t.Parallel()
	for color, want := range map[bool]string{
		true:  "\x1b[31m" + `a\u001b[5m\u001b` + "\x1b[0m" + `|\u001b[31mä\n\tb`,
		false: `a\u001b[5m\u001b|\u001b[31mä\n\tb`,
	} {
		g := globals{color: color}
		if got := string(escape.Sprintf("%s|%s", g.paint(red, "a\x1b[5m\x1b"), "\x1b[31mä\n\tb")); got != want {
			t.Errorf("color %t: %q, want %q", color, got, want)
		}
	}
}

// Attack: files, file names, arguments and API responses contain hostile values. Every command that reaches them prints
// them, to standard output, as an error, a note or a warning.
func TestNoInputControlsTheTerminal(t *testing.T) {
	t.Parallel()
	value := hostile.All("web01")
	dir := t.TempDir()
	kubeconfig := filepath.Join(dir, "kubeconfig")
	writeFile(t, kubeconfig, hostileCluster(t, value))
	object, err := json.Marshal(map[string]any{
		"apiVersion": credspec.APIVersion,
		"kind":       credspec.Kind,
		"metadata":   map[string]any{"name": value},
		"credspec":   map[string]any{"CmsPlugins": []string{value}, value: value},
	})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "spec.json")
	writeFile(t, file, string(object))
	invalid := filepath.Join(dir, "invalid.yaml")
	writeFile(t, invalid, "metadata: {name: "+value+"\n")
	password := filepath.Join(dir, "password")
	writeFile(t, password, "m4rker")
	account := []string{"--username", "reader", "--domain", "corp.example.test", "--password-file", password,
		"--dc", "127.77.255.254"}
	commands := [][]string{
		{value},
		{"verify", "--" + value},
		{"verify", "-" + value},
		{"credspec", value},
		{"version", "-o", value},
		{"verify", value + ".yaml"},
		{"verify", value},
		{"verify", file},
		{"verify", invalid},
		{"verify", "web01"},
		{"verify", "web01", "--all-nodes"},
		{"verify", "web01", "--node", value},
		slices.Concat([]string{"verify", file}, account),
		{"credspec", "check", file, invalid, value, value + ".json", "web01"},
		slices.Concat([]string{"credspec", "check", "web01", "--online"}, account),
		{"credspec", "create", "--gmsa", value, "--account", "gmsa-system/web"},
		{"credspec", "create", "--gmsa", "web01", "--account", value},
		{"credspec", "create", "--gmsa", "web01", "--plugin-input", value},
		slices.Concat([]string{"credspec", "create", "--gmsa", value, "--name", "web01",
			"--account", "gmsa-system/web"}, account),
		{"account", "create", value},
		{"account", "create", "gmsa-system/web", "--domain", value, "--username", value},
		{"account", "create", "gmsa-system/web", "--domain", "corp.example.test", "--username", "reader",
			"--password-file", password, "--skip-ad-check"},
		{"account", "rotate", "gmsa-system/web"},
		{"account", "rotate", "gmsa-system/web", "--secret", value},
		{"account", "rotate", "gmsa-system/web", "--ldap", value},
		{"account", "rotate", "gmsa-system/web", "--dc", value + ":1", "--dns-server", value},
		{"doctor"},
		{"doctor", value},
		{"doctor", "pod", value},
		{"doctor", "pod", "web01"},
		{"doctor", "node", value},
		{"doctor", "-n", value},
		{"doctor", "--bundle", filepath.Join(dir, "bundle.tgz")},
		{"doctor", "--bundle", dir + "/" + value + "/x"},
		{"__complete", "verify", ""},
		{"__complete", "account", "rotate", ""},
		{"__complete", "verify", "--namespace", ""},
		{"__complete", "verify", "--context", ""},
	}
	for _, args := range commands {
		for _, output := range []string{outputText, outputJSON, outputYAML} {
			if args[0] == "__complete" && output != outputText {
				continue
			}
			var out, errOut bytes.Buffer
			all := append([]string{"gmsactl", "--kubeconfig", kubeconfig, "-o", output}, args...)
			if args[0] == "__complete" {
				all = append([]string{"gmsactl", "__complete", "--kubeconfig", kubeconfig}, args[1:]...)
			}
			code := Run(t.Context(), all, Streams{strings.NewReader(""), &out, &errOut})
			name := fmt.Sprintf("gmsactl %q (exit code %d)", args, code)
			if out.Len() > 0 && args[0] != "__complete" {
				checkOutput(t, name, output, out.String())
			}
			for stream, text := range map[string]string{"stdout": out.String(), "stderr": errOut.String()} {
				if err := hostile.Check(text); err != nil {
					t.Errorf("%s, %s: %v", name, stream, err)
				}
			}
		}
	}
}

func writeFile(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// hostileCluster starts an API server whose objects have the value wherever an object has text. It returns a kubeconfig
// for the server.
func hostileCluster(t *testing.T, value string) string {
	t.Helper()
	quoted, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	const (
		meta = `"metadata": {"name": VALUE, "namespace": VALUE, "uid": "1", "annotations": {"x": VALUE}, "labels": {
			"app.kubernetes.io/name": "rancher-gmsa-account-provider", "app.kubernetes.io/instance": VALUE,
			"kubernetes.io/os": "windows", "x": VALUE}}`
		spec = `"spec": {"nodeName": VALUE, "serviceAccountName": VALUE,
			"securityContext": {"windowsOptions": {"gmsaCredentialSpecName": VALUE}},
			"containers": [{"name": VALUE, "image": VALUE, "args": ["run", VALUE],
				"securityContext": {"windowsOptions": {"gmsaCredentialSpecName": VALUE}}}]}`
		conditions = `"conditions": [{"type": "Ready", "status": "False", "reason": VALUE, "message": VALUE}]`
	)
	objects := map[string]string{
		"pods": `{` + meta + `, ` + spec + `, "status": {"phase": "Pending", "reason": VALUE, "message": VALUE,
			"containerStatuses": [{"name": VALUE, "image": VALUE, "restartCount": 3,
				"state": {"waiting": {"reason": VALUE, "message": VALUE}}}], ` + conditions + `}}`,
		"nodes":      `{` + meta + `, "status": {` + conditions + `}}`,
		"namespaces": `{` + meta + `}`,
		"events": `{` + meta + `, "reason": VALUE, "message": VALUE, "type": "Warning",
			"involvedObject": {"kind": "Pod", "name": VALUE, "namespace": VALUE}}`,
		"daemonsets": `{` + meta + `, "spec": {"selector": {}, "template": {` + meta + `, ` + spec + `}}}`,
		"gmsacredentialspecs": `{"apiVersion": "windows.k8s.io/v1", "kind": "GMSACredentialSpec", ` + meta + `,
			"credspec": {VALUE: VALUE, "CmsPlugins": [VALUE],
				"ActiveDirectoryConfig": {"HostAccountConfig": {"PluginInput": VALUE}}}}`,
		"mutatingwebhookconfigurations": `{` + meta + `, "webhooks": [{"name": VALUE,
			"clientConfig": {"service": {"name": VALUE, "namespace": VALUE}}}]}`,
	}
	const status = `{"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": %d, "message": VALUE,
		"reason": VALUE, "details": {"name": VALUE, "kind": VALUE, "causes": [{"reason": VALUE, "message": VALUE}]}}`
	fill := func(template string) string { return strings.ReplaceAll(template, "VALUE", string(quoted)) }
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		elements := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
		last := elements[len(elements)-1]
		for kind, object := range objects {
			if r.Method == http.MethodGet && last == kind {
				fmt.Fprintf(w, `{"apiVersion": "v1", "kind": "List", "metadata": {}, "items": [%s]}`, fill(object))
				return
			}
			if r.Method == http.MethodGet && len(elements) > 1 && elements[len(elements)-2] == kind {
				fmt.Fprint(w, fill(object))
				return
			}
		}
		code := http.StatusForbidden
		if last == "web01" {
			code = http.StatusNotFound
		}
		w.WriteHeader(code)
		fmt.Fprintf(w, fill(status), code)
	}))
	t.Cleanup(server.Close)
	config, err := json.Marshal(map[string]any{
		"apiVersion":      "v1",
		"kind":            "Config",
		"clusters":        []any{map[string]any{"name": "c", "cluster": map[string]any{"server": server.URL}}},
		"users":           []any{map[string]any{"name": "u", "user": map[string]any{"token": "x"}}},
		"current-context": "x",
		"contexts": []any{
			map[string]any{"name": "x", "context": map[string]any{"cluster": "c", "user": "u"}},
			map[string]any{"name": value, "context": map[string]any{"cluster": "c", "user": "u"}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return escape.Value(string(config)) // a kubeconfig is parsed as YAML, which allows no raw control characters
}
