package main

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// waitReady waits until the API server reports that it is ready.
func waitReady(ctx context.Context, client kubernetes.Interface, ended <-chan error) error {
	return poll(ctx, ended, "the API server's /readyz", func(ctx context.Context) error {
		return client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	})
}

// forgetServiceAccount deletes a service account that nothing uses, so that untilControllersWork sees it come back. There is
// none in a new cluster.
func forgetServiceAccount(ctx context.Context, client kubernetes.Interface) error {
	err := client.CoreV1().ServiceAccounts(metav1.NamespacePublic).Delete(ctx, "default", metav1.DeleteOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// untilControllersWork waits for the service accounts that the controller manager makes in each namespace: pods and token
// requests depend on them.
func untilControllersWork(ctx context.Context, client kubernetes.Interface, ended <-chan error) error {
	return poll(ctx, ended, "the service accounts of the namespaces", func(ctx context.Context) error {
		for _, namespace := range []string{metav1.NamespacePublic, metav1.NamespaceDefault} {
			if _, err := client.CoreV1().ServiceAccounts(namespace).Get(ctx, "default", metav1.GetOptions{}); err != nil {
				return err
			}
		}
		return nil
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
