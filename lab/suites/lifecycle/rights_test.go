package lifecycle

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/ccgrkc/ccgrkc/lab/env/cluster"
)

// What the release's ServiceAccount may do beyond what every ServiceAccount may is one rule, asked of the API server itself.
func TestAServiceAccountMayGetItsOwnSecretAndNothingElse(t *testing.T) {
	t.Parallel()
	c := start(t, "win-1")
	ctx := t.Context()
	install(t, installer(c))
	install(t, provider(c, "web"))
	install(t, provider(c, "shop"))
	for _, name := range []string{"web-creds", "shop-creds"} {
		must(t, c.PutSecret(ctx, namespace, name, "secret"))
	}
	web := as(t, c, namespace, "web")

	for _, s := range []struct{ namespace, secret string }{{namespace, "shop-creds"}, {"kube-system", "web-creds"}, {"default", "web-creds"}} {
		if _, err := web.CoreV1().Secrets(s.namespace).Get(ctx, s.secret, metav1.GetOptions{}); !apierrors.IsForbidden(err) {
			t.Errorf("get %v: %v", s, err)
		}
	}
	if _, err := web.CoreV1().Secrets(namespace).Get(ctx, "web-creds", metav1.GetOptions{}); err != nil {
		t.Errorf("its own Secret: %v", err)
	}
	if _, err := web.CoreV1().Secrets(namespace).List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=web-creds"}); !apierrors.IsForbidden(err) {
		t.Errorf("list: %v", err)
	}
	if _, err := web.CoreV1().Secrets(namespace).Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=web-creds"}); !apierrors.IsForbidden(err) {
		t.Errorf("watch: %v", err)
	}

	want := []authorizationv1.ResourceRule{{Verbs: []string{"get"}, APIGroups: []string{""}, Resources: []string{"secrets"}, ResourceNames: []string{"web-creds"}}}
	if diff := cmp.Diff(want, beyondEveryone(t, c, namespace, "web", namespace)); diff != "" {
		t.Errorf("the provider's rules in its namespace (-want +got):\n%s", diff)
	}
	for _, elsewhere := range []string{"default", "kube-system"} {
		if rules := beyondEveryone(t, c, namespace, "web", elsewhere); len(rules) > 0 {
			t.Errorf("the provider's rules in %s: %v", elsewhere, rules)
		}
	}
	// The installer calls no API, so it has no right and its pods have no token.
	if rules := beyondEveryone(t, c, namespace, "plugin", namespace); len(rules) > 0 {
		t.Errorf("the installer's rules: %v", rules)
	}
	pods, err := c.ControlPlane.Client().CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	must(t, err)
	for _, pod := range pods.Items {
		owner := metav1.GetControllerOf(&pod)
		for _, v := range pod.Spec.Volumes {
			if owner != nil && owner.Name == "plugin" && v.Projected != nil {
				t.Errorf("pod %s of the installer has a token: %v", pod.Name, v)
			}
		}
		if pod.Spec.ServiceAccountName == "default" {
			t.Errorf("pod %s runs as the namespace's default ServiceAccount", pod.Name)
		}
	}
}

// beyondEveryone is what a ServiceAccount may do in a namespace that a ServiceAccount without any binding may not.
func beyondEveryone(t *testing.T, c *cluster.Cluster, accountNamespace, account, in string) []authorizationv1.ResourceRule {
	t.Helper()
	_, nobody := rules(t, as(t, c, "default", "default"), in)
	own, _ := rules(t, as(t, c, accountNamespace, account), in)
	var beyond []authorizationv1.ResourceRule
	for _, rule := range own {
		if !nobody[fmt.Sprint(rule)] {
			beyond = append(beyond, rule)
		}
	}
	return beyond
}

func rules(t *testing.T, client kubernetes.Interface, in string) ([]authorizationv1.ResourceRule, map[string]bool) {
	t.Helper()
	review, err := client.AuthorizationV1().SelfSubjectRulesReviews().Create(t.Context(),
		&authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: in}}, metav1.CreateOptions{})
	must(t, err)
	if review.Status.Incomplete {
		t.Fatalf("the API server does not know all rules: %s", review.Status.EvaluationError)
	}
	set := map[string]bool{}
	for _, rule := range review.Status.ResourceRules {
		set[fmt.Sprint(rule)] = true
	}
	return review.Status.ResourceRules, set
}

// as is a client with a token of a ServiceAccount and nothing else.
func as(t *testing.T, c *cluster.Cluster, namespace, account string) kubernetes.Interface {
	t.Helper()
	token, err := c.ControlPlane.Client().CoreV1().ServiceAccounts(namespace).CreateToken(t.Context(), account, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	must(t, err)
	client, err := kubernetes.NewForConfig(&rest.Config{Host: c.ControlPlane.Server, BearerToken: token.Status.Token, TLSClientConfig: rest.TLSClientConfig{CAData: c.ControlPlane.CA}})
	must(t, err)
	return client
}

// mustBeForbidden shows that whoever has config gets neither a token of the account nor its Secret.
func mustBeForbidden(t *testing.T, config *rest.Config, namespace, account, secret string) {
	t.Helper()
	client, err := kubernetes.NewForConfig(config)
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := client.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, account, &authenticationv1.TokenRequest{}, metav1.CreateOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("a token of %s/%s: %v", namespace, account, err)
	}
	if _, err := client.CoreV1().Secrets(namespace).Get(ctx, secret, metav1.GetOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("secret %s/%s: %v", namespace, secret, err)
	}
}

// mustNotLabelItself shows that a node may not set this label on its own object.
func mustNotLabelItself(t *testing.T, config *rest.Config, node, label, value string) {
	t.Helper()
	client, err := kubernetes.NewForConfig(config)
	must(t, err)
	patch := fmt.Sprintf(`{"metadata": {"labels": {%q: %q}}}`, label, value)
	if _, err := client.CoreV1().Nodes().Patch(t.Context(), node, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("%s labels itself: %v", node, err)
	}
	// It may set others, so the test asks for the right thing.
	if _, err := client.CoreV1().Nodes().Patch(t.Context(), node, types.MergePatchType, []byte(`{"metadata": {"labels": {"gmsa-account": "web"}}}`), metav1.PatchOptions{}); err != nil {
		t.Errorf("%s sets an ordinary label: %v", node, err)
	}
}
