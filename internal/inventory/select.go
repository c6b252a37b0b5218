package inventory

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
)

// OutsideSelector says why a pod of this template is not meant for a node: its nodeSelector or its required affinity does
// not have it. "" means that it is meant for it.
func OutsideSelector(t corev1.PodSpec, n *corev1.Node) string {
	for _, key := range slices.Sorted(maps.Keys(t.NodeSelector)) {
		if want := t.NodeSelector[key]; n.Labels[key] != want {
			if value, ok := n.Labels[key]; ok {
				return fmt.Sprintf("nodeSelector wants %s=%s, and the node has %s=%s", key, want, key, value)
			}
			return fmt.Sprintf("nodeSelector wants %s=%s, and the node has no such label", key, want)
		}
	}
	if t.Affinity == nil || t.Affinity.NodeAffinity == nil || t.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return ""
	}
	for _, term := range t.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
		if matches(term, n) {
			return ""
		}
	}
	return "no term of its required node affinity has the node"
}

// matches follows the scheduler: a term without any expression matches nothing.
func matches(term corev1.NodeSelectorTerm, n *corev1.Node) bool {
	if len(term.MatchExpressions) == 0 && len(term.MatchFields) == 0 {
		return false
	}
	return all(term.MatchExpressions, labels.Set(n.Labels)) && all(term.MatchFields, labels.Set{metav1.ObjectNameField: n.Name})
}

func all(expressions []corev1.NodeSelectorRequirement, set labels.Set) bool {
	operators := map[corev1.NodeSelectorOperator]selection.Operator{
		corev1.NodeSelectorOpIn: selection.In, corev1.NodeSelectorOpNotIn: selection.NotIn, corev1.NodeSelectorOpExists: selection.Exists,
		corev1.NodeSelectorOpDoesNotExist: selection.DoesNotExist, corev1.NodeSelectorOpGt: selection.GreaterThan, corev1.NodeSelectorOpLt: selection.LessThan,
	}
	for _, e := range expressions {
		// A field's name is no label's, which NewRequirement would refuse, so the key is replaced.
		values, key := set, e.Key
		if key == metav1.ObjectNameField {
			key = "name"
			values = labels.Set{key: set[metav1.ObjectNameField]}
		}
		r, err := labels.NewRequirement(key, operators[e.Operator], e.Values)
		if err != nil || !r.Matches(values) {
			return false
		}
	}
	return true
}

// What the DaemonSet controller tolerates of its own accord.
var daemonTolerations = []corev1.Toleration{
	{Key: corev1.TaintNodeNotReady, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute},
	{Key: corev1.TaintNodeUnreachable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute},
	{Key: corev1.TaintNodeDiskPressure, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule},
	{Key: corev1.TaintNodeMemoryPressure, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule},
	{Key: corev1.TaintNodePIDPressure, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule},
	{Key: corev1.TaintNodeUnschedulable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule},
	{Key: corev1.TaintNodeNetworkUnavailable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule}, // with hostNetwork
}

// Repelled returns the taint that keeps a DaemonSet's pod from a node, or nil.
func Repelled(t corev1.PodSpec, n *corev1.Node) *corev1.Taint {
	for i := range n.Spec.Taints {
		taint := &n.Spec.Taints[i]
		if taint.Effect == corev1.TaintEffectPreferNoSchedule {
			continue
		}
		if !slices.ContainsFunc(slices.Concat(t.Tolerations, daemonTolerations), func(o corev1.Toleration) bool { return tolerates(o, taint) }) {
			return taint
		}
	}
	return nil
}

func tolerates(o corev1.Toleration, taint *corev1.Taint) bool {
	if o.Effect != "" && o.Effect != taint.Effect || o.Key != "" && o.Key != taint.Key {
		return false
	}
	switch o.Operator {
	case corev1.TolerationOpExists:
		return true
	case "", corev1.TolerationOpEqual:
		return o.Value == taint.Value
	case corev1.TolerationOpLt, corev1.TolerationOpGt:
		have, err1 := strconv.ParseInt(taint.Value, 10, 64)
		than, err2 := strconv.ParseInt(o.Value, 10, 64)
		return err1 == nil && err2 == nil && (o.Operator == corev1.TolerationOpLt && have < than || o.Operator == corev1.TolerationOpGt && have > than)
	}
	return false
}

// SelectorText is a nodeSelector in kubectl's form.
func SelectorText(selector map[string]string) string {
	var parts []string
	for _, key := range slices.Sorted(maps.Keys(selector)) {
		parts = append(parts, key+"="+selector[key])
	}
	return strings.Join(parts, ",")
}
