// Package scale shows what many nodes and several accounts cost the API server. The control plane, helm, the charts and the
// Account Providers are real; the nodes are simulated in this process, and each provider is one too: package provider's
// Run, with the flags, the token and the rights of its pod. What the providers asked for is read from the API server's own
// audit log.
//
// The requests of kubelets (pods, tokens, leases) are not counted: every DaemonSet causes them.
package scale

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
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
	// callsInARow is how often the plugin asks each provider, one call after the other: a pod with three containers.
	callsInARow = 3
	// callers is how many calls there are at a time. The providers share this machine's processors with the API server, which
	// they would not do on 250 nodes.
	callers = 16
	// withoutSecret is how long the providers are watched before their Secrets exist.
	withoutSecret = 5 * time.Second
	// patience is how long a provider may take for what takes milliseconds, on a machine that does too much else.
	patience = time.Minute
)

// Report is what Run found.
type Report struct {
	Nodes, Providers int
	Installed        []Installed

	// The requests of the providers' ServiceAccounts, and of any other ServiceAccount of the namespace: while pods started,
	// while Calls calls were made, and while there was none, which were two spells: Waited before the Secrets existed, and Idled
	// after the calls. Probes went on all the time.
	Started, Called, Waiting, Idle []Request

	Calls                int
	Waited, Idled        time.Duration
	Probes, FailedProbes int64 // one fails when the machine is so overloaded that a TLS handshake takes 5 s
	// Outages are the pods that had no answer from the API server within the 2 s that they wait, and asked again. There are none
	// unless the machine is overloaded.
	Outages map[string]bool

	Memory             int64 // bytes, resident: the simulated nodes, the providers and the lab's registry
	ControlPlaneMemory int64 // bytes, resident
}

// Installed is one release.
type Installed struct {
	Release string
	Pods    int           // that are Ready
	Ready   time.Duration // from the start of helm until all of them were
	Helm    time.Duration // until helm had waited for them, with the chart's minReadySeconds
}

// IdlePerNodeHour is the number of requests per node and hour of providers that nobody calls.
func (r Report) IdlePerNodeHour() float64 {
	return float64(len(r.Waiting)+len(r.Idle)) / float64(r.Nodes) / (r.Waited + r.Idled).Hours()
}

// IdleProviderHours is what IdlePerNodeHour was measured over.
func (r Report) IdleProviderHours() float64 {
	return float64(r.Providers) * (r.Waited + r.Idled).Hours()
}

// PerCall is the number of requests that a call causes when there was none in the 5 seconds before it. Those that follow are
// answered from the copy.
func (r Report) PerCall() float64 { return float64(len(r.Called)) / float64(r.Providers) }

// Run starts nodes Windows nodes on a cluster, installs the plugin's chart and that many releases of the provider's, calls
// each provider, and leaves them alone for a time. The nodes stop when it returns; their objects stay.
func Run(ctx context.Context, c *cluster.Cluster, nodes, releases int, idle time.Duration, progress io.Writer) (r Report, err error) {
	r.Nodes = nodes
	began := time.Now()
	say := func(format string, args ...any) {
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
	say("starting %d nodes", nodes)
	fake, err := kubelet.StartFakeNodes(ctx, kubelet.FakeOptions{Names: names, OS: "windows", Config: s.config, Bound: s.bound})
	if err != nil {
		return r, err
	}
	defer fake.Stop()

	started := time.Now()
	todo := []cluster.Release{{Cluster: c, Chart: cluster.Installer, Namespace: namespace, Name: "plugin"}}
	for i := range releases {
		todo = append(todo, cluster.Release{Cluster: c, Chart: cluster.Provider, Namespace: namespace, Name: fmt.Sprintf("account-%d", i+1)})
	}
	if r.Installed, err = install(ctx, todo, nodes, say); err != nil {
		return r, fmt.Errorf("%w; the providers' log is %s", err, s.log.Name())
	}
	r.Providers = len(s.running())

	if _, err := s.each(ctx, (*account).settle); err != nil {
		return r, fmt.Errorf("%w; the providers' log is %s", err, s.log.Name())
	}
	waiting := time.Now()
	say("%d providers wait for their Secrets", r.Providers)
	if err := pause(ctx, withoutSecret); err != nil {
		return r, err
	}
	calling := time.Now()
	say("making the Secrets, calling each provider %d times", callsInARow)
	for _, release := range todo[1:] {
		if err := c.PutSecret(ctx, namespace, release.Name+"-creds", "password of "+release.Name); err != nil {
			return r, err
		}
	}
	if r.Calls, err = s.each(ctx, (*account).call); err != nil {
		return r, fmt.Errorf("%w; the providers' log is %s", err, s.log.Name())
	}
	idling := time.Now()
	say("%d calls were answered; now nobody calls", r.Calls)
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
	// The API server writes an entry when it has answered, so the last ones may be on their way.
	if err := pause(ctx, time.Second); err != nil {
		return r, err
	}
	log, err := readAudit(c.ControlPlane.AuditLog(), "system:serviceaccount:"+namespace+":")
	if err != nil {
		return r, err
	}
	r.Started, r.Waiting = between(log, started, waiting), between(log, waiting, calling)
	r.Called, r.Idle = between(log, calling, idling), between(log, idling, ended)
	return r, nil
}

// install installs releases with helm, each when the pods of the one before are ready. Helm goes on to wait for the charts'
// minReadySeconds meanwhile.
func install(ctx context.Context, releases []cluster.Release, nodes int, say func(string, ...any)) ([]Installed, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	all := make([]Installed, len(releases))
	var helms sync.WaitGroup
	for i, release := range releases {
		say("installing %s", release.Name)
		began := time.Now()
		ended := make(chan bool)
		all[i].Release = release.Name
		helms.Go(func() {
			defer close(ended)
			if _, err := release.Install(ctx); err != nil {
				cancel(err) // and the others end
			}
			all[i].Helm = time.Since(began)
		})
		for more := true; more && all[i].Ready == 0; {
			select {
			case <-ended:
				more = false
			case <-time.After(100 * time.Millisecond):
			}
			if n, err := ready(ctx, release); err == nil && n == nodes { // an error: it does not exist yet
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
			return nil, fmt.Errorf("DaemonSet %s/%s has %d pods ready, want %d", release.Namespace, release.Name, n, nodes)
		}
		all[i].Pods = n
	}
	return all, nil
}

// ready is how many pods of a release are Ready.
func ready(ctx context.Context, release cluster.Release) (int, error) {
	set, err := release.Cluster.ControlPlane.Client().AppsV1().DaemonSets(release.Namespace).Get(ctx, release.Name, metav1.GetOptions{})
	if err != nil {
		return 0, err
	}
	return int(set.Status.NumberReady), nil
}

// each does something with each provider, some at a time, and adds up how many calls that were.
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

// settle waits until the API server has answered what the provider asked at its start. One that had no answer in time asks
// again when it is called, and only then.
func (p *account) settle(ctx context.Context) (calls int, _ error) {
	call := false
	return 0, cluster.Eventually(ctx, patience, func() error {
		h, err := provider.Check(ctx, p.config.Publisher.Root, p.config.Account, call)
		call = h.Problem == credential.ProblemUnavailable
		if err == nil && h.Problem != credential.ProblemSecretNotFound {
			err = fmt.Errorf("pod %s: the Secret is %q, %s; it does not exist", p.pod, h.Problem, h.Detail)
		}
		return err
	})
}

// answers shows that the provider is there and has its copy.
func (p *account) answers(ctx context.Context) (calls int, _ error) {
	return 0, cluster.Eventually(ctx, patience, func() error {
		h, err := provider.Check(ctx, p.config.Publisher.Root, p.config.Account, false)
		if err == nil && (h.Instance != p.config.Instance || h.CopyAgeSeconds == nil) {
			err = fmt.Errorf("pod %s: %q answers, the Secret is %q", p.pod, h.Instance, h.Problem)
		}
		return err
	})
}

// call asks through the files that the provider published, as the plugin does on the node, and checks whose answer it is.
func (p *account) call(ctx context.Context) (calls int, _ error) {
	asker := plugin.New(plugin.Config{Root: p.config.Publisher.Root, Budget: patience})
	for ; calls < callsInARow; calls++ {
		c, err := asker.Get(ctx, p.config.Account.String())
		if err != nil {
			return calls, fmt.Errorf("pod %s: %w", p.pod, err)
		}
		right := string(c.Password.Reveal()) == "password of "+strings.TrimSuffix(p.config.Account.Secret, "-creds")
		c.Password.Wipe()
		if !right {
			return calls, fmt.Errorf("pod %s: account %s got another password than its own", p.pod, p.config.Account)
		}
	}
	return calls, nil
}

// resident is what a process holds of the machine's memory, in bytes.
func resident(pid int) int64 {
	var size, pages int64
	b, _ := os.ReadFile(filepath.Join("/proc", fmt.Sprint(pid), "statm"))
	_, _ = fmt.Sscan(string(b), &size, &pages) // of a process that has ended: 0
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
