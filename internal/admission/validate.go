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

// maxSpecs bounds the different GMSACredentialSpecs of one pod: each is three questions to the API server.
const maxSpecs = 64

// maxPlaces bounds the places of one pod that say something.
const maxPlaces = 256

// cannotBe refuses what is not worth a question to the API server. It has not checked a pod's names itself when it asks to mutate.
func cannotBe(places []place) *denial {
	for _, p := range places {
		if p.name == "" {
			continue
		}
		if err := credential.ValidateName(p.name); err != nil {
			return &denial{code: http.StatusUnprocessableEntity, reason: "Invalid", message: fmt.Sprintf(
				"%s: gmsaCredentialSpecName %.80q is no name that a GMSACredentialSpec can have: want parts of lower-case letters, digits and hyphens, with dots between, 253 characters at most", p.where, p.name)}
		}
	}
	if len(places) <= maxPlaces {
		return nil
	}
	return forbidden("the pod says which gMSA it is in %d places, and may in %d; name the GMSACredentialSpec once in the pod's securityContext, which counts for all containers that name none", len(places), maxPlaces)
}

// spec is a GMSACredentialSpec as it is now, or why it cannot be told.
type spec struct {
	contents []byte
	err      error

	text json.RawMessage // only to mutate: contents as a text in JSON, made once

	// Only asked to validate:
	allowed       bool
	reason        string // the API server's
	mayErr        error
	problem, kind string // pluginProblem
}

// read reads the GMSACredentialSpecs of places, each once.
func (h *handler) read(ctx context.Context, places []place) (map[string]*spec, *denial) {
	return h.ask(places, func(name string, s *spec) []func() {
		return []func(){func() { s.contents, s.err = h.Cluster.CredentialSpec(ctx, name) }}
	})
}

// check reads them, asks whether the ServiceAccount may use them, and whether they can work.
func (h *handler) check(ctx context.Context, namespace, serviceAccount string, places []place) (map[string]*spec, *denial) {
	return h.ask(places, func(name string, s *spec) []func() {
		return []func(){
			func() {
				if s.contents, s.err = h.Cluster.CredentialSpec(ctx, name); s.err == nil {
					s.problem, s.kind = h.pluginProblem(ctx, name, s.contents)
				}
			},
			func() { s.allowed, s.reason, s.mayErr = h.Cluster.MayUse(ctx, namespace, serviceAccount, name) },
		}
	})
}

// ask runs the questions of all places, eight at a time.
func (h *handler) ask(places []place, questions func(string, *spec) []func()) (map[string]*spec, *denial) {
	list := names(places)
	if len(list) > maxSpecs {
		return nil, forbidden("the pod names %d different GMSACredentialSpecs; %d at most", len(list), maxSpecs)
	}
	specs := map[string]*spec{}
	var all []func()
	for _, name := range list {
		specs[name] = &spec{}
		all = append(all, questions(name, specs[name])...)
	}
	var wg sync.WaitGroup
	free := make(chan struct{}, 8)
	for _, q := range all {
		free <- struct{}{}
		wg.Go(func() {
			defer func() { <-free }()
			q()
		})
	}
	wg.Wait()
	return specs, nil
}

// validate refuses a pod that uses a gMSA otherwise than a GMSACredentialSpec and its ServiceAccount's rights have it.
func (h *handler) validate(ctx context.Context, r *request) *response {
	if r.Operation == update {
		if d := changed(r.OldObject, r.Object); d != nil {
			return d.response()
		}
	}
	places := r.added()
	if d := cannotBe(places); d != nil {
		return d.response()
	}
	for _, p := range places {
		switch {
		case p.name == "":
			return forbidden("%s: gmsaCredentialSpec is set without gmsaCredentialSpecName; set gmsaCredentialSpecName to a GMSACredentialSpec that the pod's ServiceAccount may use, and leave gmsaCredentialSpec out: it is filled in", p.where).response()
		case p.contents == "":
			return forbidden("%s: the contents of GMSACredentialSpec %s were not filled in, without which the container would have no gMSA; see whether the MutatingWebhookConfiguration of rancher-gmsa-webhook exists, and whether another webhook added the name after that was asked: webhooks are asked in the order of their configurations' names; then create the pod again", p.where, p.name).response()
		}
	}
	account := r.Object.serviceAccount()
	specs, refusal := h.check(ctx, r.Namespace, account, places)
	if refusal != nil {
		return refusal.response()
	}
	answer := &response{Allowed: true}
	for _, p := range places {
		s := specs[p.name]
		switch {
		case s.err != nil:
			return cannotRead(p, s.err).response()
		case s.mayErr != nil:
			return unavailable(s.mayErr, "%s: whether ServiceAccount %s/%s may use GMSACredentialSpec %s could not be asked", p.where, r.Namespace, account, p.name).response()
		case !s.allowed:
			return mayNot(p, r.Namespace, account, s.reason).response()
		}
		// After the right to use: nobody else learns by trying what a GMSACredentialSpec says.
		if err := sameContents(p.contents, s.contents); err != nil {
			return forbidden("%s: gmsaCredentialSpec %v; leave it out, and the contents of GMSACredentialSpec %s are filled in; if that was changed just now, create the pod again", p.where, err, p.name).response()
		}
		if s.problem == "" {
			continue
		}
		text := p.where + ": " + s.problem
		if h.PluginInput == Deny {
			return forbidden("%s", text).response()
		}
		answer.Warnings = append(answer.Warnings, text)
		h.Metrics.warned(s.kind)
		s.problem = "" // once is enough
	}
	return answer
}

// changed refuses an update of what a pod was admitted with.
func changed(old, now *pod) *denial {
	if was, is := old.serviceAccount(), now.serviceAccount(); was != is && len(now.used()) > 0 {
		return forbidden("the ServiceAccount of a pod with a gMSA does not change from %s to %s; create a new pod", was, is)
	}
	is := map[string]place{}
	for _, p := range now.places() {
		is[p.where] = p
	}
	for _, was := range old.places() {
		p, there := is[was.where]
		switch {
		case !there && !was.isEmpty():
			return forbidden("%s: it has a gMSA and does not go from its pod; create a new pod", was.where)
		case there && p.name != was.name:
			return forbidden("%s: gmsaCredentialSpecName does not change from %q to %q in a pod that exists; create a new pod", was.where, was.name, p.name)
		case there && p.contents != was.contents:
			return forbidden("%s: gmsaCredentialSpec does not change in a pod that exists; create a new pod", was.where)
		}
	}
	return nil
}

func mayNot(p place, namespace, account, reason string) *denial {
	because := ""
	if reason != "" {
		because = " (" + reason + ")"
	}
	return forbidden("%s: ServiceAccount %s/%s may not use GMSACredentialSpec %s: it lacks the verb use on gmsacredentialspecs.%s%s. To grant it: echo '%s' | kubectl apply -f -",
		p.where, namespace, account, p.name, group, because, credspec.UseRBACManifest(p.name, namespace, account))
}

func cannotRead(p place, err error) *denial {
	var refusal *kube.StatusError
	switch {
	case errors.Is(err, errNoContents):
		return forbidden("%s: GMSACredentialSpec %s has no credspec; gmsactl credspec create %s makes one of what Active Directory says", p.where, p.name, p.name)
	case errors.As(err, &refusal) && refusal.Code == http.StatusNotFound && refusal.Details.Name == "":
		return notFound("%s: there is no GMSACredentialSpec %s, because the cluster has no CustomResourceDefinition gmsacredentialspecs.%s; the chart rancher-gmsa-webhook brings it (value crd.install)", p.where, p.name, group)
	case kube.IsNotFound(err):
		return notFound("%s: there is no GMSACredentialSpec %s; kubectl get gmsacredentialspecs shows which there are, gmsactl credspec create makes one", p.where, p.name)
	}
	return unavailable(err, "%s: GMSACredentialSpec %s could not be read", p.where, p.name)
}

// unavailable is no verdict on the pod: the API server did not answer, which passes, or refused the webhook itself, which an
// administrator must mend.
func unavailable(err error, format string, args ...any) *denial {
	d := &denial{code: http.StatusServiceUnavailable, reason: "ServiceUnavailable", message: fmt.Sprintf(format, args...) + ", try again: ", cause: err}
	var said *kube.StatusError
	switch {
	case !errors.As(err, &said):
		d.message += "the API server did not answer the webhook, whose log says more"
	case said.Code == http.StatusUnauthorized || said.Code == http.StatusForbidden:
		d.code, d.reason = http.StatusInternalServerError, "InternalError"
		d.message = fmt.Sprintf(format, args...) + ": the webhook's own rights are missing, helm upgrade of rancher-gmsa-webhook restores them: " + said.Error()
	default:
		d.message += said.Error()
	}
	return d
}

// sameContents compares as values, so that the order of keys and white space do not matter. contents is the user's, want the
// API server's.
func sameContents(contents string, want []byte) error {
	if contents == string(want) {
		return nil // what mutate has written
	}
	should, tokens, err := exactJSON(want, math.MaxInt)
	if err != nil {
		return err
	}
	// What has many more is something else, and need not be held in memory to say so: a text of 3 MiB can become 60.
	is, _, err := exactJSON([]byte(contents), 2*tokens+100)
	if err != nil {
		return err
	}
	if !reflect.DeepEqual(is, should) {
		return errDiffers
	}
	return nil
}

var errDiffers = errors.New("is not what the GMSACredentialSpec says")

// exactJSON reads what has one meaning only, and tells of how many tokens it is. Of a key that stands twice one reader takes the
// first value and another the last: what is compared here would not be what Windows reads. With more tokens than most it is
// errDiffers.
func exactJSON(text []byte, most int) (v any, tokens int, err error) {
	// It also bounds the depth, as the decoder's tokens do not, and sees what follows the value.
	if !json.Valid(text) {
		return nil, 0, errors.New("is not JSON")
	}
	d := &exact{json.NewDecoder(bytes.NewReader(text)), most}
	d.UseNumber()
	v, err = d.value()
	return v, most - d.left, err
}

type exact struct {
	*json.Decoder
	left int // tokens that may come
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
			return nil, errors.New("holds a character that is none in Unicode")
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
	_, err := d.token() // the bracket
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
			return nil, errors.New("is not JSON")
		}
		if _, twice := m[k]; twice {
			return nil, fmt.Errorf("has the key %q twice in one place", k)
		}
		if m[k], err = d.value(); err != nil {
			return nil, err
		}
	}
	_, err := d.token() // the brace
	return m, err
}
