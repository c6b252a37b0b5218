package admission

import (
	"encoding/json"
	"fmt"
)

// The fields of Pod (v1) that the webhook reads. The API server sends objects that it has decoded, so no key is
// duplicated or in another case.

type pod struct {
	Metadata struct {
		Name         string `json:"name"`
		GenerateName string `json:"generateName"`
	} `json:"metadata"`
	Spec struct {
		ServiceAccountName  string           `json:"serviceAccountName"`
		Hostname            string           `json:"hostname"`
		HostnameOverride    *string          `json:"hostnameOverride"`
		HostNetwork         bool             `json:"hostNetwork"`
		SecurityContext     *securityContext `json:"securityContext"`
		InitContainers      []container      `json:"initContainers"`
		Containers          []container      `json:"containers"`
		EphemeralContainers []container      `json:"ephemeralContainers"`
	} `json:"spec"`
}

type container struct {
	Name            string           `json:"name"`
	SecurityContext *securityContext `json:"securityContext"`
}

type securityContext struct {
	WindowsOptions *struct {
		Name   string `json:"gmsaCredentialSpecName"`
		Inline string `json:"gmsaCredentialSpec"`
	} `json:"windowsOptions"`
}

// UnmarshalJSON keeps only the fields above. Its error is a notPodError.
func (p *pod) UnmarshalJSON(object []byte) error {
	type plain pod
	var read plain
	if err := json.Unmarshal(object, &read); err != nil {
		return notPodError{err}
	}
	*p = pod(read)
	return nil
}

type notPodError struct{ err error }

func (e notPodError) Error() string { return "not a pod: " + e.err.Error() }

// credSpecRef is the pair of gMSA fields in the pod's securityContext or in a container's. A container that has either
// field does not inherit the pod's.
type credSpecRef struct {
	where   string // for messages, unique in the pod: "container web"
	pointer string // JSON pointer of windowsOptions
	name    string // credential spec name
	inline  string // inline credential spec, as JSON: the only field that the kubelet reads
}

func (r credSpecRef) isEmpty() bool { return r.name == "" && r.inline == "" }

// credSpecRefs returns the references of the pod and of all its containers, including empty ones.
func (p *pod) credSpecRefs() []credSpecRef {
	refs := []credSpecRef{newCredSpecRef("the pod's securityContext", "/spec", p.Spec.SecurityContext)}
	for _, list := range []struct {
		kind, pointer string
		containers    []container
	}{
		{"init container", "/spec/initContainers", p.Spec.InitContainers},
		{"container", "/spec/containers", p.Spec.Containers},
		{"ephemeral container", "/spec/ephemeralContainers", p.Spec.EphemeralContainers},
	} {
		for i, c := range list.containers {
			pointer := fmt.Sprintf("%s/%d", list.pointer, i)
			refs = append(refs, newCredSpecRef(list.kind+" "+c.Name, pointer, c.SecurityContext))
		}
	}
	return refs
}

func newCredSpecRef(where, pointer string, s *securityContext) credSpecRef {
	r := credSpecRef{where: where, pointer: pointer + "/securityContext/windowsOptions"}
	if s != nil && s.WindowsOptions != nil {
		r.name, r.inline = s.WindowsOptions.Name, s.WindowsOptions.Inline
	}
	return r
}

// setRefs returns the references that are not empty.
func (p *pod) setRefs() []credSpecRef {
	var set []credSpecRef
	for _, r := range p.credSpecRefs() {
		if !r.isEmpty() {
			set = append(set, r)
		}
	}
	return set
}

func (p *pod) serviceAccount() string {
	if p.Spec.ServiceAccountName == "" {
		return "default"
	}
	return p.Spec.ServiceAccountName
}

// displayName is metadata.generateName for a controller's pod, which gets its name after admission.
func (p *pod) displayName() string {
	if p.Metadata.Name == "" {
		return p.Metadata.GenerateName
	}
	return p.Metadata.Name
}

// countSpecs returns the number of different credential spec names in refs.
func countSpecs(refs []credSpecRef) int {
	names := map[string]bool{}
	for _, r := range refs {
		if r.name != "" {
			names[r.name] = true
		}
	}
	return len(names)
}
