package wine_test

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ccgrkc/ccgrkc/lab/env/wine"
	"github.com/ccgrkc/ccgrkc/lab/labtest"
)

// The class of testdata/probe.c. Its AppID differs from the class, so that the surrogate must look it up.
const (
	probeClass = "{11111111-2222-3333-4444-555555555555}"
	probeAppID = "{99999999-2222-3333-4444-555555555555}"
)

type answer struct {
	Domain, Username, Password, HResult, Error string
	Calls, Succeeded                           int
	Errors                                     map[string]int
}

func TestThirtyTwoSimultaneousActivationsSucceed(t *testing.T) {
	node := probeNode(t, "1m")
	// The first round starts the surrogate, the second one uses it.
	for _, round := range []string{"cold", "warm"} {
		got := ccg(t, node, "--input", "echo:x", "--calls", "32", "--parallel", "32", "--activations")
		if got.Succeeded != 32 {
			t.Errorf("%s: %d of 32 calls succeeded: %v", round, got.Succeeded, got.Errors)
		}
	}
	got := ccg(t, node, "--input", "echo:x", "--calls", "320", "--parallel", "32", "--activations")
	if got.Succeeded != 320 {
		t.Errorf("%d of 320 calls succeeded: %v", got.Succeeded, got.Errors)
	}
}

func TestOneSurrogateServesAllCalls(t *testing.T) {
	node := probeNode(t, "1m")
	first := ccg(t, node, "--input", "echo: 𝄞é\"", "--show-password")
	second := ccg(t, node, "--input", "echo:2", "--show-password")
	if first.Password != " 𝄞é\"" || second.Password != "2" {
		t.Errorf("the passwords are %q and %q", first.Password, second.Password)
	}
	if first.Domain == "" || first.Domain != second.Domain {
		t.Errorf("processes %q and %q served the calls, want one process", first.Domain, second.Domain)
	}
	pids := surrogates(t, node)
	if len(pids) != 1 {
		t.Fatalf("%d surrogates, want 1", len(pids))
	}
	if rss, err := wine.RSS(pids[0]); err != nil || rss < 1<<20 {
		t.Errorf("the surrogate's memory: %d bytes, %v", rss, err)
	}
	if n, err := wine.Handles(pids[0]); err != nil || n < 3 {
		t.Errorf("the surrogate's handles: %d, %v", n, err)
	}
}

func TestClientReceivesThePluginsHResult(t *testing.T) {
	node := probeNode(t, "1m")
	if got := ccg(t, node, "--input", "fail"); got.HResult != "0x80041234" {
		t.Errorf("%+v", got)
	}
}

func TestIdleSurrogateExits(t *testing.T) {
	node := probeNode(t, "1s")
	ccg(t, node, "--input", "pid")
	labtest.Eventually(t, 15*time.Second, "the idle surrogate exits", func() bool {
		return len(surrogates(t, node)) == 0
	})
	if got := ccg(t, node, "--input", "pid"); got.Error != "" {
		t.Errorf("the next activation: %+v", got)
	}
}

// Clients with objects lose no call while their surrogate is suspended, as in an upgrade. The test makes no activations
// at that moment, because Wine can fail them: see surrogate.c.
func TestSuspendedSurrogateServesItsObjectsAndNewActivationsStartAnother(t *testing.T) {
	node := probeNode(t, "1m")
	old := ccg(t, node, "--input", "pid")
	oldPIDs := surrogates(t, node)

	done := make(chan answer)
	go func() {
		done <- ccg(t, node, "--input", "echo:x", "--calls", "20000", "--parallel", "4")
	}()
	time.Sleep(time.Second)
	if got := ccg(t, node, "--input", "suspend"); got.Domain != old.Domain {
		t.Fatalf("suspend: got %+v, want an answer of process %s", got, old.Domain)
	}
	fresh := ccg(t, node, "--input", "pid")
	if fresh.Error != "" || fresh.Domain == old.Domain {
		t.Errorf("after the suspension: got %+v, want an answer of another process than %s", fresh, old.Domain)
	}
	select {
	case <-done:
		t.Fatal("the calls ended before the suspension; the test verified nothing")
	default:
	}
	if got := <-done; got.Succeeded != 20000 {
		t.Errorf("%d of 20000 calls succeeded: %v", got.Succeeded, got.Errors)
	}
	for range 5 {
		if got := ccg(t, node, "--input", "pid"); got.Domain != fresh.Domain {
			t.Errorf("a later activation: got %+v, want an answer of process %s", got, fresh.Domain)
		}
	}
	labtest.Eventually(t, 15*time.Second, "the suspended surrogate exits", func() bool {
		return !slices.ContainsFunc(surrogates(t, node), func(pid int) bool { return slices.Contains(oldPIDs, pid) })
	})
}

func TestContainersFeatureIsARegistryKey(t *testing.T) {
	const key = `HKLM\SYSTEM\CurrentControlSet\Control\CCG\COMClasses`
	with, without := labtest.Node(t), labtest.Node(t, wine.WithoutContainersFeature())
	if out, err := with.Run(t.Context(), "reg", "query", key); err != nil {
		t.Errorf("with the feature: %v\n%s", err, out)
	}
	if _, err := without.Run(t.Context(), "reg", "query", key); err == nil {
		t.Error("without the feature: the key exists")
	}
}

func TestNodeDoesNotInheritTheEnvironment(t *testing.T) {
	t.Setenv("LAB_MARKER", "m4rker")
	node := labtest.Node(t)
	out, err := node.Run(t.Context(), "cmd", "/c", "set")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(out), "m4rker") || !strings.Contains(string(out), "SystemRoot") {
		t.Errorf("the environment:\n%s", out)
	}
}

func TestNodesAreIndependentAndStopEndsAllProcesses(t *testing.T) {
	a, b := probeNode(t, "1m"), probeNode(t, "1m")
	ccg(t, a, "--input", "pid")
	ccg(t, b, "--input", "pid")
	if len(surrogates(t, a)) != 1 || len(surrogates(t, b)) != 1 {
		t.Fatal("the nodes do not have one surrogate each")
	}
	a.Stop()
	if len(surrogates(t, a)) != 0 {
		t.Error("the surrogate of a stopped node is still running")
	}
	if got := ccg(t, b, "--input", "pid"); got.Error != "" {
		t.Errorf("the other node after the stop: %+v", got)
	}
}

// TestHelperRunsANode is the process that the next test kills.
func TestHelperRunsANode(t *testing.T) {
	ready := os.Getenv("LAB_NODE_READY")
	if ready == "" {
		return // not started by the next test
	}
	node := probeNode(t, "1m")
	ccg(t, node, "--input", "pid")
	if err := os.WriteFile(ready, []byte(node.Path(`C:\`)), 0o600); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Minute)
}

func TestNodeEndsWithItsParentProcess(t *testing.T) {
	labtest.Require(t)
	dir := t.TempDir() // also the killed process's temporary directory, so that its files are removed
	ready := filepath.Join(dir, "ready")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^TestHelperRunsANode$")
	cmd.Env = append(os.Environ(), "LAB_NODE_READY="+ready, "TMPDIR="+dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	labtest.Eventually(t, time.Minute, "the other process has a node", func() bool {
		_, err := os.Stat(ready)
		return err == nil
	})
	drive, err := os.ReadFile(ready)
	if err != nil {
		t.Fatal(err)
	}
	prefix := filepath.Dir(string(drive))

	if len(processesOf(t, prefix)) == 0 {
		t.Fatal("the node has no processes before the kill")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	labtest.Eventually(t, 15*time.Second, "every process of the node ends", func() bool {
		return len(processesOf(t, prefix)) == 0
	})
}

// probeNode starts a node with the probe's class and the emulator of ccg.exe.
func probeNode(t *testing.T, idle string) *wine.Node {
	t.Helper()
	d, err := time.ParseDuration(idle)
	if err != nil {
		t.Fatal(err)
	}
	node := labtest.Node(t, wine.WithSurrogateIdle(d))
	dir := t.TempDir()
	dll := filepath.Join(dir, "probe.dll")
	run(t, exec.Command("x86_64-w64-mingw32-gcc", "-O2", "-Wall", "-Werror", "-shared", "-o", dll,
		"testdata/probe.c", "-lole32", "-luuid"))
	exe := filepath.Join(dir, "ccg.exe")
	build := exec.Command("go", "build", "-trimpath", "-o", exe, "../../cmd/ccg")
	build.Env = append(os.Environ(), "GOOS=windows", "GOARCH=amd64", "CGO_ENABLED=0")
	run(t, build)
	for from, to := range map[string]string{dll: `C:\probe\probe.dll`, exe: `C:\probe\ccg.exe`} {
		if err := node.Install(from, to); err != nil {
			t.Fatal(err)
		}
	}
	for _, v := range [][3]string{
		{`CLSID\` + probeClass, "AppID", probeAppID},
		{`CLSID\` + probeClass + `\InprocServer32`, "", `C:\probe\probe.dll`},
		{`CLSID\` + probeClass + `\InprocServer32`, "ThreadingModel", "Both"},
		{`AppID\` + probeAppID, "DllSurrogate", ""},
	} {
		args := []string{"add", `HKLM\SOFTWARE\Classes\` + v[0], "/f", "/d", v[2], "/v", v[1]}
		if v[1] == "" {
			args = []string{"add", `HKLM\SOFTWARE\Classes\` + v[0], "/f", "/d", v[2], "/ve"}
		}
		if out, err := node.Run(t.Context(), "reg", args...); err != nil {
			t.Fatalf("reg %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	return node
}

func ccg(t *testing.T, node *wine.Node, args ...string) answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	// If a call fails, it exits with 1 and prints the error.
	out, _ := node.Run(ctx, `C:\probe\ccg.exe`, append([]string{"--class", probeClass}, args...)...)
	var got answer
	if err := json.Unmarshal(out, &got); err != nil {
		t.Errorf("ccg %v printed %q", args, out)
	}
	return got
}

func surrogates(t *testing.T, node *wine.Node) []int {
	t.Helper()
	pids, err := node.SurrogatePIDs()
	if err != nil {
		t.Fatal(err)
	}
	return pids
}

func processesOf(t *testing.T, prefix string) []int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, f := range files {
		environ, _ := os.ReadFile(f)
		if strings.Contains("\x00"+string(environ), "\x00WINEPREFIX="+prefix+"\x00") {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			pids = append(pids, pid)
		}
	}
	return pids
}

func run(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, out)
	}
}

// A missing program is an error of the test, not a failure of Wine that a retry can fix.
func TestNeverStartedIgnoresMissingPrograms(t *testing.T) {
	node := labtest.Node(t)
	out, err := node.Run(t.Context(), `C:\nosuch.exe`)
	if err == nil || wine.NeverStarted(out) {
		t.Errorf("%v\n%s", err, out)
	}
	for _, output := range []string{
		"Application could not be started, or no application associated with the specified file.\r\n" +
			"ShellExecuteEx failed: Internal error.\r\n",
		"wine: DLL initialization failed, status c0000142",
	} {
		if !wine.NeverStarted([]byte(output)) {
			t.Errorf("%q is not recognized as a failure of Wine", output)
		}
	}
}
