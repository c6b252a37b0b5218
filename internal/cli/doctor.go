package cli

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ccgrkc/ccgrkc/internal/doctor"
	"github.com/ccgrkc/ccgrkc/internal/escape"
)

func newDoctor(g *globals) *cobra.Command {
	var (
		allNamespaces, allNodes bool
		bundle                  string
		timeout                 time.Duration
	)
	c := &cobra.Command{
		Use:   "doctor [pod NAME | node NAME]",
		Short: "Diagnose the installation",
		Long: `Checks all objects in the cluster that belong to gMSAs and lists the faults. Errors precede warnings,
and causes precede their effects. Each finding has a remedy and commands. The report ends with skipped checks and
missing permissions. The command changes nothing.

Without an argument, the command checks the charts, their DaemonSets and Secrets, Windows nodes, credential specs,
webhooks, and pods that use a gMSA. It checks the pods of all namespaces. With -n, it checks those of one namespace.
"doctor pod" checks one pod and the objects that it requires. "doctor node" checks one node and runs programs on it,
as verify --node does. --all-nodes runs them on all Windows nodes.

--bundle writes the report and the objects that it is based on to a file, which you can send to others. The file
contains no secrets, and no environment variables, command lines or annotations of pods. It contains the names of
Secrets, nodes, pods, accounts and domains, and reports which keys of the Secrets are missing or invalid.`,
		Example: g.examples(`
  gmsactl doctor
  gmsactl doctor pod web-0 -n shop
  gmsactl doctor node win-1
  gmsactl doctor --all-nodes --bundle doctor.tgz`),
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 || len(args) == 2 && (args[0] == "pod" || args[0] == "node") {
				return nil
			}
			return fmt.Errorf("use no arguments, pod NAME, or node NAME")
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			namespace, explicit, err := g.config.ToRawKubeConfigLoader().Namespace()
			if err != nil {
				return incompletef("%w", kubeconfigError(err))
			}
			if allNamespaces && explicit && g.config.Namespace != nil && *g.config.Namespace != "" {
				return usagef("--namespace and --all-namespaces cannot be used together")
			}
			scope := doctor.Scope{Fallback: namespace, CheckNodes: allNodes, Timeout: timeout}
			if g.config.Namespace != nil {
				scope.Namespace = *g.config.Namespace
			}
			if len(args) == 2 && args[0] == "pod" {
				scope.Pod, scope.Namespace = args[1], namespace
			} else if len(args) == 2 {
				scope.Node = args[1]
			}
			cluster, err := g.inventory()
			if err != nil {
				return err
			}
			objects, err := doctor.Collect(cmd.Context(), cluster, g.program, scope)
			if err != nil {
				return err
			}
			report := doctor.Diagnose(objects)
			if bundle != "" {
				if err := g.writeBundle(bundle, objects, report); err != nil {
					return err
				}
			}
			if err := g.print(report, func(w io.Writer) { g.writeReport(w, report) }); err != nil {
				return err
			}
			switch {
			case len(report.Findings) > 0:
				return exitWith(exitFault)
			case len(report.Skipped) > 0:
				return exitWith(exitIncomplete)
			}
			return nil
		},
	}
	f := c.Flags()
	f.BoolVarP(&allNamespaces, "all-namespaces", "A", false, "check the pods of all namespaces (default without -n)")
	f.BoolVar(&allNodes, "all-nodes", false, "run programs on all Windows nodes, too")
	f.DurationVar(&timeout, "node-timeout", time.Minute, "timeout of one program on a node")
	f.StringVar(&bundle, "bundle", "", "write the report and the objects that it is based on to this new file (.tgz)")
	_ = c.MarkFlagFilename("bundle", "tgz", "tar.gz")
	return c
}

// writeBundle writes a file that only the user can read, because it contains names of accounts and nodes.
func (g *globals) writeBundle(name string, o *doctor.Objects, r *doctor.Report) error {
	plain := *g
	plain.color = false
	var text, content bytes.Buffer
	plain.writeReport(&text, r)
	if err := doctor.WriteBundle(&content, o, r, text.Bytes()); err != nil {
		return err
	}
	// O_EXCL does not overwrite files and does not follow links of other users.
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return usagef("--bundle: %w", err)
	}
	if _, err = f.Write(content.Bytes()); err == nil {
		err = f.Close()
	}
	if err != nil {
		_, _ = f.Close(), os.Remove(name)
		return incompletef("--bundle: %w", err)
	}
	g.notef("Wrote the report and the objects that it is based on to %s.", name)
	return nil
}

func (g *globals) writeReport(w io.Writer, r *doctor.Report) {
	for i, f := range r.Findings {
		style := red
		if f.Severity == doctor.Warning {
			style = yellow
		}
		severity := g.paint(style, string(f.Severity))
		escape.Fprintf(w, "%d. %s  %s  (%s)\n", i+1, severity, g.paint(bold, f.Object), f.Code)
		escape.Fprintf(w, "   %s\n", f.Text)
		escape.Fprintf(w, "   Remedy: %s\n", f.Remedy)
		for _, c := range f.Commands {
			escape.Fprintf(w, "     %s\n", c)
		}
		escape.Fprintf(w, "\n")
	}
	if len(r.Findings) == 0 {
		escape.Fprintf(w, "%s\n\n", g.paint(green, "No faults found."))
	}
	if len(r.Skipped) > 0 {
		escape.Fprintf(w, "%s\n", g.paint(yellow, "Skipped:"))
		for _, u := range r.Skipped {
			escape.Fprintf(w, "  %s\n", u)
		}
		escape.Fprintf(w, "\n")
	}
	escape.Fprintf(w, "Checked (%s): %s\n", r.Scope, strings.Join(r.Checked, "; "))
}
