package controlplane_test

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/ccgrkc/ccgrkc/lab/env/controlplane"
	"github.com/ccgrkc/ccgrkc/lab/labtest"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

var account = controlplane.Account{Namespace: "gmsa-system", Release: "web", Secret: "web-creds"}

func TestControlPlaneKeepsAddressIdentityAndStateAfterAKill(t *testing.T) {
	cp := labtest.ControlPlane(t)
	ctx := t.Context()
	create(t, cp)
	dir := t.TempDir()
	if err := cp.WriteServiceAccountFiles(ctx, account, dir, time.Hour); err != nil {
		t.Fatal(err)
	}
	server, ca := cp.Server, string(cp.CA)

	cp.Kill()
	if _, err := net.DialTimeout("tcp", strings.TrimPrefix(server, "https://"), time.Second); err == nil {
		t.Fatal("the API server's port is open after the kill")
	}
	if err := cp.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	if cp.Server != server || string(cp.CA) != ca {
		t.Errorf("the server is %s, before it was %s; or its CA changed", cp.Server, server)
	}
	// The old client, the old token and the old object.
	secret, err := cp.Client().CoreV1().Secrets(account.Namespace).Get(ctx, account.Secret, metav1.GetOptions{})
	if err != nil || string(secret.Data["username"]) != "web" {
		t.Errorf("the Secret after the restart: %v, %v", secret, err)
	}
	if _, err := getAs(ctx, cp, dir, account.Secret); err != nil {
		t.Errorf("a token from before the restart: %v", err)
	}

	info, err := cp.Client().Discovery().ServerVersion()
	if err != nil || !strings.HasPrefix(info.GitVersion, "v1.") {
		t.Errorf("the server's version is %v, %v", info, err)
	}
}

func TestAccountCanGetOnlyItsOwnSecret(t *testing.T) {
	cp := labtest.ControlPlane(t)
	ctx := t.Context()
	create(t, cp)
	other := controlplane.Account{Namespace: account.Namespace, Release: "other", Secret: "other-creds"}
	if err := cp.PutSecret(ctx, other, map[string][]byte{"username": []byte("other")}); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := cp.WriteServiceAccountFiles(ctx, account, dir, time.Hour); err != nil {
		t.Fatal(err)
	}

	if _, err := getAs(ctx, cp, dir, account.Secret); err != nil {
		t.Errorf("the account's own Secret: %v", err)
	}
	if _, err := getAs(ctx, cp, dir, other.Secret); !apierrors.IsForbidden(err) {
		t.Errorf("another account's Secret: %v", err)
	}
	client := clientAs(t, cp, dir)
	_, err := client.CoreV1().Secrets(account.Namespace).List(ctx, metav1.ListOptions{})
	if !apierrors.IsForbidden(err) {
		t.Errorf("listing Secrets: %v", err)
	}

	if err := cp.DeleteRoleBinding(ctx, account); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(5 * time.Second)
	for {
		_, err := getAs(ctx, cp, dir, account.Secret)
		if apierrors.IsForbidden(err) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the account's own Secret, 5 s after the RoleBinding was deleted: %v", err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func TestPausedControlPlaneDoesNotRespond(t *testing.T) {
	cp := labtest.ControlPlane(t)
	if err := cp.Pause(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := cp.Client().CoreV1().Namespaces().Get(ctx, "default", metav1.GetOptions{}); err == nil {
		t.Error("a paused control plane responded")
	}
	if err := cp.Resume(); err != nil {
		t.Fatal(err)
	}
	if _, err := cp.Client().CoreV1().Namespaces().Get(t.Context(), "default", metav1.GetOptions{}); err != nil {
		t.Errorf("after the pause: %v", err)
	}
}

func create(t *testing.T, cp *controlplane.ControlPlane) {
	t.Helper()
	if err := cp.CreateNamespace(t.Context(), account.Namespace); err != nil {
		t.Fatal(err)
	}
	if err := cp.CreateAccount(t.Context(), account); err != nil {
		t.Fatal(err)
	}
	if err := cp.PutSecret(t.Context(), account, map[string][]byte{"username": []byte("web")}); err != nil {
		t.Fatal(err)
	}
}

func clientAs(t *testing.T, cp *controlplane.ControlPlane, dir string) kubernetes.Interface {
	t.Helper()
	client, err := kubernetes.NewForConfig(configAs(cp, dir))
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func getAs(ctx context.Context, cp *controlplane.ControlPlane, dir, secret string) (string, error) {
	client, err := kubernetes.NewForConfig(configAs(cp, dir))
	if err != nil {
		return "", err
	}
	s, err := client.CoreV1().Secrets(account.Namespace).Get(ctx, secret, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	return string(s.Data["username"]), nil
}

func configAs(cp *controlplane.ControlPlane, dir string) *rest.Config {
	return &rest.Config{
		Host:            cp.Server,
		BearerTokenFile: dir + "/token",
		TLSClientConfig: rest.TLSClientConfig{CAFile: dir + "/ca.crt"},
	}
}
