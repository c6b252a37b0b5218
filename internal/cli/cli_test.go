package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/ccgrkc/ccgrkc/internal/apitest"
	"github.com/ccgrkc/ccgrkc/internal/credspec"
	"github.com/ccgrkc/ccgrkc/internal/directory"
	"github.com/ccgrkc/ccgrkc/internal/doctor"
	"github.com/ccgrkc/ccgrkc/internal/verify"
)

// The suite lab/suites/gmsactl tests the program with a real control plane and a real Active Directory.

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"gmsactl": func() {
		os.Exit(Run(context.Background(), os.Args, Streams{os.Stdin, os.Stdout, os.Stderr}))
	}})
}

func TestUsageErrorsNameTheFix(t *testing.T)                     { script(t, "usage") }
func TestAPasswordArgumentIsRejectedAndNotRepeated(t *testing.T) { script(t, "password-argument") }
func TestControlCharactersDoNotReachTheTerminal(t *testing.T)    { script(t, "terminal") }
func TestFilesAreCheckedWithoutACluster(t *testing.T)            { script(t, "no-cluster") }

// script runs testdata/<name>.txt.
func script(t *testing.T, name string) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Files: []string{filepath.Join("testdata", name+".txt")},
		Setup: func(e *testscript.Env) error { e.Setenv("ESC", "\x1b"); return nil },
		Cmds:  map[string]func(*testscript.TestScript, bool, []string){"exits": exits},
	})
}

// exits runs a program and checks its exit code. A usage error must print nothing on stdout. An argument with spaces,
// such as a variable, becomes several arguments.
func exits(ts *testscript.TestScript, _ bool, args []string) {
	var words []string
	for _, arg := range args[2:] {
		if strings.Contains(arg, " ") {
			words = append(words, strings.Fields(arg)...)
		} else {
			words = append(words, arg)
		}
	}
	err := ts.Exec(args[1], words...)
	code := "0"
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code = strconv.Itoa(exit.ExitCode())
	}
	if code != args[0] {
		ts.Fatalf("exit code %s, want %s", code, args[0])
	}
	if stdout := ts.ReadFile("stdout"); code == "2" && stdout != "" {
		ts.Fatalf("stdout of a usage error: %s", stdout)
	}
}

// run runs gmsactl without a cluster.
func run(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	none := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(none, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errOut bytes.Buffer
	args = append([]string{"gmsactl", "--kubeconfig", none}, args...)
	code = Run(t.Context(), args, Streams{strings.NewReader(""), &out, &errOut})
	return code, out.String(), errOut.String()
}

// A credential spec from an untrusted source contains its author's domain. The password must go only to the domain in
// --domain. gmsactl must not even look up the author's domain.
func TestACredentialSpecDoesNotChooseWhoReceivesThePassword(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	password, file := filepath.Join(dir, "password"), filepath.Join(dir, "evil.json")
	domain := credspec.Domain{
		SID:           "S-1-5-21-1-2-3",
		GUID:          "56d9b66c-d746-4f87-bd26-26760cfdca2e",
		DNSName:       "evil.example.test",
		NetBIOSName:   "EVIL",
		ForestDNSName: "evil.example.test",
	}
	spec := credspec.New(domain, "web01", "a:b-creds")
	for name, content := range map[string][]byte{password: []byte("m4rker"), file: spec.JSON()} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	account := []string{"--username", "reader", "--password-file", password, "--timeout", "300ms"}
	for _, c := range []struct {
		args    []string
		code    int
		queries bool // corp.example.test
		want    string
	}{
		{[]string{"verify", file}, exitUsage, false, "must be used together"},
		{[]string{"verify", file, "--domain", "corp.example.test"}, exitIncomplete, true, "corp.example.test"},
		{[]string{"credspec", "check", file, "--online"}, exitUsage, false, "must be used together"},
		{[]string{"credspec", "check", file, "--online", "--domain", "corp.example.test"}, exitIncomplete, false,
			"domain evil.example.test: the account in --username belongs to corp.example.test"},
	} {
		// A DNS server that never answers records the queries.
		dns, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		code, out, errOut := run(t, append(append(c.args, account...), "--dns-server", dns.LocalAddr().String())...)
		if code != c.code || !strings.Contains(out+errOut, c.want) || strings.Contains(out+errOut, "m4rker") {
			t.Errorf("%q: code %d, %s%s", c.args, code, out, errOut)
		}
		var queries []byte
		for packet := make([]byte, 1024); ; {
			if err := dns.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			n, _, err := dns.ReadFrom(packet)
			if err != nil {
				break
			}
			queries = append(queries, packet[:n]...)
		}
		_ = dns.Close()
		if bytes.Contains(queries, []byte("evil")) ||
			bytes.Contains(queries, []byte("\x04corp\x07example\x04test")) != c.queries {
			t.Errorf("%q queried %q", c.args, queries)
		}
	}
}

func TestACauseHasTheSameExitCodeInAllCommands(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/gmsactl.md")
	if err != nil {
		t.Fatal(err)
	}
	_, listed, _ := strings.Cut(string(page), "<!-- code 3 -->")
	listed, _, _ = strings.Cut(listed, "\n\n")
	for _, cause := range directory.Causes {
		code := exitCode(directoryError(&directory.Error{Cause: cause}))
		var k checker
		k.directoryProblem(nil, "", "", &directory.Error{Cause: cause})
		if inconclusive := code == exitIncomplete; inconclusive != (len(k.result.Skipped) == 1) ||
			inconclusive != verify.IsInconclusive(cause) ||
			inconclusive != strings.Contains(listed, "`"+cause.Name+"`") {
			t.Errorf("%s: code %d, skipped by credspec check: %v, inconclusive: %t; docs/gmsactl.md: %s", cause.Name,
				code,
				k.result.Skipped, verify.IsInconclusive(cause), listed)
		}
	}
}

func TestABundleOverwritesNoFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	if err := os.WriteFile(file, []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(dir, "elsewhere"), link); err != nil {
		t.Fatal(err)
	}
	g := globals{streams: Streams{ErrOut: &bytes.Buffer{}}}
	for _, name := range []string{file, link} {
		err := g.writeBundle(name, &doctor.Objects{}, &doctor.Report{})
		if err == nil || exitCode(err) != exitUsage || !strings.Contains(err.Error(), "exists") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if content, _ := os.ReadFile(file); string(content) != "mine" {
		t.Errorf("the file now contains %q", content)
	}
	if _, err := os.Stat(filepath.Join(dir, "elsewhere")); err == nil {
		t.Error("gmsactl followed the link")
	}
}

func TestInterfaceMatchesGoldenFile(t *testing.T) {
	g := &globals{program: "gmsactl", config: newKubeFlags(), output: outputText}
	var causes strings.Builder
	for _, c := range directory.Causes {
		fmt.Fprintln(&causes, "cause", c.Name, exitCode(&directory.Error{Cause: c}))
	}
	apitest.Compare(t, apitest.Commands(newRoot(g)),
		fmt.Sprintln("exit codes: ok", exitOK, "fault", exitFault, "usage", exitUsage, "incomplete", exitIncomplete),
		apitest.Fields(accountResult{}), apitest.Fields(applyResult{}), apitest.Fields(checkResult{}),
		apitest.Fields(versionResult{}), causes.String())
}
