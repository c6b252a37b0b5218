package servingcert

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/kube"
)

const (
	dnsName = "web.gmsa.svc"
	settle  = 300 * time.Millisecond
	// lag is how late this API server acts on its own configurations, as by an informer.
	lag = 100 * time.Millisecond
)

// apiServer plays the API server for one Secret and two configurations, over TLS, with resource versions, conflicts and
// generations. It can fail where a real one could not be made to at will; keepers run against a real one in lab/suites/webhook.
type apiServer struct {
	http *httptest.Server
	dir  string // of what clients need

	mu      sync.Mutex
	version int
	secret  map[string]any
	configs map[string]*config
	writes  []string // that took place
	fault   func(agent, write string) fault
	down    bool
	clock   *clock
	behind  map[string]time.Duration // by agent: one of several API servers, whose clock is wrong
}

type config struct {
	object  map[string]any
	history []told
}

// told is what a configuration's webhooks had from a time on.
type told struct {
	at      time.Time
	bundles [][]byte
}

// fault is what becomes of a write.
type fault int

const (
	none   fault = iota
	lost         // it does not arrive
	silent       // it takes place, and the answer does not arrive
	late         // it takes long to arrive
)

func newAPI(t *testing.T) *apiServer {
	t.Helper()
	a := &apiServer{dir: t.TempDir(), configs: map[string]*config{}, fault: func(string, string) fault { return none }}
	a.secret = map[string]any{
		"apiVersion": "v1", "kind": "Secret", "type": "Opaque",
		"metadata": map[string]any{"name": "web-tls", "namespace": "gmsa", "labels": map[string]any{"helm": "yes"}, "resourceVersion": a.next()},
	}
	for resource, webhooks := range map[string][]string{"mutatingwebhookconfigurations": {"mutate.x"}, "validatingwebhookconfigurations": {"a.x", "b.x"}} {
		var list []any
		for _, name := range webhooks {
			list = append(list, map[string]any{"name": name, "clientConfig": map[string]any{"service": map[string]any{"name": "web", "namespace": "gmsa"}}})
		}
		c := &config{object: map[string]any{"metadata": map[string]any{"name": "web", "uid": resource, "generation": 1.0, "resourceVersion": a.next()}, "webhooks": list}}
		c.tell()
		a.configs[resource] = c
	}
	a.http = httptest.NewTLSServer(http.HandlerFunc(a.serve))
	t.Cleanup(a.http.Close)
	a.file(t, "token", []byte("token"))
	a.file(t, "ca.crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.http.Certificate().Raw}))
	return a
}

func (a *apiServer) file(t *testing.T, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(a.dir, name), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// next is called with mu held, or before there is anybody else.
func (a *apiServer) next() string {
	a.version++
	return strconv.Itoa(a.version)
}

func metadata(object map[string]any) map[string]any { return object["metadata"].(map[string]any) }

func (c *config) bundles() [][]byte {
	var all [][]byte
	for _, w := range c.object["webhooks"].([]any) {
		text, _ := w.(map[string]any)["clientConfig"].(map[string]any)["caBundle"].(string)
		var data []byte
		if err := json.Unmarshal([]byte(strconv.Quote(text)), &data); err != nil {
			panic(err)
		}
		all = append(all, data)
	}
	return all
}

func (c *config) tell() { c.history = append(c.history, told{time.Now(), c.bundles()}) }

func refuse(w http.ResponseWriter, code int, text string) {
	w.WriteHeader(code)
	fmt.Fprintf(w, `{"kind":"Status","status":"Failure","code":%d,"message":%q}`, code, text)
}

func (a *apiServer) serve(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.down {
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Date", a.clock.now().Add(-a.behind[r.UserAgent()]).UTC().Format(http.TimeFormat))
	resource := strings.Split(strings.TrimPrefix(r.URL.Path, "/apis/admissionregistration.k8s.io/v1/"), "/")[0]
	c := a.configs[resource]
	object := a.secret
	if c != nil {
		object = c.object
	} else if r.URL.Path != "/api/v1/namespaces/gmsa/secrets/web-tls" {
		refuse(w, 403, "you may not "+r.Method+" "+r.URL.Path)
		return
	}
	if r.Method == http.MethodGet {
		_ = json.NewEncoder(w).Encode(object)
		return
	}
	write := "secret"
	if c != nil {
		write = resource
	}
	f := a.fault(r.UserAgent(), write)
	switch f {
	case lost:
		panic(http.ErrAbortHandler)
	case late:
		a.mu.Unlock()
		time.Sleep(5 * settle)
		a.mu.Lock()
		object = a.secret
		if c != nil {
			object = c.object
		}
	}
	switch {
	case r.Method == http.MethodPut && c == nil:
		var sent map[string]any
		if err := json.Unmarshal(body, &sent); err != nil {
			refuse(w, 400, err.Error())
			return
		}
		if metadata(sent)["resourceVersion"] != metadata(a.secret)["resourceVersion"] {
			refuse(w, 409, "the object has been modified")
			return
		}
		a.secret, object = sent, sent
	case r.Method == http.MethodPatch && c != nil && r.Header.Get("Content-Type") == "application/json-patch+json":
		if code, err := c.patch(body); err != nil {
			refuse(w, code, err.Error())
			return
		}
		c.tell()
	default:
		refuse(w, 405, "no such request")
		return
	}
	metadata(object)["resourceVersion"] = a.next()
	a.writes = append(a.writes, write)
	if f == silent {
		panic(http.ErrAbortHandler)
	}
	_ = json.NewEncoder(w).Encode(object)
}

// patch knows the two operations that are used.
func (c *config) patch(body []byte) (int, error) {
	var operations []struct {
		Op, Path string
		Value    string
	}
	if err := json.Unmarshal(body, &operations); err != nil {
		return 400, err
	}
	for _, o := range operations {
		var i int
		if o.Op == "test" && o.Path == "/metadata/resourceVersion" {
			if o.Value != metadata(c.object)["resourceVersion"] {
				return 422, errors.New("testing value /metadata/resourceVersion failed: test failed")
			}
		} else if _, err := fmt.Sscanf(o.Path, "/webhooks/%d/clientConfig/caBundle", &i); err != nil || o.Op != "add" {
			return 422, fmt.Errorf("operation %s %s", o.Op, o.Path)
		} else {
			c.object["webhooks"].([]any)[i].(map[string]any)["clientConfig"].(map[string]any)["caBundle"] = o.Value
			metadata(c.object)["generation"] = metadata(c.object)["generation"].(float64) + 1
		}
	}
	return 0, nil
}

// overwrite is somebody who writes the caBundle of one webhook in each configuration.
func (a *apiServer) overwrite(bundle []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.configs {
		text, _ := json.Marshal(bundle)
		client := c.object["webhooks"].([]any)[0].(map[string]any)["clientConfig"].(map[string]any)
		client["caBundle"] = strings.Trim(string(text), `"`)
		metadata(c.object)["generation"] = metadata(c.object)["generation"].(float64) + 1
		metadata(c.object)["resourceVersion"] = a.next()
		c.tell()
	}
}

// data is what the Secret holds.
func (a *apiServer) data() map[string][]byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	raw, _ := json.Marshal(a.secret["data"])
	data := map[string][]byte{}
	if err := json.Unmarshal(raw, &data); err != nil {
		panic(err)
	}
	return data
}

// put is somebody who writes the Secret.
func (a *apiServer) put(data map[string][]byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	raw, _ := json.Marshal(data)
	var object map[string]any
	if err := json.Unmarshal(raw, &object); err != nil {
		panic(err)
	}
	a.secret["data"] = object
	metadata(a.secret)["resourceVersion"] = a.next()
}

func (a *apiServer) setDown(down bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.down = down
	if down {
		a.http.CloseClientConnections()
	}
}

func (a *apiServer) setFault(f func(agent, write string) fault) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fault = f
}

// counted returns how many writes of each object there were.
func (a *apiServer) counted() map[string]int {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := map[string]int{}
	for _, w := range a.writes {
		n[w]++
	}
	return n
}

// trusted are the caBundles that an API server goes by now: those of lag ago.
func (a *apiServer) trusted() [][]byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	var all [][]byte
	for _, c := range a.configs {
		last := c.history[0]
		for _, h := range c.history {
			if time.Since(h.at) >= lag {
				last = h
			}
		}
		all = append(all, last.bundles...)
	}
	return all
}

// replica is one keeper, and a server with its certificate.
type replica struct {
	*Keeper
	name    string
	address string
	log     *lockedBuffer
	stop    func() // waits for its end
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// clock is the wall clock of a test, which can be put forward.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time           { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *clock) advance(by time.Duration) { c.ahead.Add(int64(by)) }

func self() Source { return Self{Namespace: "gmsa", Secret: "web-tls", Lifetime: DefaultLifetime} }

// start runs a keeper whose clock is off by skew, and serves with its certificate.
func (a *apiServer) start(t *testing.T, name string, source Source, c *clock, skew time.Duration) *replica {
	t.Helper()
	client, err := kube.NewClient(kube.Server{URL: a.http.URL, TokenFile: filepath.Join(a.dir, "token"), CAFile: filepath.Join(a.dir, "ca.crt")}, name)
	if err != nil {
		t.Fatal(err)
	}
	a.mu.Lock()
	a.clock = c
	a.mu.Unlock()
	r := &replica{name: name, log: &lockedBuffer{}}
	r.Keeper, err = New(Config{
		API: client, DNSName: dnsName, Mutating: "web", Validating: "web", Source: source, Settle: settle,
		Log: slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		t.Fatal(err)
	}
	r.poll = 30 * time.Millisecond
	r.local = func() time.Time { return c.now().Add(skew) }
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.address = l.Addr().String()
	go accept(tls.NewListener(l, &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: r.GetCertificate, Time: c.now}))
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { r.Run(ctx) })
	r.stop = func() {
		cancel()
		l.Close()
		done.Wait()
	}
	t.Cleanup(func() {
		r.stop()
		if log := r.log.String(); strings.Contains(log, "PRIVATE") {
			t.Errorf("a key is in the log of %s: %s", name, log)
		}
		if t.Failed() {
			t.Logf("log of %s:\n%s", name, r.log)
		}
	})
	return r
}

// accept says one byte on each connection.
func accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_, _ = c.Write([]byte{1})
		}()
	}
}

// dial is an API server that asks the webhook: with each caBundle that it goes by, one handshake.
func (a *apiServer) dial(address string, c *clock) error {
	for _, bundle := range a.trusted() {
		if err := dial(address, c, bundle); err != nil {
			return err
		}
	}
	return nil
}

func dial(address string, c *clock, bundle []byte) error {
	now := c.now() // the clock may be put forward by days while this goes on
	conn, err := tls.Dial("tcp", address, &tls.Config{
		ServerName: dnsName, RootCAs: poolOf(bundle), Time: func() time.Time { return now }, MinVersion: tls.VersionTLS13,
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = io.ReadFull(conn, make([]byte, 1))
	return err
}

// load dials replicas one after the other until it is ended, and fails the test at the first handshake that fails. It
// returns what ends it.
func (a *apiServer) load(t *testing.T, c *clock, replicas ...*replica) (end func()) {
	t.Helper()
	stop := make(chan struct{})
	var done sync.WaitGroup
	n := 0
	done.Go(func() {
		for {
			for _, r := range replicas {
				select {
				case <-stop:
					return
				default:
				}
				start := time.Now()
				err := a.dial(r.address, c)
				if time.Since(start) > settle-lag {
					continue // a busy machine: the API server has new caBundles since
				}
				if err != nil {
					t.Errorf("handshake %d, with %s: %v", n, r.name, err)
					return
				}
				n++
			}
		}
	})
	var once sync.Once
	end = func() {
		once.Do(func() {
			close(stop)
			done.Wait()
			t.Logf("%d times all webhooks were asked", n)
			if n == 0 {
				t.Error("nobody was asked")
			}
		})
	}
	t.Cleanup(end)
	return end
}

// eventually waits for what must become so.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it did not happen: %s", what)
		}
	}
}

func (a *apiServer) ready(t *testing.T, c *clock, replicas ...*replica) {
	t.Helper()
	for _, r := range replicas {
		eventually(t, r.name+" is ready", func() bool { return r.Ready() == nil })
		eventually(t, r.name+" is trusted", func() bool { return a.dial(r.address, c) == nil })
	}
}
