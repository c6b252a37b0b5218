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
	"strings"
	"sync"
	"testing"
	"time"
)

func TestWhatIsNoReviewOfAPodGetsAnHTTPError(t *testing.T) {
	a := newAPIServer(t)
	h := NewHandler(config(t, a))
	good := string(reviewOf(create, "", newPod(object{"securityContext": windows("web01", spec1)}), nil))
	if w := send(h, "/validate", []byte(good)); w.Code != http.StatusOK {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	for name, c := range map[string]struct {
		body string
		says string
	}{
		"empty":              {"", "no AdmissionReview"},
		"no JSON":            {"hello", "no AdmissionReview"},
		"two":                {good + good, "no AdmissionReview"},
		"a list":             {"[]", "no AdmissionReview"},
		"null":               {"null", `apiVersion "", kind ""`},
		"deep":               {strings.Repeat(`{"request":`, 50000), "no AdmissionReview"},
		"deep and whole":     {strings.Repeat("[", 50000) + strings.Repeat("]", 50000), "no AdmissionReview"},
		"deep in the pod":    {strings.Replace(good, `"metadata"`, `"x":`+strings.Repeat("[", 11000)+strings.Repeat("]", 11000)+`,"metadata"`, 1), "no AdmissionReview"},
		"v1beta1":            {strings.Replace(good, "admission.k8s.io/v1", "admission.k8s.io/v1beta1", 1), `apiVersion "admission.k8s.io/v1beta1"`},
		"wrong kind":         {strings.Replace(good, `"AdmissionReview"`, `"ConversionReview"`, 1), `kind "ConversionReview"`},
		"no request":         {`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}`, "has no request"},
		"null request":       {`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":null}`, "has no request"},
		"no uid":             {strings.Replace(good, `"u-1"`, `""`, 1), "no uid"},
		"another resource":   {strings.Replace(good, `"resource":"pods"`, `"resource":"secrets"`, 1), `"secrets"`},
		"another object":     {strings.Replace(good, `"kind":"Pod","version"`, `"kind":"Deployment","version"`, 1), `kind "Deployment"`},
		"subresource":        {strings.Replace(good, `"uid"`, `"subResource":"status","uid"`, 1), `subresource "status"`},
		"DELETE":             {strings.Replace(good, `"CREATE"`, `"DELETE"`, 1), `"DELETE"`},
		"no namespace":       {strings.Replace(good, `"namespace":"shop","object"`, `"namespace":"","object"`, 1), "no namespace"},
		"no object":          {string(reviewOf(create, "", nil, nil)), "object: it is missing"},
		"object is a text":   {string(reviewOf(create, "", "pod", nil)), "object: it is no pod"},
		"containers a text":  {string(reviewOf(create, "", newPod(object{"containers": "web"}), nil)), "object: it is no pod"},
		"name a number":      {string(reviewOf(create, "", newPod(object{"securityContext": object{"windowsOptions": object{"gmsaCredentialSpecName": 1}}}), nil)), "object: it is no pod"},
		"UPDATE without old": {string(reviewOf(update, "", newPod(nil), nil)), "oldObject: it is missing"},
	} {
		for _, path := range []string{"/mutate", "/validate"} {
			w := send(h, path, []byte(c.body))
			if w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), c.says) {
				t.Errorf("%s: %s: %d %q, want 400 with %q", name, path, w.Code, w.Body, c.says)
			}
		}
	}
}

func TestOtherRequestsGetAnHTTPError(t *testing.T) {
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

func TestLargeReviewsAreReadUpToALimit(t *testing.T) {
	h := NewHandler(config(t, newAPIServer(t)))
	answer := answerOf(t, send(h, "/mutate", padded(1<<20)))
	if !answer.Allowed || len(answer.Patch) == 0 {
		t.Errorf("1 MiB: %+v", answer)
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
			t.Errorf("5 MiB, its length known: %t: %d %s", known, w.Code, w.Body)
		}
	}
}

func TestTwoHundredAtOnceAreAllAnswered(t *testing.T) {
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
			body := reviewOf(create, "", newPod(object{"serviceAccountName": account, "securityContext": windows("web01", spec1)}), nil)
			resp, err := http.Post(server.URL+"/validate?timeout=10s", "application/json", bytes.NewReader(body))
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			var v review
			if err := json.NewDecoder(resp.Body).Decode(&v); err != nil || v.Response == nil || v.Response.Allowed != allowed {
				t.Errorf("status %d, %v: %+v", resp.StatusCode, err, v.Response)
			}
		})
	}
	wg.Wait()
}

// clientAt asks from an address of this machine, so that a test can be two machines.
func clientAt(t *testing.T, address string) *http.Client {
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	transport := &http.Transport{DialContext: dialer.DialContext}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// Attack: from another address come bodies that never arrive, small ones by the hundred and large ones, again and again. The API
// server's reviews, small and large, do not wait for them, though the half of all places of large ones is held. Small ones do not
// even if they come from the same address.
func TestSlowBodiesDoNotStopTheOthers(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(NewHandler(config(t, newAPIServer(t))))
	t.Cleanup(server.Close)
	var held sync.WaitGroup
	for i := range 300 {
		length := 300
		if i < 3*largeAtOnce {
			length = 300000
		}
		held.Add(1)
		told := sync.OnceFunc(held.Done)
		go func() {
			for t.Context().Err() == nil {
				dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.0.2")}}
				c, err := dialer.Dial("tcp", server.Listener.Addr().String())
				if err != nil {
					return
				}
				stop := context.AfterFunc(t.Context(), func() { c.Close() })
				_, _ = fmt.Fprintf(c, "POST /mutate?timeout=30s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n{", length)
				told()
				answer := make([]byte, 64)
				n, _ := c.Read(answer)
				if t.Context().Err() == nil && length == 300 && !strings.HasPrefix(string(answer[:n]), "HTTP/1.1 408 ") {
					t.Errorf("a slow one was answered %q", answer[:n])
				}
				stop()
				c.Close()
			}
		}()
	}
	held.Wait()
	time.Sleep(100 * time.Millisecond) // until they are in their places
	for _, c := range []struct {
		address string
		body    []byte
	}{{"127.0.0.1", padded(0)}, {"127.0.0.1", padded(300 << 10)}, {"127.0.0.2", padded(0)}} { // the last: behind one proxy
		client, body := clientAt(t, c.address), c.body
		for range 20 {
			resp, err := client.Post(server.URL+"/mutate?timeout=2s", "application/json", bytes.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			// With a timeout of 2 s, 503 comes after 1.8 s without a place, and a stranger's body has 2 s.
			if resp.StatusCode != http.StatusOK {
				t.Fatalf("a review of %d bytes was answered %d", len(body), resp.StatusCode)
			}
		}
	}
}

func TestOneAddressHasHalfOfThePlaces(t *testing.T) {
	t.Parallel()
	s := newSlots(4)
	now, cancel := context.WithCancel(t.Context())
	cancel()
	var leaves []func()
	take := func(address string, want bool) {
		t.Helper()
		// One that may not wait finds a place or not by chance if there is one, so it waits a little.
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		leave, ok := s.take(ctx, address)
		if ok != want {
			t.Errorf("%s: a place: %t, want %t", address, ok, want)
		}
		if ok {
			leaves = append(leaves, leave)
		}
	}
	take("a", true)
	take("a", true)
	take("a", false)
	take("b", true)
	take("b", true)
	take("c", false)
	leaves[0]()
	leaves = leaves[1:]
	take("b", false)
	take("c", true)
	if _, ok := s.take(now, "d"); ok {
		t.Error("a fifth place")
	}
	for _, leave := range leaves {
		leave()
	}
	if len(s.each) != 0 || len(s.all) != 0 {
		t.Errorf("left over: %d addresses, %d places", len(s.each), len(s.all))
	}
}

// The deadline is the body's, not the connection's.
func TestABodyHasADeadlineAndItsReviewHasNot(t *testing.T) {
	t.Parallel()
	a := newAPIServer(t)
	a.slow = bodyTimeout + 500*time.Millisecond
	server := httptest.NewTLSServer(NewHandler(config(t, a)))
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
	if code, answer := post(bytes.NewReader(padded(0))); code != http.StatusOK || !strings.Contains(answer, `"allowed":true`) {
		t.Errorf("a slow API server: %d %s", code, answer)
	}
	never, end := io.Pipe()
	t.Cleanup(func() { end.Close() })
	if code, answer := post(never); code != http.StatusRequestTimeout {
		t.Errorf("a body that does not come: %d %s", code, answer)
	}
}

// Anybody in the cluster's network may send what is none, and fills no log with it.
func TestWhatStrangersSendIsLoggedAtDebugLevelAndCounted(t *testing.T) {
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
	if !strings.Contains(b.String(), `gmsa_webhook_reviews_total{path="mutate",result="invalid"} 1`) {
		t.Error(b.String())
	}
}

// What the API server's client says of a failure names addresses, which go to the log and not to whoever may create pods.
func TestWhyTheAPIServerDoesNotAnswerStandsInTheLog(t *testing.T) {
	var log bytes.Buffer
	a := newAPIServer(t)
	c := config(t, a)
	c.Log = slog.New(slog.NewTextHandler(&log, nil))
	h := NewHandler(c)
	address := a.Listener.Addr().String()
	a.Server.Close()
	for path, contents := range map[string]string{"/mutate": "", "/validate": spec1} {
		answer := ask(t, h, path, create, "", newPod(object{"securityContext": windows("web01", contents)}), nil)
		wantDenied(t, answer, 503, "the API server did not answer the webhook, whose log says more")
		if strings.Contains(answer.Status.Message, "127.0.0.1") || strings.Contains(answer.Status.Message, "https") {
			t.Errorf("%s: %s", path, answer.Status.Message)
		}
	}
	if strings.Count(log.String(), address) < 2 {
		t.Error(log.String())
	}
}

func TestAReviewThatFindsNoPlaceIsTurnedAway(t *testing.T) {
	t.Parallel()
	h := &handler{Config: config(t, newAPIServer(t)), small: newSlots(0), large: newSlots(0)}
	w := send(h.reviews("mutate", h.mutate), "/mutate", padded(0))
	if w.Code != http.StatusServiceUnavailable {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestAnAnswerComesBeforeTheAPIServerStopsWaiting(t *testing.T) {
	t.Parallel()
	for query, want := range map[string]time.Duration{
		"timeout=2s": 1800 * time.Millisecond, "timeout=30s": 27 * time.Second,
		"": 4500 * time.Millisecond, "timeout=x": 4500 * time.Millisecond, "timeout=-1s": 4500 * time.Millisecond, "timeout=9999h": 4500 * time.Millisecond,
	} {
		if got := budget(httptest.NewRequest(http.MethodPost, "/mutate?"+query, nil)); got != want {
			t.Errorf("%q: %s, want %s", query, got, want)
		}
	}
	hangs := http.NewServeMux()
	hangs.HandleFunc("/", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	a := newAPIServer(t)
	a.Config.Handler = hangs
	r := httptest.NewRequest(http.MethodPost, "/mutate?timeout=1s", bytes.NewReader(padded(0)))
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	NewHandler(config(t, a)).ServeHTTP(w, r.WithContext(ctx))
	wantDenied(t, answerOf(t, w), 503, "could not be read, try again")
}

func TestMetricsAreThereFromTheStart(t *testing.T) {
	var b strings.Builder
	NewMetrics(func() time.Time { return time.Unix(1800000000, 0) }).Write(&b)
	for _, want := range []string{
		`gmsa_webhook_reviews_total{path="mutate",result="allowed"} 0`, `gmsa_webhook_reviews_total{path="validate",result="denied"} 0`,
		`gmsa_webhook_warnings_total{kind="secret"} 0`, `gmsa_webhook_unanswered_account_questions_total 0`, `gmsa_webhook_certificate_expiry_timestamp_seconds 1800000000`, `gmsa_webhook_build_info{`,
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
