package verify

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ccgrkc/ccgrkc/internal/dccheck"
	"github.com/ccgrkc/ccgrkc/internal/inventory"
	"github.com/ccgrkc/ccgrkc/internal/shell"
)

// Names of the checks on a node.
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

// NodeResult holds the checks of one node.
type NodeResult struct {
	Node  string `json:"node"`
	Steps []Step `json:"steps"`
}

// NodeOptions select what CheckNode checks.
type NodeOptions struct {
	Cluster    *inventory.Cluster
	Program    string // how the user calls gmsactl, for remedies
	Node       *corev1.Node
	Installers []inventory.Release // of the plugin installer
	// InstallersSkipped is the reason why Installers could not be read, or nil.
	InstallersSkipped *inventory.Skipped
	Provider          *inventory.Release // nil skips the checks of the Account Provider
	Domain            string             // "" skips the checks of the domain
	Timeout           time.Duration      // of one program on the node; 0 means one minute
	// Requested is set if the user specified this node. A node that the release does not select is then a fault.
	Requested bool

	clock *clock // nil if the domain controller's clock is unknown
}

// Limits of the difference between two clocks. Kerberos accepts 5 minutes ([MS-KILE] 3.1.1: MaxClockSkew, RFC 4120
// 5.9.1).
const (
	maxSkew  = 5 * time.Minute
	warnSkew = 2 * time.Minute
)

// maxParallelNodes limits the nodes that are checked at the same time.
const maxParallelNodes = 8

// VerifyNodes checks the node with this name or, if name is "", all Windows nodes. It adds the results to r. It returns
// an error only if the nodes cannot be listed.
func (r *Result) VerifyNodes(ctx context.Context, o Options, name string, timeout time.Duration) error {
	var nodes []corev1.Node
	if name != "" {
		n, err := o.Cluster.Kube.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			r.Nodes = []NodeResult{{Node: name, Steps: []Step{nodeError(name, err)}}}
			return nil
		}
		nodes = []corev1.Node{*n}
	} else {
		options := metav1.ListOptions{LabelSelector: corev1.LabelOSStable + "=windows"}
		list, err := o.Cluster.Kube.CoreV1().Nodes().List(ctx, options)
		if err != nil {
			return err
		}
		nodes = list.Items
	}
	installers, skipped := Installers(ctx, o.Cluster)
	r.Nodes = ForEachNode(nodes, func(n *corev1.Node) NodeResult {
		return CheckNode(ctx, NodeOptions{
			Cluster:           o.Cluster,
			Program:           o.Program,
			Node:              n,
			Installers:        installers,
			InstallersSkipped: skipped,
			Provider:          r.release,
			Domain:            r.Domain,
			Timeout:           timeout,
			Requested:         name != "",
			clock:             r.clock,
		})
	})
	return nil
}

// ForEachNode checks nodes in parallel and returns the results in the order of nodes.
func ForEachNode(nodes []corev1.Node, check func(n *corev1.Node) NodeResult) []NodeResult {
	results := make([]NodeResult, len(nodes))
	slots := make(chan struct{}, maxParallelNodes)
	var wg sync.WaitGroup
	for i := range nodes {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			results[i] = check(&nodes[i])
		})
	}
	wg.Wait()
	return results
}

// Installers returns the releases of the plugin installer.
func Installers(ctx context.Context, c *inventory.Cluster) ([]inventory.Release, *inventory.Skipped) {
	all, err := c.Releases(ctx, "")
	if err != nil {
		u := inventory.NewSkipped("the plugin installer's DaemonSet", err,
			inventory.Permission("list", "daemonsets.apps", ""))
		return nil, &u
	}
	return inventory.Of(all, inventory.InstallerChart), nil
}

func nodeError(name string, err error) Step {
	s := skipped("node "+name, err, inventory.Permission("get", "nodes/"+name, ""))
	if apierrors.IsNotFound(err) {
		s = failed(causeNodeNotFound, fmt.Sprintf("the node %s does not exist", name),
			"list the Windows nodes: kubectl get nodes --selector kubernetes.io/os=windows")
	}
	s.Name = StepNode
	return s
}

// CheckNode checks a node. It runs programs in the pods of the charts on that node.
func CheckNode(ctx context.Context, o NodeOptions) NodeResult {
	if o.Timeout <= 0 {
		o.Timeout = time.Minute
	}
	c := &nodeCheck{NodeOptions: o}
	c.check(StepNode, nil, c.node)
	if o.Provider != nil {
		c.check(StepSelected, []string{StepNode}, c.selected)
	}
	c.check(StepInstaller, []string{StepNode}, func() Step { return c.findInstaller(ctx) })
	c.check(StepPlugin, []string{StepInstaller}, func() Step { return c.status(ctx) })
	c.check(StepSelfTest, []string{StepPlugin}, c.selfTest)
	if o.Provider != nil {
		c.check(StepProvider, []string{StepSelected}, func() Step { return c.findProvider(ctx) })
		c.check(StepHealth, []string{StepProvider}, func() Step { return c.health(ctx) })
	}
	if o.Domain != "" {
		c.check(StepControllers, []string{StepInstaller}, func() Step { return c.controllers(ctx) })
		c.check(StepPorts, []string{StepControllers}, c.ports)
		needs := []string{StepControllers}
		if c.report != nil {
			needs = nil // the report contains the clock even if DNS failed
		}
		c.check(StepClock, needs, c.compareClocks)
	}
	return NodeResult{Node: o.Node.Name, Steps: c.steps}
}

type nodeCheck struct {
	NodeOptions
	checklist

	installer    inventory.Release
	installerPod *corev1.Pod
	providerPod  *corev1.Pod
	plugin       pluginStatus
	report       *dccheck.Report

	sent, received time.Time // before and after the call that returned report
}

func (c *nodeCheck) node() Step {
	n := c.Node
	if !inventory.IsWindows(n) {
		return failed(causeNodeNotWindows, fmt.Sprintf("the node runs %s", n.Status.NodeInfo.OperatingSystem),
			"specify a Windows node: kubectl get nodes --selector kubernetes.io/os=windows")
	}
	for _, condition := range n.Status.Conditions {
		if condition.Type == corev1.NodeReady && condition.Status != corev1.ConditionTrue {
			return failed(causeNodeNotReady, "the node is not ready: "+condition.Message,
				"check the node: kubectl describe node "+n.Name)
		}
	}
	return ok(fmt.Sprintf("%s, %s", n.Status.NodeInfo.OSImage, n.Status.NodeInfo.ContainerRuntimeVersion))
}

const tolerateRemedy = "add a matching toleration to the value tolerations of the release"

func (c *nodeCheck) selected() Step {
	spec := c.Provider.DaemonSet.Spec.Template.Spec
	selector := inventory.SelectorText(spec.NodeSelector)
	if reason := inventory.OutsideSelector(spec, c.Node); reason != "" {
		detail := fmt.Sprintf("the release %s does not select this node: %s", c.Provider, reason)
		if !c.Requested {
			return Step{State: NotRun, Cause: causeNodeOutside, Detail: detail}
		}
		return failed(causeNodeOutside, detail,
			"run the pods on nodes with "+selector+", or add these labels to this node if it is allowed to have the "+
				"credentials")
	}
	if taint := inventory.UntoleratedTaint(spec, c.Node); taint != nil {
		return failed(causeNodeOutside,
			fmt.Sprintf("the release %s does not tolerate the node's taint %s", c.Provider, taint.ToString()),
			tolerateRemedy)
	}
	return ok(selector)
}

func (c *nodeCheck) findInstaller(ctx context.Context) Step {
	if u := c.InstallersSkipped; u != nil {
		return Step{State: Skipped, Detail: u.String(), Permission: u.Permission}
	}
	if len(c.Installers) == 0 {
		return failed(CauseInstallerMissing, "the cluster has no release of "+inventory.InstallerChart,
			"install it: "+inventory.InstallerCommand)
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
	describe := func(kind, name string) string {
		return fmt.Sprintf("check why: kubectl describe %s %s --namespace %s", kind, name, r.Namespace)
	}
	switch {
	case err != nil:
		return nil, skipped("pods of release "+r.String(), err, inventory.Permission("list", "pods", r.Namespace))
	case running != nil && !inventory.Ready(running):
		return running, warning(cause, fmt.Sprintf("pod %s is running but not ready", running.Name),
			describe("pod", running.Name))
	case running != nil:
		return running, ok(fmt.Sprintf("pod %s/%s, %s", r.Namespace, running.Name, r.Version))
	case waiting != nil:
		return nil, failed(cause, fmt.Sprintf("pod %s is not running: %s", waiting.Name, WaitingReason(waiting)),
			describe("pod", waiting.Name))
	}
	detail := fmt.Sprintf("release %s has no pod on this node", r)
	spec := r.DaemonSet.Spec.Template.Spec
	if reason := inventory.OutsideSelector(spec, c.Node); reason != "" {
		return nil, failed(cause, detail+": "+reason, "change the value nodeSelector of the release, or label the node")
	}
	if taint := inventory.UntoleratedTaint(spec, c.Node); taint != nil {
		return nil, failed(cause, detail+": it does not tolerate the taint "+taint.ToString(), tolerateRemedy)
	}
	return nil, failed(cause, detail, describe("daemonset", r.DaemonSet.Name))
}

// WaitingReason returns why a pod's containers do not run, from the pod's status.
func WaitingReason(pod *corev1.Pod) string {
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

// exec runs a program of the chart in its pod and decodes the JSON that it prints. message is the first line of its
// errors. step is not nil if the program could not run.
func (c *nodeCheck) exec(
	ctx context.Context, r inventory.Release, pod *corev1.Pod, into any, argv ...string,
) (message string, code int, step *Step) {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	out, errOut, code, err := c.Cluster.Exec(ctx, pod.Namespace, pod.Name, r.Container(), argv...)
	if err != nil {
		s := skipped(fmt.Sprintf("%s in pod %s/%s", argv[0], pod.Namespace, pod.Name), err,
			inventory.Permission("create", "pods/exec", pod.Namespace))
		return "", 0, &s
	}
	message = firstLine(string(errOut))
	if err := json.Unmarshal(out, into); err != nil {
		if message == "" {
			message = firstLine(string(out))
		}
		return message, max(code, 1), nil
	}
	return message, code, nil
}

// pluginStatus is the output of ccg-plugin-installer status -o json.
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
	message, code, s := c.exec(ctx, c.installer, c.installerPod, &c.plugin, argv...)
	checkLog := fmt.Sprintf("check its log: kubectl logs %s --namespace %s", c.installerPod.Name,
		c.installerPod.Namespace)
	switch {
	case s != nil:
		return *s
	case c.plugin.State == "":
		return failed(causePluginState, fmt.Sprintf("ccg-plugin-installer status exited with code %d: %s", code,
			message),
			checkLog)
	case c.plugin.Foreign != "":
		upgrade := fmt.Sprintf(
			"helm upgrade %s ./charts/%s --namespace %s --reset-then-reuse-values --set plugin.replaceForeign=true",
			c.installer.Name, inventory.InstallerChart, c.installer.Namespace)
		return failed(CausePluginForeign, "another product's plugin is registered under this class: "+c.plugin.Foreign,
			"uninstall that product, or allow this product to replace the registration: "+upgrade)
	}
	var faults []string
	for _, row := range c.plugin.Rows {
		if row.State != "ok" {
			faults = append(faults, strings.TrimSpace(fmt.Sprintf("%s %s is %s", row.Object, row.Value, row.State)))
		}
	}
	remedy := "the installer repairs the registration; if it does not, " + checkLog
	switch {
	case len(faults) > 0:
		detail := fmt.Sprintf("%s: %s", c.plugin.State, faults[0])
		if len(faults) > 1 {
			detail += fmt.Sprintf(" (and %d more)", len(faults)-1)
		}
		return failed(causePluginState, strings.Join(append([]string{detail}, c.plugin.Notes...), "; "), remedy)
	// The next check reports a failed self-test.
	case c.plugin.State != "installed" && (c.plugin.SelfTest == nil || c.plugin.SelfTest.Error == ""):
		return failed(causePluginState, strings.Join(append([]string{c.plugin.State}, c.plugin.Notes...), "; "), remedy)
	}
	return ok(fmt.Sprintf("%d registry values and files are correct", len(c.plugin.Rows)))
}

func (c *nodeCheck) selfTest() Step {
	t := c.plugin.SelfTest
	if t == nil || t.Error != "" {
		reason := "the self-test did not run"
		if t != nil {
			reason = t.Error
		}
		return failed(causeSelfTest, "the plugin's class cannot be activated: "+reason,
			"on the node, check the Application log for events from source CCGRKC; docs/errors.md lists the codes")
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
	// --require-credentials makes the provider read the Secret before it answers.
	message, code, s := c.exec(ctx, *c.Provider, c.providerPod, &h, "gmsa-account-provider.exe", "healthcheck", "-o",
		"json",
		"--require-credentials", "--namespace="+ref.Namespace, "--secret="+ref.Secret)
	remedy := fmt.Sprintf("check its log: kubectl logs %s --namespace %s", c.providerPod.Name, c.providerPod.Namespace)
	switch {
	case s != nil:
		return *s
	case h.Problem != "" && h.CacheAgeSeconds != nil:
		return warning(h.Problem, fmt.Sprintf("it uses credentials that are %.0f s old: %s", *h.CacheAgeSeconds,
			h.Detail), remedy)
	case h.Problem != "":
		return failed(h.Problem, h.Detail, remedy)
	case h.Version == "":
		return failed(causeProviderUnhealthy, strings.TrimPrefix(message, "gmsa-account-provider: "), remedy)
	case code != 0:
		return failed(causeProviderUnhealthy, message, remedy)
	}
	return ok("version " + h.Version + ", the Secret is valid")
}

func (c *nodeCheck) controllers(ctx context.Context) Step {
	var report dccheck.Report
	c.sent = time.Now()
	message, code, s := c.exec(ctx, c.installer, c.installerPod, &report,
		"ccg-plugin-installer.exe", "check-domain", "--domain="+c.Domain, "-o", "json")
	c.received = time.Now()
	if s != nil {
		return *s
	}
	if report.Time == "" {
		return Step{
			State:  Skipped,
			Detail: fmt.Sprintf("ccg-plugin-installer check-domain exited with code %d: %s", code, message),
			Remedy: fmt.Sprintf("the installer has version %s; upgrade it to the version of gmsactl",
				c.installer.Version),
		}
	}
	c.report = &report
	remedy := dnsRemedy(c.Domain)
	if report.Error != "" {
		return failed(causeNodeDNS, report.Error, remedy)
	}
	var names, errs []string
	for _, server := range report.Servers {
		names = append(names, server.Host)
		if server.Error != "" {
			errs = append(errs, server.Error)
		}
	}
	switch {
	case len(errs) == len(names):
		detail := append([]string{"DNS returns no domain controller with an address"}, errs...)
		return failed(causeNodeDNS, strings.Join(detail, "; "), remedy)
	case len(errs) > 0:
		return warning(causeNodeDNS, strings.Join(errs, "; "), "remove the DNS records of former domain controllers")
	}
	return ok(strings.Join(names, ", "))
}

func dnsRemedy(domain string) string {
	remedy := "check the node's DNS servers (Get-DnsClientServerAddress); they must resolve the domain"
	if shell.IsPlain(domain) {
		remedy += ": nltest /dsgetdc:" + domain
	}
	return remedy
}

func (c *nodeCheck) ports() Step {
	var required, optional []string
	for _, server := range c.report.Servers {
		if server.Error != "" {
			continue
		}
		for _, port := range dccheck.Ports {
			p, known := server.Ports[strconv.Itoa(port)]
			if !known || p.State == dccheck.Open {
				continue
			}
			if text := fmt.Sprintf("%s: %d is %s", server.Host, port, p.State); port == 88 || port == 389 {
				required = append(required, text)
			} else {
				optional = append(optional, text+" ("+portPurpose[port]+")")
			}
		}
	}
	const remedy = "open TCP 53, 88, 389, 636 and 9389 from the node to the domain controllers"
	all := strings.Join(append(required, optional...), "; ")
	switch {
	case !c.report.Reachable():
		return failed(causeNodePorts, all, remedy)
	case len(required) > 0:
		return warning(causeNodePorts, all+"; another domain controller answers", remedy)
	case len(optional) > 0:
		return warning(causeNodePorts, all, remedy)
	}
	return ok("53, 88, 389, 636 and 9389 are open")
}

// portPurpose describes the ports that only some domains require.
var portPurpose = map[int]string{
	53:  "DNS: required if the domain controller is the node's DNS server",
	636: "LDAPS: required if the domain does not accept signed and sealed LDAP",
	9389: "Active Directory Web Services: for PowerShell's ActiveDirectory module; AKS lists it as a requirement of " +
		"ccg.exe",
}

func (c *nodeCheck) compareClocks() Step {
	nodeTime := c.report.Clock()
	if nodeTime.IsZero() {
		return Step{State: Skipped, Detail: fmt.Sprintf("the node's clock shows %q", c.report.Time)}
	}
	if c.clock == nil {
		return Step{
			State:  Skipped,
			Detail: "the node's clock shows " + c.report.Time + "; the domain controller's clock is unknown",
		}
	}
	skew := Skew(*c.clock, c.sent, c.received, nodeTime)
	detail := "the node's clock " + describeSkew(skew) + " the clock of " + c.clock.server
	const remedy = "synchronize the node's clock: w32tm /resync"
	switch {
	case skew.Abs() > maxSkew:
		return failed(causeNodeClock, detail+"; Kerberos accepts 5 minutes", remedy)
	case skew.Abs() > warnSkew:
		return warning(causeNodeClock, detail+"; Kerberos accepts 5 minutes", remedy)
	}
	return ok(detail)
}

// Skew returns how far a node's clock is ahead of a domain controller's. The node read its clock at an unknown time
// between sent and received, by this machine's clock. Skew returns the smallest possible difference.
func Skew(dc clock, sent, received, node time.Time) time.Duration {
	low, high := node.Sub(received.Add(dc.ahead)), node.Sub(sent.Add(dc.ahead))
	switch {
	case low > 0:
		return low
	case high < 0:
		return high
	}
	return 0
}

func describeSkew(d time.Duration) string {
	switch d = d.Round(100 * time.Millisecond); {
	case d == 0:
		return "agrees with"
	case d > 0:
		return "is " + d.String() + " ahead of"
	}
	return "is " + (-d).String() + " behind"
}
