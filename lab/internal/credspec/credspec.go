// Package credspec reads of a credential spec what ccg.exe needs to find its plugin. It checks nothing else.
package credspec

import (
	"encoding/json"
	"fmt"
)

// HostAccountConfig is ActiveDirectoryConfig.HostAccountConfig of a credential spec.
type HostAccountConfig struct {
	PortableCcgVersion string
	PluginGUID         string // with braces
	PluginInput        string
}

// Parse reads a credential spec in JSON.
func Parse(content []byte) (HostAccountConfig, error) {
	var spec struct {
		ActiveDirectoryConfig *struct {
			HostAccountConfig *HostAccountConfig
		}
	}
	if err := json.Unmarshal(content, &spec); err != nil {
		return HostAccountConfig{}, fmt.Errorf("credential spec is not JSON: %w", err)
	}
	if spec.ActiveDirectoryConfig == nil {
		return HostAccountConfig{}, fmt.Errorf("credential spec has no ActiveDirectoryConfig")
	}
	config := spec.ActiveDirectoryConfig.HostAccountConfig
	if config == nil {
		return HostAccountConfig{}, fmt.Errorf("credential spec has no ActiveDirectoryConfig.HostAccountConfig: it is one for domain-joined hosts, which need no plugin")
	}
	if config.PortableCcgVersion != "1" {
		return HostAccountConfig{}, fmt.Errorf("HostAccountConfig.PortableCcgVersion is %q; write \"1\"", config.PortableCcgVersion)
	}
	if len(config.PluginGUID) != 38 || config.PluginGUID[0] != '{' || config.PluginGUID[37] != '}' {
		return HostAccountConfig{}, fmt.Errorf("HostAccountConfig.PluginGUID is %q; write the class id with braces", config.PluginGUID)
	}
	return *config, nil
}
