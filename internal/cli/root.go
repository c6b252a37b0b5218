// Package cli is gmsactl's command line: what it takes, what it prints, and how it ends.
package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"
	"sigs.k8s.io/yaml"

	"github.com/ccgrkc/ccgrkc/internal/version"
)

// Forms of output.
const (
	outputText = "text"
	outputJSON = "json"
	outputYAML = "yaml"
)

// Streams are where gmsactl reads and writes.
type Streams struct {
	In          io.Reader
	Out, ErrOut io.Writer
}

// globals is what all commands share: the global flags, where to read and write, and how to print.
type globals struct {
	program string // gmsactl, or "kubectl gmsa", as examples and advice must call it
	config  *kubeFlags
	streams Streams
	output  string // outputText, outputJSON or outputYAML
	colour  bool
	ad      directoryFlags
}

type directoryFlags struct {
	servers   []string
	dnsServer string
	security  string
	caFile    string
	timeout   time.Duration
}

// Run runs the command line args, whose first is the program's name, and returns the exit code.
func Run(ctx context.Context, args []string, streams Streams) int {
	g := &globals{
		program: programName(args[0]),
		config:  newKubeFlags(),
		streams: streams,
		output:  outputText,
		colour:  hasColour(streams.Out),
	}
	root := newRoot(g)
	root.SetArgs(args[1:])
	root.SetIn(streams.In)
	root.SetOut(streams.Out)
	root.SetErr(streams.ErrOut)

	// cobra has no type for bad usage: it is every error that comes before a command runs.
	running := false
	markRunning(root, &running)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitGood
	}
	if !running {
		err = &failure{exitUsage, err}
	}
	code := exitCode(err)
	if text := err.Error(); text != "" {
		fmt.Fprintf(streams.ErrOut, "%s: %s\n", g.program, g.shown(text))
		if code == exitUsage {
			fmt.Fprintf(streams.ErrOut, "See %s --help\n", commandPath(root, args[1:]))
		}
	}
	return code
}

func newRoot(g *globals) *cobra.Command {
	root := &cobra.Command{
		Use:   "gmsactl",
		Short: "Makes, checks and mends what gMSA pods need",
		Long: `gmsactl makes credential specs from Active Directory, keeps the impersonation accounts' Secrets, and tells where the way from
a pod to its gMSA is broken. It runs on Linux, macOS and Windows and needs neither a domain-joined machine nor RSAT.

A release of the chart rancher-gmsa-account-provider is named <namespace>/<release>.

Exit codes: 0 all is well; 1 something is wrong with what was looked at; 2 bad usage; 3 it could not be looked at (the
cluster or a domain controller cannot be reached, or does not allow it).`,
		Version:           version.String(),
		Annotations:       map[string]string{cobra.CommandDisplayNameAnnotation: g.program},
		SilenceUsage:      true,
		SilenceErrors:     true,
		DisableAutoGenTag: true,
	}
	root.SetVersionTemplate("gmsactl {{.Version}}\n")
	// Without cobra's short form -v, which means verbosity to kubectl.
	root.Flags().Bool("version", false, "print the version of gmsactl")
	g.addGlobalFlags(root.PersistentFlags())
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{outputText, outputJSON, outputYAML}, cobra.ShellCompDirectiveNoFileComp))
	_ = root.RegisterFlagCompletionFunc("namespace", g.completeNamespaces)
	_ = root.RegisterFlagCompletionFunc("context", g.completeContexts)
	root.PersistentPreRunE = func(*cobra.Command, []string) error {
		if !slices.Contains([]string{outputText, outputJSON, outputYAML}, g.output) {
			return usagef("-o %s: use text, json or yaml", g.output)
		}
		return nil
	}
	root.SetUsageTemplate(root.UsageTemplate() + `{{if .Runnable}}
Use "` + g.program + ` options" for the rarer flags of the way to a cluster.
{{end}}`)
	for _, c := range commands {
		root.AddCommand(c(g))
	}
	root.AddCommand(newOptions(g), newVersion(g))
	return root
}

// Of the flags that kubectl has, help shows these; "options" shows all.
var shownFlags = []string{"kubeconfig", "context", "namespace", "output"}

func (g *globals) addGlobalFlags(flags *pflag.FlagSet) {
	g.config.add(flags)
	flags.StringVarP(&g.output, "output", "o", g.output, "form of the output: text, json or yaml")
	flags.VisitAll(func(f *pflag.Flag) { f.Hidden = !slices.Contains(shownFlags, f.Name) })
}

// addDirectoryFlags adds the flags that say how Active Directory is reached.
func (g *globals) addDirectoryFlags(c *cobra.Command) {
	f := c.Flags()
	f.StringSliceVar(&g.ad.servers, "dc", nil, "domain controller to ask, host name or address; can be given more than once (default: those that DNS names)")
	f.StringVar(&g.ad.dnsServer, "dns-server", "", "DNS server of the domain, address or address:port (default: this machine's)")
	f.StringVar(&g.ad.security, "ldap", "auto", "how the connection to a domain controller is protected: auto, kerberos, ldaps or starttls")
	f.StringVar(&g.ad.caFile, "ldap-ca", "", "PEM file with the CA of the domain controllers' certificates, for ldaps and starttls (default: this machine's CAs)")
	f.DurationVar(&g.ad.timeout, "timeout", 5*time.Second, "how long to wait for one answer of a domain controller")
	c.PreRunE = func(*cobra.Command, []string) error { // before anybody is asked for a password
		_, err := g.directoryConfig("")
		return err
	}
	_ = c.RegisterFlagCompletionFunc("ldap", cobra.FixedCompletions([]string{"auto", "kerberos", "ldaps", "starttls"}, cobra.ShellCompDirectiveNoFileComp))
}

// print renders v in the form that was asked for: as JSON or YAML of v itself, or as the text that text writes.
func (g *globals) print(v any, text func(w io.Writer)) error {
	var b bytes.Buffer
	if g.output == outputText {
		text(&b)
		_, err := io.WriteString(g.streams.Out, g.shown(b.String()))
		return err
	}
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return err
	}
	content := []byte(g.shown(b.String()))
	if g.output == outputYAML {
		// What is not escaped in JSON, such as U+009B, may not stand in YAML at all.
		var err error
		if content, err = yaml.JSONToYAML(content); err != nil {
			return err
		}
	}
	_, err := g.streams.Out.Write(content)
	return err
}

// own are the sequences that paint writes.
var own = regexp.MustCompile("^\x1b\\[(?:0|1|2|31|32|33)m")

// shown makes text fit for a terminal. Names and messages come from files, the cluster and Active Directory, and may hold
// sequences that clear the screen or turn the direction of writing. They are written as JSON escapes them, so that JSON
// means what it meant.
func (g *globals) shown(text string) string {
	var b strings.Builder
	for len(text) > 0 {
		if sequence := own.FindString(text); g.colour && sequence != "" {
			b.WriteString(sequence)
			text = text[len(sequence):]
			continue
		}
		r, n := utf8.DecodeRuneInString(text)
		switch {
		case r == '\n' || r == '\t':
			b.WriteRune(r)
		case unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r):
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
		text = text[n:]
	}
	return b.String()
}

// notef writes a line for the user's eyes to stderr, where it disturbs no output.
func (g *globals) notef(format string, args ...any) {
	fmt.Fprintln(g.streams.ErrOut, g.shown(fmt.Sprintf(format, args...)))
}

// warnf is notef for what may be wrong.
func (g *globals) warnf(format string, args ...any) {
	g.notef("warning: "+format, args...)
}

// Styles of paint: ECMA-48 SGR parameters.
const (
	bold   = "1"
	faint  = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
)

// paint returns the text in a style where stdout shows colours, and else as it is.
func (g *globals) paint(style, text string) string {
	if !g.colour {
		return text
	}
	return "\x1b[" + style + "m" + text + "\x1b[0m"
}

// hasColour follows no-color.org.
func hasColour(out io.Writer) bool {
	f, ok := out.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return false
	}
	// The old console of Windows shows the sequences themselves; Windows Terminal sets this.
	return runtime.GOOS != "windows" || os.Getenv("WT_SESSION") != ""
}

// programName returns how the user calls the program: kubectl runs its plugin "gmsa" as kubectl-gmsa.
func programName(arg0 string) string {
	name := strings.TrimSuffix(filepath.Base(arg0), ".exe")
	if name == "kubectl-gmsa" {
		return "kubectl gmsa"
	}
	return "gmsactl"
}

// examples returns the text with every "gmsactl" as the user calls the program.
func (g *globals) examples(text string) string {
	return strings.ReplaceAll(strings.Trim(text, "\n"), "gmsactl ", g.program+" ")
}

// group is a command that only holds others. cobra would print its help for a word that it does not know, and end well.
func group(c *cobra.Command) *cobra.Command {
	c.Args = func(c *cobra.Command, args []string) error {
		if len(args) > 0 {
			return usagef("unknown command %q for %q", args[0], c.CommandPath())
		}
		return nil
	}
	c.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
	return c
}

func markRunning(c *cobra.Command, running *bool) {
	if run := c.RunE; run != nil {
		c.RunE = func(cmd *cobra.Command, args []string) error {
			*running = true
			return run(cmd, args)
		}
	}
	for _, child := range c.Commands() {
		markRunning(child, running)
	}
}

// commandPath returns the command that args lead to, for a hint at its help.
func commandPath(root *cobra.Command, args []string) string {
	c, _, err := root.Find(args)
	if err != nil || c == nil {
		c = root
	}
	return c.CommandPath()
}

func newOptions(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "options",
		Short: "List the flags that every command takes",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			all := pflag.NewFlagSet("", pflag.ContinueOnError)
			all.SortFlags = true
			cmd.Root().PersistentFlags().VisitAll(func(f *pflag.Flag) {
				shown := *f
				shown.Hidden = false
				all.AddFlag(&shown)
			})
			fmt.Fprintf(g.streams.Out, "Every command takes these flags, which mean what they mean to kubectl:\n\n%s", all.FlagUsagesWrapped(110))
			return nil
		},
	}
}

func newVersion(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of gmsactl",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			v := struct {
				Version  string `json:"version"`
				Go       string `json:"go"`
				Platform string `json:"platform"`
			}{version.String(), runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}
			return g.print(v, func(w io.Writer) { fmt.Fprintf(w, "gmsactl %s (%s, %s)\n", v.Version, v.Go, v.Platform) })
		},
	}
}
