package admission

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"time"
)

// OnProblem is what happens to a pod whose GMSACredentialSpec names our plugin, but cannot work.
type OnProblem string

const (
	Warn OnProblem = "warn" // it is admitted, and kubectl shows why it will not work
	Deny OnProblem = "deny"
)

// Config is what a handler needs; all of it must be set but the last two.
type Config struct {
	Cluster Cluster
	Metrics *Metrics
	Log     *slog.Logger

	RandomHostname bool      // pods with a gMSA that have no host name get one of their own
	PluginInput    OnProblem // "" is Warn
}

const (
	// A body is a pod twice at most, and the API server stores none above 1.5 MiB.
	maxBody = 4 << 20
	// Small reviews do not wait for large ones, which are rare and cost memory: bodies of 16 MiB at once in each of the two.
	maxSmallBody = 256 << 10
	smallAtOnce  = 64
	largeAtOnce  = 4

	bodyTimeout = 2 * time.Second // for the whole body to arrive
)

type handler struct {
	Config
	small, large chan struct{}
}

// NewHandler serves POST /mutate and POST /validate: AdmissionReviews of admission.k8s.io/v1, of pods. What is none is
// answered with an HTTP error.
func NewHandler(c Config) http.Handler {
	h := &handler{Config: c, small: make(chan struct{}, smallAtOnce), large: make(chan struct{}, largeAtOnce)}
	mux := http.NewServeMux()
	mux.Handle("POST /mutate", h.reviews("mutate", h.mutate))
	mux.Handle("POST /validate", h.reviews("validate", h.validate))
	return mux
}

// refusal is an answer to what is no review, or comes when there is no room for it.
type refusal struct {
	code   int
	result string // in metrics
	text   string
}

func (r *refusal) Error() string { return r.text }

func (h *handler) reviews(path string, decide func(context.Context, *request) *response) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, hr *http.Request) {
		start := time.Now()
		ctx, cancel := context.WithTimeout(hr.Context(), budget(hr))
		defer cancel()
		result, err := h.review(ctx, path, w, hr, decide)
		var no *refusal
		if errors.As(err, &no) {
			result = no.result
			h.Log.Warn("a request was refused", "path", path, "from", hr.RemoteAddr, "code", no.code, "error", no.text)
			http.Error(w, no.text, no.code)
		}
		h.Metrics.reviewed(path, result, time.Since(start))
	})
}

// budget leaves the API server time to read an answer that says what went wrong. It tells how long it waits, in whole seconds.
func budget(hr *http.Request) time.Duration {
	timeout, err := time.ParseDuration(hr.URL.Query().Get("timeout"))
	if err != nil || timeout <= 0 || timeout > 30*time.Second { // 30 s is the most of a configuration
		timeout = 5 * time.Second
	}
	return timeout * 9 / 10
}

func (h *handler) review(ctx context.Context, path string, w http.ResponseWriter, hr *http.Request, decide func(context.Context, *request) *response) (result string, err error) {
	slots := h.small
	if hr.ContentLength < 0 || hr.ContentLength > maxSmallBody {
		slots = h.large
	}
	select {
	case slots <- struct{}{}:
		defer func() { <-slots }()
	case <-ctx.Done():
		return "", &refusal{http.StatusServiceUnavailable, resultBusy, fmt.Sprintf("%d other reviews are under way; try again", cap(slots))}
	}
	body, err := readBody(w, hr)
	if err != nil {
		return "", err
	}
	r, err := readReview(body)
	if err != nil {
		return "", &refusal{http.StatusBadRequest, resultInvalid, err.Error()}
	}
	answer := decide(ctx, r)
	answer.UID = r.UID
	h.log(path, r, answer)
	data, err := json.Marshal(review{APIVersion: reviewVersion, Kind: reviewKind, Response: answer})
	if err != nil {
		panic(err) // texts always encode
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(data) // a client that went away gets nothing
	switch {
	case answer.Allowed:
		return resultAllowed, nil
	case answer.Status.Code >= 500:
		return resultFailed, nil
	}
	return resultDenied, nil
}

func readBody(w http.ResponseWriter, hr *http.Request) ([]byte, error) {
	if kind, _, err := mime.ParseMediaType(hr.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return nil, &refusal{http.StatusUnsupportedMediaType, resultInvalid, fmt.Sprintf("Content-Type is %q; want application/json", hr.Header.Get("Content-Type"))}
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout)) // a test's recorder has none
	body, err := io.ReadAll(http.MaxBytesReader(w, hr.Body, maxBody))
	var most *http.MaxBytesError
	switch {
	case errors.As(err, &most):
		return nil, &refusal{http.StatusRequestEntityTooLarge, resultInvalid, fmt.Sprintf("the body has more than %d bytes", maxBody)}
	case err != nil:
		return nil, &refusal{http.StatusRequestTimeout, resultInvalid, fmt.Sprintf("the body did not arrive whole within %s: %v", bodyTimeout, err)}
	}
	return body, nil
}

func (h *handler) log(path string, r *request, answer *response) {
	attrs := []any{"path", path, "operation", r.Operation, "namespace", r.Namespace, "pod", r.pod.name(), "dryRun", r.DryRun}
	switch {
	case !answer.Allowed:
		h.Log.Info("denied", append(attrs, "code", answer.Status.Code, "reason", answer.Status.Message)...)
	case len(answer.Warnings) > 0:
		h.Log.Info("allowed with warnings", append(attrs, "warnings", answer.Warnings)...)
	default:
		h.Log.Debug("allowed", attrs...)
	}
}
