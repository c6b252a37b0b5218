// Package cluster is the standard lab: a real control plane, a registry with the product's image, Windows nodes under
// Wine and a Linux node with the lab's kubelet, and real helm and kubectl. Packages controlplane, kubelet and wine
// describe how they differ from production.
package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"

	"k8s.io/klog/v2"

	"github.com/ccgrkc/ccgrkc/lab/env/ad"
	"github.com/ccgrkc/ccgrkc/lab/env/certmanager"
	"github.com/ccgrkc/ccgrkc/lab/env/controlplane"
	"github.com/ccgrkc/ccgrkc/lab/env/kubelet"
	"github.com/ccgrkc/ccgrkc/lab/env/tools"
	"github.com/ccgrkc/ccgrkc/lab/env/wine"
	"github.com/ccgrkc/ccgrkc/lab/env/winnode"
)

// Cluster is a running lab.
type Cluster struct {
	ControlPlane *controlplane.ControlPlane
	Registry     string // host:port
	Dir          string
	// AD are the domains of StartAD, ad.Corp and ad.Other. The first domain's DNS server resolves both.
	AD []*ad.Domain

	stopRegistry    func()
	stopCertManager func() // nil unless StartCertManager was called

	mu    sync.Mutex
	nodes map[string]*Node
}

// Node is a node of the cluster. Stage is nil for a Linux node.
type Node struct {
	*kubelet.Node
	Stage *winnode.Stage
	Name  string

	options kubelet.Options
}

// NodeOptions are settings of a node in which it differs from the standard nodes.
type NodeOptions struct {
	Labels  map[string]string
	Sandbox kubelet.Sandbox
	Wine    []wine.Option
}

// Start starts a cluster without nodes in dir. It ends with this process.
func Start(ctx context.Context, dir string) (*Cluster, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := logClients(filepath.Join(dir, "logs")); err != nil {
		return nil, err
	}
	c := &Cluster{Dir: dir, nodes: map[string]*Node{}}
	c.ControlPlane, err = controlplane.Start(ctx, filepath.Join(dir, "control-plane"))
	if err != nil {
		return nil, err
	}
	if c.Registry, c.stopRegistry, err = serveRegistry(); err != nil {
		c.ControlPlane.Stop()
		return nil, err
	}
	version, err := ChartVersion()
	if err == nil {
		err = errors.Join(c.PushProduct(ctx, version), c.pushApp(ctx))
	}
	if err != nil {
		c.Stop()
		return nil, err
	}
	return c, nil
}

// logClients redirects client-go's log to a file. It contains, for example, errors of connections that a test cuts.
func logClients(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, "client-go.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	klog.LogToStderr(false)
	klog.SetOutput(f)
	return nil
}

// StartStandard starts a cluster with the nodes win-1 and win-2 (containerd 1.7), win-3 (containerd 1.6) and linux-1.
func StartStandard(ctx context.Context, dir string) (*Cluster, error) {
	c, err := Start(ctx, dir)
	if err != nil {
		return nil, err
	}
	var wg sync.WaitGroup
	errs := make([]error, 4)
	for i, add := range []func() (*Node, error){
		func() (*Node, error) { return c.AddLinux(ctx, "linux-1") },
		func() (*Node, error) { return c.AddWindows(ctx, "win-1", NodeOptions{}) },
		func() (*Node, error) { return c.AddWindows(ctx, "win-2", NodeOptions{}) },
		func() (*Node, error) {
			return c.AddWindows(ctx, "win-3", NodeOptions{Sandbox: kubelet.Containerd16})
		},
	} {
		wg.Go(func() { _, errs[i] = add() })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		c.Stop()
		return nil, err
	}
	return c, nil
}

// AddWindows creates a Wine node with the emulator of ccg.exe and adds it as a Windows node.
func (c *Cluster) AddWindows(ctx context.Context, name string, o NodeOptions) (*Node, error) {
	logs := filepath.Join(c.Dir, "logs", name)
	for _, dir := range []string{logs, c.nodeDir(name)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	w, err := wine.New(ctx, filepath.Join(c.nodeDir(name), "prefix"), o.Wine...)
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", name, err)
	}
	s := &winnode.Stage{ControlPlane: c.ControlPlane, Node: w, Logs: logs}
	if err := s.Put("lab/ccg.exe"); err != nil {
		w.Stop()
		return nil, err
	}
	if err := c.useDNS(s); err != nil {
		w.Stop()
		return nil, err
	}
	n := &Node{Name: name, Stage: s, options: kubelet.Options{
		Name:       name,
		OS:         "windows",
		Labels:     o.Labels,
		Wine:       w,
		Sandbox:    o.Sandbox,
		CCG:        s.StartContainer,
		ResolvConf: c.ResolvConf,
	}}
	if err := c.join(ctx, n); err != nil {
		w.Stop()
		return nil, err
	}
	return n, nil
}

// AddLinux adds a Linux node, which runs the charts' Jobs.
func (c *Cluster) AddLinux(ctx context.Context, name string) (*Node, error) {
	n := &Node{Name: name, options: kubelet.Options{Name: name, OS: "linux"}}
	return n, c.join(ctx, n)
}

func (c *Cluster) nodeDir(name string) string { return filepath.Join(c.Dir, "nodes", name) }

func (c *Cluster) join(ctx context.Context, n *Node) (err error) {
	n.options.Mirror = c.Registry
	n.options.Dir = filepath.Join(c.nodeDir(n.Name), "kubelet")
	if n.options.Config, err = c.ControlPlane.NodeConfig(ctx, n.Name); err != nil {
		return err
	}
	if n.Node, err = kubelet.Start(ctx, n.options); err != nil {
		return fmt.Errorf("node %s: %w", n.Name, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nodes[n.Name] = n
	return nil
}

// Restart starts a stopped or killed node again.
func (c *Cluster) Restart(ctx context.Context, name string) error { return c.join(ctx, c.Node(name)) }

// Node returns a node by name. It panics if the node does not exist.
func (c *Cluster) Node(name string) *Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, ok := c.nodes[name]
	if !ok {
		panic("no node " + name)
	}
	return n
}

// WindowsNodes returns the Windows nodes in the order of their names.
func (c *Cluster) WindowsNodes() []*Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	var nodes []*Node
	for _, name := range slices.Sorted(maps.Keys(c.nodes)) {
		if c.nodes[name].Stage != nil {
			nodes = append(nodes, c.nodes[name])
		}
	}
	return nodes
}

// Stop kills everything: pods do not get their grace period.
func (c *Cluster) Stop() {
	c.mu.Lock()
	nodes := slices.Collect(maps.Values(c.nodes))
	c.mu.Unlock()
	var wg sync.WaitGroup
	for _, n := range nodes {
		wg.Go(func() {
			n.Kill()
			if n.Stage != nil {
				n.Stage.Node.Stop()
			}
		})
	}
	wg.Wait()
	for _, d := range c.AD {
		d.Stop()
	}
	if c.stopCertManager != nil {
		c.stopCertManager()
	}
	c.stopRegistry()
	c.ControlPlane.Stop()
}

// StartCertManager installs cert-manager. It runs until the cluster stops.
func (c *Cluster) StartCertManager(ctx context.Context) (err error) {
	if err := certmanager.InstallCRDs(ctx, c.ControlPlane.Kubeconfig); err != nil {
		return err
	}
	c.stopCertManager, err = certmanager.Start(ctx, c.ControlPlane.Kubeconfig, filepath.Join(c.Dir, "cert-manager.log"))
	return err
}

// StartAD starts two Active Directory domains, c.AD, which run until the cluster stops. For containers that start
// later, the emulator of ccg.exe uses these domains and their DNS server.
func (c *Cluster) StartAD(ctx context.Context) error {
	corp, other, err := ad.StartPair(ctx, filepath.Join(c.Dir, "ad"))
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.AD = []*ad.Domain{corp, other}
	for _, n := range c.nodes {
		if n.Stage != nil {
			if err := n.Stage.UseDNS(corp.Address); err != nil {
				return err
			}
		}
	}
	return os.WriteFile(c.resolvConfFile(), []byte("nameserver "+corp.Address+"\n"), 0o644)
}

// useDNS makes the emulator on a new node use the domains, if they exist.
func (c *Cluster) useDNS(s *winnode.Stage) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.AD) == 0 {
		return nil
	}
	return s.UseDNS(c.AD[0].Address)
}

func (c *Cluster) resolvConfFile() string { return filepath.Join(c.Dir, "ad", "resolv.conf") }

// ResolvConf is a file for /etc/resolv.conf with the domains' DNS server, or "" before StartAD.
func (c *Cluster) ResolvConf() string {
	if _, err := os.Stat(c.resolvConfFile()); err != nil {
		return ""
	}
	return c.resolvConfFile()
}

// Env is what helm and kubectl need to find the cluster, and nothing of the user's own configuration.
func (c *Cluster) Env() []string {
	return []string{"KUBECONFIG=" + c.ControlPlane.Kubeconfig, "HOME=" + c.Dir, "PATH=/usr/bin:/bin"}
}

// Run runs helm or kubectl and returns its output. An error contains the output too.
func (c *Cluster) Run(ctx context.Context, tool tools.Tool, args ...string) (string, error) {
	program, err := tools.Path(ctx, tool, os.Stderr)
	if err != nil {
		return "", err
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = c.Env()
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %q: %w\n%s", tool, args, err, out.Bytes())
	}
	return out.String(), nil
}
