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

// step is one change that may be repeated. A process that is killed between two steps, or in the middle of one, leaves
// nothing that the next run does not repair.
type step struct {
	name string
	do   func(context.Context, *Config) error
}

// The order: nothing is changed before it is known that the change is wanted and can be finished; the DLL is there before
// anything names it; ccg.exe learns of the class last.
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

// Install makes the registration what it should be and proves that the class answers. It changes nothing on a host where
// all is well.
func Install(ctx context.Context, c *Config) error {
	if len(c.DLL) == 0 {
		return errors.New("install: there is no DLL to install")
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

// locked keeps two installers from interleaving. A predecessor that was killed does not hold the lock.
func (c *Config) locked(ctx context.Context, fn func() error) error {
	runtime.LockOSThread() // a mutex belongs to the thread that waited for it
	defer runtime.UnlockOSThread()
	// The DACL keeps other users from a mutex that an installer made. It does not keep a user from making one of this name
	// first and holding it: that denies the installation, and gives nothing else away.
	descriptor, err := windows.SecurityDescriptorFromString("D:P(A;;GA;;;SY)(A;;GA;;;BA)")
	if err != nil {
		return err
	}
	attributes := &windows.SecurityAttributes{Length: uint32(unsafe.Sizeof(windows.SecurityAttributes{})), SecurityDescriptor: descriptor}
	mutex, err := windows.CreateMutex(attributes, false, windows.StringToUTF16Ptr(c.Lock))
	if mutex == 0 {
		return fmt.Errorf("lock %s: %w; SYSTEM or an elevated administrator can take it, unless another program made "+
			"a mutex of that name", c.Lock, err)
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
			return fmt.Errorf("another installer has held lock %s for %v: let it finish, or end it, and start again", c.Lock, c.LockWait)
		}
	}
}

// checkHost refuses before anything is changed.
func (c *Config) checkHost() error {
	present, err := keyExists(c.COMClasses)
	if err != nil {
		return err
	}
	if !present {
		return fmt.Errorf(`the Containers feature is not enabled on this host: HKLM\%s does not exist; enable the feature `+
			`(Install-WindowsFeature Containers), restart the host, and install again`, c.COMClasses)
	}
	foreign, err := c.foreign()
	if err != nil {
		return err
	}
	if foreign != "" && !c.ReplaceForeign {
		return fmt.Errorf("class %s is already registered: %s; uninstall that first, or let this installer replace its "+
			"registration with --replace-foreign", CLSID, foreign)
	}
	return nil
}

// foreign names somebody else's registration of the class, "" if there is none. A CLSID key that carries this project's
// description is its own, and whatever else is wrong in it is drift.
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
		return fmt.Sprintf("a .NET COM+ class (mscoree.dll, %q, assembly %q, AppID %s), as Rancher's C# plugin registers it",
			name, assembly, appID), nil
	case c.isOwnDLL(inproc), inproc == "" && local == "":
		return "", nil // one of ours that lost its description, or that a killed installer had only begun
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
	c.Log.Warn("replacing another registration of the class", "class", CLSID, "found", foreign)
	return deleteTree(c.clsidKey())
}

func (c *Config) writeKey(path string) error {
	key, err := c.wantedKey(path)
	if err != nil {
		return err
	}
	return key.write()
}

// registerWithCCG needs access to the class's own key if it is there, else to its parent.
func (c *Config) registerWithCCG() error {
	key, err := c.wantedKey(c.comClassesKey())
	if err != nil {
		return err
	}
	rows, err := key.compare()
	if err != nil {
		return err
	}
	whole, absent := true, false
	for _, row := range rows {
		whole, absent = whole && row.State == OK, absent || row.State == Missing
	}
	if !whole && absent {
		err = c.withAccess(c.COMClasses, func() error { return c.createUnderCCG(key) })
	} else if !whole {
		err = c.withAccess(c.comClassesKey(), key.write)
	}
	if err != nil {
		return err
	}
	return c.removeJournalKey()
}

// createUnderCCG writes through the handle that made the key: the key inherits a DACL that would not let this process
// open it again for writing.
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

// removeOldVersions never fails an install: what is still loaded stays for the next pass.
func (c *Config) removeOldVersions() error {
	files, err := c.leftovers(c.dllPath())
	if err != nil {
		c.Log.Warn("old versions were not looked for", "directory", c.ProgramDir, "error", err)
		return nil
	}
	if left, err := removeFiles(files); len(left) > 0 {
		c.Log.Info("files of other versions are still in use, they are removed later", "files", left, "error", err)
	}
	return nil
}
