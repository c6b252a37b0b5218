// Package charts tests the Helm charts. The programs of Helm 3 and Helm 4 render them.
//
// The flag -update writes the golden files, the tables in the READMEs, docs/values.md and the descriptions in the
// schemas.
package charts

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/ccgrkc/ccgrkc/lab/env/tools"
	"github.com/ccgrkc/ccgrkc/lab/labtest"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write golden files and generated documentation")

const (
	installer = "rancher-gmsa-plugin-installer"
	provider  = "rancher-gmsa-account-provider"
	webhook   = "rancher-gmsa-webhook"

	chartsDir = "../../../charts"
	// kubeVersion is the Kubernetes version for renderings without a cluster. Golden files do not depend on the lab's
	// version.
	kubeVersion = "1.31.0"
)

var (
	charts = []string{installer, provider, webhook}
	// onWindows has the charts that run on Windows nodes and clean up there.
	onWindows = []string{installer, provider}
)

// rendering is one way to install a chart.
type rendering struct {
	chart, name        string
	release, namespace string
	values             string // YAML
	certManager        bool   // the cluster has the API cert-manager.io/v1
}

// testCA is the certificate of a CA.
const testCA = `-----BEGIN CERTIFICATE-----
MIIBezCCASGgAwIBAgIUL5cPuXA+GQczWsclOJJiWMkOu8YwCgYIKoZIzj0EAwIw
EjEQMA4GA1UEAwwHdGVzdCBDQTAgFw0yNjExMjMwNzAzNThaGA8yMTI2MTAzMDA3
MDM1OFowEjEQMA4GA1UEAwwHdGVzdCBDQTBZMBMGByqGSM49AgEGCCqGSM49AwEH
A0IABEEm7WgKbAajP5qO31y4PqelQkcjR4//rC8WSeHVe0W5015CSi4X9UNvHGOu
QPbJ2CIPT2letGxbmMjLoNUNXfOjUzBRMB0GA1UdDgQWBBQDo61umWCL9X1xIebT
qYQGxYrC6DAfBgNVHSMEGDAWgBQDo61umWCL9X1xIebTqYQGxYrC6DAPBgNVHRMB
Af8EBTADAQH/MAoGCCqGSM49BAMCA0gAMEUCIQCeAO+kbjoiEAGKqfXB/VoxSNAW
TQ87b5uSIogo9TBjGgIgU6/XjJvf45HqtSxnkZEIX1KJlYvfnVhf0K8YzjPzyHY=
-----END CERTIFICATE-----
`

// matrix has the renderings that the golden files record and that the API server must accept.
var matrix = []rendering{
	{chart: installer, name: "defaults"},
	{chart: installer, name: "everything", values: `
global: {cattle: {systemDefaultRegistry: registry.example.com/mirror}}
image: {registry: ignored.example.com, repository: team/ccgrkc, tag: v9, pullPolicy: Always}
imagePullSecrets: [{name: pull}]
plugin: {runAs: local-service, interval: 1m30s, replaceForeign: true}
log: {level: debug, format: json}
nodeSelector: {pool: windows-2022}
tolerations: [{key: os, value: windows, effect: NoSchedule}]
affinity:
  nodeAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms: [{matchExpressions: [{key: arch, operator: In, values: [x]}]}]
resources: {requests: {cpu: 50m, memory: 64Mi}, limits: {cpu: 1, memory: 256Mi}}
priorityClassName: ""
updateStrategy: {type: RollingUpdate, rollingUpdate: {maxSurge: 0, maxUnavailable: 3}}
podLabels: {team: identity, cost: "42"}
podAnnotations: {note: hello}
serviceAccount: {annotations: {owner: identity}}
extraEnv: [{name: GODEBUG, value: x}]
probes: {readiness: {initialDelaySeconds: 1, periodSeconds: 3, timeoutSeconds: 4, failureThreshold: 5}}
uninstall: {timeout: 90s, tolerations: [], resources: {}}
`},
	{chart: installer, name: "no-uninstall", values: `uninstall: {enabled: false}`},
	{chart: installer, name: "null-lists", values: `
tolerations: null
nodeSelector: null
podLabels: null
podAnnotations: null
affinity: null
resources: null
extraEnv: null
imagePullSecrets: null
global: null
image: {tag: null, digest: null, registry: null}
`},
	{chart: installer, name: "on-delete", values: `updateStrategy: {type: OnDelete, rollingUpdate: null}`},

	{chart: provider, name: "defaults"},
	{chart: provider, name: "everything", values: `
image:
  registry: registry.example.com:5000
  digest: "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
imagePullSecrets: [{name: one}, {name: two}]
credentials: {secretName: other.name, maxStale: 0s}
certificates: {lifetime: 1h}
plugin: {runAs: launching-user}
log: {level: warn, format: json}
metrics: {enabled: true, port: 9500, host: "fd00::1"}
nodeSelector: {gmsa: finance}
tolerations: []
affinity: {}
resources: {requests: {cpu: 50m, memory: 64Mi}, limits: {memory: 256Mi}}
priorityClassName: system-cluster-critical
updateStrategy: {type: RollingUpdate, rollingUpdate: {maxSurge: 0, maxUnavailable: 25%}}
minReadySeconds: 0
podLabels: {team: identity}
podAnnotations: {prometheus.io/scrape: "no"}
serviceAccount: {annotations: {owner: identity}}
extraEnv: [{name: GODEBUG, value: x}]
`},
	{chart: provider, name: "metrics", values: `metrics: {enabled: true}`},
	{chart: provider, name: "certificates-from-secrets",
		values: `certificates: {mode: secrets, secrets: {server: web-server-tls, client: web-client-tls}}`},
	{chart: provider, name: "certificates-from-cert-manager", certManager: true,
		values: `certificates: {mode: certManager}`},
	{chart: provider, name: "certificates-from-an-issuer", certManager: true, values: `
certificates:
  mode: certManager
  certManager: {duration: 2h, renewBefore: 30m, issuerRef: {name: corp, kind: ClusterIssuer}}
`},
	{chart: provider, name: "longest-name", release: strings.Repeat("a-", 26) + "b", certManager: true,
		values: `certificates: {mode: certManager}`},
	{chart: provider, name: "name-with-dots", release: "corp.example.com"},
	{chart: provider, name: "name-like-a-number", release: "123", namespace: "456"},
	{chart: provider, name: "null-lists", values: `
tolerations: null
nodeSelector: null
podLabels: null
podAnnotations: null
affinity: null
resources: null
extraEnv: null
imagePullSecrets: null
`},
	{chart: provider, name: "no-webhook", values: `webhook: {serviceAccount: ""}`},

	{chart: webhook, name: "defaults"},
	{chart: webhook, name: "everything", values: `
global: {cattle: {systemDefaultRegistry: registry.example.com/mirror}}
image: {registry: ignored.example.com, repository: team/ccgrkc, tag: v9, pullPolicy: Always}
imagePullSecrets: [{name: pull}]
pluginInput: deny
randomHostname: true
lockDisabledLabel: false
timeoutSeconds: 10
crd: {install: false}
certificates: {caLifetime: 24h, propagationDelay: 30s}
apiServer: {clientCAConfigMap: webhook-clients, clientName: "kube-apiserver"}
log: {level: debug, format: json}
metrics: {enabled: true}
networkPolicy:
  apiServerCIDRs: [10.0.0.10/32, "fd00::10/128"]
  metricsFrom: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}]
replicas: 3
podDisruptionBudget: {maxUnavailable: 34%}
nodeSelector: {pool: system}
tolerations: []
affinity:
  nodeAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms: [{matchExpressions: [{key: arch, operator: In, values: [x]}]}]
topologySpread:
  - {maxSkew: 1, topologyKey: topology.kubernetes.io/zone, whenUnsatisfiable: DoNotSchedule}
resources: {requests: {cpu: 50m, memory: 64Mi}, limits: {cpu: 1, memory: 256Mi}}
priorityClassName: ""
podLabels: {team: identity}
podAnnotations: {note: hello}
serviceAccount: {annotations: {owner: identity}}
extraEnv: [{name: GODEBUG, value: x}]
`},
	{chart: webhook, name: "certificate-provided",
		values: `certificates: {mode: provided, provided: {secretName: webhook-tls}}`},
	{chart: webhook, name: "certificate-provided-with-ca", values: `
certificates:
  mode: provided
  provided:
    secretName: webhook-tls
    caBundle: |
` + strings.ReplaceAll("\n"+testCA, "\n", "\n      ")},
	{chart: webhook, name: "certificate-from-cert-manager", certManager: true,
		values: `certificates: {mode: certManager}`},
	{chart: webhook, name: "certificate-from-an-issuer", certManager: true, values: `
certificates:
  mode: certManager
  certManager: {duration: 2h, renewBefore: 30m, issuerRef: {name: corp, kind: ClusterIssuer}}
`},
	{chart: webhook, name: "longest-name", release: strings.Repeat("a-", 26) + "b", certManager: true,
		values: `certificates: {mode: certManager}`},
	{chart: webhook, name: "name-with-dots", release: "corp.example.com"},
	{chart: webhook, name: "standby", values: `standby: true`},
	{chart: webhook, name: "one-replica",
		values: `{replicas: 1, podDisruptionBudget: {enabled: false}, networkPolicy: {enabled: false}}`},
	{chart: webhook, name: "null-lists", values: `
tolerations: null
nodeSelector: null
podLabels: null
podAnnotations: null
affinity: null
topologySpread: null
resources: null
extraEnv: null
imagePullSecrets: null
networkPolicy: {apiServerCIDRs: null, metricsFrom: null}
`},
}

func (r rendering) withDefaults() rendering {
	if r.release == "" {
		r.release = "web"
	}
	if r.namespace == "" {
		r.namespace = "gmsa-system"
	}
	return r
}

// args returns the arguments of Helm for a command, template or install.
func (r rendering) args(t testing.TB, command ...string) []string {
	t.Helper()
	values := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(values, []byte(r.values), 0o600); err != nil {
		t.Fatal(err)
	}
	return append(command, r.release, filepath.Join(chartsDir, r.chart), "--namespace", r.namespace, "--values", values)
}

// render renders for a Kubernetes version, without a cluster.
func (r rendering) render(t testing.TB, h helm, version string) (string, error) {
	t.Helper()
	args := append(r.args(t, "template"), "--kube-version", version)
	if r.certManager {
		args = append(args, "--api-versions", "cert-manager.io/v1")
	}
	out, err := h.run(t, args...)
	// Helm 4 prints more empty lines than Helm 3. No template depends on empty lines.
	var lines []string
	for line := range strings.Lines(out) {
		if strings.TrimSpace(line) != "" {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, ""), err
}

// mustRender renders with Helm 4. TestRenderingsMatchGoldenFiles verifies that Helm 3 renders the same.
func (r rendering) mustRender(t testing.TB) []*unstructured.Unstructured {
	t.Helper()
	text, err := r.withDefaults().render(t, helms(t)[1], kubeVersion)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, text)
}

func parse(t testing.TB, text string) []*unstructured.Unstructured {
	t.Helper()
	var objects []*unstructured.Unstructured
	for _, document := range strings.Split("\n"+text, "\n---\n") {
		object := &unstructured.Unstructured{}
		if err := yaml.UnmarshalStrict([]byte(document), &object.Object); err != nil {
			t.Fatalf("%v in:\n%s", err, document)
		}
		if len(object.Object) > 0 {
			objects = append(objects, object)
		}
	}
	if len(objects) == 0 {
		t.Fatalf("no objects in: %q", text)
	}
	return objects
}

// find returns the one object of a kind and name.
func find(t testing.TB, objects []*unstructured.Unstructured, kind, name string) *unstructured.Unstructured {
	t.Helper()
	for _, o := range objects {
		if o.GetKind() == kind && o.GetName() == name {
			return o
		}
	}
	t.Fatalf("no %s %s in the rendering", kind, name)
	return nil
}

// helm is the program of one Helm version.
type helm struct{ name, path string }

var buildHelms = sync.OnceValues(func() (all []helm, _ error) {
	for _, h := range []struct {
		name string
		tool tools.Tool
	}{{"helm3", tools.Helm3}, {"helm4", tools.Helm4}} {
		path, err := tools.Path(context.Background(), h.tool, os.Stderr)
		if err != nil {
			return nil, err
		}
		all = append(all, helm{h.name, path})
	}
	return all, nil
})

// helms returns Helm 3 and Helm 4.
func helms(t testing.TB) []helm {
	t.Helper()
	labtest.Require(t)
	all, err := buildHelms()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// run runs Helm without a cluster, unless an argument specifies one, and returns its output. The error contains stderr.
func (h helm) run(t testing.TB, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), h.path, args...)
	home := t.TempDir()
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "KUBECONFIG=" + filepath.Join(home, "none")}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w\n%s", h.name, args[0], err, stderr.String())
	}
	return stdout.String(), nil
}

// eachRendering runs a test on every entry of the matrix.
func eachRendering(t *testing.T, test func(*testing.T, rendering)) {
	helms(t)
	for _, r := range matrix {
		t.Run(r.chart+"/"+r.name, func(t *testing.T) {
			t.Parallel()
			test(t, r.withDefaults())
		})
	}
}
