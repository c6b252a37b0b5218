package cluster

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ccgrkc/ccgrkc/lab/env/tools"
)

// Release is a release of one of the product's charts, for one version of helm.
type Release struct {
	Cluster   *Cluster
	Helm      tools.Tool // default: Helm4
	Chart     string
	Namespace string
	Name      string
}

// Install installs or upgrades the release, and waits until it is ready.
func (r Release) Install(ctx context.Context, args ...string) (string, error) {
	upgrade := []string{"upgrade", "--install", r.Name, Chart(r.Chart),
		"--create-namespace", "--wait", "--timeout", "3m"}
	return r.run(ctx, append(upgrade, args...)...)
}

func (r Release) Uninstall(ctx context.Context, args ...string) (string, error) {
	return r.run(ctx, append([]string{"uninstall", r.Name}, args...)...)
}

// Test runs the chart's tests.
func (r Release) Test(ctx context.Context) (string, error) {
	return r.run(ctx, "test", r.Name)
}

// Rollback rolls the release back to a revision, and waits until it is ready.
func (r Release) Rollback(ctx context.Context, revision string) (string, error) {
	return r.run(ctx, "rollback", r.Name, revision, "--wait", "--timeout", "3m")
}

func (r Release) run(ctx context.Context, args ...string) (string, error) {
	helm := r.Helm
	if helm == (tools.Tool{}) {
		helm = tools.Helm4
	}
	return r.Cluster.Run(ctx, helm, append(args, "--namespace", r.Namespace)...)
}

// Label sets a label, name=value, on a node.
func (c *Cluster) Label(ctx context.Context, node, label string) error {
	_, err := c.Run(ctx, tools.Kubectl, "label", "node", node, label, "--overwrite")
	return err
}

// Pod returns the name of a DaemonSet's running pod on a node.
func (c *Cluster) Pod(ctx context.Context, namespace, daemonSet, node string) (string, error) {
	onNode := metav1.ListOptions{FieldSelector: "spec.nodeName=" + node}
	pods, err := c.ControlPlane.Client().CoreV1().Pods(namespace).List(ctx, onNode)
	if err != nil {
		return "", err
	}
	for _, pod := range pods.Items {
		owner := metav1.GetControllerOf(&pod)
		running := pod.DeletionTimestamp == nil && pod.Status.Phase == corev1.PodRunning
		if running && owner != nil && owner.Name == daemonSet {
			return pod.Name, nil
		}
	}
	return "", fmt.Errorf("DaemonSet %s/%s has no running pod on %s", namespace, daemonSet, node)
}

// PutSecret creates or replaces an impersonation account's Secret.
func (c *Cluster) PutSecret(ctx context.Context, namespace, name, password string) error {
	secrets := c.ControlPlane.Client().CoreV1().Secrets(namespace)
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Data: map[string][]byte{
		"domainName": []byte("corp.example.com"),
		"username":   []byte("gmsa-reader"),
		"password":   []byte(password),
	}}
	if _, err := secrets.Update(ctx, secret, metav1.UpdateOptions{}); err == nil {
		return nil
	}
	_, err := secrets.Create(ctx, secret, metav1.CreateOptions{})
	return err
}

// Eventually calls f until it returns nil. After the timeout it returns f's last error.
func Eventually(ctx context.Context, timeout time.Duration, f func() error) error {
	for deadline := time.Now().Add(timeout); ; {
		err := f()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}
