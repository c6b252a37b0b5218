package doctor

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/credspec"
	"github.com/ccgrkc/ccgrkc/internal/inventory"
	"github.com/ccgrkc/ccgrkc/internal/verify"
)

var now = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

func daemonSet(chart, name string, selector map[string]string, arguments ...string) inventory.Release {
	component, container := "installer", "installer"
	if chart == inventory.ProviderChart {
		component, container = "provider", "provider"
	}
	labels := map[string]string{"app.kubernetes.io/name": chart, "app.kubernetes.io/instance": name,
		"app.kubernetes.io/component": component}
	nodes := map[string]string{"kubernetes.io/os": "windows"}
	for k, v := range selector {
		nodes[k] = v
	}
	d := appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "gmsa-system", Name: name,
			Labels: map[string]string{"app.kubernetes.io/version": "v1.0.0"}},
		Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{NodeSelector: nodes,
				Containers: []corev1.Container{{Name: container,
					Command: append([]string{"x.exe", "run"}, arguments...)}}}},
		},
	}
	for k, v := range labels {
		d.Labels[k] = v
	}
	r, ok := inventory.ReleaseOf(d)
	if !ok {
		panic(chart)
	}
	return r
}

func installer() inventory.Release {
	r := daemonSet(inventory.InstallerChart, "plugin", nil, "--run-as=network-service")
	r.DaemonSet.Spec.Template.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
	return r
}

func provider(name string, selector map[string]string) inventory.Release {
	return daemonSet(inventory.ProviderChart, name, selector, "--namespace=gmsa-system", "--secret="+name+"-creds",
		"--plugin-identity=network-service")
}

func node(name string, labels map[string]string) corev1.Node {
	n := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name,
		Labels: map[string]string{"kubernetes.io/os": "windows"}}}
	for k, v := range labels {
		n.Labels[k] = v
	}
	return n
}

func podFor(r inventory.Release, node string, ready bool) corev1.Pod {
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	return corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: r.Namespace, Name: r.Name + "-" + node,
			Labels: r.DaemonSet.Spec.Selector.MatchLabels},
		Spec: corev1.PodSpec{NodeName: node},
		Status: corev1.PodStatus{Phase: corev1.PodRunning,
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: status}}},
	}
}

const specJSON = `{"CmsPlugins":["ActiveDirectory"],
 "DomainJoinConfig":{"Sid":"S-1-5-21-1004336348-1177238915-682003330","MachineAccountName":"web01","Guid":"244818ae-87ac-4fcd-92ec-e79e5252348a","DnsTreeName":"corp.example.com","DnsName":"corp.example.com","NetBiosName":"CORP"},
 "ActiveDirectoryConfig":{"GroupManagedServiceAccounts":[{"Name":"web01","Scope":"corp.example.com"},{"Name":"web01","Scope":"CORP"}],
  "HostAccountConfig":{"PortableCcgVersion":"1","PluginGUID":"{E4781092-F116-4B79-B55E-28EB6A224E26}","PluginInput":"gmsa-system:web-creds"}}}`

func spec(t *testing.T, name, from, to string) Spec {
	t.Helper()
	content := `{"apiVersion":"windows.k8s.io/v1","kind":"GMSACredentialSpec","metadata":{"name":"` + name +
		`"},"credspec":` + strings.ReplaceAll(specJSON, from, to) + `}`
	docs, err := credspec.Read([]byte(content))
	if err != nil || len(docs) != 1 {
		t.Fatal(err, docs)
	}
	return Spec{Name: name, Content: []byte(content), Document: docs[0]}
}

func user(name, node, specName, inline string) corev1.Pod {
	w := &corev1.WindowsSecurityContextOptions{}
	if specName != "" {
		w.GMSACredentialSpecName = &specName
	}
	if inline != "" {
		w.GMSACredentialSpec = &inline
	}
	return corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name,
			CreationTimestamp: metav1.NewTime(now.Add(-time.Hour))},
		Spec: corev1.PodSpec{NodeName: node, SecurityContext: &corev1.PodSecurityContext{WindowsOptions: w},
			Containers: []corev1.Container{{Name: "app"}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning,
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
	}
}

// healthy is an installation without a fault.
func healthy(t *testing.T) *Objects {
	i, p := installer(), provider("web", map[string]string{"gmsa": "web"})
	one := 1
	return &Objects{
		Scope: ScopeCluster, Program: "gmsactl", Now: now,
		Read: map[string]bool{ReadReleases: true, ReadNodes: true, ReadPods: true, ReadGMSAPods: true,
			ReadSpecs: true, ReadWebhooks: true},
		Releases: []inventory.Release{p, i},
		Nodes:    []corev1.Node{node("win-1", map[string]string{"gmsa": "web"}), node("win-2", nil)},
		Pods:     []corev1.Pod{podFor(i, "win-1", true), podFor(i, "win-2", true), podFor(p, "win-1", true)},
		GMSAPods: []corev1.Pod{user("web-0", "win-1", "web01", specJSON)},
		Secrets: []Secret{{Reference: credential.Reference{Namespace: "gmsa-system", Secret: "web-creds"},
			Name: "gmsa-system/web-creds", Exists: true}},
		Specs: []Spec{spec(t, "web01", "", "")},
		Webhooks: []Webhook{{Configuration: "gmsa-webhook", Resource: "mutatingwebhookconfigurations", Name: "w",
			Mutating: true, Fails: true, Service: "gmsa/webhook", Endpoints: &one, Replicas: &one,
			CABegins: now.AddDate(0, 0, -21), CAExpires: now.AddDate(0, 0, 9)}},
		Uses: []Use{{Namespace: "shop", ServiceAccount: "default", CredentialSpec: "web01", Allowed: true}},
	}
}

func stuckWith(message string) func(o *Objects) {
	return func(o *Objects) {
		pod := &o.GMSAPods[0]
		pod.Status = corev1.PodStatus{Phase: corev1.PodPending,
			ContainerStatuses: []corev1.ContainerStatus{{Name: "app",
				State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}}}}}
		if message != "" {
			pod.Status.ContainerStatuses[0].State.Waiting = &corev1.ContainerStateWaiting{Reason: "RunContainerError",
				Message: message}
		}
	}
}

// Each case has one fault. Diagnose finds it and nothing else, with its object and a remedy.
func TestDiagnoseFindsEachFaultAndNothingElse(t *testing.T) {
	t.Parallel()
	zero, two := 0, 2
	no := map[string]string{"gmsa": "no"}
	for name, c := range map[string]struct {
		breaks   func(o *Objects)
		code     string // "": no finding
		severity Severity
		object   string
		contains []string
	}{
		"none": {breaks: func(*Objects) {}},
		"no installer": {func(o *Objects) { o.Releases, o.Pods = o.Releases[:1], o.Pods[2:] }, "installer-missing",
			Error, "cluster", []string{"helm install"}},
		"two installers": {func(o *Objects) {
			second := installer()
			second.Namespace, second.DaemonSet.Namespace = "other", "other"
			o.Releases = append(o.Releases, second)
			o.Pods = append(o.Pods, podFor(second, "win-1", true), podFor(second, "win-2", true))
		}, "installer-twice", Error, "release other/plugin",
			[]string{"gmsa-system/plugin", "helm uninstall plugin --namespace other"}},
		"other version": {func(o *Objects) { o.Releases[0].Version = "v1.1.0" }, "versions-differ", Warning,
			"release gmsa-system/web", []string{"v1.1.0", "v1.0.0", "helm upgrade"}},
		"other identity": {func(o *Objects) { o.Releases[0].RunAs = "local-service" }, "plugin-identity-differs", Error,
			"release gmsa-system/web", []string{"--set plugin.runAs=network-service"}},
		"one Secret, two releases": {func(o *Objects) {
			r := daemonSet(inventory.ProviderChart, "web2", map[string]string{"gmsa": "web"}, "--secret=web-creds",
				"--plugin-identity=network-service")
			o.Releases, o.Pods = append(o.Releases, r), append(o.Pods, podFor(r, "win-1", true))
		}, "two-releases-of-one-secret", Error, "release gmsa-system/web2", []string{"gmsa-system/web "}},
		"no node": {func(o *Objects) {
			o.Releases[0].DaemonSet.Spec.Template.Spec.NodeSelector["gmsa"] = "nowhere"
			o.GMSAPods = nil
		}, "release-selects-no-node", Warning, "release gmsa-system/web", []string{"gmsa=nowhere"}},
		"taint": {func(o *Objects) {
			o.Nodes[0].Spec.Taints = []corev1.Taint{{Key: "apart", Effect: corev1.TaintEffectNoSchedule}}
			o.Pods = o.Pods[:2]
		}, "node-taint", Error, "release gmsa-system/web", []string{"apart:NoSchedule", "win-1"}},
		"a taint that every DaemonSet tolerates": {func(o *Objects) {
			o.Nodes[0].Spec.Taints = []corev1.Taint{{Key: corev1.TaintNodeUnschedulable,
				Effect: corev1.TaintEffectNoSchedule}}
			o.Pods = o.Pods[:2]
		}, "node-without-pod", Error, "release gmsa-system/web", []string{"win-1", "kubectl describe daemonset web"}},
		"pods are not admitted": {func(o *Objects) {
			o.Pods = o.Pods[:2]
			o.Events = []corev1.Event{{InvolvedObject: corev1.ObjectReference{Kind: "DaemonSet",
				Namespace: "gmsa-system", Name: "web"}, Type: "Warning", Reason: "FailedCreate",
				Message: "violates PodSecurity"}}
		}, "node-without-pod", Error, "release gmsa-system/web", []string{"violates PodSecurity"}},
		"not ready": {func(o *Objects) {
			o.Pods[2] = podFor(o.Releases[0], "win-1", false)
			o.Pods[2].Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "provider",
				State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff",
					Message: "no such image"}}}}
		}, "pod-not-ready", Error, "release gmsa-system/web",
			[]string{"ImagePullBackOff", "no such image", "web-win-1"}},
		"installer leaves a node out": {func(o *Objects) {
			o.Releases[1].DaemonSet.Spec.Template.Spec.NodeSelector["gmsa"] = "web"
			o.Pods = slices.Delete(o.Pods, 1, 2)
		}, "node-without-plugin", Warning, "release gmsa-system/plugin", []string{"win-2"}},
		"no Secret": {func(o *Objects) { o.Secrets[0].Exists = false }, "secret-not-found", Error,
			"Secret gmsa-system/web-creds", []string{"gmsactl account create gmsa-system/web"}},
		"bad Secret": {func(o *Objects) { o.Secrets[0].Problem = `key "username" is missing` }, "secret-invalid", Error,
			"Secret gmsa-system/web-creds", []string{"username", "kubectl edit secret web-creds"}},
		"line end": {func(o *Objects) { o.Secrets[0].Warnings = []string{"ends with a line end"} }, "secret-line-end",
			Warning, "Secret gmsa-system/web-creds", []string{"rotate"}},
		"certificate gone": {func(o *Objects) {
			o.Certificates = []Certificate{{Secret: "gmsa-system/c", Release: "gmsa-system/web", Side: "server"}}
		},
			"certificate-missing", Error, "Secret gmsa-system/c", []string{"server", "gmsa-system/web"}},
		"certificate expired": {func(o *Objects) {
			o.Certificates = []Certificate{{Secret: "gmsa-system/c", Release: "gmsa-system/web", Side: "client",
				Exists: true, NotBefore: now.AddDate(0, 0, -2), NotAfter: now.Add(-time.Second)}}
		}, "certificate-expired", Error, "Secret gmsa-system/c", []string{"2026-06-01T11:59:59Z"}},
		"certificate expires soon": {func(o *Objects) {
			o.Certificates = []Certificate{{Secret: "gmsa-system/c", Exists: true, NotBefore: now.AddDate(0, 0, -99),
				NotAfter: now.AddDate(0, 0, 1)}}
		}, "certificate-expires", Warning, "Secret gmsa-system/c", nil},
		"valid certificate": {func(o *Objects) {
			o.Certificates = []Certificate{{Secret: "gmsa-system/c", Exists: true, NotBefore: now.Add(-20 * time.Hour),
				NotAfter: now.Add(4 * time.Hour)}}
		}, "", "", "", nil},
		"spec with braces missing": {func(o *Objects) {
			o.Specs[0] = spec(t, "web01", "{E4781092-F116-4B79-B55E-28EB6A224E26}",
				"E4781092-F116-4B79-B55E-28EB6A224E26")
			o.GMSAPods = nil
		},
			"credential-spec-invalid", Error, "GMSACredentialSpec web01",
			[]string{"PluginGUID", "gmsactl credspec check web01"}},
		"spec for nodes in the domain": {func(o *Objects) {
			o.Specs = append(o.Specs, spec(t, "joined", `,
  "HostAccountConfig":{"PortableCcgVersion":"1","PluginGUID":"{E4781092-F116-4B79-B55E-28EB6A224E26}","PluginInput":"gmsa-system:web-creds"}`, ""))
		}, "", "", "", nil},
		"spec for nodes in the domain, with another fault": {func(o *Objects) {
			joined := spec(t, "joined", `,
  "HostAccountConfig":{"PortableCcgVersion":"1","PluginGUID":"{E4781092-F116-4B79-B55E-28EB6A224E26}","PluginInput":"gmsa-system:web-creds"}`, "")
			joined.Document.Problems = append(joined.Document.Problems, credspec.Problem{
				Field: "credspec.DomainJoinConfig.Sid", Text: "is unusual", Remedy: "check it", Warning: true})
			o.Specs = append(o.Specs, joined)
		}, "credential-spec-invalid", Warning, "GMSACredentialSpec joined", []string{"DomainJoinConfig.Sid"}},
		"spec without release": {func(o *Objects) {
			o.Specs = append(o.Specs,
				spec(t, "shop01", "web-creds", "shop-creds"))
		},
			"release-not-found", Error, "GMSACredentialSpec shop01",
			[]string{"gmsa-system:shop-creds", "gmsa-system/web provides gmsa-system:web-creds",
				"helm install shop"}},
		"webhook missing": {func(o *Objects) { o.Webhooks = nil }, "webhook-missing", Error, "cluster", nil},
		"webhook's CA expired": {func(o *Objects) { o.Webhooks[0].CAExpires = now.Add(-time.Hour) },
			"webhook-certificate-expired", Error, "mutatingwebhookconfigurations gmsa-webhook",
			[]string{"denies pods that use a gMSA"}},
		"webhook's CA ends": {func(o *Objects) { o.Webhooks[0].CAExpires = now.Add(time.Hour) },
			"webhook-certificate-expires", Warning, "mutatingwebhookconfigurations gmsa-webhook", nil},
		"webhook's certificate ends": {func(o *Objects) {
			w := &o.Webhooks[0]
			w.Secret, w.CAExpires, w.Begins, w.Expires = "gmsa/tls", now.AddDate(3, 0, 0), now.AddDate(0, 0, -80),
				now.AddDate(0, 0, 10)
		}, "webhook-certificate-expires", Warning, "mutatingwebhookconfigurations gmsa-webhook",
			[]string{"the certificate in its Secret gmsa/tls expires at"}},
		"webhook's certificate expired": {func(o *Objects) {
			w := &o.Webhooks[0]
			w.Secret, w.CAExpires, w.Begins, w.Expires, w.Problem = "gmsa/tls", now.AddDate(3, 0, 0),
				now.AddDate(0, 0, -90), now.Add(-time.Hour), "has expired"
		}, "webhook-certificate-expired", Error, "mutatingwebhookconfigurations gmsa-webhook",
			[]string{"the certificate in its Secret gmsa/tls expired at"}},
		"webhook's CA damaged": {func(o *Objects) { o.Webhooks[0].CAProblem = "its caBundle holds no certificate" },
			"webhook-ca-invalid", Error, "mutatingwebhookconfigurations gmsa-webhook", nil},
		"webhook's CA differs": {func(o *Objects) { o.Webhooks[0].Problem = "the certificate does not match" },
			"webhook-ca-mismatch", Error, "mutatingwebhookconfigurations gmsa-webhook",
			[]string{"does not match", "kubectl logs --namespace gmsa"}},
		"one webhook of two": {func(o *Objects) { o.Webhooks[0].Replicas = &two }, "webhook-degraded", Warning,
			"mutatingwebhookconfigurations gmsa-webhook", []string{"1 ready pods of 2"}},
		"two webhooks": {func(o *Objects) {
			o.Webhooks = append(o.Webhooks, Webhook{Configuration: "sig", Resource: "mutatingwebhookconfigurations",
				Name: "w", Mutating: true, Service: "sig/webhook"})
		}, "webhook-twice", Warning, "cluster", []string{"gmsa/webhook, sig/webhook"}},
		"webhook down": {func(o *Objects) { o.Webhooks[0].Endpoints = &zero }, "webhook-down", Error,
			"mutatingwebhookconfigurations gmsa-webhook", []string{"gmsa/webhook"}},
		"no CRD": {func(o *Objects) { o.NoCRD, o.Specs, o.GMSAPods = true, nil, nil }, "no-credential-specs",
			Warning, "cluster", nil},
		"use": {func(o *Objects) { o.Uses[0].Allowed = false }, "use-forbidden", Error,
			"ServiceAccount shop/default", []string{`"resourceNames":["web01"]`,
				`"name":"default","namespace":"shop"`}},
		"denied": {func(o *Objects) {
			o.Events = []corev1.Event{{InvolvedObject: corev1.ObjectReference{Kind: "ReplicaSet", Namespace: "shop",
				Name: "web-1"}, Reason: "FailedCreate", Message: "not authorized to use gMSA cred spec"}}
		}, "pod-refused", Error, "ReplicaSet shop/web-1", []string{"not authorized"}},
		"not populated": {func(o *Objects) { o.GMSAPods[0] = user("web-0", "win-1", "web01", "") },
			"credential-spec-not-copied", Error, "pod shop/web-0", []string{"windows.k8s.io/disabled"}},
		"missing credential spec": {func(o *Objects) { o.GMSAPods[0] = user("web-0", "win-1", "web09", "") },
			"credential-spec-not-found", Error, "pod shop/web-0", []string{"web09"}},
		"changed since": {func(o *Objects) { o.Specs[0] = spec(t, "web01", "CORP", "CORPS") },
			"credential-spec-changed", Warning, "pod shop/web-0", nil},
		"invalid inline spec": {func(o *Objects) { o.GMSAPods[0] = user("web-0", "win-1", "", "[") },
			"credential-spec-invalid", Error, "pod shop/web-0", nil},
		"inline spec without release": {func(o *Objects) {
			o.GMSAPods[0] = user("web-0", "win-1", "", strings.ReplaceAll(specJSON, "web-creds", "shop-creds"))
		}, "release-not-found", Error, "pod shop/web-0", []string{"gmsa-system:shop-creds"}},
		"outside": {func(o *Objects) { o.GMSAPods[0].Spec.NodeName = "win-2" }, "node-outside-selector", Error,
			"pod shop/web-0", []string{"win-2", "gmsa=web"}},
		"a pod on a node with another label": {func(
			o *Objects) {
			o.Nodes[1] = node("win-2", no)
			o.GMSAPods[0].Spec.NodeName = "win-2"
		},
			"node-outside-selector", Error, "pod shop/web-0", []string{"gmsa=no"}},
		"error of the plugin": {stuckWith(
			"hcs::CreateComputeSystem x: winapi error #3489661095: ccg.exe: the plug-in returned 0xA0040007 (secret-not-found)"),
			"secret-not-found", Error, "pod shop/web-0",
			[]string{"0xD00000A7", "kubectl create secret generic -n gmsa-system web-creds",
				"gmsactl verify web01 --node win-1"}},
		"error of HCS": {stuckWith("hcs::CreateComputeSystem x: winapi error #3489792023"), "RPC_NT_SERVER_UNAVAILABLE",
			Error, "pod shop/web-0", []string{"0xD0020017", "doctor node win-1"}},
		"no number": {stuckWith("hcs::CreateComputeSystem x: failed"), "pod-does-not-start", Error, "pod shop/web-0",
			nil},
		"error in an event": {func(o *Objects) {
			stuckWith("")(o)
			o.Events = []corev1.Event{{InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: "shop",
				Name: "web-0"}, Type: "Warning", Reason: "FailedCreatePodSandBox", Message: "winapi error #3489661095"}}
		}, "STATUS_BAD_VALIDATION_CLASS", Error, "pod shop/web-0", nil},
		"no reason": {stuckWith(""), "pod-creating", Error, "pod shop/web-0", []string{"1h0m0s"}},
		"just created": {func(o *Objects) { stuckWith("")(o); o.GMSAPods[0].CreationTimestamp = metav1.NewTime(now) },
			"", "", "", nil},
		"image pull error": {func(o *Objects) {
			stuckWith("")(o)
			waiting := &corev1.ContainerStateWaiting{Reason: "ErrImagePull", Message: "no such host"}
			o.GMSAPods[0].Status.ContainerStatuses[0].State.Waiting = waiting
		}, "", "", "", nil},
		"unschedulable": {func(o *Objects) {
			o.GMSAPods[0].Spec.NodeName = ""
			o.GMSAPods[0].Status = corev1.PodStatus{Phase: corev1.PodPending,
				Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse,
					Reason: corev1.PodReasonUnschedulable, Message: "0/3 nodes"}}}
		}, "pod-unschedulable", Error, "pod shop/web-0", []string{"0/3 nodes"}},
		"ended": {func(o *Objects) {
			stuckWith("winapi error #3489661095")(o)
			o.GMSAPods[0].Status.Phase = corev1.PodSucceeded
		}, "", "", "", nil},
		"foreign plugin on a node": {func(o *Objects) {
			o.NodeResults = []verify.NodeResult{{Node: "win-1",
				Steps: []verify.Step{{Name: "node", State: verify.OK},
					{Name: verify.StepPlugin, State: verify.Failed, Cause: verify.CausePluginForeign,
						Detail: "COM+ application", Remedy: "uninstall it"}, {Name: "x", State: verify.NotRun}}}}
		}, "foreign-registration", Error, "node win-1", []string{"COM+ application"}},
	} {
		t.Run(name, func(t *testing.T) {
			o := healthy(t)
			c.breaks(o)
			r := Diagnose(o)
			if c.code == "" {
				if len(r.Findings) > 0 {
					t.Fatalf("found %+v", r.Findings)
				}
				return
			}
			if len(r.Findings) != 1 {
				t.Fatalf("found %d: %+v", len(r.Findings), r.Findings)
			}
			f := r.Findings[0]
			if f.Code != c.code || f.Severity != c.severity || f.Object != c.object || f.Remedy == "" {
				t.Errorf("found %+v", f)
			}
			all := f.Text + "\n" + f.Remedy + "\n" + strings.Join(f.Commands, "\n")
			for _, want := range c.contains {
				if !strings.Contains(all, want) {
					t.Errorf("no %q in\n%s", want, all)
				}
			}
			for _, line := range f.Commands {
				if strings.ContainsAny(line, "<>") {
					t.Errorf("a shell does not accept %q", line)
				}
			}
		})
	}
}

func TestUnreadObjectsAreNotReportedAsMissing(t *testing.T) {
	t.Parallel()
	o := healthy(t)
	o.Read = map[string]bool{ReadGMSAPods: true}
	o.Releases, o.Nodes, o.Pods, o.Secrets, o.Specs, o.Webhooks, o.Uses = nil, nil, nil, nil, nil, nil, nil
	o.Skipped = []inventory.Skipped{inventory.NewSkipped("releases", errors.New("x"), "y")}
	if r := Diagnose(o); len(r.Findings) > 0 || len(r.Skipped) != 1 {
		t.Errorf("%+v", r)
	}
}

func TestErrorsPrecedeWarningsAndCausesPrecedeEffects(t *testing.T) {
	t.Parallel()
	o := healthy(t)
	stuckWith("winapi error #3489661095: 0xA0040007")(o)
	o.Secrets[0].Exists = false
	o.Releases[0].Version = "v2"
	o.Uses[0].Allowed = false
	var codes []string
	for _, f := range Diagnose(o).Findings {
		codes = append(codes, string(f.Severity)+" "+f.Object)
	}
	want := []string{"error Secret gmsa-system/web-creds", "error ServiceAccount shop/default", "error pod shop/web-0",
		"warning release gmsa-system/web"}
	if !slices.Equal(codes, want) {
		t.Errorf("%q", codes)
	}
}

// If the node is the reason for a missing endpoint, the finding about the node comes first.
func TestTheNodesFindingPrecedesThePods(t *testing.T) {
	t.Parallel()
	o := healthy(t)
	o.GMSAPods[0].Spec.NodeName = "win-2"
	stuckWith("ccg.exe: the plug-in returned 0xA0040001 (endpoint-absent)")(o)
	var codes []string
	for _, f := range Diagnose(o).Findings {
		codes = append(codes, f.Code)
	}
	if want := []string{"node-outside-selector", "endpoint-absent"}; !slices.Equal(codes, want) {
		t.Errorf("found %q, want %q", codes, want)
	}
}

func TestNumbersAreDecoded(t *testing.T) {
	t.Parallel()
	for message, want := range map[string][]string{
		"hcs::CreateComputeSystem 1: winapi error #3489661095.":    {"STATUS_BAD_VALIDATION_CLASS"},
		"hcsshim::CreateComputeSystem 1: winapi error #3489792023": {"RPC_NT_SERVER_UNAVAILABLE"},
		"the RPC server is unavailable. (0xC0020017)":              {"RPC_NT_SERVER_UNAVAILABLE"},
		"returned 0x800706BA":                                      {"RPC_NT_SERVER_UNAVAILABLE"},
		"winapi error #3489661095: ccg: 0xA0040001 (endpoint-absent)": {"endpoint-absent",
			"STATUS_BAD_VALIDATION_CLASS"},
		"0xa004000b": {"response-invalid"},
		"winapi error #3221225581 and 0xC000006D and 0xD000006D": {"STATUS_LOGON_FAILURE",
			"STATUS_LOGON_FAILURE"},
		"Microsoft-Windows-Containers-CCG/Admin event id 8: 0x8007203A": {"ERROR_DS_SERVER_DOWN", "ccg-event"},
		"ccg event 6": {"ccg-event"},
		"0x12345678, winapi error #1, #99999999999, event 6 of something, 0xC000006D00": nil,
		"nothing at all": nil,
		"winapi error #3489661095 winapi error #3489661095 0xD00000A7":                         {"STATUS_BAD_VALIDATION_CLASS"},
		"container 0xC0020017f0 has a long number in its name, and ccg event 5 does not exist": nil,
	} {
		var got []string
		for _, m := range Decode(message) {
			got = append(got, m.Name)
			if m.Text == "" {
				t.Errorf("%s: %s has no explanation", message, m.Code)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", message, got, want)
		}
	}
}

func TestCommandsAreQuotedForAShell(t *testing.T) {
	t.Parallel()
	if got := command("kubectl", "get", "pod", "a b", "it's", "",
		"-o=x"); got != `kubectl get pod 'a b' 'it'\''s' '' -o=x` {
		t.Error(got)
	}
}

func certificate(t *testing.T, name string, uses ...x509.ExtKeyUsage) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{name}, ExtKeyUsage: uses,
		NotBefore: now, NotAfter: now.AddDate(0, 0, 1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func TestCertificatesAreCheckedAsProviderAndPluginDo(t *testing.T) {
	t.Parallel()
	ref := credential.Reference{Namespace: "gmsa-system", Secret: "web-creds"}
	server, client := x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth
	for name, c := range map[string]struct {
		pem      []byte
		side     string
		contains string
	}{
		"server":         {certificate(t, ref.CertificateName(), server), "server", ""},
		"client":         {certificate(t, ref.CertificateName(), client), "client", ""},
		"the other side": {certificate(t, ref.CertificateName(), client), "server", "server auth"},
		"both":           {certificate(t, ref.CertificateName(), server, client), "server", "extended key usage"},
		"another account": {certificate(t, "x.gmsa-system.gmsa-account-provider", server), "server",
			ref.CertificateName()},
		"a wildcard": {certificate(t, "*.gmsa-system.gmsa-account-provider", server), "server",
			ref.CertificateName()},
		"nothing": {nil, "server", "no certificate"},
		"junk": {[]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), "server",
			"cannot be read"},
	} {
		got := Certificate{Side: c.side}
		got.read(c.pem, ref)
		if (c.contains == "") != (got.Problem == "") || !strings.Contains(got.Problem, c.contains) {
			t.Errorf("%s: %+v", name, got)
		}
		if c.contains == "" && !got.NotAfter.Equal(now.AddDate(0, 0, 1)) {
			t.Errorf("%s: %+v", name, got)
		}
	}
	served := certificate(t, "a.b.svc", server)
	for name, c := range map[string]struct {
		chain, bundle  []byte
		host, contains string
	}{
		"the webhook's":         {served, served, "a.b.svc", ""},
		"of another Service":    {served, served, "c.b.svc", "a.b.svc"},
		"of another CA":         {served, certificate(t, "a.b.svc", server), "a.b.svc", "unknown authority"},
		"no certificate at all": {nil, served, "a.b.svc", "contains no certificate"},
	} {
		var w Webhook
		w.checkServingCertificate(c.chain, c.bundle, c.host, now)
		if (c.contains == "") != (w.Problem == "") || !strings.Contains(w.Problem, c.contains) {
			t.Errorf("%s: %+v", name, w)
		}
		if c.chain != nil && (!w.Begins.Equal(now) || !w.Expires.Equal(now.AddDate(0, 0, 1))) {
			t.Errorf("%s: from %s to %s", name, w.Begins, w.Expires)
		}
	}
	other := certificate(t, "b")
	for name, c := range map[string]struct {
		cas, bundle []byte
		now         time.Time
		contains    string
	}{
		"the webhook's":      {served, slices.Concat(other, served), now, ""},
		"one of two":         {slices.Concat(served, other), served, now, "lacks a CA"},
		"of another webhook": {served, other, now, "lacks a CA"},
		"expired":            {served, served, now.AddDate(0, 0, 2), "no valid CA"},
		"no certificate":     {nil, served, now, "no valid CA"},
	} {
		var w Webhook
		w.checkCAs(c.cas, c.bundle, c.now)
		if (c.contains == "") != (w.Problem == "") || !strings.Contains(w.Problem, c.contains) {
			t.Errorf("%s: %+v", name, w)
		}
	}
	if _, at, problem := validity(certificate(t, "ca")); !at.Equal(now.AddDate(0, 0, 1)) || problem != "" {
		t.Error(at, problem)
	}
	if _, _, problem := validity([]byte("x")); problem == "" {
		t.Error("invalid data was accepted as a CA")
	}
}

const marker = "m4rker-Pässwörd"

// The test puts a secret into every field that can contain one. The bundle must not contain it in any encoding.
func TestABundleContainsNoSecret(t *testing.T) {
	t.Parallel()
	o := healthy(t)
	stuckWith("winapi error #3489661095")(o)
	for _, pods := range [][]corev1.Pod{o.GMSAPods, o.Pods} {
		for i := range pods {
			p := &pods[i]
			p.Annotations = map[string]string{"kubectl.kubernetes.io/last-applied-configuration": marker}
			p.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: marker}}
			p.Spec.Containers = []corev1.Container{{Name: "app", Command: []string{marker}, Args: []string{marker},
				WorkingDir: marker, Env: []corev1.EnvVar{{Name: "P", Value: marker}},
				LivenessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{marker}}}}}}
			p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, corev1.ContainerStatus{Name: "app",
				LastTerminationState: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: "Error", ExitCode: 1, Message: "gmsa login with " + marker}}})
		}
	}
	for i := range o.Releases {
		d := &o.Releases[i].DaemonSet
		d.Annotations = map[string]string{"x": marker}
		d.Spec.Template.Annotations = map[string]string{"x": marker}
		d.Spec.Template.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "P", Value: marker}}
	}
	o.Nodes[0].Annotations = map[string]string{"x": marker}
	// These pods do not run either. Their messages mention a gMSA, so they look like the reason.
	probed, hooked := user("probed", "win-1", "web01", specJSON), user("hooked", "win-1", "web01", specJSON)
	probed.Status = corev1.PodStatus{Phase: corev1.PodRunning}
	hooked.Status = corev1.PodStatus{Phase: corev1.PodPending, ContainerStatuses: []corev1.ContainerStatus{{Name: "app",
		State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "PostStartHookError",
			Message: "gmsa login with " + marker}}}}}
	o.GMSAPods = append(o.GMSAPods, probed, hooked)
	for _, reason := range []string{"Unhealthy", "FailedPostStartHook", "FailedPreStopHook", "ProbeWarning"} {
		o.Events = append(o.Events, corev1.Event{InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: "shop",
			Name: "probed"}, Type: "Warning", Reason: reason,
			Message: "Readiness probe failed: gmsa login failed, password " + marker})
	}
	o.Specs[0].Content = withoutAnnotations([]byte(`{"metadata":{"name":"web01","annotations":{"a":"` + marker +
		`"},"managedFields":[{"manager":"` + marker + `"}]},"credspec":` + specJSON + `}`))

	var bundle bytes.Buffer
	report := Diagnose(o)
	if err := WriteBundle(&bundle, o, report, []byte(fmt.Sprint(report))); err != nil {
		t.Fatal(err)
	}
	zip, err := gzip.NewReader(&bundle)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for archive := tar.NewReader(zip); ; {
		header, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		all[header.Name] = string(content)
	}
	for name, content := range all {
		for _, coded := range []string{marker, "m4rker", hex.EncodeToString([]byte(marker)),
			base64.StdEncoding.EncodeToString([]byte(marker)), "m\x004\x00r\x00k"} {
			if strings.Contains(content, coded) {
				t.Errorf("%s contains the marker as %q:\n%s", name, coded, content)
			}
		}
	}
	for name, want := range map[string]string{
		"report.json": "STATUS_BAD_VALIDATION_CLASS", "report.txt": "0xD00000A7",
		"objects/releases.json": "gmsa-system/web", "objects/nodes.json": "win-2",
		"objects/pods-with-gmsa.json": "web-0", "objects/pods-of-releases.json": "plugin-win-1",
		"objects/secrets.json":          "gmsa-system/web-creds",
		"objects/credential-specs.json": "S-1-5-21-1004336348", "objects/events.json": "Unhealthy",
		"objects/webhooks.json": "gmsa-webhook", "objects/uses.json": "shop",
	} {
		if !strings.Contains(all["gmsactl-doctor/"+name], want) {
			t.Errorf("%s does not contain %q:\n%s", name, want, all["gmsactl-doctor/"+name])
		}
	}
}

// docs/troubleshooting.md explains CCG's events as Decode does, and Decode explains its numbers.
func TestTroubleshootingPageMatchesDecode(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile("../../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(content)
	for id, e := range ccgEvents {
		if !strings.Contains(page, fmt.Sprintf("| %d | %s |", id, e.text)) {
			t.Errorf("docs/troubleshooting.md does not contain event %d, %s", id, e.text)
		}
	}
	for _, m := range regexp.MustCompile("#(\\d{10})` \\| `(0x[0-9A-F]{8})`").FindAllStringSubmatch(page, -1) {
		n, err := strconv.ParseUint(m[1], 10, 32)
		if err != nil || fmt.Sprintf("0x%08X", n) != m[2] {
			t.Errorf("#%s is not %s", m[1], m[2])
		}
		if _, known := Explain(uint32(n)); !known {
			t.Errorf("%s has no explanation", m[2])
		}
	}
}
