package charts

import (
	"errors"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Attack: with the webhook's token, an attacker requests other tokens than the webhook: long-lived ones for any
// audience, or ones that are bound to other objects, to find out which exist. The test changes each field in turn.
func TestWebhookCanRequestOnlyTheTokenThatIsNeverIssued(t *testing.T) {
	c := newCluster(t, "gmsa-system")
	ctx := t.Context()
	objects := rendering{chart: webhook, release: "rancher-gmsa-webhook"}.mustRender(t)
	c.applyOnly(t, objects, "ServiceAccount")
	c.applyOnly(t, rendering{chart: provider}.mustRender(t), "ServiceAccount", "Role", "RoleBinding")
	// More than the charts grant, so that only the policy can deny a request.
	for _, args := range [][]string{
		{"create", "clusterrole", "tokens", "--verb=create", "--resource=serviceaccounts/token"},
		{"create", "clusterrolebinding", "tokens", "--clusterrole=tokens", "--serviceaccount=gmsa-system:rancher-gmsa-webhook"},
		{"create", "serviceaccount", "gmsa-secret-absent", "--namespace=gmsa-system"},
		{"create", "serviceaccount", "bystander", "--namespace=gmsa-system"},
	} {
		if _, err := c.run(ctx, "", c.kubectl, args...); err != nil {
			t.Fatal(err)
		}
	}
	secret, err := c.Client().CoreV1().Secrets("gmsa-system").Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "web-creds"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1
	config.Impersonate = rest.ImpersonationConfig{UserName: "system:serviceaccount:gmsa-system:rancher-gmsa-webhook",
		Groups: []string{"system:serviceaccounts", "system:serviceaccounts:gmsa-system", "system:authenticated"}}
	attacker, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	const account = "gmsa-secret-web-creds"
	request := func(account string, change func(*authenticationv1.TokenRequestSpec), dryRun ...string) error {
		r := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
			Audiences: []string{"gmsa-secret-probe"},
			BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Secret",
				Name: strings.TrimPrefix(account, "gmsa-secret-"), UID: "00000000-0000-0000-0000-000000000000"},
		}}
		if change != nil {
			change(&r.Spec)
		}
		_, err := attacker.CoreV1().ServiceAccounts("gmsa-system").CreateToken(ctx, account, r, metav1.CreateOptions{DryRun: dryRun})
		return err
	}
	denied := func(err error) bool {
		return apierrors.IsForbidden(err) && strings.Contains(err.Error(), "the webhook can request only a token that is bound to the Secret")
	}
	real := func(s *authenticationv1.TokenRequestSpec) { s.BoundObjectRef.UID = secret.UID }
	if err := request(account, real); err != nil {
		t.Fatalf("without the policy: %v", err)
	}
	c.applyOnly(t, objects, "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
	eventually(t, "the policy for tokens", func() bool { return denied(request(account, real)) })

	type spec = authenticationv1.TokenRequestSpec
	ref := func(f func(*authenticationv1.BoundObjectReference)) func(*spec) {
		return func(s *spec) { f(s.BoundObjectRef) }
	}
	bound := func(apiVersion, kind, name string, uid types.UID) func(*spec) {
		return func(s *spec) {
			s.BoundObjectRef = &authenticationv1.BoundObjectReference{APIVersion: apiVersion, Kind: kind, Name: name, UID: uid}
		}
	}
	audiences := func(list ...string) func(*spec) { return func(s *spec) { s.Audiences = list } }
	const zero = types.UID("00000000-0000-0000-0000-000000000000")
	for name, change := range map[string]func(*spec){
		"not bound":              func(s *spec) { s.BoundObjectRef = nil },
		"bound to nothing":       func(s *spec) { s.BoundObjectRef = &authenticationv1.BoundObjectReference{} },
		"bound to a Pod":         bound("v1", "Pod", "web-creds", zero),
		"bound to a Node":        bound("v1", "Node", "web-creds", zero),
		"kind in lower case":     bound("v1", "secret", "web-creds", zero),
		"no kind":                bound("v1", "", "web-creds", zero),
		"no version":             bound("", "Secret", "web-creds", zero),
		"another version":        bound("v2", "Secret", "web-creds", zero),
		"another group":          bound("example.com/v1", "Secret", "web-creds", zero),
		"another Secret":         ref(func(r *authenticationv1.BoundObjectReference) { r.Name = "absent" }),
		"its own ServiceAccount": ref(func(r *authenticationv1.BoundObjectReference) { r.Name = account }),
		"no name":                ref(func(r *authenticationv1.BoundObjectReference) { r.Name = "" }),
		"the Secret's UID":       real,
		"another UID":            ref(func(r *authenticationv1.BoundObjectReference) { r.UID = "11111111-2222-3333-4444-555555555555" }),
		"no UID":                 ref(func(r *authenticationv1.BoundObjectReference) { r.UID = "" }),
		"no audience":            audiences(),
		"another audience":       audiences("nobody"),
		"two audiences":          audiences("gmsa-secret-probe", "https://kubernetes.default.svc"),
		"two, in another order":  audiences("https://kubernetes.default.svc", "gmsa-secret-probe"),
		"the same twice":         audiences("gmsa-secret-probe", "gmsa-secret-probe"),
		"for a year":             func(s *spec) { year := int64(365 * 24 * 3600); s.ExpirationSeconds, s.BoundObjectRef = &year, nil },
	} {
		for _, dryRun := range [][]string{nil, {metav1.DryRunAll}} {
			if err := request(account, change, dryRun...); !denied(err) {
				t.Errorf("%s, dry run %q: %v", name, dryRun, err)
			}
		}
	}
	// Of another ServiceAccount, even with the permission.
	for _, other := range []string{"bystander", "rancher-gmsa-webhook", "default"} {
		if err := request(other, nil); !denied(err) {
			t.Errorf("a token of %s: %v", other, err)
		}
	}
	// The request of the webhook shows whether the Secret exists, and never succeeds.
	if err := request(account, nil, metav1.DryRunAll); !apierrors.IsConflict(err) {
		t.Errorf("the Secret exists: %v", err)
	}
	var status apierrors.APIStatus
	if err := request("gmsa-secret-absent", nil, metav1.DryRunAll); !errors.As(err, &status) || status.Status().Details.Kind != "secrets" {
		t.Errorf("the Secret does not exist: %v", err)
	}
	// Others are not affected.
	if _, err := c.Client().CoreV1().ServiceAccounts("gmsa-system").CreateToken(ctx, account, &authenticationv1.TokenRequest{}, metav1.CreateOptions{}); err != nil {
		t.Errorf("an administrator's request: %v", err)
	}
}
