package cluster

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/ccgrkc/ccgrkc/lab/env/tools"
	"github.com/ccgrkc/ccgrkc/lab/env/winnode"
	"github.com/ccgrkc/ccgrkc/lab/internal/mountns"
)

// Shell returns a command that runs a shell script as an administrator: in a directory with the charts, with helm,
// kubectl and gmsactl in the PATH, and with the DNS server of the cluster's domains, if they exist. The script stops at
// the first command that fails.
func (c *Cluster) Shell(ctx context.Context, script string) (*exec.Cmd, error) {
	workDir := filepath.Join(c.Dir, "admin")
	programs := filepath.Join(workDir, "bin")
	if err := os.MkdirAll(programs, 0o700); err != nil {
		return nil, err
	}
	helm, helmErr := tools.Path(ctx, tools.Helm4, os.Stderr)
	kubectl, kubectlErr := tools.Path(ctx, tools.Kubectl, os.Stderr)
	if err := errors.Join(helmErr, kubectlErr); err != nil {
		return nil, err
	}
	for name, target := range map[string]string{
		filepath.Join(workDir, "charts"):   Chart(""),
		filepath.Join(programs, "helm"):    helm,
		filepath.Join(programs, "kubectl"): kubectl,
		filepath.Join(programs, "gmsactl"): filepath.Join(winnode.Dist(), "gmsactl"),
	} {
		target, err := filepath.Abs(target)
		if err != nil {
			return nil, err
		}
		if err := os.Symlink(target, name); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
	}
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", script)
	cmd.Dir = workDir
	cmd.Env = append(c.Env(), "PATH="+programs+":/usr/bin:/bin", "HOME="+workDir)
	if len(c.AD) > 0 {
		mountns.Private(cmd, mountns.Mount{Source: c.ResolvConf(), Target: "/etc/resolv.conf"})
	}
	return cmd, nil
}
