package installer

import (
	"embed"
	"errors"
)

// The build puts ccg-plugin.dll into this directory; a checkout has none, so the pattern names the directory.
//
//go:embed all:dll
var embedded embed.FS

// EmbeddedDLL returns the plugin that this binary carries.
func EmbeddedDLL() ([]byte, error) {
	dll, err := embedded.ReadFile("dll/ccg-plugin.dll")
	if err != nil {
		return nil, errors.New("this binary was built without ccg-plugin.dll: build the DLL first, put it into " +
			"internal/installer/dll, and build the installer again")
	}
	return dll, nil
}
