package credspec

import (
	"strings"
	"testing"
)

const guid = "{E4781092-F116-4B79-B55E-28EB6A224E26}"

func TestParseFindsThePluginAndItsInput(t *testing.T) {
	got, err := Parse([]byte(`{"CmsPlugins": ["ActiveDirectory"], "DomainJoinConfig": {"Sid": "S-1-5-21-1"},
		"ActiveDirectoryConfig": {"GroupManagedServiceAccounts": [{"Name": "webapp01", "Scope": "CORP"}],
		"HostAccountConfig": {"PortableCcgVersion": "1", "PluginGUID": "` + guid + `", "PluginInput": "gmsa:web\u0000𝄞"}}}`))
	want := HostAccountConfig{"1", guid, "gmsa:web\x00𝄞"}
	if err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
}

func TestParseSaysWhatIsMissing(t *testing.T) {
	for _, c := range []struct{ spec, says string }{
		{`nonsense`, "not JSON"},
		{`{}`, "no ActiveDirectoryConfig"},
		{`{"ActiveDirectoryConfig": {}}`, "no ActiveDirectoryConfig.HostAccountConfig"},
		{`{"ActiveDirectoryConfig": {"HostAccountConfig": {}}}`, `PortableCcgVersion is ""`},
		{`{"ActiveDirectoryConfig": {"HostAccountConfig": {"PortableCcgVersion": "1", "PluginGUID": "E4781092-F116-4B79-B55E-28EB6A224E26"}}}`, "with braces"},
	} {
		if _, err := Parse([]byte(c.spec)); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v; want it to say %q", c.spec, err, c.says)
		}
	}
}
