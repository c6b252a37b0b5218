package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
)

// maxAnswer bounds what is read of an answer, in bytes: the pods of some thousand nodes.
const maxAnswer = 64 << 20

// StatusError is a refusal of the API server: a metav1.Status that is no success.
type StatusError struct {
	Code    int    `json:"code"`    // of HTTP
	Reason  string `json:"reason"`  // NotFound, Conflict, Forbidden ...
	Message string `json:"message"` // for people
	Details struct {
		Name string `json:"name"`
		Kind string `json:"kind"` // the resource that it is about: "secrets"
	} `json:"details"`
}

// Error tells what the API server said.
func (e *StatusError) Error() string {
	if e.Message == "" {
		return fmt.Sprintf("API server: status %d, no reason given", e.Code)
	}
	return fmt.Sprintf("API server: status %d: %s", e.Code, e.Message)
}

// Code is the HTTP status of an error that the API server answered, and 0 of any other.
func Code(err error) int {
	var status *StatusError
	if errors.As(err, &status) {
		return status.Code
	}
	return 0
}

// JSONPatch is a list of operations as in RFC 6902. As the body of Call it is sent as that.
type JSONPatch []JSONPatchOperation

// JSONPatchOperation is one operation.
type JSONPatchOperation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value,omitempty"`
}

// Call makes one request. A body that is not nil is sent as JSON. The answer is decoded into into, unless that is nil. A
// refusal is a *StatusError.
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
	defer clear(answer) // a Secret may be in it
	if err != nil {
		return fmt.Errorf("API server: %w", err)
	}
	if resp.StatusCode/100 != 2 {
		status := &StatusError{}
		_ = json.Unmarshal(answer, status) // what is no Status is told by the code
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

// IsNotFound tells whether the API server said that there is no such object.
func IsNotFound(err error) bool { return Code(err) == http.StatusNotFound }
