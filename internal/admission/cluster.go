package admission

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/kube"
)

// Cluster is what the webhook asks the API server. It may read GMSACredentialSpecs and ask what others may, and reads no Secret.
// It is an interface for a fuzz target, which cannot learn from what passes through a network.
type Cluster interface {
	// CredentialSpec returns the contents of a GMSACredentialSpec as compact JSON, every key as it is stored. If the API
	// server says that there is none, kube.IsNotFound of the error is true.
	CredentialSpec(ctx context.Context, name string) ([]byte, error)
	// MayUse reports whether the pods of a ServiceAccount may use a GMSACredentialSpec, and what the API server gave as
	// reason. A binding in the ServiceAccount's namespace is enough.
	MayUse(ctx context.Context, namespace, serviceAccount, name string) (bool, string, error)
	// Account tells whether an account is served and its Secret exists, without any right to a Secret.
	Account(ctx context.Context, ref credential.Reference) (Account, error)
}

// NewCluster returns the Cluster behind an API server. A review asks up to eight things at once: the client should keep at
// least that many connections.
func NewCluster(client *kube.Client) Cluster {
	return &cluster{client: client, now: time.Now, there: map[credential.Reference]time.Time{}}
}

type cluster struct {
	client *kube.Client
	now    func() time.Time

	mu    sync.Mutex
	there map[credential.Reference]time.Time // until when AccountThere counts
}

const (
	// thereFor is how long an account that is served, and has its Secret, is not asked for again. Nothing else is remembered, so that
	// a release or a Secret that is made now is seen by the next pod.
	thereFor = 10 * time.Second
	// maxThere bounds what is remembered: some 100 KiB.
	maxThere = 512
)

const group = "windows.k8s.io"

// errNoContents is an object without the one key that it is there for.
var errNoContents = errors.New("it has no credspec")

func (c *cluster) CredentialSpec(ctx context.Context, name string) ([]byte, error) {
	// A map, because the names of struct fields match in any case.
	var object map[string]json.RawMessage
	read := func(query url.Values) error {
		return c.client.Call(ctx, http.MethodGet, c.client.URL(query, "apis", group, "v1", "gmsacredentialspecs", name), nil, &object)
	}
	// Version 0 is what the API server has in its own memory, which saves it a question to etcd: milliseconds old, as are the roles by
	// which it decides itself. What was made a moment ago may not be there yet, and is no reason to refuse a pod.
	err := read(url.Values{"resourceVersion": {"0"}})
	if kube.IsNotFound(err) {
		err = read(nil)
	}
	if err != nil {
		return nil, err
	}
	contents := object["credspec"]
	if len(contents) == 0 || contents[0] != '{' {
		return nil, errNoContents
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, contents); err != nil {
		return nil, err
	}
	return compact.Bytes(), nil
}

func (c *cluster) MayUse(ctx context.Context, namespace, serviceAccount, name string) (bool, string, error) {
	type object = map[string]any
	ask := object{
		"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
		"spec": object{
			"user":   "system:serviceaccount:" + namespace + ":" + serviceAccount,
			"groups": []string{"system:serviceaccounts", "system:serviceaccounts:" + namespace, "system:authenticated"},
			"resourceAttributes": object{
				"namespace": namespace, "verb": "use",
				"group": group, "version": "v1", "resource": "gmsacredentialspecs", "name": name,
			},
		},
	}
	var answer struct {
		Status struct {
			Allowed         bool   `json:"allowed"`
			Reason          string `json:"reason"`
			EvaluationError string `json:"evaluationError"`
		} `json:"status"`
	}
	if err := c.client.Call(ctx, http.MethodPost, c.client.URL(nil, "apis", "authorization.k8s.io", "v1", "subjectaccessreviews"), ask, &answer); err != nil {
		return false, "", err
	}
	reason := answer.Status.Reason
	if reason == "" {
		reason = answer.Status.EvaluationError
	}
	return answer.Status.Allowed, reason, nil
}

// Account is what a cluster knows of an impersonation account.
type Account int

const (
	AccountUnknown  Account = iota // the question cannot be asked
	AccountThere                   // a release serves it, and its Secret exists
	AccountUnserved                // no release serves it, or none that knows this webhook
	SecretMissing                  // a release serves it, but there is no such Secret
)

// secretMarker is the name of the ServiceAccount that a release makes for its Secret. It has no rights; that the webhook may ask
// for its token is what tells the webhook of the release.
const secretMarker = "gmsa-secret-"

// maxName is the longest name of an object (RFC 1123 subdomain), in bytes.
const maxName = 253

func (c *cluster) Account(ctx context.Context, ref credential.Reference) (Account, error) {
	if c.remembered(ref) {
		return AccountThere, nil
	}
	account, err := c.askForAccount(ctx, ref)
	if account == AccountThere {
		c.remember(ref)
	}
	return account, err
}

func (c *cluster) remembered(ref credential.Reference) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now().Before(c.there[ref])
}

func (c *cluster) remember(ref credential.Reference) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	if len(c.there) >= maxThere {
		maps.DeleteFunc(c.there, func(_ credential.Reference, until time.Time) bool { return !now.Before(until) })
	}
	if len(c.there) < maxThere {
		c.there[ref] = now.Add(thereFor)
	}
}

// askForAccount asks for a token that is bound to the Secret by a UID that no object has. The API server looks for the ServiceAccount
// first, then for the Secret, then compares the UID: so it tells what is missing, and never makes a token.
func (c *cluster) askForAccount(ctx context.Context, ref credential.Reference) (Account, error) {
	marker := secretMarker + ref.Secret
	if len(marker) > maxName {
		return AccountUnknown, nil // the chart makes none
	}
	type object = map[string]any
	ask := object{
		"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
		"spec": object{
			// If there were a token all the same, it would open nothing.
			"audiences":      []string{"nobody"},
			"boundObjectRef": object{"apiVersion": "v1", "kind": "Secret", "name": ref.Secret, "uid": "00000000-0000-0000-0000-000000000000"},
		},
	}
	at := c.client.URL(url.Values{"dryRun": {"All"}}, "api", "v1", "namespaces", ref.Namespace, "serviceaccounts", marker, "token")
	err := c.client.Call(ctx, http.MethodPost, at, ask, nil)
	var refusal *kube.StatusError
	switch {
	case err == nil:
		return AccountThere, nil
	case !errors.As(err, &refusal):
		return AccountUnknown, err
	}
	switch {
	case refusal.Code == http.StatusConflict:
		return AccountThere, nil
	case refusal.Code == http.StatusForbidden, refusal.Code == http.StatusNotFound && refusal.Details.Kind == "serviceaccounts":
		return AccountUnserved, nil
	case refusal.Code == http.StatusNotFound && refusal.Details.Kind == "secrets":
		return SecretMissing, nil
	}
	return AccountUnknown, err
}
