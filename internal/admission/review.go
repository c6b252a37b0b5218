// Package admission is what the webhook says of a pod: it copies the contents of a GMSACredentialSpec into the pods that
// name it, and refuses the pods that may not use it, that bring contents of their own, or that change them later. It knows
// only the parts of the API that it reads, and asks the API server through a Cluster.
package admission

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/ccgrkc/ccgrkc/internal/kube"
)

// The parts of AdmissionReview (admission.k8s.io/v1) that are read and written here, named as in the Kubernetes API reference.

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
	OldObject   *pod   `json:"oldObject"` // of an UPDATE
	DryRun      bool   `json:"dryRun"`
}

type response struct {
	UID       string   `json:"uid"`
	Allowed   bool     `json:"allowed"`
	Status    *status  `json:"status,omitempty"`
	Patch     []byte   `json:"patch,omitempty"`
	PatchType string   `json:"patchType,omitempty"`
	Warnings  []string `json:"warnings,omitempty"`

	Cause error `json:"-"` // of a denial; for the log alone

	Operations kube.JSONPatch `json:"-"` // what encode makes Patch of
	Added      int            `json:"-"` // their size as JSON, in bytes, about
}

// encode returns the AdmissionReview.
func (r *response) encode() []byte {
	var err error
	if len(r.Operations) > 0 {
		r.PatchType = "JSONPatch"
		if r.Patch, err = json.Marshal(r.Operations); err != nil {
			panic(err) // texts always encode
		}
	}
	data, err := json.Marshal(review{APIVersion: reviewVersion, Kind: reviewKind, Response: r})
	if err != nil {
		panic(err)
	}
	return data
}

// status is a metav1.Status.
type status struct {
	Code    int      `json:"code"`
	Reason  string   `json:"reason"`
	Message string   `json:"message"`
	Details *details `json:"details,omitempty"`
}

type details struct {
	RetryAfterSeconds int `json:"retryAfterSeconds"`
}

const (
	reviewVersion = "admission.k8s.io/v1"
	reviewKind    = "AdmissionReview"

	create = "CREATE"
	update = "UPDATE"

	ephemeralContainers = "ephemeralcontainers"
)

// readReview returns the request of a review, with its pods. An error means that this is no review of a pod, which a
// configuration of the chart never sends.
func readReview(body []byte) (*request, error) {
	var v review
	var no notPodError
	if err := json.Unmarshal(body, &v); errors.As(err, &no) {
		return nil, fmt.Errorf("oldObject or object: %w", no)
	} else if err != nil {
		return nil, fmt.Errorf("the body is no AdmissionReview: %w", err)
	}
	if v.APIVersion != reviewVersion || v.Kind != reviewKind {
		return nil, fmt.Errorf("the body is apiVersion %q, kind %q; want %s, %s", v.APIVersion, v.Kind, reviewVersion, reviewKind)
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
		return nil, fmt.Errorf("the request is about resource %q %q %q, subresource %q, kind %q; the rules of the webhook are for v1 pods and pods/ephemeralcontainers",
			r.Resource.Group, r.Resource.Version, r.Resource.Resource, r.SubResource, r.Kind.Kind)
	case r.Operation != create && r.Operation != update:
		return nil, fmt.Errorf("the operation is %q; the rules of the webhook are for CREATE and UPDATE", r.Operation)
	case r.Namespace == "":
		return nil, fmt.Errorf("the request has no namespace")
	}
	if r.Object == nil {
		return nil, errors.New("object: it is missing")
	}
	if r.Operation == update && r.OldObject == nil {
		return nil, errors.New("oldObject: it is missing")
	}
	return r, nil
}

// denial is a refusal of a pod, as the user sees it.
type denial struct {
	code    int
	reason  string
	message string
	cause   error // for the log: it may name addresses that are no business of users
}

func notFound(format string, args ...any) *denial {
	return &denial{code: http.StatusNotFound, reason: "NotFound", message: fmt.Sprintf(format, args...)}
}

func forbidden(format string, args ...any) *denial {
	return &denial{code: http.StatusForbidden, reason: "Forbidden", message: fmt.Sprintf(format, args...)}
}

func (d *denial) response() *response {
	s := &status{Code: d.code, Reason: d.reason, Message: d.message}
	if d.code == http.StatusServiceUnavailable {
		// The API server makes a Retry-After of it, upon which client-go, and so kubectl, tries again by itself.
		s.Details = &details{RetryAfterSeconds: 1}
	}
	return &response{Status: s, Cause: d.cause}
}
