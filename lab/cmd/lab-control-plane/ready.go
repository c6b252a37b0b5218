package main

import (
	"context"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// waitReady waits until the API server reports that it is ready.
func waitReady(ctx context.Context, client kubernetes.Interface, ended <-chan error) error {
	return poll(ctx, ended, "the API server's /readyz", func(ctx context.Context) error {
		return client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	})
}

// waitNamespaces waits for the service account that the controller manager creates in each namespace. Pods and token
// requests depend on it.
func waitNamespaces(ctx context.Context, client kubernetes.Interface, ended <-chan error) error {
	return poll(ctx, ended, "the service account default/default", func(ctx context.Context) error {
		_, err := client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
		return err
	})
}

func poll(ctx context.Context, ended <-chan error, what string, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		attempt, stop := context.WithTimeout(ctx, 5*time.Second)
		err := try(attempt)
		stop()
		if err == nil {
			return nil
		}
		select {
		case err := <-ended:
			return err
		case <-ctx.Done():
			return fmt.Errorf("timeout waiting for %s: %w", what, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
