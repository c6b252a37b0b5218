package winsec

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
)

// tempDir is a directory of the test in the form in which every caller names one. It is not t.TempDir, whose
// os.RemoveAll asks for a way of deleting that Wine does not have.
func tempDir(t *testing.T) string {
	t.Helper()
	path, err := os.MkdirTemp("", "winsec")
	if err != nil {
		t.Fatal(err)
	}
	long := make([]uint16, 32768) // TEMP may hold 8.3 names, which are not where the directory really is
	if _, err := windows.GetLongPathName(windows.StringToUTF16Ptr(path), &long[0], uint32(len(long))); err != nil {
		t.Fatal(err)
	}
	path = `\\?\` + windows.UTF16ToString(long)
	t.Cleanup(func() {
		if name, wine := wineName(path); wine {
			gone := func() bool { _, err := os.Lstat(path); return err != nil }
			unixRun(t, gone, "/bin/rm", "-rf", name)
		} else if err := os.RemoveAll(path); err != nil {
			t.Error(err)
		}
	})
	return path
}

// wineName returns the Unix name of path if the test runs under Wine.
func wineName(path string) (name string, wine bool) {
	proc := windows.NewLazySystemDLL("kernel32.dll").NewProc("wine_get_unix_file_name")
	if proc.Find() != nil {
		return "", false
	}
	p, _, _ := proc.Call(uintptr(unsafe.Pointer(windows.StringToUTF16Ptr(strings.TrimPrefix(path, `\\?\`)))))
	if p == 0 {
		panic("Wine has no Unix name for " + path)
	}
	return windows.BytePtrToString(*(**byte)(unsafe.Pointer(&p))), true
}

// unixRun runs a Unix program from inside Wine and waits until done says that it has worked.
func unixRun(t *testing.T, done func() bool, argv ...string) {
	t.Helper()
	null, err := os.OpenFile("NUL", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	process, err := os.StartProcess(`Z:`+filepath.FromSlash(argv[0]), argv,
		&os.ProcAttr{Files: []*os.File{null, null, null}})
	if err != nil {
		t.Fatal(err)
	}
	process.Release() // Wine ends its process object when the Unix program takes over
	for deadline := time.Now().Add(5 * time.Second); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%q changed nothing; the tests must run as root", argv)
		}
	}
}

// disown gives path to an untrusted account. Windows takes Guests as the owner. Wine takes it and forgets it,
// and reports a file of another Unix user as owned by the anonymous SID, so there the file is chowned.
func disown(t *testing.T, path string) {
	t.Helper()
	if name, wine := wineName(path); wine {
		unixRun(t, func() bool { return CheckTrusted(path) != nil }, "/bin/chown", "65534", name)
		return
	}
	guests, err := windows.CreateWellKnownSid(windows.WinBuiltinGuestsSid)
	if err != nil {
		t.Fatal(err)
	}
	err = RunWithPrivileges([]string{SeRestorePrivilege}, func() error {
		return windows.SetNamedSecurityInfo(path, windows.SE_FILE_OBJECT, windows.OWNER_SECURITY_INFORMATION, guests,
			nil, nil, nil)
	})
	if err != nil {
		t.Fatalf("give %s to Guests (this test needs an elevated administrator): %v", path, err)
	}
}

func wantUntrusted(t *testing.T, err error, words ...string) {
	t.Helper()
	if !errors.Is(err, ErrUntrusted) {
		t.Fatalf("got %v, want an error that matches ErrUntrusted", err)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q does not name %q", err, word)
		}
	}
}

func TestSecureDirCreatesADirectoryAndIsIdempotent(t *testing.T) {
	for _, name := range []string{"plain", "con", "nul.x", "long"} {
		above := filepath.Join(tempDir(t), "above")
		if _, wine := wineName(above); name == "long" && !wine { // Wine 8 does not find final paths beyond MAX_PATH
			name = strings.Repeat("n", 253)
		}
		path := filepath.Join(above, name)
		if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := SecureDir(path, DirPluginReadable); err != nil {
				t.Fatalf("%.20s: %v", name, err)
			}
			if err := os.WriteFile(filepath.Join(path, "kept"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := CheckTrusted(filepath.Join(path, "kept")); err != nil {
			t.Error(err)
		}
	}
}

// Wine keeps no descriptors of files, so the lab leaves out what is named so.
func TestSecureDirSetsTheDescriptorOnWindowsOnly(t *testing.T) {
	path := filepath.Join(tempDir(t), "dir")
	if err := SecureDir(path, DirProgram); err != nil {
		t.Fatal(err)
	}
	descriptor, err := windows.GetNamedSecurityInfo(path, windows.SE_FILE_OBJECT,
		windows.OWNER_SECURITY_INFORMATION|windows.DACL_SECURITY_INFORMATION)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range []string{"O:BA", "D:PAI", "(A;OICI;FA;;;SY)", "(A;OICI;FA;;;BA)", "(A;OICI;0x1200a9;;;BU)"} {
		if !strings.Contains(descriptor.String(), entry) {
			t.Errorf("%s lacks %s", descriptor, entry)
		}
	}
}

func TestSecureDirDoesNotCreateTheParent(t *testing.T) {
	err := SecureDir(filepath.Join(tempDir(t), "absent", "dir"), DirAdminOnly)
	if !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("got %v, want fs.ErrNotExist", err)
	}
}

// Attack: a regular user creates the directory first, to own later files in it.
func TestSecureDirReplacesAPlantedEmptyDirectory(t *testing.T) {
	path := filepath.Join(tempDir(t), "planted")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	disown(t, path)
	if err := SecureDir(path, DirPluginReadable); err != nil {
		t.Fatal(err)
	}
	if err := CheckTrusted(path); err != nil {
		t.Fatal(err)
	}
}

// Attack: the planted directory already contains files, such as an endpoint of the user.
func TestSecureDirRejectsAPlantedDirectoryWithContent(t *testing.T) {
	path := filepath.Join(tempDir(t), "planted")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	content := filepath.Join(path, "current")
	if err := os.WriteFile(content, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	disown(t, path)
	for range 2 { // a refusal must not make the next attempt trust the directory
		wantUntrusted(t, SecureDir(path, DirPluginReadable), path, "owned by", "S-1-5-",
			"delete it as an administrator")
	}
	if got, err := os.ReadFile(content); err != nil || string(got) != "mine" {
		t.Fatalf("the content was touched: %q, %v", got, err)
	}
}

// Attack: a junction in place of the directory leads the writer to a directory of the attacker.
func TestSecureDirAndCheckTrustedRejectALink(t *testing.T) {
	dir := tempDir(t)
	target := filepath.Join(dir, "target")
	if err := os.Mkdir(target, 0o700); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	makeJunction(t, link, target)
	wantUntrusted(t, SecureDir(link, DirPluginReadable), link)
	wantUntrusted(t, CheckTrusted(link), link)
	// A link in a parent directory is an attack too.
	below := filepath.Join(link, "below")
	if err := os.Mkdir(filepath.Join(target, "below"), 0o700); err != nil {
		t.Fatal(err)
	}
	wantUntrusted(t, SecureDir(below, DirPluginReadable), below, "its real path is")
	wantUntrusted(t, CheckTrusted(below), below, "its real path is")
}

// makeJunction makes a mount point, which needs no privilege and is therefore what an attacker uses. [MS-FSCC] 2.1.2.5
// has the buffer. Wine cannot make one, but follows a Unix symbolic link.
func makeJunction(t *testing.T, link, target string) {
	t.Helper()
	if unixTarget, wine := wineName(target); wine {
		unixParent, _ := wineName(filepath.Dir(link))
		done := func() bool { _, err := os.Lstat(link); return err == nil }
		unixRun(t, done, "/bin/ln", "-s", unixTarget, unixParent+"/"+filepath.Base(link))
		return
	}
	if err := os.Mkdir(link, 0o700); err != nil {
		t.Fatal(err)
	}
	handle, err := windows.CreateFile(windows.StringToUTF16Ptr(link), windows.GENERIC_WRITE, 0, nil,
		windows.OPEN_EXISTING,
		windows.FILE_FLAG_BACKUP_SEMANTICS|windows.FILE_FLAG_OPEN_REPARSE_POINT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer windows.CloseHandle(handle)
	plain := strings.TrimPrefix(target, `\\?\`)
	substitute, printed := windows.StringToUTF16(`\??\`+plain), windows.StringToUTF16(plain)
	names := append(substitute, printed...) // both end with a NUL, which the lengths leave out
	var buffer []byte
	put16 := func(n int) { buffer = append(buffer, byte(n), byte(n>>8)) }
	put16(windows.IO_REPARSE_TAG_MOUNT_POINT & 0xffff)
	put16(windows.IO_REPARSE_TAG_MOUNT_POINT >> 16)
	put16(8 + 2*len(names))
	put16(0)
	put16(0)
	put16(2 * (len(substitute) - 1))
	put16(2 * len(substitute))
	put16(2 * (len(printed) - 1))
	for _, unit := range names {
		put16(int(unit))
	}
	var returned uint32
	err = windows.DeviceIoControl(handle, windows.FSCTL_SET_REPARSE_POINT, &buffer[0], uint32(len(buffer)), nil, 0,
		&returned, nil)
	if err != nil {
		t.Fatalf("make the junction: %v", err)
	}
}

func TestSecureDirRejectsAFile(t *testing.T) {
	path := filepath.Join(tempDir(t), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	wantUntrusted(t, SecureDir(path, DirAdminOnly), path, "not a directory")
}

func TestPathsOutsideALocalDriveAreRejected(t *testing.T) {
	for _, path := range []string{"", `relative`, `C:`, `C:relative`, `\rooted`, `\\server\share\x`,
		`\\?\UNC\server\share`, `\\.\C:\x`, "C:\\a\x00b"} {
		if err := SecureDir(path, DirAdminOnly); err == nil {
			t.Errorf("SecureDir(%q) succeeded", path)
		}
		if err := CheckTrusted(path); err == nil {
			t.Errorf("CheckTrusted(%q) succeeded", path)
		}
	}
}

// Attack: another user created one file in a trusted directory.
func TestCheckTrustedAndOpenTrustedRejectAFileOfAnotherOwner(t *testing.T) {
	path := filepath.Join(tempDir(t), "client.key")
	if err := os.WriteFile(path, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := OpenTrusted(path)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 16)
	if n, err := file.Read(got); err != nil || string(got[:n]) != "content" {
		t.Fatalf("read %q, %v", got[:n], err)
	}
	file.Close()

	disown(t, path)
	wantUntrusted(t, CheckTrusted(path), path, "owned by")
	if _, err := OpenTrusted(path); !errors.Is(err, ErrUntrusted) {
		t.Fatalf("got %v, want an error that matches ErrUntrusted", err)
	}
}

// Attack: another service that runs as LOCAL SERVICE or NETWORK SERVICE, as the plugin does, plants a file.
func TestTheProcessUserIsTrustedUnlessServicesShareIt(t *testing.T) {
	const system, localService, networkService, administrators = "S-1-5-18", "S-1-5-19", "S-1-5-20", "S-1-5-32-544"
	const person, other, virtual = "S-1-5-21-1-2-3-1001", "S-1-5-21-1-2-3-1002", "S-1-5-80-1-2-3-4-5"
	for _, c := range []struct {
		user, owner string
		want        bool
	}{
		{networkService, networkService, false},
		{localService, localService, false},
		{localService, networkService, false},
		{person, networkService, false},
		{person, other, false},
		{system, person, false},
		{person, person, true},
		{virtual, virtual, true},
		{networkService, system, true},
		{networkService, administrators, true},
		{localService, trustedInstaller, true},
	} {
		user, err := windows.StringToSid(c.user)
		if err != nil {
			t.Fatal(err)
		}
		owner, err := windows.StringToSid(c.owner)
		if err != nil {
			t.Fatal(err)
		}
		if got := trusts(user, owner); got != c.want {
			t.Errorf("a process of %s trusts what %s owns: %v, want %v", c.user, c.owner, got, c.want)
		}
	}
}

func TestAMissingPathIsNotExistAndNotUntrusted(t *testing.T) {
	path := filepath.Join(tempDir(t), "absent")
	if err := CheckTrusted(path); !errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrUntrusted) {
		t.Errorf("CheckTrusted: %v", err)
	}
	if _, err := OpenTrusted(path); !errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrUntrusted) {
		t.Errorf("OpenTrusted: %v", err)
	}
}

func TestOpenTrustedRejectsADirectory(t *testing.T) {
	_, err := OpenTrusted(tempDir(t))
	wantUntrusted(t, err, "not a file")
}

func enabled(t *testing.T, name string) bool {
	t.Helper()
	var luid windows.LUID
	if err := windows.LookupPrivilegeValue(nil, windows.StringToUTF16Ptr(name), &luid); err != nil {
		t.Fatal(err)
	}
	buffer := make([]byte, 4096)
	n := uint32(len(buffer))
	if err := windows.GetTokenInformation(windows.GetCurrentThreadEffectiveToken(), windows.TokenPrivileges, &buffer[0],
		n, &n); err != nil {
		t.Fatal(err)
	}
	for _, p := range (*windows.Tokenprivileges)(unsafe.Pointer(&buffer[0])).AllPrivileges() {
		if p.Luid == luid {
			return p.Attributes&windows.SE_PRIVILEGE_ENABLED != 0
		}
	}
	return false
}

func TestRunWithPrivilegesEnablesThemOnlyDuringTheCall(t *testing.T) {
	before := enabled(t, SeTakeOwnershipPrivilege)
	wanted := errors.New("what fn returns")
	err := RunWithPrivileges([]string{SeTakeOwnershipPrivilege, SeRestorePrivilege}, func() error {
		if !enabled(t, SeTakeOwnershipPrivilege) || !enabled(t, SeRestorePrivilege) {
			t.Error("a privilege is not enabled inside the call")
		}
		return wanted
	})
	if err != wanted {
		t.Fatalf("got %v, want fn's own error", err)
	}
	if enabled(t, SeTakeOwnershipPrivilege) != before {
		t.Error("the privilege outlived the call")
	}
}

func TestAMissingPrivilegeIsANamedErrorAndFnDoesNotRun(t *testing.T) {
	const notHeld = "SeCreateTokenPrivilege" // the local security authority's own
	err := RunWithPrivileges([]string{SeRestorePrivilege, notHeld}, func() error { t.Error("fn ran"); return nil })
	var missing *PrivilegeError
	if !errors.As(err, &missing) || len(missing.Names) != 1 || missing.Names[0] != notHeld {
		t.Fatalf("got %v, want a PrivilegeError that names %s alone", err, notHeld)
	}
	if err := RunWithPrivileges([]string{"SeNoSuchPrivilege"}, func() error { return nil }); !errors.As(err, &missing) {
		t.Fatalf("got %v for an unknown name, want a PrivilegeError", err)
	}
}
