package admission

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/kube"
)

// Cluster answers the webhook's requests to the API server. The webhook can read GMSACredentialSpecs and check
// permissions. It cannot read credentials Secrets. This is an interface for the fuzz target, which must not depend on a
// network.
type Cluster interface {
	// CredentialSpec returns the credential spec of a GMSACredentialSpec as compact JSON, with all keys unchanged. If
	// the object does not exist, kube.IsNotFound of the error is true.
	CredentialSpec(ctx context.Context, name string) ([]byte, error)
	// CanUse reports whether the ServiceAccount's pods can use a GMSACredentialSpec, and the API server's reason. A
	// RoleBinding in the ServiceAccount's namespace is sufficient.
	CanUse(ctx context.Context, namespace, serviceAccount, name string) (bool, string, error)
	// Account reports whether a release provides an account and its Secret exists, without any permission on Secrets.
	Account(ctx context.Context, ref credential.Reference) (AccountState, error)
}

// NewCluster returns the Cluster of an API server. Two requests are sent at the same time for one admission request.
func NewCluster(client *kube.Client) Cluster {
	return &cluster{
		client:  client,
		ready:   newRecent[credential.Reference, struct{}](readyTTL, maxRecent),
		missing: newRecent[string, error](missingTTL, maxRecent),
	}
}

type cluster struct {
	client  *kube.Client
	ready   *recent[credential.Reference, struct{}] // accounts in state AccountReady
	missing *recent[string, error]                  // names of missing GMSACredentialSpecs, with the error
}

const (
	// readyTTL is the cache time of AccountReady. Other states are not cached, so that the next pod sees a new release
	// or Secret.
	readyTTL = 10 * time.Second
	// missingTTL is the cache time of a missing GMSACredentialSpec. Controllers create a denied pod again and again.
	missingTTL = time.Second
	// maxRecent limits each cache to about 200 KiB: a name has at most 253 bytes.
	maxRecent = 512
)

const group = "windows.k8s.io"

// errNoCredSpec is the error for a GMSACredentialSpec without the field credspec.
var errNoCredSpec = errors.New("the field credspec is missing")

func (c *cluster) CredentialSpec(ctx context.Context, name string) ([]byte, error) {
	if err, ok := c.missing.get(name); ok {
		return nil, err
	}
	// A map, because encoding/json matches the names of struct fields in any case.
	var object map[string]json.RawMessage
	read := func(query url.Values) error {
		at := c.client.URL(query, "apis", group, "v1", "gmsacredentialspecs", name)
		return c.client.Call(ctx, http.MethodGet, at, nil, &object)
	}
	// With resourceVersion 0 the API server answers from its cache, without etcd. The cache is milliseconds old, as is
	// the RBAC data of its authorizer. A new object can be missing there, which must not deny a pod.
	err := read(url.Values{"resourceVersion": {"0"}})
	if kube.IsNotFound(err) {
		err = read(nil)
	}
	if kube.IsNotFound(err) {
		c.missing.put(name, err)
	}
	if err != nil {
		return nil, err
	}
	spec := object["credspec"]
	if len(spec) == 0 || spec[0] != '{' {
		return nil, errNoCredSpec
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, spec); err != nil {
		return nil, err
	}
	return compact.Bytes(), nil
}

func (c *cluster) CanUse(ctx context.Context, namespace, serviceAccount, name string) (bool, string, error) {
	type object = map[string]any
	review := object{
		"apiVersion": "authorization.k8s.io/v1",
		"kind":       "SubjectAccessReview",
		"spec": object{
			"user":   "system:serviceaccount:" + namespace + ":" + serviceAccount,
			"groups": []string{"system:serviceaccounts", "system:serviceaccounts:" + namespace, "system:authenticated"},
			"resourceAttributes": object{
				"namespace": namespace,
				"verb":      "use",
				"group":     group,
				"version":   "v1",
				"resource":  "gmsacredentialspecs",
				"name":      name,
			},
		},
	}
	return c.client.Allowed(ctx, review)
}

// AccountState is what the webhook can find out about an impersonation account.
type AccountState int

const (
	AccountUnknown AccountState = iota // the state cannot be determined
	AccountReady                       // a release provides the account, and its Secret exists
	ReleaseMissing                     // no release provides the account, or only one that does not know this webhook
	SecretMissing                      // a release provides the account, but its Secret does not exist
)

// markerPrefix is the name prefix of a ServiceAccount that each release creates for its Secret. This ServiceAccount has
// no permissions. The webhook's permission to request its token is how the webhook finds the release.
const markerPrefix = "gmsa-secret-"

// maxName is the maximum length of an object name in bytes (RFC 1123 subdomain).
const maxName = 253

func (c *cluster) Account(ctx context.Context, ref credential.Reference) (AccountState, error) {
	if _, ok := c.ready.get(ref); ok {
		return AccountReady, nil
	}
	state, err := c.probeAccount(ctx, ref)
	if state == AccountReady {
		c.ready.put(ref, struct{}{})
	}
	return state, err
}

// probeAudience is the audience of the token that probeAccount requests. No server would accept the token.
const probeAudience = "gmsa-secret-probe"

// probeAccount requests a token bound to the Secret with a UID that no object has. The API server looks up the
// ServiceAccount, then the Secret, and then compares the UID. Its error shows what is missing, and it never issues a
// token. A policy of the chart denies the webhook every other token request.
func (c *cluster) probeAccount(ctx context.Context, ref credential.Reference) (AccountState, error) {
	marker := markerPrefix + ref.Secret
	if len(marker) > maxName {
		return AccountUnknown, nil // the chart does not create one
	}
	type object = map[string]any
	request := object{
		"apiVersion": "authentication.k8s.io/v1",
		"kind":       "TokenRequest",
		"spec": object{
			"audiences": []string{probeAudience},
			"boundObjectRef": object{
				"apiVersion": "v1",
				"kind":       "Secret",
				"name":       ref.Secret,
				"uid":        "00000000-0000-0000-0000-000000000000",
			},
		},
	}
	query := url.Values{"dryRun": {"All"}}
	at := c.client.URL(query, "api", "v1", "namespaces", ref.Namespace, "serviceaccounts", marker, "token")
	err := c.client.Call(ctx, http.MethodPost, at, request, nil)
	var status *kube.StatusError
	switch {
	case err == nil:
		return AccountReady, nil
	case !errors.As(err, &status):
		return AccountUnknown, err
	}
	switch {
	case status.Code == http.StatusConflict:
		return AccountReady, nil
	case status.Code == http.StatusForbidden,
		status.Code == http.StatusNotFound && status.Details.Kind == "serviceaccounts":
		return ReleaseMissing, nil
	case status.Code == http.StatusNotFound && status.Details.Kind == "secrets":
		return SecretMissing, nil
	}
	return AccountUnknown, err
}
