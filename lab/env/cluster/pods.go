package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ccgrkc/ccgrkc/internal/com"
	"github.com/ccgrkc/ccgrkc/lab/env/winnode"
)

// AppPod is a GMSAPod with a credential spec of a fictitious domain, for tests without Active Directory.
func (c *Cluster) AppPod(namespace, name, node, input string) (*corev1.Pod, error) {
	spec, err := json.Marshal(winnode.CredentialSpec(input))
	if err != nil {
		return nil, err
	}
	return c.GMSAPod(namespace, name, node, spec), nil
}

// GMSAPod is a pod with an inline credential spec, as the webhook populates it.
func (c *Cluster) GMSAPod(namespace, name, node string, spec []byte) *corev1.Pod {
	contents, grace := string(spec), int64(5)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: corev1.PodSpec{
			NodeSelector: map[string]string{"kubernetes.io/hostname": node},
			SecurityContext: &corev1.PodSecurityContext{
				WindowsOptions: &corev1.WindowsSecurityContextOptions{GMSACredentialSpec: &contents},
			},
			TerminationGracePeriodSeconds: &grace,
			Containers:                    []corev1.Container{{Name: "app", Image: c.AppImage()}},
		},
	}
}

// SpecNamePod is a pod with a credential spec name, as users create it in a cluster with the webhook. If serviceAccount
// is empty, the pod uses the ServiceAccount default.
func (c *Cluster) SpecNamePod(namespace, name, node, credentialSpec, serviceAccount string) *corev1.Pod {
	pod := c.GMSAPod(namespace, name, node, nil)
	options := &corev1.WindowsSecurityContextOptions{GMSACredentialSpecName: &credentialSpec}
	pod.Spec.SecurityContext.WindowsOptions = options
	pod.Spec.ServiceAccountName = serviceAccount
	return pod
}

// CreateAppPod creates an AppPod.
func (c *Cluster) CreateAppPod(ctx context.Context, namespace, name, node, input string) error {
	pod, err := c.AppPod(namespace, name, node, input)
	if err != nil {
		return err
	}
	return c.createPod(ctx, pod)
}

// CreateGMSAPod creates a GMSAPod.
func (c *Cluster) CreateGMSAPod(ctx context.Context, namespace, name, node string, spec []byte) error {
	return c.createPod(ctx, c.GMSAPod(namespace, name, node, spec))
}

func (c *Cluster) createPod(ctx context.Context, pod *corev1.Pod) error {
	_, err := c.ControlPlane.Client().CoreV1().Pods(pod.Namespace).Create(ctx, pod, metav1.CreateOptions{})
	return err
}

// WaitForPod waits until a pod is ready.
func (c *Cluster) WaitForPod(ctx context.Context, namespace, name string, timeout time.Duration) error {
	_, err := c.waitForPod(ctx, namespace, name, timeout, "is ready", func(pod *corev1.Pod) (string, bool) {
		for _, condition := range pod.Status.Conditions {
			if condition.Type == corev1.PodReady && condition.Status == corev1.ConditionTrue {
				return "", true
			}
		}
		return "", false
	})
	return err
}

// WaitForStartFailure waits until a container's waiting state has a message that contains text, and returns the
// message.
func (c *Cluster) WaitForStartFailure(ctx context.Context, namespace, name, text string,
	timeout time.Duration) (string, error) {
	what := fmt.Sprintf("has the message %q", text)
	return c.waitForPod(ctx, namespace, name, timeout, what, func(pod *corev1.Pod) (string, bool) {
		for _, status := range pod.Status.ContainerStatuses {
			if w := status.State.Waiting; w != nil && strings.Contains(w.Message, text) {
				return w.Message, true
			}
		}
		return "", false
	})
}

func (c *Cluster) waitForPod(ctx context.Context, namespace, name string, timeout time.Duration, what string,
	is func(*corev1.Pod) (string, bool)) (string, error) {
	for deadline := time.Now().Add(timeout); ; {
		pod, err := c.ControlPlane.Client().CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return "", err
		}
		if message, ok := is(pod); ok {
			return message, nil
		}
		if time.Now().After(deadline) {
			status, _ := json.Marshal(pod.Status)
			return "", fmt.Errorf("pod %s/%s: timeout after %s waiting until it %s; status: %s",
				namespace, name, timeout, what, status)
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Leftovers lists the product's files and registry keys on a Windows node. A clean node has none.
func (n *Node) Leftovers(ctx context.Context) ([]string, error) {
	var left []string
	for _, dir := range []string{`C:\var`, `C:\Program Files\CCGRKC`, `C:\hpc`, `C:\C`} {
		err := filepath.WalkDir(n.Stage.Node.Path(dir), func(path string, _ os.DirEntry, err error) error {
			if err == nil {
				left = append(left, path)
			}
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	for _, parent := range []string{
		`HKLM\SOFTWARE`, `HKLM\SOFTWARE\Classes\CLSID`, `HKLM\SOFTWARE\Classes\AppID`,
		`HKLM\SYSTEM\CurrentControlSet\Control\CCG\COMClasses`,
		`HKLM\SYSTEM\CurrentControlSet\Services\EventLog\Application`,
	} {
		out, err := n.Stage.Node.Run(ctx, "reg", "query", parent)
		if err != nil && !strings.Contains(string(out), "Unable to find the specified registry key") {
			return nil, fmt.Errorf("the registry of %s: %w\n%s", n.Name, err, out)
		}
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, "CCGRKC") || strings.Contains(strings.ToUpper(line), com.CLSID) {
				left = append(left, strings.TrimSpace(line))
			}
		}
	}
	return left, nil
}
