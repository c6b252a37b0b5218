package charts

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestRenderingsAreAsRecorded compares what both Helms make of the matrix with the golden files.
func TestRenderingsAreAsRecorded(t *testing.T) {
	eachRendering(t, func(t *testing.T, r rendering) {
		for _, h := range helms(t) {
			got, err := r.render(t, h, kubeVersion)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, filepath.Join("testdata", r.chart, r.name+".yaml"), configurationsLast(got), h.name)
		}
	})
}

// configurationsLast puts webhook configurations after everything else: Helm 4 has a place for them, Helm 3 takes them for a kind that
// it does not know.
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

// TestNotesAreAsRecorded compares the notes with the golden files. Helm 3 shows notes only with a cluster; there,
// TestNotesSayWhatWorks reads them.
func TestNotesAreAsRecorded(t *testing.T) {
	eachRendering(t, func(t *testing.T, r rendering) {
		if r.certManager {
			return // helm install takes no --api-versions; TestCertManagerMakesWhatBothSidesAccept reads these on a cluster
		}
		out, err := helms(t)[1].run(t, r.args(t, "install", "--dry-run=client")...)
		if err != nil {
			t.Fatal(err)
		}
		_, notes, found := strings.Cut(out, "\nNOTES:\n")
		if !found {
			t.Fatalf("no notes in:\n%s", out)
		}
		golden(t, filepath.Join("testdata", r.chart, r.name+".notes.txt"), notes, "helm4")
	})
}

func golden(t *testing.T, path, got, what string) {
	t.Helper()
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
		t.Fatalf("%v; if the rendering is new, run: go test ./charts -update", err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s and %s differ; if that is wanted, run: go test ./charts -update (-recorded +rendered)\n%s", path, what, diff)
	}
}

// TestEveryGoldenFileIsOfTheMatrix finds files that nothing is compared with any more.
func TestEveryGoldenFileIsOfTheMatrix(t *testing.T) {
	known := map[string]bool{}
	for _, r := range matrix {
		known[filepath.Join(r.chart, r.name)] = true
	}
	files, err := filepath.Glob("testdata/*/*")
	if err != nil || len(files) == 0 {
		t.Fatal("no golden files:", err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(strings.TrimSuffix(strings.TrimPrefix(file, "testdata/"), ".yaml"), ".notes.txt")
		if !known[name] {
			t.Errorf("%s belongs to no entry of the matrix: remove it", file)
		}
	}
}

func TestTheChartsShareOneSetOfTemplates(t *testing.T) {
	for file, of := range map[string][]string{"templates/_shared.tpl": charts, "templates/_windows.tpl": onWindows, "templates/uninstall.yaml": onWindows} {
		var first string
		for _, chart := range of {
			content, err := os.ReadFile(filepath.Join(chartsDir, chart, file))
			if err != nil {
				t.Fatal(err)
			}
			if first == "" {
				first = string(content)
			} else if first != string(content) {
				t.Errorf("%s is not the same in %v", file, of)
			}
		}
	}
}

func TestChartsPassAStrictLint(t *testing.T) {
	for _, h := range helms(t) {
		for _, chart := range charts {
			if out, err := h.run(t, "lint", "--strict", "--kube-version", kubeVersion, filepath.Join(chartsDir, chart)); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		}
	}
}
