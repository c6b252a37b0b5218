package e2e

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/soak"
	"github.com/ccgrkc/ccgrkc/lab/env/winnode"
	"github.com/ccgrkc/ccgrkc/lab/labtest"
)

// During an upgrade, while a surrogate uses the old DLL, no call fails. New activations use the new DLL, and the old
// file is removed.
func TestUpgradeUnderLoad(t *testing.T) {
	labtest.Require(t)
	t.Parallel()
	next, err := winnode.BuildInstaller(t.Context(), t.TempDir(), "v999.0.0")
	labtest.Must(t, err)
	s := newStage(t)
	install(t, s)
	labtest.Must(t, s.ControlPlane.PutSecret(t.Context(), web, secret("secret")))
	startProvider(t, s, web)
	old := dlls(t, s)
	if len(old) != 1 {
		t.Fatalf("installed: %q", old)
	}
	if v := selfTest(t, s); strings.HasPrefix(v, "v999") {
		t.Fatalf("before the upgrade the DLL has version %q", v)
	}

	// The timeout is for a hang: the calls take up to three minutes, and twice that with other tests on a slow machine.
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	type result struct {
		out []byte
		err error
	}
	loads := make(chan result, 2)
	const goesOn = `C:\lab\load-goes-on`
	labtest.Must(t, os.WriteFile(s.Node.Path(goesOn), nil, 0o600))
	go func() { // objects that live through the upgrade
		out, err := s.CCG(ctx, "--input", webInput, "--calls", "1000000", "--parallel", "4", "--while", goesOn)
		loads <- result{out, err}
	}()
	stop := make(chan struct{})
	go func() { // activations before, during and after the upgrade
		for {
			select {
			case <-stop:
				loads <- result{}
				return
			default:
			}
			out, err := s.CCG(ctx, "--input", webInput, "--calls", "20", "--parallel", "2", "--activations")
			if err != nil {
				loads <- result{out, err}
				return
			}
		}
	}()
	time.Sleep(3 * time.Second)

	labtest.Must(t, s.Node.Install(next, `C:\lab\ccg-plugin-installer.exe`))
	if out, err := s.Installer(ctx, "install"); err != nil {
		t.Errorf("upgrade: %v\n%s", err, out)
	}
	if v := selfTest(t, s); !strings.HasPrefix(v, "v999") {
		t.Errorf("after the upgrade a new activation uses version %q", v)
	}
	close(stop)
	time.Sleep(time.Duration(soak.N(200)) * time.Second)
	labtest.Must(t, os.Remove(s.Node.Path(goesOn)))
	for range 2 {
		if r := <-loads; r.err != nil {
			t.Errorf("calls failed: %v\n%s", r.err, r.out)
		}
	}
	// The old surrogate exits when it has no clients. Then the next installation removes its file.
	for began := time.Now(); ; time.Sleep(time.Second) {
		if out, err := s.Installer(ctx, "install"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		now := dlls(t, s)
		if len(now) == 1 && now[0] != old[0] {
			return
		}
		if time.Since(began) > time.Minute {
			t.Fatalf("a minute after the end of the load, the DLLs are %q", now)
		}
	}
}

func dlls(t *testing.T, s *winnode.Stage) []string {
	t.Helper()
	found, err := filepath.Glob(s.Node.Path(`C:\Program Files\CCGRKC\*.dll`))
	labtest.Must(t, err)
	return found
}

// selfTest returns the DLL version of a new activation.
func selfTest(t *testing.T, s *winnode.Stage) string {
	t.Helper()
	a := fetch(t, s, "?self-test")
	var report struct{ Version string }
	if err := json.Unmarshal([]byte(a.Domain), &report); err != nil {
		t.Fatalf("self-test: %+v", a)
	}
	if a.Username != "" || a.PasswordUnits != 0 {
		t.Errorf("the self-test returned more than its report: %+v", a)
	}
	return report.Version
}
