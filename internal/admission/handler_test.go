package admission

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/kube"
)

func TestInvalidAdmissionReviewsGetAnHTTPError(t *testing.T) {
	a := newAPIServer(t)
	h := NewHandler(config(t, a))
	good := string(reviewOf(create, "", newPod(object{"securityContext": windows("web01", spec1)}), nil))
	if w := send(h, "/validate", []byte(good)); w.Code != http.StatusOK {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	replace := func(old, new string) string { return strings.Replace(good, old, new, 1) }
	nested := strings.Repeat("[", 11000) + strings.Repeat("]", 11000)
	const head = `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"`
	const notReview, notPod = "not an AdmissionReview", "object: not a pod"
	numberAsName := object{"securityContext": object{"windowsOptions": object{"gmsaCredentialSpecName": 1}}}
	for name, c := range map[string]struct {
		body string
		want string
	}{
		"empty":              {"", notReview},
		"not JSON":           {"hello", notReview},
		"two reviews":        {good + good, notReview},
		"a list":             {"[]", notReview},
		"null":               {"null", `apiVersion "", kind ""`},
		"deep":               {strings.Repeat(`{"request":`, 50000), notReview},
		"deep and complete":  {strings.Repeat("[", 50000) + strings.Repeat("]", 50000), notReview},
		"deep in the pod":    {replace(`"metadata"`, `"x":`+nested+`,"metadata"`), notReview},
		"v1beta1":            {replace("k8s.io/v1", "k8s.io/v1beta1"), `apiVersion "admission.k8s.io/v1beta1"`},
		"wrong kind":         {replace(`"AdmissionReview"`, `"ConversionReview"`), `kind "ConversionReview"`},
		"no request":         {head + `}`, "has no request"},
		"null request":       {head + `,"request":null}`, "has no request"},
		"no uid":             {replace(`"u-1"`, `""`), "no uid"},
		"another resource":   {replace(`"resource":"pods"`, `"resource":"secrets"`), `"secrets"`},
		"another object":     {replace(`"kind":"Pod","version"`, `"kind":"Deployment","version"`), `kind "Deployment"`},
		"subresource":        {replace(`"uid"`, `"subResource":"status","uid"`), `subresource "status"`},
		"DELETE":             {replace(`"CREATE"`, `"DELETE"`), `"DELETE"`},
		"no namespace":       {replace(`"namespace":"shop","object"`, `"namespace":"","object"`), "no namespace"},
		"no object":          {string(reviewOf(create, "", nil, nil)), "object is missing"},
		"object a string":    {string(reviewOf(create, "", "pod", nil)), notPod},
		"containers string":  {string(reviewOf(create, "", newPod(object{"containers": "web"}), nil)), notPod},
		"name a number":      {string(reviewOf(create, "", newPod(numberAsName), nil)), notPod},
		"UPDATE without old": {string(reviewOf(update, "", newPod(nil), nil)), "oldObject is missing"},
	} {
		for _, path := range []string{"/mutate", "/validate"} {
			w := send(h, path, []byte(c.body))
			if w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), c.want) {
				t.Errorf("%s: %s: %d %q, want 400 with %q", name, path, w.Code, w.Body, c.want)
			}
		}
	}
}

func TestOtherHTTPRequestsGetAnHTTPError(t *testing.T) {
	h := NewHandler(config(t, newAPIServer(t)))
	for _, c := range []struct {
		method, path, contentType string
		code                      int
	}{
		{"GET", "/mutate", "application/json", 405},
		{"PUT", "/validate", "application/json", 405},
		{"POST", "/", "application/json", 404},
		{"POST", "/mutate/x", "application/json", 404},
		{"GET", "/metrics", "", 404},
		{"POST", "/mutate", "", 415},
		{"POST", "/mutate", "text/plain", 415},
		{"POST", "/mutate", "application/yaml", 415},
		{"POST", "/mutate", "application/json;;", 415},
		{"POST", "/mutate", "application/json; charset=utf-8", 200},
	} {
		r := httptest.NewRequest(c.method, c.path, bytes.NewReader(reviewOf(create, "", newPod(nil), nil)))
		r.Header.Set("Content-Type", c.contentType)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != c.code {
			t.Errorf("%v: %d", c, w.Code)
		}
	}
}

func padded(size int) []byte {
	pod := newPod(object{"securityContext": windows("web01", "")})
	pod["metadata"].(object)["annotations"] = object{"x": strings.Repeat("x", size)}
	return reviewOf(create, "", pod, nil)
}

func TestLargeBodiesAreReadUpToALimit(t *testing.T) {
	h := NewHandler(config(t, newAPIServer(t)))
	for _, size := range []int{0, maxSmallBody - len(padded(0)), maxSmallBody, 1 << 20} {
		for _, known := range []bool{true, false} {
			r := httptest.NewRequest(http.MethodPost, "/mutate", bytes.NewReader(padded(size)))
			r.Header.Set("Content-Type", "application/json")
			if !known {
				r.ContentLength = -1
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if answer := answerOf(t, w); !answer.Allowed || len(answer.Patch) == 0 {
				t.Errorf("%d bytes, Content-Length %t: %+v", size, known, answer)
			}
		}
	}
	for _, known := range []bool{true, false} {
		r := httptest.NewRequest(http.MethodPost, "/mutate", bytes.NewReader(padded(5<<20)))
		r.Header.Set("Content-Type", "application/json")
		if !known {
			r.ContentLength = -1
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != http.StatusRequestEntityTooLarge {
			t.Errorf("5 MiB, Content-Length %t: %d %s", known, w.Code, w.Body)
		}
	}
}

func TestTwoHundredConcurrentRequestsAreAnswered(t *testing.T) {
	h := NewHandler(config(t, newAPIServer(t)))
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			account, allowed := "default", true
			if i%2 == 0 {
				account, allowed = "other", false
			}
			pod := newPod(object{"serviceAccountName": account, "securityContext": windows("web01", spec1)})
			body := reviewOf(create, "", pod, nil)
			resp, err := http.Post(server.URL+"/validate?timeout=30s", "application/json", bytes.NewReader(body))
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			var v review
			err = json.NewDecoder(resp.Body).Decode(&v)
			if err != nil || v.Response == nil || v.Response.Allowed != allowed {
				t.Errorf("status %d, %v: %+v", resp.StatusCode, err, v.Response)
			}
		})
	}
	wg.Wait()
}

// clientAt sends from one of the loopback addresses, so that a test can act as several machines.
func clientAt(t *testing.T, address string) *http.Client {
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	transport := &http.Transport{DialContext: dialer.DialContext}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// Attack: another address sends incomplete bodies, hundreds of small ones and several large ones, again and again. The
// API server's requests do not wait for them, although half of the large slots are taken. Small requests do not wait
// even if they come from the attacker's address.
func TestIncompleteBodiesDoNotDelayOthers(t *testing.T) {
	t.Parallel()
	h := newHandler(config(t, newAPIServer(t)))
	server := httptest.NewServer(h.routes())
	t.Cleanup(server.Close)
	var sent sync.WaitGroup
	for i := range 300 {
		length, begin := 300, "{"
		if i < 3*maxLargeRequests {
			// A large request takes a slot when its beginning has arrived.
			length, begin = 300000, "{"+strings.Repeat(" ", maxSmallBody)
		}
		sent.Add(1)
		done := sync.OnceFunc(sent.Done)
		go func() {
			for t.Context().Err() == nil {
				dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.0.2")}}
				c, err := dialer.Dial("tcp", server.Listener.Addr().String())
				if err != nil {
					return
				}
				stop := context.AfterFunc(t.Context(), func() { c.Close() })
				_, _ = fmt.Fprintf(c, "POST /mutate?timeout=30s HTTP/1.1\r\nHost: x\r\n"+
					"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", length, begin)
				done()
				answer := make([]byte, 64)
				n, _ := c.Read(answer)
				timedOut := strings.HasPrefix(string(answer[:n]), "HTTP/1.1 408 ")
				if t.Context().Err() == nil && length == 300 && !timedOut {
					t.Errorf("an incomplete body was answered %q", answer[:n])
				}
				stop()
				c.Close()
			}
		}()
	}
	sent.Wait()
	for taken := 0; taken < maxLargeRequests/2; time.Sleep(time.Millisecond) {
		h.large.mu.Lock()
		taken = h.large.used
		h.large.mu.Unlock()
	}
	for _, c := range []struct {
		address string
		body    []byte
	}{
		{"127.0.0.1", padded(0)},
		{"127.0.0.1", padded(300 << 10)},
		{"127.0.0.2", padded(0)}, // as behind a common proxy
	} {
		client, body := clientAt(t, c.address), c.body
		for range 20 {
			resp, err := client.Post(server.URL+"/mutate?timeout=2s", "application/json", bytes.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			// A request without a slot gets 503 after 1.8 s, before the attacker's bodies time out after 2 s.
			if resp.StatusCode != http.StatusOK {
				t.Fatalf("a request of %d bytes was answered %d", len(body), resp.StatusCode)
			}
		}
	}
}

// taker takes slots. A context that is done would get a free slot only by chance, so it waits for a second.
type taker struct {
	*testing.T
	*slots
	releases map[owner][]func()
}

func (k taker) take(address, namespace string, want bool) {
	k.Helper()
	ctx, cancel := context.WithTimeout(k.Context(), time.Second)
	defer cancel()
	o := owner{address, namespace}
	release, ok := k.acquire(ctx, o)
	if ok != want {
		k.Errorf("%v: got a slot: %t, want %t", o, ok, want)
	}
	if ok {
		k.releases[o] = append(k.releases[o], release)
	}
}

func (k taker) giveBack(address, namespace string) {
	o := owner{address, namespace}
	k.releases[o][0]()
	k.releases[o] = k.releases[o][1:]
}

func TestOneAddressGetsHalfOfTheSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := taker{t, newSlots(4), map[owner][]func(){}}
		k.take("a", "", true)
		k.take("a", "", true)
		k.take("a", "", false)
		k.take("a", "another namespace", false)
		k.take("b", "", true)
		k.take("b", "", true)
		k.take("c", "", false)
		k.giveBack("a", "")
		k.take("b", "", false)
		k.take("c", "", true)
		done, cancel := context.WithCancel(t.Context())
		cancel()
		if _, ok := k.acquire(done, owner{"d", ""}); ok {
			t.Error("got a fifth slot")
		}
		for _, o := range []string{"a", "b", "b", "c"} {
			k.giveBack(o, "")
		}
		if len(k.ofAddress)+len(k.ofNamespace)+len(k.waiting)+k.used != 0 {
			t.Errorf("left: %+v", k.slots)
		}
	})
}

// A free slot goes to the address with the fewest, then to the namespace with the fewest, then to the request that has
// waited longest.
func TestFreeSlotsAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := taker{t, newSlots(4), map[owner][]func(){}}
		for _, namespace := range []string{"many", "many"} {
			k.take("a", namespace, true)
			k.take("b", namespace, true)
		}
		var got []owner
		wait := func(o owner) {
			go func() {
				if _, ok := k.acquire(t.Context(), o); ok {
					got = append(got, o)
				}
			}()
			synctest.Wait()
		}
		queue := []owner{{"a", "many"}, {"a", "many"}, {"a", "few"}, {"a", "few"}, {"c", "many"}, {"a", "other"}}
		for _, o := range queue {
			wait(o)
		}
		if len(got) > 0 {
			t.Fatalf("%v got a slot; none is free", got)
		}
		k.giveBack("b", "many") // c has none
		synctest.Wait()
		k.giveBack("a", "many") // many has one left, few and other have none
		synctest.Wait()
		if want := []owner{{"c", "many"}, {"a", "few"}}; !slices.Equal(got, want) {
			t.Fatalf("got slots: %v, want %v", got, want)
		}
		k.release(owner{"a", "few"})
		synctest.Wait()
		k.release(owner{"a", "few"}) // many still has one, and waits longest
		synctest.Wait()
		if want := []owner{{"a", "few"}, {"a", "other"}}; !slices.Equal(got[2:], want) {
			t.Errorf("then got slots: %v, want %v", got[2:], want)
		}
	})
}

// busyCluster is an API server that answers each request after 10 ms.
type busyCluster struct{}

func (busyCluster) CredentialSpec(_ context.Context, name string) ([]byte, error) {
	time.Sleep(10 * time.Millisecond)
	if name != "web01" {
		return nil, &kube.StatusError{Code: http.StatusNotFound}
	}
	return []byte(spec2), nil
}

func (busyCluster) CanUse(context.Context, string, string, string) (bool, string, error) {
	time.Sleep(10 * time.Millisecond)
	return true, "", nil
}

func (busyCluster) Account(context.Context, credential.Reference) (AccountState, error) {
	return AccountReady, nil
}

// Attack: a tenant creates pods with invented names from a hundred clients. The API server sends the requests of all
// tenants from one address. The pods of another tenant wait for one request at most, whether they are small or large.
func TestATenantDoesNotDelayAnother(t *testing.T) {
	for name, size := range map[string]int{"small": 0, "large": maxSmallBody} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := config(t, nil)
				c.Cluster = busyCluster{}
				h := NewHandler(c)
				body := func(namespace, name string) []byte {
					pod := newPod(object{"securityContext": windows(name, "")})
					pod["metadata"].(object)["annotations"] = object{"x": strings.Repeat("x", size)}
					text := string(reviewOf(create, "", pod, nil))
					return []byte(strings.Replace(text, `"namespace":"shop","object"`,
						`"namespace":"`+namespace+`","object"`, 1))
				}
				attack, victim := body("attacker", "invented"), body("victim", "web01")
				ctx, stop := context.WithCancel(t.Context())
				var attackers sync.WaitGroup
				for range 100 {
					attackers.Go(func() {
						for ctx.Err() == nil {
							send(h, "/mutate", attack)
						}
					})
				}
				time.Sleep(time.Second)
				for range 20 {
					start := time.Now()
					wantAllowed(t, answerOf(t, send(h, "/mutate", victim)))
					if took := time.Since(start); took > 20*time.Millisecond {
						t.Errorf("the pod of the other tenant took %s, want 10 ms and at most 10 ms in the queue", took)
					}
				}
				stop()
				attackers.Wait()
			})
		})
	}
}

// The API server can send 600 requests at the same time: --max-requests-inflight and --max-mutating-requests-inflight
// are 400 and 200.
func TestSixHundredPodsOfATenantAreAdmittedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := config(t, nil)
		c.Cluster = busyCluster{}
		h := NewHandler(c)
		var all sync.WaitGroup
		for range 600 {
			all.Go(func() {
				pod := newPod(object{"securityContext": windows("web01", "")})
				_, answer := admit(t, h, create, "", pod, nil)
				wantAllowed(t, answer)
			})
		}
		all.Wait()
	})
}

func TestTheNamespaceIsFoundInTheBeginningOfABody(t *testing.T) {
	review := string(padded(0))
	for body, want := range map[string]string{
		review:       "shop",
		review[:100]: "",
		"":           "",
		"[1]":        "",
		`{"request":{"uid":"u","kind":{"namespace":"x"},"namespace":"shop","object":{"metadata"`: "shop",
		`{"namespace":"x","request":{"namespace":"shop"`:                                         "shop",
		`{"request":{"object":{"namespace":"x"}}}`:                                               "",
		`{"request":{"namespace":1}}`:                                                            "",
		`{"request":{"namespace":"` + strings.Repeat("x", 254) + `"}}`:                           "",
		`{"request":` + strings.Repeat("[", 20000):                                               "",
	} {
		if got := namespaceOf([]byte(body)); got != want {
			t.Errorf("%.100s: namespace %q, want %q", body, got, want)
		}
	}
}

// The deadline applies to the body, not to the connection.
func TestOnlyTheBodyHasADeadline(t *testing.T) {
	t.Parallel()
	a := newAPIServer(t)
	h := newHandler(config(t, a))
	h.bodyTimeout = 500 * time.Millisecond
	a.slow = h.bodyTimeout + 100*time.Millisecond
	server := httptest.NewTLSServer(h.routes())
	t.Cleanup(server.Close)
	post := func(body io.Reader) (int, string) {
		t.Helper()
		resp, err := server.Client().Post(server.URL+"/mutate?timeout=10s", "application/json", body)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		answer, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Error(err)
		}
		return resp.StatusCode, string(answer)
	}
	code, answer := post(bytes.NewReader(padded(0)))
	if code != http.StatusOK || !strings.Contains(answer, `"allowed":true`) {
		t.Errorf("a slow API server: %d %s", code, answer)
	}
	never, end := io.Pipe()
	t.Cleanup(func() { end.Close() })
	if code, answer := post(never); code != http.StatusRequestTimeout {
		t.Errorf("an incomplete body: %d %s", code, answer)
	}
}

// Attack: an unauthenticated client fills the log with invalid requests.
func TestInvalidRequestsAreCountedAndLoggedAtDebugLevel(t *testing.T) {
	var log bytes.Buffer
	c := config(t, newAPIServer(t))
	c.Log = slog.New(slog.NewTextHandler(&log, nil))
	h := NewHandler(c)
	send(h, "/mutate", []byte("nonsense"))
	if log.Len() > 0 {
		t.Error(log.String())
	}
	var b strings.Builder
	c.Metrics.Write(&b)
	if !strings.Contains(b.String(), `gmsa_webhook_admission_requests_total{path="mutate",result="invalid"} 1`) {
		t.Error(b.String())
	}
}

// Connection errors contain addresses, which users must not see.
func TestConnectionErrorsAppearOnlyInTheLog(t *testing.T) {
	var log bytes.Buffer
	a := newAPIServer(t)
	c := config(t, a)
	c.Log = slog.New(slog.NewTextHandler(&log, nil))
	h := NewHandler(c)
	address := a.Listener.Addr().String()
	a.Close()
	for path, inline := range map[string]string{"/mutate": "", "/validate": spec1} {
		answer := call(t, h, path, create, "", newPod(object{"securityContext": windows("web01", inline)}), nil)
		wantDenied(t, answer, 503, "the API server did not answer the webhook; see the webhook's log")
		if strings.Contains(answer.Status.Message, "127.0.0.1") || strings.Contains(answer.Status.Message, "https") {
			t.Errorf("%s: %s", path, answer.Status.Message)
		}
	}
	if strings.Count(log.String(), address) < 2 {
		t.Error(log.String())
	}
}

func TestARequestWithoutASlotGetsAnHTTPError(t *testing.T) {
	t.Parallel()
	h := newHandler(config(t, newAPIServer(t)))
	h.small, h.large = newSlots(0), newSlots(0)
	w := sendWithTimeout(h.serve("mutate", h.mutate), "/mutate", "50ms", padded(0))
	if w.Code != http.StatusServiceUnavailable {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestResponsesPrecedeTheAPIServersTimeout(t *testing.T) {
	t.Parallel()
	for query, want := range map[string]time.Duration{
		"timeout=2s":    1800 * time.Millisecond,
		"timeout=30s":   27 * time.Second,
		"":              4500 * time.Millisecond,
		"timeout=x":     4500 * time.Millisecond,
		"timeout=-1s":   4500 * time.Millisecond,
		"timeout=9999h": 4500 * time.Millisecond,
	} {
		if got := timeLimit(httptest.NewRequest(http.MethodPost, "/mutate?"+query, nil)); got != want {
			t.Errorf("%q: %s, want %s", query, got, want)
		}
	}
	a := newAPIServer(t)
	a.Config.Handler = http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	w := sendWithTimeout(NewHandler(config(t, a)), "/mutate", "200ms", padded(0))
	wantDenied(t, answerOf(t, w), 503, "could not read", "try again")
}

func TestMetricsWithoutACertificate(t *testing.T) {
	var b strings.Builder
	NewMetrics(func() time.Time { return time.Time{} }).Write(&b)
	if !strings.Contains(b.String(), "gmsa_webhook_certificate_expiry_timestamp_seconds NaN") {
		t.Error(b.String())
	}
}

func TestMetricsExistFromTheStart(t *testing.T) {
	var b strings.Builder
	NewMetrics(func() time.Time { return time.Unix(1800000000, 0) }).Write(&b)
	for _, want := range []string{
		`gmsa_webhook_admission_requests_total{path="mutate",result="allowed"} 0`,
		`gmsa_webhook_admission_requests_total{path="validate",result="denied"} 0`,
		`gmsa_webhook_admission_warnings_total{reason="secret-missing"} 0`,
		`gmsa_webhook_account_check_errors_total 0`,
		`gmsa_webhook_certificate_expiry_timestamp_seconds 1800000000`,
		`gmsa_webhook_build_info{`,
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%s lacks %s", b.String(), want)
		}
	}
	b.Reset()
	NewMetrics(func() time.Time { return time.Time{} }).Write(&b)
	if !strings.Contains(b.String(), "gmsa_webhook_certificate_expiry_timestamp_seconds NaN") {
		t.Errorf("without a certificate: %s", b.String())
	}
}
