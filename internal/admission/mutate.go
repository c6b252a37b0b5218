package admission

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"strings"

	"github.com/ccgrkc/ccgrkc/internal/kube"
)

// maxAdded bounds what is added to one pod, in bytes: a body to the API server has at most 3 MiB, and thousands of containers
// with one large credential spec would be a thousand times of it.
const maxAdded = 3 << 20

// mutate copies the contents of GMSACredentialSpecs to where they are named. It checks no right: a patch goes nowhere if
// validate refuses the pod.
func (h *handler) mutate(ctx context.Context, r *request) *response {
	var wanted []place
	for _, p := range r.added() {
		if p.name != "" && p.contents == "" {
			wanted = append(wanted, p)
		}
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
		if added += len(s.contents); added > maxAdded {
			return forbidden("%s: with the contents of GMSACredentialSpec %s the pod would be larger than the API server takes; name it once in the pod's securityContext instead of in each container", p.where, p.name).response()
		}
		// windowsOptions exists: the name is in it.
		patch = append(patch, kube.JSONPatchOperation{Op: "add", Path: p.pointer + "/gmsaCredentialSpec", Value: string(s.contents)})
	}
	if h.RandomHostname && r.Operation == create && needsHostname(r.pod) {
		patch = append(patch, kube.JSONPatchOperation{Op: "add", Path: "/spec/hostname", Value: randomHostname()})
	}
	if len(patch) == 0 {
		return &response{Allowed: true}
	}
	data, err := json.Marshal(patch)
	if err != nil {
		panic(err) // texts always encode
	}
	return &response{Allowed: true, Patch: data, PatchType: "JSONPatch"}
}

// added are the places that the request brings into the cluster: all of a new pod; of a pod that exists, those of containers
// that it had not, which only ephemeral ones can be.
func (r *request) added() []place {
	if r.Operation == create {
		return r.pod.used()
	}
	had := map[string]bool{}
	for _, p := range r.old.places() {
		had[p.where] = true
	}
	var added []place
	for _, p := range r.pod.used() {
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
