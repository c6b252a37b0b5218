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

// pods checks that each pod that uses a gMSA has its credential spec, is on a node that its release selects, and runs.
func pods(o *Objects) []Finding {
	var found []Finding
	for i := range o.GMSAPods {
		pod := &o.GMSAPods[i]
		object := fmt.Sprintf("pod %s/%s", pod.Namespace, pod.Name)
		for _, u := range gmsaRefs(pod) {
			found = append(found, o.credentialSpec(object, pod, u)...)
		}
		found = append(found, o.placement(object, pod)...)
		if f, ok := o.notStarting(object, pod); ok {
			found = append(found, f)
		}
	}
	return found
}

// credentialSpec checks a reference in a pod and the inline credential spec.
func (o *Objects) credentialSpec(object string, pod *corev1.Pod, u gmsaRef) []Finding {
	recreate := command("kubectl", "delete", "pod", pod.Name, "--namespace", pod.Namespace)
	named := o.spec(u.name)
	if u.inline == "" {
		if u.name != "" && named == nil && o.Read[ReadSpecs] {
			return []Finding{{
				Severity: Error,
				Code:     "credential-spec-not-found",
				Object:   object,
				Text:     fmt.Sprintf("%s references the GMSACredentialSpec %s, which does not exist", u.where, u.name),
				Remedy:   "Create the GMSACredentialSpec, or correct the pod's template.",
				Commands: []string{"kubectl get gmsacredentialspecs"},
				order:    orderPods,
			}}
		}
		return []Finding{{
			Severity: Error,
			Code:     "credential-spec-not-copied",
			Object:   object,
			Text: fmt.Sprintf("%s references the GMSACredentialSpec %s, but no webhook populated gmsaCredentialSpec. "+
				"It runs without the gMSA", u.where, u.name),
			Remedy: "Check that a gMSA webhook is installed. It ignores namespaces with the label " +
				"windows.k8s.io/disabled=true. " +
				"Then recreate the pod.",
			Commands: []string{command("kubectl", "get", "namespace", pod.Namespace, "--show-labels"), recreate},
			order:    orderPods,
		}}
	}
	docs, err := credspec.Read([]byte(u.inline))
	if err != nil || len(docs) != 1 {
		return []Finding{{
			Severity: Error,
			Code:     "credential-spec-invalid",
			Object:   object,
			Text:     fmt.Sprintf("the gmsaCredentialSpec of %s is not a valid credential spec", u.where),
			Remedy:   "Reference a GMSACredentialSpec instead (gmsaCredentialSpecName).",
			Commands: []string{recreate},
			order:    orderPods,
		}}
	}
	var found []Finding
	switch {
	case u.name == "" || named == nil:
		// The rule credentialSpecs checks GMSACredentialSpecs.
		if f, ok := specFinding(object, docs[0].Problems, Error); ok {
			f.order = orderPods
			f.Text = fmt.Sprintf("the gmsaCredentialSpec of %s: %s", u.where, f.Text)
			found = append(found, f)
		}
		if ref, ours := inputOf(docs[0].Spec); ours && o.knowsReleases(ref.Namespace) && o.releaseOf(ref) == nil {
			found = append(found, Finding{
				Severity: Error,
				Code:     "release-not-found",
				Object:   object,
				Text:     fmt.Sprintf("no release matches the plugin input %s of %s", ref, u.where),
				Remedy:   "Correct the plugin input, or install a release for this account.",
				Commands: []string{verify.InstallCommand(ref)},
				order:    orderPods,
			})
		}
	case string(docs[0].Spec.JSON()) != string(named.Document.Spec.JSON()):
		found = append(found, Finding{
			Severity: Warning,
			Code:     "credential-spec-changed",
			Object:   object,
			Text: fmt.Sprintf("the GMSACredentialSpec %s has changed since the pod was created. %s has the old content",
				u.name, u.where),
			Remedy:   "Recreate the pod.",
			Commands: []string{recreate},
			order:    orderPods,
		})
	}
	return found
}

// releasesFor returns the releases that a pod requires.
func (o *Objects) releasesFor(pod *corev1.Pod) []inventory.Release {
	var releases []inventory.Release
	for _, u := range gmsaRefs(pod) {
		var spec credspec.Spec
		if docs, err := credspec.Read([]byte(u.inline)); u.inline != "" && err == nil && len(docs) == 1 {
			spec = docs[0].Spec
		} else if named := o.spec(u.name); named != nil {
			spec = named.Document.Spec
		}
		if ref, ours := inputOf(spec); ours {
			isNew := func(r *inventory.Release) bool {
				return !slices.ContainsFunc(releases,
					func(x inventory.Release) bool { return x.String() == r.String() })
			}
			if r := o.releaseOf(ref); r != nil && isNew(r) {
				releases = append(releases, *r)
			}
		}
	}
	return releases
}

// placement checks that the account's release selects the pod's node.
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
	for _, r := range o.releasesFor(pod) {
		spec := r.DaemonSet.Spec.Template.Spec
		reason := inventory.OutsideSelector(spec, node)
		if reason == "" {
			continue // the rule daemonSets reports other reasons
		}
		selector := inventory.SelectorText(spec.NodeSelector)
		found = append(found, Finding{
			Severity: Error,
			Code:     "node-outside-selector",
			Object:   object,
			Text: fmt.Sprintf("the pod is on node %s, which the release %s does not select: %s", node.Name, r,
				reason),
			Remedy: "Add the nodeSelector " + selector +
				" to the pod, or label the node if it is allowed to have the " +
				"credentials.",
			Commands: []string{
				command("kubectl", "get", "nodes", "--selector", selector),
				command("kubectl", "get", "pod", pod.Name, "--namespace", pod.Namespace, "-o",
					"jsonpath={.spec.nodeSelector}"),
			},
			order: orderPods,
		})
	}
	return found
}

// maxCreating is the longest normal time in ContainerCreating. To pull an image and start it for the first time takes a
// minute or two.
const maxCreating = 3 * time.Minute

// startReasons are the kubelet's reasons for a container that it could not create or start.
var startReasons = []string{
	"RunContainerError", "CreateContainerError", "CreateContainerConfigError", "CreatePodSandboxError", "StartError",
}

// hookReason is the kubelet's reason for a container whose hook failed. Its message is the hook's output.
const hookReason = "PostStartHookError"

// notStarting finds why a pod does not run, if the gMSA can be the reason. A finding never contains the output of a
// program: users send findings to others.
func (o *Objects) notStarting(object string, pod *corev1.Pod) (Finding, bool) {
	if pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed || inventory.Ready(pod) {
		return Finding{}, false
	}
	reason, message := "", ""
	for _, s := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		for _, state := range []corev1.ContainerState{s.State, s.LastTerminationState} {
			switch {
			case state.Waiting != nil && (slices.Contains(startReasons, state.Waiting.Reason) ||
				state.Waiting.Reason != hookReason && mentionsGMSA(state.Waiting.Message)):
				reason, message = state.Waiting.Reason, state.Waiting.Message
			// With other reasons, the message is the program's output.
			case message == "" && state.Terminated != nil && slices.Contains(startReasons, state.Terminated.Reason):
				reason, message = state.Terminated.Reason, state.Terminated.Message
			}
		}
	}
	if message == "" {
		for _, e := range o.Events {
			ref := e.InvolvedObject
			if ref.Kind != "Pod" || ref.Namespace != pod.Namespace || ref.Name != pod.Name {
				continue
			}
			if e.Type == corev1.EventTypeWarning && slices.Contains(kubernetesReasons, e.Reason) &&
				(e.Reason == "FailedCreatePodSandBox" || mentionsGMSA(e.Message)) {
				reason, message = e.Reason, e.Message
			}
		}
	}
	if message == "" {
		return o.pending(object, pod)
	}
	f := Finding{
		Severity: Error,
		Code:     "pod-does-not-start",
		Object:   object,
		Text:     strings.TrimSuffix(reason+": "+message, ": "),
		Remedy:   "Check the pod's events.",
		Commands: o.podCommands(pod),
		order:    orderNotStarting,
	}
	if meanings := Decode(message); len(meanings) > 0 {
		for _, m := range meanings {
			f.Text += fmt.Sprintf("; %s (%s): %s", m.Code, m.Name, m.Text)
		}
		f.Code, f.Remedy = meanings[0].Name, replacePlaceholders(meanings[0].Remedy, o.names(pod))
	}
	return f, true
}

// pending checks a pod without an event that explains its state.
func (o *Objects) pending(object string, pod *corev1.Pod) (Finding, bool) {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse &&
			c.Reason == corev1.PodReasonUnschedulable {
			return Finding{
				Severity: Error,
				Code:     "pod-unschedulable",
				Object:   object,
				Text:     "the pod fits on no node: " + c.Message,
				Remedy: "The pod requires a Windows node that matches its nodeSelector and whose taints it " +
					"tolerates.",
				Commands: o.podCommands(pod)[:1],
				order:    orderNotStarting,
			}, true
		}
	}
	if pod.Spec.NodeName == "" || o.Now.Sub(pod.CreationTimestamp.Time) < maxCreating {
		return Finding{}, false
	}
	for _, s := range pod.Status.ContainerStatuses {
		if w := s.State.Waiting; w != nil && w.Reason == "ContainerCreating" {
			return Finding{
				Severity: Error,
				Code:     "pod-creating",
				Object:   object,
				Text: fmt.Sprintf("container %s has been in ContainerCreating for %s, but no event explains it",
					s.Name, o.Now.Sub(pod.CreationTimestamp.Time).Round(time.Minute)),
				Remedy:   "Kubernetes deletes events after an hour. Recreate the pod and check its events immediately.",
				Commands: o.podCommands(pod),
				order:    orderNotStarting,
			}, true
		}
	}
	return Finding{}, false
}

func mentionsGMSA(message string) bool {
	lower := strings.ToLower(message)
	for _, word := range []string{"hcs::", "hcsshim::", "winapi error", "ccg", "gmsa", "credential spec",
		"credentialspec"} {
		if strings.Contains(lower, word) {
			return true
		}
	}
	return false
}

// podCommands returns the next commands for a pod that does not start.
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

// names returns the values for the placeholders in a remedy.
func (o *Objects) names(pod *corev1.Pod) map[string]string {
	names := map[string]string{"node": pod.Spec.NodeName}
	for _, u := range gmsaRefs(pod) {
		if u.name != "" {
			names["name"], names["credential spec"] = u.name, u.name
		}
	}
	if releases := o.releasesFor(pod); len(releases) > 0 {
		r := releases[0]
		names["namespace"], names["secret"], names["serviceaccount"] = r.Namespace, r.Secret,
			r.DaemonSet.Spec.Template.Spec.ServiceAccountName
		if provider := o.podOf(r, pod.Spec.NodeName); provider != nil {
			names["pod"] = provider.Name
		}
	}
	return names
}
