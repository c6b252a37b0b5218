package kubelet

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// touch requests a write of the status.
func (p *pod) touch() {
	select {
	case p.changed <- struct{}{}:
	default: // already requested
	}
}

// writeStatus writes each change of the status while the node runs. It retries while the API server is unreachable.
func (p *pod) writeStatus() {
	for over := false; !over; {
		select {
		case <-p.node.ctx.Done():
			return
		case <-p.changed:
		case <-p.ended:
			over = true
		}
		for {
			gone, err := p.putStatus(p.node.ctx)
			if gone || !sleepIf(p.node.ctx, err, time.Second) {
				return
			}
			if err == nil {
				break
			}
		}
	}
}

func sleepIf(ctx context.Context, err error, d time.Duration) bool {
	return err == nil || sleep(ctx, d)
}

// lastStatus tries to write the status before the timeout.
func (p *pod) lastStatus(within time.Duration) {
	ctx, cancel := context.WithTimeout(p.node.ctx, within)
	defer cancel()
	_, _ = p.putStatus(ctx)
}

func (p *pod) putStatus(ctx context.Context) (gone bool, _ error) {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": p.uid}, "status": p.status()})
	if err != nil {
		return false, err
	}
	pods := p.node.client.CoreV1().Pods(p.namespace)
	_, err = pods.Patch(ctx, p.name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	return apierrors.IsNotFound(err) || apierrors.IsConflict(err), err
}

func (p *pod) status() corev1.PodStatus {
	stopped := p.node.isStopped()
	p.mu.Lock()
	defer p.mu.Unlock()
	s := corev1.PodStatus{
		Phase:     p.phase(stopped),
		StartTime: &p.started,
		HostIP:    loopback,
		HostIPs:   []corev1.HostIP{{IP: loopback}},
	}
	if p.address != "" {
		s.PodIP, s.PodIPs = p.address, []corev1.PodIP{{IP: p.address}}
	}
	ready := s.Phase == corev1.PodRunning
	for _, c := range p.inits {
		s.InitContainerStatuses = append(s.InitContainerStatuses, c.status)
	}
	for _, c := range p.containers {
		s.ContainerStatuses = append(s.ContainerStatuses, c.status)
		ready = ready && c.status.Ready
	}
	for kind, holds := range map[corev1.PodConditionType]bool{
		corev1.PodReadyToStartContainers: true,
		corev1.PodInitialized:            p.initDone,
		corev1.ContainersReady:           ready,
		corev1.PodReady:                  ready,
	} {
		condition := corev1.PodCondition{Type: kind, Status: corev1.ConditionFalse, LastTransitionTime: metav1.Now()}
		switch {
		case holds:
			condition.Status = corev1.ConditionTrue
		case s.Phase == corev1.PodSucceeded:
			condition.Reason = "PodCompleted"
		case kind == corev1.PodInitialized:
			condition.Reason = "ContainersNotInitialized"
		default:
			condition.Reason = "ContainersNotReady"
		}
		for _, old := range p.object.Status.Conditions {
			if old.Type == kind && old.Status == condition.Status {
				condition.LastTransitionTime = old.LastTransitionTime
			}
		}
		s.Conditions = append(s.Conditions, condition)
	}
	return s
}

// phase is Pending until the init containers are done, and Succeeded or Failed when no container will run again.
func (p *pod) phase(stopped bool) corev1.PodPhase {
	failed := func(c *container) bool {
		return c.status.State.Terminated != nil && c.status.State.Terminated.ExitCode != 0
	}
	over := false
	select {
	case <-p.ended:
		over = true
	default:
	}
	switch {
	case over && stopped:
		// The node shuts down. The pod starts again when the node is back.
		if p.initDone {
			return corev1.PodRunning
		}
		return corev1.PodPending
	case over && (slices.ContainsFunc(p.containers, failed) || !p.initDone):
		return corev1.PodFailed
	case over:
		return corev1.PodSucceeded
	case p.initDone:
		return corev1.PodRunning
	}
	return corev1.PodPending
}

func (n *Node) isStopped() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.stopped
}
