// Package admission decides about pods that use a gMSA. It populates pods that reference a GMSACredentialSpec. It
// denies pods whose ServiceAccount lacks the use permission, pods with an inline credential spec that differs from the
// object, and later changes of these fields. It decodes only the fields that it needs, and calls the API server through
// a Cluster.
package admission

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/ccgrkc/ccgrkc/internal/kube"
)

// The fields of AdmissionReview (admission.k8s.io/v1) that the webhook reads and writes.

type review struct {
	APIVersion string    `json:"apiVersion"`
	Kind       string    `json:"kind"`
	Request    *request  `json:"request,omitempty"`
	Response   *response `json:"response,omitempty"`
}

type request struct {
	UID  string `json:"uid"`
	Kind struct {
		Group   string `json:"group"`
		Version string `json:"version"`
		Kind    string `json:"kind"`
	} `json:"kind"`
	Resource struct {
		Group    string `json:"group"`
		Version  string `json:"version"`
		Resource string `json:"resource"`
	} `json:"resource"`
	SubResource string `json:"subResource"`
	Namespace   string `json:"namespace"`
	Operation   string `json:"operation"`
	Object      *pod   `json:"object"`
	OldObject   *pod   `json:"oldObject"` // only for UPDATE
	DryRun      bool   `json:"dryRun"`
}

type response struct {
	UID       string   `json:"uid"`
	Allowed   bool     `json:"allowed"`
	Status    *status  `json:"status,omitempty"`
	Patch     []byte   `json:"patch,omitempty"`
	PatchType string   `json:"patchType,omitempty"`
	Warnings  []string `json:"warnings,omitempty"`

	Cause error `json:"-"` // of a denial, for the log only

	Operations kube.JSONPatch `json:"-"` // encode writes them to Patch
	Added      int            `json:"-"` // their approximate size as JSON, in bytes
}

// encode returns the AdmissionReview.
func (r *response) encode() []byte {
	var err error
	if len(r.Operations) > 0 {
		r.PatchType = "JSONPatch"
		if r.Patch, err = json.Marshal(r.Operations); err != nil {
			panic(err) // strings always encode
		}
	}
	data, err := json.Marshal(review{APIVersion: reviewVersion, Kind: reviewKind, Response: r})
	if err != nil {
		panic(err)
	}
	return data
}

// status is a metav1.Status. It is complete, because clients use the details without a check: kubectl debug crashed
// when a status with the reason NotFound had none.
type status struct {
	Status  string   `json:"status"` // always Failure
	Code    int      `json:"code"`
	Reason  string   `json:"reason"`
	Message string   `json:"message"`
	Details *details `json:"details"`
}

// details identify the object that the status is about: the missing GMSACredentialSpec, or the denied pod.
type details struct {
	Name  string `json:"name,omitempty"`
	Group string `json:"group,omitempty"`
	Kind  string `json:"kind"` // the resource, as in the API server's own statuses

	RetryAfterSeconds int `json:"retryAfterSeconds,omitempty"`
}

const (
	reviewVersion = "admission.k8s.io/v1"
	reviewKind    = "AdmissionReview"

	create = "CREATE"
	update = "UPDATE"

	ephemeralContainers = "ephemeralcontainers"
)

// readReview returns the request of an AdmissionReview. An error means that this is not an admission request for a pod.
// An API server with the chart's webhook configurations never sends one.
func readReview(body []byte) (*request, error) {
	var v review
	var notPod notPodError
	if err := json.Unmarshal(body, &v); errors.As(err, &notPod) {
		return nil, fmt.Errorf("oldObject or object: %w", notPod)
	} else if err != nil {
		return nil, fmt.Errorf("the body is not an AdmissionReview: %w", err)
	}
	if v.APIVersion != reviewVersion || v.Kind != reviewKind {
		return nil, fmt.Errorf("the body has apiVersion %q, kind %q; want %s, %s",
			v.APIVersion, v.Kind, reviewVersion, reviewKind)
	}
	r := v.Request
	switch {
	case r == nil:
		return nil, fmt.Errorf("the AdmissionReview has no request")
	case r.UID == "":
		return nil, fmt.Errorf("the request has no uid")
	case r.Resource.Group != "" || r.Resource.Version != "v1" || r.Resource.Resource != "pods",
		r.Kind.Group != "" || r.Kind.Version != "v1" || r.Kind.Kind != "Pod",
		r.SubResource != "" && r.SubResource != ephemeralContainers:
		return nil, fmt.Errorf("the request has resource %q %q %q, subresource %q, kind %q; "+
			"the webhook accepts only v1 pods and pods/ephemeralcontainers",
			r.Resource.Group, r.Resource.Version, r.Resource.Resource, r.SubResource, r.Kind.Kind)
	case r.Operation != create && r.Operation != update:
		return nil, fmt.Errorf("the operation is %q; the webhook accepts only CREATE and UPDATE", r.Operation)
	case r.Namespace == "":
		return nil, fmt.Errorf("the request has no namespace")
	}
	if r.Object == nil {
		return nil, errors.New("object is missing")
	}
	if r.Operation == update && r.OldObject == nil {
		return nil, errors.New("oldObject is missing")
	}
	return r, nil
}

// denial is the answer that denies a pod, as the user sees it.
type denial struct {
	code    int
	reason  string
	message string
	missing string // name of the GMSACredentialSpec that does not exist
	cause   error  // for the log only: it can contain addresses
}

func notFound(name, format string, args ...any) *denial {
	return &denial{
		code:    http.StatusNotFound,
		reason:  "NotFound",
		message: fmt.Sprintf(format, args...),
		missing: name,
	}
}

func forbidden(format string, args ...any) *denial {
	return &denial{code: http.StatusForbidden, reason: "Forbidden", message: fmt.Sprintf(format, args...)}
}

// response returns the denial of the request.
func (d *denial) response(r *request) *response {
	about := &details{Name: r.Object.displayName(), Kind: "pods"}
	if d.missing != "" {
		about = &details{Name: d.missing, Group: group, Kind: "gmsacredentialspecs"}
	}
	if d.code == http.StatusServiceUnavailable {
		// The API server returns it as Retry-After, so that client-go, and therefore kubectl, retries.
		about.RetryAfterSeconds = 1
	}
	return &response{
		Status: &status{
			Status:  "Failure",
			Code:    d.code,
			Reason:  d.reason,
			Message: d.message,
			Details: about,
		},
		Cause: d.cause,
	}
}
