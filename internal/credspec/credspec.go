// Package credspec reads, checks and writes credential specs. A credential spec tells Windows which gMSA a container
// runs as, and which plugin has the credentials of the account that can read the gMSA's password. It has two forms:
// plain JSON for container runtimes, and the Kubernetes object GMSACredentialSpec. The package uses no network; package
// directory finds out whether a gMSA exists.
package credspec

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/ccgrkc/ccgrkc/internal/credential"
)

// API version and kind of a GMSACredentialSpec.
const (
	APIVersion = "windows.k8s.io/v1"
	Kind       = "GMSACredentialSpec"
)

// PluginGUID is the COM class of ccg-plugin.dll, in the format of the field PluginGUID.
const PluginGUID = credential.PluginClass

// CmsPlugin is the only entry of CmsPlugins that a gMSA needs.
const CmsPlugin = "ActiveDirectory"

// CcgVersion is the only existing PortableCcgVersion.
const CcgVersion = "1"

// Spec is a credential spec. Its JSON names are those of Windows, which compares them case-sensitively.
type Spec struct {
	CmsPlugins            []string
	DomainJoinConfig      DomainJoinConfig
	ActiveDirectoryConfig ActiveDirectoryConfig
}

// DomainJoinConfig describes the domain and the container's gMSA.
type DomainJoinConfig struct {
	Sid                string // SID of the domain, not of the gMSA: S-1-5-21-a-b-c
	MachineAccountName string // name of the gMSA, without $
	Guid               string // GUID of the domain, without braces
	DnsTreeName        string // DNS name of the forest's root domain
	DnsName            string // DNS name of the domain
	NetBiosName        string // NetBIOS name of the domain
}

// ActiveDirectoryConfig lists the gMSAs, and how a host that is not joined to the domain gets their passwords.
type ActiveDirectoryConfig struct {
	GroupManagedServiceAccounts []Account
	HostAccountConfig           *HostAccountConfig `json:",omitempty"` // nil: only for hosts in the domain
}

// Account is a gMSA with one name of its domain. Windows needs each gMSA twice: with the DNS name and with the NetBIOS
// name.
type Account struct {
	Name  string // without $
	Scope string
}

// HostAccountConfig specifies the plugin that returns the impersonation account to ccg.exe.
type HostAccountConfig struct {
	PortableCcgVersion string
	PluginGUID         string // with braces
	PluginInput        string // for this plugin <namespace>:<secret>
}

// Domain contains the properties of a domain in a credential spec. It has the fields of directory.Domain, in the same
// order.
type Domain struct {
	SID, GUID, DNSName, NetBIOSName, ForestDNSName string
}

// New returns the credential spec of a gMSA for hosts that are not joined to the domain. The name of the gMSA can have
// a trailing $.
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

// GMSAName returns the name of the container's gMSA, without $, or "" if the spec contains none.
func (s Spec) GMSAName() string {
	name := s.DomainJoinConfig.MachineAccountName
	if name == "" && len(s.ActiveDirectoryConfig.GroupManagedServiceAccounts) > 0 {
		name = s.ActiveDirectoryConfig.GroupManagedServiceAccounts[0].Name
	}
	return strings.TrimSuffix(name, "$")
}

// UsesPlugin reports whether the spec selects this plugin. A spec without braces around its PluginGUID counts, so that
// the other checks can run: Check reports the missing braces.
func (s Spec) UsesPlugin() bool {
	host := s.ActiveDirectoryConfig.HostAccountConfig
	return host != nil && strings.EqualFold(strings.Trim(host.PluginGUID, "{}"), strings.Trim(PluginGUID, "{}"))
}

// JSON returns the plain form, which a container runtime reads. It is indented and ends with a newline.
func (s Spec) JSON() []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	_ = e.Encode(s) // strings and lists of strings always encode
	return b.Bytes()
}

// Object returns a GMSACredentialSpec as YAML. It checks neither the name nor the spec.
func Object(name string, s Spec) ([]byte, error) {
	head, err := yaml.Marshal(map[string]string{"name": name})
	if err != nil {
		return nil, fmt.Errorf("write GMSACredentialSpec %q: %w", name, err)
	}
	body, err := yaml.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("write GMSACredentialSpec %q: %w", name, err)
	}
	// The library sorts keys, but readers expect kind and name first.
	var b bytes.Buffer
	const format = "apiVersion: %s\nkind: %s\nmetadata:\n%scredspec:\n%s"
	fmt.Fprintf(&b, format, APIVersion, Kind, indent(head), indent(body))
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
