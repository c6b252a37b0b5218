package admission

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/credspec"
	"github.com/ccgrkc/ccgrkc/internal/kube"
)

// maxSpecs limits the different GMSACredentialSpecs of one pod. Each needs up to four requests to the API server. The
// policy of the chart has the same limit.
const maxSpecs = 8

// maxRefs limits the number of places in one pod, the pod itself and its containers, that specify a gMSA.
const maxRefs = 256

// validateRefs denies a pod with an invalid name or too many references, without a request to the API server. The API
// server calls mutating webhooks before it validates the names itself.
func validateRefs(refs []credSpecRef) *denial {
	for _, ref := range refs {
		if ref.name == "" {
			continue
		}
		if err := credential.ValidateName(ref.name); err != nil {
			return &denial{
				code:   http.StatusUnprocessableEntity,
				reason: "Invalid",
				message: fmt.Sprintf("%s: gmsaCredentialSpecName %.80q is not a valid name; use lower-case letters, "+
					"digits, hyphens and dots, at most 253 characters", ref.where, ref.name),
			}
		}
	}
	if len(refs) > maxRefs {
		return forbidden("the pod specifies a gMSA in %d places; the maximum is %d; set gmsaCredentialSpecName once "+
			"in the pod's securityContext, which applies to all containers that do not set it", len(refs), maxRefs)
	}
	if n := countSpecs(refs); n > maxSpecs {
		return forbidden("the pod references %d different GMSACredentialSpecs; the maximum is %d; use several pods",
			n, maxSpecs)
	}
	return nil
}

// checked is the result of the checks of one GMSACredentialSpec.
type checked struct {
	content []byte // the credential spec as compact JSON
	err     error  // from reading the object

	canUse       bool
	canUseReason string // the API server's reason for its answer
	canUseErr    error

	reported bool // the pod has the warning of this GMSACredentialSpec
}

// check reads a GMSACredentialSpec and checks the use permission at the same time.
func (h *handler) check(ctx context.Context, namespace, serviceAccount, name string) *checked {
	c := &checked{}
	var wg sync.WaitGroup
	wg.Go(func() { c.content, c.err = h.Cluster.CredentialSpec(ctx, name) })
	c.canUse, c.canUseReason, c.canUseErr = h.Cluster.CanUse(ctx, namespace, serviceAccount, name)
	wg.Wait()
	return c
}

// validate denies a pod that uses a gMSA without permission, or with an inline credential spec that differs from the
// object.
func (h *handler) validate(ctx context.Context, r *request) *response {
	if r.Operation == update {
		if d := denyChange(r.OldObject, r.Object); d != nil {
			return d.response(r)
		}
	}
	refs := r.newRefs()
	if d := validateRefs(refs); d != nil {
		return d.response(r)
	}
	for _, ref := range refs {
		switch {
		case ref.name == "":
			return forbidden("%s: gmsaCredentialSpec is set without gmsaCredentialSpecName; set "+
				"gmsaCredentialSpecName to a GMSACredentialSpec that the pod's ServiceAccount can use, and remove "+
				"gmsaCredentialSpec, which the webhook populates", ref.where).response(r)
		case ref.inline == "":
			return forbidden("%s: GMSACredentialSpec %s was not populated, so the container would have no gMSA; check "+
				"that the MutatingWebhookConfiguration of rancher-gmsa-webhook exists, and that no other webhook sets "+
				"gmsaCredentialSpecName later (webhooks run in the order of their configurations' names); then create "+
				"the pod again", ref.where, ref.name).response(r)
		}
	}
	account := r.Object.serviceAccount()
	specs := map[string]*checked{}
	answer := &response{Allowed: true}
	for _, ref := range refs {
		s := specs[ref.name]
		if s == nil {
			// One after the other, so that the first error ends the requests.
			s = h.check(ctx, r.Namespace, account, ref.name)
			specs[ref.name] = s
		}
		switch {
		case s.err != nil:
			return denyUnreadable(ref, s.err).response(r)
		case s.canUseErr != nil:
			return unavailable(s.canUseErr, "%s: could not check whether ServiceAccount %s/%s can use "+
				"GMSACredentialSpec %s",
				ref.where, r.Namespace, account, ref.name).response(r)
		case !s.canUse:
			return denyUse(ref, r.Namespace, account, s.canUseReason).response(r)
		}
		// After the permission check, so that only a user with the permission can find out the content by trial and
		// error.
		if err := sameSpec(ref.inline, s.content); err != nil {
			return forbidden("%s: gmsaCredentialSpec %v; remove it, and the webhook populates it from "+
				"GMSACredentialSpec %s; if that object changed just now, create the pod again",
				ref.where, err, ref.name).response(r)
		}
		if s.reported {
			continue
		}
		s.reported = true
		problem, reason := h.pluginProblem(ctx, ref.name, s.content)
		if problem == "" {
			continue
		}
		text := ref.where + ": " + problem
		if h.PluginInput == Deny {
			return forbidden("%s", text).response(r)
		}
		answer.Warnings = append(answer.Warnings, text)
		h.Metrics.warned(reason)
	}
	return answer
}

// denyChange denies an update of the gMSA fields of an existing pod.
func denyChange(before, after *pod) *denial {
	if from, to := before.serviceAccount(), after.serviceAccount(); from != to && len(after.setRefs()) > 0 {
		return forbidden("the ServiceAccount of a pod that uses a gMSA cannot change from %s to %s; create a new pod",
			from, to)
	}
	refs := map[string]credSpecRef{}
	for _, ref := range after.credSpecRefs() {
		refs[ref.where] = ref
	}
	for _, from := range before.credSpecRefs() {
		to, exists := refs[from.where]
		switch {
		case !exists && !from.isEmpty():
			return forbidden("%s: a container that uses a gMSA cannot be removed from its pod; create a new pod",
				from.where)
		case exists && to.name != from.name:
			return forbidden("%s: gmsaCredentialSpecName cannot change from %q to %q in an existing pod; create a new "+
				"pod",
				from.where, from.name, to.name)
		case exists && to.inline != from.inline:
			return forbidden("%s: gmsaCredentialSpec cannot change in an existing pod; create a new pod", from.where)
		}
	}
	return nil
}

func denyUse(ref credSpecRef, namespace, account, reason string) *denial {
	if reason != "" {
		reason = " (" + reason + ")"
	}
	return forbidden("%s: ServiceAccount %s/%s cannot use GMSACredentialSpec %s: it needs the verb use on "+
		"gmsacredentialspecs.%s%s. To grant it: echo '%s' | kubectl apply -f -",
		ref.where, namespace, account, ref.name,
		group, reason, credspec.UseRBACManifest(ref.name, namespace, account))
}

func denyUnreadable(ref credSpecRef, err error) *denial {
	switch {
	case errors.Is(err, errNoCredSpec):
		return forbidden("%s: GMSACredentialSpec %s has no field credspec; create the object again with gmsactl "+
			"credspec create",
			ref.where, ref.name)
	case errors.Is(err, kube.ErrNoResource):
		return notFound(ref.name, "%s: GMSACredentialSpec %s does not exist: the cluster has no "+
			"CustomResourceDefinition gmsacredentialspecs.%s; the chart rancher-gmsa-webhook installs it "+
			"(value crd.install)",
			ref.where, ref.name, group)
	case kube.IsNotFound(err):
		return notFound(ref.name, "%s: GMSACredentialSpec %s does not exist; list the existing ones with kubectl get "+
			"gmsacredentialspecs, or create it with gmsactl credspec create", ref.where, ref.name)
	}
	return unavailable(err, "%s: could not read GMSACredentialSpec %s", ref.where, ref.name)
}

// unavailable returns the denial for a failed request of the webhook itself. If the API server did not answer, the
// denial asks the user to try again. If the API server denied the request, an administrator must restore the
// permission.
func unavailable(err error, format string, args ...any) *denial {
	d := &denial{
		code:    http.StatusServiceUnavailable,
		reason:  "ServiceUnavailable",
		message: fmt.Sprintf(format, args...),
		cause:   err,
	}
	var status *kube.StatusError
	switch {
	case !errors.As(err, &status):
		d.message += "; try again: the API server did not answer the webhook; see the webhook's log"
	case status.Code == http.StatusUnauthorized || status.Code == http.StatusForbidden:
		d.code, d.reason = http.StatusInternalServerError, "InternalError"
		d.message += ": the webhook lacks a permission; restore it with helm upgrade of rancher-gmsa-webhook: " +
			status.Error()
	default:
		d.message += "; try again: " + status.Error()
	}
	return d
}

// sameSpec compares the JSON values, so that white space and the order of keys do not matter. inline is the JSON in the
// pod. want is the JSON in the GMSACredentialSpec.
func sameSpec(inline string, want []byte) error {
	if inline == string(want) {
		return nil // as mutate populated it
	}
	wantValue, tokens, err := exactJSON(want, math.MaxInt)
	if err != nil {
		return err
	}
	// JSON with many more tokens can't be equal. The limit saves memory: 3 MiB of JSON can become 60 MiB of values.
	value, _, err := exactJSON([]byte(inline), 2*tokens+100)
	if err != nil {
		return err
	}
	if !reflect.DeepEqual(value, wantValue) {
		return errDiffers
	}
	return nil
}

// Errors of sameSpec. Messages contain the name of the field before them.
var (
	errDiffers = errors.New("differs from the GMSACredentialSpec")
	errNotJSON = errors.New("is not valid JSON")
)

// exactJSON decodes JSON and returns the number of its tokens. It rejects duplicate keys: some decoders use the first
// value and others the last, so Windows could read another value than the one compared here. If the JSON has more than
// limit tokens, exactJSON returns errDiffers.
func exactJSON(text []byte, limit int) (v any, tokens int, err error) {
	// Unlike Decoder.Token, Valid limits the depth and rejects text after the value.
	if !json.Valid(text) {
		return nil, 0, errNotJSON
	}
	d := &exact{json.NewDecoder(bytes.NewReader(text)), limit}
	d.UseNumber()
	v, err = d.value()
	return v, limit - d.left, err
}

type exact struct {
	*json.Decoder
	left int // remaining tokens
}

func (d *exact) token() (json.Token, error) {
	if d.left--; d.left < 0 {
		return nil, errDiffers
	}
	return d.Token()
}

func (d *exact) value() (any, error) {
	t, err := d.token()
	if err != nil {
		return nil, err
	}
	switch t := t.(type) {
	case string:
		if strings.ContainsRune(t, utf8.RuneError) {
			return nil, errors.New("contains an invalid Unicode character")
		}
	case json.Delim:
		if t == '[' {
			return d.list()
		}
		return d.object()
	}
	return t, nil
}

func (d *exact) list() (any, error) {
	list := []any{}
	for d.More() {
		v, err := d.value()
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	_, err := d.token() // the closing bracket
	return list, err
}

func (d *exact) object() (any, error) {
	m := map[string]any{}
	for d.More() {
		key, err := d.value()
		if err != nil {
			return nil, err
		}
		k, ok := key.(string)
		if !ok {
			return nil, errNotJSON
		}
		if _, twice := m[k]; twice {
			return nil, fmt.Errorf("contains the key %q twice in one object", k)
		}
		if m[k], err = d.value(); err != nil {
			return nil, err
		}
	}
	_, err := d.token() // the closing brace
	return m, err
}
