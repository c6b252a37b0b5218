package e2e

import (
	"context"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/soak"
	"github.com/ccgrkc/ccgrkc/lab/env/winnode"
	"github.com/ccgrkc/ccgrkc/lab/labtest"
)

// The tests of Windows packages are compiled for Windows and run under Wine, each package on its own node.
func TestWindowsPackages(t *testing.T) {
	labtest.Require(t)
	t.Parallel()
	top := filepath.Dir(winnode.Dist())
	for _, dir := range []string{
		"internal/winsec",
		"internal/endpoint",
		"internal/selfcheck",
		"internal/com",
		"internal/installer",
		"cmd/ccg-plugin-installer",
		"test/host",
	} {
		name := path.Base(dir)
		t.Run(name, func(t *testing.T) {
			exe := filepath.Join(t.TempDir(), name+".test.exe")
			build := exec.Command("go", "test", "-c", "-trimpath", "-tags", "faultpoints", "-o", exe, "./"+dir)
			build.Dir = top
			build.Env = append(os.Environ(), "GOOS=windows", "GOARCH=amd64", "CGO_ENABLED=0")
			if out, err := build.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if _, err := os.Stat(exe); err != nil {
				t.Fatalf("package %s has no tests for Windows", name)
			}
			s := winnode.Stage{Node: labtest.Node(t)}
			labtest.Must(t, s.Node.Install(exe, `C:\lab\`+name+`.test.exe`))
			if name == "host" {
				labtest.Must(t, s.Put("ccg-plugin-installer.exe", "gmsa-account-provider.exe"))
			}
			output, err := os.Create(filepath.Join(t.TempDir(), "output"))
			labtest.Must(t, err)
			defer output.Close()
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(soak.N(500))*time.Minute)
			defer cancel()
			// Wine keeps no descriptors of files, and has no final path beyond MAX_PATH.
			cmd := s.Node.Command(ctx, `C:\lab\`+name+`.test.exe`, "-test.v", "-test.skip=OnWindowsOnly$|^TestTheLongestNames")
			cmd.Env = append(cmd.Env, `CCGRKC_DIST=C:\lab`, soak.Variable+"="+os.Getenv(soak.Variable))
			cmd.Stdout, cmd.Stderr = output, output
			err = cmd.Run()
			out, readErr := os.ReadFile(output.Name())
			labtest.Must(t, readErr)
			if err != nil || !strings.Contains(string(out), "--- PASS") || strings.Contains(string(out), "--- SKIP") {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// A C program loads the DLL, uses it and frees it twice. The module must remain mapped: a Go runtime crashes when its
// code is unmapped. Wine hides this crash, so the test checks the module.
func TestFreeLibraryLeavesTheModuleMapped(t *testing.T) {
	labtest.Require(t)
	t.Parallel()
	exe := filepath.Join(t.TempDir(), "freelibrary.exe")
	build := exec.Command("x86_64-w64-mingw32-gcc", "-O2", "-Wall", "-o", exe, "testdata/freelibrary.c",
		"-lole32", "-luuid")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	node := labtest.Node(t)
	labtest.Must(t, node.Install(exe, `C:\lab\freelibrary.exe`))
	labtest.Must(t, node.Install(filepath.Join(winnode.Dist(), "ccg-plugin.dll"), `C:\lab\ccg-plugin.dll`))
	for _, mode := range []string{"load", "unload", "class"} {
		out, err := node.Run(t.Context(), `C:\lab\freelibrary.exe`, `C:\lab\ccg-plugin.dll`, mode)
		if err != nil || !strings.HasSuffix(strings.TrimSpace(string(out)), "mapped") {
			t.Errorf("%s: %v\n%s", mode, err, out)
		}
	}
}
