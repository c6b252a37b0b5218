package controlplane

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

const labModule = "github.com/ccgrkc/ccgrkc/lab"

// Build returns the path of the control plane's program. It is built once, which takes about 6 minutes on two cores with
// an empty build cache, and kept for as long as its sources, its dependencies and Go's version stay the same.
func Build(ctx context.Context, progress io.Writer) (string, error) {
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

	parts := [][]byte{[]byte(goVersion), []byte(strings.Join(flags, " "))}
	sources, err := filepath.Glob(filepath.Join(dir, "cmd/lab-control-plane/*.go"))
	if err != nil {
		return "", err
	}
	for _, path := range append(sources, filepath.Join(dir, "go.sum")) {
		content, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		parts = append(parts, content)
	}

	return cache.Get(ctx, "control-plane-"+cache.Key(parts...), progress, func(path string) error {
		fmt.Fprintf(progress, "building the Kubernetes %s control plane; once, some minutes\n", version)
		cmd := exec.CommandContext(ctx, "go", slices.Concat([]string{"build"}, flags, []string{"-o", path, "./cmd/lab-control-plane"})...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=", "GOARCH=")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("building the control plane: %w\n%s", err, out)
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
