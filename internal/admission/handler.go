package admission

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"time"
)

// ProblemAction is what happens to a pod whose GMSACredentialSpec uses our plugin but cannot work.
type ProblemAction string

const (
	Warn ProblemAction = "warn" // allow the pod with a warning
	Deny ProblemAction = "deny"
)

// Config configures a handler. Cluster, Metrics and Log are required.
type Config struct {
	Cluster Cluster
	Metrics *Metrics
	Log     *slog.Logger

	RandomHostname bool          // give pods that use a gMSA and have no host name a random one
	PluginInput    ProblemAction // default Warn
}

const (
	// A body contains a pod at most twice, and the API server stores no object above 1.5 MiB.
	maxBody = 4 << 20
	// Small requests do not wait for large ones, which are rare and need memory. Together they stay within the chart's
	// memory limit of 128 MiB.
	maxSmallBody     = 64 << 10
	maxSmallPatch    = 16 << 10
	maxSmallRequests = 64
	maxLargeRequests = 4

	bodyTimeout = 2 * time.Second // for reading the whole body
)

type handler struct {
	Config
	small, large   *slots
	bodyTimeout    time.Duration
	accountTimeout time.Duration
}

// NewHandler serves POST /mutate and POST /validate: AdmissionReviews of admission.k8s.io/v1 for pods. Any other
// request gets an HTTP error.
func NewHandler(c Config) http.Handler { return newHandler(c).routes() }

func newHandler(c Config) *handler {
	return &handler{
		Config:         c,
		small:          newSlots(maxSmallRequests),
		large:          newSlots(maxLargeRequests),
		bodyTimeout:    bodyTimeout,
		accountTimeout: accountTimeout,
	}
}

func (h *handler) routes() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("POST /mutate", h.serve("mutate", h.mutate))
	mux.Handle("POST /validate", h.serve("validate", h.validate))
	return mux
}

// decideFunc answers an admission request.
type decideFunc func(context.Context, *request) *response

// httpError answers a request that is not an admission request, or for which there is no slot.
type httpError struct {
	code   int
	result string // for metrics
	text   string
}

var (
	errBusy = &httpError{
		code:   http.StatusServiceUnavailable,
		result: resultBusy,
		text:   "too many concurrent requests; try again",
	}
	errTooLong = &httpError{
		code:   http.StatusRequestEntityTooLarge,
		result: resultInvalid,
		text:   fmt.Sprintf("body exceeds %d bytes", maxBody),
	}
)

func (e *httpError) Error() string { return e.text }

func (h *handler) serve(path string, decide decideFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, hr *http.Request) {
		start := time.Now()
		ctx, cancel := context.WithTimeout(hr.Context(), timeLimit(hr))
		defer cancel()
		result, err := h.review(ctx, path, w, hr, decide)
		var failed *httpError
		if errors.As(err, &failed) {
			result = failed.result
			// Debug level: every client in the cluster network can send this. The metrics count it.
			h.Log.Debug("request rejected",
				"path", path, "client", hr.RemoteAddr, "code", failed.code, "error", failed.text)
			http.Error(w, failed.text, failed.code)
		}
		h.Metrics.observe(path, result, time.Since(start))
	})
}

// timeLimit leaves the API server time to read a response that explains the failure. The query parameter timeout is its
// own limit, in whole seconds.
func timeLimit(hr *http.Request) time.Duration {
	timeout, err := time.ParseDuration(hr.URL.Query().Get("timeout"))
	if err != nil || timeout <= 0 || timeout > 30*time.Second { // 30 s is the maximum of a webhook configuration
		timeout = 5 * time.Second
	}
	return timeout * 9 / 10
}

func (h *handler) review(ctx context.Context, path string, w http.ResponseWriter, hr *http.Request, decide decideFunc) (
	result string, err error) {
	contentType := hr.Header.Get("Content-Type")
	if mediaType, _, err := mime.ParseMediaType(contentType); err != nil || mediaType != "application/json" {
		text := fmt.Sprintf("Content-Type is %q; want application/json", contentType)
		return "", &httpError{http.StatusUnsupportedMediaType, resultInvalid, text}
	}
	if hr.ContentLength > maxBody {
		return "", errTooLong
	}
	// The beginning of a body is read before the request has a slot. So a body that does not arrive holds none, and the
	// namespace is known. The connection limiter limits their number.
	b := &body{Reader: http.MaxBytesReader(w, hr.Body, maxBody), length: hr.ContentLength}
	if err := h.read(w, b, maxSmallBody); err != nil {
		return "", err
	}
	address, _, _ := net.SplitHostPort(hr.RemoteAddr)
	owner := owner{address, namespaceOf(b.data)}
	slots := h.small
	if b.length < 0 || b.length > maxSmallBody {
		slots = h.large
	}
	release, ok := slots.acquire(ctx, owner)
	if !ok {
		return "", errBusy
	}
	defer release()
	if err := h.read(w, b, maxBody); err != nil {
		return "", err
	}
	r, err := readReview(b.data)
	if err != nil {
		return "", &httpError{http.StatusBadRequest, resultInvalid, err.Error()}
	}
	answer := decide(ctx, r)
	answer.UID = r.UID
	h.log(path, r, answer)
	if answer.Added > maxSmallPatch && slots == h.small {
		// Until the client has read it, the response needs as much memory as a large body.
		release, ok := h.large.acquire(ctx, owner)
		if !ok {
			return "", errBusy
		}
		defer release()
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(answer.encode()) // the client may have disconnected
	switch {
	case answer.Allowed:
		return resultAllowed, nil
	case answer.Status.Code >= 500:
		return resultFailed, nil
	}
	return resultDenied, nil
}

// body is the body of a request, of which a part is read.
type body struct {
	io.Reader
	length int64 // -1: unknown
	data   []byte
	done   bool // data is the whole body
}

// read reads the body up to limit bytes.
func (h *handler) read(w http.ResponseWriter, b *body, limit int64) error {
	if b.done {
		return nil // a deadline would apply to the connection
	}
	// A httptest.ResponseRecorder has no deadline.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(h.bodyTimeout))
	err := b.readUpTo(limit)
	var tooLong *http.MaxBytesError
	switch {
	case errors.As(err, &tooLong):
		return errTooLong
	case err != nil:
		text := fmt.Sprintf("body incomplete after %s: %v", h.bodyTimeout, err)
		return &httpError{http.StatusRequestTimeout, resultInvalid, text}
	}
	return nil
}

// readUpTo allocates no more than the length if it is known.
func (b *body) readUpTo(limit int64) error {
	if b.length < 0 {
		// One byte more, to find the end of a body with limit bytes, or that it exceeds maxBody.
		want := limit + 1 - int64(len(b.data))
		more, err := io.ReadAll(io.LimitReader(b, want))
		b.data = append(b.data, more...)
		b.done = int64(len(more)) < want
		return err
	}
	all := make([]byte, min(limit, b.length))
	have := copy(all, b.data)
	_, err := io.ReadFull(b, all[have:])
	b.data = all
	b.done = int64(len(all)) == b.length
	return err
}

// namespaceOf returns request.namespace of an AdmissionReview, of which body can be only the beginning. The API server
// writes it before the objects. The result is "" if body does not contain it.
func namespaceOf(body []byte) string {
	d := json.NewDecoder(bytes.NewReader(body))
	var namespace string
	if !enter(d, "request") || !enter(d, "namespace") || d.Decode(&namespace) != nil || len(namespace) > maxName {
		return ""
	}
	return namespace
}

// enter reads the beginning of a JSON object until the value of key, and reports whether there is one.
func enter(d *json.Decoder, key string) bool {
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return false
	}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return false
		}
		if t == key {
			return true
		}
		var other json.RawMessage
		if d.Decode(&other) != nil {
			return false
		}
	}
	return false
}

func (h *handler) log(path string, r *request, answer *response) {
	attrs := []any{
		"path", path,
		"operation", r.Operation,
		"namespace", r.Namespace,
		"pod", r.Object.displayName(),
		"dryRun", r.DryRun,
	}
	switch {
	case !answer.Allowed:
		attrs = append(attrs, "code", answer.Status.Code, "reason", answer.Status.Message)
		if answer.Cause != nil {
			attrs = append(attrs, "error", answer.Cause)
		}
		h.Log.Info("denied", attrs...)
	case len(answer.Warnings) > 0:
		h.Log.Info("allowed with warnings", append(attrs, "warnings", answer.Warnings)...)
	default:
		h.Log.Debug("allowed", attrs...)
	}
}
