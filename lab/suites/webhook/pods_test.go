package webhook

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ccgrkc/ccgrkc/lab/env/cluster"
	"github.com/ccgrkc/ccgrkc/lab/env/winnode"
)

// A pod, a Deployment and a DaemonSet run on a Windows node with their credential spec.
func TestPodsWithACredentialSpecNameRun(t *testing.T) {
	t.Parallel()
	l := shared(t)
	ctx := t.Context()
	ns := l.namespace("run")
	contents := l.spec("run", input, ns, "default")
	_, err := l.create(l.pod(ns, "pod", "run"))
	must(t, err)
	labels := map[string]string{"app": "web"}
	template := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: l.pod(ns, "", "run").Spec}
	one := int32(1)
	_, err = l.client.AppsV1().Deployments(ns).Create(ctx, &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "deployment"},
		Spec: appsv1.DeploymentSpec{Replicas: &one, Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: template}}, metav1.CreateOptions{})
	must(t, err)
	daemonLabels := map[string]string{"app": "daemon"}
	daemon := *template.DeepCopy()
	daemon.Labels = daemonLabels
	_, err = l.client.AppsV1().DaemonSets(ns).Create(ctx, &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Name: "daemon"},
		Spec: appsv1.DaemonSetSpec{Selector: &metav1.LabelSelector{MatchLabels: daemonLabels}, Template: daemon}}, metav1.CreateOptions{})
	must(t, err)
	l.eventually(2*time.Minute, func() error {
		pods, err := l.client.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		if len(pods.Items) != 3 {
			return fmt.Errorf("%d pods, want 3", len(pods.Items))
		}
		for _, p := range pods.Items {
			if p.Status.Phase != corev1.PodRunning || len(p.Status.ContainerStatuses) != 1 || !p.Status.ContainerStatuses[0].Ready {
				return fmt.Errorf("pod %s: %+v", p.Name, p.Status)
			}
			same(t, "pod "+p.Name, p.Spec.SecurityContext.WindowsOptions.GMSACredentialSpec, contents)
		}
		return nil
	})
}

// The pod and each container can reference a different credential spec.
func TestEveryReferenceIsPopulated(t *testing.T) {
	t.Parallel()
	l := shared(t)
	ns := l.namespace("places")
	contents := map[string][]byte{}
	for _, name := range []string{"place-pod", "place-one", "place-two", "place-init"} {
		contents[name] = l.spec(name, input, ns, "default")
	}
	// Unknown keys are preserved, and numbers stay exact.
	odd := strings.Replace(string(contents["place-two"]), "{", `{"Unknown":{"n":12345678901234567890,"f":1.50},`, 1)
	l.put("place-two", []byte(odd), ns)
	pod := l.pod(ns, "p", "place-pod")
	image := pod.Spec.Containers[0].Image
	pod.Spec.Containers = []corev1.Container{{Name: "one", Image: image, SecurityContext: windows("place-one")}, {Name: "two", Image: image, SecurityContext: windows("place-two")}, {Name: "none", Image: image}}
	pod.Spec.InitContainers = []corev1.Container{{Name: "init", Image: image, SecurityContext: windows("place-init")}}
	got, err := l.admitted(pod)
	must(t, err)
	same(t, "the pod", got.Spec.SecurityContext.WindowsOptions.GMSACredentialSpec, contents["place-pod"])
	same(t, "container one", got.Spec.Containers[0].SecurityContext.WindowsOptions.GMSACredentialSpec, contents["place-one"])
	same(t, "container two", got.Spec.Containers[1].SecurityContext.WindowsOptions.GMSACredentialSpec, []byte(odd))
	same(t, "init container", got.Spec.InitContainers[0].SecurityContext.WindowsOptions.GMSACredentialSpec, contents["place-init"])
	if s := got.Spec.Containers[2].SecurityContext; s != nil && s.WindowsOptions != nil {
		t.Errorf("container none got %+v", s.WindowsOptions)
	}
	if two := *got.Spec.Containers[1].SecurityContext.WindowsOptions.GMSACredentialSpec; !strings.Contains(two, "1.5") || strings.Contains(two, "e+") {
		t.Errorf("container two: %s", two)
	}

	// kubectl debug with a custom profile, and the subresource itself.
	plain := l.pod(ns, "plain", "place-pod")
	_, err = l.create(plain)
	must(t, err)
	profile := filepath.Join(t.TempDir(), "profile.json")
	must(t, os.WriteFile(profile, []byte(`{"securityContext":{"windowsOptions":{"gmsaCredentialSpecName":"place-one"}}}`), 0o600))
	l.mustKubectl("debug", "plain", "--namespace", ns, "--image", image, "--container", "debug", "--profile", "general", "--custom", profile)
	debugged, err := l.client.CoreV1().Pods(ns).Get(t.Context(), "plain", metav1.GetOptions{})
	must(t, err)
	same(t, "ephemeral container", debugged.Spec.EphemeralContainers[0].SecurityContext.WindowsOptions.GMSACredentialSpec, contents["place-one"])
	// A second one. The first is unchanged.
	again, err := l.debug(ns, "plain", "second", windows("place-init"))
	must(t, err)
	same(t, "the second", again.Spec.EphemeralContainers[1].SecurityContext.WindowsOptions.GMSACredentialSpec, contents["place-init"])
	// Without a gMSA.
	_, err = l.debug(ns, "plain", "third", nil)
	must(t, err)
}

// kubectl debug crashed when the status of a denial had no details.
func TestKubectlDebugReportsAMissingCredentialSpec(t *testing.T) {
	t.Parallel()
	l := shared(t)
	ns := l.namespace("debug-missing")
	plain := l.pod(ns, "plain", "")
	plain.Spec.SecurityContext = nil
	_, err := l.create(plain)
	must(t, err)
	profile := filepath.Join(t.TempDir(), "profile.json")
	must(t, os.WriteFile(profile, []byte(`{"securityContext":{"windowsOptions":{"gmsaCredentialSpecName":"nowhere"}}}`), 0o600))
	out, err := l.kubectl("debug", "plain", "--namespace", ns, "--image", l.AppImage(), "--container", "debug", "--profile", "general", "--custom", profile)
	if err == nil || !strings.Contains(out, "ephemeral container debug: GMSACredentialSpec nowhere does not exist") || strings.Contains(out, "panic") {
		t.Errorf("kubectl debug: %v\n%s", err, out)
	}
	_, err = l.debug(ns, "plain", "debug", windows("nowhere"))
	var status apierrors.APIStatus
	if !errors.As(err, &status) || status.Status().Details == nil {
		t.Fatalf("no details: %v", err)
	}
	if d := status.Status().Details; d.Name != "nowhere" || d.Group != "windows.k8s.io" || d.Kind != "gmsacredentialspecs" {
		t.Errorf("details: %+v", d)
	}
}

// debug adds an ephemeral container to a pod.
func (l *lab) debug(namespace, name, container string, s *corev1.SecurityContext) (*corev1.Pod, error) {
	pods := l.client.CoreV1().Pods(namespace)
	for {
		pod, err := pods.Get(l.t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		pod.Spec.EphemeralContainers = append(pod.Spec.EphemeralContainers, corev1.EphemeralContainer{EphemeralContainerCommon: corev1.EphemeralContainerCommon{
			Name: container, Image: l.AppImage(), SecurityContext: s}})
		pod, err = pods.UpdateEphemeralContainers(l.t.Context(), name, pod, metav1.UpdateOptions{})
		if !apierrors.IsConflict(err) { // with the kubelet's status
			return pod, err
		}
	}
}

// An inline credential spec from the user must equal the object as JSON.
func TestInlineSpecsFromTheUser(t *testing.T) {
	t.Parallel()
	l := shared(t)
	ns := l.namespace("preset")
	contents := l.spec("preset", input, ns, "default")
	var value any
	must(t, json.Unmarshal(contents, &value))
	indented, err := json.MarshalIndent(value, "", "\t") // with the keys in another order than the struct's
	must(t, err)
	for _, test := range []struct {
		name, contents string
		code           int32
	}{
		{"equal", string(contents), 0},
		{"other-order", string(indented), 0},
		{"another-account", strings.ReplaceAll(string(contents), "web01", "admin"), 403},
		{"twice", strings.Replace(string(contents), "{", `{"CmsPlugins":["ActiveDirectory"],`, 1), 403},
		{"no-json", "web01", 403},
	} {
		pod := l.pod(ns, test.name, "preset")
		pod.Spec.SecurityContext.WindowsOptions.GMSACredentialSpec = &test.contents
		got, err := l.admitted(pod)
		if test.code != 0 {
			refused(t, err, test.code, "the pod's securityContext", "preset")
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		if *got.Spec.SecurityContext.WindowsOptions.GMSACredentialSpec != test.contents {
			t.Errorf("%s: the inline credential spec was changed", test.name)
		}
	}
}

func TestDenialsStateTheRemedy(t *testing.T) {
	t.Parallel()
	l := shared(t)
	ns := l.namespace("refusals")
	l.spec("refusals", input, ns)

	pod := l.pod(ns, "p", "nowhere")
	refused(t, l.dryRun(pod), 404, "the pod's securityContext", "GMSACredentialSpec nowhere")

	// The command in the denial grants the permission.
	pod = l.pod(ns, "p", "")
	pod.Spec.SecurityContext = nil
	pod.Spec.Containers[0].SecurityContext = windows("refusals")
	err := l.dryRun(pod)
	refused(t, err, 403, "container app", "ServiceAccount "+ns+"/default", "verb use", "GMSACredentialSpec refusals")
	if err == nil {
		return
	}
	_, command, ok := strings.Cut(err.Error(), "echo '")
	objects, _, ended := strings.Cut(command, "' | kubectl apply -f -")
	if !ok || !ended {
		t.Fatalf("no command in %v", err)
	}
	must(t, l.Apply(t.Context(), []byte(objects)))
	l.eventually(20*time.Second, func() error { return l.dryRun(pod) })

	// The permission does not extend to another credential spec or ServiceAccount.
	l.spec("refusals-other", input, ns)
	pod.Spec.InitContainers = []corev1.Container{{Name: "first", Image: pod.Spec.Containers[0].Image, SecurityContext: windows("refusals-other")}}
	refused(t, l.dryRun(pod), 403, "init container first", "refusals-other")
	pod.Spec.InitContainers = nil
	_, err = l.client.CoreV1().ServiceAccounts(ns).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "other"}}, metav1.CreateOptions{})
	must(t, err)
	pod.Spec.ServiceAccountName = "other"
	refused(t, l.dryRun(pod), 403, "ServiceAccount "+ns+"/other")

	// kubectl prints the denial of a server-side dry run too.
	file := filepath.Join(t.TempDir(), "pod.json")
	pod.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}
	data, err := json.Marshal(pod)
	must(t, err)
	must(t, os.WriteFile(file, data, 0o600))
	if out, err := l.kubectl("create", "--dry-run=server", "-f", file); err == nil || !strings.Contains(out, "ServiceAccount "+ns+"/other cannot use") {
		t.Errorf("kubectl: %v\n%s", err, out)
	}
}

// The gMSA fields of an existing pod cannot change. Other fields can.
func TestUpdatesChangeNoGMSA(t *testing.T) {
	t.Parallel()
	l := shared(t)
	ns := l.namespace("updates")
	l.spec("updates", input, ns, "default")
	l.spec("updates-two", input, ns, "default")
	_, err := l.create(l.pod(ns, "p", "updates"))
	must(t, err)
	pods := l.client.CoreV1().Pods(ns)
	patch := func(patch string, subresources ...string) error {
		_, err := pods.Patch(t.Context(), "p", types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, subresources...)
		return err
	}
	for _, attempt := range []string{
		`{"spec":{"securityContext":{"windowsOptions":{"gmsaCredentialSpecName":"updates-two"}}}}`,
		`{"spec":{"securityContext":{"windowsOptions":{"gmsaCredentialSpec":"{}"}}}}`,
		`{"spec":{"securityContext":{"windowsOptions":{"gmsaCredentialSpec":null,"gmsaCredentialSpecName":null}}}}`,
		`{"spec":{"containers":[{"name":"app","securityContext":{"windowsOptions":{"gmsaCredentialSpecName":"updates-two"}}}]}}`,
		`{"spec":{"serviceAccountName":"other"}}`,
	} {
		if err := patch(attempt); err == nil {
			t.Errorf("%s was accepted", attempt)
		}
	}
	must(t, patch(`{"metadata":{"labels":{"a":"b"}}}`))
	_, err = l.debug(ns, "p", "debug", windows("updates-two"))
	must(t, err)
	for _, attempt := range []string{
		`{"spec":{"ephemeralContainers":[{"name":"debug","securityContext":{"windowsOptions":{"gmsaCredentialSpecName":"updates"}}}]}}`,
		`{"spec":{"ephemeralContainers":[{"name":"debug","securityContext":{"windowsOptions":{"gmsaCredentialSpec":"{}"}}}]}}`,
	} {
		if err := patch(attempt, "ephemeralcontainers"); err == nil {
			t.Errorf("%s was accepted", attempt)
		}
	}
	// Changing or deleting the object does not affect existing pods.
	must(t, l.PutCredentialSpec(t.Context(), "updates", []byte(`{"CmsPlugins":[]}`)))
	must(t, patch(`{"metadata":{"labels":{"a":"c"}}}`))
	l.mustKubectl("delete", "gmsacredentialspec", "updates")
	must(t, patch(`{"metadata":{"labels":{"a":"d"}}}`))
	_, err = l.debug(ns, "p", "late", windows("updates-two"))
	must(t, err)
}

// Excluded namespaces, and their pods after the label is removed.
func TestExcludedNamespaces(t *testing.T) {
	t.Parallel()
	l := shared(t)
	ns := l.namespace("passed-over", "windows.k8s.io/disabled=true")
	anything := `{"CmsPlugins":["anything"]}`
	free := l.pod(ns, "free", "")
	free.Spec.SecurityContext.WindowsOptions = &corev1.WindowsSecurityContextOptions{GMSACredentialSpec: &anything}
	named := l.pod(ns, "named", "nowhere")
	for _, pod := range []*corev1.Pod{free, named} {
		_, err := l.create(pod)
		must(t, err)
	}
	for _, namespace := range []string{system, "kube-system"} {
		pod := l.pod(namespace, "named", "nowhere")
		if err := l.dryRun(pod); (err == nil) != (namespace == system) {
			t.Errorf("a pod in %s: %v", namespace, err)
		}
	}
	l.mustKubectl("label", "namespace", ns, "windows.k8s.io/disabled-")
	l.eventually(20*time.Second, func() error {
		if err := l.dryRun(l.pod(ns, "another", "nowhere")); !apierrors.IsNotFound(err) {
			return fmt.Errorf("after the label was removed: %v", err)
		}
		return nil
	})
	// Existing pods can be labeled and deleted.
	for _, name := range []string{"free", "named"} {
		if out, err := l.kubectl("label", "pod", name, "--namespace", ns, "a=b"); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		l.mustKubectl("delete", "pod", name, "--namespace", ns, "--grace-period=1")
	}
}

// A plugin input that cannot work causes a warning when the pod is created.
func TestWarningsAboutThePluginInput(t *testing.T) {
	t.Parallel()
	l := shared(t)
	ns := l.namespace("warnings")
	foreign := winnode.CredentialSpec("whatever it takes")
	foreign["ActiveDirectoryConfig"].(map[string]any)["HostAccountConfig"].(map[string]string)["PluginGUID"] = "{859E1386-BDB4-49E8-85C7-3070B13920E1}"
	contents, err := json.Marshal(foreign)
	must(t, err)
	l.put("warn-foreign", contents, ns, "default")
	l.spec("warn-malformed", "web-creds", ns, "default")
	l.spec("warn-no-release", system+":nobody-creds", ns, "default")
	l.spec("warn-served", input, ns, "default")
	create := func(spec string) string {
		t.Helper()
		pod := l.pod(ns, spec, spec)
		pod.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}
		data, err := json.Marshal(pod)
		must(t, err)
		file := filepath.Join(t.TempDir(), "pod.json")
		must(t, os.WriteFile(file, data, 0o600))
		return l.mustKubectl("create", "--dry-run=server", "-f", file)
	}
	for spec, want := range map[string]string{
		"warn-malformed": "PluginInput is invalid", "warn-no-release": "no release of rancher-gmsa-account-provider provides " + system + ":nobody-creds",
		"warn-foreign": "", "warn-served": "",
	} {
		out := create(spec)
		if want == "" && strings.Contains(out, "Warning") || !strings.Contains(out, want) || want != "" && !strings.Contains(out, "Warning: ") {
			t.Errorf("%s: kubectl printed %q, want a warning with %q", spec, out, want)
		}
	}

	// A release without its Secret, which is created later.
	late := l.webhook()
	late.Chart, late.Name = cluster.Provider, "late"
	_, err = late.Install(t.Context())
	must(t, err)
	l.spec("warn-late", system+":late-creds", ns, "default")
	l.eventually(20*time.Second, func() error {
		if out := create("warn-late"); !strings.Contains(out, "Warning: ") || !strings.Contains(out, "Secret "+system+"/late-creds is missing") {
			return fmt.Errorf("without the Secret kubectl printed %q", out)
		}
		return nil
	})
	must(t, l.PutSecret(t.Context(), system, "late-creds", "x"))
	l.eventually(20*time.Second, func() error {
		if out := create("warn-late"); strings.Contains(out, "Warning") {
			return fmt.Errorf("with the Secret kubectl printed %q", out)
		}
		return nil
	})
	_, err = late.Uninstall(t.Context())
	must(t, err)

	// The account checks issued no token, and the webhook read only its own Secret.
	asked := l.asked()
	t.Logf("requests of the webhook: %v", asked)
	for what := range asked {
		verb, rest, _ := strings.Cut(what, " ")
		resource, code, _ := strings.Cut(rest, ": ")
		switch resource {
		case "serviceaccounts/token":
			if verb != "create" || strings.HasPrefix(code, "2") {
				t.Errorf("unexpected request: %s", what)
			}
		case "gmsacredentialspecs", "subjectaccessreviews", "secrets " + system + "/rancher-gmsa-webhook-tls",
			"mutatingwebhookconfigurations", "validatingwebhookconfigurations":
		default:
			t.Errorf("unexpected request: %s", what)
		}
	}
	for _, code := range []string{"403", "404", "409"} {
		if asked["create serviceaccounts/token: "+code] == 0 {
			t.Errorf("no account check was answered %s", code)
		}
	}
}

// asked counts the webhook's requests to the API server, from the audit log.
func (l *lab) asked() map[string]int {
	l.t.Helper()
	log, err := os.ReadFile(l.ControlPlane.AuditLog())
	must(l.t, err)
	asked := map[string]int{}
	for line := range strings.Lines(string(log)) {
		var e struct {
			Verb           string
			User           struct{ Username string }
			ObjectRef      struct{ Resource, Subresource, Namespace, Name string }
			ResponseStatus struct{ Code int }
		}
		if json.Unmarshal([]byte(line), &e) != nil || e.User.Username != "system:serviceaccount:"+system+":"+cluster.Webhook {
			continue // the last line can be incomplete
		}
		what := e.Verb + " " + e.ObjectRef.Resource
		if e.ObjectRef.Subresource != "" {
			what += "/" + e.ObjectRef.Subresource
		}
		if e.ObjectRef.Resource == "secrets" {
			what += " " + e.ObjectRef.Namespace + "/" + e.ObjectRef.Name
		}
		asked[fmt.Sprintf("%s: %d", what, e.ResponseStatus.Code)]++
	}
	return asked
}
