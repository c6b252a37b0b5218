package admission

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net"
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
	// Small reviews do not wait for large ones, which are rare and cost memory. With what is made of them both stay within the
	// 128 MiB that the chart gives.
	maxSmallBody  = 64 << 10
	maxSmallPatch = 16 << 10
	smallAtOnce   = 64
	largeAtOnce   = 4

	bodyTimeout = 2 * time.Second // for the whole body to arrive
)

type handler struct {
	Config
	small, large *slots
}

// NewHandler serves POST /mutate and POST /validate: AdmissionReviews of admission.k8s.io/v1, of pods. What is none is
// answered with an HTTP error.
func NewHandler(c Config) http.Handler {
	h := &handler{Config: c, small: newSlots(smallAtOnce), large: newSlots(largeAtOnce)}
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

var (
	busy    = &refusal{http.StatusServiceUnavailable, resultBusy, "too many other reviews are under way; try again"}
	tooLong = &refusal{http.StatusRequestEntityTooLarge, resultInvalid, fmt.Sprintf("the body has more than %d bytes", maxBody)}
)

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
			// At debug level: anybody in the cluster's network may send it. Metrics count it.
			h.Log.Debug("a request was refused", "path", path, "from", hr.RemoteAddr, "code", no.code, "error", no.text)
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
	if kind, _, err := mime.ParseMediaType(hr.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return "", &refusal{http.StatusUnsupportedMediaType, resultInvalid, fmt.Sprintf("Content-Type is %q; want application/json", hr.Header.Get("Content-Type"))}
	}
	if hr.ContentLength > maxBody {
		return "", tooLong
	}
	var body []byte
	slots := h.large
	if hr.ContentLength >= 0 && hr.ContentLength <= maxSmallBody {
		// It is read before it has a place, which a body that never comes would hold; connections are bounded.
		slots = h.small
		if body, err = readBody(w, hr); err != nil {
			return "", err
		}
	}
	address, _, _ := net.SplitHostPort(hr.RemoteAddr)
	leave, ok := slots.take(ctx, address)
	if !ok {
		return "", busy
	}
	defer leave()
	if slots == h.large {
		if body, err = readBody(w, hr); err != nil {
			return "", err
		}
	}
	r, err := readReview(body)
	if err != nil {
		return "", &refusal{http.StatusBadRequest, resultInvalid, err.Error()}
	}
	answer := decide(ctx, r)
	answer.UID = r.UID
	h.log(path, r, answer)
	if answer.Added > maxSmallPatch && slots == h.small {
		// Patch, answer and the room to write them are as much as a large body, until the client has read it.
		leave, ok := h.large.take(ctx, address)
		if !ok {
			return "", busy
		}
		defer leave()
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(answer.encode()) // a client that went away gets nothing
	switch {
	case answer.Allowed:
		return resultAllowed, nil
	case answer.Status.Code >= 500:
		return resultFailed, nil
	}
	return resultDenied, nil
}

func readBody(w http.ResponseWriter, hr *http.Request) ([]byte, error) {
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout)) // a test's recorder has none
	body, err := readAll(http.MaxBytesReader(w, hr.Body, maxBody), hr.ContentLength)
	var most *http.MaxBytesError
	switch {
	case errors.As(err, &most):
		return nil, tooLong
	case err != nil:
		return nil, &refusal{http.StatusRequestTimeout, resultInvalid, fmt.Sprintf("the body did not arrive whole within %s: %v", bodyTimeout, err)}
	}
	return body, nil
}

// readAll takes no more memory than the body has bytes, if that is known and true.
func readAll(body io.Reader, length int64) ([]byte, error) {
	if length < 0 {
		return io.ReadAll(body)
	}
	all := make([]byte, length)
	_, err := io.ReadFull(body, all)
	return all, err
}

func (h *handler) log(path string, r *request, answer *response) {
	attrs := []any{"path", path, "operation", r.Operation, "namespace", r.Namespace, "pod", r.Object.name(), "dryRun", r.DryRun}
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
