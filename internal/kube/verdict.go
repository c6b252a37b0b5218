package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// A refusal is a response with status 401, 403 or 404, or a SubjectAccessReview that is not allowed. It is a verdict
// only if the API server was ready before it answered. An API server that starts answers 403 until its RBAC caches are
// filled, and a proxy answers 404 for a server that it does not reach. Such a refusal is an outage, because callers
// drop what they have after a verdict.
const (
	// sameAnswer is how long a refusal must be repeated to be a verdict if the API server does not tell whether it is
	// ready. A starting one answers 403 for less than 100 ms with 3,000 RoleBindings.
	sameAnswer      = 2 * time.Second
	confirmInterval = 250 * time.Millisecond
	// ConfirmTimeout is the maximum time from a refusal to the verdict, or to the error that there is none.
	ConfirmTimeout = sameAnswer + 500*time.Millisecond
)

// ErrNoResource means that the API server is ready, but does not serve the URL: its CustomResourceDefinition does not
// exist. A proxy can cause it too, so it is not a verdict.
var ErrNoResource = errors.New("the API server does not serve this resource")

// ask sends a request. It returns a refusal only if it is a verdict. The caller wipes the answer's body.
func (c *Client) ask(ctx context.Context, r *request) (*answer, error) {
	l, err := c.acquire()
	if err != nil {
		return nil, err
	}
	defer c.release(l)
	a, err := c.exchange(ctx, l, r)
	if err != nil || !r.refused(a) {
		return a, err
	}
	ctx, cancel := context.WithTimeout(ctx, ConfirmTimeout)
	defer cancel()
	for first, since := a, time.Now(); ; {
		if err := c.check(r, a); err != nil {
			return nil, err
		}
		conn := l.conn
		code, err := c.readiness(ctx, l)
		wait := time.Duration(0)
		switch {
		case err != nil:
			return nil, fmt.Errorf("status %d is not a verdict: /readyz: %w", a.code, err)
		case code/100 == 5:
			return nil, fmt.Errorf("API server: status %d is not a verdict: it is not ready: /readyz has status %d",
				a.code, code)
		case code == http.StatusOK && conn == l.ready:
			return a, nil
		case time.Since(since) >= sameAnswer:
			return a, nil
		case code == http.StatusOK && conn == l.conn && l.ready == nil:
			// It can have become ready after it refused, so it is asked again.
			l.ready = conn
		case code == http.StatusOK && conn == l.conn:
			l.ready, wait = conn, confirmInterval // something closes the connections
		default:
			wait = confirmInterval
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("API server: status %d is not a verdict: %w", a.code, ctx.Err())
		case <-time.After(wait):
		}
		if a, err = c.exchange(ctx, l, r); err != nil || !r.refused(a) {
			return a, err
		}
		// The responses to a SubjectAccessReview differ in the time of their creation.
		if a.code != first.code || a.code/100 != 2 && !bytes.Equal(a.body, first.body) {
			first, since = a, time.Now()
		}
	}
}

// refused reports whether a can be a verdict.
func (r *request) refused(a *answer) bool {
	switch a.code {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound:
		return true
	}
	return a.code/100 == 2 && r.denies != nil && r.denies(a.body)
}

// readiness returns the status of /readyz. Kubernetes lets everybody read it, but some distributions refuse anonymous
// requests.
func (c *Client) readiness(ctx context.Context, l *lane) (code int, err error) {
	conn := l.conn
	for _, anonymous := range []bool{true, false} {
		a, err := c.exchange(ctx, l, &request{
			method:    http.MethodGet,
			url:       c.URL(nil, "readyz"),
			anonymous: anonymous,
			limit:     maxStatus,
		})
		if err != nil {
			return 0, err
		}
		if code = a.code; conn != l.conn || code != http.StatusUnauthorized && code != http.StatusForbidden {
			break
		}
	}
	return code, nil
}

// check returns an error if the refusal does not come from an API server that knows the request.
func (c *Client) check(r *request, a *answer) error {
	if a.code/100 == 2 {
		return nil
	}
	status := parseStatus(a)
	if status.Kind != "Status" {
		if a.code == http.StatusNotFound {
			return nil // ErrNoResource, if the API server is ready
		}
		return fmt.Errorf("API server: status %d is not a verdict: the response is not a Status", a.code)
	}
	if a.code == http.StatusUnauthorized {
		return nil // names no object
	}
	for _, o := range c.objects(r) {
		if o == (object{status.Details.Group, status.Details.Kind, status.Details.Name}) {
			return nil
		}
	}
	return fmt.Errorf("API server: status %d is not a verdict: the response names %q %q, not the requested object",
		a.code, status.Details.Kind, status.Details.Name)
}

// object is what the details of a Status name. A response to a list has no name.
type object struct{ group, resource, name string }

// objects returns the objects that a refusal of r can name.
func (c *Client) objects(r *request) []object {
	u, err := url.Parse(r.url)
	if err != nil {
		return nil
	}
	path := strings.Split(strings.Trim(strings.TrimPrefix(u.EscapedPath(), c.base.EscapedPath()), "/"), "/")
	for i := range path {
		if path[i], err = url.PathUnescape(path[i]); err != nil {
			return nil
		}
	}
	var o object
	switch {
	case path[0] == "api" && len(path) > 2: // api/v1/...
		path = path[2:]
	case path[0] == "apis" && len(path) > 3: // apis/<group>/<version>/...
		o.group, path = path[1], path[3:]
	default:
		return nil
	}
	var all []object
	if path[0] == "namespaces" && len(path) > 2 {
		all = append(all, object{resource: "namespaces", name: path[1]})
		path = path[2:]
	}
	o.resource = path[0]
	if len(path) > 1 {
		o.name = path[1]
	}
	all = append(all, o)
	if len(path) > 2 && path[2] == "token" {
		// A token is bound to a second object, which can be missing.
		var token struct {
			Spec struct {
				BoundObjectRef struct{ Kind, Name string }
			}
		}
		_ = json.Unmarshal(r.body, &token) // the Client encoded it
		bound := token.Spec.BoundObjectRef
		all = append(all, object{resource: strings.ToLower(bound.Kind) + "s", name: bound.Name})
	}
	return all
}
