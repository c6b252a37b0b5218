// Package e2e tests all parts together: a real API server, the Windows binaries under Wine, and the emulator in place
// of ccg.exe. Each test has its own nodes and control planes, so that all can run in parallel.
package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/ccgrkc/ccgrkc/lab/env/controlplane"
	"github.com/ccgrkc/ccgrkc/lab/env/wine"
	"github.com/ccgrkc/ccgrkc/lab/env/winnode"
	"github.com/ccgrkc/ccgrkc/lab/labtest"
)

var web = controlplane.Account{Namespace: "gmsa-system", Release: "web", Secret: "web-creds"}

const webInput = "gmsa-system:web-creds"

func secret(password string) map[string][]byte {
	return map[string][]byte{
		"domainName": []byte("corp.example.com"),
		"username":   []byte("gmsa-reader"),
		"password":   []byte(password),
	}
}

// newStage is a node with the product's programs and a control plane with the account web.
func newStage(t *testing.T, options ...wine.Option) *winnode.Stage {
	t.Helper()
	s := &winnode.Stage{
		ControlPlane: labtest.ControlPlane(t),
		Node:         labtest.Node(t, options...),
		Logs:         t.TempDir(),
	}
	labtest.Must(t, errors.Join(
		s.Put("gmsa-account-provider.exe", "ccg-plugin-installer.exe", "lab/ccg.exe"),
		s.ControlPlane.CreateNamespace(t.Context(), web.Namespace),
		s.ControlPlane.CreateAccount(t.Context(), web)))
	return s
}

func install(t *testing.T, s *winnode.Stage, args ...string) {
	t.Helper()
	if out, err := s.Installer(t.Context(), append([]string{"install"}, args...)...); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func startProvider(t *testing.T, s *winnode.Stage, account controlplane.Account, args ...string) *winnode.Program {
	t.Helper()
	p, err := s.StartProvider(t.Context(), account, args...)
	labtest.Must(t, err)
	t.Cleanup(p.Kill)
	return p
}

func fetch(t *testing.T, s *winnode.Stage, input string, flags ...string) winnode.Answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	a, err := s.Fetch(ctx, input, flags...)
	labtest.Must(t, err)
	return a
}

// waitForAnswer calls until wanted returns true. After a change, the provider can return cached credentials for 5
// seconds.
func waitForAnswer(t *testing.T, limit time.Duration, s *winnode.Stage, input string,
	wanted func(winnode.Answer) bool) winnode.Answer {
	t.Helper()
	began := time.Now()
	for {
		a := fetch(t, s, input)
		if wanted(a) {
			return a
		}
		if time.Since(began) > limit {
			t.Fatalf("after %v: %+v", time.Since(began).Round(time.Second), a)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// Each password reaches the emulator with the same UTF-16 code units, and a change of the Secret has an effect.
func TestPasswordsArriveUnchanged(t *testing.T) {
	labtest.Require(t)
	t.Parallel()
	s := newStage(t)
	install(t, s)
	passwords := []string{
		"plain", strings.Repeat("p", 1024), `"double" 'single'`, `back\slash\\`, "  spaces  ", "é", "密码", "𝄞",
		"%", "%1 %s %n %%", `{"json":[1,2]}\u0000`, `<xml a="b">&amp;]]></xml>`, "\u2028\ufeff\u202e", "e\u0301 é",
	}
	labtest.Must(t, s.ControlPlane.PutSecret(t.Context(), web, secret(passwords[0])))
	startProvider(t, s, web)
	for _, password := range passwords {
		labtest.Must(t, s.ControlPlane.PutSecret(t.Context(), web, secret(password)))
		want := utf16.Encode([]rune(password))
		var a winnode.Answer
		for began := time.Now(); time.Since(began) < 8*time.Second; time.Sleep(100 * time.Millisecond) {
			if a = fetch(t, s, webInput, "--show-password"); slices.Equal(a.PasswordUTF16, want) {
				break
			}
		}
		if !slices.Equal(a.PasswordUTF16, want) || a.Domain != "corp.example.com" || a.Username != "gmsa-reader" {
			t.Errorf("%.20q: %+v", password, a)
		}
		if a.PasswordFingerprint != winnode.Fingerprint(password) || a.PasswordUnits != len(want) {
			t.Errorf("%.20q: fingerprint %s, %d units", password, a.PasswordFingerprint, a.PasswordUnits)
		}
	}
	labtest.Must(t, s.ControlPlane.PutSecret(t.Context(), web, secret("")))
	waitForAnswer(t, 8*time.Second, s, webInput, func(a winnode.Answer) bool { return a.HResult == "0xA0040008" })
}

// A change in the cluster that makes the credentials unavailable has an effect within 5 seconds. Each such change has
// its own HRESULT. After the repair, calls succeed again.
func TestCallsFailWithinFiveSecondsWithTheHResultOfTheCause(t *testing.T) {
	labtest.Require(t)
	t.Parallel()
	s := newStage(t)
	install(t, s)
	cp, ctx := s.ControlPlane, t.Context()
	startProvider(t, s, web) // before the Secret exists
	if a := fetch(t, s, webInput); a.HResult != "0xA0040007" {
		t.Errorf("before the Secret exists: %+v", a)
	}
	good := func(a winnode.Answer) bool { return a.PasswordFingerprint == winnode.Fingerprint("secret") }
	restore := func() {
		t.Helper()
		labtest.Must(t, cp.PutSecret(ctx, web, secret("secret")))
		waitForAnswer(t, 3*time.Second, s, webInput, good)
	}
	restore()
	for _, c := range []struct {
		name, hresult  string
		breaks, repair func() error
	}{
		{
			name:    "Secret deleted",
			hresult: "0xA0040007",
			breaks:  func() error { return cp.DeleteSecret(ctx, web) },
		},
		{
			name:    "RoleBinding deleted",
			hresult: "0xA0040009",
			breaks:  func() error { return cp.DeleteRoleBinding(ctx, web) },
			repair:  func() error { return cp.CreateRoleBinding(ctx, web) },
		},
		{
			name:    "key removed",
			hresult: "0xA0040008",
			breaks: func() error {
				data := secret("secret")
				delete(data, "username")
				return cp.PutSecret(ctx, web, data)
			},
		},
	} {
		labtest.Must(t, c.breaks())
		broken := time.Now()
		for time.Since(broken) < 5*time.Second {
			if a := fetch(t, s, webInput); a.HResult == c.hresult {
				break
			}
		}
		// The loop's last call can begin before the limit and end after it. After the limit, no call can succeed.
		if a := fetch(t, s, webInput); a.HResult != c.hresult {
			t.Errorf("%s: 5 seconds later: %+v", c.name, a)
		}
		if c.repair != nil {
			labtest.Must(t, c.repair())
		}
		restore()
	}
}

// Invalid plugin inputs return E_INVALIDARG to another process too, write an event, and change nothing on the disk. An
// input with a NUL is not tested, because COM's strings end at it.
func TestInvalidPluginInputsChangeNothingOnDisk(t *testing.T) {
	labtest.Require(t)
	t.Parallel()
	s := &winnode.Stage{Node: labtest.Node(t, wine.WithDebug(traceEvents)), Logs: t.TempDir()}
	labtest.Must(t, s.Put("ccg-plugin-installer.exe", "lab/ccg.exe"))
	// The surrogate inherits the installer's standard error, to which Wine writes the events.
	log, err := os.Create(filepath.Join(s.Logs, "install.log"))
	labtest.Must(t, err)
	defer log.Close()
	cmd := s.Node.Command(t.Context(), `C:\lab\ccg-plugin-installer.exe`, "install")
	cmd.Stdout, cmd.Stderr = log, log
	labtest.Must(t, cmd.Run())
	before := tree(t, s.Node.Path(`C:\`))
	for name, input := range map[string]string{
		"empty":          "",
		"no colon":       "web-creds",
		"two colons":     "a:b:c",
		"parent":         "..:x",
		"slash":          "a/b:c",
		"backslash":      `a\b:c`,
		"upper case":     "A:b",
		"64 KiB":         strings.Repeat("a", 64<<10),
		"non-BMP":        "a:𝄞",
		"254 characters": "a:" + strings.Repeat("s", 254),
		"percent":        "%1:%n",
		"device":         `\\.\pipe\x:y`,
	} {
		if a := fetch(t, s, input); a.HResult != "0x80070057" {
			t.Errorf("%s: %+v", name, a)
		}
	}
	events, err := os.ReadFile(log.Name())
	labtest.Must(t, err)
	if n := strings.Count(string(events), "does not have the form") + strings.Count(string(events), "the form is"); n < 5 {
		t.Errorf("%d events of invalid inputs in:\n%s", n, events)
	}
	if after := tree(t, s.Node.Path(`C:\`)); !slices.Equal(before, after) {
		t.Errorf("the disk changed:\nbefore %q\nafter  %q", before, after)
	}
}

// tree lists the files below dir, except those of the emulator.
func tree(t *testing.T, dir string) (paths []string) {
	t.Helper()
	labtest.Must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !strings.Contains(path, `/drive_c/lab/spec-`) {
			paths = append(paths, strings.TrimPrefix(path, dir))
		}
		return nil
	}))
	return paths
}

// loadReport is the emulator's output for many calls.
type loadReport struct {
	Calls, Succeeded int
}

func load(t *testing.T, s *winnode.Stage, args ...string) loadReport {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	out, err := s.CCG(ctx, args...)
	var r loadReport
	if jsonErr := json.Unmarshal(out, &r); jsonErr != nil {
		t.Fatalf("the emulator printed %q: %v, %v", out, jsonErr, err)
	}
	if err != nil || r.Succeeded != r.Calls || r.Calls == 0 {
		t.Errorf("%s, %v", out, err)
	}
	return r
}

// After 32 simultaneous activations and calls, the surrogate's memory does not grow with 10,000 calls.
func TestSurrogateDoesNotGrowWithCalls(t *testing.T) {
	labtest.Alone(t)
	s := newStage(t)
	install(t, s)
	labtest.Must(t, s.ControlPlane.PutSecret(t.Context(), web, secret("secret")))
	startProvider(t, s, web)
	load(t, s, "--input", webInput, "--calls", "320", "--parallel", "32", "--activations")
	load(t, s, "--input", webInput, "--calls", "1000", "--parallel", "8") // the heap reaches its size

	pids, err := s.Node.SurrogatePIDs()
	labtest.Must(t, err)
	if len(pids) != 1 {
		t.Fatalf("%d surrogates", len(pids))
	}
	// A leak grows with every call. A busy machine can add threads once. So growth must be seen in two rounds.
	for round := 1; ; round++ {
		handles, memory := usage(t, pids[0])
		load(t, s, "--input", webInput, "--calls", "10000", "--parallel", "8")
		handlesAfter, memoryAfter := usage(t, pids[0])
		growth := fmt.Sprintf("handles %d -> %d, resident memory %d -> %d KiB",
			handles, handlesAfter, memory>>10, memoryAfter>>10)
		t.Logf("10,000 calls: %s", growth)
		// A leak of 1 KiB per call would be 10 MiB.
		if handlesAfter <= handles+16 && memoryAfter <= memory+8<<20 {
			break
		}
		if round == 2 {
			t.Errorf("the surrogate grew in two rounds; in the second: %s", growth)
			break
		}
	}
	if after, err := s.Node.SurrogatePIDs(); err != nil || !slices.Equal(pids, after) {
		t.Errorf("the surrogate changed: %v, %v, %v", pids, after, err)
	}
}

func usage(t *testing.T, pid int) (handles int, memory int64) {
	t.Helper()
	handles, err := wine.Handles(pid)
	labtest.Must(t, err)
	memory, err = wine.RSS(pid)
	labtest.Must(t, err)
	return handles, memory
}

// With two providers for two Secrets on one node, each plugin input returns the credentials of its own account.
func TestTwoAccountsOnOneNode(t *testing.T) {
	labtest.Require(t)
	t.Parallel()
	s := newStage(t)
	install(t, s)
	// Names of DOS devices are valid Kubernetes names.
	other := controlplane.Account{Namespace: "con", Release: "nul", Secret: "nul"}
	cp, ctx := s.ControlPlane, t.Context()
	labtest.Must(t, errors.Join(
		cp.CreateNamespace(ctx, other.Namespace),
		cp.CreateAccount(ctx, other),
		cp.PutSecret(ctx, web, secret("of web")),
		cp.PutSecret(ctx, other, secret("of nul"))))
	first := startProvider(t, s, web)
	startProvider(t, s, other)
	if a := fetch(t, s, webInput); a.PasswordFingerprint != winnode.Fingerprint("of web") {
		t.Errorf("web: %+v", a)
	}
	if a := fetch(t, s, "con:nul"); a.PasswordFingerprint != winnode.Fingerprint("of nul") {
		t.Errorf("con:nul: %+v", a)
	}
	labtest.Must(t, first.Stop())
	if a := fetch(t, s, webInput); a.HResult != "0xA0040001" {
		t.Errorf("web, stopped: %+v", a)
	}
	if a := fetch(t, s, "con:nul"); a.PasswordFingerprint != winnode.Fingerprint("of nul") {
		t.Errorf("con:nul, after web stopped: %+v", a)
	}
}

// A killed provider leaves endpoint files. cleanup removes them, but fails while a provider serves the endpoint.
func TestCleanupAfterAKilledProvider(t *testing.T) {
	labtest.Require(t)
	t.Parallel()
	s := newStage(t)
	labtest.Must(t, s.ControlPlane.PutSecret(t.Context(), web, secret("secret")))
	p := startProvider(t, s, web)
	args := []string{"cleanup", "--namespace", web.Namespace, "--secret", web.Secret}
	if out, err := s.Provider(t.Context(), args...); err == nil || !strings.Contains(string(out), "is still running") {
		t.Errorf("while the provider runs: %v\n%s", err, out)
	}
	p.Kill()
	if _, err := os.Stat(s.Node.Path(winnode.HostPath + `\gmsa-system\web-creds\current`)); err != nil {
		t.Fatalf("the killed provider left no files; the test verified nothing: %v", err)
	}
	for range 2 {
		if out, err := s.Provider(t.Context(), args...); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	}
	if entries, err := os.ReadDir(s.Node.Path(`C:\var`)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("files left: %v, %v", entries, err)
	}
	out, err := s.Provider(t.Context(), "healthcheck", "--namespace", web.Namespace, "--secret", web.Secret)
	if err == nil {
		t.Errorf("the health check succeeded: %s", out)
	} else if !strings.Contains(fmt.Sprint(string(out)), "no endpoint is published") {
		t.Errorf("the health check printed: %s", out)
	}
}

// Attack: a standard user owns the account's directory, with a fake endpoint. The plugin does not use it, and the
// provider does not publish to it.
func TestPlantedEndpointIsNotTrusted(t *testing.T) {
	labtest.Require(t)
	t.Parallel()
	s := newStage(t)
	install(t, s)
	labtest.Must(t, s.ControlPlane.PutSecret(t.Context(), web, secret("secret")))
	startProvider(t, s, web)
	account := s.Node.Path(winnode.HostPath + `\gmsa-system\web-creds`)
	labtest.Must(t, os.Chown(account, 12345, 12345)) // Wine shows another owner
	if a := fetch(t, s, webInput); a.HResult != "0xA0040003" {
		t.Errorf("%+v", a)
	}
	if p, err := s.StartProvider(t.Context(), web); err == nil {
		p.Kill()
		t.Error("a second provider published to the directory")
	} else if !strings.Contains(err.Error(), "not trusted") {
		t.Errorf("the provider's error: %v", err)
	}
}
