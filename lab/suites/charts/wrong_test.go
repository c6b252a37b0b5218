package charts

import (
	"strings"
	"testing"
)

// wrong is values that cannot work, and what Helm must say of them.
var wrong = []struct {
	chart, name string
	release     string
	values      string
	want        []string
}{
	{provider, "an unknown key", "", `foo: 1`, []string{"additional properties 'foo' not allowed"}},
	{provider, "an unknown key deeper", "", `credentials: {maxStael: 1h}`, []string{"/credentials", "'maxStael' not allowed"}},
	{provider, "a bad duration", "", `credentials: {maxStale: 1 day}`, []string{"/credentials/maxStale", "'1 day'", "duration_such_as_90s_30m_or_24h"}},
	{provider, "a duration without unit", "", `credentials: {maxStale: 3600}`, []string{"/credentials/maxStale", "got number, want string"}},
	{provider, "a secret name with a slash", "", `credentials: {secretName: a/b}`, []string{"/credentials/secretName", "'a/b'", "lower_case_letters_digits_hyphens_and_dots"}},
	{provider, "a secret name in capitals", "", `credentials: {secretName: Web}`, []string{"/credentials/secretName", "lower_case"}},
	{provider, "an unknown mode", "", `certificates: {mode: none}`, []string{"/certificates/mode", "'embedded', 'secrets', 'certManager'"}},
	{provider, "cert-manager is not there", "", `certificates: {mode: certManager}`, []string{"does not know cert-manager.io/v1", "Install cert-manager", "--api-versions cert-manager.io/v1"}},
	{provider, "certificate Secrets without names", "", `certificates: {mode: secrets, secrets: {server: a}}`, []string{"certificates.secrets.server and certificates.secrets.client"}},
	{provider, "one certificate Secret for both", "", `certificates: {mode: secrets, secrets: {server: a, client: a}}`, []string{"name the same Secret"}},
	{provider, "the credentials in a certificate Secret", "", `{credentials: {secretName: a}, certificates: {mode: secrets, secrets: {server: a, client: b}}}`, []string{"must be different Secrets"}},
	{provider, "certificates that last seconds", "", `certificates: {lifetime: 5s}`, []string{"certificates.lifetime is 5s", "10s or more"}},
	{provider, "an issuer without a name", "", `certificates: {certManager: {issuerRef: {kind: Issuer}}}`, []string{"/certificates/certManager/issuerRef", "missing property 'name'"}},
	{provider, "an unknown identity", "", `plugin: {runAs: SYSTEM}`, []string{"/plugin/runAs", "'network-service', 'local-service', 'launching-user'"}},
	{provider, "a port out of range", "", `metrics: {port: 70000}`, []string{"/metrics/port", "65,535"}},
	{provider, "a metrics address that is a name", "", `metrics: {host: localhost}`, []string{"/metrics/host", "IP_address"}},
	{provider, "a log level", "", `log: {level: trace}`, []string{"/log/level", "'debug', 'info', 'warn', 'error'"}},
	{provider, "surge and unavailable", "", `updateStrategy: {rollingUpdate: {maxUnavailable: 1}}`, []string{"maxSurge (10%) and maxUnavailable (1) exactly one must be 0"}},
	{provider, "neither surge nor unavailable", "", `updateStrategy: {rollingUpdate: {maxSurge: 0}}`, []string{"exactly one must be 0"}},
	{provider, "a count in words", "", `updateStrategy: {rollingUpdate: {maxSurge: ten}}`, []string{"/updateStrategy/rollingUpdate/maxSurge", "number_or_percentage"}},
	{provider, "Linux nodes", "", `nodeSelector: {kubernetes.io/os: linux}`, []string{"kubernetes.io/os is linux", "Leave kubernetes.io/os out"}},
	{provider, "a label that is no string", "", `nodeSelector: {gmsa: true}`, []string{"/nodeSelector/gmsa", "got boolean, want string"}},
	{provider, "a label of the chart's", "", `podLabels: {app.kubernetes.io/instance: x}`, []string{"the chart sets app.kubernetes.io/instance itself"}},
	{provider, "a scheme in the registry", "", `image: {registry: "https://ghcr.io"}`, []string{"/image/registry", "registry_without_scheme"}},
	{provider, "a tag in the repository", "", `image: {repository: "ccgrkc/ccgrkc:1"}`, []string{"/image/repository", "path_without_registry_and_tag"}},
	{provider, "half a digest", "", `image: {digest: "sha256:12"}`, []string{"/image/digest", "64_hex_digits"}},
	{provider, "a part that is null", "", `image: null`, []string{"missing property 'image'"}},
	{provider, "a quantity", "", `resources: {limits: {memory: 128MB}}`, []string{"/resources/limits/memory", "quantity_such_as"}},
	{provider, "a wait that is too short", "", `uninstall: {timeout: 1s}`, []string{"uninstall.timeout is 1s", "10s to 24h"}},
	{provider, "a name that another release's uninstall has", "web-uninstall", ``, []string{"cannot be called web-uninstall", "does not end with -uninstall"}},
	{provider, "a name that stands for another release's Secret", "gmsa-secret-web", ``, []string{"cannot be called gmsa-secret-web", "does not begin with gmsa-secret-"}},
	{provider, "a webhook's namespace with dots", "", `webhook: {namespace: a.b}`, []string{"/webhook/namespace", "'a.b'", "lower_case_letters_digits_and_hyphens"}},
	{installer, "an unknown key", "", `credentials: {}`, []string{"additional properties 'credentials' not allowed"}},
	{installer, "a bad interval", "", `plugin: {interval: often}`, []string{"/plugin/interval", "'often'", "duration_such_as_90s_30m_or_24h"}},
	{installer, "an interval of nothing", "", `plugin: {interval: 500ms}`, []string{"plugin.interval is 500ms", "1s or more"}},
	{installer, "an unknown identity", "", `plugin: {runAs: me}`, []string{"/plugin/runAs", "'network-service'"}},
	{webhook, "failurePolicy", "", `failurePolicy: Ignore`, []string{"additional properties 'failurePolicy' not allowed"}},
	{webhook, "an unknown plugin input", "", `pluginInput: ignore`, []string{"/pluginInput", "'warn', 'deny'"}},
	{webhook, "an unknown mode", "", `certificates: {mode: embedded}`, []string{"/certificates/mode", "'self', 'certManager', 'provided'"}},
	{webhook, "cert-manager is not there", "", `certificates: {mode: certManager}`, []string{"does not know cert-manager.io/v1", "certificates.mode=self", "--api-versions cert-manager.io/v1"}},
	{webhook, "a certificate without a Secret", "", `certificates: {mode: provided}`, []string{"name the Secret in certificates.provided.secretName"}},
	{webhook, "a CA that is no PEM", "", `certificates: {provided: {caBundle: TUlJQg==}}`, []string{"/certificates/provided/caBundle", "PEM_that_begins_with_BEGIN_CERTIFICATE"}},
	{webhook, "a private key for the CA", "", `certificates: {provided: {caBundle: "-----BEGIN PRIVATE KEY-----"}}`, []string{"/certificates/provided/caBundle"}},
	{webhook, "a certificate that ends before it settles", "", `certificates: {lifetime: 5m}`, []string{"certificates.lifetime is 5m", "six times certificates.settle (60s)"}},
	{webhook, "nothing to settle", "", `certificates: {settle: 100ms}`, []string{"certificates.settle is 100ms", "1s or more"}},
	{webhook, "a client's name without a CA", "", `apiServer: {clientName: kube-apiserver}`, []string{"apiServer.clientCAConfigMap"}},
	{webhook, "an address without prefix", "", `networkPolicy: {apiServerCIDRs: [10.0.0.1]}`, []string{"/networkPolicy/apiServerCIDRs/0", "address_and_prefix"}},
	{webhook, "no replica", "", `replicas: 0`, []string{"/replicas"}},
	{webhook, "a time that the API server does not wait", "", `timeoutSeconds: 31`, []string{"/timeoutSeconds", "30"}},
	{webhook, "Windows nodes", "", `nodeSelector: {kubernetes.io/os: windows}`, []string{"kubernetes.io/os is windows", "Leave kubernetes.io/os out"}},
	{webhook, "a label of the chart's", "", `podLabels: {app.kubernetes.io/name: x}`, []string{"the chart sets app.kubernetes.io/name itself"}},
	{webhook, "a name that no Service can have", "1st", ``, []string{"cannot be called 1st", "begins with a letter"}},
	{webhook, "a name that another release's uninstall has", "web-uninstall", ``, []string{"does not end with -uninstall"}},
}

// wrongWithCertManager is what only cert-manager cannot do.
var wrongWithCertManager = []struct{ name, values, want string }{ // of every chart that knows cert-manager
	{"certificates shorter than an hour", `{duration: 30m}`, "duration is 30m: cert-manager needs 1h or more"},
	{"renewal before the beginning", `{duration: 24h, renewBefore: 24h}`, "renewBefore is 24h"},
	{"renewal at the last moment", `{renewBefore: 1m}`, "5m or more"},
	{"a CA that ends before its certificates", `{caDuration: 24h}`, "caDuration is 24h: use three times the duration"},
}

func TestWrongValuesAreRefusedWithWhatToDo(t *testing.T) {
	helms(t)
	refused := func(t *testing.T, r rendering, want ...string) {
		t.Helper()
		t.Parallel()
		for _, h := range helms(t) {
			_, err := r.withDefaults().render(t, h, kubeVersion)
			if err == nil {
				t.Errorf("%s renders it", h.name)
				continue
			}
			for _, w := range want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%s does not say %q but:\n%v", h.name, w, err)
				}
			}
		}
	}
	for _, w := range wrong {
		t.Run(w.chart+"/"+w.name, func(t *testing.T) {
			refused(t, rendering{chart: w.chart, release: w.release, values: w.values}, w.want...)
		})
	}
	for _, w := range wrongWithCertManager {
		for _, chart := range []string{provider, webhook} {
			t.Run(chart+"/cert-manager/"+w.name, func(t *testing.T) {
				refused(t, rendering{chart: chart, certManager: true,
					values: "certificates: {mode: certManager, certManager: " + w.values + "}"}, w.want)
			})
		}
	}
}

// TestOldKubernetesIsRefused: the charts say from which version on they work.
func TestOldKubernetesIsRefused(t *testing.T) {
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
