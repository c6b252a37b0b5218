package admission

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"strings"

	"github.com/ccgrkc/ccgrkc/internal/kube"
)

// maxAdded bounds what is added to one pod, in bytes of JSON: as many reviews as there may be at once hold it several times over. A
// credential spec has about 1 KiB.
const maxAdded = 256 << 10

// mutate copies the contents of GMSACredentialSpecs to where they are named. It checks no right: a patch goes nowhere if
// validate refuses the pod.
func (h *handler) mutate(ctx context.Context, r *request) *response {
	var wanted []place
	for _, p := range r.added() {
		if p.name != "" && p.contents == "" {
			wanted = append(wanted, p)
		}
	}
	if d := cannotBe(wanted); d != nil {
		return d.response()
	}
	specs, refusal := h.read(ctx, wanted)
	if refusal != nil {
		return refusal.response()
	}
	var patch kube.JSONPatch
	added := 0
	for _, p := range wanted {
		s := specs[p.name]
		if s.err != nil {
			return cannotRead(p, s.err).response()
		}
		if s.text == nil {
			var err error
			if s.text, err = json.Marshal(string(s.contents)); err != nil {
				panic(err) // texts always encode
			}
		}
		if added += len(s.text); added > maxAdded {
			return forbidden("%s: with the contents of GMSACredentialSpec %s more than %d KiB would be added to the pod; name it once in the pod's securityContext instead of in each container", p.where, p.name, maxAdded>>10).response()
		}
		// windowsOptions exists: the name is in it.
		patch = append(patch, kube.JSONPatchOperation{Op: "add", Path: p.pointer + "/gmsaCredentialSpec", Value: s.text})
	}
	if h.RandomHostname && r.Operation == create && needsHostname(r.Object) {
		patch = append(patch, kube.JSONPatchOperation{Op: "add", Path: "/spec/hostname", Value: randomHostname()})
	}
	return &response{Allowed: true, Operations: patch, Added: added}
}

// added are the places that the request brings into the cluster: all of a new pod; of a pod that exists, those of containers
// that it had not, which only ephemeral ones can be.
func (r *request) added() []place {
	if r.Operation == create {
		return r.Object.used()
	}
	had := map[string]bool{}
	for _, p := range r.OldObject.places() {
		had[p.where] = true
	}
	var added []place
	for _, p := range r.Object.used() {
		if !had[p.where] {
			added = append(added, p)
		}
	}
	return added
}

// needsHostname: the containers of one gMSA that have the same name towards the domain take each other's session key, and
// Windows makes that name of the first 15 characters of the host name, which is often the same in all pods of a Deployment. A pod
// in the host's network has the host's name whatever it says. A subdomain or setHostnameAsFQDN changes nothing: the host
// name is the first label of the longer one.
func needsHostname(p *pod) bool {
	return p.Spec.Hostname == "" && p.Spec.HostnameOverride == nil && !p.Spec.HostNetwork && len(p.used()) > 0
}

// randomHostname has 15 characters, the most of a NetBIOS name.
func randomHostname() string {
	// A text of base 32 has 26 characters and 130 bits.
	return "gmsa-" + strings.ToLower(rand.Text()[:10])
}
