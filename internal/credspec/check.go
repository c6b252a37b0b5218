package credspec

import (
	"cmp"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"

	"github.com/ccgrkc/ccgrkc/internal/credential"
)

// Problem is an error or a warning about a credential spec.
type Problem struct {
	Field   string `json:"field"` // path in the user's spelling: credspec.DomainJoinConfig.Sid; "": the whole document
	Text    string `json:"text"`  // a sentence whose subject is Field
	Remedy  string `json:"remedy,omitempty"`
	Warning bool   `json:"warning"` // it can be intended
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

// Plugin is a CCG plugin of another product.
type Plugin struct {
	GUID string // with braces, upper case
	Name string // vendor and purpose
}

// Foreign lists the known plugins of other products.
var Foreign = []Plugin{
	// learn.microsoft.com, "Enable Group Managed Service Accounts for your Windows Server nodes on an AKS cluster".
	{"{CCC2A336-D7F3-4818-A213-272B7924213E}", "Microsoft's Azure Key Vault plugin, which AKS installs on its nodes"},
	// docs.aws.amazon.com, "Using gMSA for EC2 Windows containers on Amazon ECS", domainless gMSA.
	{"{859E1386-BDB4-49E8-85C7-3070B13920E1}", "Amazon's plugin for ECS and EKS, which reads AWS Secrets Manager"},
	// bosh.io, job ccg-plugin of winc-release, property ccg.plugin_guid.
	{"{8019A64C-3F4E-4DE3-AD2B-9A544290E2C3}", "Cloud Foundry's plugin of winc-release"},
}

// ForeignPlugin returns the plugin of another product with this GUID, if it is known.
func ForeignPlugin(guid string) (Plugin, bool) {
	for _, p := range Foreign {
		if strings.EqualFold(p.GUID, guid) {
			return p, true
		}
	}
	return Plugin{}, false
}

// Paths of the fields of a Spec in Problem.Field.
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

// Check returns the problems of a spec, in the order of its fields. If there are more than 100, it returns the first
// 100 and one that says so. Read includes these checks.
func (s Spec) Check() []Problem {
	var c checker
	c.plugins(s.CmsPlugins)
	c.domain(s.DomainJoinConfig)
	c.accounts(s.ActiveDirectoryConfig.GroupManagedServiceAccounts, s.DomainJoinConfig)
	c.host(s.ActiveDirectoryConfig.HostAccountConfig)
	return c.problems
}

// CheckDomain returns the differences between a spec and its domain.
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
			c.fail(f.field, "write "+f.domain, "is %q, but in the domain %s it is %q", f.has, d.DNSName, f.domain)
		}
	}
	return c.problems
}

// A list of a few MB can have a million entries, each with a problem.
const maxProblems = 100

type checker struct{ problems []Problem } // at most maxProblems, plus one that says that there are more

func (c *checker) add(p Problem) {
	switch n := len(c.problems); {
	case n < maxProblems:
		c.problems = append(c.problems, p)
	case n == maxProblems:
		c.problems = append(c.problems, Problem{
			Text:   fmt.Sprintf("has more problems than these %d", maxProblems),
			Remedy: "fix these, then check again",
		})
	}
}

func (c *checker) isFull() bool { return len(c.problems) > maxProblems }

func (c *checker) fail(field, remedy, format string, args ...any) {
	c.add(Problem{Field: field, Text: fmt.Sprintf(format, args...), Remedy: remedy})
}

func (c *checker) warn(field, remedy, format string, args ...any) {
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
			c.fail(fmt.Sprintf("%s[%d]", fieldPlugins, i), "write "+CmsPlugin, "is %q", p)
		default:
			c.warn(fmt.Sprintf("%s[%d]", fieldPlugins, i), "remove it", "is %q, which is unknown to Windows", p)
		}
	}
	if !found {
		c.fail(fieldPlugins, `write ["`+CmsPlugin+`"]`, "does not contain %q", CmsPlugin)
	}
}

var (
	// [MS-DTYP] 2.4.2.1. A domain's SID is S-1-5-21 and three numbers; an account's has a fourth, its relative
	// identifier.
	sidForm  = regexp.MustCompile(`^S-1-5-21-(\d{1,10})-(\d{1,10})-(\d{1,10})(?:-(\d{1,10}))?$`)
	guidForm = regexp.MustCompile(`^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$`)
)

const domainFromAD = "gmsactl credspec create reads it from Active Directory"

func (c *checker) domain(d DomainJoinConfig) {
	if d == (DomainJoinConfig{}) {
		c.fail(fieldDomain,
			"write the domain's Sid, Guid, DnsName, DnsTreeName and NetBiosName, and the gMSA as MachineAccountName; "+
				domainFromAD,
			"is missing or empty")
		return
	}
	c.sid(d.Sid)
	c.accountName(fieldMachine, d.MachineAccountName)
	c.guid(d.Guid)
	if c.dnsName(fieldTree, d.DnsTreeName, "write the DNS name of the forest's root domain, such as example.com") &&
		d.DnsName != "" && hasSuffixFold(d.DnsTreeName, "."+d.DnsName) {
		c.warn(fieldTree, "check whether DnsTreeName and DnsName are swapped",
			"is %q, a child of the domain %q; a forest's root domain has no parent", d.DnsTreeName, d.DnsName)
	}
	c.dnsName(fieldDNS, d.DnsName, "write the domain's DNS name, such as corp.example.com")
	switch n := d.NetBiosName; {
	case n == "":
		c.fail(fieldNetBIOS, "write the domain's NetBIOS name, such as CORP", "is missing or empty")
	case strings.Contains(n, "."):
		c.fail(fieldNetBIOS, "write the domain's NetBIOS name, such as CORP", "is %q, a DNS name", n)
	case length(n) > 15:
		c.fail(fieldNetBIOS, "write the domain's NetBIOS name, such as CORP",
			"is %q, %d characters; a NetBIOS name has at most 15", n, length(n))
	case strings.ContainsAny(n, `\/:*?"<>|`) || strings.TrimSpace(n) != n:
		c.fail(fieldNetBIOS, "write the domain's NetBIOS name alone, such as CORP",
			"is %q, which is not a valid NetBIOS name", n)
	}
}

func (c *checker) sid(sid string) {
	if sid == "" {
		c.fail(fieldSID, "write the domain's SID, such as S-1-5-21-1111111111-2222222222-3333333333; "+domainFromAD,
			"is missing or empty")
		return
	}
	parts := sidForm.FindStringSubmatch(sid)
	if parts == nil {
		c.fail(fieldSID, "write the domain's SID, such as S-1-5-21-1111111111-2222222222-3333333333; "+domainFromAD,
			"is %q, which is not a domain's SID", sid)
		return
	}
	for _, p := range parts[1:] {
		if p == "" {
			continue
		}
		if _, err := strconv.ParseUint(p, 10, 32); err != nil {
			c.fail(fieldSID, "write the domain's SID; "+domainFromAD,
				"is %q, but %s is too large for a part of a SID", sid, p)
			return
		}
	}
	if rid := parts[4]; rid != "" {
		c.fail(fieldSID,
			fmt.Sprintf("write the domain's SID, %s, without the -%s", strings.TrimSuffix(sid, "-"+rid), rid),
			"is %q, the SID of an account (number %s in its domain), such as the gMSA's own", sid, rid)
	}
}

func (c *checker) guid(guid string) {
	switch bare := strings.TrimSuffix(strings.TrimPrefix(guid, "{"), "}"); {
	case guid == "":
		c.fail(fieldGUID, "write the domain's GUID, without braces; "+domainFromAD, "is missing or empty")
	case guidForm.MatchString(bare) && bare != guid:
		c.fail(fieldGUID, "write "+bare, "is %q, with braces", guid)
	case !guidForm.MatchString(guid):
		c.fail(fieldGUID, "write the domain's GUID, 32 hexadecimal digits as 8-4-4-4-12, without braces; "+domainFromAD,
			"is %q, which is not a GUID", guid)
	case strings.Trim(guid, "0-") == "":
		c.fail(fieldGUID, "write the domain's GUID; "+domainFromAD, "is all zeros")
	}
}

// dnsName reports whether the name is a valid DNS name with at least two labels.
func (c *checker) dnsName(field, name, remedy string) bool {
	switch {
	case name == "":
		c.fail(field, remedy, "is missing or empty")
	case strings.HasSuffix(name, "."):
		c.fail(field, "remove the trailing dot", "is %q", name)
	case strings.ContainsAny(name, `\/@:$ `+"\t\n") || strings.HasPrefix(name, ".") || strings.Contains(name, ".."):
		c.fail(field, remedy, "is %q, which is not a DNS name", name)
	case !strings.Contains(name, "."):
		// Domains whose DNS name has one label exist, but are rare.
		c.warn(field, remedy, "is %q, which looks like a NetBIOS name", name)
	default:
		return true
	}
	return false
}

// IsAccountName reports whether name is a valid sAMAccountName of a gMSA, without $.
func IsAccountName(name string) bool {
	var c checker
	c.accountName("", name)
	return len(c.problems) == 0
}

// accountName checks the sAMAccountName of a gMSA, without $.
func (c *checker) accountName(field, name string) {
	bare := strings.TrimSuffix(name, "$")
	switch {
	case name == "":
		c.fail(field, "write the gMSA's name, without $", "is missing or empty")
	case strings.ContainsAny(name, `\@`):
		c.fail(field, "write the gMSA's sAMAccountName, without domain", "is %q", name)
	case bare != name:
		c.fail(field, fmt.Sprintf("write %s, without $: Windows adds it", bare), "is %q, with a $", name)
	case length(name) > 15:
		// The sAMAccountName of a computer or gMSA, without $, is also its NetBIOS name.
		c.fail(field,
			"write the gMSA's sAMAccountName without $; it can differ from the name (Get-ADServiceAccount shows both)",
			"is %q, %d characters; a gMSA's account name has at most 15", name, length(name))
	case strings.ContainsAny(name, `"/[]:;|=,+*?<>`) || strings.ContainsFunc(name, unicode.IsControl) ||
		strings.TrimSpace(name) != name:
		// [MS-SAMR] 3.1.1.6.
		c.fail(field, "write the gMSA's sAMAccountName without $", "is %q, which is not a valid account name", name)
	}
}

func (c *checker) accounts(list []Account, d DomainJoinConfig) {
	if len(list) == 0 {
		c.fail(fieldAccounts, "list the gMSA twice: with the domain's DNS name and with its NetBIOS name as Scope",
			"contains no gMSA")
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
			c.fail(field+".Scope", "write the domain's DNS name in one entry and its NetBIOS name in another",
				"is missing or empty")
		case strings.EqualFold(a.Scope, d.DnsName):
			seen[key].dns = true
			// If the DNS name has one label, the NetBIOS name can be the same.
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
				c.warn(field+".Scope",
					fmt.Sprintf("write %s or %s, unless the gMSA is in another domain", d.DnsName, d.NetBiosName),
					"is %q, neither DnsName nor NetBiosName of DomainJoinConfig", a.Scope)
			}
		}
	}
	for _, name := range names {
		key := strings.ToLower(strings.TrimSuffix(name, "$"))
		if key == "" {
			continue
		}
		plain := strings.TrimSuffix(name, "$")
		if s := seen[key]; !s.dns {
			c.fail(fieldAccounts,
				fmt.Sprintf("add {Name: %s, Scope: %s}", plain, cmp.Or(d.DnsName, "<the domain's DNS name>")),
				"has no entry for %s with the domain's DNS name as Scope", name)
		} else if !s.netBIOS {
			c.fail(fieldAccounts,
				fmt.Sprintf("add {Name: %s, Scope: %s}", plain, cmp.Or(d.NetBiosName, "<the domain's NetBIOS name>")),
				"has no entry for %s with the domain's NetBIOS name as Scope", name)
		}
	}
	machine := strings.ToLower(strings.TrimSuffix(d.MachineAccountName, "$"))
	if machine != "" && seen[machine] == nil {
		c.warn(fieldMachine, "write one of the names in GroupManagedServiceAccounts, or add this name there",
			"is %q, which is not in GroupManagedServiceAccounts", d.MachineAccountName)
	}
}

func (c *checker) host(h *HostAccountConfig) {
	if h == nil {
		c.warn(fieldHost, `for other hosts write HostAccountConfig: {PortableCcgVersion: "1", PluginGUID: "`+PluginGUID+
			`", PluginInput: "<namespace>:<secret>"}`,
			"is missing: this spec works only on hosts that are joined to the domain, and uses no plugin")
		return
	}
	switch h.PortableCcgVersion {
	case CcgVersion:
	case "":
		c.fail(fieldCcgVersion, `write "1", with the quotes`, "is missing or empty")
	default:
		c.fail(fieldCcgVersion, `write "1", with the quotes`, "is %q", h.PortableCcgVersion)
	}
	_, inputErr := credential.ParseReference(h.PluginInput)
	foreign := c.pluginGUID(h.PluginGUID, inputErr == nil)
	if foreign {
		return // the input format of another plugin is unknown
	}
	switch {
	case h.PluginInput == "":
		c.fail(fieldPluginInput, "write "+credential.InputForm, "is missing or empty")
	case inputErr != nil:
		c.fail(fieldPluginInput, inputRemedy(h.PluginInput), "is %q, which does not specify a Secret", h.PluginInput)
	}
}

// pluginGUID reports whether the spec is for another plugin.
func (c *checker) pluginGUID(guid string, validInput bool) bool {
	bare := strings.TrimSuffix(strings.TrimPrefix(guid, "{"), "}")
	braced := "{" + bare + "}"
	switch {
	case guid == "":
		c.fail(fieldPluginGUID, `write "`+PluginGUID+`", with braces and quotes`, "is missing or empty")
		return false
	case !guidForm.MatchString(bare):
		c.fail(fieldPluginGUID, `write "`+PluginGUID+`", with braces and quotes`, "is %q, which is not a GUID", guid)
		return false
	case guid != braced:
		c.fail(fieldPluginGUID, `write "`+braced+`", with braces and quotes`, "is %q, without braces", guid)
	}
	if strings.EqualFold(braced, PluginGUID) {
		return false
	}
	plugin, known := ForeignPlugin(braced)
	switch {
	case known && validInput:
		c.fail(fieldPluginGUID, `write "`+PluginGUID+`"`,
			"is the class of %s, but PluginInput has this plugin's format", plugin.Name)
	case known:
		c.warn(fieldPluginGUID,
			`to use credentials from a Secret, write "`+PluginGUID+`", and PluginInput as `+credential.InputForm,
			"is the class of %s", plugin.Name)
	default:
		c.fail(fieldPluginGUID, `write "`+PluginGUID+`"`, "is %q, an unknown plugin", guid)
	}
	return known && !validInput
}

// inputRemedy returns the remedy for an invalid plugin input.
func inputRemedy(input string) string {
	// Helm and gmsactl refer to a release as <namespace>/<release>.
	if namespace, release, ok := strings.Cut(input, "/"); ok {
		if ref, err := credential.NewReference(namespace, credential.SecretName(release)); err == nil {
			return fmt.Sprintf("write %s if %s is a release and its Secret has the default name; the format is %s",
				ref, input, credential.InputForm)
		}
	}
	if ref, err := credential.ParseReference(strings.ToLower(strings.TrimSpace(input))); err == nil {
		return fmt.Sprintf("write %s: Kubernetes names are lower case and have no spaces", ref)
	}
	return "write " + credential.InputForm
}

// length counts UTF-16 code units, as Windows does.
func length(s string) int { return len(utf16.Encode([]rune(s))) }

func hasSuffixFold(s, suffix string) bool {
	return len(s) >= len(suffix) && strings.EqualFold(s[len(s)-len(suffix):], suffix)
}
