package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/mtls"
)

// The test binary is the program when it is told to be, so that signals and the exit code are a real process's.
func TestMain(m *testing.M) {
	if os.Getenv("BE_GMSA_WEBHOOK") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

func TestWrongFlagsAreNamed(t *testing.T) {
	t.Parallel()
	required := []string{"run", "--namespace=gmsa", "--service=web", "--mutating-configuration=web", "--validating-configuration=web"}
	for _, c := range []struct{ flags, want string }{
		{"--namespace=a/b", "--namespace \"a/b\""},
		{"--service=../x", "--service \"../x\""},
		{"--certificates=none", "--certificates \"none\": want self or dir"},
		{"--certificates=dir", "needs --certificate-dir"},
		{"--certificate-dir=/x", "goes with --certificates dir"},
		{"--certificates=dir --certificate-dir=/x --certificate-secret=web-tls", "goes with --certificates self"},
		{"--certificate-secret=A", "--certificate-secret \"A\""},
		{"--certificate-lifetime=1m", "--certificate-lifetime, --certificate-settle: certificate lifetime 1m0s"},
		{"--plugin-input=maybe", "--plugin-input \"maybe\": want warn or deny"},
		{"--client-name=x", "want --client-ca-file too"},
		{"--shutdown-delay=-1s", "--shutdown-delay -1s"},
		{"--log-format=xml", "--log-format \"xml\""},
	} {
		cmd := exec.Command(os.Args[0], append(required, strings.Fields(c.flags)...)...)
		cmd.Env = append(os.Environ(), "BE_GMSA_WEBHOOK=1", "KUBERNETES_SERVICE_HOST=127.0.0.1", "KUBERNETES_SERVICE_PORT=1")
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), c.want) {
			t.Errorf("%s: %v, %s; want %q", c.flags, err, out, c.want)
		}
	}
}

const review = `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u-1","operation":"CREATE","namespace":"shop",
"kind":{"group":"","version":"v1","kind":"Pod"},"resource":{"group":"","version":"v1","resource":"pods"},
"object":{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{"containers":[{"name":"c"}],
"securityContext":{"windowsOptions":{"gmsaCredentialSpecName":"web"}}}}}}`

// SIGTERM in the middle of a review: not ready at once, still serving for a while, and the review is answered.
func TestTheEndIsGraceful(t *testing.T) {
	t.Parallel()
	asked, answer := make(chan struct{}, 1), make(chan struct{})
	api := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/apis/windows.k8s.io/v1/gmsacredentialspecs/web" {
			asked <- struct{}{}
			<-answer
			_, _ = io.WriteString(w, `{"credspec":{"Sid":"S-1"}}`)
			return
		}
		w.WriteHeader(http.StatusForbidden)
	}))
	defer api.Close()
	release := sync.OnceFunc(func() { close(answer) })
	defer release() // before Close, which waits

	dir := t.TempDir()
	put := func(name string, data []byte) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	account := "var/run/secrets/kubernetes.io/serviceaccount/"
	put(account+"token", []byte("token"))
	put(account+"ca.crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: api.Certificate().Raw}))
	m, err := mtls.IssueServer("test", "web.gmsa.svc", time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	put("tls.crt", m.ServerCert)
	put("tls.key", m.ServerKey)

	host, port, _ := net.SplitHostPort(api.Listener.Addr().String())
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "run", "--namespace=gmsa", "--service=web", "--mutating-configuration=web", "--validating-configuration=web",
		"--certificates=dir", "--certificate-dir="+dir, "--listen=127.0.0.1:0", "--health-listen=127.0.0.1:0", "--shutdown-delay=1s", "--log-format=json")
	// The way in which containerd 1.6 tells where mounts are leads to the files of this test.
	cmd.Env = append(os.Environ(), "BE_GMSA_WEBHOOK=1", "KUBERNETES_SERVICE_HOST="+host, "KUBERNETES_SERVICE_PORT="+port, "CONTAINER_SANDBOX_MOUNT_POINT="+dir)
	runtime.LockOSThread() // Pdeathsig is about the thread
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var at struct{ Reviews, Health string }
	lines := bufio.NewScanner(stderr)
	for at.Health == "" && lines.Scan() {
		if err := json.Unmarshal(lines.Bytes(), &at); err != nil {
			t.Fatalf("log: %s", lines.Text())
		}
	}
	rest := make(chan string)
	go func() {
		b, _ := io.ReadAll(stderr)
		rest <- string(b)
	}()

	health := func(path string) (int, string) {
		resp, err := http.Get("http://" + at.Health + path)
		if err != nil {
			return 0, err.Error()
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		code, text := health("/readyz")
		if code == 200 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("not ready: %d %s", code, text)
		}
	}
	if code, text := health("/metrics"); code != 200 || !strings.Contains(text, fmt.Sprintf("gmsa_webhook_certificate_expiry_timestamp_seconds %d\n", m.NotAfter.Unix())) {
		t.Errorf("metrics: %d %s", code, text)
	}
	if code, _ := health("/mutate"); code != 404 {
		t.Errorf("/mutate on the health port: %d", code)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		var kib int
		if _, err := fmt.Sscanf(line, "VmRSS: %d kB", &kib); err == nil {
			t.Logf("%d KiB resident at rest", kib)
			if kib > 30<<10 {
				t.Errorf("%d KiB resident at rest, want 30 MiB at most", kib)
			}
		}
	}

	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(m.CA)
	ask := func(body string) (*http.Response, string, error) {
		client := &http.Client{Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "web.gmsa.svc"}, ForceAttemptHTTP2: true,
		}}
		defer client.CloseIdleConnections()
		resp, err := client.Post("https://"+at.Reviews+"/mutate?timeout=10s", "application/json", strings.NewReader(body))
		if err != nil {
			return nil, "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return resp, string(b), err
	}
	answered := make(chan error, 1)
	go func() {
		resp, text, err := ask(review)
		if err == nil && (resp.ProtoMajor != 2 || !strings.Contains(text, `"allowed":true`)) {
			err = fmt.Errorf("%s: %s", resp.Proto, text)
		}
		answered <- err
	}()
	<-asked
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		code, text := health("/readyz")
		if code == 503 && strings.Contains(text, "ending") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("ready after SIGTERM: %d %s", code, text)
		}
	}
	if resp, text, err := ask("nonsense"); err != nil || resp.StatusCode != 400 {
		t.Errorf("after SIGTERM reviews are not taken: %v %s", err, text)
	}
	// The delay is over, nobody new is let in, and the one review still goes on.
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("tcp", at.Reviews)
		if err != nil {
			break
		}
		c.Close()
		if time.Now().After(end) {
			t.Fatal("it still listens")
		}
	}
	release()
	if err := <-answered; err != nil {
		t.Errorf("the review under way: %v", err)
	}
	log := <-rest
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v\n%s", err, log)
	}
	if !strings.Contains(log, `"msg":"ended"`) || strings.Contains(log, "PRIVATE KEY") {
		t.Errorf("log:\n%s", log)
	}
}
