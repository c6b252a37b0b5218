// Package deps verifies which packages each program links. The lists are in deps.txt in each program's folder. A change of
// a list is a change of what the program trusts, and is reviewed as such.
//
// To update the lists: go test ./hack/deps -update
package deps

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the lists of dependencies")

const module = "github.com/ccgrkc/ccgrkc/"

// programs maps each program to the operating system that it is released for. Of gmsactl, which is released for three, the
// list is that of Linux.
var programs = map[string]string{
	"ccg-plugin":            "windows",
	"ccg-plugin-installer":  "windows",
	"gmsa-account-provider": "windows",
	"gmsa-webhook":          "linux",
	"container-probe":       "windows",
	"uninstall-hook":        "linux",
	"gmsactl":               "linux",
}

// operatorOnly are the modules that only gmsactl links: a Kubernetes client, LDAP and Kerberos.
var operatorOnly = []string{"k8s.io/", "github.com/go-ldap/", "github.com/jcmturner/"}

func TestEachProgramLinksOnlyItsListedPackages(t *testing.T) {
	entries, err := os.ReadDir("../../cmd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if _, ok := programs[e.Name()]; !ok {
			t.Errorf("cmd/%s has no entry in this test", e.Name())
		}
	}
	for program, goos := range programs {
		t.Run(program, func(t *testing.T) {
			t.Parallel()
			got := list(t, program, goos)
			for _, pkg := range got {
				for _, prefix := range operatorOnly {
					if program != "gmsactl" && strings.HasPrefix(pkg, prefix) {
						t.Errorf("cmd/%s links %s", program, pkg)
					}
				}
			}
			file := filepath.Join("../../cmd", program, "deps.txt")
			content := strings.Join(got, "\n") + "\n"
			if *update {
				if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(content, "\n")); diff != "" {
				t.Errorf("cmd/%s links other packages than its deps.txt lists; review them, then run go test ./hack/deps -update\n%s", program, diff)
			}
		})
	}
}

// list returns the packages that a program links, without those of its own module and without the internal packages of Go's
// standard library, sorted.
func list(t *testing.T, program, goos string) []string {
	t.Helper()
	// go list needs no C compiler to read the DLL's cgo file.
	c := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{else}}std {{.ImportPath}}{{end}}", "./cmd/"+program)
	c.Dir = "../.."
	cgo := "0"
	if program == "ccg-plugin" {
		cgo = "1"
	}
	c.Env = append(os.Environ(), "GOOS="+goos, "GOARCH=amd64", "CGO_ENABLED="+cgo)
	c.Stderr = os.Stderr
	out, err := c.Output()
	if err != nil {
		t.Fatal(err)
	}
	var packages []string
	for pkg := range strings.Lines(string(out)) {
		pkg = strings.TrimSpace(pkg)
		std, isStd := strings.CutPrefix(pkg, "std ")
		hidden := isStd && (strings.HasPrefix(std, "internal/") || strings.Contains(std, "/internal/") || strings.HasPrefix(std, "vendor/"))
		if hidden || strings.HasPrefix(pkg, module) {
			continue
		}
		packages = append(packages, std)
	}
	slices.Sort(packages)
	return packages
}
