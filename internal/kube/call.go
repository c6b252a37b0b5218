package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
)

// maxAnswer limits a response in bytes. The pods of some thousand nodes fit.
const maxAnswer = 64 << 20

// StatusError is an error response of the API server: a metav1.Status.
type StatusError struct {
	Code    int    `json:"code"`    // HTTP status
	Reason  string `json:"reason"`  // NotFound, Conflict, Forbidden ...
	Message string `json:"message"` // for the user
	Details struct {
		Name string `json:"name"`
		Kind string `json:"kind"` // the resource, such as "secrets"
	} `json:"details"`
}

// Error contains the HTTP status and the API server's message.
func (e *StatusError) Error() string {
	if e.Message == "" {
		return fmt.Sprintf("API server: status %d without a message", e.Code)
	}
	return fmt.Sprintf("API server: status %d: %s", e.Code, e.Message)
}

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
// nil. An error response is a *StatusError.
func (c *Client) Call(ctx context.Context, method, url string, body, into any) error {
	var data []byte
	contentType := ""
	if body != nil {
		contentType = "application/json"
		if _, ok := body.(JSONPatch); ok {
			contentType = "application/json-patch+json"
		}
		var err error
		if data, err = json.Marshal(body); err != nil {
			return err
		}
	}
	resp, err := c.send(ctx, method, url, data, contentType)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	defer clear(answer) // it can contain a Secret
	if err != nil {
		return fmt.Errorf("API server: %w", err)
	}
	if resp.StatusCode/100 != 2 {
		status := &StatusError{}
		_ = json.Unmarshal(answer, status) // without a Status the code is enough
		status.Code = resp.StatusCode
		return status
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(answer, into); err != nil {
		return fmt.Errorf("API server: %s %s: %w", method, url, err)
	}
	return nil
}

// IsNotFound reports whether err is a StatusError with status 404.
func IsNotFound(err error) bool { return Code(err) == http.StatusNotFound }
