// Package cluster is the standard lab: a real control plane, a registry with the product's image, Windows nodes under Wine
// and a Linux node with the lab's kubelet, and the helm and kubectl that users have. See controlplane, kubelet and wine for
// what of it is real.
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
	// AD are the domains that StartAD started, ad.Corp and ad.Other. The DNS server of the first knows both.
	AD []*ad.Domain

	stopRegistry    func()
	stopCertManager func() // nil unless StartCertManager was called
	programs        map[tools.Tool]string

	mu    sync.Mutex
	nodes map[string]*Node
}

// Node is a node of the cluster. Stage and its Wine node are nil on a Linux node.
type Node struct {
	*kubelet.Node
	Stage *winnode.Stage
	Name  string

	options kubelet.Options
}

// NodeOptions is what a node may have that the standard ones have not.
type NodeOptions struct {
	Labels  map[string]string
	Sandbox kubelet.Sandbox
	Wine    []wine.Option
}

// Start starts a cluster without nodes in dir. It dies with this process.
func Start(ctx context.Context, dir string) (*Cluster, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := logClients(filepath.Join(dir, "logs")); err != nil {
		return nil, err
	}
	c := &Cluster{Dir: dir, nodes: map[string]*Node{}, programs: map[tools.Tool]string{}}
	for _, tool := range []tools.Tool{tools.Kubectl, tools.Helm3, tools.Helm4} {
		if c.programs[tool], err = tools.Path(ctx, tool, os.Stderr); err != nil {
			return nil, err
		}
	}
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

// logClients sends what client-go says on its own, of connections that a test cuts for example, to a file.
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

// AddWindows makes a Wine prefix, with the emulator of ccg.exe on it, and joins it as a Windows node.
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
		Name: name, OS: "windows", Labels: o.Labels, Wine: w, Sandbox: o.Sandbox, CCG: s.StartContainer, ResolvConf: c.ResolvConf,
	}}
	if err := c.join(ctx, n); err != nil {
		w.Stop()
		return nil, err
	}
	return n, nil
}

// AddLinux joins a node that runs the charts' Jobs.
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

// Restart starts the kubelet of a node that was stopped or killed.
func (c *Cluster) Restart(ctx context.Context, name string) error { return c.join(ctx, c.Node(name)) }

// Node returns a node by name. One that does not exist is a mistake in the caller.
func (c *Cluster) Node(name string) *Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, ok := c.nodes[name]
	if !ok {
		panic("no node " + name)
	}
	return n
}

// WindowsNodes returns the Windows nodes, by name.
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

// Stop ends everything at once: pods are killed with their nodes.
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

// StartCertManager installs cert-manager, which runs as long as the cluster.
func (c *Cluster) StartCertManager(ctx context.Context) (err error) {
	if err := certmanager.InstallCRDs(ctx, c.ControlPlane.Kubeconfig); err != nil {
		return err
	}
	c.stopCertManager, err = certmanager.Start(ctx, c.ControlPlane.Kubeconfig, filepath.Join(c.Dir, "cert-manager.log"))
	return err
}

// StartAD starts two Active Directory domains, c.AD, which live as long as the cluster. Containers that start from then on go
// to them with the plugin's credentials, and ask their DNS server.
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

// useDNS has the emulator on a new node go to the domains, if there are any.
func (c *Cluster) useDNS(s *winnode.Stage) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.AD) == 0 {
		return nil
	}
	return s.UseDNS(c.AD[0].Address)
}

func (c *Cluster) resolvConfFile() string { return filepath.Join(c.Dir, "ad", "resolv.conf") }

// ResolvConf is a file for /etc/resolv.conf that names the DNS server of the domains, or "" before StartAD.
func (c *Cluster) ResolvConf() string {
	if _, err := os.Stat(c.resolvConfFile()); err != nil {
		return ""
	}
	return c.resolvConfFile()
}

// Program is the path of helm or kubectl.
func (c *Cluster) Program(tool tools.Tool) string { return c.programs[tool] }

// Env is what helm and kubectl need to find the cluster, and nothing of the user's own configuration.
func (c *Cluster) Env() []string {
	return []string{"KUBECONFIG=" + c.ControlPlane.Kubeconfig, "HOME=" + c.Dir, "PATH=/usr/bin:/bin"}
}

// Run runs helm or kubectl and returns what it printed. The error of a failure holds it too.
func (c *Cluster) Run(ctx context.Context, tool tools.Tool, args ...string) (string, error) {
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, c.programs[tool], args...)
	cmd.Env = c.Env()
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %q: %w\n%s", filepath.Base(c.programs[tool]), args, err, out.Bytes())
	}
	return out.String(), nil
}
