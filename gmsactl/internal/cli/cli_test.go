package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ccgrkc/ccgrkc/gmsactl/internal/doctor"
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
	code = Run(t.Context(), append([]string{"gmsactl", "--kubeconfig", none}, args...), Streams{strings.NewReader(stdin), &out, &errOut})
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
		if code != exitWrong || strings.ContainsAny(out, "\x1b\x07\u009b\u202e\r") {
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
	g := globals{colour: true}
	if got, want := g.shown(g.paint(red, "a\x1b[5m\x1b")), "\x1b[31ma\\u001b[5m\\u001b\x1b[0m"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	g.colour = false
	if got, want := g.shown("\x1b[31mä\n\tb"), "\\u001b[31mä\n\tb"; got != want {
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
	if code != exitWrong || !strings.Contains(out, "CmsPlugins") || !strings.Contains(out, "GMSACredentialSpec web01: there is no kubeconfig") {
		t.Errorf("code %d, %s%s", code, out, errOut)
	}
}

// A password that was given for one domain goes to no other that a credential spec names.
func TestThePasswordOfOneDomainIsNotSentToAnother(t *testing.T) {
	t.Parallel()
	spec := func(domain string) string {
		return `{"CmsPlugins": ["ActiveDirectory"], "DomainJoinConfig": {"DnsName": "` + domain + `"}, "ActiveDirectoryConfig": {"HostAccountConfig":
			{"PortableCcgVersion": "1", "PluginGUID": "{E4781092-F116-4B79-B55E-28EB6A224E26}", "PluginInput": "a:` + domain + `"}}}`
	}
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("m4rker"), 0o600); err != nil {
		t.Fatal(err)
	}
	// Nobody is at the address: what was tried is told by domain.
	_, out, _ := run(t, spec("one.example.test")+spec("two.example.test"), "credspec", "check", "-", "--online", "--username", "reader",
		"--password-file", password, "--dc", "127.77.255.254")
	if !strings.Contains(out, "Active Directory as reader of one.example.test") || strings.Contains(out, "reader of two.example.test") ||
		!strings.Contains(out, "domain two.example.test: the password was given for one.example.test") {
		t.Errorf("%s", out)
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
	create := []string{"credspec", "create", "--account", "a/b", "--domain", "corp.example.test", "--username", "reader", "--password-file", password, "--gmsa"}
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{append(create, ""), exitUsage, "name the gMSA"},
		{append(create, "web01", "--dc", "dc1:636"), exitUsage, "leave out the port 636"},
		{append(create, "web01", "--dc", "[::1]:636"), exitUsage, "leave out the port 636"},
		{append(create, "web01", "--dns-server", "dns.example.test"), exitUsage, "write its address"},
		{append(create, "web01", "--dns-server", "10.0.0.10:53", "--dc", "127.77.255.254"), exitUnable, "nothing listens"},
		{append(create, "web01", "--dns-server", "::1", "--dc", "127.77.255.254"), exitUnable, "nothing listens"},
		{[]string{"verify", "x.yaml", "--ldap", "plain"}, exitUsage, "write auto, kerberos, ldaps or starttls"},
		{[]string{"account", "create", "a/b", "--ldap-ca", password}, exitUsage, "no certificate in it"},
		{[]string{"account", "rotate", "a/b", "--timeout", "0"}, exitUsage, "greater than 0"},
		{[]string{"credspec", "check", "x.yaml", "--online", "--dc", "dc1:389"}, exitUsage, "leave out the port"},
		{[]string{"verify"}, exitUsage, "name one credential spec"},
		{[]string{"verify", "web01"}, exitUnable, "there is no kubeconfig"},
		{[]string{"doctor"}, exitUnable, "there is no kubeconfig"},
	} {
		code, out, errOut := run(t, "", c.args...)
		if code != c.code || !strings.Contains(errOut, c.says) || out != "" {
			t.Errorf("%q: code %d, %s%s", c.args, code, out, errOut)
		}
	}
}
