package provider

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/endpoint"
	"github.com/ccgrkc/ccgrkc/internal/kube"
	"github.com/ccgrkc/ccgrkc/internal/kube/kubetest"
	"github.com/ccgrkc/ccgrkc/internal/mtls"
	"github.com/ccgrkc/ccgrkc/internal/selfcheck"
	"github.com/ccgrkc/ccgrkc/internal/selfcheck/record"
)

var (
	web  = credential.Reference{Namespace: "gmsa-system", Secret: "web-creds"}
	shop = credential.Reference{Namespace: "gmsa-system", Secret: "shop-creds"}
)

const marker = "m4rker-pässwörd"

func TestMain(m *testing.M) {
	watchInterval, retryInterval = 200*time.Millisecond, 100*time.Millisecond
	os.Exit(m.Run())
}

// apiServer stands in for the API server where a test needs it to misbehave in ways that a real one does not on demand.
// What a real one does with Secrets and permissions is tested in the lab.
type apiServer struct {
	*kubetest.Server
	api kube.Server

	mu     sync.Mutex
	status int
	body   string
	hang   time.Duration
	paths  []string
}

func newAPIServer(t *testing.T) *apiServer {
	t.Helper()
	a := &apiServer{}
	a.serve(secretJSON("corp.example.com", "web", marker))
	a.Server = kubetest.NewServer(t, func(w http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		status, body, hang := a.status, a.body, a.hang
		a.paths = append(a.paths, r.Method+" "+r.URL.Path+" "+r.Header.Get("Authorization"))
		a.mu.Unlock()
		select {
		case <-time.After(hang):
		case <-r.Context().Done():
			return
		}
		if status == http.StatusFound {
			w.Header().Set("Location", "/elsewhere")
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	})
	a.api = a.Access(t, t.TempDir())
	return a
}

func (a *apiServer) answer(status int, body string, hang time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.status, a.body, a.hang = status, body, hang
}

// asked returns the number of requests.
func (a *apiServer) asked() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.paths)
}

func (a *apiServer) serve(body string) { a.answer(http.StatusOK, body, 0) }

func secretJSON(domain, user, password string) string {
	b, _ := json.Marshal(map[string]any{"kind": "Secret",
		"data": map[string][]byte{"domainName": []byte(domain), "username": []byte(user),
			"password": []byte(password)}})
	return string(b)
}

// statusOf is the API server's body of a refusal.
func statusOf(secret string) string {
	return `{"kind":"Status","message":"` + marker + `","details":{"name":"` + secret + `","kind":"secrets"}}`
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// start runs a provider until the test ends or stop is called, and waits until it can be found.
func start(t *testing.T, root string, ref credential.Reference, a *apiServer, change ...func(*Config)) (stop func()) {
	t.Helper()
	c := Config{Account: ref, API: a.api, Publisher: endpoint.Publisher{Root: root}, Certificates: Embedded{time.Hour},
		MaxStale: DefaultMaxStale, Log: quiet()}
	for _, f := range change {
		f(&c)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, c) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	eventually(t, func() error { _, err := Check(t.Context(), root, ref, false); return err })
	return stop
}

func eventually(t *testing.T, f func() error) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// call acts like the plugin, with a new connection.
func call(t *testing.T, root string, ref credential.Reference) (credential.Credential, error) {
	t.Helper()
	e, err := endpoint.Resolve(root, ref)
	if err != nil {
		return credential.Credential{}, err
	}
	config, err := mtls.ClientConfig(ref, e.CA, e.ClientCert, e.ClientKey)
	if err != nil {
		return credential.Credential{}, err
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true},
		Timeout: 10 * time.Second}
	resp, err := client.Get("https://" + address(e) + "/v1/credentials")
	if err != nil {
		return credential.Credential{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return credential.Credential{}, err
	}
	if resp.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("the answer may be stored: %v", resp.Header)
	}
	if resp.StatusCode == http.StatusOK {
		return credential.DecodeCredential(body)
	}
	problem, err := credential.DecodeProblem(body)
	if err != nil {
		return credential.Credential{}, err
	}
	if resp.Header.Get("Content-Type") != credential.ProblemMediaType {
		t.Errorf("Content-Type of a problem: %q", resp.Header.Get("Content-Type"))
	}
	return credential.Credential{}, problem
}

func address(e *endpoint.Endpoint) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(int(e.Port)))
}

func problemCode(err error) credential.ProblemCode {
	var p *credential.Problem
	if errors.As(err, &p) {
		return p.Code
	}
	return ""
}

func TestACallReturnsTheSecretWithOneAPIRequest(t *testing.T) {
	t.Parallel()
	a, root := newAPIServer(t), t.TempDir()
	start(t, root, web, a)
	c, err := call(t, root, web)
	if err != nil || c.DomainName != "corp.example.com" || c.Username != "web" ||
		string(c.Password.Reveal()) != marker {
		t.Errorf("%+v, %v", c, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range a.paths {
		if p != "GET /api/v1/namespaces/gmsa-system/secrets/web-creds Bearer token-1" {
			t.Errorf("asked the API server: %s", p)
		}
	}
}

// Responses of the API server and the resulting problem codes.
func TestEveryAPIServerResponseHasItsProblemCode(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		status int
		body   string
		want   credential.ProblemCode
	}{
		"no Secret":         {404, statusOf("web-creds"), credential.ProblemSecretNotFound},
		"no permission":     {403, statusOf("web-creds"), credential.ProblemForbidden},
		"token not taken":   {401, `{"kind":"Status"}`, credential.ProblemForbidden},
		"404 of a proxy":    {404, "<html>" + marker, credential.ProblemUnavailable},
		"403 of a proxy":    {403, "<html>" + marker, credential.ProblemUnavailable},
		"401 of a proxy":    {401, "<html>" + marker, credential.ProblemUnavailable},
		"another Secret":    {404, statusOf("shop-creds"), credential.ProblemUnavailable},
		"protocol switched": {101, "", credential.ProblemUnavailable},
		"key missing": {200, `{"kind":"Secret","data":{"username":"d2Vi","password":"eA=="}}`,
			credential.ProblemSecretInvalid},
		"no data":           {200, `{"kind":"Secret"}`, credential.ProblemSecretInvalid},
		"down-level user":   {200, secretJSON("corp.example.com", `CORP\web`, marker), credential.ProblemSecretInvalid},
		"not a Secret":      {200, `{"kind":"ConfigMap","data":{}}`, credential.ProblemUnavailable},
		"not JSON":          {200, "<html>" + marker, credential.ProblemUnavailable},
		"server error":      {500, marker, credential.ProblemUnavailable},
		"error with text":   {500, `{"kind":"Status","message":"` + marker + `"}`, credential.ProblemUnavailable},
		"too many requests": {429, "", credential.ProblemUnavailable},
		"redirect":          {302, "", credential.ProblemUnavailable},
		"endless answer":    {200, strings.Repeat(" ", maxSecretLength+1), credential.ProblemUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, root := newAPIServer(t), t.TempDir()
			a.answer(c.status, c.body, 0)
			start(t, root, web, a)
			_, err := call(t, root, web)
			if problemCode(err) != c.want {
				t.Errorf("want %s, have %v", c.want, err)
			}
			if err != nil && strings.Contains(err.Error(), "m4rker") {
				t.Errorf("the answer quotes the API server: %v", err)
			}
			if c.want != credential.ProblemUnavailable && !strings.Contains(err.Error(), "gmsa-system/web-creds") {
				t.Errorf("the problem does not name the Secret: %v", err)
			}
			a.mu.Lock()
			defer a.mu.Unlock()
			for _, p := range a.paths {
				if strings.Contains(p, "elsewhere") {
					t.Error("the token followed a redirect")
				}
			}
		})
	}
}

func TestARequestToAHangingAPIServerTimesOut(t *testing.T) {
	t.Parallel()
	a, root := newAPIServer(t), t.TempDir()
	a.answer(200, "", time.Minute)
	start(t, root, web, a)
	began := time.Now()
	if _, err := call(t, root, web); problemCode(err) != credential.ProblemUnavailable {
		t.Errorf("%v", err)
	}
	if took := time.Since(began); took > 2*fetchTimeout {
		t.Errorf("took %v", took)
	}
}

func TestARenewedTokenIsUsed(t *testing.T) {
	t.Parallel()
	a := newAPIServer(t)
	r, err := newSecretReader(a.api, web)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		write(t, a.api.TokenFile, fmt.Appendf(nil, "token-%d", i))
		if _, _, err := r.read(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := a.paths[len(a.paths)-1]; !strings.HasSuffix(got, fmt.Sprintf("Bearer token-%d", i)) {
			t.Errorf("asked: %s", got)
		}
	}
}

// Attack: another server in place of the API server, with a certificate that the machine can even trust.
func TestTheTokenIsNotSentToAServerWithAnotherCA(t *testing.T) {
	t.Parallel()
	a, evil := newAPIServer(t), newAPIServer(t)
	other, err := mtls.Issue(web, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	write(t, a.api.CAFile, other.CA)
	api := a.api
	api.URL = evil.URL
	r, err := newSecretReader(api, web)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.read(t.Context()); err == nil || problemCode(err) != "" {
		t.Errorf("%v", err)
	}
	if len(evil.paths) > 0 {
		t.Errorf("sent: %q", evil.paths)
	}
	write(t, a.api.CAFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: evil.Certificate().Raw}))
	if _, _, err := r.read(t.Context()); err != nil {
		t.Errorf("a CA file that changed is not read again: %v", err)
	}
}

// Two providers for two Secrets on one host: no certificate of one works with the other, on any port.
func TestTwoAccountsOnOneHostCannotReadEachOther(t *testing.T) {
	t.Parallel()
	a, root := newAPIServer(t), t.TempDir()
	start(t, root, web, a)
	start(t, root, shop, a)
	mine, err := endpoint.Resolve(root, web)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := endpoint.Resolve(root, shop)
	if err != nil {
		t.Fatal(err)
	}
	for name, e := range map[string]struct {
		port uint16
		cert *endpoint.Endpoint
	}{"web at shop": {theirs.Port, mine}, "shop at web": {mine.Port, theirs}} {
		pair, err := tls.X509KeyPair(e.cert.ClientCert, e.cert.ClientKey)
		if err != nil {
			t.Fatal(err)
		}
		if got := shout(t, e.port, &tls.Config{InsecureSkipVerify: true,
			Certificates: []tls.Certificate{pair}}); got != "" {
			t.Errorf("%s: answered %q", name, got)
		}
	}
}

// shout is a client without checks. It returns the response.
func shout(t *testing.T, port uint16, config *tls.Config) string {
	t.Helper()
	c, err := tls.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))), config)
	if err != nil {
		return ""
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	_, _ = io.WriteString(c, "GET /v1/credentials HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	b, _ := io.ReadAll(c)
	return string(b)
}

func TestAttackersAreRejectedAndMemoryStaysBounded(t *testing.T) {
	a, root := newAPIServer(t), t.TempDir()
	start(t, root, web, a)
	e, err := endpoint.Resolve(root, web)
	if err != nil {
		t.Fatal(err)
	}
	good, err := tls.X509KeyPair(e.ClientCert, e.ClientKey)
	if err != nil {
		t.Fatal(err)
	}
	other, err := mtls.Issue(web, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	selfMade, err := tls.X509KeyPair(other.ClientCert, other.ClientKey)
	if err != nil {
		t.Fatal(err)
	}
	with := func(c ...tls.Certificate) *tls.Config { return &tls.Config{InsecureSkipVerify: true, Certificates: c} }

	for name, config := range map[string]*tls.Config{
		"no certificate":        with(),
		"self-made certificate": with(selfMade),
		"TLS 1.2": {InsecureSkipVerify: true, Certificates: []tls.Certificate{good},
			MaxVersion: tls.VersionTLS12},
	} {
		if got := shout(t, e.Port, config); got != "" {
			t.Errorf("%s: answered %q", name, got)
		}
	}
	if got := shout(t, e.Port, with(good)); !strings.Contains(got, "200 OK") {
		t.Fatalf("the good client: %q", got)
	}
	plain, err := net.Dial("tcp", address(e))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(plain, "GET /v1/credentials HTTP/1.1\r\nHost: x\r\n\r\n")
	if b, _ := io.ReadAll(plain); bytes.Contains(b, []byte("200 OK")) || bytes.Contains(b, []byte("domainName")) {
		t.Errorf("plain HTTP: answered %q", b)
	}
	plain.Close()

	before := heap()
	for name, request := range map[string]string{
		"1 MiB header":  "GET /v1/credentials HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n",
		"1 MiB path":    "GET /" + strings.Repeat("x", 1<<20) + " HTTP/1.1\r\nHost: x\r\n\r\n",
		"body":          "GET /v1/credentials HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n",
		"chunked body":  "GET /v1/credentials HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
		"POST":          "POST /v1/credentials HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		"listing":       "GET /v1/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		"root":          "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		"two lengths":   "GET /v1/credentials HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n",
		"HTTP/2":        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"dots":          "GET /v1/../v1/credentials HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		"not HTTP":      "hello\r\n\r\n",
		"no host":       "GET /v1/credentials HTTP/1.1\r\n\r\n",
		"HTTP/0.9 line": "GET /v1/credentials\r\n\r\n",
	} {
		c, err := tls.Dial("tcp", address(e), with(good))
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		_, _ = io.WriteString(c, request)
		b, _ := io.ReadAll(c)
		if bytes.Contains(b, []byte("domainName")) || bytes.Contains(b, []byte(" 200 ")) {
			t.Errorf("%s: answered %q", name, b)
		}
		c.Close()
	}
	if grown := int64(heap()) - int64(before); grown > 4<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
	if _, err := call(t, root, web); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// heap returns the bytes that are reachable after a garbage collection.
func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// Attack: a process without a certificate opens connections and holds them. No more than a few stay, and none keeps the
// plugin out.
func TestOpenConnectionsDoNotBlockThePlugin(t *testing.T) {
	t.Parallel()
	a, root := newAPIServer(t), t.TempDir()
	metricsAddress := unusedAddress(t)
	start(t, root, web, a, func(c *Config) { c.MetricsAddress = metricsAddress })
	e, err := endpoint.Resolve(root, web)
	if err != nil {
		t.Fatal(err)
	}
	var open atomic.Int64
	for range 1000 {
		c, err := net.Dial("tcp", address(e))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = c.Write([]byte{0x16}) // the first byte of a ClientHello
		open.Add(1)
		go func() {
			_, _ = c.Read(make([]byte, 1)) // until the provider closes it
			open.Add(-1)
		}()
	}
	if _, err := call(t, root, web); err != nil {
		t.Errorf("with 1,000 connections held: %v", err)
	}
	eventually(t, func() error {
		if n := open.Load(); n > int64(limits.Unauthenticated) {
			return fmt.Errorf("%d connections are held", n)
		}
		return nil
	})
	// The limiter closed them, and not the timeout for a header, which closes the rest.
	text := scrape(t, metricsAddress)
	_, count, _ := strings.Cut(text, `gmsa_account_provider_rejected_connections_total{reason="limit"} `)
	count, _, _ = strings.Cut(count, "\n")
	if n, err := strconv.Atoi(count); err != nil || n < 500 {
		t.Errorf("the limiter closed %q connections:\n%s", count, text)
	}
}

// unusedAddress returns a loopback address that nobody listens on.
func unusedAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// scrape returns the metrics as soon as a provider serves them at address.
func scrape(t *testing.T, address string) (text string) {
	t.Helper()
	eventually(t, func() error {
		resp, err := http.Get("http://" + address + "/metrics")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		text = string(b)
		return err
	})
	return text
}

// Attack: one byte a second, of a real ClientHello without a certificate, and of a request with a good one.
func TestSlowRequestsAreDisconnected(t *testing.T) {
	t.Parallel()
	a, root := newAPIServer(t), t.TempDir()
	start(t, root, web, a)
	e, err := endpoint.Resolve(root, web)
	if err != nil {
		t.Fatal(err)
	}
	good, err := tls.X509KeyPair(e.ClientCert, e.ClientKey)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := net.Dial("tcp", address(e))
	if err != nil {
		t.Fatal(err)
	}
	known, err := tls.Dial("tcp", address(e),
		&tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{good}})
	if err != nil {
		t.Fatal(err)
	}
	var drips sync.WaitGroup
	for what, c := range map[string]struct {
		conn net.Conn
		send []byte
	}{
		"ClientHello": {stranger, clientHello(t)},
		"request":     {known, []byte("GET /v1/credentials HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 1000))},
	} {
		drips.Go(func() {
			defer c.conn.Close()
			ended := make(chan struct{})
			go func() { defer close(ended); _, _ = io.Copy(io.Discard, c.conn) }()
			began := time.Now()
			for _, b := range c.send {
				_, _ = c.conn.Write([]byte{b})
				select {
				case <-ended:
					return
				case <-time.After(time.Second):
				}
				if time.Since(began) > 4*limits.Header {
					t.Errorf("%s: still connected after %v", what, time.Since(began))
					return
				}
			}
		})
	}
	drips.Wait()
}

// clientHello is the first thing that a TLS client sends.
func clientHello(t *testing.T) []byte {
	t.Helper()
	client, server := net.Pipe()
	go func() { _ = tls.Client(client, &tls.Config{InsecureSkipVerify: true}).Handshake() }()
	b := make([]byte, 4096)
	n, err := server.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	server.Close()
	return b[:n]
}

func TestTheProviderRemovesItsFilesWhenItStops(t *testing.T) {
	t.Parallel()
	a, root := newAPIServer(t), t.TempDir()
	stop := start(t, root, web, a)
	stop()
	if entries, err := os.ReadDir(root); err != nil || len(entries) > 0 {
		t.Errorf("left: %v, %v", entries, err)
	}
}

// Two providers of one account overlap in a rolling update. Whichever ends, the other is found again.
func TestTheRemainingProviderOfARollingUpdatePublishesAgain(t *testing.T) {
	t.Parallel()
	a, root := newAPIServer(t), t.TempDir()
	start(t, root, web, a)
	second := start(t, root, web, a)
	second()
	eventually(t, func() error { _, err := call(t, root, web); return err })
	if err := os.RemoveAll(filepath.Join(root, web.Namespace)); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error { _, err := call(t, root, web); return err })
}

// The endpoint of a killed provider is complete. The other provider detects that no server responds there.
func TestTheProviderPublishesAgainAfterAnotherWasKilled(t *testing.T) {
	t.Parallel()
	a, root := newAPIServer(t), t.TempDir()
	start(t, root, web, a)
	m, err := mtls.Issue(web, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	dead := endpoint.Endpoint{Port: uint16(l.Addr().(*net.TCPAddr).Port), CA: m.CA, ClientCert: m.ClientCert,
		ClientKey: m.ClientKey}
	if _, err := (endpoint.Publisher{Root: root}).Publish(web, dead); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error { _, err := call(t, root, web); return err })
}

// Timers stop while a machine is suspended, and clocks can jump.
func TestRenewalFollowsTheWallClock(t *testing.T) {
	t.Parallel()
	e := Embedded{24 * time.Hour}
	for name, c := range map[string]struct {
		left time.Duration
		want bool
	}{
		"just made":                    {24 * time.Hour, false},
		"before two thirds":            {9 * time.Hour, false},
		"long after two thirds":        {7 * time.Hour, true},
		"expired":                      {-time.Hour, true},
		"clock set back by 30 minutes": {24*time.Hour + 30*time.Minute, false},
		"clock set back by 2 hours":    {26 * time.Hour, true},
	} {
		if got := e.due(time.Now().Add(c.left).Round(0)); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// The server's key and the CA's key are never written to disk.
func TestOnlyTheClientKeyIsOnDisk(t *testing.T) {
	t.Parallel()
	a, root := newAPIServer(t), t.TempDir()
	start(t, root, web, a)
	keys := 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte("PRIVATE KEY")) {
			keys++
			if filepath.Base(path) != "client.key" {
				t.Errorf("a key is in %s", path)
			}
		}
		if bytes.Contains(b, []byte("m4rker")) {
			t.Errorf("the password is in %s", path)
		}
		return err
	})
	if err != nil || keys != 1 {
		t.Errorf("%d keys, %v", keys, err)
	}
}

func TestCertificatesFromSecretsAreReloadedWhenTheyChange(t *testing.T) {
	t.Parallel()
	a, root, dir := newAPIServer(t), t.TempDir(), t.TempDir()
	serverDir, clientDir := filepath.Join(dir, "server"), filepath.Join(dir, "client")
	put := func(m *mtls.Material) {
		for d, pair := range map[string][2][]byte{serverDir: {m.ServerCert, m.ServerKey},
			clientDir: {m.ClientCert, m.ClientKey}} {
			if err := os.MkdirAll(d, 0o700); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(d, "tls.crt"), pair[0])
			write(t, filepath.Join(d, "tls.key"), pair[1])
			write(t, filepath.Join(d, "ca.crt"), m.CA)
		}
	}
	issue := func(ref credential.Reference) *mtls.Material {
		m, err := mtls.Issue(ref, time.Now(), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	put(issue(web))
	start(t, root, web, a, func(c *Config) {
		c.Certificates = &FromSecrets{ServerDir: serverDir,
			ClientDir: clientDir}
	})
	before, err := endpoint.Resolve(root, web)
	if err != nil {
		t.Fatal(err)
	}
	put(issue(shop)) // another account's certificates: rejected, the valid ones remain in use
	time.Sleep(3 * watchInterval)
	if e, err := endpoint.Resolve(root, web); err != nil || e.Generation != before.Generation {
		t.Errorf("with another account's certificates: %v, %v", e, err)
	}
	if _, err := call(t, root, web); err != nil {
		t.Errorf("with another account's certificates: %v", err)
	}
	put(issue(web))
	eventually(t, func() error {
		e, err := endpoint.Resolve(root, web)
		if err == nil && e.Generation == before.Generation {
			err = errors.New("not reloaded")
		}
		return err
	})
	if _, err := call(t, root, web); err != nil {
		t.Errorf("after the change: %v", err)
	}
}

func TestCleanupRemovesOnlyFilesOfKilledProviders(t *testing.T) {
	t.Parallel()
	a, root := newAPIServer(t), t.TempDir()
	start(t, root, shop, a)
	m, err := mtls.Issue(web, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	// Also an attack: another server now uses the killed provider's port.
	other, err := endpoint.Resolve(root, shop)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (endpoint.Publisher{Root: root}).Publish(web,
		endpoint.Endpoint{Port: other.Port, CA: m.CA, ClientCert: m.ClientCert, ClientKey: m.ClientKey}); err != nil {
		t.Fatal(err)
	}
	for want := 1; want >= 0; want-- {
		if n, err := Cleanup(t.Context(), root, web); err != nil || n != want {
			t.Errorf("removed %d, want %d, %v", n, want, err)
		}
	}
	if _, err := endpoint.Resolve(root, web); !errors.Is(err, endpoint.ErrAbsent) {
		t.Errorf("left: %v", err)
	}
	if _, err := Cleanup(t.Context(), root, shop); !errors.Is(err, ErrInUse) {
		t.Errorf("cleaning up under a living provider: %v", err)
	}
	if _, err := call(t, root, shop); err != nil {
		t.Errorf("the living provider suffered: %v", err)
	}
}

// One of two providers of an account stops. For a moment, no file on the host leads to the other.
func TestCleanupWaitsForAProviderThatLostItsFiles(t *testing.T) {
	t.Parallel()
	a, root := newAPIServer(t), t.TempDir()
	start(t, root, web, a)
	stop := start(t, root, web, a, func(c *Config) { c.Instance = "second" })
	eventually(t, func() error {
		h, err := Check(t.Context(), root, web, false)
		if err == nil && h.Instance != "second" {
			err = errors.New("the second provider has not published")
		}
		return err
	})
	stop()
	if n, err := Cleanup(t.Context(), root, web); !errors.Is(err, ErrInUse) || n != 0 {
		t.Errorf("removed %d, %v", n, err)
	}
}

// A health check sends a request to the API server only on demand, and then detects a corrected Secret.
func TestAHealthCheckReadsTheSecretOnlyOnRequest(t *testing.T) {
	t.Parallel()
	a, root := newAPIServer(t), t.TempDir()
	a.serve(secretJSON("CORP", "web", marker))
	start(t, root, web, a, func(c *Config) { c.Instance = "pod-1" })
	var h *Health
	eventually(t, func() (err error) {
		h, err = Check(t.Context(), root, web, false)
		if err == nil && h.Problem == "" {
			err = errors.New("the first fetch has not ended")
		}
		return err
	})
	if h.Problem != credential.ProblemSecretInvalid || !strings.Contains(h.Detail, "domainName") ||
		strings.Contains(h.Detail, marker) {
		t.Errorf("of a bad Secret: %+v", h)
	}
	a.serve(secretJSON("corp.example.com", "web", marker))
	asked := a.asked()
	time.Sleep(maxNegative) // the next read sends a request
	for range 10 {
		if h, err := Check(t.Context(), root, web, false); err != nil || h.CacheAgeSeconds != nil {
			t.Fatalf("%+v, %v", h, err)
		}
	}
	if n := a.asked() - asked; n != 0 {
		t.Errorf("10 health checks asked the API server %d times", n)
	}
	if h, err := Check(t.Context(), root, web, true); err != nil || h.CacheAgeSeconds == nil || h.Problem != "" {
		t.Errorf("told to ask: %+v, %v", h, err)
	}
	if h.Instance != "pod-1" {
		t.Errorf("the health is of %q", h.Instance)
	}
}

func TestASelfCheckDistinguishesThisProviderFromAnother(t *testing.T) {
	t.Parallel()
	a, root := newAPIServer(t), t.TempDir()
	env := map[string]string{"CONTAINER_SANDBOX_MOUNT_POINT": t.TempDir(), "POD_UID": "pod-1"}
	getenv := func(name string) string { return env[name] }
	results, err := record.New(getenv, SelfCheckInterval)
	if err != nil {
		t.Fatal(err)
	}
	var config Config
	stop := start(t, root, web, a, func(c *Config) { c.Instance, c.SelfCheck, config = "pod-1", results, *c })
	eventually(t, func() error {
		r, err := selfcheck.Read(selfcheck.Path(getenv))
		if err != nil {
			return err
		}
		return r.Err(time.Now(), false)
	})
	config.Instance = "pod-1"
	if state, detail := SelfCheck(t.Context(), config); state != selfcheck.OK {
		t.Errorf("of its own provider: %s %s", state, detail)
	}
	config.Instance = "pod-2"
	if state, detail := SelfCheck(t.Context(), config); state != selfcheck.Other || !strings.Contains(detail, "pod-1") {
		t.Errorf("of another pod's provider: %s %s", state, detail)
	}
	stop()
	if state, detail := SelfCheck(t.Context(), config); state != selfcheck.Failed ||
		!strings.Contains(detail, "no endpoint is published") {
		t.Errorf("without a provider: %s %s", state, detail)
	}
}

// Metrics wait for a port that another pod still holds, as in a rolling update, and the account is served meanwhile.
func TestMetricsAreCompleteAndContainNoSecrets(t *testing.T) {
	t.Parallel()
	a, root := newAPIServer(t), t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	stop := start(t, root, web, a, func(c *Config) {
		c.MetricsAddress = l.Addr().String()
		c.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	if _, err := call(t, root, web); err != nil {
		t.Fatal(err)
	}
	// The previous pod, which used the port, stops.
	l.Close()
	text := scrape(t, l.Addr().String())
	for _, want := range []string{
		`gmsa_account_provider_requests_total{code="ok"} 1`, `gmsa_account_provider_api_requests_total{result="ok"} 1`,
		"gmsa_account_provider_cache_age_seconds ", "gmsa_account_provider_certificate_expiry_timestamp_seconds 1",
		"gmsa_account_provider_build_info{version=",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in:\n%s", want, text)
		}
	}
	stop()
	if all := text + log.String(); strings.Contains(all, "m4rker") || !strings.Contains(all, "request succeeded") {
		t.Errorf("metrics and log: %s", all)
	}
}
