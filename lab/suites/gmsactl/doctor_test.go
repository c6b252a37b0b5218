package gmsactl

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ccgrkc/ccgrkc/internal/servingcert/certtest"
	"github.com/ccgrkc/ccgrkc/lab/env/cluster"
	"github.com/ccgrkc/ccgrkc/lab/env/tools"
)

// diagnosis is the output of doctor -o json, as docs/gmsactl.md describes it.
type diagnosis struct {
	Findings []finding `json:"findings"`
	Skipped  []unseen  `json:"skipped"`
}

type finding struct {
	Severity string   `json:"severity"`
	Code     string   `json:"code"`
	Object   string   `json:"object"`
	Text     string   `json:"text"`
	Commands []string `json:"commands"`
}

type unseen struct {
	What       string `json:"what"`
	Permission string `json:"permission"`
}

func (d diagnosis) has(code, object string) bool {
	for _, f := range d.Findings {
		if f.Code == code && f.Object == object {
			return true
		}
	}
	return false
}

// webhook installs the webhook's chart, until the test ends.
func webhook(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	release := cluster.Release{Cluster: c, Chart: cluster.Webhook, Namespace: nodesNamespace, Name: cluster.Webhook}
	_, err := release.Install(t.Context())
	must(t, err)
	t.Cleanup(func() {
		if out, err := release.Uninstall(context.Background()); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
}

func TestDoctorOfAHealthyInstallation(t *testing.T) {
	c, ad := nodes(t)
	p := newProgram(t, c.ControlPlane.Kubeconfig)
	web01(t, p, ad)
	webhook(t, c)
	r := p.want(good, []string{"No faults found", "releases of the charts: 2", "Windows nodes: 2",
		"credential specs: 1", "webhooks for gMSAs: 2"}, "doctor")
	t.Log(r.stdout)
}

func TestDoctorOfTheWebhook(t *testing.T) {
	c, ad := nodes(t)
	p := newProgram(t, c.ControlPlane.Kubeconfig)
	web01(t, p, ad)
	webhook(t, c)
	find := func(code, object string) {
		t.Helper()
		must(t, cluster.Eventually(t.Context(), time.Minute, func() error {
			r := p.run("doctor", "-o", "json")
			if d := decode[diagnosis](t, r); !d.has(code, object) || r.code != wrong {
				return fmt.Errorf("no finding %s of %s in %v", code, object, r)
			}
			return nil
		}))
	}
	const mutating, validating = "mutatingwebhookconfigurations " + cluster.Webhook,
		"validatingwebhookconfigurations " + cluster.Webhook

	// A second webhook with the name of SIG Windows' webhook. It matches no namespace.
	sideEffects, path := admissionv1.SideEffectClassNone, "https://127.0.0.1:1/mutate"
	configurations := c.ControlPlane.Client().AdmissionregistrationV1().MutatingWebhookConfigurations()
	_, err := configurations.Create(t.Context(), &admissionv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "gmsa-webhook"},
		Webhooks: []admissionv1.MutatingWebhook{{
			Name:         "admission-webhook.windows-gmsa.sigs.k8s.io",
			ClientConfig: admissionv1.WebhookClientConfig{URL: &path}, SideEffects: &sideEffects,
			AdmissionReviewVersions: []string{"v1"},
			Rules:                   []admissionv1.RuleWithOperations{{Operations: []admissionv1.OperationType{"CREATE"}, Rule: admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}}}},
			NamespaceSelector:       &metav1.LabelSelector{MatchLabels: map[string]string{"no-namespace": "has-this"}},
		}},
	}, metav1.CreateOptions{})
	must(t, err)
	find("webhook-twice", "cluster")
	must(t, configurations.Delete(t.Context(), "gmsa-webhook", metav1.DeleteOptions{}))

	// The test overwrites the CA bundle with another CA. The webhook repairs it within seconds, so the test repeats
	// this.
	stranger, _, _ := certtest.Issue(t, "x", 1000*time.Hour)
	patch := fmt.Appendf(nil, `[{"op":"add","path":"/webhooks/0/clientConfig/caBundle","value":%q}]`,
		base64.StdEncoding.EncodeToString(stranger))
	overwriting, stop := context.WithCancel(t.Context())
	overwritten := make(chan error, 1)
	go func() {
		var err error
		for overwriting.Err() == nil && err == nil {
			_, err = configurations.Patch(context.Background(), cluster.Webhook, types.JSONPatchType, patch,
				metav1.PatchOptions{})
			time.Sleep(100 * time.Millisecond)
		}
		overwritten <- err
	}()
	find("webhook-ca-mismatch", mutating)
	stop()
	must(t, <-overwritten)
	must(t, cluster.Eventually(t.Context(), time.Minute, func() error {
		if r := p.run("doctor"); r.code != good {
			return fmt.Errorf("the webhook did not repair its CA bundle: %v", r)
		}
		return nil
	}))

	scale := func(replicas string) {
		_, err := c.Run(t.Context(), tools.Kubectl, "scale", "deployment", cluster.Webhook, "--namespace",
			nodesNamespace, "--replicas", replicas)
		must(t, err)
	}
	// The third pod fits on no node.
	_, err = c.Run(t.Context(), tools.Kubectl, "cordon", "linux-1")
	must(t, err)
	scale("3")
	find("webhook-degraded", validating)
	scale("0")
	find("webhook-down", mutating)
	_, err = c.Run(t.Context(), tools.Kubectl, "uncordon", "linux-1")
	must(t, err)
	find("webhook-down", validating)
}

func TestDoctorFindsFaults(t *testing.T) {
	c, ad := nodes(t)
	p := newProgram(t, c.ControlPlane.Kubeconfig)
	web01(t, p, ad)
	client, shop := c.ControlPlane.Client(), namespace(t, c.ControlPlane)

	// There is no webhook and no Secret. One pod's ServiceAccount does not have the use permission. Another pod is on a
	// node without a provider.
	must(t, client.CoreV1().Secrets(nodesNamespace).Delete(t.Context(), nodesSecret, metav1.DeleteOptions{}))
	defer func() { must(t, putReader(context.Background(), c, ad.Reader, ad.Password)) }()
	name := "web01"
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "uncopied"}, Spec: corev1.PodSpec{
		NodeSelector:    map[string]string{"kubernetes.io/hostname": "nowhere"},
		SecurityContext: &corev1.PodSecurityContext{WindowsOptions: &corev1.WindowsSecurityContextOptions{GMSACredentialSpecName: &name}},
		Containers:      []corev1.Container{{Name: "app", Image: c.AppImage()}},
	}}
	// After an uninstallation, the policies remain active for a moment.
	must(t, cluster.Eventually(t.Context(), 20*time.Second, func() error {
		_, err := client.CoreV1().Pods(shop).Create(t.Context(), pod, metav1.CreateOptions{})
		return err
	}))
	must(t, c.CreateAppPod(t.Context(), shop, "refused", "win-2", nodesInput))
	defer func() {
		_, err := c.Run(context.Background(), tools.Kubectl, "delete", "pods", "--all", "--namespace", shop,
			"--grace-period=1")
		must(t, err)
	}()
	// The plugin waits 10 s for a provider before it reports an error.
	_, err := c.WaitForStartFailure(t.Context(), shop, "refused", "endpoint-absent", time.Minute)
	must(t, err)

	d := decode[diagnosis](t, p.want(wrong, nil, "doctor", "-o", "json"))
	for _, want := range [][2]string{
		{"secret-not-found", "Secret gmsa-system/web-creds"},
		{"webhook-missing", "cluster"},
		{"use-forbidden", "ServiceAccount " + shop + "/default"},
		{"credential-spec-not-copied", "pod " + shop + "/uncopied"},
		{"endpoint-absent", "pod " + shop + "/refused"},
		{"node-outside-selector", "pod " + shop + "/refused"},
		{"pod-unschedulable", "pod " + shop + "/uncopied"},
	} {
		if !d.has(want[0], want[1]) {
			t.Errorf("no finding %s of %s in %+v", want[0], want[1], d.Findings)
		}
	}
	if len(d.Findings) > 0 && d.Findings[0].Object != "Secret gmsa-system/web-creds" {
		t.Errorf("the first finding is %+v", d.Findings[0])
	}

	// The command that grants the permission works as printed.
	i := slices.IndexFunc(d.Findings, func(f finding) bool { return f.Code == "use-forbidden" })
	for _, line := range d.Findings[i].Commands {
		cmd, err := c.Shell(t.Context(), line)
		must(t, err)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", line, err, out)
		}
	}
	defer func() {
		_, err := c.Run(context.Background(), tools.Kubectl, "delete", "clusterrole", "gmsa-web01")
		must(t, err)
	}()

	// For one pod, doctor reports only the findings of this pod.
	d = decode[diagnosis](t, p.want(wrong, nil, "doctor", "pod", "refused", "-n", shop, "-o", "json"))
	if !d.has("endpoint-absent", "pod "+shop+"/refused") || !d.has("node-outside-selector", "pod "+shop+"/refused") ||
		!d.has("secret-not-found", "Secret gmsa-system/web-creds") {
		t.Errorf("%+v", d)
	}
	d = decode[diagnosis](t, p.want(wrong, nil, "doctor", "pod", "uncopied", "-n", shop, "-o", "json"))
	if d.has("endpoint-absent", "pod "+shop+"/refused") || d.has("use-forbidden", "ServiceAccount "+shop+"/default") ||
		!d.has("credential-spec-not-copied", "pod "+shop+"/uncopied") {
		t.Errorf("%+v", d)
	}
	// On the node, the provider answers but has no Secret.
	d = decode[diagnosis](t, p.want(wrong, nil, "doctor", "node", "win-1", "-o", "json"))
	if !d.has("secret-not-found", "node win-1") || !d.has("node-ports", "node win-1") ||
		d.has("node-outside-selector", "pod "+shop+"/refused") {
		t.Errorf("%+v", d)
	}
	p.want(wrong, []string{"not found"}, "doctor", "pod", "nobody", "-n", shop)
	p.want(usage, nil, "doctor", "pod")
}

// A user with few permissions gets the missing permissions and the results of all other checks.
func TestDoctorWithFewPermissions(t *testing.T) {
	c, ad := nodes(t)
	web01(t, newProgram(t, c.ControlPlane.Kubeconfig), ad)
	p := newProgram(t, kubeconfigOf(t, c.ControlPlane, nodesNamespace))
	r := p.run("doctor", "-o", "json")
	d := decode[diagnosis](t, r)
	if r.code != unable || len(d.Findings) > 0 {
		t.Errorf("%v", r)
	}
	for _, permission := range []string{"list daemonsets.apps in the whole cluster", "list nodes in the whole cluster",
		"list pods in the whole cluster", "list gmsacredentialspecs.windows.k8s.io in the whole cluster"} {
		if !slices.ContainsFunc(d.Skipped, func(u unseen) bool { return u.Permission == permission }) {
			t.Errorf("no check was skipped for %q: %+v", permission, d.Skipped)
		}
	}

	// With permissions in one namespace, doctor finds the faults there.
	must(t, c.ControlPlane.Client().CoreV1().Secrets(nodesNamespace).Delete(t.Context(), nodesSecret,
		metav1.DeleteOptions{}))
	defer func() { must(t, putReader(context.Background(), c, ad.Reader, ad.Password)) }()
	p = newProgram(t, kubeconfigOf(t, c.ControlPlane, nodesNamespace,
		rbacv1.PolicyRule{APIGroups: []string{"apps"}, Resources: []string{"daemonsets"}, Verbs: []string{"list"}},
		rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"secrets"}, ResourceNames: []string{nodesSecret},
			Verbs: []string{"get"}}))
	d = decode[diagnosis](t, p.want(wrong, nil, "doctor", "-n", nodesNamespace, "-o", "json"))
	if len(d.Findings) != 1 || !d.has("secret-not-found", "Secret gmsa-system/web-creds") || len(d.Skipped) == 0 {
		t.Errorf("%+v", d)
	}
}

// No file of a bundle contains the account's password or data of users' pods.
func TestABundleOfAClusterContainsNoSecret(t *testing.T) {
	c, ad := nodes(t)
	p := newProgram(t, c.ControlPlane.Kubeconfig)
	web01(t, p, ad)
	const marker = "m4rker-of-a-secret"
	shop := namespace(t, c.ControlPlane)
	must(t, putReader(t.Context(), c, ad.Reader, marker))
	defer func() { must(t, putReader(context.Background(), c, ad.Reader, ad.Password)) }()
	pod, err := c.AppPod(shop, "web", "nowhere", nodesInput)
	must(t, err)
	pod.Annotations = map[string]string{"kubectl.kubernetes.io/last-applied-configuration": marker}
	pod.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "PASSWORD", Value: marker}}
	pod.Spec.Containers[0].Args = []string{"--password=" + marker}
	_, err = c.ControlPlane.Client().CoreV1().Pods(shop).Create(t.Context(), pod, metav1.CreateOptions{})
	must(t, err)
	defer func() {
		_, err := c.Run(context.Background(), tools.Kubectl, "delete", "pods", "--all", "--namespace", shop,
			"--grace-period=1")
		must(t, err)
	}()

	r := p.want(wrong, nil, "doctor", "--all-nodes", "--bundle", "doctor.tgz")
	info, err := os.Stat(filepath.Join(p.home, "doctor.tgz"))
	must(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("others may read the bundle: %v", info.Mode())
	}
	f, err := os.Open(filepath.Join(p.home, "doctor.tgz"))
	must(t, err)
	defer f.Close()
	zip, err := gzip.NewReader(f)
	must(t, err)
	texts := map[string]string{"stdout": r.stdout, "stderr": r.stderr}
	for archive := tar.NewReader(zip); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		content, err := io.ReadAll(archive)
		must(t, err)
		texts[header.Name] = string(content)
		if strings.HasSuffix(header.Name, ".json") && !json.Valid(content) {
			t.Errorf("%s is no JSON", header.Name)
		}
	}
	for name, text := range texts {
		for _, form := range []string{marker, base64.StdEncoding.EncodeToString([]byte(marker))} {
			if strings.Contains(text, form) {
				t.Errorf("%s has the secret in it:\n%s", name, text)
			}
		}
	}
	if !strings.Contains(texts["gmsactl-doctor/objects/pods-with-gmsa.json"], `"`+shop+`"`) ||
		!strings.Contains(texts["gmsactl-doctor/objects/node-checks.json"], "win-1") {
		t.Errorf("it has too little in it: %v", texts)
	}
}
