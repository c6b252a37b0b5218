package credspec

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"

	"github.com/ccgrkc/ccgrkc/internal/credential"
)

// Problem is one thing that is wrong in a credential spec.
type Problem struct {
	Field   string `json:"field"` // path as the user wrote it, such as credspec.DomainJoinConfig.Sid; "": the whole document
	Text    string `json:"text"`  // what is wrong; a sentence without its subject, which is Field
	Remedy  string `json:"remedy,omitempty"`
	Warning bool   `json:"warning"` // it may be meant so
}

// String returns field, text and remedy on one line.
func (p Problem) String() string {
	s := p.Text
	if p.Field != "" {
		s = p.Field + ": " + s
	}
	if p.Remedy != "" {
		s += "; " + p.Remedy
	}
	return s
}

// Plugin is a CCG plugin that is not this one.
type Plugin struct {
	GUID string // with braces, upper case
	Name string // whose it is
}

// Foreign lists the plugins of others that are known by their class.
var Foreign = []Plugin{
	// learn.microsoft.com, "Enable Group Managed Service Accounts for your Windows Server nodes on an AKS cluster".
	{"{CCC2A336-D7F3-4818-A213-272B7924213E}", "Microsoft's Azure Key Vault plugin, which AKS puts on its nodes"},
	// docs.aws.amazon.com, "Using gMSA for EC2 Windows containers on Amazon ECS", domainless gMSA.
	{"{859E1386-BDB4-49E8-85C7-3070B13920E1}", "Amazon's plugin for ECS and EKS, which reads AWS Secrets Manager"},
	// bosh.io, job ccg-plugin of winc-release, property ccg.plugin_guid.
	{"{8019A64C-3F4E-4DE3-AD2B-9A544290E2C3}", "Cloud Foundry's plugin of winc-release"},
}

// ForeignPlugin returns whose plugin a GUID is, if it is known and not ours.
func ForeignPlugin(guid string) (Plugin, bool) {
	for _, p := range Foreign {
		if strings.EqualFold(p.GUID, guid) {
			return p, true
		}
	}
	return Plugin{}, false
}

// Fields of a Spec, as Check names them.
const (
	fieldPlugins     = "CmsPlugins"
	fieldDomain      = "DomainJoinConfig"
	fieldSID         = "DomainJoinConfig.Sid"
	fieldMachine     = "DomainJoinConfig.MachineAccountName"
	fieldGUID        = "DomainJoinConfig.Guid"
	fieldTree        = "DomainJoinConfig.DnsTreeName"
	fieldDNS         = "DomainJoinConfig.DnsName"
	fieldNetBIOS     = "DomainJoinConfig.NetBiosName"
	fieldAD          = "ActiveDirectoryConfig"
	fieldAccounts    = "ActiveDirectoryConfig.GroupManagedServiceAccounts"
	fieldHost        = "ActiveDirectoryConfig.HostAccountConfig"
	fieldCcgVersion  = "ActiveDirectoryConfig.HostAccountConfig.PortableCcgVersion"
	fieldPluginGUID  = "ActiveDirectoryConfig.HostAccountConfig.PluginGUID"
	fieldPluginInput = "ActiveDirectoryConfig.HostAccountConfig.PluginInput"
)

// Check returns what is wrong in a spec, in the order of its fields; of more than 100 problems the first, and a last one that
// says so. Read has done it already.
func (s Spec) Check() []Problem {
	var c checker
	c.plugins(s.CmsPlugins)
	c.domain(s.DomainJoinConfig)
	c.accounts(s.ActiveDirectoryConfig.GroupManagedServiceAccounts, s.DomainJoinConfig)
	c.host(s.ActiveDirectoryConfig.HostAccountConfig)
	return c.problems
}

// CheckDomain returns where a spec does not say what its domain says of itself.
func (s Spec) CheckDomain(d Domain) []Problem {
	var c checker
	j := s.DomainJoinConfig
	for _, f := range []struct{ field, has, domain string }{
		{fieldSID, j.Sid, d.SID},
		{fieldGUID, strings.Trim(j.Guid, "{}"), d.GUID},
		{fieldTree, j.DnsTreeName, d.ForestDNSName},
		{fieldDNS, j.DnsName, d.DNSName},
		{fieldNetBIOS, j.NetBiosName, d.NetBIOSName},
	} {
		if f.has != "" && !strings.EqualFold(f.has, f.domain) {
			c.wrong(f.field, "write "+f.domain, "is %q, but that of %s is %q", f.has, d.DNSName, f.domain)
		}
	}
	return c.problems
}

// A list of some MB has a million entries, and each could have its problem.
const maxProblems = 100

type checker struct{ problems []Problem } // at most maxProblems, and one that says that there are more

func (c *checker) add(p Problem) {
	switch n := len(c.problems); {
	case n < maxProblems:
		c.problems = append(c.problems, p)
	case n == maxProblems:
		c.problems = append(c.problems, Problem{Text: fmt.Sprintf("has more problems than these %d", maxProblems), Remedy: "mend these, then check it again"})
	}
}

func (c *checker) isFull() bool { return len(c.problems) > maxProblems }

func (c *checker) wrong(field, remedy, format string, args ...any) {
	c.add(Problem{Field: field, Text: fmt.Sprintf(format, args...), Remedy: remedy})
}

func (c *checker) doubtful(field, remedy, format string, args ...any) {
	c.add(Problem{Field: field, Text: fmt.Sprintf(format, args...), Remedy: remedy, Warning: true})
}

func (c *checker) plugins(list []string) {
	found := false
	for i, p := range list {
		if c.isFull() {
			return
		}
		switch {
		case p == CmsPlugin:
			found = true
		case strings.EqualFold(p, CmsPlugin):
			found = true
			c.wrong(fmt.Sprintf("%s[%d]", fieldPlugins, i), "write "+CmsPlugin, "is %q", p)
		default:
			c.doubtful(fmt.Sprintf("%s[%d]", fieldPlugins, i), "leave it out", "is %q, which Windows does not know", p)
		}
	}
	if !found {
		c.wrong(fieldPlugins, `write ["`+CmsPlugin+`"]`, "does not name %q", CmsPlugin)
	}
}

var (
	// [MS-DTYP] 2.4.2.1. A domain's SID is S-1-5-21 and three numbers; an account's has a fourth, its relative identifier.
	sidForm  = regexp.MustCompile(`^S-1-5-21-(\d{1,10})-(\d{1,10})-(\d{1,10})(?:-(\d{1,10}))?$`)
	guidForm = regexp.MustCompile(`^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$`)
)

const domainFromAD = "gmsactl credspec create reads it from Active Directory"

func (c *checker) domain(d DomainJoinConfig) {
	if d == (DomainJoinConfig{}) {
		c.wrong(fieldDomain, "write the domain's Sid, Guid, DnsName, DnsTreeName and NetBiosName, and the gMSA as MachineAccountName; "+domainFromAD, "is missing or empty")
		return
	}
	c.sid(d.Sid)
	c.accountName(fieldMachine, d.MachineAccountName)
	c.guid(d.Guid)
	if c.dnsName(fieldTree, d.DnsTreeName, "write the DNS name of the forest's root domain, such as example.com") &&
		d.DnsName != "" && hasSuffixFold(d.DnsTreeName, "."+d.DnsName) {
		c.doubtful(fieldTree, "see whether DnsTreeName and DnsName are swapped", "is %q, below the domain %q; the root of a forest has no domain above it", d.DnsTreeName, d.DnsName)
	}
	c.dnsName(fieldDNS, d.DnsName, "write the domain's DNS name, such as corp.example.com")
	switch n := d.NetBiosName; {
	case n == "":
		c.wrong(fieldNetBIOS, "write the domain's NetBIOS name, such as CORP", "is missing or empty")
	case strings.Contains(n, "."):
		c.wrong(fieldNetBIOS, "write the domain's NetBIOS name, such as CORP", "is %q, a DNS name", n)
	case length(n) > 15:
		c.wrong(fieldNetBIOS, "write the domain's NetBIOS name, such as CORP", "is %q, %d characters; a NetBIOS name has at most 15", n, length(n))
	case strings.ContainsAny(n, `\/:*?"<>|`) || strings.TrimSpace(n) != n:
		c.wrong(fieldNetBIOS, "write the domain's NetBIOS name alone, such as CORP", "is %q, which no NetBIOS name is", n)
	}
}

func (c *checker) sid(sid string) {
	if sid == "" {
		c.wrong(fieldSID, "write the domain's SID, such as S-1-5-21-1111111111-2222222222-3333333333; "+domainFromAD, "is missing or empty")
		return
	}
	parts := sidForm.FindStringSubmatch(sid)
	if parts == nil {
		c.wrong(fieldSID, "write the domain's SID, such as S-1-5-21-1111111111-2222222222-3333333333; "+domainFromAD, "is %q, which is no domain's SID", sid)
		return
	}
	for _, p := range parts[1:] {
		if p == "" {
			continue
		}
		if _, err := strconv.ParseUint(p, 10, 32); err != nil {
			c.wrong(fieldSID, "compare it with the domain's SID; "+domainFromAD, "is %q, and %s is more than a part of a SID can be", sid, p)
			return
		}
	}
	if rid := parts[4]; rid != "" {
		c.wrong(fieldSID, fmt.Sprintf("write the domain's SID, %s, without the -%s", strings.TrimSuffix(sid, "-"+rid), rid),
			"is %q, the SID of an account (number %s in its domain), such as the gMSA's own", sid, rid)
	}
}

func (c *checker) guid(guid string) {
	switch bare := strings.TrimSuffix(strings.TrimPrefix(guid, "{"), "}"); {
	case guid == "":
		c.wrong(fieldGUID, "write the domain's GUID, without braces; "+domainFromAD, "is missing or empty")
	case guidForm.MatchString(bare) && bare != guid:
		c.wrong(fieldGUID, "write "+bare, "is %q, with braces", guid)
	case !guidForm.MatchString(guid):
		c.wrong(fieldGUID, "write the domain's GUID, 32 hexadecimal digits as 8-4-4-4-12, without braces; "+domainFromAD, "is %q, which is no GUID", guid)
	case strings.Trim(guid, "0-") == "":
		c.wrong(fieldGUID, "write the domain's GUID; "+domainFromAD, "is all zeros")
	}
}

// dnsName reports whether the name is one of several labels.
func (c *checker) dnsName(field, name, remedy string) bool {
	switch {
	case name == "":
		c.wrong(field, remedy, "is missing or empty")
	case strings.HasSuffix(name, "."):
		c.wrong(field, "leave the dot at the end out", "is %q", name)
	case strings.ContainsAny(name, `\/@:$ `+"\t\n") || strings.HasPrefix(name, ".") || strings.Contains(name, ".."):
		c.wrong(field, remedy, "is %q, which is no DNS name", name)
	case !strings.Contains(name, "."):
		// Domains with a DNS name of one label exist, but are few.
		c.doubtful(field, remedy, "is %q, which looks like a NetBIOS name", name)
	default:
		return true
	}
	return false
}

// IsAccountName reports whether a gMSA can have this name: a sAMAccountName without $.
func IsAccountName(name string) bool {
	var c checker
	c.accountName("", name)
	return len(c.problems) == 0
}

// accountName checks the name of a gMSA: sAMAccountName without $.
func (c *checker) accountName(field, name string) {
	bare := strings.TrimSuffix(name, "$")
	switch {
	case name == "":
		c.wrong(field, "write the gMSA's name, without $", "is missing or empty")
	case strings.ContainsAny(name, `\@`):
		c.wrong(field, "write the gMSA's bare name, without its domain", "is %q", name)
	case bare != name:
		c.wrong(field, fmt.Sprintf("write %s, without $: Windows adds it", bare), "is %q, with a $", name)
	case length(name) > 15:
		// What stands before the $ of a computer's or gMSA's sAMAccountName is also its NetBIOS name.
		c.wrong(field, "write the gMSA's sAMAccountName without $, which can differ from its name (Get-ADServiceAccount shows both)",
			"is %q, %d characters; a gMSA's account name has at most 15", name, length(name))
	case strings.ContainsAny(name, `"/[]:;|=,+*?<>`) || strings.ContainsFunc(name, unicode.IsControl) || strings.TrimSpace(name) != name:
		// [MS-SAMR] 3.1.1.6.
		c.wrong(field, "write the gMSA's sAMAccountName without $", "is %q, which no account's name is", name)
	}
}

func (c *checker) accounts(list []Account, d DomainJoinConfig) {
	if len(list) == 0 {
		c.wrong(fieldAccounts, "name the gMSA twice: with the domain's DNS name and with its NetBIOS name as Scope", "names no gMSA")
		return
	}
	type scopes struct{ dns, netBIOS bool }
	seen := map[string]*scopes{}
	var names []string
	for i, a := range list {
		if c.isFull() {
			return
		}
		field := fmt.Sprintf("%s[%d]", fieldAccounts, i)
		c.accountName(field+".Name", a.Name)
		key := strings.ToLower(strings.TrimSuffix(a.Name, "$"))
		if seen[key] == nil {
			seen[key] = &scopes{}
			names = append(names, a.Name)
		}
		switch {
		case a.Scope == "":
			c.wrong(field+".Scope", "write the domain's DNS name in one entry and its NetBIOS name in another", "is missing or empty")
		case strings.EqualFold(a.Scope, d.DnsName):
			seen[key].dns = true
			// A domain whose DNS name has one label may have the same NetBIOS name.
			seen[key].netBIOS = seen[key].netBIOS || strings.EqualFold(a.Scope, d.NetBiosName)
		case strings.EqualFold(a.Scope, d.NetBiosName):
			seen[key].netBIOS = true
		default:
			if strings.Contains(a.Scope, ".") {
				seen[key].dns = true
			} else {
				seen[key].netBIOS = true
			}
			if d.DnsName != "" && d.NetBiosName != "" {
				c.doubtful(field+".Scope", fmt.Sprintf("write %s or %s, unless the gMSA is of another domain", d.DnsName, d.NetBiosName),
					"is %q, neither DnsName nor NetBiosName of DomainJoinConfig", a.Scope)
			}
		}
	}
	for _, name := range names {
		key := strings.ToLower(strings.TrimSuffix(name, "$"))
		if key == "" {
			continue
		}
		if s := seen[key]; !s.dns {
			c.wrong(fieldAccounts, fmt.Sprintf("add {Name: %s, Scope: %s}", strings.TrimSuffix(name, "$"), or(d.DnsName, "<the domain's DNS name>")), "has no entry for %s with the domain's DNS name as Scope", name)
		} else if !s.netBIOS {
			c.wrong(fieldAccounts, fmt.Sprintf("add {Name: %s, Scope: %s}", strings.TrimSuffix(name, "$"), or(d.NetBiosName, "<the domain's NetBIOS name>")), "has no entry for %s with the domain's NetBIOS name as Scope", name)
		}
	}
	machine := strings.ToLower(strings.TrimSuffix(d.MachineAccountName, "$"))
	if machine != "" && seen[machine] == nil {
		c.doubtful(fieldMachine, "write one of the names that GroupManagedServiceAccounts has, or add this one there", "is %q, which GroupManagedServiceAccounts does not name", d.MachineAccountName)
	}
}

func (c *checker) host(h *HostAccountConfig) {
	if h == nil {
		c.doubtful(fieldHost, fmt.Sprintf(`for other hosts write HostAccountConfig: {PortableCcgVersion: "1", PluginGUID: "%s", PluginInput: "<namespace>:<secret>"}`, PluginGUID),
			"is missing: this spec works only on hosts that are joined to the domain, and asks no plugin")
		return
	}
	switch h.PortableCcgVersion {
	case CcgVersion:
	case "":
		c.wrong(fieldCcgVersion, `write "1", with the quotes`, "is missing or empty")
	default:
		c.wrong(fieldCcgVersion, `write "1", with the quotes`, "is %q", h.PortableCcgVersion)
	}
	_, inputErr := credential.ParseReference(h.PluginInput)
	foreign := c.pluginGUID(h.PluginGUID, inputErr == nil)
	if foreign {
		return // what another plugin takes for input is not ours to say
	}
	switch {
	case h.PluginInput == "":
		c.wrong(fieldPluginInput, "write "+credential.InputForm, "is missing or empty")
	case inputErr != nil:
		c.wrong(fieldPluginInput, inputRemedy(h.PluginInput), "is %q, which names no Secret", h.PluginInput)
	}
}

// pluginGUID reports whether it is another plugin's.
func (c *checker) pluginGUID(guid string, inputIsOurs bool) bool {
	bare := strings.TrimSuffix(strings.TrimPrefix(guid, "{"), "}")
	braced := "{" + bare + "}"
	switch {
	case guid == "":
		c.wrong(fieldPluginGUID, `write "`+PluginGUID+`", with braces and quotes`, "is missing or empty")
		return false
	case !guidForm.MatchString(bare):
		c.wrong(fieldPluginGUID, `write "`+PluginGUID+`", with braces and quotes`, "is %q, which is no GUID", guid)
		return false
	case guid != braced:
		c.wrong(fieldPluginGUID, `write "`+braced+`", with braces and quotes`, "is %q, without braces", guid)
	}
	if strings.EqualFold(braced, PluginGUID) {
		return false
	}
	plugin, known := ForeignPlugin(braced)
	switch {
	case known && inputIsOurs:
		c.wrong(fieldPluginGUID, `write "`+PluginGUID+`"`, "is that of %s, but PluginInput is meant for this plugin", plugin.Name)
	case known:
		c.doubtful(fieldPluginGUID, `if the account is to come from a Secret write "`+PluginGUID+`", and PluginInput as `+credential.InputForm, "is that of %s", plugin.Name)
	default:
		c.wrong(fieldPluginGUID, `write "`+PluginGUID+`"`, "is %q, a plugin that is not known", guid)
	}
	return known && !inputIsOurs
}

// inputRemedy says what to write instead of a plugin input that is none.
func inputRemedy(input string) string {
	// Helm and gmsactl call a release <namespace>/<release>.
	if namespace, release, ok := strings.Cut(input, "/"); ok {
		if ref, err := credential.NewReference(namespace, release+"-creds"); err == nil {
			return fmt.Sprintf("write %s, if %s is a release and its Secret has the usual name; the form is %s", ref, input, credential.InputForm)
		}
	}
	if ref, err := credential.ParseReference(strings.ToLower(strings.TrimSpace(input))); err == nil {
		return fmt.Sprintf("write %s: names in Kubernetes are lower case, without spaces", ref)
	}
	return "write " + credential.InputForm
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// length counts as Windows does, in UTF-16.
func length(s string) int { return len(utf16.Encode([]rune(s))) }

func hasSuffixFold(s, suffix string) bool {
	return len(s) >= len(suffix) && strings.EqualFold(s[len(s)-len(suffix):], suffix)
}
