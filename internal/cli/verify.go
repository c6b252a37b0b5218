package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/ccgrkc/ccgrkc/internal/escape"
	"github.com/ccgrkc/ccgrkc/internal/inventory"
	"github.com/ccgrkc/ccgrkc/internal/verify"
)

func newVerify(g *globals) *cobra.Command {
	var (
		node        string
		explicit    credentialFlags
		allNodes    bool
		nodeTimeout time.Duration
	)
	c := &cobra.Command{
		Use:   "verify CREDENTIALSPEC",
		Short: "Verify the credential path, from a credential spec to a Kerberos ticket",
		Long: `Verifies the credential path: credential spec, plugin input, release, Secret, bind to Active Directory,
domain of the credential spec, read permission, managed password, and a Kerberos ticket as the gMSA. It prints one
line for each check, and a remedy for the first check that failed. A check that depends on a failed one is "not run".
A check without the required permission is "skipped".

CREDENTIALSPEC is the name of a GMSACredentialSpec, or a file if it contains a slash or backslash or ends in .yaml,
.yml or .json.

The command reads the account's password from the Secret. This requires permission to get the Secret. To use another
account, specify --domain and --username. The command then prompts for the password, or reads it with --password-file
or --password-stdin. Only the domain in --domain receives this password. A file can then be verified without a
cluster.

With --node, the command also runs programs in the charts' pods on that node, like kubectl exec. They check the
plugin's registration, the provider, the domain controllers and ports (53, 88, 389, 636, 9389) that the node can
reach, and the node's clock. --all-nodes checks all Windows nodes.`,
		Example: g.examples(`
  gmsactl verify web01
  gmsactl verify web01 --node win-1
  gmsactl verify ./web01.yaml --domain corp.example.com --username gmsa-reader --password-file password.txt`),
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("specify one credential spec: the name of a GMSACredentialSpec, or a file")
			}
			return nil
		},
		ValidArgsFunction: g.completeCredentialSpecs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if node != "" && allNodes {
				return usagef("--node and --all-nodes cannot be used together")
			}
			if explicit.isSet() {
				if err := explicit.validate(); err != nil {
					return err
				}
			}
			ctx := cmd.Context()
			o := verify.Options{Program: g.program, Name: args[0], Directory: g.directoryConfig}
			var err error
			if isFile(args[0]) {
				o.File = args[0]
				if o.Content, err = os.ReadFile(args[0]); err != nil {
					return usagef("%w", err)
				}
			}
			o.Cluster, o.NoCluster = g.inventory()
			if o.NoCluster != nil && (o.File == "" || node != "" || allNodes) {
				return o.NoCluster
			}
			if explicit.isSet() {
				if o.Credential, err = explicit.read(ctx, g); err != nil {
					return err
				}
				defer o.Credential.Password.Wipe()
			}
			result := verify.Verify(ctx, o)
			if node != "" || allNodes {
				if err := result.VerifyNodes(ctx, o, node, nodeTimeout); err != nil {
					return incompletef("%s", inventory.NewSkipped("Windows nodes", err,
						inventory.Permission("list", "nodes", "")))
				}
			}
			if err := g.print(result, func(w io.Writer) { g.writeVerify(w, result, allNodes) }); err != nil {
				return err
			}
			return exitWith(codeOf(result))
		},
	}
	f := c.Flags()
	f.StringVar(&node, "node", "", "check this node, too")
	f.BoolVar(&allNodes, "all-nodes", false, "check all Windows nodes, too")
	f.DurationVar(&nodeTimeout, "node-timeout", time.Minute, "timeout of one program on a node")
	explicit.add(c)
	g.addDirectoryFlags(c)
	return c
}

// inventory returns the cluster in the flags.
func (g *globals) inventory() (*inventory.Cluster, error) {
	config, err := g.config.ToRESTConfig()
	if err != nil {
		return nil, incompletef("%w", err)
	}
	return inventory.New(config)
}

// isFile reports whether an argument is a file name. Names of objects contain no slash.
func isFile(arg string) bool {
	if strings.ContainsAny(arg, `/\`) {
		return true
	}
	for _, ending := range []string{".yaml", ".yml", ".json"} {
		if strings.HasSuffix(strings.ToLower(arg), ending) {
			return true
		}
	}
	return false
}

// codeOf returns the exit code for the results.
func codeOf(r *verify.Result) int {
	failed, skipped := verify.FirstFailed(r.Steps) != nil, verify.FirstSkipped(r.Steps) != nil
	for _, n := range r.Nodes {
		failed = failed || verify.FirstFailed(n.Steps) != nil
		skipped = skipped || verify.FirstSkipped(n.Steps) != nil
	}
	switch {
	case failed:
		return exitFault
	case skipped:
		return exitIncomplete
	}
	return exitOK
}

func (g *globals) paintState(s verify.State, width int) escape.Text {
	style := map[verify.State]string{
		verify.OK:      green,
		verify.Warning: yellow,
		verify.Failed:  red,
		verify.Skipped: yellow,
		verify.NotRun:  faint,
	}[s]
	return g.paint(style, fmt.Sprintf("%-*s", width, s))
}

func (g *globals) writeVerify(w io.Writer, r *verify.Result, table bool) {
	escape.Fprintf(w, "%s %s\n\n", g.paint(bold, "credential spec"), r.CredentialSpec)
	g.writeSteps(w, r.Steps)
	g.writeSummary(w, r.Steps, "")
	switch {
	case table:
		g.writeNodeTable(w, r.Nodes)
	default:
		for _, n := range r.Nodes {
			g.writeNode(w, n)
		}
	}
}

func (g *globals) writeNode(w io.Writer, n verify.NodeResult) {
	escape.Fprintf(w, "\n%s %s\n\n", g.paint(bold, "node"), n.Node)
	g.writeSteps(w, n.Steps)
	g.writeSummary(w, n.Steps, " on node "+n.Node)
}

func (g *globals) writeSteps(w io.Writer, steps []verify.Step) {
	name, state := 0, 0
	for _, s := range steps {
		name, state = max(name, len(s.Name)), max(state, len(s.State.String()))
	}
	for _, s := range steps {
		duration := ""
		if s.State != verify.NotRun && s.Ms >= 0.5 {
			duration = fmt.Sprintf("%.0f ms", s.Ms)
		}
		escape.Fprintf(w, "  %-*s  %s  %8s  %s\n", name, s.Name, g.paintState(s.State, state), duration, s.Detail)
	}
}

// writeSummary writes the first check that failed or was skipped, and all warnings.
func (g *globals) writeSummary(w io.Writer, steps []verify.Step, where string) {
	escape.Fprintf(w, "\n")
	write := func(style, title string, s *verify.Step) {
		escape.Fprintf(w, "%s%s: %s (%s)\n  %s\n  Remedy: %s\n",
			g.paint(style, title), where, s.Name, s.Cause, s.Detail, s.Remedy)
	}
	if s := verify.FirstFailed(steps); s != nil {
		write(red, "Failed", s)
	} else if s := verify.FirstSkipped(steps); s != nil {
		escape.Fprintf(w, "%s%s: %s. All independent checks passed\n  %s\n", g.paint(yellow, "Skipped"), where, s.Name,
			s.Detail)
		if s.Remedy != "" {
			escape.Fprintf(w, "  Remedy: %s\n", s.Remedy)
		}
	} else {
		escape.Fprintf(w, "%s%s\n", g.paint(green, "All checks passed"), where)
	}
	for i := range steps {
		if steps[i].State == verify.Warning {
			write(yellow, "Warning", &steps[i])
		}
	}
}

// tableSteps are the columns of the table of nodes. Each column shows the worst state of its checks.
var tableSteps = []struct {
	heading string
	steps   []string
}{
	{"NODE READY", []string{verify.StepNode, verify.StepSelected}},
	{"PLUGIN", []string{verify.StepInstaller, verify.StepPlugin, verify.StepSelfTest}},
	{"PROVIDER", []string{verify.StepProvider, verify.StepHealth}},
	{"DC FOUND", []string{verify.StepControllers}},
	{"PORTS", []string{verify.StepPorts}},
	{"CLOCK", []string{verify.StepClock}},
}

func (g *globals) writeNodeTable(w io.Writer, nodes []verify.NodeResult) {
	if len(nodes) == 0 {
		escape.Fprintf(w, "\nthe cluster has no Windows nodes\n")
		return
	}
	escape.Fprintf(w, "\n")
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	escape.Fprintf(table, "NODE")
	for _, column := range tableSteps {
		escape.Fprintf(table, "\t%s", column.heading)
	}
	escape.Fprintf(table, "\n")
	for _, n := range nodes {
		escape.Fprintf(table, "%s", n.Node)
		for _, column := range tableSteps {
			escape.Fprintf(table, "\t%s", worstState(n.Steps, column.steps))
		}
		escape.Fprintf(table, "\n")
	}
	_ = table.Flush() // w is a buffer
	for _, n := range nodes {
		if verify.FirstFailed(n.Steps) != nil || verify.FirstSkipped(n.Steps) != nil || hasWarning(n.Steps) {
			g.writeSummary(w, n.Steps, " on node "+n.Node)
		}
	}
}

func hasWarning(steps []verify.Step) bool {
	for _, s := range steps {
		if s.State == verify.Warning {
			return true
		}
	}
	return false
}

// worstState returns the worst state of the named checks, or "" if there are none.
func worstState(steps []verify.Step, names []string) verify.State {
	order := []verify.State{"", verify.OK, verify.Warning, verify.Skipped, verify.NotRun, verify.Failed}
	rank := 0
	for _, s := range steps {
		for _, name := range names {
			if s.Name != name {
				continue
			}
			for i, state := range order {
				if state == s.State {
					rank = max(rank, i)
				}
			}
		}
	}
	return order[rank]
}
