// Package certmanager runs cert-manager on the lab's control plane: its CRDs and its controllers, which are a program
// of package tools. It does not run cert-manager's webhook.
package certmanager

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/ccgrkc/ccgrkc/lab/env/tools"
	"github.com/ccgrkc/ccgrkc/lab/internal/child"
)

// InstallCRDs installs cert-manager's CRDs.
func InstallCRDs(ctx context.Context, kubeconfig string) error {
	const name = "github.com/cert-manager/cert-manager"
	module, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", name).Output()
	if err != nil {
		return fmt.Errorf("finding cert-manager's module: %w", err)
	}
	crds := filepath.Join(strings.TrimSpace(string(module)), "deploy", "crds")
	kubectl, err := tools.Path(ctx, tools.Kubectl, os.Stderr)
	if err != nil {
		return err
	}
	for _, args := range [][]string{
		{"apply", "--server-side", "-f", crds},
		{"wait", "--for=condition=Established", "--timeout=60s", "-f", crds},
	} {
		cmd := exec.CommandContext(ctx, kubectl, append(args, "--kubeconfig", kubeconfig)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("the CRDs of cert-manager: %w\n%s", err, out)
		}
	}
	return nil
}

// Start runs the controllers until stop or until this process ends. They log to the file log.
func Start(ctx context.Context, kubeconfig, log string) (stop func(), _ error) {
	program, err := tools.Path(ctx, tools.CertManager, os.Stderr)
	if err != nil {
		return nil, err
	}
	f, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd := exec.Command(program, "--kubeconfig", kubeconfig)
	cmd.Stdout, cmd.Stderr = f, f
	process, err := child.Start(cmd, syscall.SIGKILL)
	if err != nil {
		return nil, err
	}
	return func() {
		_ = process.Signal(syscall.SIGKILL)
		<-process.Done
	}, nil
}
