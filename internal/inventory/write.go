package inventory

import (
	"context"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/credspec"
)

// Manager is the field manager of the objects that gmsactl writes, and the value of managedByLabel.
const (
	Manager        = "gmsactl"
	managedByLabel = "app.kubernetes.io/managed-by"
)

// LastApplied is the annotation in which client-side kubectl apply keeps the applied object. For a Secret, it contains
// the data.
const LastApplied = corev1.LastAppliedConfigAnnotation

// CreateSecret creates the Secret of an impersonation account. Errors are the API server's.
func (c *Cluster) CreateSecret(ctx context.Context, ref credential.Reference, cred credential.Credential) error {
	s := newSecret(ref)
	s.Data = map[string][]byte{
		credential.KeyDomainName: []byte(cred.DomainName),
		credential.KeyUsername:   []byte(cred.Username),
		credential.KeyPassword:   cred.Password.Reveal(),
	}
	created, err := c.Kube.CoreV1().Secrets(ref.Namespace).Create(ctx, s, metav1.CreateOptions{FieldManager: Manager})
	if err != nil {
		return err
	}
	Wipe(created)
	return nil
}

// TryCreateSecret checks with a dry run whether CreateSecret would succeed. It sends no values.
func (c *Cluster) TryCreateSecret(ctx context.Context, ref credential.Reference) error {
	dryRun := metav1.CreateOptions{FieldManager: Manager, DryRun: []string{metav1.DryRunAll}}
	_, err := c.Kube.CoreV1().Secrets(ref.Namespace).Create(ctx, newSecret(ref), dryRun)
	return err
}

func newSecret(ref credential.Reference) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: ref.Namespace,
			Name:      ref.Secret,
			Labels:    map[string]string{managedByLabel: Manager},
		},
		Type: corev1.SecretTypeOpaque,
	}
}

// GetSecret reads a Secret. The caller wipes it.
func (c *Cluster) GetSecret(ctx context.Context, ref credential.Reference) (*corev1.Secret, error) {
	return c.Kube.CoreV1().Secrets(ref.Namespace).Get(ctx, ref.Secret, metav1.GetOptions{})
}

// SetPassword writes a new password into the Secret s. It removes the annotation LastApplied and keeps everything else.
// It returns a conflict if the Secret has changed since s was read.
func (c *Cluster) SetPassword(ctx context.Context, s *corev1.Secret, password credential.Password) error {
	s = s.DeepCopy()
	clear(s.Data[credential.KeyPassword])
	s.Data[credential.KeyPassword] = password.Reveal()
	s.Annotations = maps.Clone(s.Annotations)
	delete(s.Annotations, LastApplied)
	s.ManagedFields = nil
	written, err := c.Kube.CoreV1().Secrets(s.Namespace).Update(ctx, s, metav1.UpdateOptions{FieldManager: Manager})
	if err != nil {
		return err
	}
	Wipe(written)
	return nil
}

// ApplyCredentialSpec writes a GMSACredentialSpec by server-side apply as Manager. It returns a conflict if another
// manager set a field to a different value. It reports whether the object is new. Errors are the API server's.
func (c *Cluster) ApplyCredentialSpec(ctx context.Context, name string, spec credspec.Spec) (created bool, _ error) {
	content, err := credspec.Object(name, spec)
	if err != nil {
		return false, err
	}
	var object map[string]any
	if err := yaml.Unmarshal(content, &object); err != nil {
		return false, fmt.Errorf("GMSACredentialSpec %s: %w", name, err)
	}
	u, err := c.Dynamic.Resource(CredentialSpecs).
		Apply(ctx, name, &unstructured.Unstructured{Object: object}, metav1.ApplyOptions{FieldManager: Manager})
	if err != nil {
		return false, err
	}
	return u.GetGeneration() == 1 && len(u.GetManagedFields()) == 1, nil
}
