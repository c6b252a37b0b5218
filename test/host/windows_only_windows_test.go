package host

import (
	"crypto/rand"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"

	"github.com/ccgrkc/ccgrkc/internal/com"
	"github.com/ccgrkc/ccgrkc/internal/plugin/cause"
	"github.com/ccgrkc/ccgrkc/internal/plugin/selftest"
	"github.com/ccgrkc/ccgrkc/internal/winsec"
)

// withoutFlags drops what records how a descriptor's entries came about (AI, AR), not whom they admit.
func withoutFlags(sddl string) string {
	owner, dacl, _ := strings.Cut(sddl, "D:")
	flags, entries, _ := strings.Cut(dacl, "(")
	return owner + "D:" + strings.NewReplacer("AI", "", "AR", "").Replace(flags) + "(" + entries
}

func TestWindowsStoresTheWrittenDescriptorsOnWindowsOnly(t *testing.T) {
	dll := install(t).Module
	dirs, files := serve(t).files(t)
	want := map[string]string{filepath.Dir(dll): winsec.DirProgram}
	for _, dir := range dirs {
		want[dir] = winsec.DirPluginReadable
	}
	for path, sddl := range want {
		wantDescriptor(t, path, sddl)
	}
	// A file inherits its directory's entries; its owner is SYSTEM's default one.
	inherited := func(sddl string) string {
		return strings.NewReplacer("G:BA", "", "D:PAI", "D:", "(A;OICI;", "(A;ID;").Replace(sddl)
	}
	wantDescriptor(t, dll, inherited(winsec.DirProgram))
	for _, file := range files {
		wantDescriptor(t, file, inherited(winsec.DirPluginReadable))
	}
}

func wantDescriptor(t *testing.T, path, sddl string) {
	t.Helper()
	what := windows.SECURITY_INFORMATION(windows.OWNER_SECURITY_INFORMATION | windows.DACL_SECURITY_INFORMATION)
	if strings.Contains(sddl, "G:") {
		what |= windows.GROUP_SECURITY_INFORMATION
	}
	got, err := windows.GetNamedSecurityInfo(path, windows.SE_FILE_OBJECT, what)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	if withoutFlags(got.String()) != withoutFlags(sddl) {
		t.Errorf("%s\n got %s\nwant %s", path, got, sddl)
	}
}

const comClasses = `SYSTEM\CurrentControlSet\Control\CCG\COMClasses`

func TestOwnerAndDACLOfTheCCGKeyAreRestoredOnWindowsOnly(t *testing.T) {
	// NT SERVICE\TrustedInstaller
	const owner = "O:S-1-5-80-956008885-3418522649-1831038044-1853292631-2271478464"
	before := keyDescriptor(t, comClasses)
	if !strings.HasPrefix(before, owner) {
		t.Errorf("before the install HKLM\\%s is %s: not TrustedInstaller's, so that this test shows less than it "+
			"should", comClasses, before)
	}
	install(t)
	if after := keyDescriptor(t, comClasses); after != before {
		t.Errorf("after the install\n got %s\nwant %s", after, before)
	}
	uninstall(t)
	if after := keyDescriptor(t, comClasses); after != before {
		t.Errorf("after the uninstall\n got %s\nwant %s", after, before)
	}
}

// keyDescriptor reads owner and DACL as they are stored, flags included.
func keyDescriptor(t *testing.T, path string) string {
	t.Helper()
	h, err := registry.OpenKey(registry.LOCAL_MACHINE, path, windows.READ_CONTROL)
	if err != nil {
		t.Fatalf("HKLM\\%s: %v", path, err)
	}
	defer h.Close()
	descriptor, err := windows.GetSecurityInfo(windows.Handle(h), windows.SE_KERNEL_OBJECT,
		windows.OWNER_SECURITY_INFORMATION|windows.DACL_SECURITY_INFORMATION)
	if err != nil {
		t.Fatalf("HKLM\\%s: %v", path, err)
	}
	return descriptor.String()
}

// surrogateEnds bounds the wait for a surrogate that nobody uses any more. COM unloads what belongs to the
// multithreaded apartment after 10 minutes (CoFreeUnusedLibrariesEx).
const surrogateEnds = 12 * time.Minute

func TestTheSurrogateIsDllhostAsNetworkServiceAndExitsWhenUnusedOnWindowsOnly(t *testing.T) {
	first := install(t)
	object, err := com.Activate(com.ClassID)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := object.GetPasswordCredentials(selftest.Input)
	if err != nil {
		t.Fatal(err)
	}
	report, err := selftest.Parse(answer.DomainName)
	if err != nil {
		t.Fatal(err)
	}
	if report.Module != first.Module {
		t.Errorf("the response came from %s, installed is %s", report.Module, first.Module)
	}

	networkService, err := windows.CreateWellKnownSid(windows.WinNetworkServiceSid)
	if err != nil {
		t.Fatal(err)
	}
	account, domain, _, err := networkService.LookupAccount("")
	if err != nil {
		t.Fatal(err)
	}
	if want := domain + `\` + account; report.Identity != want {
		t.Errorf("the plugin runs as %s, want %s", report.Identity, want)
	}

	process, err := windows.OpenProcess(windows.SYNCHRONIZE|windows.PROCESS_QUERY_LIMITED_INFORMATION, false,
		uint32(report.PID))
	if err != nil {
		t.Fatal(err)
	}
	defer windows.CloseHandle(process)
	image := make([]uint16, windows.MAX_PATH)
	n := uint32(len(image))
	if err := windows.QueryFullProcessImageName(process, 0, &image[0], &n); err != nil {
		t.Fatal(err)
	}
	system, err := windows.GetSystemDirectory()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := windows.UTF16ToString(image[:n]),
		filepath.Join(system, "dllhost.exe"); !strings.EqualFold(got, want) {
		t.Errorf("the surrogate is %s, want %s", got, want)
	}

	object.Release()
	released := time.Now()
	if event, err := windows.WaitForSingleObject(process,
		uint32(surrogateEnds.Milliseconds())); event != windows.WAIT_OBJECT_0 {
		t.Fatalf("%v after its last reference was released the surrogate still runs (%d, %v)", surrogateEnds, event,
			err)
	}
	t.Logf("the surrogate ended %v after its last reference was released", time.Since(released).Round(time.Second))
}

// Windows does not delete a loaded DLL, so an uninstall during a call leaves it to the next restart. The call does not
// notice.
func TestALoadedDLLIsRemovedAtTheNextRestartOnWindowsOnly(t *testing.T) {
	dir := filepath.Dir(install(t).Module)
	object, err := com.Activate(com.ClassID)
	if err != nil {
		t.Fatal(err)
	}
	defer object.Release()
	answer, err := object.GetPasswordCredentials(selftest.Input)
	if err != nil {
		t.Fatal(err)
	}
	report, err := selftest.Parse(answer.DomainName)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // before the helper's uninstall, which then finds the file free
		surrogate, err := os.FindProcess(report.PID)
		if err != nil {
			t.Fatal(err)
		}
		_ = surrogate.Kill()
		_, _ = surrogate.Wait()
		uninstall(t)
		wantAbsent(t, dir)
	})

	must(t, installerExe, "uninstall")
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(left) != 1 || filepath.Ext(left[0]) != ".old" {
		t.Fatalf("after the uninstall %s holds %q (%v), want one file that was moved aside", dir, left, err)
	}
	const manager = `SYSTEM\CurrentControlSet\Control\Session Manager`
	h, err := registry.OpenKey(registry.LOCAL_MACHINE, manager, registry.QUERY_VALUE)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	pending, _, err := h.GetStringsValue("PendingFileRenameOperations")
	if err != nil || !slices.Contains(pending, `\??\`+left[0]) {
		t.Errorf("%s is not among what Windows deletes at the next restart: %q (%v)", left[0], pending, err)
	}
	if _, err := object.GetPasswordCredentials(selftest.Input); err != nil {
		t.Errorf("an object from before the uninstall: %v", err)
	}
}

// Attack: the path to valid files contains a junction, whose owner can change its target at any time.
func TestAJunctionInThePathOfTheEndpointIsRejectedOnWindowsOnly(t *testing.T) {
	install(t)
	a := serve(t)
	link, target := a.directory(), a.directory()+"-target"
	if err := os.Rename(link, target); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // before the provider's own
		if err := errors.Join(os.Remove(link), os.Rename(target, link)); err != nil {
			t.Error(err)
		}
	})
	if out, err := exec.Command("cmd", "/c", "mklink", "/J", link, target).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	wantRefusal(t, a.input(), cause.EndpointUntrusted)
	if out, code := run(t, providerExe, "healthcheck", "--namespace", a.namespace, "--secret", a.secret); code == 0 ||
		!strings.Contains(out, "reparse point") {
		t.Errorf("healthcheck: exit code %d\n%s", code, out)
	}
}

func TestAFailureIsInTheEventLogWithItsTextOnWindowsOnly(t *testing.T) {
	install(t)
	input := "no-colon-" + rand.Text()
	wantRefusal(t, input, cause.InvalidInput)
	var events string
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(500 * time.Millisecond) {
		out, err := exec.Command("wevtutil", "qe", "Application", "/q:*[System[Provider[@Name='CCGRKC']]]", "/rd:true",
			"/c:20", "/f:text").CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		events = strings.Join(strings.Fields(string(out)), " ") // however the text is broken into lines
		if strings.Contains(events, input) {
			break
		}
	}
	for _, part := range []string{cause.InvalidInput.Text, `Plugin input: "` + input + `"`,
		"What to do: " + cause.InvalidInput.Remedy} {
		if !strings.Contains(events, part) {
			t.Errorf("the Application log lacks %q:\n%s", part, events)
		}
	}
}
