package verify

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ccgrkc/ccgrkc/internal/dccheck"
	"github.com/ccgrkc/ccgrkc/internal/inventory"
	"github.com/ccgrkc/ccgrkc/internal/shell"
)

// Names of the steps on a node.
const (
	StepNode        = "node"
	StepSelected    = "node selected"
	StepInstaller   = "installer"
	StepPlugin      = "plugin registered"
	StepSelfTest    = "plugin answers"
	StepProvider    = "provider"
	StepHealth      = "provider answers"
	StepControllers = "domain controllers"
	StepPorts       = "ports"
	StepClock       = "clock"
)

// NodeResult is a node's own part of the way.
type NodeResult struct {
	Node  string `json:"node"`
	Steps []Step `json:"steps"`
}

// NodeOptions say what to look at on a node.
type NodeOptions struct {
	Cluster *inventory.Cluster
	Program string
	Node    *corev1.Node
	// Installers are the releases of the installer's chart that are known. InstallersUnseen is why they are not.
	Installers       []inventory.Release
	InstallersUnseen *inventory.Unseen
	Provider         *inventory.Release // nil: no release to look for
	Domain           string             // "": reach nothing
	Timeout          time.Duration      // of one program on the node; 0: a minute
	// Meant tells that somebody wants a pod on this very node. Otherwise a node that the release leaves out is as it should be.
	Meant bool

	clock *clock // nil: no domain controller was asked
}

// Kerberos bears 5 minutes ([MS-KILE] 3.1.1: MaxClockSkew of RFC 4120 5.9.1 is 5 minutes).
const (
	skewFails = 5 * time.Minute
	skewWarns = 2 * time.Minute
)

// VerifyNodes looks at nodes for a way that was followed: one by name or, if it is "", all Windows nodes, at most eight at a
// time. The nodes' results are added to the way's. The error is that the nodes cannot be listed.
func (r *Result) VerifyNodes(ctx context.Context, o Options, name string, timeout time.Duration) error {
	var nodes []corev1.Node
	if name != "" {
		n, err := o.Cluster.Kube.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			r.Nodes = []NodeResult{{Node: name, Steps: []Step{nodeNotRead(name, err)}}}
			return nil
		}
		nodes = []corev1.Node{*n}
	} else {
		list, err := o.Cluster.Kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{LabelSelector: corev1.LabelOSStable + "=windows"})
		if err != nil {
			return err
		}
		nodes = list.Items
	}
	installers, unseen := Installers(ctx, o.Cluster)
	r.Nodes = Each(nodes, func(n *corev1.Node) NodeResult {
		return CheckNode(ctx, NodeOptions{
			Cluster: o.Cluster, Program: o.Program, Node: n, Installers: installers, InstallersUnseen: unseen,
			Provider: r.release, Domain: r.Domain, Timeout: timeout, Meant: name != "", clock: r.clock,
		})
	})
	return nil
}

// Each looks at nodes, at most eight at a time, and returns the results in the nodes' order.
func Each(nodes []corev1.Node, look func(n *corev1.Node) NodeResult) []NodeResult {
	results := make([]NodeResult, len(nodes))
	turn := make(chan struct{}, 8)
	done := make(chan struct{})
	for i := range nodes {
		go func() {
			turn <- struct{}{}
			results[i] = look(&nodes[i])
			<-turn
			done <- struct{}{}
		}()
	}
	for range nodes {
		<-done
	}
	return results
}

// Installers returns the installer's releases.
func Installers(ctx context.Context, c *inventory.Cluster) ([]inventory.Release, *inventory.Unseen) {
	all, err := c.Releases(ctx, "")
	if err != nil {
		u := inventory.NotSeen("the plugin installer's DaemonSet", err, inventory.Right("list", "daemonsets.apps", ""))
		return nil, &u
	}
	return inventory.Of(all, inventory.InstallerChart), nil
}

func nodeNotRead(name string, err error) Step {
	s := unseen("node "+name, err, inventory.Right("get", "nodes/"+name, ""))
	if apierrors.IsNotFound(err) {
		s = failed(causeNodeNotFound, "there is no node "+name, "see which there are: kubectl get nodes --selector kubernetes.io/os=windows")
	}
	s.Name = StepNode
	return s
}

// CheckNode looks at a node, through the pods of the charts that run there.
func CheckNode(ctx context.Context, o NodeOptions) NodeResult {
	if o.Timeout <= 0 {
		o.Timeout = time.Minute
	}
	c := &nodeCheck{NodeOptions: o}
	c.take(StepNode, nil, c.node)
	if o.Provider != nil {
		c.take(StepSelected, []string{StepNode}, c.selected)
	}
	c.take(StepInstaller, []string{StepNode}, func() Step { return c.findInstaller(ctx) })
	c.take(StepPlugin, []string{StepInstaller}, func() Step { return c.status(ctx) })
	c.take(StepSelfTest, []string{StepPlugin}, c.selfTest)
	if o.Provider != nil {
		c.take(StepProvider, []string{StepSelected}, func() Step { return c.findProvider(ctx) })
		c.take(StepHealth, []string{StepProvider}, func() Step { return c.health(ctx) })
	}
	if o.Domain != "" {
		c.take(StepControllers, []string{StepInstaller}, func() Step { return c.controllers(ctx) })
		c.take(StepPorts, []string{StepControllers}, c.ports)
		needs := []string{StepControllers}
		if c.reach != nil {
			needs = nil // the clock was read, whatever DNS said
		}
		c.take(StepClock, needs, c.compareClocks)
	}
	return NodeResult{Node: o.Node.Name, Steps: c.steps}
}

type nodeCheck struct {
	NodeOptions
	walk

	installer    inventory.Release
	installerPod *corev1.Pod
	providerPod  *corev1.Pod
	plugin       pluginStatus
	reach        *dccheck.Report
	asked, got   time.Time // around the call that reach came of
}

func (c *nodeCheck) node() Step {
	n := c.Node
	if !inventory.IsWindows(n) {
		return failed(causeNodeNotWindows, fmt.Sprintf("the node runs %s", n.Status.NodeInfo.OperatingSystem), "name a Windows node: kubectl get nodes --selector kubernetes.io/os=windows")
	}
	for _, condition := range n.Status.Conditions {
		if condition.Type == corev1.NodeReady && condition.Status != corev1.ConditionTrue {
			return failed(causeNodeNotReady, "the node is not ready: "+condition.Message, "bring the node back: kubectl describe node "+n.Name)
		}
	}
	return ok(fmt.Sprintf("%s, %s", n.Status.NodeInfo.OSImage, n.Status.NodeInfo.ContainerRuntimeVersion))
}

func (c *nodeCheck) selected() Step {
	spec := c.Provider.DaemonSet.Spec.Template.Spec
	why := inventory.OutsideSelector(spec, c.Node)
	if why != "" && !c.Meant {
		return Step{State: NotReached, Cause: causeNodeOutside, Detail: fmt.Sprintf("the release %s leaves this node out: %s", c.Provider, why)}
	}
	if why != "" {
		return failed(causeNodeOutside, fmt.Sprintf("the node is outside the release %s: %s", c.Provider, why),
			fmt.Sprintf("run the pods on the nodes with %s, or give this node the labels if it may have the credentials", inventory.SelectorText(spec.NodeSelector)))
	}
	if taint := inventory.Repelled(spec, c.Node); taint != nil {
		return failed(causeNodeOutside, fmt.Sprintf("the node's taint %s keeps the release %s away", taint.ToString(), c.Provider), "add it to the value tolerations of the release")
	}
	return ok(inventory.SelectorText(spec.NodeSelector))
}

func (c *nodeCheck) findInstaller(ctx context.Context) Step {
	if c.InstallersUnseen != nil {
		return Step{State: NotLookedAt, Detail: c.InstallersUnseen.String(), Right: c.InstallersUnseen.Right}
	}
	if len(c.Installers) == 0 {
		return failed(CauseInstallerMissing, "the cluster has no release of "+inventory.InstallerChart,
			fmt.Sprintf("install it: helm install %s ./charts/%s --namespace cattle-windows-gmsa-system --create-namespace --wait", inventory.InstallerChart, inventory.InstallerChart))
	}
	c.installer = c.Installers[0]
	pod, s := c.findPod(ctx, c.installer, CauseInstallerMissing)
	c.installerPod = pod
	return s
}

func (c *nodeCheck) findProvider(ctx context.Context) Step {
	pod, s := c.findPod(ctx, *c.Provider, causeProviderMissing)
	c.providerPod = pod
	return s
}

// findPod finds the running pod of a release on the node.
func (c *nodeCheck) findPod(ctx context.Context, r inventory.Release, cause string) (*corev1.Pod, Step) {
	running, waiting, err := c.Cluster.PodOn(ctx, r, c.Node.Name)
	describe := fmt.Sprintf("see why: kubectl describe daemonset %s --namespace %s", r.DaemonSet.Name, r.Namespace)
	switch {
	case err != nil:
		return nil, unseen("pods of release "+r.String(), err, inventory.Right("list", "pods", r.Namespace))
	case running != nil && !inventory.Ready(running):
		return running, warning(cause, fmt.Sprintf("pod %s runs and is not ready", running.Name), fmt.Sprintf("see why: kubectl describe pod %s --namespace %s", running.Name, r.Namespace))
	case running != nil:
		return running, ok(fmt.Sprintf("pod %s/%s, %s", r.Namespace, running.Name, r.Version))
	case waiting != nil:
		return nil, failed(cause, fmt.Sprintf("pod %s does not run: %s", waiting.Name, Waiting(waiting)), fmt.Sprintf("see why: kubectl describe pod %s --namespace %s", waiting.Name, r.Namespace))
	}
	spec := r.DaemonSet.Spec.Template.Spec
	if why := inventory.OutsideSelector(spec, c.Node); why != "" {
		return nil, failed(cause, fmt.Sprintf("release %s has no pod here: %s", r, why), "change the value nodeSelector of the release, or label the node")
	}
	if taint := inventory.Repelled(spec, c.Node); taint != nil {
		return nil, failed(cause, fmt.Sprintf("release %s has no pod here: it does not tolerate the taint %s", r, taint.ToString()), "add it to the value tolerations of the release")
	}
	return nil, failed(cause, fmt.Sprintf("release %s has no pod here", r), describe)
}

// Waiting is why a pod's containers do not run, as its status tells.
func Waiting(pod *corev1.Pod) string {
	for _, s := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		switch {
		case s.State.Waiting != nil && s.State.Waiting.Reason != "" && s.State.Waiting.Reason != "PodInitializing":
			return strings.TrimSuffix(s.State.Waiting.Reason+": "+firstLine(s.State.Waiting.Message), ": ")
		case s.State.Terminated != nil && s.State.Terminated.ExitCode != 0:
			return fmt.Sprintf("exit code %d: %s", s.State.Terminated.ExitCode, firstLine(s.State.Terminated.Message))
		}
	}
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodScheduled && condition.Status != corev1.ConditionTrue {
			return strings.TrimSuffix(condition.Reason+": "+condition.Message, ": ")
		}
	}
	return string(pod.Status.Phase)
}

// run runs a program of the chart in its pod, and reads the JSON that it prints.
func (c *nodeCheck) run(ctx context.Context, r inventory.Release, pod *corev1.Pod, into any, argv ...string) (said string, code int, s *Step) {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	out, errOut, code, err := c.Cluster.Exec(ctx, pod.Namespace, pod.Name, r.Container(), argv...)
	if err != nil {
		s := unseen(fmt.Sprintf("%s in pod %s/%s", argv[0], pod.Namespace, pod.Name), err, inventory.Right("create", "pods/exec", pod.Namespace))
		s.State = NotLookedAt
		return "", 0, &s
	}
	said = firstLine(string(errOut))
	if err := json.Unmarshal(out, into); err != nil {
		if said == "" {
			said = firstLine(string(out))
		}
		return said, max(code, 1), nil
	}
	return said, code, nil
}

// pluginStatus is what ccg-plugin-installer status -o json tells.
type pluginStatus struct {
	State string `json:"state"`
	Rows  []struct {
		Object   string `json:"object"`
		Value    string `json:"value"`
		Expected string `json:"expected"`
		Actual   string `json:"actual"`
		State    string `json:"state"`
	} `json:"rows"`
	Foreign  string   `json:"foreign"`
	Notes    []string `json:"notes"`
	SelfTest *struct {
		Version  string `json:"version"`
		Identity string `json:"identity"`
		Error    string `json:"error"`
	} `json:"selfTest"`
}

func (c *nodeCheck) status(ctx context.Context) Step {
	argv := []string{"ccg-plugin-installer.exe", "status", "-o", "json"}
	if c.installer.RunAs != "" {
		argv = append(argv, "--run-as="+c.installer.RunAs)
	}
	said, code, s := c.run(ctx, c.installer, c.installerPod, &c.plugin, argv...)
	switch {
	case s != nil:
		return *s
	case c.plugin.State == "":
		return failed(causePluginState, fmt.Sprintf("ccg-plugin-installer status ended with code %d: %s", code, said),
			fmt.Sprintf("see its log: kubectl logs %s --namespace %s", c.installerPod.Name, c.installerPod.Namespace))
	case c.plugin.Foreign != "":
		return failed(CausePluginForeign, "another product's plugin is registered under this class: "+c.plugin.Foreign,
			fmt.Sprintf("uninstall it, or let this one replace it: helm upgrade %s ./charts/%s --namespace %s --reset-then-reuse-values --set plugin.replaceForeign=true", c.installer.Name, inventory.InstallerChart, c.installer.Namespace))
	}
	var wrong []string
	for _, row := range c.plugin.Rows {
		if row.State != "ok" {
			wrong = append(wrong, strings.TrimSpace(fmt.Sprintf("%s %s is %s", row.Object, row.Value, row.State)))
		}
	}
	remedy := fmt.Sprintf("the installer heals it; if it does not, see its log: kubectl logs %s --namespace %s", c.installerPod.Name, c.installerPod.Namespace)
	switch {
	case len(wrong) > 0:
		detail := fmt.Sprintf("%s: %s", c.plugin.State, wrong[0])
		if len(wrong) > 1 {
			detail += fmt.Sprintf(" (and %d more)", len(wrong)-1)
		}
		return failed(causePluginState, strings.Join(append([]string{detail}, c.plugin.Notes...), "; "), remedy)
	// The self-test is a step of its own.
	case c.plugin.State != "installed" && (c.plugin.SelfTest == nil || c.plugin.SelfTest.Error == ""):
		return failed(causePluginState, strings.Join(append([]string{c.plugin.State}, c.plugin.Notes...), "; "), remedy)
	}
	return ok(fmt.Sprintf("%d registry values and files as they should be", len(c.plugin.Rows)))
}

func (c *nodeCheck) selfTest() Step {
	t := c.plugin.SelfTest
	if t == nil || t.Error != "" {
		why := "it was not tried"
		if t != nil {
			why = t.Error
		}
		return failed(causeSelfTest, "the plugin's class does not answer: "+why, "on the node look for source CCGRKC in the Application log; docs/errors.md has the codes")
	}
	return ok(fmt.Sprintf("version %s as %s", t.Version, t.Identity))
}

func (c *nodeCheck) health(ctx context.Context) Step {
	var h struct {
		Version         string   `json:"version"`
		CacheAgeSeconds *float64 `json:"cacheAgeSeconds"`
		Problem         string   `json:"problem"`
		Detail          string   `json:"detail"`
	}
	ref := c.Provider.Reference()
	said, code, s := c.run(ctx, *c.Provider, c.providerPod, &h,
		// It fails without a good copy, and asks for the Secret first: the answer is of now.
		"gmsa-account-provider.exe", "healthcheck", "-o", "json", "--require-credentials", "--namespace="+ref.Namespace, "--secret="+ref.Secret)
	logs := fmt.Sprintf("see its log: kubectl logs %s --namespace %s", c.providerPod.Name, c.providerPod.Namespace)
	switch {
	case s != nil:
		return *s
	case h.Problem != "" && h.CacheAgeSeconds != nil:
		return warning(h.Problem, fmt.Sprintf("it serves a copy that is %.0f s old: %s", *h.CacheAgeSeconds, h.Detail), logs)
	case h.Problem != "":
		return failed(h.Problem, h.Detail, logs)
	case h.Version == "":
		return failed(causeProviderUnhealthy, strings.TrimPrefix(said, "gmsa-account-provider: "), logs)
	case code != 0:
		return failed(causeProviderUnhealthy, said, logs)
	}
	return ok("version " + h.Version + ", the Secret is good")
}

func (c *nodeCheck) controllers(ctx context.Context) Step {
	var report dccheck.Report
	c.asked = time.Now()
	said, code, s := c.run(ctx, c.installer, c.installerPod, &report, "ccg-plugin-installer.exe", "check-domain", "--domain="+c.Domain, "-o", "json")
	c.got = time.Now()
	if s != nil {
		return *s
	}
	if report.Time == "" {
		return Step{State: NotLookedAt, Detail: fmt.Sprintf("ccg-plugin-installer check-domain ended with code %d: %s", code, said),
			Remedy: fmt.Sprintf("bring the installer, now %s, to the version of gmsactl", c.installer.Version)}
	}
	c.reach = &report
	dns := seeDNS(c.Domain)
	if report.Error != "" {
		return failed(causeNodeDNS, report.Error, dns)
	}
	var names, without []string
	for _, server := range report.Servers {
		names = append(names, server.Host)
		if server.Error != "" {
			without = append(without, server.Error)
		}
	}
	switch {
	case len(without) == len(names):
		return failed(causeNodeDNS, strings.Join(append([]string{"DNS names no domain controller with an address"}, without...), "; "), dns)
	case len(without) > 0:
		return warning(causeNodeDNS, strings.Join(without, "; "), "remove the DNS records of domain controllers that are gone")
	}
	return ok(strings.Join(names, ", "))
}

func seeDNS(domain string) string {
	see := "see which DNS servers the node asks (Get-DnsClientServerAddress), and that they know the domain"
	if shell.IsPlain(domain) {
		see += ": nltest /dsgetdc:" + domain
	}
	return see
}

func (c *nodeCheck) ports() Step {
	var wrong, missing []string
	for _, server := range c.reach.Servers {
		if server.Error != "" {
			continue
		}
		for _, port := range dccheck.Ports {
			p, known := server.Ports[strconv.Itoa(port)]
			if !known || p.State == dccheck.Open {
				continue
			}
			if text := fmt.Sprintf("%s: %d is %s", server.Host, port, p.State); port == 88 || port == 389 {
				wrong = append(wrong, text)
			} else {
				missing = append(missing, text+" ("+portUse[port]+")")
			}
		}
	}
	const open = "open TCP 53, 88, 389, 636 and 9389 from the node to the domain controllers"
	switch {
	case !c.reach.Reachable():
		return failed(causeNodePorts, strings.Join(append(wrong, missing...), "; "), open)
	case len(wrong) > 0:
		return warning(causeNodePorts, strings.Join(append(wrong, missing...), "; ")+"; another domain controller answers", open)
	case len(missing) > 0:
		return warning(causeNodePorts, strings.Join(missing, "; "), open)
	}
	return ok("53, 88, 389, 636 and 9389 are open")
}

// portUse says what the ports are for that a gMSA can do without in some domains.
var portUse = map[int]string{
	53:   "DNS: needed where the node asks the domain controller itself",
	636:  "LDAPS: needed where the domain does not take LDAP that is signed and sealed",
	9389: "Active Directory Web Services: for PowerShell's ActiveDirectory module; AKS names it among what ccg.exe needs",
}

func (c *nodeCheck) compareClocks() Step {
	shows := c.reach.Clock()
	if shows.IsZero() {
		return Step{State: NotLookedAt, Detail: fmt.Sprintf("the node's clock reads %q", c.reach.Time)}
	}
	if c.clock == nil {
		return Step{State: NotLookedAt, Detail: "the node's clock reads " + c.reach.Time + "; no domain controller was asked for its own"}
	}
	skew := Skew(*c.clock, c.asked, c.got, shows)
	detail := fmt.Sprintf("%s that of %s", signed(skew), c.clock.server)
	const remedy = "set the node's clock by NTP: w32tm /resync"
	switch {
	case skew.Abs() > skewFails:
		return failed(causeNodeClock, "the node's clock is "+detail+"; Kerberos bears 5 minutes", remedy)
	case skew.Abs() > skewWarns:
		return warning(causeNodeClock, "the node's clock is "+detail+"; Kerberos bears 5 minutes", remedy)
	}
	return ok(detail)
}

// Skew is how far a node's clock is ahead of a domain controller's. The node's was read at some moment between asked and got
// by this machine's clock; of all that this leaves possible it is the least.
func Skew(dc clock, asked, got, node time.Time) time.Duration {
	least, most := node.Sub(got.Add(dc.ahead)), node.Sub(asked.Add(dc.ahead))
	switch {
	case least > 0:
		return least
	case most < 0:
		return most
	}
	return 0
}

func signed(d time.Duration) string {
	switch d = d.Round(100 * time.Millisecond); {
	case d == 0:
		return "agrees with"
	case d > 0:
		return d.String() + " ahead of"
	}
	return (-d).String() + " behind"
}
