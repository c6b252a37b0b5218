package charts

import (
	"strings"
	"testing"
)

// wrong has values that cannot work, and texts that the error of Helm must contain.
var wrong = []struct {
	chart, name string
	release     string
	values      string
	want        []string
}{
	{provider, "an unknown key", "", `foo: 1`, []string{"additional properties 'foo' not allowed"}},
	{provider, "an unknown key deeper", "", `credentials: {maxStael: 1h}`,
		[]string{"/credentials", "'maxStael' not allowed"}},
	{provider, "a bad duration", "", `credentials: {maxStale: 1 day}`,
		[]string{"/credentials/maxStale", "'1 day'", "duration_such_as_90s_30m_or_24h"}},
	{provider, "a duration without unit", "", `credentials: {maxStale: 3600}`,
		[]string{"/credentials/maxStale", "got number, want string"}},
	{provider, "a secret name with a slash", "", `credentials: {secretName: a/b}`,
		[]string{"/credentials/secretName", "'a/b'", "lower_case_letters_digits_hyphens_and_dots"}},
	{provider, "a secret name in capitals", "", `credentials: {secretName: Web}`,
		[]string{"/credentials/secretName", "lower_case"}},
	{provider, "an unknown mode", "", `certificates: {mode: none}`,
		[]string{"/certificates/mode", "'embedded', 'secrets', 'certManager'"}},
	{provider, "no cert-manager", "", `certificates: {mode: certManager}`,
		[]string{"does not have the API cert-manager.io/v1", "Install cert-manager", "--api-versions cert-manager.io/v1"}},
	{provider, "certificate Secrets without names", "", `certificates: {mode: secrets, secrets: {server: a}}`,
		[]string{"certificates.secrets.server and certificates.secrets.client"}},
	{provider, "one certificate Secret for both", "", `certificates: {mode: secrets, secrets: {server: a, client: a}}`,
		[]string{"specify the same Secret"}},
	{provider, "the credentials in a certificate Secret", "", `{credentials: {secretName: a}, certificates: {mode: secrets, secrets: {server: a, client: b}}}`,
		[]string{"Specify different Secrets"}},
	{provider, "a certificate lifetime of seconds", "", `certificates: {lifetime: 5s}`,
		[]string{"certificates.lifetime is 5s", "10s or more"}},
	{provider, "an issuer without a name", "", `certificates: {certManager: {issuerRef: {kind: Issuer}}}`,
		[]string{"/certificates/certManager/issuerRef", "missing property 'name'"}},
	{provider, "an unknown identity", "", `plugin: {runAs: SYSTEM}`,
		[]string{"/plugin/runAs", "'network-service', 'local-service', 'launching-user'"}},
	{provider, "a port out of range", "", `metrics: {port: 70000}`, []string{"/metrics/port", "65,535"}},
	{provider, "a host name as metrics address", "", `metrics: {host: localhost}`,
		[]string{"/metrics/host", "IP_address"}},
	{provider, "a log level", "", `log: {level: trace}`, []string{"/log/level", "'debug', 'info', 'warn', 'error'"}},
	{provider, "surge and unavailable", "", `updateStrategy: {rollingUpdate: {maxUnavailable: 1}}`,
		[]string{"maxSurge is 10% and maxUnavailable is 1", "exactly one of them is 0"}},
	{provider, "neither surge nor unavailable", "", `updateStrategy: {rollingUpdate: {maxSurge: 0}}`,
		[]string{"exactly one of them is 0"}},
	{provider, "a count that is a word", "", `updateStrategy: {rollingUpdate: {maxSurge: ten}}`,
		[]string{"/updateStrategy/rollingUpdate/maxSurge", "number_or_percentage"}},
	{provider, "Linux nodes", "", `nodeSelector: {kubernetes.io/os: linux}`,
		[]string{"kubernetes.io/os is linux", "Remove kubernetes.io/os"}},
	{provider, "a label that is not a string", "", `nodeSelector: {gmsa: true}`,
		[]string{"/nodeSelector/gmsa", "got boolean, want string"}},
	{provider, "a label of the chart's", "", `podLabels: {app.kubernetes.io/instance: x}`,
		[]string{"the chart itself sets the label app.kubernetes.io/instance"}},
	{provider, "a scheme in the registry", "", `image: {registry: "https://ghcr.io"}`,
		[]string{"/image/registry", "registry_without_scheme"}},
	{provider, "a tag in the repository", "", `image: {repository: "ccgrkc/ccgrkc:1"}`,
		[]string{"/image/repository", "path_without_registry_and_tag"}},
	{provider, "an incomplete digest", "", `image: {digest: "sha256:12"}`, []string{"/image/digest", "64_hex_digits"}},
	{provider, "a null section", "", `image: null`, []string{"missing property 'image'"}},
	{provider, "a quantity", "", `resources: {limits: {memory: 128MB}}`,
		[]string{"/resources/limits/memory", "quantity_such_as"}},
	{provider, "a short timeout", "", `uninstall: {timeout: 1s}`, []string{"uninstall.timeout is 1s", "10s to 24h"}},
	{provider, "the name of another release's uninstall hook", "web-uninstall", ``,
		[]string{"release name web-uninstall is not allowed", "does not end with -uninstall"}},
	{provider, "the name of the ServiceAccount for another release's Secret", "gmsa-secret-web", ``,
		[]string{"release name gmsa-secret-web is not allowed", "does not begin with gmsa-secret-"}},
	{provider, "a webhook's namespace with dots", "", `webhook: {namespace: a.b}`,
		[]string{"/webhook/namespace", "'a.b'", "lower_case_letters_digits_and_hyphens"}},
	{installer, "an unknown key", "", `credentials: {}`, []string{"additional properties 'credentials' not allowed"}},
	{installer, "a bad interval", "", `plugin: {interval: often}`,
		[]string{"/plugin/interval", "'often'", "duration_such_as_90s_30m_or_24h"}},
	{installer, "a short interval", "", `plugin: {interval: 500ms}`,
		[]string{"plugin.interval is 500ms", "1s or more"}},
	{installer, "an unknown identity", "", `plugin: {runAs: me}`, []string{"/plugin/runAs", "'network-service'"}},
	{webhook, "failurePolicy", "", `failurePolicy: Ignore`,
		[]string{"additional properties 'failurePolicy' not allowed"}},
	{webhook, "an unknown plugin input", "", `pluginInput: ignore`, []string{"/pluginInput", "'warn', 'deny'"}},
	{webhook, "an unknown mode", "", `certificates: {mode: embedded}`,
		[]string{"/certificates/mode", "'self', 'certManager', 'provided'"}},
	{webhook, "no cert-manager", "", `certificates: {mode: certManager}`,
		[]string{"does not have the API cert-manager.io/v1", "certificates.mode=self", "--api-versions cert-manager.io/v1"}},
	{webhook, "a certificate without a Secret", "", `certificates: {mode: provided}`,
		[]string{"Set certificates.provided.secretName"}},
	{webhook, "a CA that is not PEM", "", `certificates: {provided: {caBundle: TUlJQg==}}`,
		[]string{"/certificates/provided/caBundle", "PEM_that_begins_with_BEGIN_CERTIFICATE"}},
	{webhook, "a private key instead of the CA", "", `certificates: {provided: {caBundle: "-----BEGIN PRIVATE KEY-----"}}`,
		[]string{"/certificates/provided/caBundle"}},
	{webhook, "a CA lifetime of less than 18 times the delay", "", `certificates: {caLifetime: 17m}`,
		[]string{"certificates.caLifetime is 17m", "18 times certificates.propagationDelay (60s)"}},
	{webhook, "a short propagation delay", "", `certificates: {propagationDelay: 100ms}`,
		[]string{"certificates.propagationDelay is 100ms", "1s or more"}},
	{webhook, "a client name without a CA", "", `apiServer: {clientName: kube-apiserver}`,
		[]string{"Set apiServer.clientCAConfigMap"}},
	{webhook, "an address without prefix", "", `networkPolicy: {apiServerCIDRs: [10.0.0.1]}`,
		[]string{"/networkPolicy/apiServerCIDRs/0", "address_and_prefix"}},
	{webhook, "a peer that is not an object", "", `networkPolicy: {metricsFrom: [monitoring]}`,
		[]string{"/networkPolicy/metricsFrom/0", "object"}},
	{webhook, "no replica", "", `replicas: 0`, []string{"/replicas"}},
	{webhook, "a timeout that the API server does not allow", "", `timeoutSeconds: 31`,
		[]string{"/timeoutSeconds", "30"}},
	{webhook, "Windows nodes", "", `nodeSelector: {kubernetes.io/os: windows}`,
		[]string{"kubernetes.io/os is windows", "Remove kubernetes.io/os"}},
	{webhook, "a label of the chart's", "", `podLabels: {app.kubernetes.io/name: x}`,
		[]string{"the chart itself sets the label app.kubernetes.io/name"}},
	{webhook, "an invalid name of a Service", "1st", ``,
		[]string{"release name 1st is not allowed", "must begin with a letter"}},
	{webhook, "the name of another release's uninstall hook", "web-uninstall", ``,
		[]string{"does not end with -uninstall"}},
}

// wrongWithCertManager has values of certificates.certManager that cannot work, for all charts that have it.
var wrongWithCertManager = []struct{ name, values, want string }{
	{"a lifetime of less than an hour", `{duration: 30m}`, "duration is 30m, but cert-manager requires at least 1h"},
	{"renewal before the certificate is valid", `{duration: 24h, renewBefore: 24h}`, "renewBefore is 24h"},
	{"renewal just before expiry", `{renewBefore: 1m}`, "at least 5m"},
	{"a CA that expires before its certificates", `{caDuration: 24h}`, "caDuration is 24h, but must be at least three times the duration"},
}

func TestWrongValuesAreRejectedWithARemedy(t *testing.T) {
	helms(t)
	rejected := func(t *testing.T, r rendering, want ...string) {
		t.Helper()
		t.Parallel()
		for _, h := range helms(t) {
			_, err := r.withDefaults().render(t, h, kubeVersion)
			if err == nil {
				t.Errorf("%s does not reject it", h.name)
				continue
			}
			for _, w := range want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%s: the error does not contain %q:\n%v", h.name, w, err)
				}
			}
		}
	}
	for _, w := range wrong {
		t.Run(w.chart+"/"+w.name, func(t *testing.T) {
			rejected(t, rendering{chart: w.chart, release: w.release, values: w.values}, w.want...)
		})
	}
	for _, w := range wrongWithCertManager {
		for _, chart := range []string{provider, webhook} {
			t.Run(chart+"/cert-manager/"+w.name, func(t *testing.T) {
				rejected(t, rendering{chart: chart, certManager: true,
					values: "certificates: {mode: certManager, certManager: " + w.values + "}"}, w.want)
			})
		}
	}
}

func TestOldKubernetesIsRejected(t *testing.T) {
	for _, h := range helms(t) {
		for _, chart := range charts {
			old, wants := "1.26.9", ">=1.27.0-0"
			if chart == webhook {
				old, wants = "1.29.14", ">=1.30.0-0"
			}
			_, err := rendering{chart: chart}.withDefaults().render(t, h, old)
			if err == nil || !strings.Contains(err.Error(), wants) {
				t.Errorf("%s, %s on Kubernetes %s: %v", h.name, chart, old, err)
			}
		}
	}
}
