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
	"github.com/ccgrkc/ccgrkc/lab/labtest"
)

// According to the API server, the release's ServiceAccount has one permission more than every ServiceAccount.
func TestServiceAccountCanGetOnlyItsOwnSecret(t *testing.T) {
	t.Parallel()
	c := start(t, "win-1")
	ctx := t.Context()
	install(t, installer(c))
	install(t, provider(c, "web"))
	install(t, provider(c, "shop"))
	for _, name := range []string{"web-creds", "shop-creds"} {
		labtest.Must(t, c.PutSecret(ctx, namespace, name, "secret"))
	}
	web := as(t, c, namespace, "web")

	for _, s := range []struct{ namespace, secret string }{
		{namespace, "shop-creds"},
		{"kube-system", "web-creds"},
		{"default", "web-creds"},
	} {
		_, err := web.CoreV1().Secrets(s.namespace).Get(ctx, s.secret, metav1.GetOptions{})
		if !apierrors.IsForbidden(err) {
			t.Errorf("get %v: %v", s, err)
		}
	}
	secrets := web.CoreV1().Secrets(namespace)
	if _, err := secrets.Get(ctx, "web-creds", metav1.GetOptions{}); err != nil {
		t.Errorf("the account's own Secret: %v", err)
	}
	own := metav1.ListOptions{FieldSelector: "metadata.name=web-creds"}
	if _, err := secrets.List(ctx, own); !apierrors.IsForbidden(err) {
		t.Errorf("list: %v", err)
	}
	if _, err := secrets.Watch(ctx, own); !apierrors.IsForbidden(err) {
		t.Errorf("watch: %v", err)
	}

	want := []authorizationv1.ResourceRule{{
		Verbs:         []string{"get"},
		APIGroups:     []string{""},
		Resources:     []string{"secrets"},
		ResourceNames: []string{"web-creds"},
	}}
	if diff := cmp.Diff(want, extraRules(t, c, namespace, "web", namespace)); diff != "" {
		t.Errorf("the provider's rules in its namespace (-want +got):\n%s", diff)
	}
	for _, elsewhere := range []string{"default", "kube-system"} {
		if rules := extraRules(t, c, namespace, "web", elsewhere); len(rules) > 0 {
			t.Errorf("the provider's rules in %s: %v", elsewhere, rules)
		}
	}
	// The installer sends no API requests, so it has no permission and its pods have no token.
	if rules := extraRules(t, c, namespace, "plugin", namespace); len(rules) > 0 {
		t.Errorf("the installer's rules: %v", rules)
	}
	pods, err := c.ControlPlane.Client().CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	labtest.Must(t, err)
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

// extraRules are a ServiceAccount's permissions in a namespace, without those that every ServiceAccount has.
func extraRules(t *testing.T, c *cluster.Cluster, accountNamespace, account, in string) []authorizationv1.ResourceRule {
	t.Helper()
	_, common := rules(t, as(t, c, "default", "default"), in)
	own, _ := rules(t, as(t, c, accountNamespace, account), in)
	var extra []authorizationv1.ResourceRule
	for _, rule := range own {
		if !common[fmt.Sprint(rule)] {
			extra = append(extra, rule)
		}
	}
	return extra
}

func rules(t *testing.T, client kubernetes.Interface, in string) ([]authorizationv1.ResourceRule, map[string]bool) {
	t.Helper()
	request := &authorizationv1.SelfSubjectRulesReview{
		Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: in},
	}
	reviews := client.AuthorizationV1().SelfSubjectRulesReviews()
	review, err := reviews.Create(t.Context(), request, metav1.CreateOptions{})
	labtest.Must(t, err)
	if review.Status.Incomplete {
		t.Fatalf("the API server did not return all rules: %s", review.Status.EvaluationError)
	}
	set := map[string]bool{}
	for _, rule := range review.Status.ResourceRules {
		set[fmt.Sprint(rule)] = true
	}
	return review.Status.ResourceRules, set
}

// as is a client with a token of a ServiceAccount.
func as(t *testing.T, c *cluster.Cluster, namespace, account string) kubernetes.Interface {
	t.Helper()
	request := &authenticationv1.TokenRequest{}
	accounts := c.ControlPlane.Client().CoreV1().ServiceAccounts(namespace)
	token, err := accounts.CreateToken(t.Context(), account, request, metav1.CreateOptions{})
	labtest.Must(t, err)
	client, err := kubernetes.NewForConfig(&rest.Config{
		Host:            c.ControlPlane.Server,
		BearerToken:     token.Status.Token,
		TLSClientConfig: rest.TLSClientConfig{CAData: c.ControlPlane.CA},
	})
	labtest.Must(t, err)
	return client
}

// mustBeForbidden verifies that a client with config can get neither a token of the account nor its Secret.
func mustBeForbidden(t *testing.T, config *rest.Config, namespace, account, secret string) {
	t.Helper()
	client, err := kubernetes.NewForConfig(config)
	labtest.Must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	request := &authenticationv1.TokenRequest{}
	accounts := client.CoreV1().ServiceAccounts(namespace)
	if _, err := accounts.CreateToken(ctx, account, request, metav1.CreateOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("a token of %s/%s: %v", namespace, account, err)
	}
	_, err = client.CoreV1().Secrets(namespace).Get(ctx, secret, metav1.GetOptions{})
	if !apierrors.IsForbidden(err) {
		t.Errorf("secret %s/%s: %v", namespace, secret, err)
	}
}

// mustNotLabelItself verifies that a node cannot set this label on its own object.
func mustNotLabelItself(t *testing.T, config *rest.Config, node, label, value string) {
	t.Helper()
	client, err := kubernetes.NewForConfig(config)
	labtest.Must(t, err)
	set := func(label, value string) error {
		patch := fmt.Appendf(nil, `{"metadata": {"labels": {%q: %q}}}`, label, value)
		nodes := client.CoreV1().Nodes()
		_, err := nodes.Patch(t.Context(), node, types.MergePatchType, patch, metav1.PatchOptions{})
		return err
	}
	if err := set(label, value); !apierrors.IsForbidden(err) {
		t.Errorf("%s labels itself: %v", node, err)
	}
	// It can set other labels, so the request itself is valid.
	if err := set("gmsa-account", "web"); err != nil {
		t.Errorf("%s sets an ordinary label: %v", node, err)
	}
}
