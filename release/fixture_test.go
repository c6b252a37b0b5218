package main

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// programs builds small programs of the kinds that the images hold, once, and returns the directory.
var programs = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "ccgrkc-images-")
	if err != nil {
		return "", err
	}
	fixtures = dir
	write := func(name, text string) {
		path := filepath.Join(dir, "source", name)
		if err == nil {
			err = os.MkdirAll(filepath.Dir(path), 0o755)
		}
		if err == nil {
			err = os.WriteFile(path, []byte(text), 0o644)
		}
	}
	write("go.mod", "module example.com/fixture\n\ngo 1.26.0\n")
	write("dll/dll.go", "package main\n\nimport \"C\"\n\n//export Answer\nfunc Answer() int32 { return 42 }\n\nfunc "+
		"main() {}\n")
	write("plain/main.go", "package main\n\nfunc main() { println(\"hello\") }\n")
	write("carrier/main.go", "package main\n\nimport _ \"embed\"\n\n//go:embed ccg-plugin.dll\nvar dll "+
		"string\n\nfunc main() { println(dll) }\n")
	build := func(output, source string, flags []string, env ...string) {
		if err != nil {
			return
		}
		c := exec.Command("go", append(append([]string{"build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w"},
			flags...),
			"-o", filepath.Join(dir, output), source)...)
		c.Dir = filepath.Join(dir, "source")
		c.Env = append(os.Environ(), append([]string{"CGO_ENABLED=0", "GOFLAGS="}, env...)...)
		c.Stderr = os.Stderr
		err = c.Run()
	}
	windows := []string{"GOOS=windows", "GOARCH=amd64"}
	build("ccg-plugin.dll", "./dll", []string{"-buildmode=c-shared"},
		append(windows, "CGO_ENABLED=1", "CC=x86_64-w64-mingw32-gcc")...)
	if err == nil {
		err = os.Link(filepath.Join(dir, "ccg-plugin.dll"), filepath.Join(dir, "source", "carrier", "ccg-plugin.dll"))
	}
	build("ccg-plugin-installer.exe", "./carrier", nil, windows...)
	build("gmsa-account-provider.exe", "./plain", nil, windows...)
	build("linux-amd64/gmsactl", "./plain", nil, "GOOS=linux", "GOARCH=amd64")
	build("linux-arm64/gmsactl", "./plain", nil, "GOOS=linux", "GOARCH=arm64")
	link := func(from, to string) {
		if err == nil {
			err = os.Link(filepath.Join(dir, from), filepath.Join(dir, to))
		}
	}
	link("gmsa-account-provider.exe", "container-probe.exe")
	for _, platform := range []string{"linux-amd64", "linux-arm64"} {
		link(platform+"/gmsactl", platform+"/uninstall-hook")
		link(platform+"/gmsactl", platform+"/gmsa-webhook")
	}
	build("dynamic", "./plain", []string{"-buildmode=pie"}, "GOOS=linux", "GOARCH=amd64")
	return dir, err
})

var fixtures string

func TestMain(m *testing.M) {
	code := m.Run()
	if fixtures != "" {
		os.RemoveAll(fixtures)
	}
	os.Exit(code)
}

// need skips the test where a tool is missing, and fails where none may be.
func need(t *testing.T, tool string) {
	t.Helper()
	if _, err := exec.LookPath(tool); err == nil {
		return
	}
	if os.Getenv("CCGRKC_LAB") != "" {
		t.Fatalf("%s is missing: run make deps", tool)
	}
	t.Skipf("%s is missing: run make deps", tool)
}

// dist returns a directory of its own with what build needs.
func dist(t *testing.T) string {
	t.Helper()
	need(t, "x86_64-w64-mingw32-gcc")
	from, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, name := range []string{
		"ccg-plugin.dll", "ccg-plugin-installer.exe", "gmsa-account-provider.exe", "container-probe.exe",
		"linux-amd64/uninstall-hook", "linux-arm64/uninstall-hook",
		"linux-amd64/gmsa-webhook", "linux-arm64/gmsa-webhook", "linux-amd64/gmsactl", "linux-arm64/gmsactl",
	} {
		put(t, dir, name, read(t, from, name))
	}
	return dir
}

func read(t *testing.T, dir, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func put(t *testing.T, dir, name string, data []byte) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// built builds a layout from dist and returns its directory and digest.
func built(t *testing.T, dist, base string) (string, v1.Hash) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "image")
	digest, err := build(context.Background(), options{
		version: "v1.2.3", revision: "0123456789abcdef", dist: dist, out: out, base: base, log: io.Discard,
	})
	if err != nil {
		t.Fatal(err)
	}
	return out, digest
}
