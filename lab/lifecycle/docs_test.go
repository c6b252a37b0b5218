package lifecycle

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ccgrkc/ccgrkc/lab/cluster"
	"github.com/ccgrkc/ccgrkc/lab/tools"
)

// Every command of docs/getting-started.md, as it stands there and in its order, in one shell on a directory that has only the
// charts. The image of the example's pod is a stand-in: the lab has no Windows to put into it.
func TestGettingStartedWordForWord(t *testing.T) {
	t.Parallel()
	c := start(t, "win-1", "win-2-16")
	must(t, c.PushEmptyImage(t.Context(), "windows/servercore:ltsc2022"))

	content, err := os.ReadFile(filepath.Join(filepath.Dir(cluster.Chart("")), "docs", "getting-started.md"))
	must(t, err)
	script := shellBlocks(string(content))
	if n := strings.Count(script, "helm "); n < 7 {
		t.Fatalf("only %d helm commands were found in the page", n)
	}

	home := t.TempDir()
	must(t, os.Symlink(cluster.Chart(""), filepath.Join(home, "charts")))
	programs := t.TempDir()
	must(t, os.Symlink(c.Program(tools.Helm4), filepath.Join(programs, "helm")))
	must(t, os.Symlink(c.Program(tools.Kubectl), filepath.Join(programs, "kubectl")))
	cmd := exec.CommandContext(t.Context(), "bash", "-euxo", "pipefail", "-c", script)
	cmd.Stdin = strings.NewReader("correct horse battery staple\na new password\n") // what the page asks its reader for
	cmd.Dir = home
	cmd.Env = append(c.Env(), "PATH="+programs+":/usr/bin:/bin", "HOME="+home)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, said := range []string{"the Secret: good", "the provider answers", "state: installed", "secret/web-creds replaced"} {
		if !strings.Contains(string(out), said) {
			t.Errorf("nothing said %q:\n%s", said, out)
		}
	}
	for _, n := range c.WindowsNodes() {
		nothingLeft(t, n)
	}
}

// shellBlocks is what stands between ```sh and ``` in a page.
func shellBlocks(page string) string {
	var script strings.Builder
	inside := false
	for line := range strings.Lines(page) {
		switch strings.TrimSpace(line) {
		case "```sh":
			inside = true
		case "```":
			inside = false
		default:
			if inside {
				script.WriteString(line)
			}
		}
	}
	return script.String()
}
