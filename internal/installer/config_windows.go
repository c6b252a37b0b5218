package installer

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/com"
	"github.com/ccgrkc/ccgrkc/internal/plugin/selftest"
	"golang.org/x/sys/windows"
)

// CLSID is the plugin's class.
const CLSID = com.CLSID

// RunAs is the account that the surrogate, and so the plugin, runs as.
type RunAs string

// The accounts without a password. COM does not start a server as SYSTEM.
const (
	NetworkService RunAs = "network-service"
	LocalService   RunAs = "local-service"
	LaunchingUser  RunAs = "launching-user" // the account that activates the class: no RunAs value
)

// account returns the data of AppID's RunAs value (Microsoft's "RunAs" page), "" for none.
func (r RunAs) account() (string, error) {
	switch r {
	case NetworkService:
		return `NT AUTHORITY\NetworkService`, nil
	case LocalService:
		return `NT AUTHORITY\LocalService`, nil
	case LaunchingUser:
		return "", nil
	}
	return "", fmt.Errorf("run-as %q is not known: use %s, %s or %s", r, NetworkService, LocalService, LaunchingUser)
}

// Config specifies what to install and where. The registry paths are below HKEY_LOCAL_MACHINE.
type Config struct {
	DLL            []byte // the plugin; uninstall needs none
	RunAs          RunAs
	ReplaceForeign bool // replace a foreign registration

	ProgramDir  string // directory of the DLL: an absolute path without \\?\
	Classes     string // COM's classes
	COMClasses  string // the classes that Container Credential Guard accepts; exists only with the Containers feature
	EventSource string
	Journal     string // owner and DACL of keys while they are changed
	Lock        string // a named mutex

	LockWait     time.Duration // for another installer to finish
	SelfTestWait time.Duration // for a surrogate with the previous version
	UnloadWait   time.Duration // uninstall: for a surrogate that has the DLL loaded

	Log *slog.Logger

	// activate replaces the activation by COM in tests, which register the class elsewhere than in
	// HKLM\SOFTWARE\Classes, where COM does not find it.
	activate func() (selftest.Report, error)
}

// DefaultConfig returns the configuration of a real host.
func DefaultConfig(log *slog.Logger) (Config, error) {
	programFiles, err := windows.KnownFolderPath(windows.FOLDERID_ProgramFiles, windows.KF_FLAG_DEFAULT)
	if err != nil {
		return Config{}, fmt.Errorf("find Program Files: %w", err)
	}
	return Config{
		RunAs:        NetworkService,
		ProgramDir:   filepath.Join(programFiles, "CCGRKC"),
		Classes:      `SOFTWARE\Classes`,
		COMClasses:   `SYSTEM\CurrentControlSet\Control\CCG\COMClasses`,
		EventSource:  `SYSTEM\CurrentControlSet\Services\EventLog\Application\CCGRKC`,
		Journal:      `SOFTWARE\CCGRKC\Installer`,
		Lock:         `Global\CCGRKC-installer`,
		LockWait:     time.Minute,
		SelfTestWait: 30 * time.Second,
		UnloadWait:   30 * time.Second,
		Log:          log,
	}, nil
}

func (c *Config) clsidKey() string      { return c.Classes + `\CLSID\` + CLSID }
func (c *Config) appIDKey() string      { return c.Classes + `\AppID\` + CLSID }
func (c *Config) comClassesKey() string { return c.COMClasses + `\` + CLSID }

// dllPath returns the path of this version's DLL.
func (c *Config) dllPath() string { return filepath.Join(c.ProgramDir, dllName(c.DLL)) }

// verbatim returns the form of a path that Windows does not parse and whose length is unlimited.
func verbatim(path string) string { return `\\?\` + strings.TrimPrefix(path, `\\?\`) }
