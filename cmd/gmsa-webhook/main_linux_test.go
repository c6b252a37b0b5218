package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
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

// process is the program with certificates from a directory, which needs an API server for reviews only.
type process struct {
	*exec.Cmd
	reviews, health string // addresses
	roots           *x509.CertPool
	expiry          time.Time
	log             chan string // all of it, at the end
}

// start waits until it is ready. It dies with the test.
func start(t *testing.T, api *httptest.Server, flags ...string) *process {
	t.Helper()
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
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	p := &process{roots: x509.NewCertPool(), expiry: m.NotAfter, log: make(chan string, 1)}
	p.roots.AppendCertsFromPEM(m.CA)
	p.Cmd = exec.CommandContext(ctx, os.Args[0], append([]string{"run", "--namespace=gmsa", "--service=web", "--mutating-configuration=web", "--validating-configuration=web",
		"--certificates=dir", "--certificate-dir=" + dir, "--listen=127.0.0.1:0", "--health-listen=127.0.0.1:0", "--log-format=json"}, flags...)...)
	// The way in which containerd 1.6 tells where mounts are leads to the files of this test.
	p.Env = append(os.Environ(), "BE_GMSA_WEBHOOK=1", "KUBERNETES_SERVICE_HOST="+host, "KUBERNETES_SERVICE_PORT="+port, "CONTAINER_SANDBOX_MOUNT_POINT="+dir)
	runtime.LockOSThread() // Pdeathsig is about the thread
	p.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stderr, err := p.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	var at struct{ Reviews, Health string }
	lines := bufio.NewScanner(stderr)
	for at.Health == "" && lines.Scan() {
		if err := json.Unmarshal(lines.Bytes(), &at); err != nil {
			t.Fatalf("log: %s", lines.Text())
		}
	}
	p.reviews, p.health = at.Reviews, at.Health
	go func() {
		b, _ := io.ReadAll(stderr)
		p.log <- string(b)
	}()
	p.eventually(t, "it is ready", func() bool {
		code, _ := p.ask("/readyz")
		return code == 200
	})
	return p
}

func (p *process) eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it did not happen: %s", what)
		}
	}
}

// ask asks the health port.
func (p *process) ask(path string) (int, string) {
	resp, err := http.Get("http://" + p.health + path)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

// client speaks as an API server does: HTTP/1.1, connections kept, as many as it has reviews at once. It would also speak HTTP/2.
func (p *process) client() *http.Transport {
	return &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: p.roots, ServerName: "web.gmsa.svc"}, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 100,
	}
}

func (p *process) review(client *http.Transport, body string) (*http.Response, string, error) {
	resp, err := (&http.Client{Transport: client}).Post("https://"+p.reviews+"/mutate?timeout=10s", "application/json", strings.NewReader(body))
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp, string(b), err
}

// memory returns a line of /proc/<pid>/status in KiB.
func (p *process) memory(t *testing.T, name string) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		var kib int
		if _, err := fmt.Sscanf(line, name+": %d kB", &kib); err == nil {
			return kib
		}
	}
	t.Fatalf("no %s in %s", name, status)
	return 0
}

func (p *process) signal(t *testing.T) {
	t.Helper()
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
}

// ended waits for the end.
func (p *process) ended(t *testing.T) {
	t.Helper()
	log := <-p.log
	if err := p.Wait(); err != nil {
		t.Errorf("%v\n%s", err, log)
	}
	if !strings.Contains(log, `"msg":"ended"`) || strings.Contains(log, "PRIVATE KEY") {
		t.Errorf("log:\n%s", log)
	}
}

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

	p := start(t, api, "--shutdown-delay=1s")
	if code, text := p.ask("/metrics"); code != 200 || !strings.Contains(text, fmt.Sprintf("gmsa_webhook_certificate_expiry_timestamp_seconds %d\n", p.expiry.Unix())) {
		t.Errorf("metrics: %d %s", code, text)
	}
	if code, _ := p.ask("/mutate"); code != 404 {
		t.Errorf("/mutate on the health port: %d", code)
	}
	kib := p.memory(t, "VmRSS")
	t.Logf("%d KiB resident at rest", kib)
	if kib > 30<<10 {
		t.Errorf("%d KiB resident at rest, want 30 MiB at most", kib)
	}

	client := p.client()
	defer client.CloseIdleConnections()
	answered := make(chan error, 1)
	go func() {
		resp, text, err := p.review(client, review)
		if err == nil && (resp.ProtoMajor != 1 || !strings.Contains(text, `"allowed":true`)) {
			err = fmt.Errorf("%s: %s", resp.Proto, text)
		}
		answered <- err
	}()
	<-asked
	p.signal(t)
	p.eventually(t, "it is not ready", func() bool {
		code, text := p.ask("/readyz")
		return code == 503 && strings.Contains(text, "ending")
	})
	if resp, text, err := p.review(client, "nonsense"); err != nil || resp.StatusCode != 400 || !resp.Close {
		t.Errorf("after SIGTERM reviews are not taken, or connections kept: %v %s", err, text)
	}
	// The delay is over, nobody new is let in, and the one review still goes on.
	p.eventually(t, "it listens no more", func() bool {
		c, err := net.Dial("tcp", p.reviews)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	release()
	if err := <-answered; err != nil {
		t.Errorf("the review under way: %v", err)
	}
	p.ended(t)
}

// An API server under load keeps its connections, and finds a replica for new ones elsewhere once Services have forgotten this one.
// No review fails, at any of many ends.
func TestTheEndBreaksNoReview(t *testing.T) {
	// Not beside the other tests: a client that is kept from the processor for longer than the delay asks on a connection that is
	// closed at that moment, as HTTP/1.1 has it.
	api := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"credspec":{"Sid":"S-1"}}`) }))
	defer api.Close()
	elsewhere := errors.New("another replica")
	for range 10 {
		p := start(t, api, "--shutdown-delay=1s") // long enough for each connection to be used, also on a busy machine
		var forgotten atomic.Bool
		client := p.client()
		client.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			if forgotten.Load() {
				return nil, elsewhere
			}
			return (&net.Dialer{}).DialContext(ctx, network, address)
		}
		var done sync.WaitGroup
		var n atomic.Int64
		signalled := time.Now().Add(100 * time.Millisecond) // about
		for range 16 {
			done.Go(func() {
				for {
					_, _, err := p.review(client, review)
					switch {
					case errors.Is(err, elsewhere):
						return
					case err != nil:
						t.Errorf("%s after the beginning of the end: %v", time.Since(signalled), err)
						return
					}
					n.Add(1)
					time.Sleep(time.Duration(rand.N(5 * time.Millisecond)))
				}
			})
		}
		time.Sleep(100 * time.Millisecond)
		p.signal(t)
		time.Sleep(200 * time.Millisecond)
		forgotten.Store(true)
		done.Wait()
		client.CloseIdleConnections()
		p.ended(t)
		if n.Load() == 0 {
			t.Error("nothing was asked")
		}
	}
}

// What reviews can come to: as many at once as there are connections, small ones with as much to read, to ask for and to add as may
// be, large ones among them, from several addresses. The chart gives 128 MiB.
func TestReviewsAtOnceStayWithinTheMemoryThatThereIs(t *testing.T) {
	// Not beside the other tests: they would wait for it.
	// JSON has a backslash before each quotation mark; this is what swells most.
	spec := `{"credspec":{"x":[` + strings.Repeat(`"","",`, 60) + `""]}}`
	api := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(20 * time.Millisecond)
		_, _ = io.WriteString(w, spec)
	}))
	defer api.Close()
	p := start(t, api, "--shutdown-delay=0s")
	body := func(containers, pad int) string {
		var list []string
		for i := range containers {
			list = append(list, fmt.Sprintf(`{"name":"c%d","securityContext":{"windowsOptions":{"gmsaCredentialSpecName":"web"}}}`, i))
		}
		return strings.Replace(review, `"containers":[{"name":"c"}]`, `"x":"`+strings.Repeat("x", pad)+`","containers":[`+strings.Join(list, ",")+`]`, 1)
	}
	small, many, large := body(250, 40<<10), body(700, 0), body(250, 3<<20)
	if len(small) > 64<<10 || len(many) > 64<<10 {
		t.Fatalf("%d, %d bytes are no small body", len(small), len(many))
	}
	var done sync.WaitGroup
	var got sync.Map
	for i := range 6 {
		client := p.client()
		client.DialContext = (&net.Dialer{
			LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+i))},
			Timeout:   10 * time.Second,
		}).DialContext
		defer client.CloseIdleConnections()
		ask := func(body string, n int) {
			for range n {
				resp, answer, err := p.review(client, body)
				if err != nil {
					t.Error(err)
					return
				}
				got.Store(fmt.Sprint(len(body)>>10, " KiB: ", resp.StatusCode, ", ", len(answer)>>10, " KiB"), true)
			}
		}
		for range 60 {
			done.Go(func() { ask(small, 2) })
		}
		for range 15 {
			done.Go(func() { ask(many, 2) })
		}
		for range 5 {
			done.Go(func() { ask(large, 1) })
		}
	}
	done.Wait()
	got.Range(func(what, _ any) bool {
		t.Log(what)
		return true
	})
	kib := p.memory(t, "VmHWM")
	t.Logf("%d KiB resident at most", kib)
	if kib > 100<<10 {
		t.Errorf("%d KiB resident at most, want 100 MiB", kib)
	}
	p.signal(t)
	p.ended(t)
}
