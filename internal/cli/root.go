// Package cli is gmsactl's command line: flags, output and exit codes.
package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"
	"sigs.k8s.io/yaml"

	"github.com/ccgrkc/ccgrkc/internal/escape"
	"github.com/ccgrkc/ccgrkc/internal/version"
)

// Output formats.
const (
	outputText = "text"
	outputJSON = "json"
	outputYAML = "yaml"
)

// Streams are the standard streams.
type Streams struct {
	In          io.Reader
	Out, ErrOut io.Writer
}

// globals is the state that all commands share.
type globals struct {
	program string // gmsactl or "kubectl gmsa", for examples and remedies
	config  *kubeFlags
	streams Streams
	output  string // outputText, outputJSON or outputYAML
	color   bool
	ad      directoryFlags
}

type directoryFlags struct {
	servers   []string
	dnsServer string
	security  string
	caFile    string
	timeout   time.Duration
}

// Run runs a command line and returns the exit code. args[0] is the program's name.
func Run(ctx context.Context, args []string, streams Streams) int {
	g := &globals{
		program: programName(args[0]),
		config:  newKubeFlags(),
		streams: streams,
		output:  outputText,
		color:   hasColor(streams.Out),
	}
	root := newRoot(g)
	root.DisableSuggestions, root.SuggestionsMinimumDistance = true, 2 // see writeHint
	root.SetArgs(args[1:])
	root.SetIn(streams.In)
	root.SetOut(streams.Out)
	root.SetErr(streams.ErrOut)

	// cobra has no type for usage errors. Every error before a command runs is one.
	running := false
	markRunning(root, &running)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	if !running {
		err = &exitError{exitUsage, err}
	}
	code := exitCode(err)
	if text := escape.Error(err); text != "" {
		escape.Fprintf(streams.ErrOut, "%s: %s\n", g.program, text)
		if code == exitUsage {
			writeHint(streams.ErrOut, root, args[1:])
		}
	}
	return code
}

// writeHint refers to the help of the command in args, or to the commands that args can mean.
func writeHint(w io.Writer, root *cobra.Command, args []string) {
	c, _, err := root.Find(args)
	if err == nil {
		escape.Fprintf(w, "See %s --help\n", c.CommandPath())
		return
	}
	for _, name := range root.SuggestionsFor(args[0]) {
		escape.Fprintf(w, "Did you mean %s %s?\n", root.CommandPath(), name)
	}
	escape.Fprintf(w, "See %s --help\n", root.CommandPath())
}

func newRoot(g *globals) *cobra.Command {
	root := &cobra.Command{
		Use:   "gmsactl",
		Short: "Manage and diagnose gMSAs for Windows pods",
		Long: `gmsactl creates credential specs from Active Directory, manages the Secrets of impersonation accounts,
and diagnoses pods that cannot use their gMSA. It runs on Linux, macOS and Windows. The machine does not have to be in
the domain.

Commands identify a release of the chart rancher-gmsa-account-provider as <namespace>/<release>.

Exit codes:
  0  all checks passed
  1  a check failed
  2  usage error
  3  no check failed, but some were skipped: a server is unreachable or a permission is missing`,
		Version:           version.String(),
		Annotations:       map[string]string{cobra.CommandDisplayNameAnnotation: g.program},
		SilenceUsage:      true,
		SilenceErrors:     true,
		DisableAutoGenTag: true,
	}
	root.SetVersionTemplate("gmsactl {{.Version}}\n")
	// cobra would add the short form -v, which means verbosity in kubectl.
	root.Flags().Bool("version", false, "print the version of gmsactl")
	g.addGlobalFlags(root.PersistentFlags())
	outputs := []string{outputText, outputJSON, outputYAML}
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(outputs, cobra.ShellCompDirectiveNoFileComp))
	_ = root.RegisterFlagCompletionFunc("namespace", g.completeNamespaces)
	_ = root.RegisterFlagCompletionFunc("context", g.completeContexts)
	root.PersistentPreRunE = func(*cobra.Command, []string) error {
		if !slices.Contains(outputs, g.output) {
			return usagef("-o %s: use text, json or yaml", g.output)
		}
		return nil
	}
	root.SetUsageTemplate(root.UsageTemplate() + `{{if .Runnable}}
Use "` + g.program + ` options" for all flags of the cluster connection.
{{end}}`)
	for _, c := range commands {
		root.AddCommand(c(g))
	}
	root.AddCommand(newOptions(g), newVersion(g))
	return root
}

// helpFlags are the global flags that help shows. The command options shows all.
var helpFlags = []string{"kubeconfig", "context", "namespace", "output"}

func (g *globals) addGlobalFlags(flags *pflag.FlagSet) {
	g.config.add(flags)
	flags.StringVarP(&g.output, "output", "o", g.output, "output format: text, json or yaml")
	flags.VisitAll(func(f *pflag.Flag) { f.Hidden = !slices.Contains(helpFlags, f.Name) })
}

// addDirectoryFlags adds the flags for the connection to Active Directory.
func (g *globals) addDirectoryFlags(c *cobra.Command) {
	f := c.Flags()
	f.StringSliceVar(&g.ad.servers, "dc", nil,
		"host name or address of a domain controller; can be repeated (default: from DNS)")
	f.StringVar(&g.ad.dnsServer, "dns-server", "",
		"DNS server of the domain, as address or address:port (default: this machine's DNS server)")
	f.StringVar(&g.ad.security, "ldap", "auto",
		"protection of the LDAP connection: auto, kerberos, ldaps or starttls")
	f.StringVar(&g.ad.caFile, "ldap-ca", "",
		"PEM file with the CA of the domain controllers, for ldaps and starttls (default: this machine's CAs)")
	f.DurationVar(&g.ad.timeout, "timeout", 5*time.Second, "timeout of one request to a domain controller")
	c.PreRunE = func(*cobra.Command, []string) error { // before the prompt for a password
		_, err := g.directoryConfig("")
		return err
	}
	protections := []string{"auto", "kerberos", "ldaps", "starttls"}
	_ = c.RegisterFlagCompletionFunc("ldap", cobra.FixedCompletions(protections, cobra.ShellCompDirectiveNoFileComp))
}

// print writes v as JSON or YAML, or the output of text, depending on --output. text prints with escape.Fprintf.
func (g *globals) print(v any, text func(w io.Writer)) error {
	switch g.output {
	case outputJSON:
		return escape.WriteJSON(g.streams.Out, v, "  ")
	case outputYAML:
		object, err := json.Marshal(v)
		if err != nil {
			return err
		}
		document, err := yaml.JSONToYAML([]byte(escape.Value(string(object))))
		if err != nil {
			return err
		}
		return g.writeYAML(document, object)
	}
	var b bytes.Buffer
	text(&b)
	_, err := g.streams.Out.Write(b.Bytes())
	return err
}

// writeYAML writes a YAML document. object is the same as JSON. If a value must be escaped, it writes the JSON, which
// is YAML, too: outside of double quotes, YAML has no escapes.
func (g *globals) writeYAML(document, object []byte) error {
	text := string(document)
	hasBreak := strings.Contains(strings.ReplaceAll(string(object), `\\`, ""), `\n`)
	if hasBreak || escape.Lines(text, escape.Value) != text {
		var indented bytes.Buffer
		if err := json.Indent(&indented, object, "", "  "); err != nil {
			return err
		}
		// The escapes of Value are those of YAML. JSON writes characters above U+FFFF differently.
		text = escape.Lines(indented.String(), escape.Value) + "\n"
	}
	_, err := io.WriteString(g.streams.Out, text)
	return err
}

// notef writes a note to stderr.
func (g *globals) notef(format string, args ...any) {
	escape.Fprintf(g.streams.ErrOut, "%s\n", escape.Sprintf(format, args...))
}

// warnf writes a warning to stderr.
func (g *globals) warnf(format string, args ...any) {
	g.notef("warning: "+format, args...)
}

// The styles of paint, as ECMA-48 SGR parameters.
const (
	bold   = "1"
	faint  = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
)

// paint escapes text, and adds a style to it if stdout shows colors.
func (g *globals) paint(style, text string) escape.Text {
	escaped := escape.Sprintf("%s", text)
	if !g.color {
		return escaped
	}
	return "\x1b[" + escape.Text(style) + "m" + escaped + "\x1b[0m"
}

// hasColor follows no-color.org.
func hasColor(out io.Writer) bool {
	f, ok := out.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return false
	}
	// The old Windows console does not interpret the sequences. Windows Terminal does, and sets WT_SESSION.
	return runtime.GOOS != "windows" || os.Getenv("WT_SESSION") != ""
}

// programName returns the command that the user typed. kubectl runs its plugin gmsa as kubectl-gmsa.
func programName(arg0 string) string {
	name := strings.TrimSuffix(filepath.Base(arg0), ".exe")
	if name == "kubectl-gmsa" {
		return "kubectl gmsa"
	}
	return "gmsactl"
}

// examples replaces "gmsactl" in text with the command that the user typed.
func (g *globals) examples(text string) string {
	return strings.ReplaceAll(strings.Trim(text, "\n"), "gmsactl ", g.program+" ")
}

// group makes c a command that only has subcommands. For an unknown subcommand, cobra would print help and exit with 0.
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

func newOptions(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "options",
		Short: "List the global flags",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			all := pflag.NewFlagSet("", pflag.ContinueOnError)
			all.SortFlags = true
			cmd.Root().PersistentFlags().VisitAll(func(f *pflag.Flag) {
				visible := *f
				visible.Hidden = false
				all.AddFlag(&visible)
			})
			escape.Fprintf(g.streams.Out, "Global flags, with the same meaning as in kubectl:\n\n%s",
				all.FlagUsagesWrapped(110))
			return nil
		},
	}
}

// versionResult is the output of version.
type versionResult struct {
	Version  string `json:"version"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func newVersion(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of gmsactl",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			v := versionResult{version.String(), runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}
			return g.print(v, func(w io.Writer) {
				escape.Fprintf(w, "gmsactl %s (%s, %s)\n", v.Version, v.Go, v.Platform)
			})
		},
	}
}
