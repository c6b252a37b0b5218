package gmsactl

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ccgrkc/ccgrkc/lab/labtest"
)

// reader creates a separate impersonation account for the test.
func reader(t *testing.T, ad *domain, password string) string {
	t.Helper()
	name := fmt.Sprintf("reader-%x", time.Now().UnixNano()&0xffffffff)
	must(t, ad.addReader(t.Context(), name, password))
	return name
}

func TestAccountCreateWritesVerifiedCredentials(t *testing.T) {
	t.Parallel()
	cp, ad := lab(t)
	ns := namespace(t, cp)
	p := newProgram(t, cp.Kubeconfig)
	p.file("pw", ad.Password+"\r\n")
	create := args("account create", ns+"/web --domain", ad.DNSName, "--username", ad.Reader,
		"--password-file pw --gmsa", ad.GMSA, ad.flags())

	r := p.want(good, []string{"The release " + ns + "/web does not exist yet",
		"helm install web ./charts/rancher-gmsa-account-provider --namespace " + ns}, create...)
	if want := fmt.Sprintf(
		"Secret %s/web-creds created: account %s of %s, verified with %s (kerberos), can read the password of gMSA %s\n", ns,
		ad.Reader, ad.DNSName, ad.DC, ad.GMSA); r.stdout != want {
		t.Errorf("stdout %q, want %q", r.stdout, want)
	}
	s := getSecret(t, cp, ns, "web-creds")
	if len(s.Data) != 3 || string(s.Data["domainName"]) != ad.DNSName || string(s.Data["username"]) != ad.Reader ||
		string(s.Data["password"]) != ad.Password {
		t.Error("the Secret does not hold the three values")
	}
	if s.Type != "Opaque" || len(s.Annotations) != 0 || len(s.Labels) != 1 ||
		s.Labels["app.kubernetes.io/managed-by"] != "gmsactl" {
		t.Errorf("type %s, annotations %v, labels %v", s.Type, s.Annotations, s.Labels)
	}
	p.want(good, nil, args("credspec create --gmsa", ad.GMSA, "--account", ns+"/web", ad.flags())...)

	p.want(wrong, []string{"Secret " + ns + "/web-creds already exists", "gmsactl account rotate " + ns + "/web"},
		create...)
	if again := getSecret(t, cp, ns, "web-creds"); again.ResourceVersion != s.ResourceVersion {
		t.Error("the Secret that existed was changed")
	}
}

func TestAccountCreateFindsTheSecretOfTheRelease(t *testing.T) {
	t.Parallel()
	cp, ad := lab(t)
	ns := namespace(t, cp)
	release(t, cp, ns, "web", "of-its-own")
	p := newProgram(t, cp.Kubeconfig)
	create := args("account create", ns+"/web --domain", ad.DNSName, "--username", ad.Reader,
		"--password-stdin -o json", ad.flags())

	r := p.wantWith(ad.Password, good, nil, create...)
	if r.stderr != "" {
		t.Errorf("stderr of a good run: %s", r.stderr)
	}
	v := decode[struct {
		Namespace, Secret, PluginInput, DomainName, Username, Action, DomainController, Security, GMSA string
		Verified                                                                                       bool
	}](t, r)
	if v.Namespace != ns || v.Secret != "of-its-own" || v.PluginInput != ns+":of-its-own" || v.Action != "created" ||
		!v.Verified || v.DomainController != ad.DC || v.Security != "kerberos" || v.GMSA != "" {
		t.Errorf("%+v", v)
	}
	if getSecret(t, cp, ns, "of-its-own") == nil {
		t.Error("no Secret")
	}
	p.wantWith(ad.Password, good, []string{"release " + ns + "/web uses the Secret of-its-own, not another"},
		append(create, "--secret", "another")...)
}

func TestAccountCreateRejectsWrongInput(t *testing.T) {
	t.Parallel()
	cp, ad := lab(t)
	ns := namespace(t, cp)
	p := newProgram(t, cp.Kubeconfig)
	p.file("pw", ad.Password)
	p.file("wrong", "not the password")
	p.file("empty", "\n")
	p.file("two-lines", "one\ntwo\n")
	p.file("utf-16", "\xff\xfea\x00")
	p.file("long", strings.Repeat("x", 2000))
	for _, c := range []struct {
		args string
		code int
		says []string
	}{
		{"NS/web --username READER --password-file wrong", wrong,
			[]string{"password is wrong", "Use the account's current password"}},
		{"NS/web --username nobody --password-file pw", wrong, []string{"no account of this name"}},
		{"NS/web --username READER --password-file pw --gmsa UNREADABLE", wrong, []string{"not allowed to read"}},
		{"NS/web --username READER --password-file pw --gmsa nobody", wrong, []string{"gMSA nobody"}},
		{`NS/web --username CORP\x --password-file pw`, usage, []string{"without DOMAIN"}},
		{"NS/web --username READER --password-file pw --domain CORP", usage, []string{"looks like a NetBIOS name"}},
		{"NS/web --username READER --password-file nothing", usage, []string{"--password-file"}},
		{"NS/web --username READER --password-file empty", usage, []string{"empty is empty"}},
		{"NS/web --username READER --password-file two-lines", usage, []string{"control character"}},
		{"NS/web --username READER --password-file utf-16", usage, []string{"byte order mark"}},
		{"NS/web --username READER --password-file long", usage, []string{"more than 1024 bytes"}},
		{"NS/web --username READER", usage, []string{"--password-file or --password-stdin"}},
		{"NS/web --password-file pw", usage, []string{"add --username"}},
		{"NS/web --username READER --password-file pw --password-stdin", usage, []string{"none of the others"}},
		{"NS/web --username READER --password-file pw --gmsa x --skip-ad-check", usage, []string{"none of the others"}},
		{"NS:web-creds --username READER --password-file pw", usage, []string{"specify the release: NS/web"}},
		{"web --username READER --password-file pw", usage, []string{"<namespace>/<release>"}},
		{"NS/Web --username READER --password-file pw", usage, []string{"<namespace>/<release>"}},
		{"no-such-namespace/web --username READER --password-file pw", wrong,
			[]string{"kubectl create namespace no-such-namespace"}},
		{"NS/web --username READER --password-file pw --dc 127.0.0.1", unable,
			[]string{"cannot be reached", "--skip-ad-check"}},
		{"", usage, []string{"specify the release"}},
	} {
		t.Run(c.args, func(t *testing.T) {
			replace := strings.NewReplacer("NS", ns, "UNREADABLE", ad.Unreadable, "READER", ad.Reader)
			run := append([]string{"account", "create"}, strings.Fields(replace.Replace(c.args))...)
			if !slices.Contains(run, "--dc") {
				run = append(run, "--dc", ad.DC)
			}
			if !slices.Contains(run, "--domain") {
				run = append(run, "--domain", ad.DNSName)
			}
			for i := range c.says {
				c.says[i] = replace.Replace(c.says[i])
			}
			p := *p
			p.t = t
			p.want(c.code, c.says, append(run, "--dns-server", ad.Address)...)
			if getSecret(t, cp, ns, "web-creds") != nil {
				t.Fatal("a Secret was written")
			}
		})
	}
	t.Run("no right", func(t *testing.T) {
		p := newProgram(t, kubeconfigOf(t, cp, ns))
		p.file("pw", ad.Password)
		p.want(unable, []string{"requires permission: create secrets in namespace " + ns},
			args("account create", ns+"/web --domain", ad.DNSName, "--username", ad.Reader, "--password-file pw",
				ad.flags())...)
	})
	t.Run("--skip-ad-check", func(t *testing.T) {
		p.want(good, []string{"warning: the password was not verified"},
			args("account create", ns+"/web --domain", ad.DNSName, "--username", ad.Reader,
				"--password-file wrong --skip-ad-check")...)
		if s := getSecret(t, cp, ns, "web-creds"); s == nil || string(s.Data["password"]) != "not the password" {
			t.Error("the Secret was not written")
		}
	})
}

func TestAPasswordOnTheCommandLineIsRejected(t *testing.T) {
	t.Parallel()
	labtest.Require(t)
	p := newProgram(t, "")
	const password = "hunter2-Passw0rd"
	for _, line := range [][]string{
		{"account", "create", "a/b", password},
		{"account", "create", "a/b", "--password", password},
		{"account", "create", "a/b", "--password=" + password},
		{"account", "rotate", "a/b", "-p" + password},
		{"account", "rotate", "a/b", password},
		{"credspec", "create", "--gmsa", "x", "--account", "a/b", "-p", password},
	} {
		r := p.want(usage, []string{"not accepted on the command line", "--password-file or --password-stdin"}, line...)
		if strings.Contains(r.stdout+r.stderr, "hunter2") {
			t.Errorf("%q repeats the password: %v", line, r)
		}
	}
}

func TestRotateWritesTheNewPasswordAndNothingElse(t *testing.T) {
	t.Parallel()
	cp, ad := lab(t)
	ns := namespace(t, cp)
	release(t, cp, ns, "web", "of-its-own")
	name := reader(t, ad, "Before-Passw0rd!")
	putSecret(t, cp, ns, "of-its-own", ad.DNSName, name, "Before-Passw0rd!")
	before := getSecret(t, cp, ns, "of-its-own")
	before.Labels = map[string]string{"mine": "yes"}
	before.Annotations = map[string]string{"mine": "yes",
		"kubectl.kubernetes.io/last-applied-configuration": `{"data":{"password":"old"}}`}
	before.Data["more"] = []byte("mine")
	_, err := cp.Client().CoreV1().Secrets(ns).Update(t.Context(), before, metav1.UpdateOptions{})
	must(t, err)
	p := newProgram(t, cp.Kubeconfig)
	rotate := args("account rotate", ns+"/web --password-stdin", ad.flags())

	p.wantWith("After-Passw0rd!", wrong, []string{"password is wrong"}, rotate...) // it is not the account's yet
	must(t, ad.setPassword(t.Context(), name, "After-Passw0rd!"))
	r := p.wantWith("After-Passw0rd!\n", good, []string{"within 5 seconds", "last-applied-configuration was removed"},
		append(rotate, "--gmsa", ad.GMSA)...)
	if !strings.HasPrefix(r.stdout, "Secret "+ns+"/of-its-own rotated: account "+name) {
		t.Errorf("stdout: %s", r.stdout)
	}
	after := getSecret(t, cp, ns, "of-its-own")
	if string(after.Data["password"]) != "After-Passw0rd!" || string(after.Data["domainName"]) != ad.DNSName ||
		string(after.Data["username"]) != name || string(after.Data["more"]) != "mine" {
		t.Error("the Secret's data are not the old ones with the new password")
	}
	if len(after.Annotations) != 1 || after.Annotations["mine"] != "yes" || after.Labels["mine"] != "yes" ||
		after.UID != before.UID {
		t.Errorf("annotations %v, labels %v", after.Annotations, after.Labels)
	}

	r = p.wantWith("After-Passw0rd!", good, nil, rotate...)
	if !strings.Contains(r.stdout, "unchanged") ||
		getSecret(t, cp, ns, "of-its-own").ResourceVersion != after.ResourceVersion {
		t.Errorf("the same password again changed something: %v", r)
	}

	t.Run("no Secret", func(t *testing.T) {
		p.want(wrong, []string{"the Secret " + ns + "/none-creds does not exist",
			"gmsactl account create " + ns + "/none"},
			args("account rotate", ns+"/none --password-stdin", ad.flags())...)
	})
	t.Run("a broken Secret", func(t *testing.T) {
		putSecret(t, cp, ns, "broken-creds", "CORP", name, "x")
		p.want(wrong, []string{"looks like a NetBIOS name", "kubectl delete secret broken-creds --namespace " + ns},
			args("account rotate", ns+"/broken --password-stdin", ad.flags())...)
	})
	t.Run("no right", func(t *testing.T) {
		p := newProgram(t, kubeconfigOf(t, cp, ns))
		p.want(unable, []string{"requires permission: get secrets/of-its-own in namespace " + ns},
			args("account rotate", ns+"/web --secret of-its-own --password-stdin", ad.flags())...)
	})
	t.Run("no right to update", func(t *testing.T) {
		p := newProgram(t, kubeconfigOf(t, cp, ns,
			rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"secrets"}, Verbs: []string{"get"}}))
		p.wantWith("Another-Passw0rd!", unable,
			[]string{"requires permission: update secrets/of-its-own in namespace " + ns},
			args("account rotate", ns+"/web --secret of-its-own --password-stdin --skip-ad-check")...)
	})
}

func TestRotateDoesNotOverwriteAConcurrentChange(t *testing.T) {
	t.Parallel()
	cp, ad := lab(t)
	ns := namespace(t, cp)
	putSecret(t, cp, ns, "web-creds", ad.DNSName, ad.Reader, "old")
	p := newProgram(t, cp.Kubeconfig)
	cmd, write := p.waiting(args("account rotate", ns+"/web --password-file pipe", ad.flags())...)
	// The program has read the Secret and waits for the password.
	putSecret(t, cp, ns, "web-creds", ad.DNSName, ad.Reader, "somebody else's")
	out := write(ad.Password)
	if cmd.ProcessState.ExitCode() != wrong || !strings.Contains(out, "changed by another client") {
		t.Errorf("exit code %d: %s", cmd.ProcessState.ExitCode(), out)
	}
	if got := string(getSecret(t, cp, ns, "web-creds").Data["password"]); got != "somebody else's" {
		t.Errorf("the Secret has %q", got)
	}
}

// waiting starts the program and returns when it reads its password from the named pipe "pipe". write writes the
// password, waits for the program and returns its output.
func (p *program) waiting(args ...string) (cmd *exec.Cmd, write func(password string) string) {
	p.t.Helper()
	pipe := filepath.Join(p.home, "pipe")
	must(p.t, syscall.Mkfifo(pipe, 0o600))
	cmd = p.command(args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	must(p.t, cmd.Start())
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); close(done) }()
	opened := make(chan *os.File, 1)
	go func() {
		f, err := os.OpenFile(pipe, os.O_WRONLY, 0) // until there is a reader
		if err == nil {
			opened <- f
		}
	}()
	select {
	case f := <-opened:
		return cmd, func(password string) string {
			_, err := io.WriteString(f, password)
			must(p.t, err)
			must(p.t, f.Close())
			<-done
			return out.String()
		}
	case <-done:
		p.t.Fatalf("it ended before it read its password: %s", out.String())
	case <-time.After(time.Minute):
		p.t.Fatalf("it did not read its password: %s", out.String())
	}
	return nil, nil
}

func TestThePasswordPromptHasNoEchoAndConfirms(t *testing.T) {
	t.Parallel()
	cp, ad := lab(t)
	ns := namespace(t, cp)
	p := newProgram(t, cp.Kubeconfig)

	typed := p.type_(args("account create", ns+"/web", ad.flags()),
		"DNS name of the domain: ", ad.DNSName, "Account name (sAMAccountName): ", ad.Reader,
		"Password of "+ad.Reader+" in "+ad.DNSName+": ", ad.Password, "Confirm password: ", ad.Password)
	if typed.code != good || strings.Contains(typed.stdout, ad.Password) || !strings.Contains(typed.stdout, "created") {
		t.Errorf("%v", typed)
	}
	if s := getSecret(t, cp, ns, "web-creds"); s == nil || string(s.Data["password"]) != ad.Password {
		t.Error("the Secret does not have what was typed")
	}

	typed = p.type_(args("account create", ns+"/two --domain", ad.DNSName, "--username", ad.Reader, ad.flags()),
		"Password of ", ad.Password, "Confirm password: ", "another")
	if typed.code != usage || !strings.Contains(typed.stdout, "the passwords differ") ||
		getSecret(t, cp, ns, "two-creds") != nil {
		t.Errorf("%v", typed)
	}

	typed = p.type_(args("credspec create --gmsa", ad.GMSA, "--plugin-input a:b --domain", ad.DNSName, "--username",
		ad.Reader, ad.flags()),
		"Password of ", ad.Password)
	if typed.code != good || strings.Contains(typed.stdout, ad.Password) ||
		!strings.Contains(typed.stdout, "PluginInput: a:b") {
		t.Errorf("%v", typed)
	}

	// Ctrl-C cancels the prompt and restores the echo.
	typed = p.type_(args("account create", ns+"/three --domain", ad.DNSName, "--username", ad.Reader, ad.flags()),
		"Password of ", "\x03")
	if typed.code != unable || !typed.echo {
		t.Errorf("after Ctrl-C: echo %t, %v", typed.echo, typed)
	}
}

// Passwords are only in the Secret and in Active Directory.
func TestThePasswordIsOnlyInTheSecret(t *testing.T) {
	t.Parallel()
	cp, ad := lab(t)
	ns := namespace(t, cp)
	const first, second = "M4rker-Erstes-Wort", "M4rker-Zweites-Wort"
	name := reader(t, ad, first)
	// The lab's audit log records the requests of ServiceAccounts.
	p := newProgram(t, kubeconfigOf(t, cp, ns,
		rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"secrets"},
			Verbs: []string{"get", "create", "update"}},
		rbacv1.PolicyRule{APIGroups: []string{"apps"}, Resources: []string{"daemonsets"}, Verbs: []string{"list"}},
	))
	clean := func(what, text string) {
		t.Helper()
		for _, form := range []string{"M4rker", "Wort", "TTRya2Vy", "TTRya2VyLUVyc3Rl", "\"M4r"} {
			if strings.Contains(text, form) {
				t.Errorf("%s holds %q:\n%s", what, form, text)
			}
		}
	}
	// run checks the program's command line and environment while it runs, and its output.
	run := func(password string, code int, line ...string) {
		t.Helper()
		cmd, write := p.waiting(line...)
		for _, file := range []string{"cmdline", "environ"} {
			content, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", cmd.Process.Pid, file))
			must(t, err)
			if len(content) == 0 {
				t.Errorf("/proc/…/%s is empty", file)
			}
			clean(file, string(content))
		}
		out := write(password)
		if got := cmd.ProcessState.ExitCode(); got != code {
			t.Errorf("%q: exit code %d, want %d: %s", line, got, code, out)
		}
		clean(strings.Join(line, " "), out)
		must(t, os.Remove(filepath.Join(p.home, "pipe")))
	}
	account := args("--password-file pipe", ad.flags())
	own := args("--domain", ad.DNSName, "--username", name, account)
	run(first+"-wrong", wrong, args("account create", ns+"/web", own)...)
	run(first, wrong, args("account create", ns+"/web --gmsa nobody", own)...)
	run(first, good, args("account create", ns+"/web", own)...)
	for _, form := range []string{"text", "json", "yaml"} {
		run(first, good, args("account rotate", ns+"/web -o", form, account)...)
		run(first, good, args("credspec create --gmsa", ad.GMSA, "--account", ns+"/web -o", form, own)...)
		clean("credspec create", p.want(good, nil,
			args("credspec create --gmsa", ad.GMSA, "--account", ns+"/web -o", form, ad.flags())...).String())
	}
	p.file("web.json", p.want(good, nil, args("credspec create --format docker --gmsa", ad.GMSA, "--account", ns+"/web",
		ad.flags())...).stdout)
	run(first, wrong, args("credspec check --online web.json", own)...) // there is no release
	for _, way := range []string{"ldaps", "starttls"} {
		run(first+"-wrong", wrong, args("account rotate", ns+"/web --ldap", way, "--ldap-ca", ad.CA, account)...)
	}
	must(t, ad.setPassword(t.Context(), name, second))
	run(second, good, args("account rotate", ns+"/web", account)...)
	// A message does not contain a password that is under the wrong key.
	putSecret(t, cp, ns, "swapped-creds", second, name, ad.DNSName)
	clean("a Secret whose keys are swapped",
		p.want(wrong, nil, args("credspec create --gmsa", ad.GMSA, "--account", ns+"/swapped", ad.flags())...).String())
	clean("a Secret whose keys are swapped",
		p.want(wrong, nil, args("account rotate --password-stdin", ns+"/swapped", ad.flags())...).String())

	s := getSecret(t, cp, ns, "web-creds")
	if string(s.Data["password"]) != second {
		t.Fatal("the Secret does not have the marker: this test shows nothing")
	}
	clean("the Secret's metadata", fmt.Sprint(s.ObjectMeta))
	audit, err := os.ReadFile(cp.AuditLog())
	must(t, err)
	if !bytes.Contains(audit, []byte(ns+"/secrets/web-creds")) {
		t.Error("the audit log has not seen the Secret: it shows nothing")
	}
	clean("the audit log", string(audit))
	log, err := os.ReadFile(cp.LogFile())
	must(t, err)
	clean("the control plane's log", string(log))
	must(t, filepath.WalkDir(p.home, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(path)
		clean(path, string(content))
		return err
	}))
}
