package controlplane

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Account describes the objects of one impersonation account, as one release of the provider's chart creates them.
type Account struct {
	Namespace string
	Release   string // also the name of the ServiceAccount, the Role and the RoleBinding
	Secret    string // the chart's default is <release>-creds
}

func (cp *ControlPlane) CreateNamespace(ctx context.Context, name string) error {
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	_, err := cp.client.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{})
	return err
}

// CreateAccount creates the account's ServiceAccount and its only permission: get on the Secret. It does not create the
// Secret.
func (cp *ControlPlane) CreateAccount(ctx context.Context, a Account) error {
	meta := metav1.ObjectMeta{Namespace: a.Namespace, Name: a.Release}
	accounts := cp.client.CoreV1().ServiceAccounts(a.Namespace)
	_, err := accounts.Create(ctx, &corev1.ServiceAccount{ObjectMeta: meta}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	role := &rbacv1.Role{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{{
		APIGroups:     []string{""},
		Resources:     []string{"secrets"},
		Verbs:         []string{"get"},
		ResourceNames: []string{a.Secret},
	}}}
	if _, err := cp.client.RbacV1().Roles(a.Namespace).Create(ctx, role, metav1.CreateOptions{}); err != nil {
		return err
	}
	return cp.CreateRoleBinding(ctx, a)
}

// CreateRoleBinding binds the Role to the account's ServiceAccount.
func (cp *ControlPlane) CreateRoleBinding(ctx context.Context, a Account) error {
	binding := &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: a.Namespace, Name: a.Release},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: a.Release},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: a.Namespace, Name: a.Release}},
	}
	_, err := cp.client.RbacV1().RoleBindings(a.Namespace).Create(ctx, binding, metav1.CreateOptions{})
	return err
}

// DeleteRoleBinding removes the account's permission.
func (cp *ControlPlane) DeleteRoleBinding(ctx context.Context, a Account) error {
	return cp.client.RbacV1().RoleBindings(a.Namespace).Delete(ctx, a.Release, metav1.DeleteOptions{})
}

// PutSecret creates the account's Secret or replaces its data.
func (cp *ControlPlane) PutSecret(ctx context.Context, a Account, data map[string][]byte) error {
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: a.Namespace, Name: a.Secret}, Data: data}
	_, err := cp.client.CoreV1().Secrets(a.Namespace).Update(ctx, secret, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		_, err = cp.client.CoreV1().Secrets(a.Namespace).Create(ctx, secret, metav1.CreateOptions{})
	}
	return err
}

func (cp *ControlPlane) DeleteSecret(ctx context.Context, a Account) error {
	return cp.client.CoreV1().Secrets(a.Namespace).Delete(ctx, a.Secret, metav1.DeleteOptions{})
}

// WriteServiceAccountFiles writes a pod's /var/run/secrets/kubernetes.io/serviceaccount to dir: token, ca.crt and
// namespace. The token is new, from the TokenRequest API; the minimum lifetime is 10 minutes. A further call replaces
// the token atomically, like a kubelet.
func (cp *ControlPlane) WriteServiceAccountFiles(ctx context.Context, a Account, dir string,
	lifetime time.Duration) error {
	seconds := int64(lifetime.Seconds())
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}
	accounts := cp.client.CoreV1().ServiceAccounts(a.Namespace)
	answer, err := accounts.CreateToken(ctx, a.Release, request, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("token for service account %s/%s: %w", a.Namespace, a.Release, err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for name, content := range map[string][]byte{
		"token":     []byte(answer.Status.Token),
		"ca.crt":    cp.CA,
		"namespace": []byte(a.Namespace),
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path+".new", content, 0o600); err != nil {
			return err
		}
		if err := os.Rename(path+".new", path); err != nil {
			return err
		}
	}
	return nil
}
