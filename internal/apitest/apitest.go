// Package apitest compares the machine-readable interface of a program with a golden file: commands, flags, exit codes,
// metrics and JSON fields. Scripts rely on these names, so a change must be deliberate. "go test -update" rewrites the
// file.
package apitest

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

var update = flag.Bool("update", false, "rewrite testdata/api.golden")

// Compare compares the parts with testdata/api.golden of the calling package.
func Compare(t *testing.T, parts ...string) {
	t.Helper()
	got, path := strings.Join(parts, "\n"), filepath.Join("testdata", "api.golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the interface differs from %s; if that is intended, run go test -update.\ngot:\n%s\nwant:\n%s", path,
			got, want)
	}
}

// Commands lists a command, its subcommands, and their flags with type and default. Hidden ones are omitted.
func Commands(c *cobra.Command) string {
	var b strings.Builder
	fmt.Fprintln(&b, "command", c.CommandPath())
	c.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) { writeFlag(&b, f) })
	c.PersistentFlags().VisitAll(func(f *pflag.Flag) { writeFlag(&b, f) })
	for _, sub := range c.Commands() {
		if !sub.Hidden && sub.Name() != "help" && sub.Name() != "completion" {
			b.WriteString(Commands(sub))
		}
	}
	return b.String()
}

// Flags lists the flags of a program without subcommands.
func Flags(flags *pflag.FlagSet) string {
	var b strings.Builder
	flags.VisitAll(func(f *pflag.Flag) { writeFlag(&b, f) })
	return b.String()
}

func writeFlag(b *strings.Builder, f *pflag.Flag) {
	if f.Hidden || f.Name == "help" || f.Name == "version" {
		return
	}
	name := "--" + f.Name
	if f.Shorthand != "" {
		name = "-" + f.Shorthand + ", " + name
	}
	fmt.Fprintf(b, "  %s %s (default %q)\n", name, f.Value.Type(), f.DefValue)
}

var (
	series    = regexp.MustCompile(`(?m)^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{[^}]*\})?`)
	buildInfo = regexp.MustCompile(`(version|goversion)="[^"]*"`)
)

// Metrics lists the series, with labels, of a text in the Prometheus exposition format. Versions are replaced.
func Metrics(exposition string) string {
	var all []string
	for _, m := range series.FindAllString(exposition, -1) {
		all = append(all, "metric "+buildInfo.ReplaceAllString(m, `$1="*"`)+"\n")
	}
	slices.Sort(all)
	return strings.Join(slices.Compact(all), "")
}

// Fields lists the JSON fields of a struct type, nested ones included.
func Fields(v any) string {
	t := reflect.TypeOf(v)
	return "json " + t.String() + "\n" + fields(t, "  ")
}

func fields(t reflect.Type, indent string) string {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return ""
	}
	var b strings.Builder
	for i := range t.NumField() {
		f := t.Field(i)
		tag := f.Tag.Get("json")
		switch {
		case f.Anonymous && tag == "":
			b.WriteString(fields(f.Type, indent))
		case f.IsExported() && tag != "-":
			if tag == "" {
				tag = f.Name
			}
			fmt.Fprintf(&b, "%s%s %s\n%s", indent, tag, f.Type, fields(f.Type, indent+"  "))
		}
	}
	return b.String()
}
