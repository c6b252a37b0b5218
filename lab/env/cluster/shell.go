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

// Shell is a script at an administrator's desk: in a directory that has the charts, with helm, kubectl and gmsactl by these names,
// and with a DNS server that knows the cluster's domains if there are any. The script ends at the first command that fails.
func (c *Cluster) Shell(ctx context.Context, script string) (*exec.Cmd, error) {
	desk := filepath.Join(c.Dir, "desk")
	programs := filepath.Join(desk, "bin")
	if err := os.MkdirAll(programs, 0o700); err != nil {
		return nil, err
	}
	for name, target := range map[string]string{
		filepath.Join(desk, "charts"):      Chart(""),
		filepath.Join(programs, "helm"):    c.Program(tools.Helm4),
		filepath.Join(programs, "kubectl"): c.Program(tools.Kubectl),
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
	cmd.Dir = desk
	cmd.Env = append(c.Env(), "PATH="+programs+":/usr/bin:/bin", "HOME="+desk)
	if len(c.AD) > 0 {
		mountns.Private(cmd, mountns.Mount{Source: c.ResolvConf(), Target: "/etc/resolv.conf"})
	}
	return cmd, nil
}
