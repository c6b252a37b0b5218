// Package scale measures the load of many nodes and several accounts on the API server. The control plane, helm and the
// charts are real. This process simulates the nodes and runs the providers: package provider's Run, with the flags, the
// token and the permissions of each pod. The providers' requests are read from the API server's audit log.
//
// Requests of kubelets (pods, tokens, leases) are not counted, because every DaemonSet causes them.
package scale

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/plugin"
	"github.com/ccgrkc/ccgrkc/internal/provider"
	"github.com/ccgrkc/ccgrkc/lab/env/cluster"
	"github.com/ccgrkc/ccgrkc/lab/env/kubelet"
)

const (
	namespace = "gmsa-system"
	// callsInARow is the number of consecutive calls of each provider, as for a pod with three containers.
	callsInARow = 3
	// callers is the number of simultaneous calls. It is limited because the providers and the API server share this
	// machine's processors.
	callers = 16
	// withoutSecret is the measured time before the Secrets exist.
	withoutSecret = 5 * time.Second
	// patience is the timeout of operations that take milliseconds, for overloaded machines.
	patience = time.Minute
)

// Report is the result of Run.
type Report struct {
	Nodes, Providers int
	Installed        []Installed

	// The requests of all ServiceAccounts of the namespace, in four phases: the start of the pods, the time without
	// Secrets (Waited), the calls (Calls), and the time after them (Idled). Probes run in all phases.
	Started, Waiting, Called, Idle []Request

	Calls                int
	Waited, Idled        time.Duration
	Probes, FailedProbes int64 // a probe fails if a TLS handshake takes 5 s, on an overloaded machine
	// Outages are the pods that got no response of the API server within their timeout of 2 s and retried. This happens
	// only on an overloaded machine.
	Outages map[string]bool

	Memory             int64 // resident bytes of the simulated nodes, the providers and the lab's registry
	ControlPlaneMemory int64 // resident bytes
}

// Installed is an installed release.
type Installed struct {
	Release string
	Pods    int           // Ready pods
	Ready   time.Duration // from the start of helm until all pods were Ready
	Helm    time.Duration // run time of helm, including the chart's minReadySeconds
}

// IdlePerNodeHour is the number of requests per node and hour without calls.
func (r Report) IdlePerNodeHour() float64 {
	return float64(len(r.Waiting)+len(r.Idle)) / float64(r.Nodes) / (r.Waited + r.Idled).Hours()
}

// IdleProviderHours is the total time of all providers without calls.
func (r Report) IdleProviderHours() float64 {
	return float64(r.Providers) * (r.Waited + r.Idled).Hours()
}

// PerCall is the number of requests for a call that follows 5 seconds without calls. Further calls use the cached
// credentials.
func (r Report) PerCall() float64 { return float64(len(r.Called)) / float64(r.Providers) }

// Run starts Windows nodes on a cluster, installs the installer's chart and the given number of releases of the
// provider's chart, calls each provider, and waits for the idle time. When it returns, the nodes stop; their objects
// remain.
func Run(ctx context.Context, c *cluster.Cluster, nodes, releases int, idle time.Duration,
	progress io.Writer) (r Report, err error) {
	r.Nodes = nodes
	began := time.Now()
	logf := func(format string, args ...any) {
		fmt.Fprintf(progress, "%6.1f s  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}
	s, err := newSimulation(c)
	if err != nil {
		return r, err
	}
	defer s.log.Close()
	var names []string
	for i := range nodes {
		names = append(names, fmt.Sprintf("win-%03d", i+1))
	}
	logf("starting %d nodes", nodes)
	fake, err := kubelet.StartFakeNodes(ctx, kubelet.FakeOptions{
		Names:  names,
		OS:     "windows",
		Config: s.config,
		Bound:  s.bound,
	})
	if err != nil {
		return r, err
	}
	defer fake.Stop()

	started := time.Now()
	todo := []cluster.Release{{Cluster: c, Chart: cluster.Installer, Namespace: namespace, Name: "plugin"}}
	for i := range releases {
		todo = append(todo, cluster.Release{
			Cluster:   c,
			Chart:     cluster.Provider,
			Namespace: namespace,
			Name:      fmt.Sprintf("account-%d", i+1),
		})
	}
	if r.Installed, err = install(ctx, todo, nodes, logf); err != nil {
		return r, fmt.Errorf("%w; the providers' log is %s", err, s.log.Name())
	}
	r.Providers = len(s.running())

	if _, err := s.each(ctx, (*account).settle); err != nil {
		return r, fmt.Errorf("%w; the providers' log is %s", err, s.log.Name())
	}
	waiting := time.Now()
	logf("%d providers started; their Secrets do not exist yet", r.Providers)
	if err := pause(ctx, withoutSecret); err != nil {
		return r, err
	}
	calling := time.Now()
	logf("creating the Secrets and calling each provider %d times", callsInARow)
	for _, release := range todo[1:] {
		if err := c.PutSecret(ctx, namespace, credential.SecretName(release.Name), "password of "+release.Name); err != nil {
			return r, err
		}
	}
	if r.Calls, err = s.each(ctx, (*account).call); err != nil {
		return r, fmt.Errorf("%w; the providers' log is %s", err, s.log.Name())
	}
	idling := time.Now()
	logf("%d calls succeeded; idling for %s", r.Calls, idle)
	if err := pause(ctx, idle); err != nil {
		return r, err
	}
	ended := time.Now()

	r.Memory, r.ControlPlaneMemory = resident(os.Getpid()), resident(c.ControlPlane.PID())
	r.Probes, r.FailedProbes = s.probes.Load(), s.failedProbes.Load()
	r.Waited, r.Idled = calling.Sub(waiting), ended.Sub(idling)
	r.Outages = map[string]bool{}
	for _, p := range s.running() {
		if p.outage.Load() {
			r.Outages[p.pod] = true
		}
	}
	if _, err := s.each(ctx, (*account).answers); err != nil {
		return r, fmt.Errorf("after the idle time: %w; the providers' log is %s", err, s.log.Name())
	}
	// The API server writes an entry after its response, so the last entries can be delayed.
	if err := pause(ctx, time.Second); err != nil {
		return r, err
	}
	audit, err := readAudit(c.ControlPlane.AuditLog(), "system:serviceaccount:"+namespace+":")
	if err != nil {
		return r, err
	}
	r.Started, r.Waiting = between(audit, started, waiting), between(audit, waiting, calling)
	r.Called, r.Idle = between(audit, calling, idling), between(audit, idling, ended)
	return r, nil
}

// install installs the releases with helm. It starts each when the pods of the previous one are ready, while that helm
// still waits for the chart's minReadySeconds.
func install(ctx context.Context, releases []cluster.Release, nodes int,
	logf func(string, ...any)) ([]Installed, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	all := make([]Installed, len(releases))
	var helms sync.WaitGroup
	for i, release := range releases {
		logf("installing %s", release.Name)
		began := time.Now()
		ended := make(chan bool)
		all[i].Release = release.Name
		helms.Go(func() {
			defer close(ended)
			if _, err := release.Install(ctx); err != nil {
				cancel(err) // stops the others
			}
			all[i].Helm = time.Since(began)
		})
		for more := true; more && all[i].Ready == 0; {
			select {
			case <-ended:
				more = false
			case <-time.After(100 * time.Millisecond):
			}
			if n, err := ready(ctx, release); err == nil && n == nodes { // an error means: not created yet
				all[i].Ready = time.Since(began)
			}
		}
	}
	helms.Wait()
	for i, release := range releases {
		n, err := ready(ctx, release)
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case err != nil:
			return nil, err
		case n != nodes:
			return nil, fmt.Errorf("DaemonSet %s/%s: %d pods ready, want %d",
				release.Namespace, release.Name, n, nodes)
		}
		all[i].Pods = n
	}
	return all, nil
}

// ready is the number of Ready pods of a release.
func ready(ctx context.Context, release cluster.Release) (int, error) {
	daemonSets := release.Cluster.ControlPlane.Client().AppsV1().DaemonSets(release.Namespace)
	set, err := daemonSets.Get(ctx, release.Name, metav1.GetOptions{})
	if err != nil {
		return 0, err
	}
	return int(set.Status.NumberReady), nil
}

// each calls do for each provider, with limited concurrency, and returns the sum of the calls.
func (s *simulation) each(ctx context.Context, do func(*account, context.Context) (int, error)) (calls int, _ error) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var first error
	failed := 0
	slots := make(chan bool, callers)
	for _, p := range s.running() {
		slots <- true
		wg.Go(func() {
			defer func() { <-slots }()
			n, err := do(p, ctx)
			mu.Lock()
			defer mu.Unlock()
			calls += n
			if err != nil {
				failed++
				first = cmp.Or(first, err)
			}
		})
	}
	wg.Wait()
	if failed > 0 {
		return calls, fmt.Errorf("%d providers failed, the first: %w", failed, first)
	}
	return calls, nil
}

// settle waits until the API server has responded to the provider's first request. After a timeout, a provider retries
// only when it is called.
func (p *account) settle(ctx context.Context) (calls int, _ error) {
	call := false
	return 0, cluster.Eventually(ctx, patience, func() error {
		h, err := provider.Check(ctx, p.config.Publisher.Root, p.config.Account, call)
		call = h.Problem == credential.ProblemUnavailable
		if err == nil && h.Problem != credential.ProblemSecretNotFound {
			err = fmt.Errorf("pod %s: the provider reports %q, want a missing Secret: %s", p.pod, h.Problem, h.Detail)
		}
		return err
	})
}

// answers verifies that the provider responds and has cached credentials.
func (p *account) answers(ctx context.Context) (calls int, _ error) {
	return 0, cluster.Eventually(ctx, patience, func() error {
		h, err := provider.Check(ctx, p.config.Publisher.Root, p.config.Account, false)
		if err == nil && (h.Instance != p.config.Instance || h.CacheAgeSeconds == nil) {
			err = fmt.Errorf("pod %s: provider %q responded with problem %q", p.pod, h.Instance, h.Problem)
		}
		return err
	})
}

// call gets credentials through the provider's endpoint files, like the plugin, and verifies that they are this
// account's.
func (p *account) call(ctx context.Context) (calls int, _ error) {
	caller := plugin.New(plugin.Config{Root: p.config.Publisher.Root, Budget: patience})
	for ; calls < callsInARow; calls++ {
		c, err := caller.Get(ctx, p.config.Account.String())
		if err != nil {
			return calls, fmt.Errorf("pod %s: %w", p.pod, err)
		}
		right := string(c.Password.Reveal()) == "password of "+credential.ReleaseName(p.config.Account.Secret)
		c.Password.Wipe()
		if !right {
			return calls, fmt.Errorf("pod %s: account %s got the wrong password", p.pod, p.config.Account)
		}
	}
	return calls, nil
}

// resident is a process's resident memory in bytes.
func resident(pid int) int64 {
	var size, pages int64
	b, _ := os.ReadFile(filepath.Join("/proc", fmt.Sprint(pid), "statm"))
	_, _ = fmt.Sscan(string(b), &size, &pages) // 0 if the process has ended
	return pages * int64(os.Getpagesize())
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
