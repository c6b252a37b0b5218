package installer

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"strings"
	"time"
	"unsafe"

	"github.com/ccgrkc/ccgrkc/internal/faultpoint"
	"github.com/ccgrkc/ccgrkc/internal/winsec"
	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"
)

// step is one change that can be repeated. If a process is killed between two steps or during one, the next run repairs
// the host.
type step struct {
	name string
	do   func(context.Context, *Config) error
}

// The order: all checks precede the first change; the DLL precedes the keys that contain its path; the registration
// with CCG is last.
var installSteps = []step{
	{"journal", func(_ context.Context, c *Config) error { return c.finishJournal() }},
	{"check", func(_ context.Context, c *Config) error { return c.checkHost() }},
	{"directory", func(_ context.Context, c *Config) error {
		return winsec.SecureDir(verbatim(c.ProgramDir), winsec.DirProgram)
	}},
	{"dll", func(_ context.Context, c *Config) error { return c.storeDLL() }},
	{"foreign", func(_ context.Context, c *Config) error { return c.removeForeign() }},
	{"event-source", func(_ context.Context, c *Config) error { return c.writeKey(c.EventSource) }},
	{"appid", func(_ context.Context, c *Config) error { return c.writeKey(c.appIDKey()) }},
	{"clsid", func(_ context.Context, c *Config) error { return c.writeKey(c.clsidKey()) }},
	{"inproc-server", func(_ context.Context, c *Config) error { return c.writeKey(c.clsidKey() + `\InprocServer32`) }},
	{"comclasses", func(_ context.Context, c *Config) error { return c.registerWithCCG() }},
	{"self-test", func(ctx context.Context, c *Config) error {
		return c.selfTestUntil(ctx, c.SelfTestWait).asError()
	}},
	{"old-versions", func(_ context.Context, c *Config) error { return c.removeOldVersions() }},
}

// Install installs or repairs the plugin and runs the self-test. It changes nothing if the installation is ok.
func Install(ctx context.Context, c *Config) error {
	if len(c.DLL) == 0 {
		return errors.New("install: the configuration has no DLL")
	}
	return c.runSteps(ctx, "install", installSteps)
}

func (c *Config) runSteps(ctx context.Context, what string, steps []step) error {
	return c.locked(ctx, func() error {
		faultpoint.Reached(what + ".begin")
		for _, step := range steps {
			if err := ctx.Err(); err != nil {
				return fmt.Errorf("%s was stopped before step %s: %w", what, step.name, err)
			}
			c.Log.Debug("step", "of", what, "name", step.name)
			if err := step.do(ctx, c); err != nil {
				return fmt.Errorf("%s, step %s: %w", what, step.name, err)
			}
			faultpoint.Reached(what + "." + step.name)
		}
		return nil
	})
}

// locked ensures that only one installer runs. A killed process does not hold the lock.
func (c *Config) locked(ctx context.Context, fn func() error) error {
	runtime.LockOSThread() // a mutex belongs to the thread that acquired it
	defer runtime.UnlockOSThread()
	// The DACL denies other users the installer's mutex. A user can still create a mutex of this name first: that
	// blocks the installation but has no other effect.
	descriptor, err := windows.SecurityDescriptorFromString("D:P(A;;GA;;;SY)(A;;GA;;;BA)")
	if err != nil {
		return err
	}
	attributes := &windows.SecurityAttributes{
		Length:             uint32(unsafe.Sizeof(windows.SecurityAttributes{})),
		SecurityDescriptor: descriptor,
	}
	mutex, err := windows.CreateMutex(attributes, false, windows.StringToUTF16Ptr(c.Lock))
	if mutex == 0 {
		return fmt.Errorf("lock %s: %w; run as SYSTEM or as an elevated administrator, and check that no other "+
			"program has a mutex of that name", c.Lock, err)
	}
	defer windows.CloseHandle(mutex)
	for deadline := time.Now().Add(c.LockWait); ; {
		event, err := windows.WaitForSingleObject(mutex, 100)
		switch {
		case event == windows.WAIT_OBJECT_0 || event == windows.WAIT_ABANDONED:
			defer windows.ReleaseMutex(mutex)
			return fn()
		case event != uint32(windows.WAIT_TIMEOUT):
			return fmt.Errorf("wait for lock %s: %w", c.Lock, err)
		case ctx.Err() != nil:
			return fmt.Errorf("stopped while waiting for lock %s: %w", c.Lock, ctx.Err())
		case time.Now().After(deadline):
			return fmt.Errorf("another installer has held lock %s for %v: wait until it exits, or stop it, and retry",
				c.Lock, c.LockWait)
		}
	}
}

// checkHost fails before the first change if the host cannot be installed.
func (c *Config) checkHost() error {
	present, err := keyExists(c.COMClasses)
	if err != nil {
		return err
	}
	if !present {
		return fmt.Errorf(`the Containers feature is not enabled on this host: HKLM\%s does not exist; `+
			`enable the feature (Install-WindowsFeature Containers), restart the host, and install again`, c.COMClasses)
	}
	foreign, err := c.foreign()
	if err != nil {
		return err
	}
	if foreign != "" && !c.ReplaceForeign {
		return fmt.Errorf("class %s is already registered: %s; uninstall that product first, or replace its "+
			"registration with --replace-foreign", CLSID, foreign)
	}
	return nil
}

// foreign describes a foreign registration of the class, "" if there is none. A CLSID key with this project's
// description is its own; other differences in it are drift.
func (c *Config) foreign() (string, error) {
	present, err := keyExists(c.clsidKey())
	if err != nil || !present || readText(c.clsidKey(), "") == description {
		return "", err
	}
	inproc, local := readText(c.clsidKey()+`\InprocServer32`, ""), readText(c.clsidKey()+`\LocalServer32`, "")
	appID, name := readText(c.clsidKey(), "AppID"), readText(c.clsidKey(), "")
	switch {
	case strings.EqualFold(filepath.Base(inproc), "mscoree.dll"):
		assembly := readText(c.clsidKey()+`\InprocServer32`, "Assembly")
		return fmt.Sprintf("a .NET COM+ class (mscoree.dll, %q, assembly %q, AppID %s), as Rancher's C# plugin "+
			"registers it",
			name, assembly, appID), nil
	case c.isOwnDLL(inproc), inproc == "" && local == "":
		return "", nil // ours, without description or from a killed installer
	}
	return fmt.Sprintf("%q, server %q, AppID %s", name, inproc+local, appID), nil
}

func (c *Config) isOwnDLL(path string) bool {
	return strings.EqualFold(filepath.Dir(path), c.ProgramDir) && ourFile(filepath.Base(path))
}

func (c *Config) removeForeign() error {
	foreign, err := c.foreign()
	if err != nil || foreign == "" {
		return err
	}
	c.Log.Warn("replacing a foreign registration of the class", "class", CLSID, "found", foreign)
	return deleteTree(c.clsidKey())
}

func (c *Config) writeKey(path string) error {
	key, err := c.wantedKey(path)
	if err != nil {
		return err
	}
	return key.write()
}

// registerWithCCG needs access to the class's key if that exists, otherwise to its parent.
func (c *Config) registerWithCCG() error {
	key, err := c.wantedKey(c.comClassesKey())
	if err != nil {
		return err
	}
	rows, err := key.compare()
	if err != nil {
		return err
	}
	complete, absent := true, false
	for _, row := range rows {
		complete, absent = complete && row.State == OK, absent || row.State == Missing
	}
	if !complete && absent {
		err = c.withAccess(c.COMClasses, func() error { return c.createUnderCCG(key) })
	} else if !complete {
		err = c.withAccess(c.comClassesKey(), key.write)
	}
	if err != nil {
		return err
	}
	return c.removeJournalKey()
}

// createUnderCCG writes with the handle that created the key: the key inherits a DACL that denies this process to open
// it again for writing.
func (c *Config) createUnderCCG(k key) error {
	parent, err := openKey(c.COMClasses, registry.CREATE_SUB_KEY)
	if err != nil {
		return err
	}
	defer parent.Close()
	h, _, err := registry.CreateKey(parent, CLSID, registry.READ|registry.WRITE|registry.WOW64_64KEY)
	if err != nil {
		return fmt.Errorf(`create HKLM\%s: %w`, k.path, err)
	}
	defer h.Close()
	return k.fill(h)
}

// removeOldVersions never fails an install: the next run removes files that are loaded now.
func (c *Config) removeOldVersions() error {
	files, err := c.leftovers(c.dllPath())
	if err != nil {
		c.Log.Warn("old versions could not be listed", "directory", c.ProgramDir, "error", err)
		return nil
	}
	if left, err := removeFiles(files); len(left) > 0 {
		c.Log.Info("files of other versions are in use and will be removed later", "files", left, "error", err)
	}
	return nil
}
