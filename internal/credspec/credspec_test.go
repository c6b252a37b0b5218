package credspec

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

var domain = Domain{
	SID:           "S-1-5-21-702590844-1001920913-2680819671",
	GUID:          "56d9b66c-d746-4f87-bd26-26760cfdca2e",
	DNSName:       "corp.example.com",
	NetBIOSName:   "CORP",
	ForestDNSName: "example.com",
}

func good() Spec { return New(domain, "web01", "gmsa-system:web-creds") }

func object(t testing.TB, name string, s Spec) string {
	t.Helper()
	o, err := Object(name, s)
	if err != nil {
		t.Fatal(err)
	}
	return string(o)
}

func TestNewAcceptsTheGMSAWithAndWithoutDollar(t *testing.T) {
	if diff := cmp.Diff(New(domain, "web01", "a:b"), New(domain, "web01$", "a:b")); diff != "" {
		t.Error(diff)
	}
}

func TestObjectIsAManifestForKubectl(t *testing.T) {
	want := `apiVersion: windows.k8s.io/v1
kind: GMSACredentialSpec
metadata:
  name: web01
credspec:
  ActiveDirectoryConfig:
    GroupManagedServiceAccounts:
    - Name: web01
      Scope: corp.example.com
    - Name: web01
      Scope: CORP
    HostAccountConfig:
      PluginGUID: '{E4781092-F116-4B79-B55E-28EB6A224E26}'
      PluginInput: gmsa-system:web-creds
      PortableCcgVersion: "1"
  CmsPlugins:
  - ActiveDirectory
  DomainJoinConfig:
    DnsName: corp.example.com
    DnsTreeName: example.com
    Guid: 56d9b66c-d746-4f87-bd26-26760cfdca2e
    MachineAccountName: web01
    NetBiosName: CORP
    Sid: S-1-5-21-702590844-1001920913-2680819671
`
	if diff := cmp.Diff(want, object(t, "web01", good())); diff != "" {
		t.Error(diff)
	}
}

func TestGMSANameIsTheMachineAccountOrTheFirstGMSA(t *testing.T) {
	s := good()
	if got := s.GMSAName(); got != "web01" {
		t.Errorf("%q, want web01", got)
	}
	s.DomainJoinConfig.MachineAccountName = ""
	s.ActiveDirectoryConfig.GroupManagedServiceAccounts[0].Name = "first$"
	if got := s.GMSAName(); got != "first" {
		t.Errorf("%q, want first", got)
	}
	if got := (Spec{}).GMSAName(); got != "" {
		t.Errorf("%q of an empty spec", got)
	}
}

func TestEachValidFormHasNoProblem(t *testing.T) {
	s := good()
	yamlObject := object(t, "web01", s)
	asJSON, err := yaml.YAMLToJSON([]byte(yamlObject))
	if err != nil {
		t.Fatal(err)
	}
	plainYAML, err := yaml.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var utf16LE []byte
	for _, u := range utf16.Encode([]rune("\uFEFF" + string(s.JSON()))) {
		utf16LE = append(utf16LE, byte(u), byte(u>>8))
	}
	stored := strings.Replace(yamlObject, "  name: web01\n", "  name: web01\n  uid: 0a\n  annotations: {kubectl.kubernetes.io/last-applied-configuration: x}\n", 1)
	for name, c := range map[string]struct {
		content string
		names   []string
	}{
		"object":                       {yamlObject, []string{"web01"}},
		"object as stored":             {stored, []string{"web01"}},
		"object in JSON":               {string(asJSON), []string{"web01"}},
		"plain JSON":                   {string(s.JSON()), []string{""}},
		"plain JSON with tabs":         {strings.ReplaceAll(string(s.JSON()), "  ", "\t"), []string{""}},
		"plain YAML":                   {string(plainYAML), []string{""}},
		"UTF-8 with a byte order mark": {"\uFEFF" + string(s.JSON()), []string{""}},
		"UTF-16":                       {string(utf16LE), []string{""}},
		"lines end with CR LF":         {strings.ReplaceAll(yamlObject, "\n", "\r\n"), []string{"web01"}},
		"several":                      {"---\n" + yamlObject + "---\n# nothing\n--- # more\n" + strings.Replace(yamlObject, "name: web01", "name: web02", 1), []string{"web01", "web02"}},
		"list":                         {`{"apiVersion":"v1","kind":"List","items":[` + string(asJSON) + "," + string(asJSON) + "]}", []string{"web01", "web01"}},
		"with its RBAC":                {"apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: use-web01}\n---\n" + yamlObject, []string{"web01"}},
		"lower-case plugin GUID":       {strings.ReplaceAll(yamlObject, PluginGUID, strings.ToLower(PluginGUID)), []string{"web01"}},
	} {
		docs, err := Read([]byte(c.content))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var names []string
		for _, d := range docs {
			names = append(names, d.Name)
			if len(d.Problems) > 0 {
				t.Errorf("%s: %v", name, d.Problems)
			}
			if name != "lower-case plugin GUID" {
				if diff := cmp.Diff(s, d.Spec); diff != "" {
					t.Errorf("%s: %s", name, diff)
				}
			}
		}
		if !slices.Equal(names, c.names) {
			t.Errorf("%s: names %q, want %q", name, names, c.names)
		}
	}
}

func TestContentThatIsNotACredentialSpecIsReported(t *testing.T) {
	for content, want := range map[string]string{
		"":                "empty",
		"# only a remark": "empty",
		"---\n---\n":      "empty",
		"a: [":            "document 1 is neither JSON nor YAML",
		"{}\n---\na: [":   "document 2 is neither JSON nor YAML",
	} {
		if _, err := Read([]byte(content)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; want it to contain %q", content, err, want)
		}
	}
	for content, want := range map[string]string{
		"hello":   "is a string, not a credential spec",
		"[1]":     "is a list, not a credential spec",
		"{}":      "neither CmsPlugins nor DomainJoinConfig nor ActiveDirectoryConfig",
		"a: b":    "neither CmsPlugins nor DomainJoinConfig nor ActiveDirectoryConfig",
		"7":       "is the number 7",
		"kind: 8": `kind: is "", not GMSACredentialSpec`,
		"apiVersion: v1\nkind: Secret\nstringData: {password: x}": `kind: is "Secret", not GMSACredentialSpec`,
	} {
		docs, err := Read([]byte(content))
		if err != nil || len(docs) != 1 || !wrong(docs[0]) || !strings.Contains(docs[0].Problems[0].String(), want) {
			t.Errorf("%q: %v, %v; want it to contain %q", content, docs, err, want)
		}
	}
}

// Each case replaces text in a valid credential spec, and expects exactly these problems.
func TestReadFindsCommonErrors(t *testing.T) {
	const sid, guid = "Sid: S-1-5-21-702590844-1001920913-2680819671", "Guid: 56d9b66c-d746-4f87-bd26-26760cfdca2e"
	const at, join, ad = "credspec.", "credspec.DomainJoinConfig.", "credspec.ActiveDirectoryConfig."
	const host = ad + "HostAccountConfig."
	type problems []string
	for _, c := range []struct {
		name, old, new string
		want           problems // with the prefix "w " for a warning
	}{
		{"the gMSA's SID", sid, sid + "-1105",
			problems{join + `Sid: is "S-1-5-21-702590844-1001920913-2680819671-1105", the SID of an account (number 1105 in its domain), such as the gMSA's own; write the domain's SID, S-1-5-21-702590844-1001920913-2680819671, without the -1105`}},
		{"a built-in SID", sid, "Sid: S-1-5-32-544",
			problems{join + `Sid: is "S-1-5-32-544", which is not a domain's SID`}},
		{"a number of a SID too large", sid, "Sid: S-1-5-21-1-2-4294967296", problems{join + `Sid: is "S-1-5-21-1-2-4294967296", but 4294967296 is too large`}},
		{"no SID", sid, "", problems{join + "Sid: is missing or empty"}},
		{"braces around the domain's GUID", guid, "Guid: '{56d9b66c-d746-4f87-bd26-26760cfdca2e}'",
			problems{join + `Guid: is "{56d9b66c-d746-4f87-bd26-26760cfdca2e}", with braces; write 56d9b66c-d746-4f87-bd26-26760cfdca2e`}},
		{"a truncated GUID", guid, "Guid: 56d9b66c-d746-4f87-bd26-26760cfdca2", problems{join + `Guid: is "56d9b66c-d746-4f87-bd26-26760cfdca2", which is not a GUID`}},
		{"a GUID of zeros", guid, "Guid: 00000000-0000-0000-0000-000000000000", problems{join + "Guid: is all zeros"}},
		{"no GUID", guid, "", problems{join + "Guid: is missing or empty"}},
		{"$ in the machine account", "MachineAccountName: web01", "MachineAccountName: web01$",
			problems{join + `MachineAccountName: is "web01$", with a $; write web01, without $`}},
		{"domain in the machine account", "MachineAccountName: web01", `MachineAccountName: CORP\web01`,
			problems{join + `MachineAccountName: is "CORP\\web01"; write the gMSA's sAMAccountName, without domain`, `w ` + join + `MachineAccountName: is "CORP\\web01", which is not in GroupManagedServiceAccounts`}},
		{"$ in a gMSA", "- Name: web01\n      Scope: CORP", "- Name: web01$\n      Scope: CORP",
			problems{ad + `GroupManagedServiceAccounts[1].Name: is "web01$", with a $`}},
		{"a long gMSA", "web01", "sixteen-letters-",
			problems{join + `MachineAccountName: is "sixteen-letters-", 16 characters`, ad + `GroupManagedServiceAccounts[0].Name: is "sixteen-letters-", 16`, ad + `GroupManagedServiceAccounts[1].Name: is`}},
		{"the machine account is not in the list", "MachineAccountName: web01", "MachineAccountName: web02",
			problems{"w " + join + `MachineAccountName: is "web02", which is not in GroupManagedServiceAccounts`}},
		{"no NetBIOS scope", "    - Name: web01\n      Scope: CORP\n", "",
			problems{ad + "GroupManagedServiceAccounts: has no entry for web01 with the domain's NetBIOS name as Scope; add {Name: web01, Scope: CORP}"}},
		{"no DNS scope", "    - Name: web01\n      Scope: corp.example.com\n", "",
			problems{ad + "GroupManagedServiceAccounts: has no entry for web01 with the domain's DNS name as Scope; add {Name: web01, Scope: corp.example.com}"}},
		{"another domain's scope", "Scope: CORP", "Scope: KORP",
			problems{"w " + ad + `GroupManagedServiceAccounts[1].Scope: is "KORP", neither DnsName nor NetBiosName`}},
		{"no scope", "Scope: CORP", "Scope: ''",
			problems{ad + "GroupManagedServiceAccounts[1].Scope: is missing or empty", ad + "GroupManagedServiceAccounts: has no entry for web01 with the domain's NetBIOS name"}},
		{"a long NetBIOS name", "NetBiosName: CORP", "NetBiosName: SIXTEEN-LETTERS-",
			problems{join + `NetBiosName: is "SIXTEEN-LETTERS-", 16 characters; a NetBIOS name has at most 15`, "w " + ad + `GroupManagedServiceAccounts[1].Scope: is "CORP", neither`}},
		{"a DNS name as NetBIOS name", "NetBiosName: CORP", "NetBiosName: corp.example.com",
			problems{join + `NetBiosName: is "corp.example.com", a DNS name`, "w " + ad + `GroupManagedServiceAccounts[1].Scope`}},
		{"a NetBIOS name as DNS name", "DnsName: corp.example.com", "DnsName: CORP",
			problems{"w " + join + `DnsName: is "CORP", which looks like a NetBIOS name`, "w " + ad + "GroupManagedServiceAccounts[0].Scope"}},
		{"a dot at the end", "DnsName: corp.example.com", "DnsName: corp.example.com.",
			problems{join + `DnsName: is "corp.example.com."; remove the trailing dot`, "w " + ad + "GroupManagedServiceAccounts[0].Scope"}},
		{"an address for a DNS name", "DnsTreeName: example.com", "DnsTreeName: https://example.com", problems{join + `DnsTreeName: is "https://example.com", which is not a DNS name`}},
		{"no forest", "DnsTreeName: example.com", "", problems{join + "DnsTreeName: is missing or empty"}},
		{"forest and domain swapped", "DnsTreeName: example.com", "DnsTreeName: a.corp.example.com", problems{"w " + join + `DnsTreeName: is "a.corp.example.com", a child of the domain`}},
		{"no braces around the plugin's GUID", "'{E4781092-F116-4B79-B55E-28EB6A224E26}'", "E4781092-F116-4B79-B55E-28EB6A224E26",
			problems{host + `PluginGUID: is "E4781092-F116-4B79-B55E-28EB6A224E26", without braces; write "{E4781092-F116-4B79-B55E-28EB6A224E26}"`}},
		{"the GUID of Microsoft's example", "{E4781092-F116-4B79-B55E-28EB6A224E26}", "{GDMA0342-266A-4D1P-831J-20990E82944F}",
			problems{host + `PluginGUID: is "{GDMA0342-266A-4D1P-831J-20990E82944F}", which is not a GUID`}},
		{"an unknown plugin", "{E4781092-F116-4B79-B55E-28EB6A224E26}", "{E4781092-F116-4B79-B55E-28EB6A224E27}",
			problems{host + `PluginGUID: is "{E4781092-F116-4B79-B55E-28EB6A224E27}", an unknown plugin`}},
		{"our input for the plugin of AKS", "{E4781092-F116-4B79-B55E-28EB6A224E26}", "{ccc2a336-d7f3-4818-a213-272b7924213e}",
			problems{host + `PluginGUID: is the class of Microsoft's Azure Key Vault plugin, which AKS installs on its nodes, but PluginInput has this plugin's format`}},
		{"the plugin of AKS", "PluginGUID: '{E4781092-F116-4B79-B55E-28EB6A224E26}'\n      PluginInput: gmsa-system:web-creds", "PluginGUID: '{CCC2A336-D7F3-4818-A213-272B7924213E}'\n      PluginInput: ObjectId=1;SecretUri=https://v.vault.azure.net/secrets/s",
			problems{"w " + host + "PluginGUID: is the class of Microsoft's Azure Key Vault plugin"}},
		{"the plugin of ECS", "PluginGUID: '{E4781092-F116-4B79-B55E-28EB6A224E26}'\n      PluginInput: gmsa-system:web-creds", "PluginGUID: '{859E1386-BDB4-49E8-85C7-3070B13920E1}'\n      PluginInput: 'arn:aws:secretsmanager:eu-west-1:1:secret:s'",
			problems{"w " + host + "PluginGUID: is the class of Amazon's plugin"}},
		{"version as a number", `PortableCcgVersion: "1"`, "PortableCcgVersion: 1", problems{host + `PortableCcgVersion: is the number 1; write it in quotes, "1"`}},
		{"version 2", `PortableCcgVersion: "1"`, `PortableCcgVersion: "2"`, problems{host + `PortableCcgVersion: is "2"; write "1"`}},
		{"no version", `PortableCcgVersion: "1"`, "", problems{host + "PortableCcgVersion: is missing or empty"}},
		{"a release as input", "PluginInput: gmsa-system:web-creds", "PluginInput: gmsa-system/web",
			problems{host + `PluginInput: is "gmsa-system/web", which does not specify a Secret; write gmsa-system:web-creds if gmsa-system/web is a release`}},
		{"an input in capitals", "PluginInput: gmsa-system:web-creds", "PluginInput: Gmsa-System:web-creds", problems{host + `PluginInput: is "Gmsa-System:web-creds", which does not specify a Secret; write gmsa-system:web-creds`}},
		{"an input without namespace", "PluginInput: gmsa-system:web-creds", "PluginInput: web-creds", problems{host + `PluginInput: is "web-creds", which does not specify a Secret; write <namespace>:<secret>`}},
		{"no input", "PluginInput: gmsa-system:web-creds", "", problems{host + "PluginInput: is missing or empty"}},
		{"an input that is a map", "PluginInput: gmsa-system:web-creds", "PluginInput: {CredentialArn: x}", problems{host + `PluginInput: is a map; write a string, <namespace>:<secret>`}},
		{"CmsPlugins without ActiveDirectory", "- ActiveDirectory", "- Other", problems{"w " + at + `CmsPlugins[0]: is "Other"`, at + `CmsPlugins: does not contain "ActiveDirectory"`}},
		{"activeDirectory", "- ActiveDirectory", "- activeDirectory", problems{at + `CmsPlugins[0]: is "activeDirectory"; write ActiveDirectory`}},
		{"CmsPlugins as a string", "CmsPlugins:\n  - ActiveDirectory", "CmsPlugins: ActiveDirectory", problems{at + `CmsPlugins: is a string`}},
		{"cmsPlugins", "CmsPlugins:", "cmsPlugins:", problems{at + "cmsPlugins: has the wrong case and is ignored; write CmsPlugins"}},
		{"pluginGuid", "PluginGUID:", "pluginGuid:", problems{host + "pluginGuid: has the wrong case and is ignored; write PluginGUID"}},
		{"a problem below a key in the wrong case", "DomainJoinConfig:", "domainJoinConfig:\n    Foo: x", problems{at + "domainJoinConfig: has the wrong case", at + "domainJoinConfig.Foo: is unknown here"}},
		{"an unknown key", "PortableCcgVersion:", "PortableCcgPlugin:", problems{host + "PortableCcgPlugin: is unknown here; remove it, or write one of PortableCcgVersion", host + "PortableCcgVersion: is missing or empty"}},
		{"a key at the wrong place", "    HostAccountConfig:\n      PluginGUID: '{E4781092-F116-4B79-B55E-28EB6A224E26}'\n      PluginInput: gmsa-system:web-creds\n      PortableCcgVersion: \"1\"\n", "  HostAccountConfig: {PortableCcgVersion: \"1\", PluginGUID: '{E4781092-F116-4B79-B55E-28EB6A224E26}', PluginInput: 'x'}\n",
			problems{at + "HostAccountConfig: is unknown here; move it to credspec.ActiveDirectoryConfig", at + `HostAccountConfig.PluginInput: is "x"`}},
		{"a gMSA that looks like a Boolean", "- Name: web01\n      Scope: CORP", "- Name: web01\n      Scope: NO", problems{ad + "GroupManagedServiceAccounts[1].Scope: is the Boolean false; write it in quotes"}},
		{"no gMSA", "\n    - Name: web01\n      Scope: corp.example.com\n    - Name: web01\n      Scope: CORP\n", " []\n", problems{ad + "GroupManagedServiceAccounts: contains no gMSA"}},
		{"a gMSA that is only a name", "- Name: web01\n      Scope: CORP", "- web01", problems{ad + "GroupManagedServiceAccounts[1]: is a string; write {Name", ad + "GroupManagedServiceAccounts: has no entry for web01 with the domain's NetBIOS"}},
		{"v1alpha1", "windows.k8s.io/v1", "windows.k8s.io/v1alpha1", problems{`apiVersion: is "windows.k8s.io/v1alpha1", an early version`}},
		{"another group", "windows.k8s.io/v1", "v1", problems{`apiVersion: is "v1"; write windows.k8s.io/v1`}},
		{"another kind", "GMSACredentialSpec", "GmsaCredentialSpec", problems{`kind: is "GmsaCredentialSpec"; write GMSACredentialSpec`}},
		{"spec instead of credspec", "credspec:", "spec:", problems{"spec: is unknown here; write credspec instead of spec"}},
		{"credSpec", "credspec:", "credSpec:", problems{"credSpec: has the wrong case and is ignored; write credspec"}},
		{"no name", "name: web01", "labels: {}", problems{"metadata.name: is missing or empty"}},
		{"a name in capitals", "name: web01", "name: Web01", problems{`metadata.name: is "Web01", which is not a valid Kubernetes name`}},
		{"a namespace", "  name: web01", "  name: web01\n  namespace: x", problems{"w metadata.namespace: is set"}},
		{"a key twice", "DnsTreeName: example.com", "DnsTreeName: example.com\n    DnsTreeName: example.com", problems{"DnsTreeName: occurs twice"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := object(t, "web01", good())
			n := -1
			if c.name == "a long gMSA" {
				text, n = strings.Replace(text, "name: web01", "name: x", 1), -1
			}
			if !strings.Contains(text, c.old) {
				t.Fatalf("the valid spec does not contain %q", c.old)
			}
			docs, err := Read([]byte(strings.Replace(text, c.old, c.new, n)))
			if err != nil || len(docs) != 1 {
				t.Fatalf("%v, %v", docs, err)
			}
			var got []string
			for _, p := range docs[0].Problems {
				got = append(got, map[bool]string{true: "w "}[p.Warning]+p.String())
			}
			if !slices.EqualFunc(got, c.want, strings.HasPrefix) {
				t.Errorf("problems:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
			for _, p := range docs[0].Problems {
				if p.Remedy == "" {
					t.Errorf("%s has no remedy", p)
				}
			}
		})
	}
}

func TestCheckDomainComparesEveryNameAndIdentifier(t *testing.T) {
	if problems := good().CheckDomain(Domain{domain.SID, strings.ToUpper(domain.GUID), "CORP.example.com", "corp", "Example.com"}); len(problems) > 0 {
		t.Errorf("case does not matter: %v", problems)
	}
	var fields []string
	for _, p := range good().CheckDomain(Domain{"S-1-5-21-1-2-3", "0", "other.example.net", "OTHER", "example.net"}) {
		fields = append(fields, p.Field)
	}
	if diff := cmp.Diff([]string{fieldSID, fieldGUID, fieldTree, fieldDNS, fieldNetBIOS}, fields); diff != "" {
		t.Error(diff)
	}
}

func TestPathsHaveTheUsersSpelling(t *testing.T) {
	docs, err := Read([]byte(strings.Replace(object(t, "web01", good()), "DomainJoinConfig", "domainJoinConfig", 1)))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := docs[0].Path(fieldSID), "credspec.domainJoinConfig.Sid"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got := (Document{}).Path(fieldSID); got != fieldSID {
		t.Error(got)
	}
}

func TestProblemsOfAPlainSpecHaveNoPrefix(t *testing.T) {
	docs, err := Read(bytes.Replace(good().JSON(), []byte(`"PortableCcgVersion": "1"`), []byte(`"PortableCcgVersion": 1`), 1))
	if err != nil || len(docs) != 1 || len(docs[0].Problems) != 1 {
		t.Fatalf("%v, %v", docs, err)
	}
	if got := docs[0].Problems[0].Field; got != "ActiveDirectoryConfig.HostAccountConfig.PortableCcgVersion" {
		t.Error(got)
	}
	if got := docs[0].Spec.ActiveDirectoryConfig.HostAccountConfig.PortableCcgVersion; got != "1" {
		t.Errorf("version %q is read, want 1", got)
	}
}

func wrong(d Document) bool {
	return slices.ContainsFunc(d.Problems, func(p Problem) bool { return !p.Warning })
}

// A small file must not become a large report.
func TestTheNumberOfProblemsIsLimited(t *testing.T) {
	many := func(item string) string { return strings.TrimSuffix(strings.Repeat(item+",", 10_000), ",") }
	for name, content := range map[string]string{
		"empty gMSAs":   `{"CmsPlugins": ["ActiveDirectory"], "ActiveDirectoryConfig": {"GroupManagedServiceAccounts": [` + many("{}") + `]}}`,
		"numbers":       `{"CmsPlugins": ["ActiveDirectory"], "ActiveDirectoryConfig": {"GroupManagedServiceAccounts": [` + many("1") + `]}}`,
		"gMSAs' scopes": `{"CmsPlugins": ["ActiveDirectory"], "ActiveDirectoryConfig": {"GroupManagedServiceAccounts": [` + many(`{"Name": "web01"}`) + `]}}`,
		"plugins":       `{"CmsPlugins": [` + many(`"x"`) + `]}`,
	} {
		docs, err := Read([]byte(content))
		if err != nil || len(docs) != 1 {
			t.Fatalf("%s: %d documents, %v", name, len(docs), err)
		}
		problems := docs[0].Problems
		if len(problems) != 101 || !strings.Contains(problems[100].Text, "more problems than these 100") || problems[100].Warning || problems[100].Field != "" {
			t.Errorf("%s: %d problems, the last is %+v", name, len(problems), problems[len(problems)-1])
		}
		if n := len(docs[0].at.written); n > 1000 {
			t.Errorf("%s: %d paths are stored", name, n)
		}
	}
	docs, err := Read([]byte(`{"kind": "List", "items": [` + many("{}") + `]}`))
	if err != nil || len(docs) != 101 || !strings.Contains(docs[100].Problems[0].Text, "more objects than these 100") {
		t.Errorf("of a list: %d documents, %v", len(docs), err)
	}
}

func TestASpecOnlyForDomainJoinedHostsIsAWarning(t *testing.T) {
	s := good()
	s.ActiveDirectoryConfig.HostAccountConfig = nil
	docs, err := Read(s.JSON())
	if err != nil || len(docs) != 1 || wrong(docs[0]) || len(docs[0].Problems) != 1 {
		t.Errorf("%v, %v; want one warning", docs, err)
	}
}

func TestAMissingSectionIsOneProblem(t *testing.T) {
	docs, err := Read([]byte(`{"CmsPlugins": ["ActiveDirectory"], "ActiveDirectoryConfig": 7}`))
	if err != nil || len(docs) != 1 {
		t.Fatalf("%v, %v", docs, err)
	}
	var fields []string
	for _, p := range docs[0].Problems {
		fields = append(fields, p.Field)
	}
	if diff := cmp.Diff([]string{"ActiveDirectoryConfig", "DomainJoinConfig"}, fields); diff != "" {
		t.Error(diff)
	}
}

func TestForeignPluginGUIDsHaveTheFormatOfWindows(t *testing.T) {
	for _, p := range Foreign {
		if p.GUID != strings.ToUpper(p.GUID) || !guidForm.MatchString(strings.Trim(p.GUID, "{}")) || len(p.GUID) != 38 {
			t.Errorf("%s: %s", p.Name, p.GUID)
		}
		if p.GUID == PluginGUID {
			t.Errorf("%s has our GUID", p.Name)
		}
	}
}

// A spec that is read, written and read again is unchanged, and nothing panics.
func FuzzRead(f *testing.F) {
	f.Add([]byte(object(f, "web01", good())))
	f.Add(good().JSON())
	f.Add([]byte("---\nkind: List\nitems: [{credspec: {cmsPlugins: [1, {}], ActiveDirectoryConfig: {GroupManagedServiceAccounts: {Name: 1e3}}}}]"))
	f.Add([]byte(`{"CmsPlugins":["\u0000\ud834\udd1e\u007f"],"DomainJoinConfig":{"Sid":"- |\n x","Guid":"{"}}`))
	f.Add([]byte("\xff\xfe{\x00}\x00"))
	f.Add([]byte("a: &a [x]\nDomainJoinConfig: *a\nCmsPlugins: *a"))
	f.Fuzz(func(t *testing.T, content []byte) {
		docs, err := Read(content)
		if err != nil {
			return
		}
		for _, d := range docs {
			for _, p := range d.Problems {
				if p.Text == "" || p.Remedy == "" {
					t.Errorf("a problem without text or remedy: %+v", p)
				}
			}
			if !json.Valid(d.Spec.JSON()) {
				t.Fatalf("invalid JSON: %s", d.Spec.JSON())
			}
			if empty(d.Spec) {
				continue // its output is not recognizable as a credential spec
			}
			again(t, d, d.Spec.JSON(), "")
			if d.Name != "" {
				again(t, d, []byte(object(t, d.Name, d.Spec)), d.Name)
			}
		}
	})
}

func empty(s Spec) bool { return cmp.Equal(s, Spec{}) }

func again(t *testing.T, d Document, written []byte, name string) {
	t.Helper()
	docs, err := Read(written)
	if err != nil || len(docs) != 1 {
		t.Fatalf("%d documents, %v:\n%s", len(docs), err, written)
	}
	if diff := cmp.Diff(d.Spec, docs[0].Spec); diff != "" {
		t.Errorf("%s\n%s", diff, written)
	}
	if docs[0].Name != name {
		t.Errorf("name %q, want %q", docs[0].Name, name)
	}
}

func TestUsesPluginComparesOnlyTheGUID(t *testing.T) {
	for guid, want := range map[string]bool{
		PluginGUID:                               true,
		strings.ToLower(PluginGUID):              true,
		strings.Trim(PluginGUID, "{}"):           true,
		"":                                       false,
		"{E4781092-F116-4B79-B55E-28EB6A224E27}": false,
	} {
		s := Spec{ActiveDirectoryConfig: ActiveDirectoryConfig{HostAccountConfig: &HostAccountConfig{PluginGUID: guid}}}
		if s.UsesPlugin() != want {
			t.Errorf("%q: %v, want %v", guid, !want, want)
		}
	}
	if (Spec{}).UsesPlugin() {
		t.Error("a spec without HostAccountConfig uses the plugin")
	}
}
