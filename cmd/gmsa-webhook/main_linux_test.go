package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/connlimit/connlimittest"
	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/kube/kubetest"
	"github.com/ccgrkc/ccgrkc/internal/mtls"
	"github.com/ccgrkc/ccgrkc/internal/servingcert/certtest"
	"github.com/ccgrkc/ccgrkc/internal/soak"
)

// With BE_GMSA_WEBHOOK the test binary runs the program, so that tests can use signals and the exit status.
func TestMain(m *testing.M) {
	connlimittest.Main()
	if os.Getenv("BE_GMSA_WEBHOOK") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

func TestInvalidFlagsAreReported(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ flags, want string }{
		{"--namespace=a/b", "--namespace \"a/b\""},
		{"--service=../x", "--service \"../x\""},
		{"--certificates=none", "--certificates \"none\": want self or dir"},
		{"--certificates=dir", "requires --certificate-dir"},
		{"--certificate-dir=/x", "requires --certificates dir"},
		{"--certificates=dir --certificate-dir=/x --certificate-secret=web-tls", "requires --certificates self"},
		{"--certificate-secret=A", "--certificate-secret \"A\""},
		{"--ca-lifetime=1m", "--ca-lifetime, --propagation-delay: CA lifetime 1m0s"},
		{"--plugin-input=maybe", "--plugin-input \"maybe\": want warn or deny"},
		{"--client-name=x", "requires --client-ca-file"},
		{"--shutdown-delay=-1s", "--shutdown-delay -1s"},
		{"--log-format=xml", "--log-format \"xml\""},
	} {
		cmd := exec.Command(os.Args[0], append(required, strings.Fields(c.flags)...)...)
		cmd.Env = append(os.Environ(),
			"BE_GMSA_WEBHOOK=1", "KUBERNETES_SERVICE_HOST=127.0.0.1", "KUBERNETES_SERVICE_PORT=1")
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), c.want) {
			t.Errorf("%s: %v, %s; want %q", c.flags, err, out, c.want)
		}
	}
}

// required are the required arguments.
var required = []string{
	"run", "--namespace=gmsa", "--service=web", "--mutating-configuration=web", "--validating-configuration=web",
}

const review = `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview",
"request":{"uid":"u-1","operation":"CREATE","namespace":"shop",
"kind":{"group":"","version":"v1","kind":"Pod"},"resource":{"group":"","version":"v1","resource":"pods"},
"object":{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{"containers":[{"name":"c"}],
"securityContext":{"windowsOptions":{"gmsaCredentialSpecName":"web"}}}}}}`

// process is the program with certificates from a directory. It needs an API server only for admission requests.
type process struct {
	*exec.Cmd
	admission, health string // addresses
	roots             *x509.CertPool
	expiry            time.Time
	log               chan string // the complete log, after exit
}

// start waits until the program is ready. The program ends with the test.
func start(t *testing.T, api *kubetest.Server, flags ...string) *process {
	t.Helper()
	dir := t.TempDir()
	mount := filepath.Join(dir, "var/run/secrets/kubernetes.io/serviceaccount")
	if err := os.MkdirAll(mount, 0o700); err != nil {
		t.Fatal(err)
	}
	api.Access(t, mount)
	ca, cert, key := certtest.Issue(t, "web.gmsa.svc", time.Hour)
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"tls.crt": cert, "tls.key": key} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	host, port, _ := net.SplitHostPort(api.Listener.Addr().String())
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	t.Cleanup(cancel)
	p := &process{roots: x509.NewCertPool(), expiry: pair.Leaf.NotAfter, log: make(chan string, 1)}
	p.roots.AppendCertsFromPEM(ca)
	args := append(slices.Clone(required), "--certificates=dir", "--certificate-dir="+dir, "--listen=127.0.0.1:0",
		"--health-listen=127.0.0.1:0", "--log-format=json")
	p.Cmd = exec.CommandContext(ctx, os.Args[0], append(args, flags...)...)
	// The variable for mounts of containerd 1.6 makes the program use this test's files.
	p.Env = append(os.Environ(), "BE_GMSA_WEBHOOK=1", "KUBERNETES_SERVICE_HOST="+host, "KUBERNETES_SERVICE_PORT="+port,
		"CONTAINER_SANDBOX_MOUNT_POINT="+dir)
	runtime.LockOSThread() // Pdeathsig depends on the thread
	p.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stderr, err := p.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	var at struct{ Admission, Health string }
	lines := bufio.NewScanner(stderr)
	for at.Health == "" && lines.Scan() {
		if err := json.Unmarshal(lines.Bytes(), &at); err != nil {
			t.Fatalf("log: %s", lines.Text())
		}
	}
	p.admission, p.health = at.Admission, at.Health
	go func() {
		b, _ := io.ReadAll(stderr)
		p.log <- string(b)
	}()
	p.eventually(t, "ready", func() bool {
		code, _ := p.get("/readyz")
		return code == 200
	})
	return p
}

func (p *process) eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("timeout: %s", what)
		}
	}
}

// get sends a request to the health port.
func (p *process) get(path string) (int, string) {
	resp, err := http.Get("http://" + p.health + path)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

// client works like an API server's: HTTP/1.1 with one idle connection for each concurrent request. It could use
// HTTP/2.
func (p *process) client() *http.Transport {
	return &http.Transport{
		TLSClientConfig:     &tls.Config{RootCAs: p.roots, ServerName: "web.gmsa.svc"},
		ForceAttemptHTTP2:   true,
		MaxIdleConnsPerHost: 100,
	}
}

func (p *process) review(client *http.Transport, body string) (*http.Response, string, error) {
	url := "https://" + p.admission + "/mutate?timeout=30s"
	timed := &http.Client{Transport: client, Timeout: time.Minute}
	resp, err := timed.Post(url, "application/json", strings.NewReader(body))
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
	bytes, err := connlimittest.Memory(p.Process.Pid, name)
	if err != nil {
		t.Fatal(err)
	}
	return bytes >> 10
}

func (p *process) signal(t *testing.T) {
	t.Helper()
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
}

// wait waits until the program has stopped, and returns its log.
func (p *process) wait(t *testing.T) (log string) {
	t.Helper()
	log = <-p.log
	if err := p.Wait(); err != nil {
		t.Errorf("%v\n%s", err, log)
	}
	if !strings.Contains(log, `"msg":"stopped"`) || strings.Contains(log, "PRIVATE KEY") {
		t.Errorf("log:\n%s", log)
	}
	return log
}

// After SIGTERM during a request, the program is not ready, accepts requests for the shutdown delay, and completes the
// request.
func TestShutdownIsGraceful(t *testing.T) {
	t.Parallel()
	requested, answer := make(chan struct{}, 1), make(chan struct{})
	api := kubetest.NewServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/apis/windows.k8s.io/v1/gmsacredentialspecs/web" {
			requested <- struct{}{}
			<-answer
			_, _ = io.WriteString(w, `{"credspec":{"Sid":"S-1"}}`)
			return
		}
		w.WriteHeader(http.StatusForbidden)
	})
	release := sync.OnceFunc(func() { close(answer) })
	defer release() // before the server's Close, which waits

	p := start(t, api, "--shutdown-delay=500ms")
	expiry := fmt.Sprintf("gmsa_webhook_certificate_expiry_timestamp_seconds %d\n", p.expiry.Unix())
	if code, text := p.get("/metrics"); code != 200 || !strings.Contains(text, expiry) {
		t.Errorf("metrics: %d %s", code, text)
	}
	if code, _ := p.get("/mutate"); code != 404 {
		t.Errorf("/mutate on the health port: %d", code)
	}
	kib := p.memory(t, "VmRSS")
	t.Logf("%d KiB resident at rest", kib)
	if kib > 30<<10 {
		t.Errorf("%d KiB resident at rest, want at most 30 MiB", kib)
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
	<-requested
	p.signal(t)
	p.eventually(t, "not ready", func() bool {
		code, text := p.get("/readyz")
		return code == 503 && strings.Contains(text, "shutting down")
	})
	if resp, text, err := p.review(client, "nonsense"); err != nil || resp.StatusCode != 400 || !resp.Close {
		t.Errorf("a request after SIGTERM was not accepted, or its connection kept: %v %s", err, text)
	}
	// After the delay the program accepts no connections, but completes the request.
	p.eventually(t, "not listening", func() bool {
		c, err := net.Dial("tcp", p.admission)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	release()
	if err := <-answered; err != nil {
		t.Errorf("the request in progress: %v", err)
	}
	p.wait(t)
}

// Each port accepts connections again after accept(2) has failed for good.
func TestFailedListenersAreReplaced(t *testing.T) {
	t.Parallel()
	p := start(t, kubetest.NewServer(t, http.NotFound), "--shutdown-delay=0s")
	connect := func(address string) bool {
		c, err := net.Dial("tcp", address)
		if err == nil {
			c.Close()
		}
		return err == nil
	}
	for _, address := range []string{p.admission, p.health} {
		err := connlimittest.BreakListener(p.Process.Pid, address)
		// In a container without CAP_SYS_PTRACE. make test must have it.
		if errors.Is(err, syscall.EPERM) && os.Getenv("CCGRKC_LAB") == "" {
			t.Skip(err)
		}
		if err != nil {
			t.Fatal(err)
		}
		p.eventually(t, "not listening", func() bool { return !connect(address) })
		p.eventually(t, "listening", func() bool { return connect(address) })
	}
	if code, text := p.get("/readyz"); code != http.StatusOK {
		t.Errorf("%d %s", code, text)
	}
	client := p.client()
	if resp, text, err := p.review(client, "nonsense"); err != nil || resp.StatusCode != http.StatusBadRequest {
		t.Errorf("%v %s", err, text)
	}
	client.CloseIdleConnections()
	p.signal(t)
	p.wait(t)
}

// Where the API server has a certificate, clients without one hold few connections, and it can connect meanwhile.
func TestClientsWithoutACertificateHoldFewConnections(t *testing.T) {
	t.Parallel()
	m, err := mtls.Issue(credential.Reference{Namespace: "gmsa", Secret: "api"}, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(m.ClientCert, m.ClientKey)
	if err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(ca, m.CA, 0o600); err != nil {
		t.Fatal(err)
	}
	p := start(t, kubetest.NewServer(t, http.NotFound), "--shutdown-delay=0s", "--client-ca-file="+ca)
	var open sync.WaitGroup
	for range 200 { // more than may stay, and fewer than the limit for all connections
		c, err := net.Dial("tcp", p.admission)
		if err != nil {
			t.Fatal(err)
		}
		open.Go(func() {
			_, _ = io.Copy(io.Discard, c)
			c.Close()
		})
	}
	client := p.client()
	client.TLSClientConfig.Certificates = []tls.Certificate{pair}
	if resp, text, err := p.review(client, "nonsense"); err != nil || resp.StatusCode != http.StatusBadRequest {
		t.Errorf("%v %s", err, text)
	}
	client.CloseIdleConnections()
	open.Wait()
	p.signal(t)
	if log := p.wait(t); !strings.Contains(log, "too many connections") {
		t.Errorf("the limiter closed no connection:\n%s", log)
	}
}

// An API server under load keeps its connections. When Services no longer route to this replica, new connections go to
// another one. No request fails.
func TestShutdownFailsNoRequest(t *testing.T) {
	loadTest(t)
	// Not parallel: if the client does not run for longer than the delay, it can send a request on a connection that is
	// being closed, which HTTP/1.1 cannot prevent.
	api := kubetest.NewServer(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"credspec":{"Sid":"S-1"}}`)
	})
	anotherReplica := errors.New("another replica")
	for range soak.N(500) {
		p := start(t, api, "--shutdown-delay=3s") // each connection must be used in this time, even on a busy machine
		var removed atomic.Bool
		client := p.client()
		client.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			if removed.Load() {
				return nil, anotherReplica
			}
			return (&net.Dialer{}).DialContext(ctx, network, address)
		}
		var done sync.WaitGroup
		var n atomic.Int64
		signalled := time.Now().Add(100 * time.Millisecond) // approximately
		for range 16 {
			done.Go(func() {
				for {
					_, _, err := p.review(client, review)
					switch {
					case errors.Is(err, anotherReplica):
						return
					case err != nil:
						t.Errorf("%s after SIGTERM: %v", time.Since(signalled), err)
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
		removed.Store(true)
		done.Wait()
		client.CloseIdleConnections()
		p.wait(t)
		if n.Load() == 0 {
			t.Error("no request was sent")
		}
	}
}

func loadTest(t *testing.T) {
	t.Helper()
	if os.Getenv("CCGRKC_LAB") != "1" {
		t.Skip("load test: runs in make test")
	}
}

// The worst case of requests: hundreds at once, small ones with the most references and the largest patch, and large
// ones, from several addresses. Their bodies exceed the limit for all bodies, so some of the connections are closed.
func TestConcurrentRequestsStayWithinTheMemoryLimit(t *testing.T) {
	loadTest(t)
	// Quotation marks grow most: JSON escapes them.
	spec := `{"credspec":{"x":[` + strings.Repeat(`"","",`, 60) + `""]}}`
	api := kubetest.NewServer(t, func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(20 * time.Millisecond)
		_, _ = io.WriteString(w, spec)
	})
	p := start(t, api, "--shutdown-delay=0s")
	body := func(containers, pad int) string {
		const format = `{"name":"c%d","securityContext":{"windowsOptions":{"gmsaCredentialSpecName":"web"}}}`
		var list []string
		for i := range containers {
			list = append(list, fmt.Sprintf(format, i))
		}
		full := `"x":"` + strings.Repeat("x", pad) + `","containers":[` + strings.Join(list, ",") + `]`
		return strings.Replace(review, `"containers":[{"name":"c"}]`, full, 1)
	}
	small, many, large := body(250, 40<<10), body(700, 0), body(250, 3<<20)
	if len(small) > 64<<10 || len(many) > 64<<10 {
		t.Fatalf("%d and %d bytes are not small bodies", len(small), len(many))
	}
	var done sync.WaitGroup
	var got sync.Map
	var answered, closed atomic.Int64
	for i := range 6 {
		client := p.client()
		client.DialContext = (&net.Dialer{
			LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+i))},
			Timeout:   10 * time.Second,
		}).DialContext
		defer client.CloseIdleConnections()
		send := func(body string, n int) {
			for range n {
				resp, answer, err := p.review(client, body)
				if errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.EOF) {
					closed.Add(1)
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				answered.Add(1)
				got.Store(fmt.Sprint(len(body)>>10, " KiB: ", resp.StatusCode, ", ", len(answer)>>10, " KiB"), true)
			}
		}
		for range 60 {
			done.Go(func() { send(small, 2) })
		}
		for range 15 {
			done.Go(func() { send(many, 2) })
		}
		for range 5 {
			done.Go(func() { send(large, 1) })
		}
	}
	done.Wait()
	got.Range(func(what, _ any) bool {
		t.Log(what)
		return true
	})
	kib := p.memory(t, "VmHWM")
	t.Logf("%d requests answered, %d connections closed, %d KiB resident at most", answered.Load(), closed.Load(), kib)
	if kib > connlimittest.MaxMemory>>10 {
		t.Errorf("%d KiB resident at most, want %d", kib, connlimittest.MaxMemory>>10)
	}
	if answered.Load() < 100 {
		t.Error("few requests were answered")
	}
	p.signal(t)
	p.wait(t)
}

// Attack: 15,000 connections to each port, which their clients hold, also after a TLS handshake. Meanwhile an API
// server can use its connection and open new ones, and the kubelet's probes succeed.
func TestHeldConnectionsBlockNobodyAndNeedLittleMemory(t *testing.T) {
	loadTest(t)
	api := kubetest.NewServer(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"credspec":{"Sid":"S-1"}}`)
	})
	p := start(t, api, "--shutdown-delay=0s")
	attack := connlimittest.Attack{Program: os.Args[0], Targets: []connlimittest.Target{
		{Address: p.health, Kind: connlimittest.Header, Connections: 15000},
		{Address: p.admission, Kind: connlimittest.ClientHello, Connections: 13000},
		{Address: p.admission, Kind: connlimittest.HeldTLS, Connections: 1000},
		{Address: p.admission, Kind: connlimittest.BusyTLS, Connections: 1000},
	}}
	if err := attack.Start(); err != nil {
		t.Fatal(err)
	}
	defer attack.Stop()
	// The API server's address is not the attacker's.
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 100)}}
	client := func() *http.Transport {
		client := p.client()
		client.DialContext = dialer.DialContext
		return client
	}
	old := client()
	defer old.CloseIdleConnections()
	var slowest, slowestProbe time.Duration
	requests := 0
	for after := 0; after < 50; {
		if attack.Opened() {
			after++
		}
		fresh := client()
		for _, client := range []*http.Transport{old, fresh} {
			began := time.Now()
			if resp, text, err := p.review(client, review); err != nil || resp.StatusCode != http.StatusOK {
				t.Fatalf("an admission request failed after %s: %v %s", time.Since(began), err, text)
			}
			slowest = max(slowest, time.Since(began))
			requests++
		}
		fresh.CloseIdleConnections()
		began := time.Now()
		if code, text := p.get("/livez"); code != http.StatusOK {
			t.Fatalf("a probe failed after %s: %s", time.Since(began), text)
		}
		slowestProbe = max(slowestProbe, time.Since(began))
	}
	most := p.memory(t, "VmHWM")
	t.Logf("%d admission requests, slowest %s; slowest probe %s; %d KiB resident at most", requests, slowest,
		slowestProbe, most)
	if most > connlimittest.MaxMemory>>10 {
		t.Errorf("%d KiB resident at most, want %d", most, connlimittest.MaxMemory>>10)
	}
	attack.Stop()
	p.signal(t)
	p.wait(t)
}

// An API server has up to 600 requests in flight, and opens a connection for each: see webhook.admissionLimits.
func TestSixHundredPodsAtOnceAreAdmitted(t *testing.T) {
	loadTest(t)
	api := kubetest.NewServer(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"credspec":{"Sid":"S-1"}}`)
	})
	p := start(t, api, "--shutdown-delay=0s")
	client := p.client()
	client.MaxIdleConnsPerHost = 25 // as an API server's
	defer client.CloseIdleConnections()
	body := strings.Replace(review, `"containers":`, `"x":"`+strings.Repeat("x", 20<<10)+`","containers":`, 1)
	var done sync.WaitGroup
	for range 600 {
		done.Go(func() {
			resp, text, err := p.review(client, body)
			if err != nil || !strings.Contains(text, `"allowed":true`) {
				t.Errorf("%v %v %s", resp, err, text)
			}
		})
	}
	done.Wait()
	p.signal(t)
	p.wait(t)
}
