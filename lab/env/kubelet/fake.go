package kubelet

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// FakeOptions configure simulated nodes.
type FakeOptions struct {
	Names  []string
	OS     string
	Labels map[string]string
	// Config returns the client configuration of a node.
	Config func(ctx context.Context, node string) (*rest.Config, error)
	// Bound is called for each pod that is bound to a node, before the pod becomes Ready. After an error, it is called
	// again after a second. stop is called when the pod must end. Both can be nil.
	Bound func(ctx context.Context, pod *corev1.Pod) (stop func(), err error)
}

// FakeNodes are many simulated nodes in one process. They run nothing: a pod that is bound to one becomes Ready
// immediately. They serve for tests that depend on the number of nodes.
type FakeNodes struct {
	o      FakeOptions
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

type fakeNode struct {
	all    *FakeNodes
	client kubernetes.Interface

	mu   sync.Mutex
	pods map[types.UID]context.CancelFunc
}

// StartFakeNodes registers the nodes, ten at a time, and returns when all are registered.
func StartFakeNodes(ctx context.Context, o FakeOptions) (*FakeNodes, error) {
	f := &FakeNodes{o: o}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	errs := make(chan error, len(o.Names))
	slots := make(chan bool, 10)
	for _, name := range o.Names {
		slots <- true
		go func() {
			errs <- f.start(ctx, name)
			<-slots
		}()
	}
	var err error
	for range o.Names {
		if e := <-errs; e != nil {
			err = e
		}
	}
	if err != nil {
		f.Stop()
		return nil, err
	}
	return f, nil
}

func (f *FakeNodes) start(ctx context.Context, name string) error {
	config, err := f.o.Config(ctx, name)
	if err != nil {
		return err
	}
	config = rest.CopyConfig(config)
	config.QPS = -1
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	labels := map[string]string{
		corev1.LabelOSStable:   f.o.OS,
		corev1.LabelArchStable: "amd64",
		corev1.LabelHostname:   name,
	}
	for key, value := range f.o.Labels {
		labels[key] = value
	}
	r := &registration{client: client, name: name, labels: labels, port: 1, info: corev1.NodeSystemInfo{
		OperatingSystem:         f.o.OS,
		Architecture:            "amd64",
		KubeletVersion:          kubernetesVersion,
		ContainerRuntimeVersion: "fake://1",
	}}
	if err := r.register(ctx); err != nil {
		return fmt.Errorf("registering node %s: %w", name, err)
	}
	n := &fakeNode{all: f, client: client, pods: map[types.UID]context.CancelFunc{}}
	f.wg.Go(func() { r.heartbeat(f.ctx) })
	f.wg.Go(func() { watchPods(f.ctx, client, name, n.sync, n.vanished) })
	return nil
}

// Stop stops the nodes and what Bound started. The API objects remain.
func (f *FakeNodes) Stop() {
	f.cancel()
	f.wg.Wait()
}

func (n *fakeNode) sync(pod *corev1.Pod) {
	n.mu.Lock()
	defer n.mu.Unlock()
	cancel := n.pods[pod.UID]
	switch {
	case pod.DeletionTimestamp != nil && cancel != nil:
		cancel() // then run deletes the object
	case pod.DeletionTimestamp != nil:
		n.all.wg.Go(func() { n.deleteObject(pod) })
	case cancel == nil:
		ctx, cancel := context.WithCancel(n.all.ctx)
		n.pods[pod.UID] = cancel
		n.all.wg.Go(func() { n.run(ctx, pod) })
	}
}

func (n *fakeNode) vanished(uid types.UID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if cancel := n.pods[uid]; cancel != nil {
		cancel()
		delete(n.pods, uid)
	}
}

func (n *fakeNode) run(ctx context.Context, pod *corev1.Pod) {
	for n.all.o.Bound != nil {
		stop, err := n.all.o.Bound(ctx, pod)
		if err == nil {
			if stop != nil {
				defer stop()
			}
			break
		}
		if !sleep(ctx, time.Second) {
			n.deleteObject(pod)
			return
		}
	}
	for n.ready(ctx, pod) != nil && sleep(ctx, time.Second) {
	}
	<-ctx.Done()
	n.deleteObject(pod)
}

func (n *fakeNode) ready(ctx context.Context, pod *corev1.Pod) error {
	now, yes := metav1.Now(), true
	status := corev1.PodStatus{
		Phase:     corev1.PodRunning,
		StartTime: &now,
		HostIP:    loopback,
		PodIP:     loopback,
		HostIPs:   []corev1.HostIP{{IP: loopback}},
		PodIPs:    []corev1.PodIP{{IP: loopback}},
	}
	for _, kind := range []corev1.PodConditionType{corev1.PodInitialized, corev1.ContainersReady, corev1.PodReady} {
		status.Conditions = append(status.Conditions, corev1.PodCondition{
			Type:               kind,
			Status:             corev1.ConditionTrue,
			LastTransitionTime: now,
		})
	}
	for _, c := range pod.Spec.Containers {
		status.ContainerStatuses = append(status.ContainerStatuses, corev1.ContainerStatus{
			Name:    c.Name,
			Image:   c.Image,
			Ready:   true,
			Started: &yes,
			State:   corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}},
		})
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": pod.UID}, "status": status})
	if err != nil {
		return err
	}
	pods := n.client.CoreV1().Pods(pod.Namespace)
	_, err = pods.Patch(ctx, pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}

// deleteObject deletes the object of a pod that is being deleted. Objects remain when the nodes stop.
func (n *fakeNode) deleteObject(pod *corev1.Pod) {
	now := int64(0)
	options := metav1.DeleteOptions{GracePeriodSeconds: &now, Preconditions: &metav1.Preconditions{UID: &pod.UID}}
	for n.all.ctx.Err() == nil {
		err := n.client.CoreV1().Pods(pod.Namespace).Delete(n.all.ctx, pod.Name, options)
		if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) || !sleep(n.all.ctx, time.Second) {
			return
		}
	}
}
