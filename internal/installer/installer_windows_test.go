package installer

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/ccgrkc/ccgrkc/internal/com"
	"github.com/ccgrkc/ccgrkc/internal/plugin/selftest"
	"github.com/ccgrkc/ccgrkc/internal/selfcheck"
	"github.com/ccgrkc/ccgrkc/internal/selfcheck/record"
	"github.com/ccgrkc/ccgrkc/internal/winsec"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"
)

// The tests work below a key and a directory of their own, so that they leave a real host's registration alone. They
// need an elevated administrator.

type host struct {
	Config
	root string // everything of the registry, below HKEY_LOCAL_MACHINE
	log  *syncBuffer
}

// newHost is a host with the Containers feature, whose class answers from whatever InprocServer32 names, as COM does.
func newHost(t *testing.T) *host {
	t.Helper()
	root := `SOFTWARE\CCGRKC-test-` + strings.ToLower(rand.Text()[:10])
	dir, err := os.MkdirTemp("", "ccgrkc")
	if err != nil {
		t.Fatal(err)
	}
	long := make([]uint16, 1024) // TEMP may hold 8.3 names, which SecureDir rightly takes for another place
	if _, err := windows.GetLongPathName(windows.StringToUTF16Ptr(dir), &long[0], uint32(len(long))); err != nil {
		t.Fatal(err)
	}
	dir = windows.UTF16ToString(long)
	h := testHost(root, dir)
	createKey(t, h.COMClasses)
	t.Cleanup(func() {
		if err := winsec.RunWithPrivileges(ownershipPrivileges,
			func() error { unlockTree(root); return deleteTree(root) }); err != nil {
			t.Error(err)
		}
		removeTree(t, dir)
	})
	return h
}

func testHost(root, dir string) *host {
	log := &syncBuffer{}
	return &host{root: root, log: log, Config: Config{
		DLL:          []byte("version one"),
		RunAs:        NetworkService,
		ProgramDir:   filepath.Join(dir, "CCGRKC"),
		Classes:      root + `\Classes`,
		COMClasses:   root + `\CCG\COMClasses`,
		EventSource:  root + `\EventLog\CCGRKC`,
		Journal:      root + `\Software\CCGRKC\Installer`,
		Lock:         `Global\` + strings.ReplaceAll(root, `\`, "-"),
		LockWait:     10 * time.Second,
		SelfTestWait: 5 * time.Second,
		Log:          slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		activate: func() (selftest.Report, error) {
			path := readText(root+`\Classes\CLSID\`+CLSID+`\InprocServer32`, "")
			if _, err := os.Stat(path); err != nil {
				return selftest.Report{}, err
			}
			return selftest.Report{Version: "test", Identity: "test", Module: path, PID: 1}, nil
		},
	}}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}
func (s *syncBuffer) String() string { s.mu.Lock(); defer s.mu.Unlock(); return s.b.String() }

// removeTree is not os.RemoveAll, which asks for a way of deleting that Wine does not have.
func removeTree(t *testing.T, path string) {
	entries, _ := os.ReadDir(path)
	for _, entry := range entries {
		removeTree(t, filepath.Join(path, entry.Name()))
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// unlockTree undoes what restrict has done, top down.
func unlockTree(path string) {
	if takeOwnership(path) != nil || grantSelf(path, "D:") != nil {
		return
	}
	h, err := openKey(path, registry.READ)
	if err != nil {
		return
	}
	names, _ := h.ReadSubKeyNames(0)
	h.Close()
	for _, name := range names {
		unlockTree(path + `\` + name)
	}
}

func createKey(t *testing.T, path string) {
	t.Helper()
	h, _, err := registry.CreateKey(registry.LOCAL_MACHINE, path, registry.WRITE)
	if err != nil {
		t.Fatalf("create HKLM\\%s (the tests need an elevated administrator): %v", path, err)
	}
	h.Close()
}

func setValue(t *testing.T, path string, v value) {
	t.Helper()
	h, _, err := registry.CreateKey(registry.LOCAL_MACHINE, path, registry.WRITE)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := writeValue(h, v); err != nil {
		t.Fatal(err)
	}
}

// restricted is COMClasses as Windows ships it: TrustedInstaller owns it and may write (KA), everybody else may read
// (KR). Wine 8 does not let SeTakeOwnershipPrivilege open a key for WRITE_OWNER, so there the DACL grants that and no
// more.
func restricted() string {
	admins := "KR"
	if windows.NewLazySystemDLL("kernel32.dll").NewProc("wine_get_unix_file_name").Find() == nil {
		admins = "0xa0019" // KR and WRITE_OWNER
	}
	const trustedInstaller = "S-1-5-80-956008885-3418522649-1831038044-1853292631-2271478464"
	return "O:" + trustedInstaller + "D:PAI(A;CI;KA;;;" + trustedInstaller + ")(A;CI;KR;;;SY)(A;CI;" + admins + ";;;BA)(A;CI;KR;;;BU)"
}

// restrict gives COMClasses that descriptor, and the class's key below it too if there is one: on Windows that inherits
// it, on Wine it does not. It returns what COMClasses reads back as.
func (h *host) restrict(t *testing.T) string {
	t.Helper()
	paths := []string{h.COMClasses}
	if present, _ := keyExists(h.comClassesKey()); present {
		paths = append(paths, h.comClassesKey())
	}
	for _, path := range paths {
		err := winsec.RunWithPrivileges(ownershipPrivileges,
			func() error { return restoreDescriptor(path, restricted()) })
		if err != nil {
			t.Fatal(err)
		}
		if k, err := registry.OpenKey(registry.LOCAL_MACHINE, path, registry.WRITE); err == nil {
			k.Close()
			t.Fatal("this process may write to a key that only TrustedInstaller may write to: the test would prove " +
				"nothing")
		}
	}
	return h.comClassesDescriptor(t)
}

func (h *host) comClassesDescriptor(t *testing.T) string {
	t.Helper()
	sddl, err := keyDescriptor(h.COMClasses)
	if err != nil {
		t.Fatal(err)
	}
	return sddl
}

// snapshot is everything below the test's root, so that "nothing was changed" and "nothing is left" mean what they say.
func (h *host) snapshot(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	var walk func(path string)
	walk = func(path string) {
		k, err := registry.OpenKey(registry.LOCAL_MACHINE, path, registry.READ)
		if err != nil {
			t.Fatal(err)
		}
		defer k.Close()
		all[path] = "key"
		values, _ := k.ReadValueNames(0)
		for _, name := range values {
			v, err := readValue(k, name)
			if err != nil {
				t.Fatal(err)
			}
			all[path+" @"+name] = fmt.Sprint(v.kind, v.data)
		}
		subkeys, _ := k.ReadSubKeyNames(0)
		for _, name := range subkeys {
			walk(path + `\` + name)
		}
	}
	walk(h.root)
	entries, _ := os.ReadDir(h.ProgramDir)
	for _, entry := range entries {
		content, _ := os.ReadFile(filepath.Join(h.ProgramDir, entry.Name()))
		all["file "+entry.Name()] = string(content)
	}
	return all
}

func (h *host) install(t *testing.T) {
	t.Helper()
	if err := Install(t.Context(), &h.Config); err != nil {
		t.Fatalf("install: %v\n%s", err, h.log)
	}
}

func (h *host) wantState(t *testing.T, want State) *Report {
	t.Helper()
	report, err := Status(t.Context(), &h.Config)
	if err != nil {
		t.Fatal(err)
	}
	if report.State != want {
		var b strings.Builder
		report.WriteText(&b)
		t.Fatalf("state is %q, want %q\n%s", report.State, want, b.String())
	}
	return report
}

// wantClean is true of a host on which nothing was ever installed, but for empty keys above this project's.
func (h *host) wantClean(t *testing.T) {
	t.Helper()
	report := h.wantState(t, NotInstalled)
	if len(report.Leftovers)+len(report.Journal) > 0 {
		t.Errorf("left: %q, journal %q", report.Leftovers, report.Journal)
	}
	if _, err := os.Stat(h.ProgramDir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: %v, want it gone", h.ProgramDir, err)
	}
	for name := range h.snapshot(t) {
		if strings.Contains(name, CLSID) || strings.Contains(name, "CCGRKC\\") ||
			strings.HasSuffix(name, "EventLog\\CCGRKC") {
			t.Errorf("left: %s", name)
		}
	}
}

func TestInstallThenStatusThenUninstallLeavesNothing(t *testing.T) {
	h := newHost(t)
	h.wantState(t, NotInstalled)
	h.install(t)
	report := h.wantState(t, Installed)
	if report.SelfTest == nil || !strings.EqualFold(report.SelfTest.Module, h.dllPath()) {
		t.Errorf("self-test: %+v", report.SelfTest)
	}
	if err := Uninstall(t.Context(), &h.Config); err != nil {
		t.Fatal(err)
	}
	h.wantClean(t)
	if err := Uninstall(t.Context(), &h.Config); err != nil {
		t.Fatalf("uninstalling what is not installed: %v", err)
	}
}

func TestTheRegistrationHasTheDocumentedKeysAndValues(t *testing.T) {
	h := newHost(t)
	h.install(t)
	for path, want := range map[string]map[string]string{
		h.clsidKey():                     {"": description, "AppID": CLSID},
		h.clsidKey() + `\InprocServer32`: {"": h.dllPath(), "ThreadingModel": "Both"},
		h.appIDKey():                     {"": description, "DllSurrogate": "", "RunAs": `NT AUTHORITY\NetworkService`},
		h.comClassesKey():                {"": ""},
		h.EventSource:                    {"EventMessageFile": h.dllPath()},
	} {
		for name, data := range want {
			if got := readText(path, name); got != data {
				t.Errorf("%s @%s is %q, want %q", path, name, got, data)
			}
		}
	}
	k, err := registry.OpenKey(registry.LOCAL_MACHINE, h.appIDKey(), registry.READ)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	for _, name := range []string{"LaunchPermission", "AccessPermission"} {
		data, _, err := k.GetBinaryValue(name)
		if err != nil {
			t.Fatal(err)
		}
		sd := (*windows.SECURITY_DESCRIPTOR)(unsafe.Pointer(&data[0]))
		control, _, err := sd.Control()
		if err != nil || control&windows.SE_SELF_RELATIVE == 0 || int(sd.Length()) != len(data) {
			t.Errorf("%s is not a self-relative descriptor: control %#x, %d of %d bytes, %v", name, control,
				sd.Length(), len(data), err)
		}
		dacl, _, err := sd.DACL()
		if err != nil || dacl.AceCount != 2 {
			t.Fatalf("%s: %v, want two entries", name, err)
		}
		for i, sid := range []string{"S-1-5-18", "S-1-5-6"} {
			var ace *windows.ACCESS_ALLOWED_ACE
			if err := windows.GetAce(dacl, uint32(i), &ace); err != nil {
				t.Fatal(err)
			}
			if got := (*windows.SID)(unsafe.Pointer(&ace.SidStart)).String(); got != sid || ace.Mask != 0x0b ||
				ace.Header.AceType != 0 {
				t.Errorf("%s, entry %d: type %d, mask %#x for %s; want allow, 0xb for %s", name, i, ace.Header.AceType,
					ace.Mask, got, sid)
			}
		}
		owner, _, _ := sd.Owner()
		group, _, _ := sd.Group()
		if owner.String() != "S-1-5-32-544" || group.String() != "S-1-5-32-544" {
			t.Errorf("%s: owner %s, group %s; want Administrators", name, owner, group)
		}
	}
}

func TestInstallingTwiceChangesNothing(t *testing.T) {
	h := newHost(t)
	h.install(t)
	before := h.snapshot(t)
	h.install(t)
	if diff := cmp.Diff(before, h.snapshot(t)); diff != "" {
		t.Error(diff)
	}
}

func TestRunAsIsConfigurable(t *testing.T) {
	h := newHost(t)
	for runAs, account := range map[RunAs]string{NetworkService: `NT AUTHORITY\NetworkService`,
		LocalService: `NT AUTHORITY\LocalService`, LaunchingUser: ""} {
		h.RunAs = runAs
		h.install(t)
		if got := readText(h.appIDKey(), "RunAs"); got != account {
			t.Errorf("%s: RunAs is %q, want %q", runAs, got, account)
		}
		h.wantState(t, Installed)
	}
	h.RunAs = "system"
	if err := Install(t.Context(), &h.Config); err == nil || !strings.Contains(err.Error(), "use network-service") {
		t.Errorf("got %v, want a refusal that lists the accounts", err)
	}
}

func TestWithoutTheContainersFeatureInstallFailsAndChangesNothing(t *testing.T) {
	h := newHost(t)
	if err := deleteTree(h.root + `\CCG`); err != nil {
		t.Fatal(err)
	}
	createKey(t, h.root)
	before := h.snapshot(t)
	err := Install(t.Context(), &h.Config)
	if err == nil || !strings.Contains(err.Error(), "Containers feature is not enabled") ||
		!strings.Contains(err.Error(), "restart") {
		t.Fatalf("got %v", err)
	}
	if diff := cmp.Diff(before, h.snapshot(t)); diff != "" {
		t.Error(diff)
	}
	if report := h.wantState(t, NotInstalled); len(report.Notes) != 1 ||
		!strings.Contains(report.Notes[0], "Containers feature") {
		t.Errorf("notes: %q", report.Notes)
	}
	if err := Uninstall(t.Context(), &h.Config); err != nil {
		t.Errorf("uninstall: %v", err)
	}
}

func TestOwnerAndDACLOfCOMClassesAreTheSameAfterEveryOutcome(t *testing.T) {
	t.Run("installed and uninstalled", func(t *testing.T) {
		h := newHost(t)
		before := h.restrict(t)
		h.install(t)
		if after := h.comClassesDescriptor(t); after != before {
			t.Errorf("after install %s, before %s", after, before)
		}
		h.wantState(t, Installed)
		if again := h.restrict(t); again != before {
			t.Fatalf("%s, want %s", again, before)
		}
		if err := Uninstall(t.Context(), &h.Config); err != nil {
			t.Fatal(err)
		}
		if after := h.comClassesDescriptor(t); after != before {
			t.Errorf("after uninstall %s, before %s", after, before)
		}
		h.wantClean(t)
	})
	t.Run("drift healed in a key that this process may not write to", func(t *testing.T) {
		h := newHost(t)
		h.install(t)
		setValue(t, h.comClassesKey(), text("", "tampered"))
		before := h.restrict(t)
		ownBefore, _ := keyDescriptor(h.comClassesKey())
		h.install(t)
		h.wantState(t, Installed)
		if after, _ := keyDescriptor(h.comClassesKey()); after != ownBefore {
			t.Errorf("the class's key: after %s, before %s", after, ownBefore)
		}
		if after := h.comClassesDescriptor(t); after != before {
			t.Errorf("after %s, before %s", after, before)
		}
	})
	t.Run("the change fails, and panics", func(t *testing.T) {
		h := newHost(t)
		before := h.restrict(t)
		wanted := errors.New("disk full")
		calls := 0
		err := h.withAccess(h.COMClasses, func() error {
			if calls++; calls == 1 {
				return windows.ERROR_ACCESS_DENIED
			}
			if now := h.comClassesDescriptor(t); now == before {
				t.Error("nothing was taken: the test proves nothing")
			}
			return wanted
		})
		if !errors.Is(err, wanted) || calls != 2 {
			t.Errorf("got %v after %d calls", err, calls)
		}
		func() {
			defer func() { recover() }()
			calls = 0
			h.withAccess(h.COMClasses, func() error {
				if calls++; calls == 1 {
					return windows.ERROR_ACCESS_DENIED
				}
				panic("bug")
			})
		}()
		if after := h.comClassesDescriptor(t); after != before {
			t.Errorf("after %s, before %s", after, before)
		}
		if entries, err := h.journalEntries(); err != nil || len(entries) > 0 {
			t.Errorf("journal: %q, %v", entries, err)
		}
	})
	t.Run("access was there already: nothing is touched or journalled", func(t *testing.T) {
		h := newHost(t)
		before := h.comClassesDescriptor(t)
		err := h.withAccess(h.COMClasses, func() error {
			if now := h.comClassesDescriptor(t); now != before {
				t.Errorf("touched: %s, before %s", now, before)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if present, _ := keyExists(h.Journal); present {
			t.Error("a journal was written")
		}
	})
}

func TestAJournalEntryForAnotherKeyIsRejected(t *testing.T) {
	h := newHost(t)
	setValue(t, h.Journal, text(`SYSTEM\CurrentControlSet\Services`, "O:BAD:(A;;KA;;;WD)"))
	err := Install(t.Context(), &h.Config)
	if err == nil || !strings.Contains(err.Error(), `SYSTEM\\CurrentControlSet\\Services`) {
		t.Fatalf("got %v", err)
	}
}

func TestAForeignRegistrationIsReplacedOnlyOnRequest(t *testing.T) {
	register := map[string]func(*testing.T, *host){
		"mscoree.dll": func(t *testing.T, h *host) { // what regsvcs leaves for Rancher's C# plugin
			setValue(t, h.clsidKey(), text("", "CcgCredProvider"))
			setValue(t, h.clsidKey(), text("AppID", "{FBC9F3C0-9E2C-4B68-A2C7-3B6F3A1B2C11}"))
			setValue(t, h.clsidKey()+`\InprocServer32`, text("", "mscoree.dll"))
			setValue(t, h.clsidKey()+`\InprocServer32`, text("Assembly", "RanchergMSACredentialProvider"))
			createKey(t, h.clsidKey()+`\ProgId`)
		},
		`C:\Other\vendor.dll`: func(t *testing.T, h *host) {
			setValue(t, h.clsidKey(), text("", "Another vendor"))
			setValue(t, h.clsidKey()+`\InprocServer32`, text("", `C:\Other\vendor.dll`))
		},
		`C:\Other\vendor.exe`: func(t *testing.T, h *host) {
			setValue(t, h.clsidKey()+`\LocalServer32`, text("", `C:\Other\vendor.exe`))
		},
	}
	for name, register := range register {
		t.Run(filepath.Base(name), func(t *testing.T) {
			h := newHost(t)
			register(t, h)
			createKey(t, h.comClassesKey())
			before := h.snapshot(t)
			err := Install(t.Context(), &h.Config)
			if err == nil || !strings.Contains(err.Error(), filepath.Base(name)) ||
				!strings.Contains(err.Error(), "--replace-foreign") {
				t.Fatalf("got %v, want a refusal that names %s and the way on", err, name)
			}
			if report := h.wantState(t, Drift); !strings.Contains(report.Foreign, filepath.Base(name)) {
				t.Errorf("status names %q", report.Foreign)
			}
			if err := Uninstall(t.Context(), &h.Config); err != nil {
				t.Errorf("uninstall: %v", err)
			}
			if diff := cmp.Diff(before, h.snapshot(t)); diff != "" {
				t.Errorf("another product's registration was changed: %s", diff)
			}
			h.ReplaceForeign = true
			h.install(t)
			h.wantState(t, Installed)
		})
	}
}

func TestAChangeOfAnyValueIsDetectedAndRepaired(t *testing.T) {
	h := newHost(t)
	h.install(t)
	wanted, err := h.wanted()
	if err != nil {
		t.Fatal(err)
	}
	drifts := map[string]func(){}
	for _, key := range wanted {
		drifts["key "+key.path] = func() {
			if err := deleteTree(key.path); err != nil {
				t.Fatal(err)
			}
		}
		for _, v := range key.values {
			id := key.path + " @" + v.name
			drifts["other data "+id] = func() { setValue(t, key.path, text(v.name, "tampered")) }
			if v.kind != registry.BINARY {
				drifts["other type "+id] = func() {
					setValue(t, key.path,
						value{name: v.name, kind: registry.BINARY, data: v.data})
				}
			}
			drifts["no value "+id] = func() {
				k, err := registry.OpenKey(registry.LOCAL_MACHINE, key.path, registry.WRITE)
				if err != nil {
					t.Fatal(err)
				}
				defer k.Close()
				if err := k.DeleteValue(v.name); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	// Attack: an entry that is not in the list sends COM elsewhere.
	drifts["LocalServer32"] = func() { setValue(t, h.clsidKey()+`\LocalServer32`, text("", `C:\evil.exe`)) }
	drifts["TreatAs"] = func() { setValue(t, h.clsidKey()+`\TreatAs`, text("", CLSID)) }
	drifts["LocalService"] = func() { setValue(t, h.appIDKey(), text("LocalService", "evil")) }
	for name, drift := range drifts {
		drift()
		report := h.wantState(t, Drift)
		if !slices.ContainsFunc(report.Rows, func(r Row) bool { return r.State != OK }) {
			t.Errorf("%s: no row shows it", name)
		}
		h.install(t)
		h.wantState(t, Installed)
	}
}

// Attack: the stored DLL is swapped for another.
func TestAChangedDLLIsDetectedAndRepaired(t *testing.T) {
	h := newHost(t)
	h.install(t)
	for _, swap := range []func() error{
		func() error { return os.WriteFile(h.dllPath(), []byte("evil"), 0o600) },
		func() error { return os.WriteFile(h.dllPath(), nil, 0o600) },
		func() error { return os.Remove(h.dllPath()) },
		func() error { return errors.Join(os.Remove(h.dllPath()), os.Mkdir(h.dllPath(), 0o700)) },
	} {
		if err := swap(); err != nil {
			t.Fatal(err)
		}
		h.wantState(t, Drift)
		h.install(t)
		if report := h.wantState(t, Installed); len(report.Leftovers) > 0 {
			t.Errorf("left: %q", report.Leftovers)
		}
	}
}

func TestUpgradeAddsTheNewDLLAndRemovesTheOldOneWhenUnused(t *testing.T) {
	h := newHost(t)
	dll, err := os.ReadFile(filepath.Join(systemDirectory(t), "version.dll"))
	if err != nil {
		t.Fatal(err)
	}
	h.DLL = dll
	h.install(t)
	old := h.dllPath()
	loaded, err := windows.LoadLibrary(old) // a surrogate that lives on
	if err != nil {
		t.Fatal(err)
	}
	h.DLL = []byte("version two")
	h.install(t)
	if report := h.wantState(t, Installed); len(report.Leftovers) != 1 || !strings.EqualFold(report.Leftovers[0], old) {
		t.Errorf("leftovers %q, want %s", report.Leftovers, old)
	}
	if err := windows.FreeLibrary(loaded); err != nil {
		t.Fatal(err)
	}
	h.install(t)
	if report := h.wantState(t, Installed); len(report.Leftovers) != 0 {
		t.Errorf("leftovers %q, want none", report.Leftovers)
	}
}

func TestAReplacedDLLThatIsLoadedIsRepaired(t *testing.T) {
	h := newHost(t)
	h.install(t)
	dll, err := os.ReadFile(filepath.Join(systemDirectory(t), "version.dll"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(h.dllPath(), dll, 0o600); err != nil {
		t.Fatal(err)
	}
	loaded, err := windows.LoadLibrary(h.dllPath())
	if err != nil {
		t.Fatal(err)
	}
	defer windows.FreeLibrary(loaded)
	h.install(t)
	h.wantState(t, Installed)
}

func TestUninstallMovesALoadedDLLAndReportsIt(t *testing.T) {
	h := newHost(t)
	dll, err := os.ReadFile(filepath.Join(systemDirectory(t), "version.dll"))
	if err != nil {
		t.Fatal(err)
	}
	h.DLL = dll
	h.install(t)
	path := h.dllPath()
	loaded, err := windows.LoadLibrary(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := Uninstall(t.Context(), &h.Config); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: %v, want it moved aside", path, err)
	}
	if !strings.Contains(h.log.String(), "deleted when the host restarts") {
		t.Errorf("the log does not say what is left:\n%s", h.log)
	}
	if report := h.wantState(t, NotInstalled); len(report.Leftovers) != 1 {
		t.Errorf("leftovers: %q", report.Leftovers)
	}
	windows.FreeLibrary(loaded)
	if err := Uninstall(t.Context(), &h.Config); err != nil {
		t.Fatal(err)
	}
	h.wantClean(t)
}

func systemDirectory(t *testing.T) string {
	t.Helper()
	dir, err := windows.GetSystemDirectory()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// Attack: an ordinary user puts something at the program directory's place before the first install.
func TestAPlantedProgramDirectoryIsRejected(t *testing.T) {
	h := newHost(t)
	if err := os.WriteFile(h.ProgramDir, []byte("a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Install(t.Context(), &h.Config); !errors.Is(err, winsec.ErrUntrusted) ||
		!strings.Contains(err.Error(), h.ProgramDir) {
		t.Fatalf("got %v, want a refusal that names %s", err, h.ProgramDir)
	}
	if present, _ := keyExists(h.clsidKey()); present {
		t.Error("the class was registered all the same")
	}
}

func TestTheSelfTestWaitsForASurrogateOfThePreviousVersion(t *testing.T) {
	h := newHost(t)
	asked := 0
	real := h.activate
	h.activate = func() (selftest.Report, error) {
		if asked++; asked < 3 {
			return selftest.Report{Module: filepath.Join(h.ProgramDir, "ccg-plugin-0000000000000000.dll"), PID: 7}, nil
		}
		return real()
	}
	h.install(t)
	if asked != 3 {
		t.Errorf("asked %d times, want 3", asked)
	}
}

func TestInstallDoesNotWaitIfActivationIsDenied(t *testing.T) {
	h := newHost(t)
	h.SelfTestWait = time.Minute
	asked := 0
	h.activate = func() (selftest.Report, error) {
		if asked++; asked > 1 { // let a failing test end
			return selftest.Report{Module: h.dllPath()}, nil
		}
		return selftest.Report{}, fmt.Errorf("activate class %s: %w", CLSID, com.HRESULT(0x80070005))
	}
	err := Install(t.Context(), &h.Config)
	if err == nil || !strings.Contains(err.Error(), "0x80070005") ||
		!strings.Contains(err.Error(), "run the installer as SYSTEM") {
		t.Errorf("got %v", err)
	}
	if asked != 1 {
		t.Errorf("asked %d times, want once", asked)
	}
}

func TestInstallFailsIfTheClassDoesNotRespond(t *testing.T) {
	h := newHost(t)
	h.SelfTestWait = 0
	h.activate = func() (selftest.Report, error) { return selftest.Report{}, errors.New("class is broken") }
	if err := Install(t.Context(), &h.Config); err == nil || !strings.Contains(err.Error(), "class is broken") {
		t.Fatalf("got %v", err)
	}
	h.wantState(t, Drift)
	h.activate = func() (selftest.Report, error) { return selftest.Report{Module: `C:\evil.dll`, PID: 7}, nil }
	if err := Install(t.Context(), &h.Config); err == nil || !strings.Contains(err.Error(), `C:\evil.dll`) {
		t.Fatalf("got %v", err)
	}
	h.wantState(t, Drift)
}

func TestASecondInstallerWaitsAndThenReportsWhy(t *testing.T) {
	h := newHost(t)
	held, release := make(chan struct{}), make(chan struct{})
	go h.locked(t.Context(), func() error { close(held); <-release; return nil })
	<-held
	h.LockWait = 300 * time.Millisecond
	err := Install(t.Context(), &h.Config)
	if err == nil || !strings.Contains(err.Error(), "another installer") {
		t.Errorf("got %v", err)
	}
	close(release)
	h.LockWait = 10 * time.Second
	h.install(t)
}

func TestRunRepairsChangesAndStopsOnRequest(t *testing.T) {
	h := newHost(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, &h.Config, time.Hour, nil) }() // an hour: only the watch can wake it
	waitFor(t, h, "installed, watching the registration")
	drifts := []func(){
		func() { deleteTree(h.clsidKey()) }, // while a key is being deleted it can be opened and not watched
		func() { setValue(t, h.clsidKey()+`\InprocServer32`, text("", `C:\evil.dll`)) },
		func() { setValue(t, h.appIDKey(), text("RunAs", "Interactive User")) },
	}
	// Again and again, each as soon as the one before is healed, while the watch is busy with the healing's own writes.
	for i := range 30 {
		drifts[i%len(drifts)]()
		for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(time.Millisecond) {
			report, err := Status(ctx, &h.Config)
			if err != nil {
				t.Fatal(err)
			}
			if report.State == Installed {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("change %d was not healed:\n%s", i, h.log)
			}
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("run ended with %v", err)
	}
	h.wantState(t, Installed)
}

// A change while the keys are being watched anew, one after the other, does not hide a later one.
func TestNoChangeIsMissedWhileTheWatchIsSetUp(t *testing.T) {
	h := newHost(t)
	h.install(t)
	n := 0
	change := func() { // to another value: Wine takes no other for a change
		n++
		setValue(t, h.clsidKey()+`\InprocServer32`, text("", fmt.Sprintf(`C:\evil%d.dll`, n)))
	}
	for range 100 {
		end, ended := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(ended)
			for {
				select {
				case <-end:
					return
				default:
					change()
				}
			}
		}()
		watch, err := h.notify()
		close(end)
		<-ended
		if err != nil {
			t.Fatal(err)
		}
		change()
		happened := watch.happened()
		watch.close()
		if !happened {
			t.Fatalf("change %d came after the watch was set up and is not seen", n)
		}
	}
}

func TestRunFailsImmediatelyIfItCannotWatch(t *testing.T) {
	h := newHost(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, &h.Config, time.Hour, nil) }()
	waitFor(t, h, "installed, watching the registration")
	err := winsec.RunWithPrivileges(ownershipPrivileges,
		func() error { return restoreDescriptor(h.EventSource, "O:BAD:P") })
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, h, "can no longer be watched") // the watch is set up again each second
	cancel()
	<-ended
}

func TestRunChecksFilesAtEveryInterval(t *testing.T) {
	h := newHost(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, &h.Config, 100*time.Millisecond, nil) }()
	waitFor(t, h, "installed, watching the registration")
	if err := os.WriteFile(h.dllPath(), []byte("evil"), 0o600); err != nil {
		t.Fatal(err)
	}
	waitFor(t, h, "msg=repaired")
	cancel()
	<-ended
	h.wantState(t, Installed)
}

// A repair that ends with a failed self-test leaves a correct registration. The next check must not report success only
// because the registration is correct.
func TestRunReportsAFailedSelfTestUntilItSucceeds(t *testing.T) {
	h := newHost(t)
	h.SelfTestWait = 0
	var broken atomic.Bool
	var failures atomic.Int32
	succeed := h.activate
	h.activate = func() (selftest.Report, error) {
		if broken.Load() {
			failures.Add(1)
			return selftest.Report{}, errors.New("class is broken")
		}
		return succeed()
	}
	getenv := func(name string) string {
		return map[string]string{"CONTAINER_SANDBOX_MOUNT_POINT": filepath.Dir(h.ProgramDir)}[name]
	}
	const interval = 100 * time.Millisecond
	results, err := record.New(getenv, interval)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, &h.Config, interval, results) }()
	wait := func(state selfcheck.State) {
		t.Helper()
		deadline := time.Now().Add(15 * time.Second)
		for {
			r, err := selfcheck.Read(selfcheck.Path(getenv))
			if err == nil && r.State == state {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%+v, %v; want the state %s:\n%s", r, err, state, h.log)
			}
			time.Sleep(interval / 10)
		}
	}
	wait(selfcheck.OK)
	broken.Store(true)
	setValue(t, h.clsidKey()+`\InprocServer32`, text("", `C:\evil.dll`))
	wait(selfcheck.Failed)
	for n := failures.Load(); failures.Load() < n+3; time.Sleep(interval / 10) {
		if r, err := selfcheck.Read(selfcheck.Path(getenv)); err == nil && r.State == selfcheck.OK {
			t.Fatalf("success is reported without a self-test:\n%s", h.log)
		}
	}
	broken.Store(false)
	wait(selfcheck.OK)
	cancel()
	<-ended
}

func waitFor(t *testing.T, h *host, words string) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !strings.Contains(h.log.String(),
		words); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the log never said %q:\n%s", words, h.log)
		}
	}
}

func TestTheReportIsTheSameInJSON(t *testing.T) {
	h := newHost(t)
	h.install(t)
	report := h.wantState(t, Installed)
	data, err := json.Marshal(report)
	if err != nil {
		t.Fatal(err)
	}
	var back Report
	if err := json.Unmarshal(data, &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(report, &back); diff != "" {
		t.Error(diff)
	}
}
