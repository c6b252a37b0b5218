package servingcert

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/kube/kubetest"
)

const (
	dnsName = "web.gmsa.svc"
	delay   = 300 * time.Millisecond
	poll    = 30 * time.Millisecond
	overlap = 3 * delay
	// lag is the delay until this API server applies a changed configuration.
	lag = 100 * time.Millisecond
)

// apiServer is a fake with one Secret and two webhook configurations, with resource versions, conflicts and
// generations. Keepers run against a real one in lab/suites/webhook.
type apiServer struct {
	http *kubetest.Server

	mu      sync.Mutex
	version int
	secret  map[string]any
	configs map[string]*config
	writes  []string // completed ones
	fault   func(agent, write string) fault
	down    bool
	deleted bool // the Secret
	clock   *clock
	ahead   map[string]time.Duration // by user agent, or "" for all: the Date of an API server with a wrong clock
}

type config struct {
	object  map[string]any
	history []bundlesSince
}

// bundlesSince are the caBundles of a configuration from a time on.
type bundlesSince struct {
	at      time.Time
	bundles [][]byte
}

// fault is a failure of a write.
type fault int

const (
	none    fault = iota
	lost          // the request is lost
	silent        // the response is lost
	late          // the request is delayed
	refused       // status 403
)

func newAPI(t *testing.T) *apiServer {
	t.Helper()
	a := &apiServer{configs: map[string]*config{}, fault: func(string, string) fault { return none }}
	a.secret = map[string]any{
		"apiVersion": "v1",
		"kind":       "Secret",
		"type":       "Opaque",
		"metadata": map[string]any{
			"name":            "web-tls",
			"namespace":       "gmsa",
			"labels":          map[string]any{"helm": "yes"},
			"resourceVersion": a.next(),
		},
	}
	for resource, webhooks := range map[string][]string{
		"mutatingwebhookconfigurations":   {"mutate.x"},
		"validatingwebhookconfigurations": {"a.x", "b.x"},
	} {
		var list []any
		for _, name := range webhooks {
			service := map[string]any{"name": "web", "namespace": "gmsa"}
			list = append(list, map[string]any{"name": name, "clientConfig": map[string]any{"service": service}})
		}
		metadata := map[string]any{"name": "web", "uid": resource, "generation": 1.0, "resourceVersion": a.next()}
		c := &config{object: map[string]any{"metadata": metadata, "webhooks": list}}
		c.record()
		a.configs[resource] = c
	}
	a.http = kubetest.NewMemoryServer(t, a.serve)
	return a
}

// next needs mu, except before the server starts.
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

func (c *config) record() { c.history = append(c.history, bundlesSince{time.Now(), c.bundles()}) }

func fail(w http.ResponseWriter, code int, text string) { kubetest.Status(w, code, "", "", text) }

func (a *apiServer) serve(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.down {
		panic(http.ErrAbortHandler)
	}
	date := a.clock.now().Add(a.ahead[""] + a.ahead[r.UserAgent()])
	w.Header().Set("Date", date.UTC().Format(http.TimeFormat))
	resource := strings.Split(strings.TrimPrefix(r.URL.Path, "/apis/admissionregistration.k8s.io/v1/"), "/")[0]
	c := a.configs[resource]
	object := a.secret
	if c != nil {
		object = c.object
	} else if r.URL.Path != "/api/v1/namespaces/gmsa/secrets/web-tls" {
		fail(w, 403, "forbidden: "+r.Method+" "+r.URL.Path)
		return
	} else if a.deleted {
		fail(w, 404, `secrets "web-tls" not found`)
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
	case refused:
		fail(w, 403, "forbidden, request "+rand.Text())
		return
	case late:
		a.mu.Unlock()
		time.Sleep(5 * delay)
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
			fail(w, 400, err.Error())
			return
		}
		if metadata(sent)["resourceVersion"] != metadata(a.secret)["resourceVersion"] {
			fail(w, 409, "the object has been modified")
			return
		}
		a.secret, object = sent, sent
	case r.Method == http.MethodPatch && c != nil && r.Header.Get("Content-Type") == "application/json-patch+json":
		if code, err := c.patch(body); err != nil {
			fail(w, code, err.Error())
			return
		}
		c.record()
	default:
		fail(w, 405, "no such request")
		return
	}
	metadata(object)["resourceVersion"] = a.next()
	a.writes = append(a.writes, write)
	if f == silent {
		panic(http.ErrAbortHandler)
	}
	_ = json.NewEncoder(w).Encode(object)
}

// patch supports the two operations that keepers use.
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

// overwrite sets the caBundle of one webhook in each configuration, as another client would.
func (a *apiServer) overwrite(bundle []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.configs {
		text, _ := json.Marshal(bundle)
		client := c.object["webhooks"].([]any)[0].(map[string]any)["clientConfig"].(map[string]any)
		client["caBundle"] = strings.Trim(string(text), `"`)
		metadata(c.object)["generation"] = metadata(c.object)["generation"].(float64) + 1
		metadata(c.object)["resourceVersion"] = a.next()
		c.record()
	}
}

// publish sets every caBundle, as a replica does: without a change, the generation stays.
func (a *apiServer) publish(bundle []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	text, _ := json.Marshal(bundle)
	for _, c := range a.configs {
		if !slices.ContainsFunc(c.bundles(), func(b []byte) bool { return !bytes.Equal(b, bundle) }) {
			continue
		}
		for _, w := range c.object["webhooks"].([]any) {
			w.(map[string]any)["clientConfig"].(map[string]any)["caBundle"] = strings.Trim(string(text), `"`)
		}
		metadata(c.object)["generation"] = metadata(c.object)["generation"].(float64) + 1
		metadata(c.object)["resourceVersion"] = a.next()
		c.record()
	}
}

// recreate deletes both configurations and creates them without a caBundle.
func (a *apiServer) recreate() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.configs {
		for _, w := range c.object["webhooks"].([]any) {
			delete(w.(map[string]any)["clientConfig"].(map[string]any), "caBundle")
		}
		metadata(c.object)["uid"] = a.next()
		metadata(c.object)["generation"] = 1.0
		metadata(c.object)["resourceVersion"] = a.next()
		c.record()
	}
}

// remove deletes the Secret, or creates it again without data.
func (a *apiServer) remove(deleted bool) {
	a.put(nil)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.deleted = deleted
}

// data returns the data of the Secret.
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

// put sets the data of the Secret, as another client would.
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

// counted returns the number of writes of each object.
func (a *apiServer) counted() map[string]int {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := map[string]int{}
	for _, w := range a.writes {
		n[w]++
	}
	return n
}

// trusted returns the caBundles that the API server applies now, without duplicates: those from lag ago.
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
		for _, b := range last.bundles {
			if !slices.ContainsFunc(all, func(o []byte) bool { return bytes.Equal(b, o) }) {
				all = append(all, b)
			}
		}
	}
	return all
}

// inBubble runs a test in parallel and in virtual time.
func inBubble(test func(t *testing.T)) func(t *testing.T) {
	return func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, test)
	}
}

// replica is a keeper and a TLS server with its certificate.
type replica struct {
	*Keeper
	name     string
	listener *kubetest.Listener
	log      *lockedBuffer
	stop     func() // returns when it has stopped
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

// clock is the wall clock of a test. It can be advanced.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time           { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *clock) advance(by time.Duration) { c.ahead.Add(int64(by)) }

// pass advances the clock in steps, after each of which keepers can sign new certificates.
func (c *clock) pass(by time.Duration) {
	for step := maxLeafLifetime / 4; by > 0; by -= step {
		c.advance(min(by, step))
		time.Sleep(2 * poll)
	}
}

// caLifetime is short, so that a rotation needs few steps.
const caLifetime = 60 * 24 * time.Hour

func self() Source { return Self{Namespace: "gmsa", Secret: "web-tls", CALifetime: caLifetime} }

// setDate makes the Date header of an API server wrong: that of the keeper agent, or of all if agent is empty.
func (a *apiServer) setDate(agent string, ahead time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ahead = map[string]time.Duration{agent: ahead}
}

// start runs a keeper whose clock differs by skew, and a server with its certificate.
func (a *apiServer) start(t *testing.T, name string, source Source, c *clock, skew time.Duration) *replica {
	t.Helper()
	a.mu.Lock()
	a.clock = c
	a.mu.Unlock()
	r := &replica{name: name, listener: kubetest.Listen(), log: &lockedBuffer{}}
	var err error
	r.Keeper, err = New(Config{
		API:              a.http.Client(t, name),
		DNSName:          dnsName,
		Mutating:         "web",
		Validating:       "web",
		Source:           source,
		PropagationDelay: delay,
		Log:              slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		t.Fatal(err)
	}
	r.poll, r.overlap = poll, overlap
	r.local = func() time.Time { return c.now().Add(skew) }
	r.steady = c.now
	config := &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: r.GetCertificate, Time: c.now}
	go accept(tls.NewListener(r.listener, config))
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { r.Run(ctx) })
	r.stop = func() {
		cancel()
		r.listener.Close()
		done.Wait()
	}
	t.Cleanup(func() {
		r.stop()
		if log := r.log.String(); strings.Contains(log, "PRIVATE") {
			t.Errorf("the log of %s contains a key: %s", name, log)
		}
		if t.Failed() {
			t.Logf("log of %s:\n%s", name, r.log)
		}
	})
	return r
}

// accept writes one byte to each connection.
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

// dial connects to the webhook as the API server does: one handshake for each caBundle.
func (a *apiServer) dial(l *kubetest.Listener, c *clock) error {
	for _, bundle := range a.trusted() {
		if err := dial(l, c, bundle); err != nil {
			return err
		}
	}
	return nil
}

func dial(l *kubetest.Listener, c *clock, bundle []byte) error {
	now := c.now() // the test can advance the clock by days during the handshake
	raw, err := l.Dial(context.Background(), "", "")
	if err != nil {
		return err
	}
	conn := tls.Client(raw, &tls.Config{
		ServerName: dnsName,
		RootCAs:    poolOf(bundle),
		Time:       func() time.Time { return now },
		MinVersion: tls.VersionTLS13,

		CurvePreferences: []tls.CurveID{tls.X25519}, // the fastest
	})
	defer conn.Close()
	_, err = io.ReadFull(conn, make([]byte, 1))
	return err
}

// load dials the replicas twice per pass of a keeper until end is called. The first failed handshake fails the test.
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
				if err := a.dial(r.listener, c); err != nil {
					t.Errorf("handshake %d, with %s: %v", n, r.name, err)
					return
				}
				n++
			}
			time.Sleep(poll / 2)
		}
	})
	var once sync.Once
	end = func() {
		once.Do(func() {
			close(stop)
			done.Wait()
			t.Logf("%d times connected with all caBundles", n)
			if n == 0 {
				t.Error("no connection")
			}
		})
	}
	t.Cleanup(end)
	return end
}

// eventually waits until f returns true.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("timeout: %s", what)
		}
	}
}

func (a *apiServer) ready(t *testing.T, c *clock, replicas ...*replica) {
	t.Helper()
	for _, r := range replicas {
		eventually(t, r.name+" is ready", func() bool { return r.Ready() == nil })
		eventually(t, r.name+" is trusted", func() bool { return a.dial(r.listener, c) == nil })
	}
}
