package kubelet

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/ccgrkc/ccgrkc/lab/internal/netns"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// pod runs one pod of the node.
type pod struct {
	node            *Node
	namespace, name string
	uid             types.UID
	dir             string
	inits           []*container
	containers      []*container

	ctx    context.Context // ends when the pod must end
	cancel context.CancelFunc
	ended  chan struct{} // closed when no container runs or will run

	changed chan struct{} // the status differs from the written one
	tokens  map[string]*token
	network *netns.Namespace // set before the first container starts; nil for the machine's network

	mu       sync.Mutex
	object   *corev1.Pod
	address  string // "" until the network exists
	volumes  map[string]string
	started  metav1.Time
	initDone bool
	deadline time.Time // for the processes, after the pod was told to end
	deleting bool
}

// sync starts a new pod and ends one that is being deleted.
func (n *Node) sync(object *corev1.Pod) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.stopped {
		return
	}
	p := n.pods[object.UID]
	if p == nil {
		finished := object.Status.Phase == corev1.PodSucceeded || object.Status.Phase == corev1.PodFailed
		if object.DeletionTimestamp != nil {
			n.wg.Go(func() { n.deleteObject(object) })
			return
		}
		if finished {
			return
		}
		p = n.newPod(object)
		n.pods[object.UID] = p
		n.wg.Go(p.run)
		n.wg.Go(p.writeStatus)
		return
	}
	p.mu.Lock()
	p.object = object
	first := object.DeletionTimestamp != nil && !p.deleting
	p.deleting = p.deleting || first
	p.mu.Unlock()
	if object.DeletionTimestamp != nil {
		p.stop(p.grace())
	}
	if first {
		n.wg.Go(func() {
			<-p.ended
			// The last status is for watchers; the deletion does not wait for it.
			p.lastStatus(5 * time.Second)
			n.deleteObject(object)
		})
	}
}

func (n *Node) newPod(object *corev1.Pod) *pod {
	p := &pod{
		node:      n,
		namespace: object.Namespace,
		name:      object.Name,
		uid:       object.UID,
		object:    object,
		dir:       filepath.Join(n.o.Dir, "pods", string(object.UID)),
		ended:     make(chan struct{}),
		changed:   make(chan struct{}, 1),
		tokens:    map[string]*token{},
		volumes:   map[string]string{},
		started:   metav1.Now(),
	}
	if !p.hasNetwork() {
		p.address = loopback
	}
	if object.Status.StartTime != nil {
		p.started = *object.Status.StartTime
	}
	p.ctx, p.cancel = context.WithCancel(n.ctx)
	for i := range object.Spec.InitContainers {
		p.inits = append(p.inits, newContainer(p, &object.Spec.InitContainers[i], object.Status.InitContainerStatuses))
	}
	for i := range object.Spec.Containers {
		c := newContainer(p, &object.Spec.Containers[i], object.Status.ContainerStatuses)
		p.containers = append(p.containers, c)
	}
	return p
}

// deleteObject removes the pod's object from the API server when nothing of the pod is left on the node.
func (n *Node) deleteObject(object *corev1.Pod) {
	now := int64(0)
	options := metav1.DeleteOptions{GracePeriodSeconds: &now, Preconditions: &metav1.Preconditions{UID: &object.UID}}
	for {
		err := n.client.CoreV1().Pods(object.Namespace).Delete(n.ctx, object.Name, options)
		if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) || !sleep(n.ctx, time.Second) {
			return
		}
	}
}

// vanished kills a pod whose object no longer exists.
func (n *Node) vanished(uid types.UID) {
	n.mu.Lock()
	p := n.pods[uid]
	delete(n.pods, uid)
	n.mu.Unlock()
	if p == nil {
		return
	}
	p.kill()
	n.wg.Go(func() {
		<-p.ended
		_ = os.RemoveAll(p.dir) // logs; the lab removes its directory at the end anyway
	})
}

func (p *pod) latest() *corev1.Pod {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.object
}

func (p *pod) setVolume(name, dir string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.volumes[name] = dir
}

func (p *pod) grace() time.Duration {
	object := p.latest()
	seconds := deref(object.Spec.TerminationGracePeriodSeconds, 30)
	if object.DeletionTimestamp != nil {
		seconds = deref(object.DeletionGracePeriodSeconds, seconds)
	}
	return time.Duration(seconds) * time.Second
}

// stop ends the pod within the grace period. Another call can only shorten the period.
func (p *pod) stop(grace time.Duration) {
	p.mu.Lock()
	deadline := time.Now().Add(grace)
	if p.deadline.IsZero() || deadline.Before(p.deadline) {
		p.deadline = deadline
	}
	p.mu.Unlock()
	p.cancel()
}

func (p *pod) kill() { p.stop(0) }

func (p *pod) killTime() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.deadline
}

func (p *pod) event(kind, reason, format string, args ...any) {
	if p.node.killed.Load() {
		return
	}
	p.node.events.Eventf(p.latest(), kind, reason, format, args...)
}

// run runs the pod to its end.
func (p *pod) run() {
	defer p.touch()
	defer close(p.ended)
	defer p.cancel()
	p.touch()
	for {
		err := p.makeVolumes(p.ctx)
		if err == nil {
			break
		}
		p.event(corev1.EventTypeWarning, "FailedMount", "%v", err)
		if !sleep(p.ctx, time.Second) {
			p.removeVolumes()
			return
		}
	}
	refreshed := make(chan struct{})
	go func() {
		defer close(refreshed)
		p.refreshVolumes(p.ctx)
	}()
	defer func() {
		p.cancel()
		<-refreshed
		p.removeVolumes()
	}()
	for p.hasNetwork() {
		leave, err := p.joinNetwork()
		if err == nil {
			defer leave()
			break
		}
		p.event(corev1.EventTypeWarning, "FailedCreatePodSandBox", "Failed to create pod sandbox: %v", err)
		if !sleep(p.ctx, time.Second) {
			return
		}
	}

	var sidecars sync.WaitGroup
	endSidecars := make(chan struct{})
	defer sidecars.Wait()
	var once sync.Once
	defer once.Do(func() { close(endSidecars) })
	for _, c := range p.inits {
		if deref(c.spec.RestartPolicy, "") == corev1.ContainerRestartPolicyAlways {
			sidecars.Go(func() { c.run(corev1.RestartPolicyAlways, endSidecars) })
			if !c.waitStarted(p.ctx) {
				return
			}
			continue
		}
		policy := p.latest().Spec.RestartPolicy
		if policy == corev1.RestartPolicyAlways {
			policy = corev1.RestartPolicyOnFailure
		}
		if !c.run(policy, nil) {
			return
		}
	}
	p.mu.Lock()
	p.initDone = true
	p.mu.Unlock()
	p.touch()
	var wg sync.WaitGroup
	for _, c := range p.containers {
		wg.Go(func() { c.run(p.latest().Spec.RestartPolicy, nil) })
	}
	wg.Wait()
}

func (p *pod) removeVolumes() {
	// Host paths are not below this directory. A failure leaves files only until the pod's object is deleted.
	_ = os.RemoveAll(filepath.Join(p.dir, "volumes"))
}
