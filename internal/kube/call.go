package kube

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
)

const (
	// maxAnswer limits a response in bytes. The pods of some thousand nodes fit.
	maxAnswer = 64 << 20
	// maxStatus limits a response that contains only a decision, in bytes.
	maxStatus = 1 << 20
)

// StatusError is an error response of the API server: a metav1.Status.
type StatusError struct {
	Code    int    `json:"code"`    // HTTP status
	Reason  string `json:"reason"`  // NotFound, Conflict, Forbidden ...
	Message string `json:"message"` // for the user
	Details struct {
		Name  string `json:"name"`
		Group string `json:"group"` // empty for the core group
		Kind  string `json:"kind"`  // the resource, such as "secrets"
	} `json:"details"`
}

// Error contains the HTTP status and the API server's message.
func (e *StatusError) Error() string {
	if e.Message == "" {
		return fmt.Sprintf("API server: status %d without a message", e.Code)
	}
	return fmt.Sprintf("API server: status %d: %s", e.Code, e.Message)
}

// Cause identifies the kind of error, for package logonce: a message can contain names.
func (e *StatusError) Cause() string { return fmt.Sprint("status ", e.Code, " ", e.Reason) }

// Code returns the HTTP status of a StatusError, and 0 for any other error.
func Code(err error) int {
	var status *StatusError
	if errors.As(err, &status) {
		return status.Code
	}
	return 0
}

// JSONPatch is a list of operations (RFC 6902). Call sends it with its content type.
type JSONPatch []JSONPatchOperation

type JSONPatchOperation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value,omitempty"`
}

// Call makes one request. It sends body as JSON unless it is nil, and decodes the response into into unless that is
// nil. An error response of the API server is a *StatusError. With the status 401, 403 or 404, it is a verdict. Any
// other error is an outage, except ErrNoResource.
func (c *Client) Call(ctx context.Context, method, url string, body, into any) error {
	r := &request{method: method, url: url, limit: maxAnswer}
	if body != nil {
		r.contentType = "application/json"
		if _, ok := body.(JSONPatch); ok {
			r.contentType = "application/json-patch+json"
		}
		var err error
		if r.body, err = json.Marshal(body); err != nil {
			return err
		}
	}
	return c.call(ctx, r, into)
}

func (c *Client) call(ctx context.Context, r *request, into any) error {
	a, err := c.ask(ctx, r)
	if err != nil {
		return err
	}
	defer clear(a.body) // it can contain a Secret
	if err := a.err(); err != nil || into == nil {
		return err
	}
	if err := json.Unmarshal(a.body, into); err != nil {
		return fmt.Errorf("API server: %s %s: %w", r.method, r.url, err)
	}
	return nil
}

// Get reads an object of at most limit bytes. The caller wipes it if it contains a secret. The errors are those of
// Call.
func (c *Client) Get(ctx context.Context, url string, limit int) (object []byte, header http.Header, err error) {
	a, err := c.ask(ctx, &request{method: http.MethodGet, url: url, limit: limit})
	if err != nil {
		return nil, nil, err
	}
	if err := a.err(); err != nil {
		clear(a.body)
		return nil, nil, err
	}
	return a.body, a.header, nil
}

// Allowed creates a SubjectAccessReview (authorization.k8s.io/v1). It returns the API server's decision, which is a
// verdict, and its reason. The errors are those of Call.
func (c *Client) Allowed(ctx context.Context, review any) (allowed bool, reason string, err error) {
	type decision struct {
		Status struct {
			Allowed         bool   `json:"allowed"`
			Reason          string `json:"reason"`
			EvaluationError string `json:"evaluationError"`
		} `json:"status"`
	}
	body, err := json.Marshal(review)
	if err != nil {
		return false, "", err
	}
	var d decision
	err = c.call(ctx, &request{
		method:      http.MethodPost,
		url:         c.URL(nil, "apis", "authorization.k8s.io", "v1", "subjectaccessreviews"),
		body:        body,
		contentType: "application/json",
		limit:       maxStatus,
		denies: func(body []byte) bool {
			var d decision
			return json.Unmarshal(body, &d) == nil && !d.Status.Allowed
		},
	}, &d)
	if err != nil {
		return false, "", err
	}
	return d.Status.Allowed, cmp.Or(d.Status.Reason, d.Status.EvaluationError), nil
}

// err returns the error of a response, or nil.
func (a *answer) err() error {
	if a.code/100 == 2 {
		return nil
	}
	status := parseStatus(a)
	if a.code == http.StatusNotFound && status.Kind != "Status" {
		return fmt.Errorf("API server: status %d: %w", a.code, ErrNoResource)
	}
	return &status.StatusError
}

// kindStatus is a StatusError with the kind of the object, which is Status unless something else answered.
type kindStatus struct {
	Kind string `json:"kind"`
	StatusError
}

func parseStatus(a *answer) *kindStatus {
	s := &kindStatus{}
	_ = json.Unmarshal(a.body, s) // without a Status the code is enough
	s.Code = a.code
	return s
}

// IsNotFound reports whether err is a StatusError with status 404.
func IsNotFound(err error) bool { return Code(err) == http.StatusNotFound }
