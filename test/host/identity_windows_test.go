package host

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf16"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/ccgrkc/ccgrkc/internal/com"
	"github.com/ccgrkc/ccgrkc/internal/plugin/selftest"
	"github.com/ccgrkc/ccgrkc/internal/winsec"
)

// The test program started as somebody else is told by its first argument to try things, and writes what came of them.
// A process of its own and no impersonation: COM looks at the process's token when it activates.
const tryArgument = "try"

func TestMain(m *testing.M) {
	if len(os.Args) < 2 || os.Args[1] != tryArgument {
		os.Exit(m.Run())
	}
	outcomes := map[string]string{}
	for _, attempt := range os.Args[2:] {
		outcomes[attempt] = outcome(try(attempt))
	}
	if err := json.NewEncoder(os.Stdout).Encode(outcomes); err != nil {
		os.Exit(1)
	}
}

// Results of an attempt; any other is the text of the error.
const done, denied, untrusted = "done", "access denied", "not trusted"

func outcome(err error) string {
	var hr com.HRESULT
	switch {
	case err == nil:
		return done
	case errors.Is(err, winsec.ErrUntrusted):
		return untrusted
	case errors.Is(err, windows.ERROR_ACCESS_DENIED), errors.As(err, &hr) && hr == 0x80070005: // E_ACCESSDENIED
		return denied
	}
	return err.Error()
}

// try makes one attempt: a verb and usually a path.
func try(attempt string) error {
	verb, path, _ := strings.Cut(attempt, " ")
	switch verb {
	case "read":
		content, err := os.ReadFile(path)
		clear(content)
		return err
	case "list":
		_, err := os.ReadDir(path)
		return err
	case "execute":
		h, err := windows.CreateFile(windows.StringToUTF16Ptr(path), windows.GENERIC_READ|windows.GENERIC_EXECUTE,
			windows.FILE_SHARE_READ|windows.FILE_SHARE_DELETE, nil, windows.OPEN_EXISTING, 0, 0)
		if err == nil {
			windows.CloseHandle(h)
		}
		return err
	case "create-in":
		planted := filepath.Join(path, "planted")
		if err := os.WriteFile(planted, nil, 0o600); err != nil {
			return err
		}
		return os.Remove(planted)
	case "overwrite":
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err == nil {
			f.Close()
		}
		return err
	case "trust":
		return winsec.CheckTrusted(path)
	case "activate":
		_, err := ask(selftest.Input)
		return err
	}
	return fmt.Errorf("no such attempt: %s", attempt)
}

// tryAs starts this program with the token and returns the result of each attempt.
func tryAs(t *testing.T, token windows.Token, attempts ...string) map[string]string {
	t.Helper()
	// Where the test program lies, its user may not look; where this directory is, everybody may read.
	dir := `C:\ccgrkc-host-` + strings.ToLower(rand.Text()[:8])
	if err := winsec.SecureDir(dir, winsec.DirProgram); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	exe := filepath.Join(dir, "try.exe")
	if err := os.WriteFile(exe, content, 0o700); err != nil {
		t.Fatal(err)
	}
	out, err := os.Create(filepath.Join(dir, "output"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if err := windows.SetHandleInformation(windows.Handle(out.Fd()), windows.HANDLE_FLAG_INHERIT,
		windows.HANDLE_FLAG_INHERIT); err != nil {
		t.Fatal(err)
	}

	environ, err := token.Environ(false)
	if err != nil {
		t.Fatal(err)
	}
	var block []uint16
	for _, variable := range environ {
		block = append(append(block, utf16.Encode([]rune(variable))...), 0)
	}
	block = append(block, 0)
	startup := windows.StartupInfo{
		// With no desktop at all the process would be given this one's, which its user may not open; the empty name
		// makes Windows give it one of its own (Microsoft, Q165194).
		Desktop: windows.StringToUTF16Ptr(""),
		Flags:   windows.STARTF_USESTDHANDLES, StdOutput: windows.Handle(out.Fd()), StdErr: windows.Handle(out.Fd()),
	}
	startup.Cb = uint32(unsafe.Sizeof(startup))
	commandLine := windows.StringToUTF16Ptr(windows.ComposeCommandLine(append([]string{exe, tryArgument}, attempts...)))
	var process windows.ProcessInformation
	err = winsec.RunWithPrivileges([]string{"SeAssignPrimaryTokenPrivilege", "SeIncreaseQuotaPrivilege"}, func() error {
		return windows.CreateProcessAsUser(token, windows.StringToUTF16Ptr(exe), commandLine, nil, nil, true,
			windows.CREATE_UNICODE_ENVIRONMENT|windows.CREATE_NO_WINDOW, &block[0], windows.StringToUTF16Ptr(dir),
			&startup, &process)
	})
	if err != nil {
		t.Fatalf("start a process as another user: %v", err)
	}
	defer windows.CloseHandle(process.Process)
	defer windows.CloseHandle(process.Thread)
	if event, err := windows.WaitForSingleObject(process.Process,
		uint32(time.Minute.Milliseconds())); event != windows.WAIT_OBJECT_0 {
		_ = windows.TerminateProcess(process.Process, 1)
		t.Fatalf("the other user's process did not end within a minute: %d, %v", event, err)
	}
	said, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	var code uint32
	_ = windows.GetExitCodeProcess(process.Process, &code)
	var outcomes map[string]string
	if err := json.Unmarshal(said, &outcomes); err != nil {
		t.Fatalf("the other user's process ended with 0x%X and wrote %q", code, said)
	}
	return outcomes
}

// Of LogonUser, winbase.h.
const (
	logonInteractive = 2
	logonBatch       = 4 // an administrator's whole token, where an interactive logon gives a filtered one
	logonService     = 5
)

var (
	procLogonUser    = windows.NewLazySystemDLL("advapi32.dll").NewProc("LogonUserW")
	netapi32         = windows.NewLazySystemDLL("netapi32.dll")
	procUserAdd      = netapi32.NewProc("NetUserAdd")
	procUserDel      = netapi32.NewProc("NetUserDel")
	procGroupMembers = netapi32.NewProc("NetLocalGroupAddMembers")
)

// logon returns a token of the account until the test's end.
func logon(t *testing.T, domain, user, password string, kind uintptr) windows.Token {
	t.Helper()
	var p uintptr // null for the accounts of services, which have no password
	if password != "" {
		p = pointer(password)
	}
	var token windows.Token
	if ok, _, err := procLogonUser.Call(pointer(user), pointer(domain), p, kind, 0,
		uintptr(unsafe.Pointer(&token))); ok == 0 {
		t.Fatalf(`log on %s\%s: %v`, domain, user, err)
	}
	t.Cleanup(func() { token.Close() })
	return token
}

// service is LocalService or NetworkService, as a service of that name has it.
func service(t *testing.T, name string) windows.Token {
	t.Helper()
	return logon(t, "NT AUTHORITY", name, "", logonService)
}

// person makes a local user in a group until the test's end, and logs it on. Not with net user: a password on a command
// line is read by everybody.
func person(t *testing.T, group windows.WELL_KNOWN_SID_TYPE, kind uintptr) windows.Token {
	t.Helper()
	name, password := "ccgrkc-"+strings.ToLower(rand.Text()[:8]), "aB1!"+rand.Text()
	// USER_INFO_1, lmaccess.h
	info := struct {
		name, password uintptr
		age, privilege uint32
		home, comment  uintptr
		flags          uint32
		scriptPath     uintptr
	}{name: pointer(name), password: pointer(password), privilege: 1, /* USER_PRIV_USER */
		comment: pointer("a test of CCGRKC; delete it"),
		flags:   0x1 | 0x200 /* UF_SCRIPT, UF_NORMAL_ACCOUNT */}
	if status, _, _ := procUserAdd.Call(0, 1, uintptr(unsafe.Pointer(&info)), 0); status != 0 {
		t.Fatalf("make the user %s: %v", name, windows.Errno(status))
	}
	t.Cleanup(func() {
		if status, _, _ := procUserDel.Call(0, pointer(name)); status != 0 {
			t.Errorf("delete the user %s: %v", name, windows.Errno(status))
		}
	})
	sid, err := windows.CreateWellKnownSid(group)
	if err != nil {
		t.Fatal(err)
	}
	groupName, _, _, err := sid.LookupAccount("") // Windows translates it
	if err != nil {
		t.Fatal(err)
	}
	member := pointer(name) // LOCALGROUP_MEMBERS_INFO_3 is one pointer
	if status, _, _ := procGroupMembers.Call(0, pointer(groupName), 3, uintptr(unsafe.Pointer(&member)),
		1); status != 0 {
		t.Fatalf("put %s into %s: %v", name, groupName, windows.Errno(status))
	}
	return logon(t, ".", name, password, kind)
}

// files are an account's directories, with the one that holds all accounts, and its files.
func (a *account) files(t *testing.T) (dirs, files []string) {
	t.Helper()
	dirs = []string{root}
	err := filepath.WalkDir(a.directory(), func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() {
			dirs = append(dirs, path)
		} else {
			files = append(files, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return dirs, files
}

func TestOnlyAllowedIdentitiesReadFilesAndActivateTheClassOnWindowsOnly(t *testing.T) {
	dll := install(t).Module
	a := serve(t)
	dirs, files := a.files(t)
	if len(dirs) < 4 || len(files) < 5 {
		t.Fatalf("the provider made only %q and %q", dirs, files)
	}
	for _, who := range []struct {
		name             string
		token            func(*testing.T) windows.Token
		endpoint, change string // reading what the provider made, changing anything
		activate         string
	}{
		{"an ordinary user", func(t *testing.T) windows.Token {
			return person(t, windows.WinBuiltinUsersSid,
				logonInteractive)
		}, denied, denied, denied},
		{"LocalService", func(t *testing.T) windows.Token { return service(t, "LocalService") }, denied, denied, done},
		{"NetworkService", func(t *testing.T) windows.Token { return service(t, "NetworkService") }, done, denied,
			done},
		{"an administrator", func(t *testing.T) windows.Token {
			return person(t, windows.WinBuiltinAdministratorsSid,
				logonBatch)
		}, done, done, denied},
	} {
		t.Run(who.name, func(t *testing.T) {
			want := map[string]string{"activate": who.activate, "execute " + dll: done,
				"create-in " + filepath.Dir(dll): who.change}
			for _, dir := range dirs {
				want["list "+dir], want["create-in "+dir] = who.endpoint, who.change
			}
			for _, file := range files {
				want["read "+file], want["overwrite "+file] = who.endpoint, who.change
			}
			var attempts []string
			for attempt := range want {
				attempts = append(attempts, attempt)
			}
			for attempt, got := range tryAs(t, who.token(t), attempts...) {
				if got != want[attempt] {
					t.Errorf("%s: got %s, want %s", attempt, got, want[attempt])
				}
			}
		})
	}
}

// Another service of the same account can have created the files of a service.
func TestAServiceDoesNotTrustFilesOfItsSharedAccountOnWindowsOnly(t *testing.T) {
	dir := `C:\ccgrkc-host-` + strings.ToLower(rand.Text()[:8])
	if err := winsec.SecureDir(dir, winsec.DirPluginReadable); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	service := service(t, "NetworkService")
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	attempt := "trust " + file
	if got := tryAs(t, service, attempt)[attempt]; got != done {
		t.Fatalf("owned by Administrators: got %s, want %s", got, done)
	}
	user, err := service.GetTokenUser()
	if err != nil {
		t.Fatal(err)
	}
	err = winsec.RunWithPrivileges([]string{winsec.SeRestorePrivilege}, func() error {
		return windows.SetNamedSecurityInfo(file, windows.SE_FILE_OBJECT, windows.OWNER_SECURITY_INFORMATION,
			user.User.Sid, nil, nil, nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := tryAs(t, service, attempt)[attempt]; got != untrusted {
		t.Errorf("owned by the service's own account: got %s, want %s", got, untrusted)
	}
}

// pointer is the address of a NUL-terminated copy, which is never freed: a test makes a handful.
func pointer(s string) uintptr {
	p := windows.StringToUTF16Ptr(s)
	kept = append(kept, p)
	return uintptr(unsafe.Pointer(p))
}

var kept []*uint16
