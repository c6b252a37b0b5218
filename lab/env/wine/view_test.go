package wine_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ccgrkc/ccgrkc/lab/env/wine"
	"github.com/ccgrkc/ccgrkc/lab/labtest"
)

func TestOnlyTheViewSeesItsMounts(t *testing.T) {
	node := labtest.Node(t)
	secret := t.TempDir()
	for name, content := range map[string]string{"..v1/token": "t0ken", "inner/file": "1nner"} {
		path := filepath.Join(secret, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{"..data": "..v1", "token": "..data/token"} {
		if err := os.Symlink(to, filepath.Join(secret, name)); err != nil {
			t.Fatal(err)
		}
	}
	dir := filepath.Join(t.TempDir(), "view")
	view, err := node.View(t.Context(), dir, []wine.Mount{
		{Source: filepath.Join(secret, "inner"), Target: "/var/run/secrets/x/below"},
		{Source: secret, Target: "/var/run/secrets/x"},
		{Source: secret, Target: `C:\Windows\TEMP\mixed case`},
		{Source: filepath.Join(secret, "inner", "file"), Target: `c:\single\file.txt`},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer view.Close()
	for path, want := range map[string]string{
		`C:\var\run\secrets\x\token`:       "t0ken",
		`C:\var\run\secrets\x\below\file`:  "1nner",
		`C:\windows\temp\mixed case\token`: "t0ken",
		`C:\single\file.txt`:               "1nner",
	} {
		if got := viewRun(t, view, `C:\`, "cmd", "/c", "type", path); got != want {
			t.Errorf("%s in the view: %q", path, got)
		}
		if content, err := os.ReadFile(node.UnixPath(path)); err == nil && len(content) > 0 {
			t.Errorf("%s on the node's disk: %q", path, content)
		}
	}
	viewRun(t, view, `C:\`, "cmd", "/c", "echo written> C:\\written.txt")
	content, err := os.ReadFile(node.Path(`C:\written.txt`))
	if err != nil || strings.TrimSpace(string(content)) != "written" {
		t.Errorf("the node's disk has %q in the file that the view wrote outside its mounts: %v", content, err)
	}
	if err := view.Close(); err != nil {
		t.Error(err)
	}
	for _, path := range []string{
		node.Path(`C:\var`),
		node.Path(`C:\single`),
		node.UnixPath(`C:\windows\temp\mixed case`),
		dir,
	} {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s still exists", path)
		}
	}
	if pids := processesOf(t, dir); len(pids) > 0 {
		t.Errorf("processes of the view are still running: %v", pids)
	}
}

func TestMountPointRemainsWhileAViewUsesIt(t *testing.T) {
	node := labtest.Node(t)
	source, work := t.TempDir(), t.TempDir()
	var views []*wine.View
	for _, name := range []string{"a", "b"} {
		mounts := []wine.Mount{{Source: source, Target: `C:\shared\point`}}
		view, err := node.View(t.Context(), filepath.Join(work, name), mounts)
		if err != nil {
			t.Fatal(err)
		}
		defer view.Close()
		views = append(views, view)
	}
	for i, want := range []bool{true, false} {
		if err := views[i].Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(node.Path(`C:\shared`)); (err == nil) != want {
			t.Errorf("after %d of 2 views: the mount point exists: %v, want %v", i+1, err == nil, want)
		}
	}
}

func TestBootAfterAKillRemovesMountPointsOfViews(t *testing.T) {
	node := labtest.Node(t)
	mounts := []wine.Mount{{Source: t.TempDir(), Target: `C:\a b\point`}}
	view, err := node.View(t.Context(), filepath.Join(t.TempDir(), "view"), mounts)
	if err != nil {
		t.Fatal(err)
	}
	defer view.Close()
	sleeper := node.Command(t.Context(), "cmd", "/c", "pause")
	stdin, err := sleeper.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second)
	prefix := filepath.Dir(filepath.Clean(node.Path(`C:\`)))
	if len(processesOf(t, prefix)) == 0 {
		t.Fatal("the node has no processes before the kill")
	}
	node.Kill()
	_ = sleeper.Wait()
	if pids := processesOf(t, prefix); len(pids) > 0 {
		t.Errorf("processes are still running after the kill: %v", pids)
	}
	if err := node.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(node.Path(`C:\a b`)); err == nil {
		t.Error("the mount point still exists after the boot")
	}
	if out, err := node.Run(t.Context(), "cmd", "/c", "echo up"); err != nil || strings.TrimSpace(string(out)) != "up" {
		t.Errorf("the node after the boot: %q, %v", out, err)
	}
}

func viewRun(t *testing.T, view *wine.View, dir, exe string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := view.Run(ctx, dir, exe, args...)
	if err != nil {
		t.Errorf("%s %v: %v\n%s", exe, args, err, out)
	}
	return string(out)
}
