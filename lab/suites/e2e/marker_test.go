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

// The whole demo runs at the most verbose level with a marker for a password. Then everything that was written is
// searched for it, in every form that a careless programmer could have given it: logs, events, registry, metrics, files
// of the node, and command lines and environments of every process.
func TestThePasswordIsNowhereButOnItsWay(t *testing.T) {
	labtest.Require(t)
	t.Parallel()
	const marker = "m4rk3r-Zx9\"<é密𝄞>%s-pw"
	s := newStage(t, wine.WithDebug("-all,err+eventlog,warn+eventlog,trace+eventlog")) // events, as text in the programs' output
	install(t, s, "--log-level", "debug")
	cp, ctx := s.ControlPlane, t.Context()
	must(t, cp.PutSecret(ctx, web, secret(marker)))
	metrics := freeAddress(t)
	provider := startProvider(t, s, web, "--log-level", "debug", "--metrics-address", metrics)
	if a := fetch(t, s, webInput); a.PasswordFingerprint != winnode.Fingerprint(marker) {
		t.Fatalf("%+v", a)
	}
	written := map[string][]byte{"metrics": get(t, "http://"+metrics+"/metrics")}

	// Everything that can go wrong on the way goes wrong once, with the marker at hand.
	// Keys get swapped, too: then the password stands where a name belongs.
	for _, key := range []string{"username", "domainName", "password"} {
		bad := secret(marker)
		bad[key] = []byte(marker + `\@` + "\x00")
		must(t, cp.PutSecret(ctx, web, bad))
		within(t, 8*time.Second, s, webInput, func(a winnode.Answer) bool { return a.HResult == "0xA0040008" })
		must(t, cp.PutSecret(ctx, web, secret(marker)))
		within(t, 8*time.Second, s, webInput, func(a winnode.Answer) bool { return a.PasswordUnits > 0 })
	}
	must(t, cp.PutSecret(ctx, web, secret(marker)))
	within(t, 8*time.Second, s, webInput, func(a winnode.Answer) bool { return a.PasswordFingerprint == winnode.Fingerprint(marker) })
	must(t, cp.DeleteRoleBinding(ctx, web))
	within(t, 8*time.Second, s, webInput, func(a winnode.Answer) bool { return a.HResult == "0xA0040009" })
	for path, b := range processes(t) {
		written[path] = b
	}
	must(t, provider.Stop())
	if out, err := s.Installer(ctx, "status", "-o", "json"); err != nil {
		t.Errorf("status: %v\n%s", err, out)
	}
	if out, err := s.Installer(ctx, "uninstall"); err != nil {
		t.Errorf("uninstall: %v\n%s", err, out)
	}
	s.Node.Stop() // writes the registry to files

	for _, dir := range []string{s.Logs, s.Node.Path(`C:\..`)} {
		must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			written[path], err = os.ReadFile(path)
			return err
		}))
	}
	if len(written) < 50 || !anyContains(written, "CCGRKC") || !anyContains(written, "call answered") {
		t.Fatalf("only %d files were searched, or the events and the debug log are not among them", len(written))
	}
	for path, b := range written {
		for form, needle := range forms(marker) {
			if bytes.Contains(b, needle) {
				t.Errorf("%s holds the password as %s", path, form)
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

// forms are the encodings in which a password could have been written. A distinctive part of it is enough to be found.
func forms(password string) map[string][]byte {
	part := password[:10]
	wide := func(s string) (b []byte) {
		for _, u := range utf16.Encode([]rune(s)) {
			b = binary.LittleEndian.AppendUint16(b, u)
		}
		return b
	}
	return map[string][]byte{
		"text": []byte(part), "UTF-16": wide(part), "hex": []byte(hex.EncodeToString([]byte(part))), "hex of UTF-16": []byte(hex.EncodeToString(wide(part))),
		"base64": []byte(base64.StdEncoding.EncodeToString([]byte(part[:9]))), "base64 of UTF-16": []byte(base64.StdEncoding.EncodeToString(wide(part[:9]))),
		"list of bytes": []byte("109 52 114 107 51 114"),
	}
}

// processes gives the command line and the environment of every process of the machine.
func processes(t *testing.T) map[string][]byte {
	t.Helper()
	found := map[string][]byte{}
	for _, pattern := range []string{"/proc/[0-9]*/cmdline", "/proc/[0-9]*/environ"} {
		paths, err := filepath.Glob(pattern)
		must(t, err)
		for _, path := range paths {
			if b, err := os.ReadFile(path); err == nil { // others end while we look
				found[path] = b
			}
		}
	}
	return found
}

// freeAddress is a loopback address that nobody listens on. Another process could take it before its user does.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	return l.Addr().String()
}

func get(t *testing.T, url string) []byte {
	t.Helper()
	resp, err := http.Get(url)
	must(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must(t, err)
	return b
}
