package plugin

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/google/go-cmp/cmp"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/endpoint"
	"github.com/ccgrkc/ccgrkc/internal/mtls"
	"github.com/ccgrkc/ccgrkc/internal/plugin/cause"
	"github.com/ccgrkc/ccgrkc/internal/plugin/selftest"
)

const input = "gmsa-system:web-creds"

var ref = credential.Reference{Namespace: "gmsa-system", Secret: "web-creds"}

// provider stands in for an Account Provider: a real TLS server, published through real endpoint files.
type provider struct {
	t          *testing.T
	root       string
	material   *mtls.Material
	listener   net.Listener
	generation string

	connections atomic.Int32 // accepted so far
}

// rawResponse writes any bytes as a response, after it has read the whole request.
type rawResponse func(conn net.Conn)

// startProvider publishes and serves. handle is an http.Handler or a rawResponse.
func startProvider(t *testing.T, root string, handle any) *provider {
	t.Helper()
	m, err := mtls.Issue(ref, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	p := &provider{t: t, root: root, material: m}
	p.listen(handle)
	p.publish()
	return p
}

func (p *provider) listen(handle any) {
	p.t.Helper()
	config, err := mtls.ServerConfig(ref, p.material.CA, p.material.ServerCert, p.material.ServerKey)
	if err != nil {
		p.t.Fatal(err)
	}
	raw, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		p.t.Fatal(err)
	}
	p.listener = tls.NewListener(&countingListener{raw, &p.connections}, config)
	switch handle := handle.(type) {
	case http.Handler:
		server := &http.Server{Handler: handle}
		go server.Serve(p.listener)
		p.t.Cleanup(func() { server.Close() })
	case rawResponse:
		p.t.Cleanup(func() { p.listener.Close() })
		go func() {
			for {
				conn, err := p.listener.Accept()
				if err != nil {
					return
				}
				go func() {
					defer conn.Close()
					for request := []byte(nil); !bytes.HasSuffix(request, []byte("\r\n\r\n")); {
						var b [1]byte
						if _, err := conn.Read(b[:]); err != nil {
							return
						}
						request = append(request, b[0])
					}
					handle(conn)
				}()
			}
		}()
	}
}

func (p *provider) publish() { p.publishAt(p.listener.Addr().(*net.TCPAddr).Port) }

func (p *provider) publishAt(port int) {
	p.t.Helper()
	publication, err := endpoint.Publisher{Root: p.root}.Publish(ref, endpoint.Endpoint{
		Port: uint16(port), CA: p.material.CA, ClientCert: p.material.ClientCert,
		ClientKey: bytes.Clone(p.material.ClientKey),
	})
	if err != nil {
		p.t.Fatal(err)
	}
	p.generation = publication.Generation
}

type countingListener struct {
	net.Listener
	n *atomic.Int32
}

func (l *countingListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err == nil {
		l.n.Add(1)
	}
	return conn, err
}

// responding returns the same credentials for every call.
func responding(password string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		body, err := credential.Encode(credential.Credential{
			DomainName: "corp.example.com", Username: "web", Password: credential.NewPassword([]byte(password)),
		})
		if err != nil {
			panic(err)
		}
		w.Header().Set("Content-Type", "application/json")
		w.Write(body)
	}
}

func failing(status int, code credential.ProblemCode) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", credential.ProblemMediaType)
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"code":%q,"detail":"the Secret gmsa-system/web-creds, says the provider"}`, code)
	}
}

// journal collects events.
type journal struct {
	mu     sync.Mutex
	events []Event
}

func (j *journal) report(e Event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.events = append(j.events, e)
}

func newPlugin(root string, budget time.Duration) (*Plugin, *journal) {
	j := &journal{}
	return New(Config{
		Root: root, Budget: budget, Report: j.report,
		Identity: func() string { return `NT AUTHORITY\NETWORK SERVICE` },
		Module:   func() string { return `C:\ccg-plugin.dll` },
	}), j
}

func mustGet(t *testing.T, p *Plugin, want string) {
	t.Helper()
	c, err := p.Get(t.Context(), input)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(c.Password.Reveal()); got != want {
		t.Fatalf("password %q, want %q", got, want)
	}
}

// mustFail returns the failure after it has checked its cause and its one event.
func mustFail(t *testing.T, p *Plugin, j *journal, input string, want *cause.Cause) *Failure {
	t.Helper()
	c, err := p.Get(t.Context(), input)
	var failure *Failure
	if !errors.As(err, &failure) {
		t.Fatalf("error %v is no *Failure", err)
	}
	if failure.Cause != want {
		t.Fatalf("cause %v, want %s", failure, want.Name)
	}
	if c.DomainName != "" || c.Username != "" || len(c.Password.Reveal()) != 0 {
		t.Error("a credential came with the failure")
	}
	if j != nil && (len(j.events) != 1 || j.events[0].Cause != want) {
		t.Errorf("events %v, want one of cause %s", j.events, want.Name)
	}
	return failure
}

func TestPasswordsArriveUnchanged(t *testing.T) {
	var password atomic.Value
	root := t.TempDir()
	startProvider(t, root, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		responding(password.Load().(string))(w, r)
	}))
	p, j := newPlugin(root, 0)
	for _, want := range []string{
		"x", strings.Repeat("p", 1024), strings.Repeat("𝄞", 256), `"\'/`, "  spaces  ", "é", "密码", "𝄞", "%", "%1%%n",
		`{"a":[1]}`, "<a>&amp;</a>",
		"\ud7ff\ue000", "\ufffd", "\ufeffbom", "\U00010000\U0010ffff", "e\u0301",
	} {
		password.Store(want)
		c, err := p.Get(t.Context(), input)
		if err != nil {
			t.Errorf("%+q: %v", want, err)
			continue
		}
		got := utf16.Encode([]rune(string(c.Password.Reveal())))
		if diff := cmp.Diff(utf16.Encode([]rune(want)), got); diff != "" {
			t.Errorf("%+q changed on the way:\n%s", want, diff)
		}
		if c.DomainName != "corp.example.com" || c.Username != "web" {
			t.Errorf("got domain %q, user %q", c.DomainName, c.Username)
		}
	}
	if len(j.events) != 0 {
		t.Errorf("successes were reported: %v", j.events)
	}
}

func TestTheRequestHasTheExpectedForm(t *testing.T) {
	root := t.TempDir()
	var got *http.Request
	startProvider(t, root, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r
		responding("p")(w, r)
	}))
	p, _ := newPlugin(root, 0)
	mustGet(t, p, "p")
	if got.Method != "GET" || got.RequestURI != "/v1/credentials" ||
		got.Host != "web-creds.gmsa-system.gmsa-account-provider" {
		t.Errorf("request %s %s, Host %s", got.Method, got.RequestURI, got.Host)
	}
}

func TestInvalidInputsAreRejectedWithoutFileAccess(t *testing.T) {
	// Somewhere below a file: any access would give another error than that of the input.
	root := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(root, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, input := range []string{
		"", ":", "x", "no-colon", "a:b:c", "..:x", "x:..", "a/b:c", `a\b:c`, "A:b", "a:B", "a b:c", "a:b\x00",
		"a\x00:b", "𝄞:b", "a:\ufffd",
		"a:" + strings.Repeat("b", 254), strings.Repeat("a", 64) + ":b", strings.Repeat("a", 64<<10), "?self-test ",
		"?SELF-TEST", "a:b%1",
	} {
		p, j := newPlugin(root, 0)
		start := time.Now()
		mustFail(t, p, j, input, cause.InvalidInput)
		if d := time.Since(start); d > time.Second {
			t.Errorf("%.20q took %s", input, d)
		}
		if e := j.events[0]; strings.ContainsAny(e.Input+e.Detail, "%\x00\r\n") || len(e.Input) > 12*maxInput {
			t.Errorf("%.20q makes the event %v", input, e)
		}
	}
	after, err := os.Stat(root)
	if err != nil || !after.ModTime().Equal(before.ModTime()) {
		t.Error("the root was touched")
	}
}

func TestTheSelfTestNeedsNoEndpoint(t *testing.T) {
	p, j := newPlugin(filepath.Join(t.TempDir(), "absent"), 0)
	c, err := p.Get(t.Context(), selftest.Input)
	if err != nil {
		t.Fatal(err)
	}
	report, err := selftest.Parse(c.DomainName)
	if err != nil {
		t.Fatal(err)
	}
	if report.Version == "" || report.Identity != `NT AUTHORITY\NETWORK SERVICE` ||
		report.Module != `C:\ccg-plugin.dll` || report.PID != os.Getpid() {
		t.Errorf("report %+v", report)
	}
	if c.Username != "" || len(c.Password.Reveal()) != 0 || len(j.events) != 0 {
		t.Errorf("user %q, password of %d bytes, events %v", c.Username, len(c.Password.Reveal()), j.events)
	}
}

func TestEachProblemCodeHasItsCauseAndOnlyUnavailableIsRetried(t *testing.T) {
	for _, code := range credential.ProblemCodes {
		t.Run(string(code), func(t *testing.T) {
			root := t.TempDir()
			var calls atomic.Int32
			startProvider(t, root, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				calls.Add(1)
				failing(500, code)(w, r)
			}))
			p, j := newPlugin(root, 2*time.Second)
			failure := mustFail(t, p, j, input, problemCauses[code])
			if failure.Cause.Name != string(code) {
				t.Errorf("the cause is named %s", failure.Cause.Name)
			}
			if !strings.Contains(j.events[0].Detail, "the Secret gmsa-system/web-creds, says the provider") {
				t.Errorf("the event does not tell the provider's detail: %q", j.events[0].Detail)
			}
			if again := calls.Load() > 1; again != (code == credential.ProblemUnavailable) {
				t.Errorf("asked %d times", calls.Load())
			}
		})
	}
}

func TestTheCallSucceedsIfTheProviderRecoversWithinTheBudget(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	var calls atomic.Int32
	startProvider(t, root, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if calls.Add(1) < 4 {
			failing(503, credential.ProblemUnavailable)(w, r)
			return
		}
		responding("p")(w, r)
	}))
	p, j := newPlugin(root, 0)
	mustGet(t, p, "p")
	if len(j.events) != 0 {
		t.Errorf("what passed by itself was reported: %v", j.events)
	}
}

func TestTheCallSucceedsIfAnEndpointAppearsWithinTheBudget(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	p, _ := newPlugin(root, 0)
	time.AfterFunc(300*time.Millisecond, func() { startProvider(t, root, responding("p")) })
	mustGet(t, p, "p")
}

func TestTheCallSucceedsIfTheProviderIsReplacedWithinTheBudget(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	old := startProvider(t, root, responding("old"))
	old.listener.Close() // killed: its files remain, its port refuses connections
	p, _ := newPlugin(root, 0)
	time.AfterFunc(300*time.Millisecond, func() { startProvider(t, root, responding("new")) })
	mustGet(t, p, "new")
}

func TestUnusableEndpointsHaveTheirCauses(t *testing.T) {
	const budget = 400 * time.Millisecond
	find := func(t *testing.T, root, name string) string {
		found, err := filepath.Glob(filepath.Join(root, ref.Namespace, ref.Secret, "*", name))
		if err != nil || len(found) != 1 {
			t.Fatalf("%s is in %v (%v)", name, found, err)
		}
		return found[0]
	}
	for name, test := range map[string]struct {
		spoil func(t *testing.T, root string)
		want  *cause.Cause
		final bool
	}{
		"never published": {
			func(t *testing.T, root string) { os.RemoveAll(filepath.Join(root, ref.Namespace)) }, cause.EndpointAbsent,
			false},
		"a file is missing": {
			func(t *testing.T, root string) { os.Remove(find(t, root, "client.crt")) }, cause.EndpointDamaged, false},
		"a file holds nonsense": {
			func(t *testing.T, root string) { os.WriteFile(find(t, root, "ca.crt"), []byte("nonsense"), 0o600) },
			cause.EndpointDamaged, false},
		"the account's directory is a link": {
			func(t *testing.T, root string) {
				dir := filepath.Join(root, ref.Namespace, ref.Secret)
				if err := errors.Join(os.Rename(dir, dir+"-real"), os.Symlink(dir+"-real", dir)); err != nil {
					t.Fatal(err)
				}
			}, cause.EndpointUntrusted, true},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			startProvider(t, root, responding("p"))
			test.spoil(t, root)
			p, j := newPlugin(root, budget)
			start := time.Now()
			mustFail(t, p, j, input, test.want)
			if took := time.Since(start); took > budget+200*time.Millisecond || test.final && took > budget/2 {
				t.Errorf("took %s of a budget of %s", took, budget)
			}
		})
	}
	if f := endpointFailure(fmt.Errorf("account: %w", endpoint.ErrAccess)); f.Cause != cause.EndpointUnreadable {
		t.Errorf("no access is %s", f.Cause.Name)
	}
}

// A provider was killed; another program listens on its port since, with TLS and a certificate of its own making.
func TestAForeignServerOnAStalePortIsSentNothing(t *testing.T) {
	otherRef := credential.Reference{Namespace: "gmsa-system", Secret: "other-creds"}
	for name, account := range map[string]credential.Reference{"another CA for the same name": ref,
		"another account's provider": otherRef} {
		t.Run(name, func(t *testing.T) {
			own, err := mtls.Issue(account, time.Now(), time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			pair, err := tls.X509KeyPair(own.ServerCert, own.ServerKey)
			if err != nil {
				t.Fatal(err)
			}
			// It requires no certificate and accepts everything.
			listener, err := tls.Listen("tcp4", "127.0.0.1:0",
				&tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequestClientCert})
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			var handshakes, received atomic.Int64
			var served sync.WaitGroup
			go func() {
				for {
					conn, err := listener.Accept()
					if err != nil {
						return
					}
					served.Add(1)
					go func() {
						defer served.Done()
						defer conn.Close()
						handshakes.Add(1)
						n, _ := io.Copy(io.Discard, conn)
						received.Add(n)
					}()
				}
			}()
			root := t.TempDir()
			startProvider(t, root, responding("p")).publishAt(listener.Addr().(*net.TCPAddr).Port)

			p, j := newPlugin(root, 2*time.Second)
			mustFail(t, p, j, input, cause.ProviderForeign)
			served.Wait()
			if handshakes.Load() < 2 {
				t.Errorf("tried %d times: a rolling provider would not have been found", handshakes.Load())
			}
			if received.Load() != 0 {
				t.Errorf("the foreign server received %d bytes", received.Load())
			}
		})
	}
}

// A program without TLS, and one that accepts and says nothing, on the port.
func TestForeignServersHaveTheirCauses(t *testing.T) {
	for name, test := range map[string]struct {
		greet string
		want  *cause.Cause
	}{"plain text": {"SSH-2.0-OpenSSH\r\n", cause.ProviderForeign}, "silence": {"", cause.ProviderUnreachable}} {
		t.Run(name, func(t *testing.T) {
			listener, err := net.Listen("tcp4", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			go func() {
				for {
					conn, err := listener.Accept()
					if err != nil {
						return
					}
					t.Cleanup(func() { conn.Close() })
					io.WriteString(conn, test.greet)
				}
			}()
			root := t.TempDir()
			startProvider(t, root, responding("p")).publishAt(listener.Addr().(*net.TCPAddr).Port)
			p, j := newPlugin(root, 2*time.Second)
			start := time.Now()
			mustFail(t, p, j, input, test.want)
			if d := time.Since(start); d > 5*time.Second {
				t.Errorf("took %s", d)
			}
		})
	}
}

func TestARejectedClientCertificateDiffersFromAStoppedProvider(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	p1 := startProvider(t, root, responding("p"))
	// The CA and the port are correct, the client certificate is from another CA.
	other, err := mtls.Issue(ref, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	_, err = endpoint.Publisher{Root: root}.Publish(ref, endpoint.Endpoint{
		Port: uint16(p1.listener.Addr().(*net.TCPAddr).Port), CA: append(bytes.Clone(p1.material.CA), other.CA...),
		ClientCert: other.ClientCert, ClientKey: other.ClientKey,
	})
	if err != nil {
		t.Fatal(err)
	}
	p, j := newPlugin(root, 2*time.Second)
	mustFail(t, p, j, input, cause.ProviderForeign)
}

func TestMalformedResponsesAreRejectedInBoundedTime(t *testing.T) {
	write := func(s string) rawResponse { return func(conn net.Conn) { io.WriteString(conn, s) } }
	for name, test := range map[string]struct {
		answer rawResponse
		want   *cause.Cause
	}{
		"closed at once":    {write(""), cause.ProviderUnreachable},
		"cut in the header": {write("HTTP/1.1 200 OK\r\nContent-"), cause.ProviderUnreachable},
		"cut in the body": {write("HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n{\"domainName\""),
			cause.ProviderUnreachable},
		"endless header": {func(c net.Conn) { io.Copy(c, &endless{"HTTP/1.1 200 OK\r\nX: ", "a"}) },
			cause.ResponseInvalid},
		"endless header lines": {func(c net.Conn) { io.Copy(c, &endless{"HTTP/1.1 200 OK\r\n", "X: a\r\n"}) },
			cause.ResponseInvalid},
		"1 GiB announced": {write("HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n"),
			cause.ResponseInvalid},
		"a number beyond int": {write("HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n"),
			cause.ResponseInvalid},
		"negative length": {write("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"), cause.ResponseInvalid},
		"two lengths": {write("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx"),
			cause.ResponseInvalid},
		"no length": {write("HTTP/1.1 200 OK\r\n\r\n{}"), cause.ResponseInvalid},
		"chunked": {write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: " +
			"2\r\n\r\n{}"), cause.ResponseInvalid},
		"a second answer after it": {write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\n"),
			cause.ResponseInvalid},
		"HTTP/1.0": {write("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}"), cause.ResponseInvalid},
		"interim answer": {write("HTTP/1.1 100 Continue\r\nContent-Length: 2\r\n\r\n{}"),
			cause.ResponseInvalid},
		"no HTTP": {write("hello\r\n\r\n"), cause.ResponseInvalid},
		"a line without a name": {write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n: x\r\n\r\n{}"),
			cause.ResponseInvalid},
		"not a credential": {write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"), cause.ResponseInvalid},
		"an unknown problem code": {write("HTTP/1.1 500 No\r\nContent-Length: 14\r\n\r\n{\"code\":\"new\"}"),
			cause.ResponseInvalid},
		"one byte at a time": {func(conn net.Conn) {
			for range 100 {
				if _, err := io.WriteString(conn, "H"); err != nil {
					return
				}
				time.Sleep(50 * time.Millisecond)
			}
		}, cause.ProviderUnreachable},
		"silence": {func(net.Conn) { time.Sleep(2 * time.Second) }, cause.ProviderUnreachable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			startProvider(t, root, test.answer)
			budget := 500 * time.Millisecond
			if test.want == cause.ResponseInvalid { // final: the call must find the fault first, on a busy machine, too
				budget = 5 * time.Second
			}
			p, j := newPlugin(root, budget)
			start := time.Now()
			mustFail(t, p, j, input, test.want)
			if d := time.Since(start); d > budget+time.Second {
				t.Errorf("took %s of a budget of %s", d, budget)
			}
		})
	}
}

// endless is a prefix followed by an endlessly repeated text.
type endless struct{ prefix, text string }

func (e *endless) Read(b []byte) (int, error) {
	n := copy(b, e.prefix)
	if e.prefix = e.prefix[n:]; n > 0 {
		return n, nil
	}
	return copy(b, e.text), nil
}

func TestASecondCallUsesTheIdleConnection(t *testing.T) {
	root := t.TempDir()
	server := startProvider(t, root, responding("p"))
	p, _ := newPlugin(root, 0)
	for range 5 {
		mustGet(t, p, "p")
	}
	if n := server.connections.Load(); n != 1 {
		t.Errorf("%d connections for 5 calls, one after the other", n)
	}
}

// A problem is a complete response, so the connection remains usable.
func TestAnIdleConnectionRemainsAfterAProblemResponse(t *testing.T) {
	root := t.TempDir()
	server := startProvider(t, root, failing(404, credential.ProblemSecretNotFound))
	p, _ := newPlugin(root, 0)
	for range 3 {
		mustFail(t, p, nil, input, cause.SecretNotFound)
	}
	if n := server.connections.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

func TestAnIdleConnectionIsNotUsedForANewGeneration(t *testing.T) {
	root := t.TempDir()
	old := startProvider(t, root, responding("old"))
	p, _ := newPlugin(root, 0)
	mustGet(t, p, "old")
	startProvider(t, root, responding("new")) // the old one still runs
	mustGet(t, p, "new")
	if n := old.connections.Load(); n != 1 {
		t.Errorf("the old provider got %d connections", n)
	}
}

func TestAnIdleConnectionIsNotUsedAfterTheEndpointIsWithdrawn(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	startProvider(t, root, responding("p"))
	p, j := newPlugin(root, 2*time.Second)
	mustGet(t, p, "p")
	if err := os.RemoveAll(filepath.Join(root, ref.Namespace)); err != nil {
		t.Fatal(err)
	}
	mustFail(t, p, j, input, cause.EndpointAbsent)
	if p.pool.idle[ref] != nil {
		t.Error("the idle connections are still open")
	}
}

func TestAnIdleConnectionThatTheProviderClosedIsReplaced(t *testing.T) {
	root := t.TempDir()
	var calls atomic.Int32
	server := startProvider(t, root, rawResponse(func(conn net.Conn) {
		calls.Add(1)
		body, _ := credential.Encode(credential.Credential{DomainName: "corp.example.com", Username: "web",
			Password: credential.NewPassword([]byte("p"))})
		fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body) // then it closes the connection
	}))
	p, j := newPlugin(root, 0)
	for range 3 {
		mustGet(t, p, "p")
	}
	if calls.Load() != 3 || server.connections.Load() != 3 || len(j.events) != 0 {
		t.Errorf("%d calls answered on %d connections, events %v", calls.Load(), server.connections.Load(), j.events)
	}
}

func TestAConnectionThatTheProviderClosesIsNotPooled(t *testing.T) {
	root := t.TempDir()
	startProvider(t, root, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close")
		responding("p")(w, r)
	}))
	p, _ := newPlugin(root, 0)
	mustGet(t, p, "p")
	if p.pool.idle[ref] != nil {
		t.Error("the connection is in the pool")
	}
}

func TestConcurrentCallsSucceedAndLeaveFewIdleConnections(t *testing.T) {
	root := t.TempDir()
	startProvider(t, root, responding("p"))
	p, _ := newPlugin(root, 0)
	var calls sync.WaitGroup
	for range 32 {
		calls.Go(func() {
			for range 10 {
				if _, err := p.Get(t.Context(), input); err != nil {
					t.Error(err)
				}
			}
		})
	}
	calls.Wait()
	if n := len(p.pool.idle[ref].conns); n == 0 || n > maxIdle {
		t.Errorf("%d idle connections, the maximum is %d", n, maxIdle)
	}
}

func TestNoCallFailsWhileGenerationsChange(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	startProvider(t, root, responding("p"))
	p, _ := newPlugin(root, 0)
	ctx, cancel := context.WithCancel(t.Context())
	var callers sync.WaitGroup
	for range 4 {
		callers.Go(func() {
			for ctx.Err() == nil {
				if _, err := p.Get(t.Context(), input); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 20 {
		startProvider(t, root, responding("p"))
		time.Sleep(20 * time.Millisecond)
	}
	cancel()
	callers.Wait()
}

func TestAPanicBecomesAFailureWithItsLocationAndNoValue(t *testing.T) {
	for name, test := range map[string]struct {
		panics func() string
		want   string
	}{
		"a value of somebody's": {func() string { panic("S3cret") }, "panic with a string in "},
		"a runtime error": {func() string { return []string{"S3cret"}[len(input)] },
			"index out of range [21] with length 1 in "},
	} {
		t.Run(name, func(t *testing.T) {
			p, j := newPlugin(t.TempDir(), 0)
			p.config.Identity = test.panics
			failure := mustFail(t, p, j, selftest.Input, cause.Unexpected)
			all := fmt.Sprint(failure, j.events)
			if !strings.Contains(all, test.want) || !strings.Contains(all, "TestAPanicBecomes") ||
				strings.Contains(all, "S3cret") {
				t.Errorf("it says %s", all)
			}
		})
	}
}

func FuzzResponse(f *testing.F) {
	body, err := credential.Encode(credential.Credential{DomainName: "corp.example.com", Username: "web",
		Password: credential.NewPassword([]byte("p"))})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
	f.Add([]byte("HTTP/1.1 404 Not Found\r\nContent-Type: application/problem+json\r\nContent-Length: " +
		"42\r\n\r\n{\"code\":\"secret-not-found\",\"detail\":\"none\"}"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"))
	f.Add([]byte("\r\n\r\n"))
	f.Fuzz(func(t *testing.T, answer []byte) {
		buffer := make([]byte, maxHead+maxBody)
		c, _, failure := readResponse(bytes.NewReader(answer), buffer)
		if failure != nil {
			if failure.Cause == nil || c.DomainName != "" || c.Username != "" || len(c.Password.Reveal()) != 0 {
				t.Fatalf("failure %v came with %v", failure, c)
			}
			return
		}
		_, body, ok := bytes.Cut(answer, []byte("\r\n\r\n"))
		if !ok || !bytes.HasPrefix(answer, []byte("HTTP/1.1 200")) {
			t.Fatalf("a credential came of %q", answer)
		}
		if _, err := credential.DecodeCredential(body); err != nil {
			t.Fatalf("a credential came of the body %q: %v", body, err)
		}
	})
}

func FuzzInput(f *testing.F) {
	f.Add("gmsa-system:web-creds")
	f.Add("..:x")
	f.Add("%1\x00\n𝄞")
	f.Fuzz(func(t *testing.T, input string) {
		p, j := newPlugin("\x00", time.Millisecond) // no such path can exist
		c, err := p.Get(t.Context(), input)
		if input == selftest.Input {
			return
		}
		var failure *Failure
		if !errors.As(err, &failure) || c.DomainName != "" {
			t.Fatalf("%q: %v", input, err)
		}
		_, invalid := credential.ParseReference(input)
		if (failure.Cause == cause.InvalidInput) != (invalid != nil) {
			t.Fatalf("%q: %v", input, err)
		}
		for _, r := range j.events[0].Input {
			if r < ' ' || r > '~' || r == '%' {
				t.Fatalf("%q makes the insert %q", input, j.events[0].Input)
			}
		}
	})
}
