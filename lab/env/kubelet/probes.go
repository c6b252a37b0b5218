package kubelet

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ccgrkc/ccgrkc/lab/env/wine"
)

// probe runs the container's probes until ctx ends: first the startup probe alone, then the others.
func (c *container) probe(ctx context.Context, r *running) {
	if startup := c.spec.StartupProbe; startup != nil {
		started := false
		c.every(ctx, r, "Startup", startup, func(healthy bool) (goOn bool) {
			started = healthy
			if healthy {
				c.change(func(s *corev1.ContainerStatus) {
					yes := true
					s.Started, s.Ready = &yes, c.spec.ReadinessProbe == nil
				})
			} else {
				c.setFailing()
			}
			return false
		})
		if !started {
			return
		}
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	if liveness := c.spec.LivenessProbe; liveness != nil {
		wg.Go(func() {
			c.every(ctx, r, "Liveness", liveness, func(healthy bool) bool {
				if !healthy {
					c.setFailing()
				}
				return healthy
			})
		})
	}
	if readiness := c.spec.ReadinessProbe; readiness != nil {
		wg.Go(func() {
			c.every(ctx, r, "Readiness", readiness, func(healthy bool) bool {
				if ctx.Err() == nil {
					c.change(func(s *corev1.ContainerStatus) { s.Ready = healthy })
				}
				return true
			})
		})
	}
}

func (c *container) setFailing() {
	c.pod.mu.Lock()
	defer c.pod.mu.Unlock()
	c.failing = true
}

// unhealthy is closed when a probe requires a restart of the container.
func (c *container) unhealthy(ctx context.Context) <-chan struct{} {
	ch := make(chan struct{})
	if c.spec.LivenessProbe == nil && c.spec.StartupProbe == nil {
		return ch
	}
	go func() {
		for sleep(ctx, 20*time.Millisecond) {
			c.pod.mu.Lock()
			failing := c.failing
			c.pod.mu.Unlock()
			if failing {
				close(ch)
				return
			}
		}
	}()
	return ch
}

// every probes periodically and calls report each time that a threshold is reached, until report returns false.
func (c *container) every(ctx context.Context, r *running, kind string, probe *corev1.Probe,
	report func(healthy bool) (goOn bool)) {
	if !sleep(ctx, time.Duration(probe.InitialDelaySeconds)*time.Second) {
		return
	}
	good, bad := 0, 0
	for {
		timeout, cancel := context.WithTimeout(ctx, time.Duration(max(probe.TimeoutSeconds, 1))*time.Second)
		err := c.check(timeout, r, probe)
		cancel()
		if ctx.Err() != nil {
			return
		}
		reached := false
		if err == nil {
			good, bad = good+1, 0
			reached = good >= int(max(probe.SuccessThreshold, 1))
		} else {
			good, bad = 0, bad+1
			reached = bad >= int(max(probe.FailureThreshold, 1))
			c.pod.event(corev1.EventTypeWarning, "Unhealthy", "%s probe failed: %v", kind, err)
		}
		if reached && !report(err == nil) {
			return
		}
		if !sleep(ctx, time.Duration(max(probe.PeriodSeconds, 1))*time.Second) {
			return
		}
	}
}

func (c *container) check(ctx context.Context, r *running, probe *corev1.Probe) error {
	switch {
	case probe.Exec != nil:
		out, err := r.output(ctx, probe.Exec.Command)
		if ctx.Err() != nil {
			command := strings.Join(probe.Exec.Command, " ")
			return fmt.Errorf("command timed out: %q timed out after %ds", command, max(probe.TimeoutSeconds, 1))
		}
		if err != nil {
			return fmt.Errorf("%s (%w)", bytes.TrimSpace(out), err)
		}
		return nil
	case probe.HTTPGet != nil:
		return c.checkHTTP(ctx, probe.HTTPGet)
	case probe.TCPSocket != nil:
		address, err := c.address(probe.TCPSocket.Host, probe.TCPSocket.Port)
		if err != nil {
			return err
		}
		conn, err := c.pod.dial(ctx, "tcp", address)
		if err != nil {
			return err
		}
		return conn.Close()
	}
	return errors.New("the lab's kubelet does not support this kind of probe")
}

func (c *container) checkHTTP(ctx context.Context, get *corev1.HTTPGetAction) error {
	address, err := c.address(get.Host, get.Port)
	if err != nil {
		return err
	}
	scheme := strings.ToLower(string(get.Scheme))
	if scheme == "" {
		scheme = "http"
	}
	url := scheme + "://" + address + "/" + strings.TrimPrefix(get.Path, "/")
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	request.Header.Set("User-Agent", "kube-probe/1.37")
	for _, h := range get.HTTPHeaders {
		request.Header.Add(h.Name, h.Value)
	}
	// Like a kubelet, it trusts every certificate: the probe sends no secrets.
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
		DialContext:       c.pod.dial,
	}}
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode < 200 || answer.StatusCode >= 400 {
		return fmt.Errorf("HTTP probe failed with statuscode: %d", answer.StatusCode)
	}
	_, err = io.Copy(io.Discard, io.LimitReader(answer.Body, 10<<10))
	return err
}

func (c *container) address(host string, port intstr.IntOrString) (string, error) {
	if host == "" {
		host = c.pod.ip()
	}
	if port.Type == intstr.Int {
		return net.JoinHostPort(host, strconv.Itoa(port.IntValue())), nil
	}
	for _, p := range c.spec.Ports {
		if p.Name == port.StrVal {
			return net.JoinHostPort(host, strconv.Itoa(int(p.ContainerPort))), nil
		}
	}
	return "", fmt.Errorf("couldn't find port: %q", port.StrVal)
}

// output runs a program in the container and returns its output. It runs a program that did not start once more: see
// wine.NeverStarted.
func (r *running) output(ctx context.Context, argv []string) ([]byte, error) {
	out, err := r.outputOnce(ctx, argv)
	if neverRan(out, err) && ctx.Err() == nil {
		out, err = r.outputOnce(ctx, argv)
	}
	return out, err
}

func neverRan(out []byte, err error) bool {
	return err != nil && (len(out) == 0 || wine.NeverStarted(out))
}

func (r *running) outputOnce(ctx context.Context, argv []string) ([]byte, error) {
	// A file, not a pipe: a surrogate that the program's activation starts inherits it, and so can Wine's services. A
	// pipe would remain open until they exit.
	f, err := os.CreateTemp("", "lab-kubelet-*.out")
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	cmd := r.command(ctx, argv)
	cmd.Stdout, cmd.Stderr = f, f
	runErr := cmd.Run()
	out, err := os.ReadFile(f.Name())
	return out, errors.Join(runErr, err)
}
