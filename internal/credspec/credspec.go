// Package credspec is the credential spec: what tells Windows which gMSA a container is, and which plugin knows the account
// that may read the gMSA's password. It reads and writes the two forms that it has, the plain one, which is JSON for
// container runtimes, and the GMSACredentialSpec of Kubernetes, and finds what people get wrong in them. It asks nobody:
// whether a gMSA exists is a question for package directory.
package credspec

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"sigs.k8s.io/yaml"
)

// What a GMSACredentialSpec calls itself.
const (
	APIVersion = "windows.k8s.io/v1"
	Kind       = "GMSACredentialSpec"
)

// PluginGUID is the COM class of ccg-plugin.dll, as PluginGUID of a credential spec has it.
const PluginGUID = "{E4781092-F116-4B79-B55E-28EB6A224E26}"

// CmsPlugin is the one entry of CmsPlugins that a gMSA needs.
const CmsPlugin = "ActiveDirectory"

// CcgVersion is the one PortableCcgVersion that there is.
const CcgVersion = "1"

// Spec is a credential spec. Its JSON names are Windows', which takes them as they are written here and not in another case.
type Spec struct {
	CmsPlugins            []string
	DomainJoinConfig      DomainJoinConfig
	ActiveDirectoryConfig ActiveDirectoryConfig
}

// DomainJoinConfig describes the domain, and whom the container is in it.
type DomainJoinConfig struct {
	Sid                string // the domain's, not the gMSA's: S-1-5-21-a-b-c
	MachineAccountName string // the gMSA, without $
	Guid               string // the domain's, without braces
	DnsTreeName        string // DNS name of the forest's root domain
	DnsName            string // DNS name of the domain
	NetBiosName        string // NetBIOS name of the domain
}

// ActiveDirectoryConfig names the gMSAs, and how a host that is not in the domain gets at their passwords.
type ActiveDirectoryConfig struct {
	GroupManagedServiceAccounts []Account
	HostAccountConfig           *HostAccountConfig `json:",omitempty"` // nil: the host itself is in the domain
}

// Account is a gMSA under one name of its domain. Windows wants each gMSA twice: with the DNS and with the NetBIOS name.
type Account struct {
	Name  string // without $
	Scope string
}

// HostAccountConfig names the plugin that ccg.exe asks for the impersonation account.
type HostAccountConfig struct {
	PortableCcgVersion string
	PluginGUID         string // with braces
	PluginInput        string // what the plugin is asked for: for ours <namespace>:<secret>
}

// Domain is what a credential spec says of a domain. It has the fields of directory.Domain, in the same order.
type Domain struct {
	SID, GUID, DNSName, NetBIOSName, ForestDNSName string
}

// New makes the credential spec of a gMSA for hosts that are not in the domain. The gMSA may be written with $ or without.
func New(d Domain, gmsa, pluginInput string) Spec {
	gmsa = strings.TrimSuffix(gmsa, "$")
	return Spec{
		CmsPlugins: []string{CmsPlugin},
		DomainJoinConfig: DomainJoinConfig{
			Sid:                d.SID,
			MachineAccountName: gmsa,
			Guid:               d.GUID,
			DnsTreeName:        d.ForestDNSName,
			DnsName:            d.DNSName,
			NetBiosName:        d.NetBIOSName,
		},
		ActiveDirectoryConfig: ActiveDirectoryConfig{
			GroupManagedServiceAccounts: []Account{
				{Name: gmsa, Scope: d.DNSName},
				{Name: gmsa, Scope: d.NetBIOSName},
			},
			HostAccountConfig: &HostAccountConfig{
				PortableCcgVersion: CcgVersion,
				PluginGUID:         PluginGUID,
				PluginInput:        pluginInput,
			},
		},
	}
}

// GMSAName returns the gMSA that the container is, without $; "" if the spec names none.
func (s Spec) GMSAName() string {
	name := s.DomainJoinConfig.MachineAccountName
	if name == "" && len(s.ActiveDirectoryConfig.GroupManagedServiceAccounts) > 0 {
		name = s.ActiveDirectoryConfig.GroupManagedServiceAccounts[0].Name
	}
	return strings.TrimSuffix(name, "$")
}

// UsesPlugin reports whether the spec selects this plugin. A spec without braces around its PluginGUID counts, so that the
// other checks can run: Check reports the missing braces.
func (s Spec) UsesPlugin() bool {
	host := s.ActiveDirectoryConfig.HostAccountConfig
	return host != nil && strings.EqualFold(strings.Trim(host.PluginGUID, "{}"), strings.Trim(PluginGUID, "{}"))
}

// JSON returns the plain form, indented and with a line end: what a container runtime reads.
func (s Spec) JSON() []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	_ = e.Encode(s) // strings and lists of strings: nothing that could not be encoded
	return b.Bytes()
}

// Object returns the GMSACredentialSpec with that name, as YAML. It checks neither.
func Object(name string, s Spec) ([]byte, error) {
	head, err := yaml.Marshal(map[string]string{"name": name})
	if err != nil {
		return nil, fmt.Errorf("writing GMSACredentialSpec %q: %w", name, err)
	}
	body, err := yaml.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("writing GMSACredentialSpec %q: %w", name, err)
	}
	// Put together, because the library sorts keys, and the reader's eye expects kind and name first.
	var b bytes.Buffer
	fmt.Fprintf(&b, "apiVersion: %s\nkind: %s\nmetadata:\n%scredspec:\n%s", APIVersion, Kind, indent(head), indent(body))
	return b.Bytes(), nil
}

func indent(lines []byte) []byte {
	var b bytes.Buffer
	for line := range bytes.Lines(lines) {
		if len(bytes.TrimSpace(line)) > 0 {
			b.WriteString("  ")
		}
		b.Write(line)
	}
	return b.Bytes()
}
