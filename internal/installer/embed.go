package installer

import (
	"embed"
	"errors"
)

// The build copies ccg-plugin.dll into this directory. A checkout has no DLL, so the pattern matches the directory.
//
//go:embed all:dll
var embedded embed.FS

// EmbeddedDLL returns the plugin that this binary contains.
func EmbeddedDLL() ([]byte, error) {
	dll, err := embedded.ReadFile("dll/ccg-plugin.dll")
	if err != nil {
		return nil, errors.New("this binary was built without ccg-plugin.dll: build the DLL, copy it to " +
			"internal/installer/dll, and build the installer again")
	}
	return dll, nil
}
