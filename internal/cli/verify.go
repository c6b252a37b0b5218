package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/ccgrkc/ccgrkc/internal/inventory"
	"github.com/ccgrkc/ccgrkc/internal/verify"
)

func newVerify(g *globals) *cobra.Command {
	var (
		node        string
		given       givenAccount
		allNodes    bool
		nodeTimeout time.Duration
	)
	c := &cobra.Command{
		Use:   "verify CREDENTIALSPEC",
		Short: "Follow the way of a credential from a credential spec to a Kerberos ticket as the gMSA",
		Long: `Follows the way of a credential, one line a link: credential spec, plugin input, release, Secret, bind to Active Directory,
the credential spec's domain, right to read, managed password, Kerberos ticket as the gMSA. The first link that is broken is named with
what to do; what depends on it is "not reached". What you may not read is "not looked at", with the right that is missing.

CREDENTIALSPEC is the name of a GMSACredentialSpec, or a file if it has a slash, a backslash or an ending .yaml, .yml or .json.

The account's password is read from the Secret, which takes the right to get it. Or an account is given: --domain, --username and a
password, which is asked for without echo, or comes from --password-file or --password-stdin. A file is then verified without a
cluster too, as far as that goes. No domain but --domain gets to see that password, whatever the credential spec says.

With --node, what runs on that node looks too, through kubectl exec's way into the pods of the charts: whether the plugin is
registered and answers, whether the provider has the Secret, which domain controllers and ports (53, 88, 389, 636, 9389) the node
reaches, and its clock against the domain controller's. --all-nodes does it for all Windows nodes that the release selects.`,
		Example: g.examples(`
  gmsactl verify web01
  gmsactl verify web01 --node win-1
  gmsactl verify ./web01.yaml --domain corp.example.com --username gmsa-reader --password-file password.txt`),
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("name one credential spec: a GMSACredentialSpec of the cluster, or a file")
			}
			return nil
		},
		ValidArgsFunction: g.completeCredentialSpecs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if node != "" && allNodes {
				return usagef("--node and --all-nodes exclude each other")
			}
			if given.isGiven() {
				if err := given.check(); err != nil {
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
			if given.isGiven() {
				if o.Credential, err = given.read(ctx, g); err != nil {
					return err
				}
				defer o.Credential.Password.Wipe()
			}
			result := verify.Verify(ctx, o)
			if node != "" || allNodes {
				if err := result.VerifyNodes(ctx, o, node, nodeTimeout); err != nil {
					return unablef("Windows nodes: %s", inventory.NotSeen("nodes", err, inventory.Right("list", "nodes", "")))
				}
			}
			if err := g.print(result, func(w io.Writer) { g.writeVerify(w, result, allNodes) }); err != nil {
				return err
			}
			return endWith(codeOf(result))
		},
	}
	f := c.Flags()
	f.StringVar(&node, "node", "", "look at this node too")
	f.BoolVar(&allNodes, "all-nodes", false, "look at all Windows nodes too")
	f.DurationVar(&nodeTimeout, "node-timeout", time.Minute, "how long one program on a node may take")
	given.add(c)
	g.addDirectoryFlags(c)
	return c
}

// inventory is the cluster that the flags name, to read from.
func (g *globals) inventory() (*inventory.Cluster, error) {
	config, err := g.config.ToRESTConfig()
	if err != nil {
		return nil, unablef("%w", err)
	}
	return inventory.New(config)
}

// isFile tells a file from the name of an object, which has no slash.
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

// codeOf is 1 if a link is broken, else 3 if one could not be looked at.
func codeOf(r *verify.Result) int {
	broken, unseen := verify.Broken(r.Steps) != nil, verify.Unseen(r.Steps) != nil
	for _, n := range r.Nodes {
		broken = broken || verify.Broken(n.Steps) != nil
		unseen = unseen || verify.Unseen(n.Steps) != nil
	}
	switch {
	case broken:
		return exitWrong
	case unseen:
		return exitUnable
	}
	return exitGood
}

func (g *globals) paintState(s verify.State, width int) string {
	style := map[verify.State]string{verify.OK: green, verify.Warning: yellow, verify.Failed: red, verify.NotReached: faint, verify.NotLookedAt: yellow}[s]
	return g.paint(style, fmt.Sprintf("%-*s", width, s))
}

func (g *globals) writeVerify(w io.Writer, r *verify.Result, table bool) {
	fmt.Fprintf(w, "%s %s\n\n", g.paint(bold, "credential spec"), r.CredentialSpec)
	g.writeSteps(w, r.Steps)
	g.writeVerdict(w, r.Steps, "")
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
	fmt.Fprintf(w, "\n%s %s\n\n", g.paint(bold, "node"), n.Node)
	g.writeSteps(w, n.Steps)
	g.writeVerdict(w, n.Steps, " on node "+n.Node)
}

func (g *globals) writeSteps(w io.Writer, steps []verify.Step) {
	name, state := 0, 0
	for _, s := range steps {
		name, state = max(name, len(s.Name)), max(state, len(s.State))
	}
	for _, s := range steps {
		took := ""
		if s.State != verify.NotReached && s.Ms >= 0.5 {
			took = fmt.Sprintf("%.0f ms", s.Ms)
		}
		fmt.Fprintf(w, "  %-*s  %s  %8s  %s\n", name, s.Name, g.paintState(s.State, state), took, s.Detail)
	}
}

// writeVerdict names the first broken link, or what there is to be said where none is.
func (g *globals) writeVerdict(w io.Writer, steps []verify.Step, where string) {
	fmt.Fprintln(w)
	if b := verify.Broken(steps); b != nil {
		fmt.Fprintf(w, "%s%s: %s (%s)\n  %s\n  What to do: %s\n", g.paint(red, "Broken"), where, b.Name, b.Cause, b.Detail, b.Remedy)
	} else if u := verify.Unseen(steps); u != nil {
		fmt.Fprintf(w, "%s%s: %s; the rest was, as far as it does not depend on it, and nothing is broken\n  %s\n", g.paint(yellow, "Not looked at"), where, u.Name, u.Detail)
		if u.Remedy != "" {
			fmt.Fprintf(w, "  What to do: %s\n", u.Remedy)
		}
	} else {
		fmt.Fprintf(w, "%s%s\n", g.paint(green, "The whole way holds"), where)
	}
	for _, s := range steps {
		if s.State == verify.Warning {
			fmt.Fprintf(w, "%s%s: %s (%s)\n  %s\n  What to do: %s\n", g.paint(yellow, "Warning"), where, s.Name, s.Cause, s.Detail, s.Remedy)
		}
	}
}

// tableSteps are the columns of the table of nodes: a heading and the steps that it sums up.
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
		fmt.Fprintln(w, "\nthe cluster has no Windows nodes")
		return
	}
	fmt.Fprintln(w)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(table, "NODE")
	for _, column := range tableSteps {
		fmt.Fprint(table, "\t"+column.heading)
	}
	fmt.Fprintln(table)
	for _, n := range nodes {
		fmt.Fprint(table, n.Node)
		for _, column := range tableSteps {
			fmt.Fprint(table, "\t"+string(worst(n.Steps, column.steps)))
		}
		fmt.Fprintln(table)
	}
	_ = table.Flush() // w is a buffer
	for _, n := range nodes {
		if verify.Broken(n.Steps) != nil || verify.Unseen(n.Steps) != nil || hasWarning(n.Steps) {
			g.writeVerdict(w, n.Steps, " on node "+n.Node)
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

// worst sums some steps up; "" if there are none of them.
func worst(steps []verify.Step, names []string) verify.State {
	order := []verify.State{"", verify.OK, verify.Warning, verify.NotLookedAt, verify.NotReached, verify.Failed}
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
