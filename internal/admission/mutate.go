package admission

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"strings"

	"github.com/ccgrkc/ccgrkc/internal/kube"
)

// maxAdded limits the JSON that mutate adds to a pod, in bytes. Concurrent requests hold it in memory several times. A
// credential spec has about 1 KiB.
const maxAdded = 256 << 10

// mutate populates the pod. It checks no permission, because a patch has no effect if validate denies the pod.
func (h *handler) mutate(ctx context.Context, r *request) *response {
	var refs []credSpecRef
	for _, ref := range r.newRefs() {
		if ref.name != "" && ref.inline == "" {
			refs = append(refs, ref)
		}
	}
	if d := validateRefs(refs); d != nil {
		return d.response(r)
	}
	var patch kube.JSONPatch
	added := 0
	encoded := map[string]json.RawMessage{} // credential specs as JSON strings, by name
	for _, ref := range refs {
		if encoded[ref.name] == nil {
			// One after the other, so that the first error is the last request.
			content, err := h.Cluster.CredentialSpec(ctx, ref.name)
			if err != nil {
				return denyUnreadable(ref, err).response(r)
			}
			if encoded[ref.name], err = json.Marshal(string(content)); err != nil {
				panic(err) // a string always encodes
			}
		}
		value := encoded[ref.name]
		if added += len(value); added > maxAdded {
			return forbidden("%s: GMSACredentialSpec %s would make the webhook add more than %d KiB to the pod; "+
				"reference it once in the pod's securityContext instead of in each container",
				ref.where, ref.name, maxAdded>>10).response(r)
		}
		// windowsOptions exists, because it contains the name.
		patch = append(patch, kube.JSONPatchOperation{
			Op:    "add",
			Path:  ref.pointer + "/gmsaCredentialSpec",
			Value: value,
		})
	}
	if h.RandomHostname && r.Operation == create && needsHostname(r.Object) {
		patch = append(patch, kube.JSONPatchOperation{Op: "add", Path: "/spec/hostname", Value: randomHostname()})
	}
	return &response{Allowed: true, Operations: patch, Added: added}
}

// newRefs returns the references that the request adds to the cluster: all of a new pod, and for an existing pod those
// of new containers, which can only be ephemeral ones.
func (r *request) newRefs() []credSpecRef {
	if r.Operation == create {
		return r.Object.setRefs()
	}
	existing := map[string]bool{}
	for _, ref := range r.OldObject.credSpecRefs() {
		existing[ref.where] = true
	}
	var refs []credSpecRef
	for _, ref := range r.Object.setRefs() {
		if !existing[ref.where] {
			refs = append(refs, ref)
		}
	}
	return refs
}

// needsHostname: containers of one gMSA that have the same computer name in the domain overwrite each other's session
// key. Windows derives this name from the first 15 characters of the host name, which is often equal in all pods of a
// Deployment. A pod in the host network has the host's name. Subdomain and setHostnameAsFQDN have no effect: the host
// name is the first label of the resulting name.
func needsHostname(p *pod) bool {
	return p.Spec.Hostname == "" && p.Spec.HostnameOverride == nil && !p.Spec.HostNetwork && len(p.setRefs()) > 0
}

// randomHostname has 15 characters, the maximum of a NetBIOS name.
func randomHostname() string {
	// rand.Text returns 26 base32 characters with 130 bits.
	return "gmsa-" + strings.ToLower(rand.Text()[:10])
}
