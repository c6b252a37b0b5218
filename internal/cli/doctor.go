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
)

func newDoctor(g *globals) *cobra.Command {
	var (
		allNamespaces, inside bool
		bundle                string
		timeout               time.Duration
	)
	c := &cobra.Command{
		Use:   "doctor [pod NAME | node NAME]",
		Short: "Tell what is wrong with the installation, and what to mend first",
		Long: `Reads what belongs to gMSAs in the cluster and lists what is wrong: what does not work before what may not work for long, and a cause
before what it causes. Each finding has the commands that go on from there. At the end stands what could not be looked at, and which
right is missing. Nothing is changed.

Without an argument it looks at the charts, their DaemonSets and Secrets, Windows nodes, credential specs, webhooks, and at the pods
with a gMSA of all namespaces, or of the one that -n names. "doctor pod" looks at one pod and all that it needs, "doctor node" at one
node, also from within, as verify --node does; --nodes does that for all Windows nodes.

--bundle packs the report and what it rests on into a file to be sent to others. It has no secret in it: of Secrets their names and what is
wrong with them, of pods no environment, command lines or annotations. It does have names: of nodes, pods, accounts and domains.`,
		Example: g.examples(`
  gmsactl doctor
  gmsactl doctor pod web-0 -n shop
  gmsactl doctor node win-1
  gmsactl doctor --nodes --bundle doctor.tgz`),
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 || len(args) == 2 && (args[0] == "pod" || args[0] == "node") {
				return nil
			}
			return fmt.Errorf("use no arguments, or: pod NAME, or: node NAME")
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			namespace, explicit, err := g.config.ToRawKubeConfigLoader().Namespace()
			if err != nil {
				return unablef("%w", kubeconfigError(err))
			}
			if allNamespaces && explicit && g.config.Namespace != nil && *g.config.Namespace != "" {
				return usagef("--namespace and --all-namespaces exclude each other")
			}
			scope := doctor.Scope{Fallback: namespace, Inside: inside, Timeout: timeout}
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
				return endWith(exitWrong)
			case len(report.Unseen) > 0:
				return endWith(exitUnable)
			}
			return nil
		},
	}
	f := c.Flags()
	f.BoolVarP(&allNamespaces, "all-namespaces", "A", false, "pods of all namespaces, which is the default without -n")
	f.BoolVar(&inside, "nodes", false, "look at all Windows nodes from within too")
	f.DurationVar(&timeout, "node-timeout", time.Minute, "how long one program on a node may take")
	f.StringVar(&bundle, "bundle", "", "write the report and what it rests on to this new file (.tgz)")
	_ = c.MarkFlagFilename("bundle", "tgz", "tar.gz")
	return c
}

// writeBundle writes for the user's eyes only: the file names accounts and nodes.
func (g *globals) writeBundle(name string, o *doctor.Objects, r *doctor.Report) error {
	plain := *g
	plain.colour = false
	var text, content bytes.Buffer
	plain.writeReport(&text, r)
	if err := doctor.WriteBundle(&content, o, r, []byte(plain.shown(text.String()))); err != nil {
		return err
	}
	// Nothing is overwritten, and no link followed that somebody else laid.
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return usagef("--bundle: %w", err)
	}
	if _, err = f.Write(content.Bytes()); err == nil {
		err = f.Close()
	}
	if err != nil {
		_, _ = f.Close(), os.Remove(name)
		return unablef("--bundle: %w", err)
	}
	g.notef("the report and what it rests on is in %s", name)
	return nil
}

func (g *globals) writeReport(w io.Writer, r *doctor.Report) {
	for i, f := range r.Findings {
		style := red
		if f.Severity == doctor.Warning {
			style = yellow
		}
		fmt.Fprintf(w, "%d. %s  %s  (%s)\n", i+1, g.paint(style, string(f.Severity)), g.paint(bold, f.Object), f.Code)
		fmt.Fprintf(w, "   %s\n", strings.ReplaceAll(f.Text, "\n", "\n   "))
		fmt.Fprintf(w, "   What to do: %s\n", f.Remedy)
		for _, c := range f.Commands {
			fmt.Fprintf(w, "     %s\n", c)
		}
		fmt.Fprintln(w)
	}
	if len(r.Findings) == 0 {
		fmt.Fprintf(w, "%s\n\n", g.paint(green, "Nothing wrong was found."))
	}
	if len(r.Unseen) > 0 {
		fmt.Fprintln(w, g.paint(yellow, "Not looked at:"))
		for _, u := range r.Unseen {
			fmt.Fprintf(w, "  %s\n", u)
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintf(w, "Looked at (%s): %s\n", r.Scope, strings.Join(r.Looked, "; "))
}
