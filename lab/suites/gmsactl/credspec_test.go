package gmsactl

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/ccgrkc/ccgrkc/internal/credspec"
	"github.com/ccgrkc/ccgrkc/lab/labtest"
)

func args(list ...any) []string {
	var all []string
	for _, l := range list {
		switch l := l.(type) {
		case string:
			all = append(all, strings.Fields(l)...)
		case []string:
			all = append(all, l...)
		}
	}
	return all
}

func readOne(t *testing.T, content string) credspec.Document {
	t.Helper()
	docs, err := credspec.Read([]byte(content))
	if err != nil || len(docs) != 1 {
		t.Fatalf("%d credential specs, %v:\n%s", len(docs), err, content)
	}
	return docs[0]
}

func TestCheckAcceptsTheOutputOfCreate(t *testing.T) {
	t.Parallel()
	cp, ad := lab(t)
	ns := namespace(t, cp)
	release(t, cp, ns, "web", "a-name-of-its-own")
	putSecret(t, cp, ns, "a-name-of-its-own", ad.DNSName, ad.Reader, ad.Password)
	p := newProgram(t, cp.Kubeconfig)

	r := p.want(good, nil, args("credspec create --gmsa", ad.GMSA, "--account", ns+"/web", ad.flags())...)
	if r.stderr != "" {
		t.Errorf("stderr of a good run: %s", r.stderr)
	}
	d := readOne(t, r.stdout)
	if d.Name != ad.GMSA || len(d.Problems) > 0 {
		t.Errorf("name %q, problems %v", d.Name, d.Problems)
	}
	j := d.Spec.DomainJoinConfig
	if j.DnsName != ad.DNSName || j.DnsTreeName != ad.DNSName || j.NetBiosName != ad.NetBIOS ||
		j.MachineAccountName != ad.GMSA {
		t.Errorf("%+v", j)
	}
	if !regexp.MustCompile(`^S-1-5-21-\d+-\d+-\d+$`).MatchString(j.Sid) {
		t.Errorf("SID %s", j.Sid)
	}
	if got, want := d.Spec.ActiveDirectoryConfig.HostAccountConfig.PluginInput, ns+":a-name-of-its-own"; got != want {
		t.Errorf("PluginInput %s, want %s", got, want)
	}

	p.file("web.yaml", r.stdout)
	p.want(good, []string{"web.yaml (" + ad.GMSA + "): ok"}, args("credspec check web.yaml --online", ad.flags())...)
}

func TestAllFormatsOfCreateAreEquivalent(t *testing.T) {
	t.Parallel()
	_, ad := lab(t)
	p := newProgram(t, "") // no cluster
	p.file("pw", ad.Password+"\n")
	create := args("credspec create --account gmsa-system/web --gmsa", ad.GMSA+"$", "--domain", ad.DNSName,
		"--username", ad.Reader, ad.flags())
	fromFile := append(slices.Clone(create), "--password-file", "pw")

	first := readOne(t, p.want(good, nil, fromFile...).stdout)
	for _, more := range []string{"-o yaml", "-o json", "--format docker", "--format docker -o json",
		"--format docker -o yaml", "--plugin-input"} {
		t.Run(more, func(t *testing.T) {
			run := args(fromFile, more)
			if more == "--plugin-input" {
				i := slices.Index(run, "--account")
				run = args(slices.Delete(run, i, i+2), "gmsa-system:web-creds")
			}
			r := p.want(good, nil, run...)
			d := readOne(t, r.stdout)
			if string(d.Spec.JSON()) != string(first.Spec.JSON()) || len(d.Problems) > 0 {
				t.Errorf("%s\n%v\nwant %s", d.Spec.JSON(), d.Problems, first.Spec.JSON())
			}
			if isJSON := strings.HasPrefix(r.stdout, "{"); isJSON != (strings.HasSuffix(more, "json") ||
				strings.HasSuffix(more, "docker")) {
				t.Errorf("JSON: %t\n%s", isJSON, r.stdout)
			}
		})
	}
	fromStdin := p.wantWith(ad.Password, good, nil,
		append(slices.Clone(create), "--password-stdin", "--name", "another")...)
	if d := readOne(t, fromStdin.stdout); d.Name != "another" {
		t.Errorf("name %q", d.Name)
	}
}

func TestCreateSupportsEveryLDAPProtection(t *testing.T) {
	t.Parallel()
	_, ad := lab(t)
	p := newProgram(t, "")
	p.file("pw", ad.Password)
	for _, way := range []string{"kerberos", "ldaps", "starttls", "auto"} {
		p.want(good, nil, args("credspec create --account a/b --gmsa", ad.GMSA, "--domain", ad.DNSName, "--username",
			ad.Reader, "--password-file pw --ldap", way, "--ldap-ca", ad.CA, ad.flags())...)
	}
}

func TestCreateReportsErrorsWithRemedies(t *testing.T) {
	t.Parallel()
	cp, ad := lab(t)
	ns := namespace(t, cp)
	putSecret(t, cp, ns, "good-creds", ad.DNSName, ad.Reader, ad.Password)
	putSecret(t, cp, ns, "stale-creds", ad.DNSName, ad.Reader, "not the password")
	putSecret(t, cp, ns, "broken-creds", ad.NetBIOS, ad.Reader, ad.Password)
	admin := newProgram(t, cp.Kubeconfig)
	admin.file("pw", ad.Password)
	admin.file("no-certificate", "x")
	create := func(more string) []string {
		all := args("credspec create --gmsa", ad.GMSA, strings.ReplaceAll(more, "NS", ns), "--dns-server", ad.Address)
		if !slices.Contains(all, "--dc") {
			all = append(all, "--dc", ad.DC)
		}
		return all
	}
	for _, c := range []struct {
		more string
		code int
		says []string
	}{
		{"--account NS/stale", wrong, []string{"password is wrong", "Use the account's current password"}},
		{"--account NS/broken", wrong, []string{`key "domainName" looks like a NetBIOS name`}},
		{"--account NS/missing", wrong, []string{"the Secret " + ns + "/missing-creds does not exist",
			"gmsactl account create " + ns + "/missing"}},
		{"--account NS/good --gmsa nobody", wrong, []string{"gMSA nobody", "Get-ADServiceAccount"}},
		{"--account NS/good --gmsa " + ad.Unreadable, wrong, []string{"not allowed to read", "Set-ADServiceAccount"}},
		{"--account NS/good --dc 127.0.0.1", unable, []string{"cannot be reached"}},
		{"--account NS:good-creds", usage, []string{"is a plugin input; specify the release: " + ns + "/good"}},
		{"--account good", usage, []string{"specify <namespace>/<release>"}},
		{"", usage, []string{"account", "plugin-input"}},
		{"--account NS/good --plugin-input a:b", usage, []string{"none of the others can be"}},
		{"--account NS/good --domain corp.example.com", usage,
			[]string{"--domain and --username must be used together"}},
		{"--account NS/good --format yaml", usage, []string{"use kubernetes or docker"}},
		{"--account NS/good --format docker --apply", usage, []string{"--apply"}},
		{"--account NS/good --name Not_A_Name", usage, []string{"--name"}},
		{"--account NS/good --ldap plain", usage, []string{"--ldap"}},
		{"--account NS/good --ldap-ca no-certificate", usage, []string{"contains no certificate"}},
		{"--account NS/good --ldap-ca nothing", usage, []string{"--ldap-ca"}},
		{"--account NS/good --timeout 0s", usage, []string{"--timeout"}},
		{"--account a/b --domain corp.example.com --username x --password-file nothing", usage,
			[]string{"--password-file"}},
		{"--account a/b --domain corp.example.com --username x", usage,
			[]string{"cannot prompt for password of x in corp.example.com: standard input is not a terminal; use --password-file or --password-stdin"}},
		{"--account a/b --domain CORP --username x --password-file pw", usage, []string{"looks like a NetBIOS name"}},
	} {
		t.Run(c.more, func(t *testing.T) {
			if r := admin.want(c.code, c.says, create(c.more)...); r.stdout != "" {
				t.Errorf("something was printed as if it were a credential spec: %s", r.stdout)
			}
		})
	}

	t.Run("--skip-read-check", func(t *testing.T) {
		r := admin.want(good, nil, create("--account NS/good --skip-read-check --gmsa "+ad.Unreadable)...)
		if d := readOne(t, r.stdout); d.Spec.GMSAName() != ad.Unreadable {
			t.Errorf("gMSA %s", d.Spec.GMSAName())
		}
	})
	t.Run("no right to the Secret", func(t *testing.T) {
		p := newProgram(t, kubeconfigOf(t, cp, ns))
		p.want(unable, []string{"requires permission: get secrets/good-creds in namespace " + ns,
			"--domain, --username and --password-file"}, create("--account NS/good")...)
	})
	t.Run("right to the Secret alone", func(t *testing.T) {
		p := newProgram(t, kubeconfigOf(t, cp, ns,
			rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"secrets"},
				ResourceNames: []string{"good-creds"}, Verbs: []string{"get"}}))
		p.want(good, []string{"requires permission: list daemonsets.apps in namespace " + ns},
			create("--account NS/good")...)
	})
	t.Run("a token that is no longer good", func(t *testing.T) {
		path := kubeconfigOf(t, cp, ns)
		content, err := os.ReadFile(path)
		must(t, err)
		must(t, os.WriteFile(path, regexp.MustCompile(`token: .*`).ReplaceAll(content, []byte("token: x")), 0o600))
		newProgram(t, path).want(unable, []string{"log in again"}, create("--account NS/good")...)
	})
	t.Run("no cluster", func(t *testing.T) {
		newProgram(t, "").want(unable, nil, create("--account NS/good")...)
	})
	t.Run("a cluster that does not answer", func(t *testing.T) {
		admin.want(unable, []string{"cluster is unreachable"},
			create("--account NS/good --server https://127.0.0.1:1")...)
	})
}

func TestApplyWritesToTheCluster(t *testing.T) {
	t.Parallel()
	cp, ad := lab(t)
	ns := namespace(t, cp)
	release(t, cp, ns, "web", "web-creds")
	putSecret(t, cp, ns, "web-creds", ad.DNSName, ad.Reader, ad.Password)
	p := newProgram(t, cp.Kubeconfig)
	name := "applied-" + ns
	create := args("credspec create --apply --gmsa", ad.GMSA, "--account", ns+"/web --name", name, ad.flags())

	if r := p.want(good, []string{"use permission for gmsacredentialspecs/" + name},
		create...); r.stdout != "GMSACredentialSpec "+name+" created: gMSA "+ad.GMSA+", "+ns+":web-creds\n" {
		t.Errorf("stdout: %s", r.stdout)
	}
	r := p.want(good, nil, append(create, "-o", "json")...)
	if v := decode[struct{ Name, GMSA, PluginInput string }](t, r); v.Name != name || v.GMSA != ad.GMSA ||
		v.PluginInput != ns+":web-creds" {
		t.Errorf("%+v", v)
	}
	client, err := dynamicClient(cp)
	must(t, err)
	u, err := client.Resource(specs).Get(t.Context(), name, metav1.GetOptions{})
	must(t, err)
	content, err := u.MarshalJSON()
	must(t, err)
	if d := readOne(t, string(content)); len(d.Problems) > 0 || d.Spec.GMSAName() != ad.GMSA {
		t.Errorf("%+v", d)
	}
	if f := u.GetManagedFields(); len(f) != 1 || f[0].Manager != "gmsactl" {
		t.Errorf("field managers: %v", f)
	}
	p.want(good, []string{name + ": ok"}, args("credspec check --online", name, ad.flags())...)

	t.Run("another manager's fields are left alone", func(t *testing.T) {
		must(t, unstructured.SetNestedField(u.Object, "other", "credspec", "DomainJoinConfig", "NetBiosName"))
		_, err := client.Resource(specs).Update(t.Context(), u, metav1.UpdateOptions{FieldManager: "somebody"})
		must(t, err)
		p.want(wrong, []string{"conflict with \"somebody\"", "kubectl apply --server-side --force-conflicts"},
			create...)
	})
	t.Run("no right", func(t *testing.T) {
		p := newProgram(t, kubeconfigOf(t, cp, ns,
			rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"secrets"}, Verbs: []string{"get"}}))
		p.want(unable, []string{"requires permission: patch gmsacredentialspecs.windows.k8s.io in the whole cluster"},
			create...)
	})
}

func TestAMissingCRDIsReportedWithItsInstallation(t *testing.T) {
	t.Parallel()
	_, ad := lab(t)
	cp := labtest.ControlPlane(t)
	p := newProgram(t, cp.Kubeconfig)
	p.file("pw", ad.Password)
	p.want(wrong, []string{"gmsacredentialspecs.windows.k8s.io is not installed", "kubectl apply -f https://"},
		args("credspec create --apply --gmsa", ad.GMSA, "--account a/b --domain", ad.DNSName, "--username", ad.Reader,
			"--password-file pw", ad.flags())...)
	p.want(wrong, []string{"gmsacredentialspecs.windows.k8s.io is not installed"}, "credspec", "check", "web01")
}

func TestCheckListsProblemsAndSetsTheExitCode(t *testing.T) {
	t.Parallel()
	cp, _ := lab(t)
	p := newProgram(t, cp.Kubeconfig)
	goodSpec := credspec.New(credspec.Domain{SID: "S-1-5-21-1-2-3", GUID: "56d9b66c-d746-4f87-bd26-26760cfdca2e",
		DNSName: "corp.example.com", NetBIOSName: "CORP", ForestDNSName: "example.com"}, "web01",
		"gmsa-system:web-creds")
	object, err := credspec.Object("web01", goodSpec)
	must(t, err)
	p.file("good.yaml", string(object))
	p.file("good", string(goodSpec.JSON())) // a file by being there
	warned := strings.Replace(string(object), "NetBiosName: CORP", "NetBiosName: KORP", 1)
	p.file("warned.yaml", warned)
	p.file("bad.yaml", strings.Replace(string(object), "Sid: S-1-5-21-1-2-3", "Sid: S-1-5-21-1-2-3-1105",
		1)+"---\n"+warned)
	p.file("no.yaml", "a: [")

	for _, c := range []struct {
		args string
		code int
		says []string
	}{
		{"good.yaml good", good, []string{"good.yaml (web01): ok", "good: ok"}},
		{"warned.yaml", good, []string{"warning",
			"credspec.ActiveDirectoryConfig.GroupManagedServiceAccounts[1].Scope"}},
		{"warned.yaml --strict", wrong, nil},
		{"good.yaml --strict", good, nil},
		{"bad.yaml", wrong, []string{"error    credspec.DomainJoinConfig.Sid: is",
			"write the domain's SID, S-1-5-21-1-2-3, without the -1105"}},
		{"good.yaml no.yaml", wrong, []string{"good.yaml (web01): ok", "neither JSON nor YAML"}},
		{"nothing.yaml good.yaml", unable, []string{"skipped: file nothing.yaml", "good.yaml (web01): ok"}},
		{"nothing.yaml bad.yaml", wrong, []string{"skipped: file nothing.yaml"}},
		{"no-such-name", wrong, []string{"no-such-name", "does not exist in the cluster", "./no-such-name"}},
		{"", usage, []string{"specify a file"}},
		{"good.yaml --username x", usage, []string{"--online"}},
		{"good.yaml --online --password-file x", usage, []string{"--domain and --username must be used together"}},
		{"good.yaml --online --username x --password-file x", usage,
			[]string{"--domain and --username must be used together"}},
		{"- --online --domain corp.example.com --username x --password-stdin", usage,
			[]string{"both a credential spec and the password"}},
	} {
		t.Run(c.args, func(t *testing.T) { p.want(c.code, c.says, args("credspec check", c.args)...) })
	}
	p.wantWith(string(object), good, []string{"- (web01): ok"}, "credspec", "check", "-")

	t.Run("JSON", func(t *testing.T) {
		type checked struct {
			CredentialSpecs []struct {
				Source, Name, GMSA string
				Problems           []struct {
					Field, Text, Remedy string
					Warning             bool
				}
			}
			Errors, Warnings int
		}
		v := decode[checked](t, p.want(wrong, nil, args("credspec check bad.yaml -o json")...))
		if v.Errors != 1 || v.Warnings != 1 || len(v.CredentialSpecs) != 2 {
			t.Fatalf("%+v", v)
		}
		if s := v.CredentialSpecs[0]; s.Source != "bad.yaml" || s.Name != "web01" || s.GMSA != "web01" ||
			len(s.Problems) != 1 || s.Problems[0].Field != "credspec.DomainJoinConfig.Sid" || s.Problems[0].Warning {
			t.Errorf("%+v", s)
		}
	})
	t.Run("no right to read the cluster's", func(t *testing.T) {
		p := newProgram(t, kubeconfigOf(t, cp, namespace(t, cp)))
		p.file("good.yaml", string(object))
		p.want(unable, []string{"requires permission: get gmsacredentialspecs.windows.k8s.io/web01 in the whole cluster",
			"good.yaml (web01): ok"}, args("credspec check web01 good.yaml")...)
	})
}

func TestCheckOnlineComparesWithTheClusterAndActiveDirectory(t *testing.T) {
	t.Parallel()
	cp, ad := lab(t)
	ns := namespace(t, cp)
	release(t, cp, ns, "web", "web-creds")
	putSecret(t, cp, ns, "web-creds", ad.DNSName, ad.Reader, ad.Password)
	putSecret(t, cp, ns, "stale-creds", ad.DNSName, ad.Reader, "not the password")
	putSecret(t, cp, ns, "broken-creds", ad.DNSName, `CORP\x`, ad.Password)
	p := newProgram(t, cp.Kubeconfig)
	p.file("pw", ad.Password)
	object := p.want(good, nil, args("credspec create --gmsa", ad.GMSA, "--account", ns+"/web", ad.flags())...).stdout
	sid := readOne(t, object).Spec.DomainJoinConfig.Sid

	for _, c := range []struct {
		name, old, new string
		code           int
		says           []string
	}{
		{"good", "", "", good, []string{": ok"}},
		{"another domain's SID", sid, "S-1-5-21-1-2-3", wrong,
			[]string{"credspec.DomainJoinConfig.Sid", "write " + sid}},
		{"another NetBIOS name", "NetBiosName: " + ad.NetBIOS, "NetBiosName: KORP", wrong,
			[]string{"credspec.DomainJoinConfig.NetBiosName", "write " + ad.NetBIOS}},
		{"no such gMSA", "Name: " + ad.GMSA, "Name: nobody", wrong,
			[]string{"GroupManagedServiceAccounts[0].Name", "gMSA nobody"}},
		{"a gMSA that may not be read", "Name: " + ad.GMSA, "Name: " + ad.Unreadable, wrong, []string{"not allowed to read"}},
		{"no release", ":web-creds", ":stale-creds", wrong,
			[]string{"PluginInput", "no release in namespace " + ns + " provides", "helm install stale ",
				"password is wrong"}},
		{"no Secret", ":web-creds", ":missing-creds", wrong,
			[]string{"does not exist", "gmsactl account create " + ns + "/missing"}},
		{"a broken Secret", ":web-creds", ":broken-creds", wrong, []string{`key "username" starts with a domain`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := *p
			p.t = t
			name := strings.ReplaceAll(c.name, " ", "-") + ".yaml"
			p.file(name, strings.ReplaceAll(object, c.old, c.new))
			if c.old == "" {
				p.file(name, object)
			}
			p.want(c.code, c.says, args("credspec check --online", name, ad.flags())...)
		})
	}
	p.file("web.yaml", object)
	t.Run("domain controller away", func(t *testing.T) {
		p.want(unable, []string{"skipped: Active Directory"},
			args("credspec check --online web.yaml --dc 127.0.0.1 --dns-server", ad.Address)...)
	})
	t.Run("may read nothing", func(t *testing.T) {
		p := newProgram(t, kubeconfigOf(t, cp, ns))
		p.file("web.yaml", object)
		p.file("bad.yaml", strings.ReplaceAll(object, sid, sid+"-1105"))
		says := []string{"skipped: releases in namespace " + ns + ": requires permission: list daemonsets.apps",
			"requires permission: get secrets/web-creds in namespace " + ns, "--username and --password-file"}
		p.want(unable, says, args("credspec check --online web.yaml", ad.flags())...)
		p.want(wrong, append(says, "the SID of an account"),
			args("credspec check --online web.yaml bad.yaml", ad.flags())...)
	})
	t.Run("may read nothing, with an account of its own", func(t *testing.T) {
		p := newProgram(t, kubeconfigOf(t, cp, ns))
		p.file("web.yaml", strings.ReplaceAll(object, sid, "S-1-5-21-1-2-3"))
		p.file("pw", ad.Password)
		p.want(wrong, []string{"write " + sid, "skipped: releases"},
			args("credspec check --online web.yaml --domain", ad.DNSName, "--username", ad.Reader, "--password-file pw",
				ad.flags())...)
	})
	t.Run("no cluster, with an account of its own", func(t *testing.T) {
		p := newProgram(t, "")
		p.file("web.yaml", object)
		p.file("pw", ad.Password)
		p.want(unable, []string{"skipped: release and Secret of " + ns + ":web-creds",
			"web.yaml (" + ad.GMSA + "): ok"}, args("credspec check --online web.yaml --domain", ad.DNSName,
			"--username", ad.Reader, "--password-file pw", ad.flags())...)
	})
}

func TestCompletionListsObjectsOfTheCluster(t *testing.T) {
	t.Parallel()
	cp, ad := lab(t)
	ns := namespace(t, cp)
	release(t, cp, ns, "web", "web-creds")
	putSecret(t, cp, ns, "web-creds", ad.DNSName, ad.Reader, ad.Password)
	p := newProgram(t, cp.Kubeconfig)
	p.want(good, nil, args("credspec create --apply --gmsa", ad.GMSA, "--account", ns+"/web --name complete-"+ns,
		ad.flags())...)
	for _, c := range []struct{ words, says string }{
		{"credspec check", "complete-" + ns},
		{"credspec create --account", ns + "/web"},
		{"account rotate", ns + "/web"},
		{"--namespace", ns},
		{"--output", "yaml"},
		{"credspec create --format", "docker"},
		{"credspec create --ldap", "starttls"},
	} {
		p.want(good, []string{c.says + "\n"}, append(args("__complete", c.words), "")...)
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		p.want(good, []string{"gmsactl"}, "completion", shell)
	}
	newProgram(t, kubeconfigOf(t, cp, ns)).want(good, []string{":0"}, "__complete", "credspec", "check", "")
}

func TestHelpUsesTheCommandThatTheUserTyped(t *testing.T) {
	t.Parallel()
	labtest.Require(t)
	p := newProgram(t, "")
	p.name = "kubectl-gmsa"
	r := p.want(good, []string{"kubectl gmsa credspec create --gmsa web01"}, "credspec", "create", "--help")
	if strings.Contains(r.stdout, "gmsactl credspec") {
		t.Errorf("help calls it gmsactl:\n%s", r.stdout)
	}
	p.want(usage, []string{"kubectl gmsa: unknown flag: --foo", "See kubectl gmsa credspec check --help"}, "credspec",
		"check", "--foo")
	for _, c := range []string{"nothing", "credspec nothing", "-v", "--token x", "version -o xml"} {
		p.want(usage, nil, args(c)...)
	}
	p.want(good, []string{"gmsactl "}, "version")
	p.want(good, []string{"--insecure-skip-tls-verify"}, "options")
	if r := p.want(good, nil, "--help"); strings.Contains(r.stdout, "insecure-skip") {
		t.Error("help lists the flags that are rarely used")
	}
}

// The binary is at most 45 MB.
func TestTheBinaryIsSmall(t *testing.T) {
	labtest.Require(t)
	info, err := os.Stat(newProgram(t, "").command().Path)
	must(t, err)
	if size := info.Size(); size > 45_000_000 {
		t.Errorf("%s has %d bytes", filepath.Base(info.Name()), size)
	}
}
