package cli

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/credspec"
	"github.com/ccgrkc/ccgrkc/internal/directory"
	"github.com/ccgrkc/ccgrkc/internal/doctor"
	"github.com/ccgrkc/ccgrkc/internal/verify"
)

// What the program does on a real control plane and with a real Active Directory is tested in lab/gmsactl.

// run runs gmsactl without a cluster.
func run(t *testing.T, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	none := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(none, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errOut bytes.Buffer
	code = Run(t.Context(), append([]string{"gmsactl", "--kubeconfig", none}, args...),
		Streams{strings.NewReader(stdin), &out, &errOut})
	return code, out.String(), errOut.String()
}

// Of a credential spec that somebody else wrote, of an event, of an LDAP answer: anything may stand in them.
func TestNothingFromElsewhereControlsTheTerminal(t *testing.T) {
	t.Parallel()
	const hostile = `{"CmsPlugins": ["ActiveDirectory"], "x\u001b]0;title\u0007\u009b2J\u202e\r": 1}`
	for _, form := range []string{outputText, outputJSON, outputYAML} {
		code, out, _ := run(t, hostile, "credspec", "check", "-", "-o", form)
		if form == outputYAML { // in which it does no harm beyond its line
			out = strings.ReplaceAll(out, "\u202e", "")
		}
		if code != exitFault || strings.ContainsAny(out, "\x1b\x07\u009b\u202e\r") {
			t.Errorf("%s: code %d, %q", form, code, out)
		}
		if !strings.Contains(out, "title") {
			t.Errorf("%s: what was found is not shown: %s", form, out)
		}
	}
	_, _, errOut := run(t, "", "credspec", "create", "--gmsa", "web01", "--account", "a\x1b[2J/b")
	if errOut == "" || strings.Contains(errOut, "\x1b") {
		t.Errorf("%q", errOut)
	}
}

func TestColoursOfOurOwnStay(t *testing.T) {
	t.Parallel()
	g := globals{color: true}
	if got, want := g.escapeForTerminal(g.paint(red, "a\x1b[5m\x1b")),
		"\x1b[31ma\\u001b[5m\\u001b\x1b[0m"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	g.color = false
	if got, want := g.escapeForTerminal("\x1b[31mä\n\tb"), "\\u001b[31mä\n\tb"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestAPasswordInAnArgumentIsNotRepeated(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"account", "create", "a/b", "m4rker"},
		{"account", "create", "a/b", "-pm4rker"},
		{"account", "rotate", "a/b", "--password=m4rker"},
		{"credspec", "create", "--gmsa", "x", "--account", "a/b", "-pm4rker"},
		{"credspec", "check", "x.yaml", "--password=m4rker"},
		{"verify", "x.yaml", "--username", "x", "-pm4rker"},
		{"verify", "x.yaml", "--username", "x", "--password=m4rker"},
	} {
		code, out, errOut := run(t, "", args...)
		if code != exitUsage || strings.Contains(out+errOut, "m4rker") || !strings.Contains(errOut, "--password-file") {
			t.Errorf("%q: code %d, %s%s", args, code, out, errOut)
		}
	}
}

// A cluster that cannot be reached says nothing against the files.
func TestFilesAreCheckedWithoutACluster(t *testing.T) {
	t.Parallel()
	code, out, errOut := run(t, `{"CmsPlugins": []}`, "credspec", "check", "web01", "-")
	if code != exitFault || !strings.Contains(out, "CmsPlugins") ||
		!strings.Contains(out, "GMSACredentialSpec web01: there is no kubeconfig") {
		t.Errorf("code %d, %s%s", code, out, errOut)
	}
}

// The attack: a credential spec from elsewhere names its author's domain, and who verifies it gives his own password.
// Only the domain that he names with --domain may be looked for, let alone be sent anything.
func TestACredentialSpecFromElsewhereDoesNotChooseWhereThePasswordGoes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	password, file := filepath.Join(dir, "password"), filepath.Join(dir, "evil.json")
	spec := credspec.New(credspec.Domain{SID: "S-1-5-21-1-2-3", GUID: "56d9b66c-d746-4f87-bd26-26760cfdca2e",
		DNSName: "evil.example.test", NetBIOSName: "EVIL", ForestDNSName: "evil.example.test"}, "web01", "a:b-creds")
	for name, content := range map[string][]byte{password: []byte("m4rker"), file: spec.JSON()} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	account := []string{"--username", "reader", "--password-file", password, "--timeout", "300ms"}
	for _, c := range []struct {
		args []string
		code int
		asks bool // for corp.example.test
		says string
	}{
		{[]string{"verify", file}, exitUsage, false, "--domain and --username go together"},
		{[]string{"verify", file, "--domain", "corp.example.test"}, exitIncomplete, true, "corp.example.test"},
		{[]string{"credspec", "check", file, "--online"}, exitUsage, false, "--domain and --username go together"},
		{[]string{"credspec", "check", file, "--online", "--domain", "corp.example.test"}, exitIncomplete, false,
			"domain evil.example.test: the account that was given is of corp.example.test"},
	} {
		// A DNS server that answers nothing tells who was looked for.
		dns, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		code, out, errOut := run(t, "", append(append(c.args, account...), "--dns-server", dns.LocalAddr().String())...)
		if code != c.code || !strings.Contains(out+errOut, c.says) || strings.Contains(out+errOut, "m4rker") {
			t.Errorf("%q: code %d, %s%s", c.args, code, out, errOut)
		}
		var asked []byte
		for packet := make([]byte, 1024); ; {
			if err := dns.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			n, _, err := dns.ReadFrom(packet)
			if err != nil {
				break
			}
			asked = append(asked, packet[:n]...)
		}
		_ = dns.Close()
		if bytes.Contains(asked, []byte("evil")) ||
			bytes.Contains(asked, []byte("\x04corp\x07example\x04test")) != c.asks {
			t.Errorf("%q asked for %q", c.args, asked)
		}
	}
}

func TestAFileIsVerifiedWithoutACluster(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	password, file := filepath.Join(dir, "password"), filepath.Join(dir, "web01.json")
	spec := credspec.New(credspec.Domain{SID: "S-1-5-21-1-2-3", GUID: "56d9b66c-d746-4f87-bd26-26760cfdca2e",
		DNSName: "corp.example.test", NetBIOSName: "CORP", ForestDNSName: "corp.example.test"}, "web01", "a:b-creds")
	for name, content := range map[string][]byte{password: []byte("m4rker"), file: spec.JSON()} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	states := func(args ...string) map[string]verify.Step {
		t.Helper()
		code, out, errOut := run(t, "", append([]string{"verify", file, "-o", "json", "--dc", "127.77.255.254"},
			args...)...)
		var r verify.Result
		if err := json.Unmarshal([]byte(out), &r); code != exitIncomplete || err != nil {
			t.Fatalf("code %d, %v: %s%s", code, err, out, errOut)
		}
		steps := map[string]verify.Step{}
		for _, s := range r.Steps {
			steps[s.Name] = s
		}
		for name, want := range map[string]verify.State{verify.StepSpec: verify.OK, verify.StepInput: verify.OK,
			verify.StepRelease: verify.Skipped, verify.StepSecret: verify.Skipped} {
			if s := steps[name]; s.State != want ||
				want == verify.Skipped && !strings.Contains(s.Detail, "there is no kubeconfig") {
				t.Errorf("%+v", s)
			}
		}
		return steps
	}
	// With an account, the domain is asked; here nobody is at its address.
	if s := states("--domain", "corp.example.test", "--username", "reader", "--password-file",
		password)[verify.StepBind]; s.Cause != "dc-unreachable" {
		t.Errorf("%+v", s)
	}
	if steps := states(); steps[verify.StepBind].Detail != "needs: "+verify.StepSecret ||
		!strings.Contains(steps[verify.StepSecret].Remedy, "--domain") {
		t.Errorf("%+v", steps)
	}
}

// One list says which causes are no fault of what was looked at.
func TestACauseHasTheSameCodeInAllCommands(t *testing.T) {
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
		if unable := code == exitIncomplete; unable != (len(k.result.Skipped) == 1) ||
			unable != verify.IsInconclusive(cause) || unable != strings.Contains(listed, "`"+cause.Name+"`") {
			t.Errorf("%s: code %d, unseen by credspec check %v, unable %t; docs/gmsactl.md: %s", cause.Name, code,
				k.result.Skipped, verify.IsInconclusive(cause), listed)
		}
	}
}

func TestABundleOverwritesNothing(t *testing.T) {
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
		t.Errorf("now it holds %q", content)
	}
	if _, err := os.Stat(filepath.Join(dir, "elsewhere")); err == nil {
		t.Error("the link was followed")
	}
}

func TestWhatCannotBeMeantIsToldWithWhatToWrite(t *testing.T) {
	t.Parallel()
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("m4rker"), 0o600); err != nil {
		t.Fatal(err)
	}
	create := []string{"credspec", "create", "--account", "a/b", "--domain", "corp.example.test", "--username",
		"reader", "--password-file", password, "--gmsa"}
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{append(create, ""), exitUsage, "name the gMSA"},
		{append(create, "web01", "--dc", "dc1:636"), exitUsage, "leave out the port 636"},
		{append(create, "web01", "--dc", "[::1]:636"), exitUsage, "leave out the port 636"},
		{append(create, "web01", "--dns-server", "dns.example.test"), exitUsage, "write its address"},
		{append(create, "web01", "--dns-server", "10.0.0.10:53", "--dc", "127.77.255.254"), exitIncomplete,
			"nothing listens"},
		{append(create, "web01", "--dns-server", "::1", "--dc", "127.77.255.254"), exitIncomplete, "nothing listens"},
		{[]string{"verify", "x.yaml", "--ldap", "plain"}, exitUsage, "write auto, kerberos, ldaps or starttls"},
		{[]string{"account", "create", "a/b", "--ldap-ca", password}, exitUsage, "no certificate in it"},
		{[]string{"account", "rotate", "a/b", "--timeout", "0"}, exitUsage, "greater than 0"},
		{[]string{"credspec", "check", "x.yaml", "--online", "--dc", "dc1:389"}, exitUsage, "leave out the port"},
		{[]string{"verify", "x.yaml", "--domain", "corp.example.test"}, exitUsage, "go together"},
		{[]string{"verify", "x.yaml", "--password-file", password}, exitUsage, "go together"},
		{[]string{"verify", "x.yaml", "--domain", "CORP", "--username", "x", "--password-file", password}, exitUsage,
			"NetBIOS"},
		{[]string{"verify"}, exitUsage, "name one credential spec"},
		{[]string{"verify", "web01"}, exitIncomplete, "there is no kubeconfig"},
		{[]string{"doctor"}, exitIncomplete, "there is no kubeconfig"},
	} {
		code, out, errOut := run(t, "", c.args...)
		if code != c.code || !strings.Contains(errOut, c.says) || out != "" {
			t.Errorf("%q: code %d, %s%s", c.args, code, out, errOut)
		}
	}
}
