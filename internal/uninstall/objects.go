package uninstall

import (
	"slices"
	"strings"
)

// The fields of DaemonSet (apps/v1) and Pod (v1) that this package reads.

type daemonSet struct {
	Metadata struct {
		Generation int64 `json:"generation"`
	} `json:"metadata"`
	Status struct {
		ObservedGeneration     int64 `json:"observedGeneration"`
		DesiredNumberScheduled int   `json:"desiredNumberScheduled"`
		NumberReady            int   `json:"numberReady"`
	} `json:"status"`
}

type pod struct {
	Metadata struct {
		Name              string  `json:"name"`
		DeletionTimestamp *string `json:"deletionTimestamp"`
	} `json:"metadata"`
	Spec struct {
		NodeName string `json:"nodeName"`
		Affinity struct {
			NodeAffinity struct {
				Required struct {
					Terms []struct {
						Fields []struct {
							Values []string `json:"values"`
						} `json:"matchFields"`
					} `json:"nodeSelectorTerms"`
				} `json:"requiredDuringSchedulingIgnoredDuringExecution"`
			} `json:"nodeAffinity"`
		} `json:"affinity"`
	} `json:"spec"`
	Status struct {
		Conditions []struct {
			Type   string `json:"type"`
			Status string `json:"status"`
		} `json:"conditions"`
		Init       []containerStatus `json:"initContainerStatuses"`
		Containers []containerStatus `json:"containerStatuses"`
	} `json:"status"`
}

type containerStatus struct {
	State     containerState `json:"state"`
	LastState containerState `json:"lastState"`
}

type containerState struct {
	Waiting    *reason `json:"waiting"`
	Terminated *reason `json:"terminated"`
}

type reason struct {
	ExitCode int    `json:"exitCode"`
	Reason   string `json:"reason"`
	Message  string `json:"message"`
}

// node returns the name of the pod's node. Before the scheduler binds the pod, the name is in the node affinity that
// the DaemonSet controller wrote.
func (p *pod) node() string {
	if p.Spec.NodeName != "" {
		return p.Spec.NodeName
	}
	for _, term := range p.Spec.Affinity.NodeAffinity.Required.Terms {
		for _, field := range term.Fields {
			if len(field.Values) == 1 {
				return field.Values[0]
			}
		}
	}
	return "unknown node of pod " + p.Metadata.Name
}

// notReady returns why the pod is not ready, or "" if it is ready.
func (p *pod) notReady() string {
	ready := false
	for _, c := range p.Status.Conditions {
		ready = ready || c.Type == "Ready" && c.Status == "True"
	}
	if ready && p.Metadata.DeletionTimestamp == nil {
		return ""
	}
	for _, s := range slices.Concat(p.Status.Init, p.Status.Containers) {
		for _, why := range []*reason{s.State.Terminated, s.LastState.Terminated, s.State.Waiting} {
			if why != nil && (why.ExitCode != 0 || why.Message != "") {
				return strings.TrimSpace("pod " + p.Metadata.Name + ": " + why.Reason + " " + oneLine(why.Message))
			}
		}
	}
	return "pod " + p.Metadata.Name + " has not started; check that the node is running"
}

// oneLine shortens a container's message from the start, because the error is at the end.
func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	const maxLength = 300
	if len(s) > maxLength {
		s = "... " + strings.ToValidUTF8(s[len(s)-maxLength:], "")
	}
	return s
}

func nodeList(pods []pod) string {
	names := make([]string, len(pods))
	for i := range pods {
		names[i] = pods[i].node()
	}
	slices.Sort(names)
	return strings.Join(slices.Compact(names), ", ")
}
