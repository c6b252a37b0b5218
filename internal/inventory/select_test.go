package inventory

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func affinity(terms ...corev1.NodeSelectorTerm) corev1.PodSpec {
	return corev1.PodSpec{Affinity: &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
		RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: terms},
	}}}
}

func expression(key string, operator corev1.NodeSelectorOperator, values ...string) corev1.NodeSelectorTerm {
	return corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: key, Operator: operator,
		Values: values}}}
}

func TestOutsideSelectorMatchesLikeTheScheduler(t *testing.T) {
	t.Parallel()
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "win-1",
		Labels: map[string]string{"kubernetes.io/os": "windows", "gmsa": "web", "size": "5"}}}
	field := corev1.NodeSelectorTerm{MatchFields: []corev1.NodeSelectorRequirement{{Key: "metadata.name",
		Operator: corev1.NodeSelectorOpIn, Values: []string{"win-1"}}}}
	for name, c := range map[string]struct {
		spec corev1.PodSpec
		why  string
	}{
		"nothing": {corev1.PodSpec{}, ""},
		"both labels": {corev1.PodSpec{NodeSelector: map[string]string{"kubernetes.io/os": "windows",
			"gmsa": "web"}}, ""},
		"another value": {corev1.PodSpec{NodeSelector: map[string]string{"gmsa": "shop"}},
			"gmsa=shop, but the node has gmsa=web"},
		"no such label":  {corev1.PodSpec{NodeSelector: map[string]string{"zone": "a"}}, "does not have this label"},
		"in":             {affinity(expression("gmsa", corev1.NodeSelectorOpIn, "web", "shop")), ""},
		"not in":         {affinity(expression("gmsa", corev1.NodeSelectorOpNotIn, "web")), "affinity"},
		"not in, absent": {affinity(expression("zone", corev1.NodeSelectorOpNotIn, "a")), ""},
		"exists":         {affinity(expression("gmsa", corev1.NodeSelectorOpExists)), ""},
		"does not exist": {affinity(expression("gmsa", corev1.NodeSelectorOpDoesNotExist)), "affinity"},
		"greater":        {affinity(expression("size", corev1.NodeSelectorOpGt, "4")), ""},
		"less":           {affinity(expression("size", corev1.NodeSelectorOpLt, "4")), "affinity"},
		"one of two": {affinity(expression("zone", corev1.NodeSelectorOpExists),
			expression("gmsa", corev1.NodeSelectorOpExists)), ""},
		"by name":       {affinity(field), ""},
		"an empty term": {affinity(corev1.NodeSelectorTerm{}), "affinity"},
	} {
		if got := OutsideSelector(c.spec, n); (got == "") != (c.why == "") || !strings.Contains(got, c.why) {
			t.Errorf("%s: %q, want %q", name, got, c.why)
		}
	}
}

func TestUntoleratedTaintMatchesLikeTheDaemonSetController(t *testing.T) {
	t.Parallel()
	taint := func(key, value string, effect corev1.TaintEffect) *corev1.Node {
		return &corev1.Node{Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: key, Value: value, Effect: effect}}}}
	}
	tolerates := func(o ...corev1.Toleration) corev1.PodSpec { return corev1.PodSpec{Tolerations: o} }
	for name, c := range map[string]struct {
		spec     corev1.PodSpec
		node     *corev1.Node
		repelled bool
	}{
		"no taint": {corev1.PodSpec{}, &corev1.Node{}, false},
		"a taint":  {corev1.PodSpec{}, taint("os", "windows", corev1.TaintEffectNoSchedule), true},
		"equal": {tolerates(corev1.Toleration{Key: "os", Value: "windows"}),
			taint("os", "windows", corev1.TaintEffectNoSchedule), false},
		"another value": {tolerates(corev1.Toleration{Key: "os", Value: "linux"}),
			taint("os", "windows", corev1.TaintEffectNoSchedule), true},
		"another effect": {tolerates(corev1.Toleration{Key: "os", Operator: corev1.TolerationOpExists,
			Effect: corev1.TaintEffectNoSchedule}), taint("os", "", corev1.TaintEffectNoExecute), true},
		"all": {tolerates(corev1.Toleration{Operator: corev1.TolerationOpExists}),
			taint("os", "windows", corev1.TaintEffectNoExecute), false},
		"preferred": {corev1.PodSpec{}, taint("os", "", corev1.TaintEffectPreferNoSchedule), false},
		"cordoned": {corev1.PodSpec{},
			taint(corev1.TaintNodeUnschedulable, "", corev1.TaintEffectNoSchedule), false},
		"not ready": {corev1.PodSpec{}, taint(corev1.TaintNodeNotReady, "", corev1.TaintEffectNoExecute),
			false},
		"less than": {tolerates(corev1.Toleration{Key: "cost", Operator: corev1.TolerationOpLt, Value: "5"}),
			taint("cost", "4", corev1.TaintEffectNoSchedule), false},
		"not less": {tolerates(corev1.Toleration{Key: "cost", Operator: corev1.TolerationOpLt, Value: "4"}),
			taint("cost", "4", corev1.TaintEffectNoSchedule), true},
		"an unknown operator": {tolerates(corev1.Toleration{Key: "os", Operator: "Like"}),
			taint("os", "", corev1.TaintEffectNoSchedule), true},
		"numbers that are not": {tolerates(corev1.Toleration{Key: "os", Operator: corev1.TolerationOpGt, Value: "x"}),
			taint("os", "y", corev1.TaintEffectNoSchedule), true},
	} {
		if got := UntoleratedTaint(c.spec, c.node); (got != nil) != c.repelled {
			t.Errorf("%s: %v", name, got)
		}
	}
}
