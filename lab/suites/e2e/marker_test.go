package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/ccgrkc/ccgrkc/lab/env/wine"
	"github.com/ccgrkc/ccgrkc/lab/env/winnode"
	"github.com/ccgrkc/ccgrkc/lab/labtest"
)

// traceEvents makes Wine write events to the programs' standard error.
const traceEvents = "-all,err+eventlog,warn+eventlog,trace+eventlog"

// The password is a marker, and all programs run with the most verbose log level. Afterwards the test searches all
// output for the marker in the usual encodings: logs, events, registry, metrics, the node's files, and the command
// lines and environments of all processes.
func TestPasswordIsNeverWrittenAnywhere(t *testing.T) {
	labtest.Require(t)
	t.Parallel()
	const marker = "m4rk3r-Zx9\"<é密𝄞>%s-pw"
	s := newStage(t, wine.WithDebug(traceEvents))
	install(t, s, "--log-level", "debug")
	cp, ctx := s.ControlPlane, t.Context()
	labtest.Must(t, cp.PutSecret(ctx, web, secret(marker)))
	metrics := freeAddress(t)
	provider := startProvider(t, s, web, "--log-level", "debug", "--metrics-address", metrics)
	if a := fetch(t, s, webInput); a.PasswordFingerprint != winnode.Fingerprint(marker) {
		t.Fatalf("%+v", a)
	}
	written := map[string][]byte{"metrics": get(t, "http://"+metrics+"/metrics")}

	// Each failure of the credential path occurs once. The password is also written to the keys of the names.
	for _, key := range []string{"username", "domainName", "password"} {
		bad := secret(marker)
		bad[key] = []byte(marker + `\@` + "\x00")
		labtest.Must(t, cp.PutSecret(ctx, web, bad))
		waitForAnswer(t, 8*time.Second, s, webInput, func(a winnode.Answer) bool { return a.HResult == "0xA0040008" })
		labtest.Must(t, cp.PutSecret(ctx, web, secret(marker)))
		waitForAnswer(t, 8*time.Second, s, webInput, func(a winnode.Answer) bool { return a.PasswordUnits > 0 })
	}
	labtest.Must(t, cp.PutSecret(ctx, web, secret(marker)))
	waitForAnswer(t, 8*time.Second, s, webInput, func(a winnode.Answer) bool {
		return a.PasswordFingerprint == winnode.Fingerprint(marker)
	})
	labtest.Must(t, cp.DeleteRoleBinding(ctx, web))
	waitForAnswer(t, 8*time.Second, s, webInput, func(a winnode.Answer) bool { return a.HResult == "0xA0040009" })
	for path, b := range processes(t) {
		written[path] = b
	}
	labtest.Must(t, provider.Stop())
	if out, err := s.Installer(ctx, "status", "-o", "json"); err != nil {
		t.Errorf("status: %v\n%s", err, out)
	}
	if out, err := s.Installer(ctx, "uninstall"); err != nil {
		t.Errorf("uninstall: %v\n%s", err, out)
	}
	s.Node.Stop() // writes the registry to files

	for _, dir := range []string{s.Logs, s.Node.Path(`C:\..`)} {
		labtest.Must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			written[path], err = os.ReadFile(path)
			return err
		}))
	}
	if len(written) < 50 || !anyContains(written, "CCGRKC") || !anyContains(written, "request succeeded") {
		t.Fatalf("the test searched only %d files, or neither events nor the debug log", len(written))
	}
	for path, b := range written {
		for form, needle := range forms(marker) {
			if bytes.Contains(b, needle) {
				t.Errorf("%s contains the password as %s", path, form)
			}
		}
	}
}

func anyContains(files map[string][]byte, s string) bool {
	for path, b := range files {
		if strings.Contains(path, ".log") && bytes.Contains(b, []byte(s)) {
			return true
		}
	}
	return false
}

// forms are the usual encodings of a part of the password.
func forms(password string) map[string][]byte {
	part := password[:10]
	wide := func(s string) (b []byte) {
		for _, u := range utf16.Encode([]rune(s)) {
			b = binary.LittleEndian.AppendUint16(b, u)
		}
		return b
	}
	return map[string][]byte{
		"text":             []byte(part),
		"UTF-16":           wide(part),
		"hex":              []byte(hex.EncodeToString([]byte(part))),
		"hex of UTF-16":    []byte(hex.EncodeToString(wide(part))),
		"base64":           []byte(base64.StdEncoding.EncodeToString([]byte(part[:9]))),
		"base64 of UTF-16": []byte(base64.StdEncoding.EncodeToString(wide(part[:9]))),
		"list of bytes":    []byte("109 52 114 107 51 114"),
	}
}

// processes returns the command line and the environment of every process.
func processes(t *testing.T) map[string][]byte {
	t.Helper()
	found := map[string][]byte{}
	for _, pattern := range []string{"/proc/[0-9]*/cmdline", "/proc/[0-9]*/environ"} {
		paths, err := filepath.Glob(pattern)
		labtest.Must(t, err)
		for _, path := range paths {
			if b, err := os.ReadFile(path); err == nil { // fails for a process that ends meanwhile
				found[path] = b
			}
		}
	}
	return found
}

// freeAddress is a free port on loopback. Another process can take it before its use.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	labtest.Must(t, err)
	defer l.Close()
	return l.Addr().String()
}

func get(t *testing.T, url string) []byte {
	t.Helper()
	resp, err := http.Get(url)
	labtest.Must(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	labtest.Must(t, err)
	return b
}
