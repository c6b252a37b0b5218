package admission

import (
	"encoding/json"
	"fmt"
)

// The parts of Pod (v1) that are read here. The API server sends what it has read itself, so that no key stands twice or in
// another case.

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
		Name     string `json:"gmsaCredentialSpecName"`
		Contents string `json:"gmsaCredentialSpec"`
	} `json:"windowsOptions"`
}

// UnmarshalJSON holds nothing of what is not read here, and tells what is no pod.
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

func (e notPodError) Error() string { return "it is no pod: " + e.err.Error() }

// place is where a pod can say which gMSA it is: in its own securityContext and in that of each container. A container that
// says something there takes nothing of what the pod says.
type place struct {
	where    string // for people, and what tells the places of a pod apart: "container web"
	pointer  string // JSON pointer of its windowsOptions
	name     string // of a GMSACredentialSpec
	contents string // of it, as JSON: the only thing that the kubelet reads
}

func (p place) isEmpty() bool { return p.name == "" && p.contents == "" }

func (p *pod) places() []place {
	all := []place{newPlace("the pod's securityContext", "/spec", p.Spec.SecurityContext)}
	for _, list := range []struct {
		kind, pointer string
		containers    []container
	}{
		{"init container", "/spec/initContainers", p.Spec.InitContainers},
		{"container", "/spec/containers", p.Spec.Containers},
		{"ephemeral container", "/spec/ephemeralContainers", p.Spec.EphemeralContainers},
	} {
		for i, c := range list.containers {
			all = append(all, newPlace(list.kind+" "+c.Name, fmt.Sprintf("%s/%d", list.pointer, i), c.SecurityContext))
		}
	}
	return all
}

func newPlace(where, pointer string, s *securityContext) place {
	p := place{where: where, pointer: pointer + "/securityContext/windowsOptions"}
	if s != nil && s.WindowsOptions != nil {
		p.name, p.contents = s.WindowsOptions.Name, s.WindowsOptions.Contents
	}
	return p
}

// used are the places that say something.
func (p *pod) used() []place {
	var used []place
	for _, at := range p.places() {
		if !at.isEmpty() {
			used = append(used, at)
		}
	}
	return used
}

func (p *pod) serviceAccount() string {
	if p.Spec.ServiceAccountName == "" {
		return "default"
	}
	return p.Spec.ServiceAccountName
}

// name is for the log: a pod that a controller makes has its name only after admission.
func (p *pod) name() string {
	if p.Metadata.Name == "" {
		return p.Metadata.GenerateName
	}
	return p.Metadata.Name
}

// names are the different GMSACredentialSpecs of places, in their order.
func names(places []place) []string {
	var list []string
	seen := map[string]bool{}
	for _, p := range places {
		if !seen[p.name] {
			seen[p.name] = true
			list = append(list, p.name)
		}
	}
	return list
}
