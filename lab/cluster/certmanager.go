package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/ccgrkc/ccgrkc/lab/internal/child"
	"github.com/ccgrkc/ccgrkc/lab/tools"
)

// StartCertManager installs cert-manager's CRDs and runs its controllers until this process ends.
func (c *Cluster) StartCertManager(ctx context.Context) error {
	module, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/cert-manager/cert-manager").Output()
	if err != nil {
		return fmt.Errorf("finding cert-manager's module: %w", err)
	}
	crds := filepath.Join(strings.TrimSpace(string(module)), "deploy", "crds")
	if _, err := c.Run(ctx, tools.Kubectl, "apply", "--server-side", "-f", crds); err != nil {
		return err
	}
	if _, err := c.Run(ctx, tools.Kubectl, "wait", "--for=condition=Established", "--timeout=30s", "-f", crds); err != nil {
		return err
	}
	if _, err := c.Run(ctx, tools.Kubectl, "create", "namespace", "cert-manager"); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(c.Dir, "cert-manager.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(c.programs[tools.CertManager], "--kubeconfig", c.ControlPlane.Kubeconfig)
	cmd.Env = c.Env()
	cmd.Stdout, cmd.Stderr = log, log
	c.certManager, err = child.Start(cmd, syscall.SIGKILL)
	return err
}
