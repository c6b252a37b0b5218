package uninstall

import (
	"slices"
	"strings"
)

// The parts of DaemonSet (apps/v1) and Pod (v1) that are read here, named as in the Kubernetes API reference.

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

// node is where the pod runs. A pod that no scheduler has bound yet carries the node's name where the DaemonSet controller
// wrote it.
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
	return "a node that pod " + p.Metadata.Name + " is not bound to yet"
}

// notReady says why the pod is not ready, and nothing if it is.
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
	return "pod " + p.Metadata.Name + " was not started; is the node down?"
}

// oneLine shortens what a container said to its end, where the error stands.
func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	const most = 300
	if len(s) > most {
		s = "... " + strings.ToValidUTF8(s[len(s)-most:], "")
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
