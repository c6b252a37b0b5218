package charts

import (
	"crypto/sha256"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/ccgrkc/ccgrkc/internal/credential"
)

// pod is the pod spec of a rendered object.
type pod struct {
	kind, name string // of the object
	corev1.PodSpec
}

// pods returns the pods of all objects that have a pod spec.
func pods(t *testing.T, objects []*unstructured.Unstructured) []pod {
	t.Helper()
	var all []pod
	for _, o := range objects {
		var path []string
		switch o.GetKind() {
		case "DaemonSet", "Deployment", "Job":
			path = []string{"spec", "template", "spec"}
		case "Pod":
			path = []string{"spec"}
		default:
			continue
		}
		spec, _, err := unstructured.NestedMap(o.Object, path...)
		if err != nil {
			t.Fatal(err)
		}
		p := pod{kind: o.GetKind(), name: o.GetName()}
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(spec, &p.PodSpec); err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	return all
}

// TestChartsCreateOnlyTheseKinds verifies that the charts create no Secrets with data, and that only the webhook's
// chart creates cluster-scoped objects.
func TestChartsCreateOnlyTheseKinds(t *testing.T) {
	eachRendering(t, func(t *testing.T, r rendering) {
		kinds := []string{"Certificate", "DaemonSet", "Issuer", "Job", "Pod", "Role", "RoleBinding", "ServiceAccount"}
		var ofTheCluster []string
		if r.chart == webhook {
			kinds = []string{"Certificate", "Deployment", "Issuer", "NetworkPolicy", "Pod", "PodDisruptionBudget", "Role", "RoleBinding", "Secret", "Service", "ServiceAccount"}
			ofTheCluster = []string{"GMSACredentialSpec", "ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition", "MutatingWebhookConfiguration", "ValidatingWebhookConfiguration",
				"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}
		}
		for _, o := range r.mustRender(t) {
			namespace := r.namespace
			if slices.Contains(ofTheCluster, o.GetKind()) {
				namespace = ""
			} else if !slices.Contains(kinds, o.GetKind()) {
				t.Errorf("%s %s", o.GetKind(), o.GetName())
			}
			if r.chart == webhook && isTest(o) && namespace != "" {
				namespace = "default" // the webhook ignores the release's own
			}
			if o.GetNamespace() != namespace {
				t.Errorf("%s %s is in namespace %q", o.GetKind(), o.GetName(), o.GetNamespace())
			}
			if o.GetKind() == "ServiceAccount" && o.GetName() == "default" {
				t.Error("the chart creates the default ServiceAccount")
			}
			// Helm stores the rendered objects in clear text.
			if o.GetKind() == "Secret" && (o.Object["data"] != nil || o.Object["stringData"] != nil) {
				t.Errorf("Secret %s is not empty", o.GetName())
			}
		}
	})
}

func isTest(o *unstructured.Unstructured) bool { return o.GetAnnotations()["helm.sh/hook"] == "test" }

// TestNamesFollowTheRelease also verifies that the names are valid for every release name.
func TestNamesFollowTheRelease(t *testing.T) {
	helms(t)
	names := func(r rendering) (names []string) {
		for _, o := range r.mustRender(t) {
			names = append(names, o.GetKind()+"/"+o.GetName())
		}
		slices.Sort(names)
		return slices.Compact(names)
	}
	uninstall := []string{"DaemonSet/R-uninstall", "Job/R-uninstall-stop", "Job/R-uninstall-wait", "Role/R-uninstall", "RoleBinding/R-uninstall", "ServiceAccount/R-uninstall", "ServiceAccount/R-uninstall-nodes"}
	test := []string{"ClusterRole/R-test", "GMSACredentialSpec/R-test", "Pod/R-test", "RoleBinding/R-test", "ServiceAccount/R-test"}
	for _, c := range []struct {
		r    rendering
		want []string
	}{
		{rendering{chart: installer}, []string{"DaemonSet/R", "Pod/R-test", "ServiceAccount/R"}},
		{rendering{chart: provider}, []string{"DaemonSet/R", "Pod/R-test", "Role/R", "Role/R:webhook", "RoleBinding/R", "RoleBinding/R:webhook", "ServiceAccount/R", "ServiceAccount/gmsa-secret-R-creds"}},
		{rendering{chart: provider, certManager: true, values: `certificates: {mode: certManager}`}, []string{"Certificate/R-ca", "Certificate/R-client",
			"Certificate/R-server", "DaemonSet/R", "Issuer/R-ca", "Issuer/R-selfsigned", "Pod/R-test", "Role/R", "Role/R:webhook", "RoleBinding/R", "RoleBinding/R:webhook", "ServiceAccount/R",
			"ServiceAccount/gmsa-secret-R-creds"}},
		{rendering{chart: webhook, certManager: true, values: `certificates: {mode: certManager}`}, []string{"Certificate/R", "Certificate/R-ca", "ClusterRole/R", "ClusterRoleBinding/R",
			"CustomResourceDefinition/gmsacredentialspecs.windows.k8s.io", "Deployment/R", "Issuer/R-ca", "Issuer/R-selfsigned", "MutatingWebhookConfiguration/R", "NetworkPolicy/R",
			"PodDisruptionBudget/R", "Service/R", "ServiceAccount/R", "ValidatingAdmissionPolicy/R", "ValidatingAdmissionPolicy/R-configurations", "ValidatingAdmissionPolicy/R-credspecs", "ValidatingAdmissionPolicy/R-namespaces", "ValidatingAdmissionPolicy/R-tokens", "ValidatingAdmissionPolicyBinding/R",
			"ValidatingAdmissionPolicyBinding/R-configurations", "ValidatingAdmissionPolicyBinding/R-credspecs", "ValidatingAdmissionPolicyBinding/R-namespaces", "ValidatingAdmissionPolicyBinding/R-tokens", "ValidatingWebhookConfiguration/R"}},
		{rendering{chart: webhook, values: `crd: {install: false}`}, []string{"ClusterRole/R", "ClusterRoleBinding/R", "Deployment/R", "MutatingWebhookConfiguration/R", "NetworkPolicy/R",
			"PodDisruptionBudget/R", "Role/R", "RoleBinding/R", "Secret/R-tls", "Service/R", "ServiceAccount/R", "ValidatingAdmissionPolicy/R", "ValidatingAdmissionPolicy/R-configurations", "ValidatingAdmissionPolicy/R-credspecs", "ValidatingAdmissionPolicy/R-namespaces", "ValidatingAdmissionPolicy/R-tokens",
			"ValidatingAdmissionPolicyBinding/R", "ValidatingAdmissionPolicyBinding/R-configurations", "ValidatingAdmissionPolicyBinding/R-credspecs", "ValidatingAdmissionPolicyBinding/R-namespaces", "ValidatingAdmissionPolicyBinding/R-tokens", "ValidatingWebhookConfiguration/R"}},
	} {
		want := slices.Clone(c.want)
		if slices.Contains(onWindows, c.r.chart) {
			want = append(want, uninstall...)
		} else {
			want = append(want, test...)
		}
		slices.Sort(want)
		for _, release := range []string{"web", strings.Repeat("x", 45)} {
			c.r.release = release
			var got []string
			for _, name := range names(c.r) {
				kind, name, _ := strings.Cut(name, "/")
				got = append(got, kind+"/"+strings.Replace(name, release, "R", 1))
			}
			slices.Sort(got)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s, release %s (-want +got)\n%s", c.r.chart, release, diff)
			}
		}
		// Names that must be shortened, and names with dots.
		var all []string
		for _, release := range []string{strings.Repeat("x", 52) + "1", strings.Repeat("x", 52) + "2", "a.b", "a-b"} {
			c.r.release = release
			all = append(all, names(c.r)...)
		}
		taken := map[string]bool{}
		for _, name := range all {
			if strings.HasPrefix(name, "CustomResourceDefinition/") {
				continue // does not depend on the release
			}
			if taken[name] {
				t.Errorf("two releases both have %s", name)
			}
			taken[name] = true
			kind, name, _ := strings.Cut(name, "/")
			// RBAC allows any name that is valid in a URL.
			if errs := validation.IsDNS1123Subdomain(strings.ReplaceAll(name, ":", "-")); errs != nil || len(name) > 63 && !strings.HasPrefix(name, "gmsa-secret-") {
				t.Errorf("%s %s: %d characters, %v", kind, name, len(name), errs)
			}
			if strings.Contains(name, ":") && kind != "Role" && kind != "RoleBinding" {
				t.Errorf("%s %s has a colon", kind, name)
			}
			if errs := validation.IsDNS1123Label(name); errs != nil && (kind == "Job" || kind == "Pod" || kind == "Deployment") {
				t.Errorf("%s %s: %v", kind, name, errs)
			}
			if errs := validation.IsDNS1035Label(name); errs != nil && kind == "Service" {
				t.Errorf("%s %s: %v", kind, name, errs)
			}
		}
	}
}

// TestReleasesInANamespaceShareNoObjects also tests release names with a common prefix.
func TestReleasesInANamespaceShareNoObjects(t *testing.T) {
	helms(t)
	owner := map[string]string{}
	for _, release := range []string{"web", "web-ca", "web-server", "web-test", "web-stop", "web-webhook", "web-creds", "we"} {
		r := rendering{chart: provider, release: release, certManager: true, values: `certificates: {mode: certManager}`}
		for _, o := range r.mustRender(t) {
			key := o.GetKind() + "/" + o.GetName()
			if other, taken := owner[key]; taken && other != release {
				t.Errorf("releases %s and %s both have %s", other, release, key)
			}
			owner[key] = release
			// A selector that matches the pods of another release would adopt them.
			if labels, found, _ := unstructured.NestedStringMap(o.Object, "spec", "selector", "matchLabels"); found {
				if labels["app.kubernetes.io/instance"] != release {
					t.Errorf("%s selects pods by %v", key, labels)
				}
			}
		}
	}
}

func TestOnlyPodsThatCallTheAPIGetAToken(t *testing.T) {
	eachRendering(t, func(t *testing.T, r rendering) {
		objects := r.mustRender(t)
		for _, p := range pods(t, objects) {
			wants := p.kind == "Job" || p.kind == "Deployment" || p.kind == "DaemonSet" && r.chart == provider && !strings.HasSuffix(p.name, "-uninstall")
			if p.AutomountServiceAccountToken == nil || *p.AutomountServiceAccountToken != wants {
				t.Errorf("%s %s: automountServiceAccountToken is not %v", p.kind, p.name, wants)
			}
			// A kubelet can request a token of the ServiceAccounts of the pods on its node.
			if p.kind == "DaemonSet" && strings.HasSuffix(p.name, "-uninstall") && !strings.HasSuffix(p.ServiceAccountName, "-uninstall-nodes") {
				t.Errorf("the cleanup on every node uses ServiceAccount %s, which has permissions", p.ServiceAccountName)
			}
			if p.ServiceAccountName == "" {
				t.Errorf("%s %s uses the default ServiceAccount", p.kind, p.name)
			}
			find(t, objects, "ServiceAccount", p.ServiceAccountName)
			for _, v := range p.Volumes {
				if v.Projected != nil {
					t.Errorf("%s %s has the projected volume %s", p.kind, p.name, v.Name)
				}
			}
		}
		for _, o := range objects {
			if o.GetKind() == "ServiceAccount" && o.Object["automountServiceAccountToken"] != false {
				t.Errorf("ServiceAccount %s: automountServiceAccountToken is not false", o.GetName())
			}
		}
	})
}

// TestPodsHaveLeastPrivilege: on Windows, HostProcess containers as SYSTEM without ports; on Linux, an unprivileged
// user.
func TestPodsHaveLeastPrivilege(t *testing.T) {
	eachRendering(t, func(t *testing.T, r rendering) {
		for _, p := range pods(t, r.mustRender(t)) {
			system := p.NodeSelector["kubernetes.io/os"]
			if isGMSATest := r.chart == webhook && p.kind == "Pod"; isGMSATest != (p.OS == nil) || p.OS != nil && string(p.OS.Name) != system {
				t.Errorf("%s %s: the os of the pod is %v, and of its nodes %q", p.kind, p.name, p.OS, system)
			}
			if p.EnableServiceLinks == nil || *p.EnableServiceLinks {
				t.Errorf("%s %s: enableServiceLinks is not false", p.kind, p.name)
			}
			for _, c := range slices.Concat(p.InitContainers, p.Containers) {
				if len(c.Ports) > 0 {
					t.Errorf("%s %s declares ports, so two pods do not fit on a node during a rolling update", p.kind, p.name)
				}
				if system == "linux" {
					s := c.SecurityContext
					if s == nil || *s.AllowPrivilegeEscalation || !*s.ReadOnlyRootFilesystem || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) {
						t.Errorf("%s %s: container %s is not restricted: %v", p.kind, p.name, c.Name, s)
					}
				}
			}
			s := p.SecurityContext
			switch system {
			case "windows":
				w := s.WindowsOptions
				if !p.HostNetwork || w == nil || w.HostProcess == nil || !*w.HostProcess || *w.RunAsUserName != `NT AUTHORITY\SYSTEM` {
					t.Errorf("%s %s is not a HostProcess pod of SYSTEM: %v", p.kind, p.name, s)
				}
			case "linux":
				if p.HostNetwork || !*s.RunAsNonRoot || *s.RunAsUser == 0 || s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
					t.Errorf("%s %s is not restricted: %v", p.kind, p.name, s)
				}
			default:
				t.Errorf("%s %s does not select an operating system", p.kind, p.name)
			}
		}
	})
}

// TestRolesGrantOnlyWhatIsUsed checks the rendered objects. TestReleasesHaveOnlyTheListedPermissions checks the API
// server.
func TestRolesGrantOnlyWhatIsUsed(t *testing.T) {
	type granted struct {
		Rules []rbacv1.PolicyRule
		To    rbacv1.Subject
	}
	rule := func(verbs []string, group, resource string, names ...string) rbacv1.PolicyRule {
		return rbacv1.PolicyRule{Verbs: verbs, APIGroups: []string{group}, Resources: []string{resource}, ResourceNames: names}
	}
	eachRendering(t, func(t *testing.T, r rendering) {
		own := rbacv1.Subject{Kind: "ServiceAccount", Name: strings.ReplaceAll(r.release, ".", "-"), Namespace: r.namespace}
		want := map[string]granted{}
		switch r.chart {
		case provider:
			own.Name = r.release
			secret := credential.SecretName(r.release)
			if r.name == "everything" {
				secret = "other.name"
			}
			want["Role "+r.release] = granted{[]rbacv1.PolicyRule{rule([]string{"get"}, "", "secrets", secret)}, own}
			if r.name != "no-webhook" {
				// The ServiceAccount has no permissions, see templates/webhook.yaml.
				want["Role "+r.release+":webhook"] = granted{[]rbacv1.PolicyRule{rule([]string{"create"}, "", "serviceaccounts/token", "gmsa-secret-"+secret)},
					rbacv1.Subject{Kind: "ServiceAccount", Name: "rancher-gmsa-webhook", Namespace: r.namespace}}
			}
		case webhook:
			if r.name == "name-with-dots" {
				own.Name = "corp-example-com-" + shortHash(r.release)
			}
			configurations := rule([]string{"get", "patch"}, "admissionregistration.k8s.io", "mutatingwebhookconfigurations", own.Name)
			configurations.Resources = append(configurations.Resources, "validatingwebhookconfigurations")
			rules := []rbacv1.PolicyRule{
				rule([]string{"get"}, "windows.k8s.io", "gmsacredentialspecs"),
				rule([]string{"create"}, "authorization.k8s.io", "subjectaccessreviews"),
			}
			// A policy limits the token requests, and another one the patch permission to the CA bundle.
			policies := []string{"-tokens"}
			if r.name != "certificate-provided-with-ca" {
				rules = append(rules, configurations)
				policies = append(policies, "-configurations")
			}
			for _, policy := range policies {
				for _, kind := range []string{"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"} {
					if !slices.ContainsFunc(r.mustRender(t), func(o *unstructured.Unstructured) bool {
						return o.GetKind() == kind && strings.Contains(o.GetName(), policy)
					}) {
						t.Errorf("no %s %s", kind, policy)
					}
				}
			}
			want["ClusterRole "+own.Name] = granted{rules, own}
			if !strings.HasPrefix(r.name, "certificate-") && !r.certManager {
				want["Role "+own.Name] = granted{[]rbacv1.PolicyRule{rule([]string{"get", "update"}, "", "secrets", own.Name+"-tls")}, own}
			}
		}
		if slices.Contains(onWindows, r.chart) && r.name != "no-uninstall" {
			to := own
			to.Name = r.release + "-uninstall"
			want["Role "+r.release+"-uninstall"] = granted{[]rbacv1.PolicyRule{
				rule([]string{"delete"}, "apps", "daemonsets", r.release),
				rule([]string{"get"}, "apps", "daemonsets", r.release+"-uninstall"),
				rule([]string{"list"}, "", "pods"),
			}, to}
		}
		got := map[string]granted{}
		if r.chart == webhook {
			test := own.Name + "-test"
			want["ClusterRole "+test] = granted{[]rbacv1.PolicyRule{rule([]string{"use"}, "windows.k8s.io", "gmsacredentialspecs", test)},
				rbacv1.Subject{Kind: "ServiceAccount", Name: test, Namespace: "default"}}
		}
		for _, o := range r.mustRender(t) {
			var role rbacv1.ClusterRole
			var binding rbacv1.ClusterRoleBinding
			switch kind := strings.TrimPrefix(o.GetKind(), "Cluster"); kind {
			case "Role":
				if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &role); err != nil {
					t.Fatal(err)
				}
				key := o.GetKind() + " " + o.GetName()
				got[key] = granted{role.Rules, got[key].To}
			case "RoleBinding":
				if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &binding); err != nil {
					t.Fatal(err)
				}
				key := binding.RoleRef.Kind + " " + binding.RoleRef.Name
				// Only "helm test" has a RoleBinding to a ClusterRole.
				if key != strings.TrimSuffix(o.GetKind(), "Binding")+" "+o.GetName() && !(isTest(o) && key == "ClusterRole "+o.GetName()) || len(binding.Subjects) != 1 {
					t.Fatalf("%s %s binds %v to %s", o.GetKind(), o.GetName(), binding.Subjects, key)
				}
				got[key] = granted{got[key].Rules, binding.Subjects[0]}
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("roles (-want +got)\n%s", diff)
		}
	})
}

func shortHash(text string) string {
	return fmt.Sprintf("%x", sha256.Sum256([]byte(text)))[:8]
}

// TestNoPodMountsTheCAKey verifies that pods mount only the Secrets with leaf certificates, and only the required keys.
func TestNoPodMountsTheCAKey(t *testing.T) {
	eachRendering(t, func(t *testing.T, r rendering) {
		objects := r.mustRender(t)
		mounted := map[string]bool{}
		for _, p := range pods(t, objects) {
			for _, v := range p.Volumes {
				if r.chart == webhook && v.ConfigMap != nil {
					continue // the client CA
				}
				files := 3
				if r.name == "certificate-provided-with-ca" {
					files = 2
				}
				if v.Secret == nil || len(v.Secret.Items) != files {
					t.Fatalf("%s %s: want a volume with %d files of a Secret, got %v", p.kind, p.name, files, v)
				}
				mounted[v.Secret.SecretName] = true
			}
		}
		for _, o := range objects {
			if o.GetKind() != "Certificate" {
				continue
			}
			secret, _, _ := unstructured.NestedString(o.Object, "spec", "secretName")
			isCA, _, _ := unstructured.NestedBool(o.Object, "spec", "isCA")
			if mounted[secret] == isCA {
				t.Errorf("Certificate %s: CA %v, mounted %v", o.GetName(), isCA, mounted[secret])
			}
		}
	})
}

// TestUninstallRunsOnEveryNode also verifies the order of the steps.
func TestUninstallRunsOnEveryNode(t *testing.T) {
	eachRendering(t, func(t *testing.T, r rendering) {
		if !slices.Contains(onWindows, r.chart) || r.name == "no-uninstall" {
			for _, o := range r.mustRender(t) {
				if strings.Contains(o.GetName(), "uninstall") {
					t.Errorf("%s %s exists without an uninstall hook", o.GetKind(), o.GetName())
				}
			}
			return
		}
		objects := r.mustRender(t)
		weights := map[string]string{}
		for _, o := range objects {
			if o.GetAnnotations()["helm.sh/hook"] == "pre-delete" {
				weights[o.GetKind()+" "+o.GetLabels()["app.kubernetes.io/component"]] = o.GetAnnotations()["helm.sh/hook-weight"]
			}
		}
		want := map[string]string{"ServiceAccount uninstall": "-10", "Role uninstall": "-10", "RoleBinding uninstall": "-10",
			"Job uninstall-stop": "0", "DaemonSet uninstall": "5", "Job uninstall-wait": "10"}
		if diff := cmp.Diff(want, weights); diff != "" {
			t.Errorf("hooks (-want +got)\n%s", diff)
		}
		for _, p := range pods(t, objects) {
			if p.kind == "DaemonSet" && strings.HasSuffix(p.name, "-uninstall") {
				if diff := cmp.Diff(map[string]string{"kubernetes.io/os": "windows"}, p.NodeSelector); diff != "" {
					t.Error("nodes:", diff)
				}
				if diff := cmp.Diff([]corev1.Toleration{{Operator: corev1.TolerationOpExists}}, p.Tolerations); diff != "" || p.Affinity != nil {
					t.Error("tolerations:", diff, p.Affinity)
				}
				if diff := cmp.Diff(append(slices.Clone(p.InitContainers[0].Command), "--keep-running"), p.Containers[0].Command); diff != "" {
					t.Error("commands:", diff)
				}
			}
		}
	})
}

// TestProgramsAcceptTheirFlags runs the programs. ccg-plugin-installer runs only on Windows: package e2e runs its
// commands there.
func TestProgramsAcceptTheirFlags(t *testing.T) {
	helms(t)
	dir := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", dir, "./cmd/container-probe",
		"./cmd/gmsa-account-provider", "./cmd/gmsa-webhook", "./cmd/uninstall-hook")
	build.Dir = "../../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	tested := map[string]bool{}
	for _, r := range matrix {
		for _, p := range pods(t, r.mustRender(t)) {
			for _, c := range slices.Concat(p.InitContainers, p.Containers) {
				commands := [][]string{c.Command}
				for _, probe := range []*corev1.Probe{c.StartupProbe, c.ReadinessProbe, c.LivenessProbe} {
					if probe != nil && probe.Exec != nil {
						commands = append(commands, probe.Exec.Command)
					}
				}
				for _, command := range commands {
					program := strings.TrimSuffix(filepath.Base(command[0]), ".exe")
					if line := strings.Join(command, " "); program == "ccg-plugin-installer" || tested[line] {
						continue
					} else {
						tested[line] = true
					}
					args := command[1:]
					if program == "gmsa-account-provider" || program == "gmsa-webhook" {
						args = append(slices.Clone(args), "--help") // fails if a flag before it is unknown
					}
					out, err := exec.CommandContext(t.Context(), filepath.Join(dir, program), args...).CombinedOutput()
					// Outside a pod, a command with valid flags fails with this error.
					missing := map[string]string{
						"container-probe": "CONTAINER_SANDBOX_MOUNT_POINT is not set",
						"uninstall-hook":  "KUBERNETES_SERVICE_HOST",
					}[program]
					if missing != "" && strings.Contains(string(out), missing) {
						err = nil
					}
					if err != nil {
						t.Errorf("%s %s runs %q: %v\n%s", p.kind, p.name, command, err, out)
					}
				}
			}
		}
	}
	if len(tested) < 10 {
		t.Errorf("only %d different commands", len(tested))
	}
}
