//go:build faultpoints

package installer

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// A child of the test binary installs or uninstalls, stops at one point, and is killed there: a real process, with real
// privileges, that gives nothing back.

const (
	childCommand = "CCGRKC_TEST_COMMAND"
	childRoot    = "CCGRKC_TEST_ROOT"
	childDir     = "CCGRKC_TEST_DIR"
	childDLL     = "CCGRKC_TEST_DLL"
)

func TestMain(m *testing.M) {
	if os.Getenv(childCommand) == "" {
		os.Exit(m.Run())
	}
	// While a goroutine sleeps, the runtime does not take a process that stands at a fault point for a deadlock.
	go func() {
		for {
			time.Sleep(time.Hour)
		}
	}()
	h := testHost(os.Getenv(childRoot), os.Getenv(childDir))
	h.DLL = []byte(os.Getenv(childDLL))
	var err error
	switch command := os.Getenv(childCommand); command {
	case "install":
		err = Install(context.Background(), &h.Config)
	case "uninstall":
		err = Uninstall(context.Background(), &h.Config)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "child:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// child starts the command with the fault point armed. It returns the points that were passed, if that is "list", else
// it returns once the process stood at the point and is dead.
func (h *host) child(t *testing.T, command, point string) (passed []string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "CCGRKC_STOP_AT="+point, childCommand+"="+command, childRoot+"="+h.root,
		childDir+"="+filepath.Dir(h.ProgramDir),
		childDLL+"="+string(h.DLL))
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer time.AfterFunc(time.Minute, func() { cmd.Process.Kill() }).Stop()
	stopped := false
	var all []string
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		line := strings.TrimSpace(lines.Text())
		all = append(all, line)
		if name, found := strings.CutPrefix(line, "faultpoint: passed "); found {
			passed = append(passed, name)
		}
		if line == "faultpoint: stopped at "+point {
			stopped = true
			cmd.Process.Kill()
		}
	}
	err = cmd.Wait()
	if point == "list" {
		if err != nil || len(passed) == 0 {
			t.Fatalf("%s: %v, passed %q\n%s", command, err, passed, strings.Join(all, "\n"))
		}
		return passed
	}
	if !stopped {
		t.Fatalf("%s never stood at %s: %v\n%s", command, point, err, strings.Join(all, "\n"))
	}
	return nil
}

func TestAfterAKillAtAnyStepTheNextRunRepairs(t *testing.T) {
	// An old version, damaged in the ways that make the most work.
	damaged := func(t *testing.T, h *host) {
		h.DLL = []byte("version zero")
		h.install(t)
		h.DLL = []byte("version one")
		if err := os.WriteFile(h.dllPath(), []byte("evil"), 0o600); err != nil {
			t.Fatal(err)
		}
		setValue(t, h.appIDKey(), text("RunAs", "Interactive User"))
		setValue(t, h.comClassesKey(), text("", "tampered"))
		setValue(t, h.clsidKey()+`\LocalServer32`, text("", `C:\evil.exe`))
	}
	scenarios := []struct {
		name    string
		prepare func(*testing.T, *host)
		command string
		want    []string // points that must be among those passed, or the scenario is not what it says
	}{
		{"a first install", func(*testing.T, *host) {}, "install",
			[]string{"install.begin", "install.journal", "install.check", "install.directory", "install.dll.written",
				"install.dll",
				"install.foreign", "install.event-source", "install.appid", "install.clsid", "install.inproc-server",
				"comclasses.journal-written", "comclasses.owner-taken", "comclasses.access-granted",
				"comclasses.changed",
				"comclasses.restored", "install.comclasses", "install.self-test", "install.old-versions"}},
		{"an upgrade of a damaged install", damaged, "install",
			[]string{"install.dll.aside", "install.dll.written", "install.old-versions"}},
		{"an uninstall", func(t *testing.T, h *host) { h.install(t) }, "uninstall",
			[]string{"uninstall.begin", "uninstall.journal", "comclasses.journal-written", "comclasses.owner-taken",
				"comclasses.access-granted", "comclasses.changed", "comclasses.restored", "uninstall.comclasses",
				"uninstall.appid", "uninstall.clsid", "uninstall.event-source", "uninstall.files",
				"uninstall.journal-key",
				"uninstall.read-back"}},
	}
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			prepared := func(t *testing.T) (h *host, before string) {
				h = newHost(t)
				s.prepare(t, h)
				return h, h.restrict(t)
			}
			h, _ := prepared(t)
			points := h.child(t, s.command, "list")
			for _, want := range s.want {
				if !slices.Contains(points, want) {
					t.Errorf("the %s passed %q, which lacks %s", s.command, points, want)
				}
			}
			for _, point := range unique(points) {
				for _, next := range []string{"install", "uninstall"} {
					t.Run(point+", then "+next, func(t *testing.T) {
						h, before := prepared(t)
						h.child(t, s.command, point)
						if _, err := Status(t.Context(), &h.Config); err != nil {
							t.Errorf("status of what the killed process left: %v", err)
						}
						if next == "install" {
							h.install(t)
							if report := h.wantState(t, Installed); len(report.Leftovers) > 0 ||
								len(report.Journal) > 0 {
								t.Errorf("left: %q, journal %q", report.Leftovers, report.Journal)
							}
						} else {
							if err := Uninstall(t.Context(), &h.Config); err != nil {
								t.Fatal(err)
							}
							h.wantClean(t)
						}
						if after := h.comClassesDescriptor(t); after != before {
							t.Errorf("owner and DACL of COMClasses: after %s, before %s", after, before)
						}
					})
				}
			}
		})
	}
}

func TestStatusReportsAnInterruptedChange(t *testing.T) {
	h := newHost(t)
	h.restrict(t)
	h.child(t, "install", "comclasses.access-granted")
	report := h.wantState(t, Drift)
	if len(report.Journal) != 1 || report.Journal[0] != h.COMClasses {
		t.Errorf("journal: %q, want %s", report.Journal, h.COMClasses)
	}
	h.install(t)
	h.wantState(t, Installed)
}

func unique(points []string) (once []string) {
	for _, point := range points {
		if !slices.Contains(once, point) {
			once = append(once, point)
		}
	}
	return once
}
