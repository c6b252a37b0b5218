package doctor

import (
	"archive/tar"
	"compress/gzip"
	"encoding/json"
	"io"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ccgrkc/ccgrkc/internal/escape"
)

// WriteBundle writes a .tgz with a report, as text and as JSON, and the objects that the report is based on. It copies
// listed fields only. Values of Secrets, environment variables, command lines and annotations are not among them.
func WriteBundle(w io.Writer, o *Objects, r *Report, text []byte) error {
	files := map[string]any{
		"report.json":                   r,
		"objects/releases.json":         releaseFacts(o),
		"objects/nodes.json":            mapAll(o.Nodes, nodeFacts),
		"objects/pods-of-releases.json": mapAll(o.Pods, podFacts),
		"objects/pods-with-gmsa.json":   mapAll(o.GMSAPods, podFacts),
		"objects/events.json":           mapAll(o.Events, eventFacts),
		"objects/secrets.json":          o.Secrets,
		"objects/certificates.json":     o.Certificates,
		"objects/credential-specs.json": o.Specs,
		"objects/webhooks.json":         o.Webhooks,
		"objects/uses.json":             o.Uses,
		"objects/node-checks.json":      o.NodeResults,
	}
	contents := map[string][]byte{"report.txt": text}
	for name, v := range files {
		content, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			return err
		}
		contents[name] = []byte(escape.Lines(string(content), escape.JSON) + "\n")
	}
	zip := gzip.NewWriter(w)
	archive := tar.NewWriter(zip)
	for _, name := range slices.Sorted(maps.Keys(contents)) {
		header := &tar.Header{
			Name:    "gmsactl-doctor/" + name,
			Mode:    0o600,
			Size:    int64(len(contents[name])),
			ModTime: o.Now.Truncate(time.Second),
			Format:  tar.FormatPAX,
		}
		if err := archive.WriteHeader(header); err != nil {
			return err
		}
		if _, err := archive.Write(contents[name]); err != nil {
			return err
		}
	}
	if err := archive.Close(); err != nil {
		return err
	}
	return zip.Close()
}

func mapAll[T any](list []T, facts func(*T) any) []any {
	all := make([]any, len(list))
	for i := range list {
		all[i] = facts(&list[i])
	}
	return all
}

// metadataFacts returns the metadata that identifies an object.
func metadataFacts(m metav1.ObjectMeta) map[string]any {
	return map[string]any{
		"namespace": m.Namespace,
		"name":      m.Name,
		"uid":       m.UID,
		"created":   m.CreationTimestamp,
		"deleted":   m.DeletionTimestamp,
		"labels":    m.Labels,
		"owners":    m.OwnerReferences,
	}
}

func releaseFacts(o *Objects) []any {
	var all []any
	for _, r := range o.Releases {
		template := r.DaemonSet.Spec.Template.Spec
		images := map[string]string{}
		for _, c := range template.Containers {
			images[c.Name] = c.Image
		}
		all = append(all, map[string]any{
			"release":        r.String(),
			"chart":          r.Chart,
			"version":        r.Version,
			"secret":         r.Secret,
			"runAs":          r.RunAs,
			"daemonSet":      metadataFacts(r.DaemonSet.ObjectMeta),
			"images":         images,
			"nodeSelector":   template.NodeSelector,
			"tolerations":    template.Tolerations,
			"affinity":       template.Affinity,
			"updateStrategy": r.DaemonSet.Spec.UpdateStrategy,
			"status":         r.DaemonSet.Status,
		})
	}
	return all
}

func nodeFacts(n *corev1.Node) any {
	return map[string]any{
		"node":          metadataFacts(n.ObjectMeta),
		"taints":        n.Spec.Taints,
		"unschedulable": n.Spec.Unschedulable,
		"conditions":    n.Status.Conditions,
		"info":          n.Status.NodeInfo,
	}
}

// statuses removes the output of programs and hooks, which can contain secrets.
func statuses(list []corev1.ContainerStatus) []corev1.ContainerStatus {
	list = slices.Clone(list)
	for i := range list {
		for _, state := range []*corev1.ContainerState{&list[i].State, &list[i].LastTerminationState} {
			if t := state.Terminated; t != nil && !slices.Contains(startReasons, t.Reason) {
				terminated := *t
				terminated.Message = ""
				state.Terminated = &terminated
			}
			if w := state.Waiting; w != nil && w.Reason == hookReason {
				state.Waiting = &corev1.ContainerStateWaiting{Reason: w.Reason}
			}
		}
	}
	return list
}

// kubernetesReasons are the reasons of events whose message Kubernetes writes. The message of a failed probe or hook is
// the program's output.
var kubernetesReasons = []string{
	"FailedCreate", "FailedCreatePodSandBox", "FailedScheduling", "FailedMount", "FailedDaemonPod", "Failed", "BackOff",
	"Scheduled", "Pulled", "Created", "Started", "Killing",
}

func podFacts(p *corev1.Pod) any {
	images := map[string]string{}
	for _, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
		images[c.Name] = c.Image
	}
	specs := []any{}
	for _, u := range gmsaRefs(p) {
		specs = append(specs, map[string]string{"of": u.where, "gmsaCredentialSpecName": u.name,
			"gmsaCredentialSpec": u.inline})
	}
	return map[string]any{
		"pod":                   metadataFacts(p.ObjectMeta),
		"node":                  p.Spec.NodeName,
		"serviceAccount":        serviceAccount(p),
		"images":                images,
		"credentialSpecs":       specs,
		"nodeSelector":          p.Spec.NodeSelector,
		"tolerations":           p.Spec.Tolerations,
		"phase":                 p.Status.Phase,
		"conditions":            p.Status.Conditions,
		"initContainerStatuses": statuses(p.Status.InitContainerStatuses),
		"containerStatuses":     statuses(p.Status.ContainerStatuses),
	}
}

func eventFacts(e *corev1.Event) any {
	message := e.Message
	if !slices.Contains(kubernetesReasons, e.Reason) {
		message = ""
	}
	return map[string]any{
		"object":  e.InvolvedObject,
		"type":    e.Type,
		"reason":  e.Reason,
		"message": message,
		"count":   e.Count,
		"first":   e.FirstTimestamp,
		"last":    e.LastTimestamp,
		"source":  e.Source,
	}
}

// withoutAnnotations removes all metadata but name and labels from an object's JSON. The annotation
// last-applied-configuration, for example, can contain secrets.
func withoutAnnotations(content []byte) []byte {
	var object map[string]any
	if err := json.Unmarshal(content, &object); err != nil {
		return content
	}
	if metadata, ok := object["metadata"].(map[string]any); ok {
		object["metadata"] = map[string]any{"name": metadata["name"], "labels": metadata["labels"]}
	}
	without, err := json.Marshal(object)
	if err != nil {
		return content
	}
	return without
}
