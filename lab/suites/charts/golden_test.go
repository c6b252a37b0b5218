package charts

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestRenderingsMatchGoldenFiles compares the renderings of both Helm versions with the golden files: the defaults in
// full, all others as the difference from the defaults.
func TestRenderingsMatchGoldenFiles(t *testing.T) {
	rendered := func(t *testing.T, r rendering, h helm) string {
		t.Helper()
		text, err := r.render(t, h, kubeVersion)
		if err != nil {
			t.Fatal(err)
		}
		return configurationsLast(text)
	}
	defaults := map[[2]string]string{}
	for _, h := range helms(t) {
		for _, chart := range charts {
			defaults[[2]string{chart, h.name}] = rendered(t, rendering{chart: chart}.withDefaults(), h)
		}
	}
	eachRendering(t, func(t *testing.T, r rendering) {
		for _, h := range helms(t) {
			golden(t, r, ".yaml", defaults[[2]string{r.chart, h.name}], rendered(t, r, h), h.name)
		}
	})
}

// configurationsLast moves the webhook configurations to the end. Helm 4 sorts them before other kinds, and Helm 3
// treats them as an unknown kind.
func configurationsLast(text string) string {
	var others, configurations []string
	for document := range strings.SplitSeq(strings.TrimPrefix(text, "---\n"), "\n---\n") {
		document = "---\n" + strings.TrimSuffix(document, "\n") + "\n"
		if strings.Contains(document, "WebhookConfiguration\n") {
			configurations = append(configurations, document)
		} else {
			others = append(others, document)
		}
	}
	return strings.Join(slices.Concat(others, configurations), "")
}

// TestNotesMatchGoldenFiles compares the notes with the golden files. Helm 3 prints notes only with a cluster, as in
// TestCommandsInNotesWork.
func TestNotesMatchGoldenFiles(t *testing.T) {
	notes := func(t *testing.T, r rendering) string {
		t.Helper()
		out, err := helms(t)[1].run(t, r.args(t, "install", "--dry-run=client")...)
		if err != nil {
			t.Fatal(err)
		}
		_, notes, found := strings.Cut(out, "\nNOTES:\n")
		if !found {
			t.Fatalf("no notes in:\n%s", out)
		}
		return notes
	}
	defaults := map[string]string{}
	for _, chart := range charts {
		defaults[chart] = notes(t, rendering{chart: chart}.withDefaults())
	}
	eachRendering(t, func(t *testing.T, r rendering) {
		if r.certManager {
			return // "helm install" has no --api-versions; TestCertManagerCertificatesAreValid checks these notes
		}
		golden(t, r, ".notes.txt", defaults[r.chart], notes(t, r), "helm4")
	})
}

// golden compares a rendering with the golden file, in full for the defaults, else the difference from them.
func golden(t *testing.T, r rendering, extension, defaults, got, helm string) {
	t.Helper()
	path := filepath.Join("testdata", r.chart, r.name+extension)
	if r.name != "defaults" {
		path += ".diff"
		got = difference(defaults, got)
	}
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v; for a new rendering, run: go test ./suites/charts -update", err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs from %s; if this is intended, run: go test ./suites/charts -update (-file +rendered)\n%s",
			path, helm, diff)
	}
}

// TestEveryGoldenFileHasACase finds files that no test reads.
func TestEveryGoldenFileHasACase(t *testing.T) {
	known := map[string]bool{}
	for _, r := range matrix {
		known[filepath.Join(r.chart, r.name)] = true
	}
	files, err := filepath.Glob("testdata/*/*")
	if err != nil || len(files) == 0 {
		t.Fatal("no golden files:", err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(strings.TrimPrefix(file, "testdata/"), ".diff")
		name = strings.TrimSuffix(strings.TrimSuffix(name, ".yaml"), ".notes.txt")
		if !known[name] {
			t.Errorf("%s has no entry in the matrix: delete it", file)
		}
	}
}

// TestSharedTemplatesAreGenerated verifies that the copies in the charts match charts/shared.
func TestSharedTemplatesAreGenerated(t *testing.T) {
	if out, err := exec.CommandContext(t.Context(), "../../../hack/charts.sh", "--check").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

var templateName = regexp.MustCompile(`{{-? *(?:define|template|block) "([^"]*)"|\binclude "([^"]*)"`)

// TestTemplateNamesBeginWithTheChart prevents conflicts: all charts of an umbrella chart share one set of template
// names.
func TestTemplateNamesBeginWithTheChart(t *testing.T) {
	for _, chart := range charts {
		for _, pattern := range []string{"*", "*/*"} {
			files, err := filepath.Glob(filepath.Join(chartsDir, chart, "templates", pattern))
			if err != nil {
				t.Fatal(err)
			}
			for _, file := range files {
				if info, err := os.Stat(file); err == nil && info.IsDir() {
					continue
				}
				content, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				for _, name := range templateName.FindAllStringSubmatch(string(content), -1) {
					if name := name[1] + name[2]; !strings.HasPrefix(name, chart+".") {
						t.Errorf("%s: the name of template %q does not begin with %q", file, name, chart+".")
					}
				}
			}
		}
	}
}

func TestChartsPassStrictLint(t *testing.T) {
	for _, h := range helms(t) {
		for _, chart := range charts {
			out, err := h.run(t, "lint", "--strict", "--kube-version", kubeVersion, filepath.Join(chartsDir, chart))
			if err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		}
	}
}
