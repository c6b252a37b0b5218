// Package tools builds the lab's programs from the Go modules of their projects, and caches them. If a program's
// source, its dependencies or the Go version change, the program is built again.
package tools

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ccgrkc/ccgrkc/lab/internal/cache"
)

// Tool is a program of the lab.
type Tool struct {
	name, pkg string
}

func (t Tool) String() string { return t.name }

// The lab's programs. ControlPlane and CertManager are commands of the lab. The others are unchanged commands of their
// projects.
var (
	ControlPlane = Tool{"control-plane", labModule + "/cmd/lab-control-plane"}
	CertManager  = Tool{"cert-manager", labModule + "/cmd/lab-cert-manager"}
	Kubectl      = Tool{"kubectl", "k8s.io/kubernetes/cmd/kubectl"}
	Helm3        = Tool{"helm3", "helm.sh/helm/v3/cmd/helm"}
	Helm4        = Tool{"helm4", "helm.sh/helm/v4/cmd/helm"}
)

// All lists the programs. The largest is first, because the others share most of its packages.
var All = []Tool{ControlPlane, CertManager, Kubectl, Helm3, Helm4}

const labModule = "github.com/ccgrkc/ccgrkc/lab"

// paths caches the results of Path in this process, by Tool, because find runs the go command three times.
var paths sync.Map

// Path returns the path of a program. It builds the program if necessary. With an empty build cache, the build of
// ControlPlane takes about 6 minutes on two cores.
func Path(ctx context.Context, tool Tool, progress io.Writer) (string, error) {
	if path, ok := paths.Load(tool); ok {
		return path.(string), nil
	}
	path, err := find(ctx, tool, progress)
	if err == nil {
		paths.Store(tool, path)
	}
	return path, err
}

func find(ctx context.Context, tool Tool, progress io.Writer) (string, error) {
	goVersion, err := goOutput(ctx, "", "env", "GOVERSION")
	if err != nil {
		return "", err
	}
	dir, err := goOutput(ctx, "", "list", "-m", "-f", "{{.Dir}}", labModule)
	if err != nil {
		return "", fmt.Errorf("finding the lab's module; run this command inside it: %w", err)
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
		return build(ctx, tool, dir, flags, path, progress)
	})
}

// build compiles a program and prints its progress as the number of compiled packages. Packages in Go's build cache do
// not count, so the build can finish before the number reaches the total.
func build(ctx context.Context, tool Tool, dir string, flags []string, path string, progress io.Writer) error {
	env := append(os.Environ(), "CGO_ENABLED=0", "GOOS=", "GOARCH=")
	list := exec.CommandContext(ctx, "go", slices.Concat([]string{"list", "-deps"}, flags, []string{tool.pkg})...)
	list.Dir, list.Env = dir, env
	packages, err := list.Output()
	if err != nil {
		return fmt.Errorf("the packages of %s: %w", tool.name, err)
	}
	cmd := exec.CommandContext(ctx, "go", slices.Concat([]string{"build", "-v"}, flags, []string{"-o", path, tool.pkg})...)
	cmd.Dir, cmd.Env = dir, env
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("building %s: %w", tool.name, err)
	}
	total, built, began := bytes.Count(packages, []byte("\n")), 0, time.Now()
	var last time.Time
	var output bytes.Buffer
	for lines := bufio.NewScanner(stderr); lines.Scan(); built++ { // go build -v prints one line for each package
		fmt.Fprintln(&output, lines.Text())
		if time.Since(last) > 5*time.Second {
			last = time.Now()
			fmt.Fprintf(progress, "building %s: %d of %d packages compiled (%s)\n", tool.name, built, total, last.Sub(began).Round(time.Second))
		}
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("building %s: %w\n%s", tool.name, err, output.Bytes())
	}
	return nil
}

// buildFlags returns flags for a short build time: without DWARF, the build takes a sixth less time. lab-test and the
// Makefile use the same -trimpath and -gcflags for the lab, so that shared packages are compiled once.
func buildFlags(version string) []string {
	// Without these variables, the API server's version would be v0.0.0, which the charts' kubeVersion rejects.
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
