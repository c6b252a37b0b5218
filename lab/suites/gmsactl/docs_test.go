package gmsactl

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ccgrkc/ccgrkc/lab/env/tools"
	"github.com/ccgrkc/ccgrkc/lab/env/winnode"
	"github.com/ccgrkc/ccgrkc/lab/labtest"
)

// script runs shell lines in the program's directory. In a separate mount namespace, the domain's DNS server is the
// machine's.
func (p *program) script(ad *domain, lines string) result {
	p.t.Helper()
	kubectl, err := tools.Path(p.t.Context(), tools.Kubectl, os.Stderr)
	must(p.t, err)
	bin := filepath.Join(p.home, "bin")
	must(p.t, os.MkdirAll(bin, 0o700))
	for name, path := range map[string]string{"kubectl": kubectl, "gmsactl": filepath.Join(winnode.Dist(), "gmsactl")} {
		if err := os.Symlink(path, filepath.Join(bin, name)); err != nil && !os.IsExist(err) {
			p.t.Fatal(err)
		}
	}
	p.file("resolv.conf", "nameserver "+ad.Address+"\n")
	q := *p
	q.prefix = []string{"unshare", "--mount", "bash", "-euo", "pipefail", "-c",
		"mount --bind resolv.conf /etc/resolv.conf\nset -x\n" + lines, "script"}
	cmd := q.command()
	for i, v := range cmd.Env {
		if path, ok := strings.CutPrefix(v, "PATH="); ok {
			cmd.Env[i] = "PATH=" + bin + ":" + path
		}
	}
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if _, exited := err.(*exec.ExitError); !exited {
			p.t.Fatal(err)
		}
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// The page's commands use fixed names, so the test has a separate control plane.
func TestTheDocsWordForWord(t *testing.T) {
	t.Parallel()
	_, ad := lab(t)
	cp := labtest.ControlPlane(t)
	must(t, installCRD(t.Context(), cp))
	page, err := os.ReadFile(filepath.Join(winnode.Dist(), "..", "docs", "gmsactl.md"))
	must(t, err)
	commands := labtest.ShellBlocks(between(string(page), "## account create", "## verify"))
	if n := strings.Count(commands, "gmsactl "); n < 8 {
		t.Fatalf("only %d commands were found in the page", n)
	}
	p := newProgram(t, cp.Kubeconfig)
	p.file("password.txt", ad.Password+"\n")
	r := p.script(ad, commands)
	if r.code != good {
		t.Fatal(r)
	}
	// The output on the page is the real output.
	for _, block := range []string{"Secret gmsa-system/web-creds created: ", "Secret gmsa-system/web-creds unchanged: ",
		"GMSACredentialSpec web01 created: "} {
		for line := range strings.Lines(string(page)) {
			if strings.HasPrefix(line, "    "+block) && !strings.Contains(r.stdout, strings.TrimSpace(line)) {
				t.Errorf("the page shows %s; there was:\n%s", line, r.stdout)
			}
		}
	}
	if n := strings.Count(r.stdout, ": ok"); n < 4 {
		t.Errorf("%d valid credential specs: %v", n, r)
	}
}

func TestTheExamplesOfHelpRunAsPrinted(t *testing.T) {
	t.Parallel()
	_, ad := lab(t)
	cp := labtest.ControlPlane(t)
	must(t, installCRD(t.Context(), cp))
	must(t, cp.CreateNamespace(t.Context(), "gmsa-system"))
	release(t, cp, "gmsa-system", "web", "web-creds")
	p := newProgram(t, cp.Kubeconfig)
	p.file("password.txt", ad.Password)
	// In this order, one example creates what the next one requires. Other tests run the examples with a prompt.
	var lines []string
	for _, command := range []string{"account create", "account rotate", "credspec create", "credspec check"} {
		help := p.want(good, nil, append(strings.Fields(command), "--help")...).stdout
		examples := 0
		for line := range strings.Lines(between(help, "Examples:\n", "\nFlags:")) {
			line = strings.TrimSpace(line)
			if line == "" || strings.HasPrefix(line, "#") {
				continue
			}
			examples++
			if strings.HasPrefix(line, "gmsactl account") && !strings.Contains(line, "--password-file") {
				continue
			}
			lines = append(lines, line)
		}
		if examples < 2 {
			t.Errorf("%s has %d examples", command, examples)
		}
	}
	if r := p.script(ad, strings.Join(lines, "\n")); r.code != good {
		t.Error(r)
	}
}

// credspec create takes less than half a second.
func TestCreateIsQuick(t *testing.T) {
	cp, ad := lab(t)
	ns := namespace(t, cp)
	putSecret(t, cp, ns, "web-creds", ad.DNSName, ad.Reader, ad.Password)
	p := newProgram(t, cp.Kubeconfig)
	p.file("pw", ad.Password)
	for what, line := range map[string][]string{
		"from a release": args("credspec create --gmsa", ad.GMSA, "--account", ns+"/web", ad.flags()),
		"without a cluster": args("credspec create --gmsa", ad.GMSA, "--account a/b --domain", ad.DNSName, "--username",
			ad.Reader, "--password-file pw", ad.flags()),
	} {
		// The best of five, because other tests run at the same time.
		best := p.took(line)
		for range 4 {
			best = min(best, p.took(line))
		}
		t.Logf("credspec create %s: %s", what, best)
		if best.Milliseconds() >= 500 {
			t.Errorf("%s: %s", what, best)
		}
	}
}

// between returns the text between two marks.
func between(text, from, to string) string {
	_, text, _ = strings.Cut(text, from)
	text, _, _ = strings.Cut(text, to)
	return text
}
