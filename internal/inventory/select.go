package inventory

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"
)

// OutsideSelector returns why a pod of this template does not select a node: its nodeSelector or its required node
// affinity. It returns "" if the pod selects the node.
func OutsideSelector(t corev1.PodSpec, n *corev1.Node) string {
	for _, key := range slices.Sorted(maps.Keys(t.NodeSelector)) {
		required := key + "=" + t.NodeSelector[key]
		switch value, ok := n.Labels[key]; {
		case !ok:
			return fmt.Sprintf("nodeSelector requires %s, but the node does not have this label", required)
		case value != t.NodeSelector[key]:
			return fmt.Sprintf("nodeSelector requires %s, but the node has %s=%s", required, key, value)
		}
	}
	if ok, err := nodeaffinity.NewRequiredNodeAffinity(nil, t.Affinity).Match(n); err != nil || !ok {
		return "the node matches no term of the required node affinity"
	}
	return ""
}

// daemonTolerations are the tolerations that the DaemonSet controller adds to a pod with hostNetwork.
var daemonTolerations = []corev1.Toleration{
	{Key: corev1.TaintNodeNotReady, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute},
	{Key: corev1.TaintNodeUnreachable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute},
	{Key: corev1.TaintNodeDiskPressure, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule},
	{Key: corev1.TaintNodeMemoryPressure, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule},
	{Key: corev1.TaintNodePIDPressure, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule},
	{Key: corev1.TaintNodeUnschedulable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule},
	{Key: corev1.TaintNodeNetworkUnavailable, Operator: corev1.TolerationOpExists,
		Effect: corev1.TaintEffectNoSchedule},
}

// UntoleratedTaint returns the taint that prevents a DaemonSet's pod from running on a node, or nil.
func UntoleratedTaint(t corev1.PodSpec, n *corev1.Node) *corev1.Taint {
	for i := range n.Spec.Taints {
		taint := &n.Spec.Taints[i]
		tolerates := func(o corev1.Toleration) bool { return o.ToleratesTaint(klog.Background(), taint, true) }
		if taint.Effect != corev1.TaintEffectPreferNoSchedule &&
			!slices.ContainsFunc(slices.Concat(t.Tolerations, daemonTolerations), tolerates) {
			return taint
		}
	}
	return nil
}

// SelectorText returns a nodeSelector in kubectl's form.
func SelectorText(selector map[string]string) string {
	var parts []string
	for _, key := range slices.Sorted(maps.Keys(selector)) {
		parts = append(parts, key+"="+selector[key])
	}
	return strings.Join(parts, ",")
}
