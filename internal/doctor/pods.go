package doctor

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/ccgrkc/ccgrkc/internal/credspec"
	"github.com/ccgrkc/ccgrkc/internal/inventory"
	"github.com/ccgrkc/ccgrkc/internal/verify"
)

// pods: each pod that is to take on a gMSA has its credential spec, is on a node that may serve it, and runs.
func pods(o *Objects) []Finding {
	var found []Finding
	for i := range o.Users {
		pod := &o.Users[i]
		object := fmt.Sprintf("pod %s/%s", pod.Namespace, pod.Name)
		for _, u := range userSpecs(pod) {
			found = append(found, o.contents(object, pod, u)...)
		}
		found = append(found, o.placement(object, pod)...)
		if f, ok := o.stuck(object, pod); ok {
			found = append(found, f)
		}
	}
	return found
}

// contents looks at what a pod names and at what was copied into it.
func (o *Objects) contents(object string, pod *corev1.Pod, u userSpec) []Finding {
	recreate := command("kubectl", "delete", "pod", pod.Name, "--namespace", pod.Namespace)
	named := o.spec(u.name)
	if u.contents == "" {
		if u.name != "" && named == nil && o.Read[ReadSpecs] {
			return []Finding{{Severity: Error, Code: "credential-spec-not-found", Object: object, order: orderPods,
				Text:     fmt.Sprintf("%s names the GMSACredentialSpec %s, which does not exist", u.where, u.name),
				Remedy:   "Make it, or correct the pod's template.",
				Commands: []string{"kubectl get gmsacredentialspecs"}}}
		}
		return []Finding{{Severity: Error, Code: "credential-spec-not-copied", Object: object, order: orderPods,
			Text:     fmt.Sprintf("%s names the GMSACredentialSpec %s, and no webhook copied its contents into gmsaCredentialSpec: it runs without the gMSA", u.where, u.name),
			Remedy:   "See that a gMSA webhook is installed and covers this namespace (label windows.k8s.io/disabled=true keeps it away), then make the pod anew.",
			Commands: []string{command("kubectl", "get", "namespace", pod.Namespace, "--show-labels"), recreate}}}
	}
	docs, err := credspec.Read([]byte(u.contents))
	if err != nil || len(docs) != 1 {
		return []Finding{{Severity: Error, Code: "credential-spec-invalid", Object: object, order: orderPods,
			Text: fmt.Sprintf("the gmsaCredentialSpec of %s is no credential spec", u.where), Remedy: "Name a GMSACredentialSpec instead (gmsaCredentialSpecName).", Commands: []string{recreate}}}
	}
	var found []Finding
	switch {
	case u.name == "" || named == nil:
		// What is in a GMSACredentialSpec is told there.
		if f, ok := specFinding(object, docs[0].Problems, Error); ok {
			f.order = orderPods
			f.Text = fmt.Sprintf("the gmsaCredentialSpec of %s: %s", u.where, f.Text)
			found = append(found, f)
		}
		if ref, ours := inputOf(docs[0].Spec); ours && o.sawReleases(ref.Namespace) && o.releaseOf(ref) == nil {
			found = append(found, Finding{Severity: Error, Code: "release-not-found", Object: object, order: orderPods,
				Text:   fmt.Sprintf("the plugin input %s of %s names no release", ref, u.where),
				Remedy: "Correct it, or install a release for this account.", Commands: []string{verify.InstallCommand(ref)}})
		}
	case string(docs[0].Spec.JSON()) != string(named.Document.Spec.JSON()):
		found = append(found, Finding{Severity: Warning, Code: "credential-spec-changed", Object: object, order: orderPods,
			Text:   fmt.Sprintf("%s has the contents that GMSACredentialSpec %s had when the pod was made; it has been changed since", u.where, u.name),
			Remedy: "Make the pod anew, so that it gets the present ones.", Commands: []string{recreate}})
	}
	return found
}

// inputs are the releases that a pod needs.
func (o *Objects) inputs(pod *corev1.Pod) []inventory.Release {
	var releases []inventory.Release
	for _, u := range userSpecs(pod) {
		var spec credspec.Spec
		if docs, err := credspec.Read([]byte(u.contents)); u.contents != "" && err == nil && len(docs) == 1 {
			spec = docs[0].Spec
		} else if named := o.spec(u.name); named != nil {
			spec = named.Document.Spec
		}
		if ref, ours := inputOf(spec); ours {
			if r := o.releaseOf(ref); r != nil && !slices.ContainsFunc(releases, func(x inventory.Release) bool { return x.String() == r.String() }) {
				releases = append(releases, *r)
			}
		}
	}
	return releases
}

// placement: the pod's node is one that the account's release selects, and has its pod.
func (o *Objects) placement(object string, pod *corev1.Pod) []Finding {
	if pod.Spec.NodeName == "" {
		return nil
	}
	var node *corev1.Node
	for i := range o.Nodes {
		if o.Nodes[i].Name == pod.Spec.NodeName {
			node = &o.Nodes[i]
		}
	}
	if node == nil {
		return nil
	}
	var found []Finding
	for _, r := range o.inputs(pod) {
		spec := r.DaemonSet.Spec.Template.Spec
		why := inventory.OutsideSelector(spec, node)
		if why == "" {
			continue // what else keeps the provider away is told of the release
		}
		found = append(found, Finding{Severity: Error, Code: "node-outside-selector", Object: object, order: orderPods,
			Text:   fmt.Sprintf("it is on node %s, which the release %s leaves out: %s", node.Name, r, why),
			Remedy: "Give the pod the nodeSelector " + inventory.SelectorText(spec.NodeSelector) + ", or label the node if it may have the credentials.",
			Commands: []string{command("kubectl", "get", "nodes", "--selector", inventory.SelectorText(spec.NodeSelector)),
				command("kubectl", "get", "pod", pod.Name, "--namespace", pod.Namespace, "-o", "jsonpath={.spec.nodeSelector}")}})
	}
	return found
}

// A container that is being made for longer than this is stuck: an image is pulled, and its first start takes a minute or two.
const creatingLong = 3 * time.Minute

// What a kubelet says of a container that it could not make or start.
var startReasons = []string{"RunContainerError", "CreateContainerError", "CreateContainerConfigError", "CreatePodSandboxError", "StartError"}

// hookReason is of a container that waits because its hook failed. Its message is what the hook printed.
const hookReason = "PostStartHookError"

// stuck finds why a pod does not run, where the gMSA can be the reason. What a program printed is never the answer: findings are sent to others.
func (o *Objects) stuck(object string, pod *corev1.Pod) (Finding, bool) {
	if pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed || inventory.Ready(pod) {
		return Finding{}, false
	}
	reason, message := "", ""
	for _, s := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		for _, state := range []corev1.ContainerState{s.State, s.LastTerminationState} {
			switch {
			case state.Waiting != nil && (slices.Contains(startReasons, state.Waiting.Reason) || state.Waiting.Reason != hookReason && speaksOfGMSA(state.Waiting.Message)):
				reason, message = state.Waiting.Reason, state.Waiting.Message
			// What a program itself said last is its own affair.
			case message == "" && state.Terminated != nil && slices.Contains(startReasons, state.Terminated.Reason):
				reason, message = state.Terminated.Reason, state.Terminated.Message
			}
		}
	}
	if message == "" {
		for _, e := range o.Events {
			if e.InvolvedObject.Kind == "Pod" && e.InvolvedObject.Namespace == pod.Namespace && e.InvolvedObject.Name == pod.Name &&
				e.Type == corev1.EventTypeWarning && slices.Contains(told, e.Reason) && (e.Reason == "FailedCreatePodSandBox" || speaksOfGMSA(e.Message)) {
				reason, message = e.Reason, e.Message
			}
		}
	}
	if message == "" {
		return o.waits(object, pod)
	}
	f := Finding{Severity: Error, Code: "pod-does-not-start", Object: object, order: orderStuck,
		Text: strings.TrimSuffix(reason+": "+message, ": "), Remedy: "Its events tell more.", Commands: o.podCommands(pod)}
	if meanings := Decode(message); len(meanings) > 0 {
		for _, m := range meanings {
			f.Text += fmt.Sprintf("\n%s (%s): %s", m.Code, m.Name, m.Text)
		}
		f.Code, f.Remedy = meanings[0].Name, fill(meanings[0].Remedy, o.names(pod))
	}
	return f, true
}

// waits is for a pod of which nobody says anything.
func (o *Objects) waits(object string, pod *corev1.Pod) (Finding, bool) {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse && c.Reason == corev1.PodReasonUnschedulable {
			return Finding{Severity: Error, Code: "pod-unschedulable", Object: object, order: orderStuck, Text: "no node takes it: " + c.Message,
				Remedy:   "It needs a Windows node that it selects and whose taints it tolerates.",
				Commands: o.podCommands(pod)[:1]}, true
		}
	}
	if pod.Spec.NodeName == "" || o.Now.Sub(pod.CreationTimestamp.Time) < creatingLong {
		return Finding{}, false
	}
	for _, s := range pod.Status.ContainerStatuses {
		if w := s.State.Waiting; w != nil && w.Reason == "ContainerCreating" {
			return Finding{Severity: Error, Code: "pod-creating", Object: object, order: orderStuck,
				Text:   fmt.Sprintf("container %s has been in ContainerCreating for %s, and no event says why", s.Name, o.Now.Sub(pod.CreationTimestamp.Time).Round(time.Minute)),
				Remedy: "Events are kept for an hour: make the pod anew, and look at them at once.", Commands: o.podCommands(pod)}, true
		}
	}
	return Finding{}, false
}

func speaksOfGMSA(message string) bool {
	lower := strings.ToLower(message)
	for _, sign := range []string{"hcs::", "hcsshim::", "winapi error", "ccg", "gmsa", "credential spec", "credentialspec"} {
		if strings.Contains(lower, sign) {
			return true
		}
	}
	return false
}

// podCommands are what to look at next.
func (o *Objects) podCommands(pod *corev1.Pod) []string {
	commands := []string{command("kubectl", "describe", "pod", pod.Name, "--namespace", pod.Namespace)}
	if name := o.names(pod)["credential spec"]; name != "" {
		verify := []string{"verify", name}
		if pod.Spec.NodeName != "" {
			verify = append(verify, "--node", pod.Spec.NodeName)
		}
		commands = append(commands, o.Program+" "+command(verify...))
	} else if pod.Spec.NodeName != "" {
		commands = append(commands, o.Program+" "+command("doctor", "node", pod.Spec.NodeName))
	}
	return commands
}

// names are what a remedy speaks of in angle brackets.
func (o *Objects) names(pod *corev1.Pod) map[string]string {
	names := map[string]string{"node": pod.Spec.NodeName}
	for _, u := range userSpecs(pod) {
		if u.name != "" {
			names["name"], names["credential spec"] = u.name, u.name
		}
	}
	if releases := o.inputs(pod); len(releases) > 0 {
		r := releases[0]
		names["namespace"], names["secret"], names["serviceaccount"] = r.Namespace, r.Secret, r.DaemonSet.Spec.Template.Spec.ServiceAccountName
		if provider := o.podOf(r, pod.Spec.NodeName); provider != nil {
			names["pod"] = provider.Name
		}
	}
	return names
}
