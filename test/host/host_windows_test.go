package host

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/com"
	"github.com/ccgrkc/ccgrkc/internal/endpoint"
	"github.com/ccgrkc/ccgrkc/internal/installer"
	"github.com/ccgrkc/ccgrkc/internal/plugin/selftest"
)

// program returns the path of a built program: in CCGRKC_DIST, otherwise in dist.
func program(t *testing.T, name string) string {
	t.Helper()
	dist := os.Getenv("CCGRKC_DIST")
	if dist == "" {
		dist = filepath.Join("..", "..", "dist")
	}
	path, err := filepath.Abs(filepath.Join(dist, name))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v; make build creates it, and CCGRKC_DIST is its directory", err)
	}
	return path
}

// run runs a program to its end and returns what it wrote, and its exit code. Its output is a file and no pipe: under
// Wine a surrogate that it starts inherits that, and a pipe would stay open for as long as the surrogate lives.
func run(t *testing.T, name string, args ...string) (string, int) {
	t.Helper()
	out, err := os.CreateTemp("", "ccgrkc-host-*.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(out.Name()) // fails where such a surrogate has it open
	defer out.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program(t, name), args...)
	cmd.Stdout, cmd.Stderr = out, out
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s %q: %v", name, args, err)
	}
	content, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(content), cmd.ProcessState.ExitCode()
}

func must(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, code := run(t, name, args...); code != 0 {
		t.Fatalf("%s %q: exit code %d\n%s", name, args, code, out)
	}
}

const installerExe, providerExe = "ccg-plugin-installer.exe", "gmsa-account-provider.exe"

// status returns the report of the installer and its exit code.
func status(t *testing.T) (installer.Report, int) {
	t.Helper()
	out, code := run(t, installerExe, "status", "--output", "json")
	var report installer.Report
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		t.Fatalf("status: exit code %d, %v\n%s", code, err, out)
	}
	return report, code
}

// install installs the plugin until the test's end and returns what its self-test said. A host that has it already is
// left alone.
func install(t *testing.T) selftest.Report {
	t.Helper()
	if report, code := status(t); code != installer.ExitNotInstalled {
		t.Fatalf("the plugin is on this host (%s): these tests install it and take it away, so run them on another "+
			"host, or uninstall it", report.State)
	}
	t.Cleanup(func() { uninstall(t) })
	must(t, installerExe, "install")
	report, code := status(t)
	if code != installer.ExitInstalled || report.SelfTest == nil {
		t.Fatalf("after the install: exit code %d, %+v", code, report)
	}
	return report.SelfTest.Report
}

// uninstall ends the surrogate first. It would end by itself, after a time that a test of its own is about.
func uninstall(t *testing.T) {
	t.Helper()
	if report, _ := status(t); report.SelfTest != nil {
		if surrogate, err := os.FindProcess(report.SelfTest.PID); err == nil {
			_ = surrogate.Kill()
			_, _ = surrogate.Wait()
		}
	}
	if out, code := run(t, installerExe, "uninstall"); code != 0 {
		t.Errorf("uninstall: exit code %d\n%s", code, out)
	}
	if report, code := status(t); code != installer.ExitNotInstalled {
		t.Errorf("after the uninstall: exit code %d, %+v", code, report)
	}
}

// account is one impersonation account, with an Account Provider that serves it until the test's end.
type account struct {
	namespace, secret string
	process           *os.Process
}

// root is where providers publish, in the spelling of programs that do not know \\?\.
var root = strings.TrimPrefix(endpoint.DefaultRoot, `\\?\`)

func (a *account) input() string     { return a.namespace + ":" + a.secret }
func (a *account) directory() string { return filepath.Join(root, a.namespace) }
func (a *account) kill()             { _ = a.process.Kill(); _, _ = a.process.Wait() }

var wanted = struct{ domainName, username, password string }{
	"corp.example.com", "gmsa-reader", `a "word" with %PATH%, ünïcödé and 𝄞 `,
}

// serve starts an Account Provider against a stand-in for the API server, which knows one Secret and one token: there
// is no cluster on a single Windows host. The lab has the same way with a real API server.
func serve(t *testing.T) *account {
	t.Helper()
	a := &account{namespace: "host-test-" + strings.ToLower(rand.Text()[:8]), secret: "account-creds"}
	token := rand.Text()
	api := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+token ||
			r.URL.Path != "/api/v1/namespaces/"+a.namespace+"/secrets/"+a.secret {
			http.Error(w, "forbidden", http.StatusForbidden)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"kind": "Secret", "apiVersion": "v1", "data": map[string][]byte{
			"domainName": []byte(wanted.domainName), "username": []byte(wanted.username),
			"password": []byte(wanted.password),
		}})
	}))
	t.Cleanup(api.Close)

	dir, err := os.MkdirTemp("", "ccgrkc-host-")
	if err != nil {
		t.Fatal(err)
	}
	tokenFile, caFile, logFile := filepath.Join(dir, "token"), filepath.Join(dir, "ca.crt"),
		filepath.Join(dir, "provider.log")
	t.Cleanup(func() { // os.RemoveAll asks for a way of deleting that Wine does not have
		for _, path := range []string{tokenFile, caFile, logFile, dir} {
			if err := os.Remove(path); err != nil {
				t.Error(err)
			}
		}
	})
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: api.Certificate().Raw})
	if err := errors.Join(os.WriteFile(tokenFile, []byte(token), 0o600), os.WriteFile(caFile, ca, 0o600)); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(logFile)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(program(t, providerExe), "run", "--namespace", a.namespace, "--secret", a.secret,
		"--kube-api-server", api.URL, "--kube-token-file", tokenFile, "--kube-ca-file", caFile)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	a.process = cmd.Process
	t.Cleanup(func() {
		a.kill()
		must(t, providerExe, "cleanup", "--namespace", a.namespace, "--secret", a.secret)
	})
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		out, code := run(t, providerExe, "healthcheck", "--namespace", a.namespace, "--secret", a.secret)
		if code == 0 {
			return a
		}
		if time.Now().After(deadline) {
			said, _ := os.ReadFile(logFile)
			t.Fatalf("the provider does not respond: %s\n%s", out, bytes.TrimSpace(said))
		}
	}
}

// ask acts like ccg.exe: it activates the class in another process and requests the credentials.
func ask(input string) (com.Result, error) {
	object, err := com.Activate(com.ClassID)
	if err != nil {
		return com.Result{}, err
	}
	defer object.Release()
	return object.GetPasswordCredentials(input)
}
