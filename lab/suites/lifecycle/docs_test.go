package lifecycle

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/lab/env/ad"
	"github.com/ccgrkc/ccgrkc/lab/env/cluster"
	"github.com/ccgrkc/ccgrkc/lab/labtest"
)

// The test runs all commands of docs/getting-started.md, unchanged and in their order, in one shell, in a directory
// that has only the charts. The image of the example's pod is empty, because the lab has no Windows image.
func TestGettingStartedWordForWord(t *testing.T) {
	t.Parallel()
	c := start(t, "win-1", "win-2-16")
	labtest.Must(t, c.PushEmptyImage(t.Context(), "windows/servercore:ltsc2022"))

	content, err := os.ReadFile(filepath.Join(filepath.Dir(cluster.Chart("")), "docs", "getting-started.md"))
	labtest.Must(t, err)
	script := labtest.ShellBlocks(string(content))
	if n := strings.Count(script, "helm "); n < 7 {
		t.Fatalf("found only %d helm commands in the page", n)
	}

	labtest.Must(t, c.StartAD(t.Context()))
	corp := c.AD[0]

	// A shell with the domain's DNS server and a terminal, because gmsactl reads the password, twice, only from a
	// terminal.
	run := func(script string, password credential.Password) string {
		t.Helper()
		keyboard, terminal := labtest.Terminal(t)
		_, err := keyboard.WriteString(strings.Repeat(string(password.Reveal())+"\n", 2))
		labtest.Must(t, err)
		cmd, err := c.Shell(t.Context(), "set -x\n"+script)
		labtest.Must(t, err)
		cmd.Stdin = terminal
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return string(out)
	}
	const change = "## Change the password"
	before, after, found := strings.Cut(string(content), change)
	if !found {
		t.Fatalf("the page has no section %q", change)
	}
	out := run(labtest.ShellBlocks(before), corp.Reader.Password)
	labtest.Must(t, corp.SetPassword(t.Context(), corp.Reader.Username, ad.NewPassword()))
	out += run(labtest.ShellBlocks(after), corp.Reader.Password)
	for _, want := range []string{
		"web-creds created",
		"GMSACredentialSpec web01 created",
		"All checks passed",
		"pod/web condition met",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in the output:\n%s", want, out)
		}
	}
	for _, n := range c.WindowsNodes() {
		checkClean(t, n)
	}
}
