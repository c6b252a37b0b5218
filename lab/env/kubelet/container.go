package kubelet

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	firstBackOff = time.Second
	maxBackOff   = 30 * time.Second
	// A container that ran this long restarts without delay.
	backOffReset = time.Minute
)

// container is one container of a pod, through all its restarts.
type container struct {
	pod  *pod
	spec *corev1.Container

	// Guarded by the pod's mutex.
	status     corev1.ContainerStatus
	current    *running
	killReason string
	failing    bool // according to the liveness or startup probe
}

func newContainer(p *pod, spec *corev1.Container, before []corev1.ContainerStatus) *container {
	c := &container{pod: p, spec: spec}
	c.status = corev1.ContainerStatus{Name: spec.Name, Image: spec.Image, Started: new(bool)}
	c.status.State.Waiting = &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}
	if len(p.object.Spec.InitContainers) > 0 {
		c.status.State.Waiting.Reason = "PodInitializing"
	}
	for _, old := range before {
		// A container that ran when the node went down has ended with an unknown exit code.
		if old.Name != spec.Name || old.ContainerID == "" {
			continue
		}
		c.status.RestartCount = old.RestartCount + 1
		switch {
		case old.State.Terminated != nil:
			c.status.LastTerminationState = old.State
		case old.State.Running != nil:
			c.status.LastTerminationState.Terminated = &corev1.ContainerStateTerminated{
				ExitCode:    255,
				Reason:      "Unknown",
				StartedAt:   old.State.Running.StartedAt,
				FinishedAt:  metav1.Now(),
				ContainerID: old.ContainerID,
			}
		}
	}
	return c
}

// change changes the status under the pod's lock.
func (c *container) change(f func(s *corev1.ContainerStatus)) {
	c.pod.mu.Lock()
	f(&c.status)
	c.pod.mu.Unlock()
	c.pod.touch()
}

func (c *container) wait(reason, message string) {
	c.change(func(s *corev1.ContainerStatus) {
		s.Ready, s.Started = false, new(bool)
		if s.State.Terminated != nil {
			s.LastTerminationState = s.State
		}
		s.State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}
	})
}

func (c *container) currentRun() *running {
	c.pod.mu.Lock()
	defer c.pod.mu.Unlock()
	return c.current
}

func (c *container) waitStarted(ctx context.Context) bool {
	for {
		c.pod.mu.Lock()
		started := deref(c.status.Started, false)
		c.pod.mu.Unlock()
		if started {
			return true
		}
		if !sleep(ctx, 50*time.Millisecond) {
			return false
		}
	}
}

// startError is the reason and message in the status of a container that could not start.
type startError struct{ reason, message string }

func (r *startError) Error() string { return r.reason + ": " + r.message }

// run runs the container, with restarts, until its restart policy allows no further run, the pod ends or end is closed.
// It reports whether the last run succeeded.
func (c *container) run(policy corev1.RestartPolicy, end <-chan struct{}) bool {
	ctx, cancel := context.WithCancel(c.pod.ctx)
	defer cancel()
	if end != nil {
		go func() {
			select {
			case <-end:
				cancel()
			case <-ctx.Done():
			}
		}()
	}
	delay := time.Duration(0)
	for {
		began := time.Now()
		code, err := c.once(ctx)
		if err == nil && (policy == corev1.RestartPolicyNever || policy == corev1.RestartPolicyOnFailure && code == 0) {
			return code == 0
		}
		if ctx.Err() != nil {
			return false
		}
		var failure *startError
		pullOrStart := errors.As(err, &failure)
		switch {
		case time.Since(began) > backOffReset:
			delay = 0
		case delay == 0 && pullOrStart:
			delay = firstBackOff
		}
		if delay > 0 {
			c.reportBackOff(failure, delay)
			if !sleep(ctx, delay) {
				return false
			}
		}
		delay = min(max(2*delay, firstBackOff), maxBackOff)
	}
}

func (c *container) reportBackOff(failure *startError, delay time.Duration) {
	p := c.pod
	switch {
	case failure == nil:
		c.wait("CrashLoopBackOff", fmt.Sprintf("back-off %s restarting failed container=%s pod=%s_%s(%s)",
			delay, c.spec.Name, p.name, p.namespace, p.uid))
		p.event(corev1.EventTypeWarning, "BackOff", "Back-off restarting failed container %s in pod %s_%s(%s)",
			c.spec.Name, p.name, p.namespace, p.uid)
	case failure.reason == "ErrImagePull":
		c.wait("ImagePullBackOff", fmt.Sprintf("Back-off pulling image %q: %s: %s",
			c.spec.Image, failure.reason, failure.message))
		p.event(corev1.EventTypeNormal, "BackOff", "Back-off pulling image %q", c.spec.Image)
	}
	// Other failures remain in the status.
}

// once runs the container one time. It returns an error if the container did not start.
func (c *container) once(ctx context.Context) (int32, error) {
	p := c.pod
	r, log, err := c.start(ctx)
	if err != nil {
		var failure *startError
		if errors.As(err, &failure) && ctx.Err() == nil {
			c.wait(failure.reason, failure.message)
			p.event(corev1.EventTypeWarning, "Failed", "Error: %s", failure.message)
		}
		return 0, err
	}
	defer log.Close()
	probes, endProbes := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { c.probe(probes, r) })

	select {
	case <-r.process.Done:
	case <-ctx.Done():
		p.event(corev1.EventTypeNormal, "Killing", "Stopping container %s", c.spec.Name)
		endProbes()
		if end := p.killTime(); end.IsZero() { // a sidecar of a completed pod
			end = time.Now().Add(p.grace())
			c.terminate(r, func() time.Time { return end })
		} else {
			c.terminate(r, p.killTime)
		}
	case <-c.unhealthy(probes):
		p.event(corev1.EventTypeNormal, "Killing", "Container %s failed liveness probe, will be restarted", c.spec.Name)
		deadline := time.Now().Add(p.grace())
		c.terminate(r, func() time.Time {
			if t := p.killTime(); !t.IsZero() && t.Before(deadline) {
				return t
			}
			return deadline
		})
	}
	endProbes()
	wg.Wait()
	code := exitCode(r.process.Err)
	message := ""
	if code != 0 && c.spec.TerminationMessagePolicy == corev1.TerminationMessageFallbackToLogsOnError {
		message = logTail(log.Name())
	}
	c.change(func(s *corev1.ContainerStatus) {
		reason := "Completed"
		if code != 0 {
			reason = "Error"
		}
		if c.killReason != "" {
			reason = c.killReason
		}
		s.State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
			ExitCode:    code,
			Reason:      reason,
			Message:     message,
			StartedAt:   s.State.Running.StartedAt,
			FinishedAt:  metav1.Now(),
			ContainerID: s.ContainerID,
		}}
		s.Ready, s.Started = false, new(bool)
		c.current, c.killReason, c.failing = nil, "", false
	})
	if err := r.release(); err != nil {
		p.event(corev1.EventTypeWarning, "FailedKillPod", "container %s: %v", c.spec.Name, err)
	}
	return code, nil
}

// logTail is the end of a log, as long as in a kubelet's status. The lab does not support termination message files.
func logTail(log string) string {
	content, err := os.ReadFile(log)
	if err != nil {
		return ""
	}
	const most = 2048
	if len(content) > most {
		content = content[len(content)-most:]
	}
	return strings.ToValidUTF8(string(content), "")
}

// terminate requests that the container exits, and kills it at the deadline. The deadline can become earlier meanwhile.
func (c *container) terminate(r *running, deadline func() time.Time) {
	if deadline().After(time.Now()) {
		c.preStop(r, deadline())
		_ = r.process.Signal(r.endSignal)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-r.process.Done:
			return
		case <-tick.C:
			if !time.Now().Before(deadline()) {
				_ = r.process.Signal(syscall.SIGKILL)
				<-r.process.Done
				return
			}
		}
	}
}

func (c *container) preStop(r *running, deadline time.Time) {
	if c.spec.Lifecycle == nil || c.spec.Lifecycle.PreStop == nil {
		return
	}
	hook := c.spec.Lifecycle.PreStop
	ctx, cancel := context.WithDeadline(c.pod.node.ctx, deadline)
	defer cancel()
	switch {
	case hook.Exec != nil:
		if out, err := r.output(ctx, hook.Exec.Command); err != nil {
			c.pod.event(corev1.EventTypeWarning, "FailedPreStopHook", "PreStopHook failed: %v: %s", err, out)
		}
	case hook.Sleep != nil:
		sleep(ctx, time.Duration(hook.Sleep.Seconds)*time.Second)
	}
}

func (c *container) start(ctx context.Context) (*running, *os.File, error) {
	p := c.pod
	img, pulled, err := p.node.images.get(ctx, c.spec.Image, c.spec.ImagePullPolicy)
	switch {
	case errors.Is(err, errNeverPull):
		return nil, nil, &startError{"ErrImageNeverPull", err.Error()}
	case err != nil:
		p.event(corev1.EventTypeWarning, "Failed", "Failed to pull image %q: %v", c.spec.Image, err)
		return nil, nil, &startError{"ErrImagePull", err.Error()}
	case pulled:
		p.event(corev1.EventTypeNormal, "Pulled", "Successfully pulled image %q", c.spec.Image)
	default:
		p.event(corev1.EventTypeNormal, "Pulled", "Container image %q already present on machine", c.spec.Image)
	}
	s := start{id: newID(), image: img, workingDir: c.spec.WorkingDir, security: c.security(), network: p.network}
	if s.workingDir == "" {
		s.workingDir = img.config.WorkingDir
	}
	if s.env, err = c.environment(ctx, img); err == nil {
		s.mounts, err = c.mounts(s.env)
	}
	if err != nil {
		return nil, nil, &startError{"CreateContainerConfigError", err.Error()}
	}
	if s.argv, err = c.command(img, s.env); err != nil {
		return nil, nil, &startError{"CreateContainerError", err.Error()}
	}
	p.event(corev1.EventTypeNormal, "Created", "Container created")
	if err := c.fetchCredentials(ctx, s.id); err != nil {
		return nil, nil, &startError{"RunContainerError", err.Error()}
	}
	if s.log, err = c.openLog(); err != nil {
		return nil, nil, &startError{"RunContainerError", err.Error()}
	}
	r, err := p.node.runtime.start(ctx, s)
	if err != nil {
		s.log.Close()
		const prefix = "failed to create containerd task: failed to create shim task: "
		return nil, nil, &startError{"RunContainerError", prefix + err.Error()}
	}
	c.change(func(status *corev1.ContainerStatus) {
		if status.State.Terminated != nil {
			status.LastTerminationState = status.State
		}
		if status.ContainerID != "" {
			status.RestartCount++
		}
		status.ContainerID, status.ImageID = "containerd://"+s.id, img.id
		status.State = corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Now()}}
		c.current = r
		started := c.spec.StartupProbe == nil
		status.Started, status.Ready = &started, started && c.spec.ReadinessProbe == nil
	})
	p.event(corev1.EventTypeNormal, "Started", "Container started")
	return r, s.log, nil
}

// fetchCredentials calls the emulator of ccg.exe for a container that uses a gMSA, as Windows does when it creates the
// container. The text around the error is hcsshim's.
func (c *container) fetchCredentials(ctx context.Context, id string) error {
	if c.pod.node.o.OS != "windows" {
		return nil
	}
	var spec string
	object := c.pod.latest()
	for _, o := range []*corev1.WindowsSecurityContextOptions{
		podWindows(object.Spec.SecurityContext),
		containerWindows(c.spec.SecurityContext),
	} {
		if o == nil {
			continue
		}
		if deref(o.HostProcess, false) {
			return nil
		}
		spec = deref(o.GMSACredentialSpec, spec)
	}
	if spec == "" {
		return nil
	}
	err := errors.New("this node has no Container Credential Guard: the Windows feature Containers is not installed")
	if ccg := c.pod.node.o.CCG; ccg != nil {
		err = ccg(ctx, []byte(spec))
	}
	if err != nil {
		return fmt.Errorf("failed to create containerd task: failed to create shim task: "+
			"hcs::CreateComputeSystem %s: winapi error #3489661095: %w", id, err)
	}
	return nil
}

func podWindows(s *corev1.PodSecurityContext) *corev1.WindowsSecurityContextOptions {
	if s == nil {
		return nil
	}
	return s.WindowsOptions
}

func containerWindows(s *corev1.SecurityContext) *corev1.WindowsSecurityContextOptions {
	if s == nil {
		return nil
	}
	return s.WindowsOptions
}

// security is the user and group from the container's or the pod's settings.
func (c *container) security() *corev1.SecurityContext {
	s := &corev1.SecurityContext{}
	if of := c.pod.latest().Spec.SecurityContext; of != nil {
		s.RunAsUser, s.RunAsGroup = of.RunAsUser, of.RunAsGroup
	}
	if of := c.spec.SecurityContext; of != nil {
		if of.RunAsUser != nil {
			s.RunAsUser = of.RunAsUser
		}
		if of.RunAsGroup != nil {
			s.RunAsGroup = of.RunAsGroup
		}
	}
	return s
}

func (c *container) mounts(env map[string]string) ([]mount, error) {
	c.pod.mu.Lock()
	defer c.pod.mu.Unlock()
	var mounts []mount
	for _, m := range c.spec.VolumeMounts {
		source, ok := c.pod.volumes[m.Name]
		if !ok {
			return nil, fmt.Errorf("the pod has no volume %q", m.Name)
		}
		if m.SubPathExpr != "" {
			m.SubPath = m.SubPathExpr
			for name, value := range env {
				m.SubPath = strings.ReplaceAll(m.SubPath, "$("+name+")", value)
			}
		}
		if m.SubPath != "" {
			if !filepath.IsLocal(m.SubPath) {
				return nil, fmt.Errorf("subPath %q is outside the volume", m.SubPath)
			}
			source = filepath.Join(source, m.SubPath)
			if _, err := os.Stat(source); err != nil {
				if err := os.MkdirAll(source, 0o755); err != nil {
					return nil, err
				}
			}
		}
		mounts = append(mounts, mount{source: source, target: m.MountPath, readOnly: m.ReadOnly})
	}
	return mounts, nil
}

// openLog creates the log of the next run: <pod>/<container>/<n>.log. It keeps the log of the previous run.
func (c *container) openLog() (*os.File, error) {
	c.pod.mu.Lock()
	n := c.status.RestartCount
	if c.status.ContainerID != "" {
		n++
	}
	c.pod.mu.Unlock()
	if err := os.MkdirAll(filepath.Join(c.pod.dir, c.spec.Name), 0o755); err != nil {
		return nil, err
	}
	_ = os.Remove(c.logFile(n - 2)) // fails only if it does not exist
	return os.OpenFile(c.logFile(n), os.O_CREATE|os.O_TRUNC|os.O_APPEND|os.O_WRONLY, 0o644)
}

func (c *container) logFile(run int32) string {
	return filepath.Join(c.pod.dir, c.spec.Name, strconv.Itoa(int(run))+".log")
}

func newID() string {
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails
	return hex.EncodeToString(id)
}
