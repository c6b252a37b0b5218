package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/ccgrkc/ccgrkc/lab/env/cluster"
	"github.com/ccgrkc/ccgrkc/lab/env/kubelet"
)

// operator prints the run time of gmsactl commands on a cluster with an Active Directory.
func operator(ctx context.Context, dir string) error {
	dir = filepath.Join(dir, "operator")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	c, err := cluster.Start(ctx, dir)
	if err != nil {
		return err
	}
	defer c.Stop()
	if err := c.StartAD(ctx); err != nil {
		return err
	}
	corp := c.AD[0]
	if err := os.WriteFile(filepath.Join(c.Dir, "password.txt"), corp.Reader.Password.Reveal(), 0o600); err != nil {
		return err
	}
	const namespace = "gmsa-system"
	release := namespace + "/web"
	// The measured commands do not reach the node, so a simulated one is enough.
	fake, err := kubelet.StartFakeNodes(ctx, kubelet.FakeOptions{
		Names:  []string{"win-1"},
		OS:     "windows",
		Config: c.ControlPlane.NodeConfig,
	})
	if err != nil {
		return err
	}
	defer fake.Stop()
	web := cluster.Release{Cluster: c, Chart: cluster.Provider, Namespace: namespace, Name: "web"}
	if _, err := web.Install(ctx); err != nil {
		return err
	}
	if err := c.InstallCRD(ctx); err != nil {
		return err
	}
	if _, err := c.Gmsactl(ctx, "account", "create", release, "--domain", corp.DNSName,
		"--username", corp.Reader.Username, "--password-file", "password.txt"); err != nil {
		return err
	}
	for _, figure := range []struct {
		bound string
		args  []string
	}{
		{"", []string{"version"}},
		{"500 ms", []string{"credspec", "create", "--gmsa", corp.GMSA, "--account", release, "--apply"}},
		{"1000 ms", []string{"verify", corp.GMSA}},
	} {
		var times []time.Duration
		for range 11 {
			began := time.Now()
			if _, err := c.Gmsactl(ctx, figure.args...); err != nil {
				return err
			}
			times = append(times, time.Since(began))
		}
		name := figure.args[0]
		if name == "credspec" {
			name += " create"
		}
		value(fmt.Sprintf("gmsactl %s, including process start, p50", name), ms(median(times)), figure.bound)
	}
	return nil
}
