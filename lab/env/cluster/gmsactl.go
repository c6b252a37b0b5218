package cluster

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"

	"github.com/ccgrkc/ccgrkc/lab/env/winnode"
	"github.com/ccgrkc/ccgrkc/lab/internal/mountns"
)

// Gmsactl runs gmsactl with the DNS server of the cluster's domains, and returns its output. An exit code other than 0,
// for example because of a finding, is an error that contains the output too.
func (c *Cluster) Gmsactl(ctx context.Context, args ...string) (string, error) {
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, filepath.Join(winnode.Dist(), "gmsactl"), args...)
	cmd.Env, cmd.Dir = c.Env(), c.Dir
	cmd.Stdout, cmd.Stderr = &out, &out
	mountns.Private(cmd, mountns.Mount{Source: c.ResolvConf(), Target: "/etc/resolv.conf"})
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("gmsactl %q: %w\n%s", args, err, out.Bytes())
	}
	return out.String(), nil
}
