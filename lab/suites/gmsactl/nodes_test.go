package gmsactl

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/ccgrkc/ccgrkc/lab/env/cluster"
	"github.com/ccgrkc/ccgrkc/lab/labtest"
)

// The namespace, the release and the Secret on the cluster with nodes.
const (
	nodesNamespace = "gmsa-system"
	nodesSecret    = "web-creds"
	nodesInput     = nodesNamespace + ":" + nodesSecret
)

var (
	nodesOnce sync.Once
	nodesErr  error
	nodesLab  *cluster.Cluster
	nodesAD   *domain    // a separate domain, because the nodes use its DNS server
	nodesTurn sync.Mutex // only one test at a time can break the cluster
)

// nodes returns a cluster with both charts: the installer on win-1 and win-2, a provider of the account gmsa-reader
// only on win-1, and the credential spec web01. One test at a time uses it.
func nodes(t *testing.T) (*cluster.Cluster, *domain) {
	t.Helper()
	labtest.Require(t)
	nodesOnce.Do(func() { nodesErr = startNodes() })
	must(t, nodesErr)
	nodesTurn.Lock()
	t.Cleanup(nodesTurn.Unlock)
	return nodesLab, nodesAD
}

func startNodes() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "gmsactl-nodes-")
	if err != nil {
		return err
	}
	c, err := cluster.Start(ctx, filepath.Join(dir, "cluster"))
	if err != nil {
		return err
	}
	nodesLab = c
	stop = append([]func(){c.Stop}, append(stop, func() { os.RemoveAll(dir) })...)
	if err := c.StartAD(ctx); err != nil {
		return err
	}
	corp := c.AD[0]
	nodesAD = &domain{corp, corp.Reader.Username, string(corp.Reader.Password.Reveal()), "secret02"}
	if err := corp.AddGMSA(ctx, nodesAD.Unreadable); err != nil {
		return err
	}
	var wg sync.WaitGroup
	errs := make([]error, 4)
	for i, name := range []string{"win-1", "win-2"} {
		wg.Go(func() { _, errs[i] = c.AddWindows(ctx, name, cluster.NodeOptions{}) })
	}
	wg.Go(func() { _, errs[3] = c.AddLinux(ctx, "linux-1") })
	wg.Go(func() { errs[2] = installCRD(ctx, c.ControlPlane) })
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := c.Label(ctx, "win-1", "gmsa=web"); err != nil {
		return err
	}
	if _, err := (cluster.Release{Cluster: c, Chart: cluster.Installer, Namespace: nodesNamespace,
		Name: "plugin"}).Install(ctx); err != nil {
		return err
	}
	if err := putReader(ctx, c, nodesAD.Reader, nodesAD.Password); err != nil {
		return err
	}
	_, err = cluster.Release{Cluster: c, Chart: cluster.Provider, Namespace: nodesNamespace, Name: "web"}.Install(ctx,
		"--set", "nodeSelector.gmsa=web")
	return err
}
