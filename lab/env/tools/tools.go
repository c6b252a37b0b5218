// Package tools builds the programs that the lab is made of, from the Go modules that their projects publish, and keeps
// them in the user's cache for as long as their sources, their dependencies and Go's version stay the same.
package tools

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ccgrkc/ccgrkc/lab/internal/cache"
)

// Tool is a program of the lab.
type Tool struct {
	name, pkg string
	note      string // said before a build that takes long
}

// String is the tool's name.
func (t Tool) String() string { return t.name }

// The programs. All but ControlPlane and CertManager are unchanged commands of their projects.
var (
	ControlPlane = Tool{"control-plane", labModule + "/cmd/lab-control-plane", "; once, some minutes"}
	CertManager  = Tool{"cert-manager", labModule + "/cmd/lab-cert-manager", "; once"}
	Kubectl      = Tool{"kubectl", "k8s.io/kubernetes/cmd/kubectl", "; once"}
	Helm3        = Tool{"helm3", "helm.sh/helm/v3/cmd/helm", "; once"}
	Helm4        = Tool{"helm4", "helm.sh/helm/v4/cmd/helm", "; once"}
)

// All is every program, the one that takes longest first: the others share most of what it compiles.
var All = []Tool{ControlPlane, CertManager, Kubectl, Helm3, Helm4}

const labModule = "github.com/ccgrkc/ccgrkc/lab"

// Path returns the path of a program and builds it if need be. With an empty build cache ControlPlane takes about 6
// minutes on two cores.
func Path(ctx context.Context, tool Tool, progress io.Writer) (string, error) {
	goVersion, err := goOutput(ctx, "", "env", "GOVERSION")
	if err != nil {
		return "", err
	}
	dir, err := goOutput(ctx, "", "list", "-m", "-f", "{{.Dir}}", labModule)
	if err != nil {
		return "", fmt.Errorf("finding the lab's module; run this inside it: %w", err)
	}
	version, err := goOutput(ctx, dir, "list", "-m", "-f", "{{.Version}}", "k8s.io/kubernetes")
	if err != nil {
		return "", err
	}
	flags := buildFlags(version)

	parts := [][]byte{[]byte(goVersion), []byte(strings.Join(flags, " ")), []byte(tool.pkg)}
	sources := []string{filepath.Join(dir, "go.sum")}
	if own, ok := strings.CutPrefix(tool.pkg, labModule+"/"); ok {
		files, err := filepath.Glob(filepath.Join(dir, own, "*.go"))
		if err != nil {
			return "", err
		}
		sources = append(sources, files...)
	}
	for _, path := range sources {
		content, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		parts = append(parts, content)
	}

	return cache.Get(ctx, tool.name+"-"+cache.Key(parts...), progress, func(path string) error {
		fmt.Fprintf(progress, "building %s%s\n", tool.name, tool.note)
		cmd := exec.CommandContext(ctx, "go", slices.Concat([]string{"build"}, flags, []string{"-o", path, tool.pkg})...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=", "GOARCH=")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("building %s: %w\n%s", tool.name, err, out)
		}
		return nil
	})
}

// buildFlags are chosen for the time of the build: without DWARF it is a sixth shorter. The Makefile runs the lab's tests
// with the same -trimpath and -gcflags, so that both share what is compiled.
func buildFlags(version string) []string {
	// Without a version the API server calls itself v0.0.0, and charts with a kubeVersion refuse it.
	parts := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	const variables = "k8s.io/component-base/version."
	ldflags := []string{"-s", "-w",
		"-X", variables + "gitVersion=" + version,
		"-X", variables + "gitMajor=" + parts[0],
		"-X", variables + "gitMinor=" + parts[1],
		"-X", variables + "gitTreeState=clean",
		"-X", variables + "gitCommit=",
		"-X", "k8s.io/client-go/pkg/version.gitVersion=" + version,
	}
	return []string{"-trimpath", "-gcflags=all=-dwarf=false", "-ldflags", strings.Join(ldflags, " ")}
}

func goOutput(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, stderr.Bytes())
	}
	return strings.TrimSpace(string(out)), nil
}
