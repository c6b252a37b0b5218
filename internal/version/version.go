// Package version contains the version of this program.
package version

import "runtime/debug"

// version is set by the release build: -ldflags "-X github.com/ccgrkc/ccgrkc/internal/version.version=v1.2.3".
var version string

// String returns the version that the build set, else the module's version, else the commit, else "(devel)".
func String() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "(devel)"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return "(devel) " + s.Value[:12]
		}
	}
	return "(devel)"
}
