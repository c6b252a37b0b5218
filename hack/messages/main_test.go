package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/plugin/cause"
)

// The plugin reports an event by the identifier that cause.MessageID computes; windmc computes the one in the DLL.
func TestWindmcGivesEachMessageTheIdentifierThatThePluginReports(t *testing.T) {
	windmc, err := exec.LookPath("x86_64-w64-mingw32-windmc")
	if err != nil {
		if os.Getenv("CCGRKC_LAB") != "" {
			t.Fatal(err)
		}
		t.Skip("windmc (package binutils-mingw-w64-x86-64), which the DLL's build needs, is not installed")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "messages.mc"), []byte(messageFile(cause.All)), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(windmc, "messages.mc")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("windmc: %v\n%s", err, out)
	}
	header, err := os.ReadFile(filepath.Join(dir, "messages.h"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range cause.All {
		m := regexp.MustCompile(`#define ` + symbol(c) + `\s.*?(0x[0-9a-fA-F]+)`).FindSubmatch(header)
		if m == nil {
			t.Errorf("%s is not in the message table", c.Name)
			continue
		}
		if got, err := strconv.ParseUint(string(m[1]), 0, 32); err != nil || uint32(got) != c.MessageID() {
			t.Errorf("%s has the identifier %s in the table, is reported as 0x%X", c.Name, m[1], c.MessageID())
		}
	}
}

func TestEveryMessageOfAFailureShowsInputDetailAndRemedy(t *testing.T) {
	text := messageFile(cause.All)
	for _, c := range cause.All {
		_, message, ok := strings.Cut(text, "SymbolicName="+symbol(c)+"\n")
		if !ok {
			t.Errorf("%s has no message", c.Name)
			continue
		}
		message, _, _ = strings.Cut(message, "\n.\n")
		for _, part := range []string{c.Text, c.Remedy, "%2"} {
			if !strings.Contains(message, part) {
				t.Errorf("%s: %q is not in its message", c.Name, part)
			}
		}
		if c != cause.Loaded && !strings.Contains(message, "Plugin input: %1\n") {
			t.Errorf("%s: its message does not show the plugin input", c.Name)
		}
	}
}

func TestTheMarkdownTableHasARowOfSixCellsForEachCause(t *testing.T) {
	rows := strings.Split(strings.TrimSuffix(table(cause.All), "\n"), "\n")[2:]
	if len(rows) != len(cause.All) {
		t.Fatalf("%d rows for %d causes", len(rows), len(cause.All))
	}
	for i, c := range cause.All {
		if strings.Count(rows[i], "|") != 7 || !strings.Contains(rows[i], c.Name) || strings.Contains(rows[i], "<") {
			t.Errorf("row of %s: %s", c.Name, rows[i])
		}
		if c.HResult != 0 && !strings.Contains(rows[i], fmt.Sprintf("`0x%08X`", c.HResult)) {
			t.Errorf("row of %s lacks its HRESULT: %s", c.Name, rows[i])
		}
	}
}

func TestVersionsBecomeNumbersWhereTheyHaveSome(t *testing.T) {
	for version, want := range map[string]string{
		"v1.2.3": "FILEVERSION 1,2,3,0\n", "1.2.3-rc.1+x": "FILEVERSION 1,2,3,0\n", "": "FILEVERSION 0,0,0,0\n",
		"(devel) abc": "FILEVERSION 0,0,0,0\n",
	} {
		if got := resourceScript(version); !strings.Contains(got, want) {
			t.Errorf("%q: no %q in the script", version, want)
		}
	}
	if got := resourceScript(`a"b\c`); !strings.Contains(got, `VALUE "FileVersion", "a""b\\c"`) {
		t.Error("a version can break out of its string")
	}
}

// docs/errors.md holds the table as the code has it, and every problem code.
func TestTheDocumentationHoldsTheTable(t *testing.T) {
	doc, err := os.ReadFile("../../docs/errors.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(doc), "\n"+table(cause.All)) {
		t.Error("docs/errors.md has another table of causes: replace it by what go run ./hack/messages -markdown " +
			"prints")
	}
	for _, code := range credential.ProblemCodes {
		if !strings.Contains(string(doc), "\n| `"+string(code)+"` |") {
			t.Errorf("docs/errors.md has no row for the problem code %s", code)
		}
	}
}
