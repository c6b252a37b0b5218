package scale

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/pflag"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/endpoint"
	"github.com/ccgrkc/ccgrkc/internal/kube"
	"github.com/ccgrkc/ccgrkc/internal/logging"
	"github.com/ccgrkc/ccgrkc/internal/provider"
	"github.com/ccgrkc/ccgrkc/internal/selfcheck"
	"github.com/ccgrkc/ccgrkc/lab/env/cluster"
)

const (
	program = "gmsa-account-provider.exe"
	podUID  = "POD_UID"
	tokens  = "/var/run/secrets/kubernetes.io/serviceaccount" // the directory of a pod's token
)

// simulation runs the Account Providers of the simulated nodes, and no other program.
type simulation struct {
	c   *cluster.Cluster
	dir string
	log *os.File // of all providers

	mu        sync.Mutex
	clients   map[string]kubernetes.Interface // by node, as that node
	providers map[types.UID]*account

	probes, failedProbes atomic.Int64
}

// account is a running provider.
type account struct {
	pod    string
	config provider.Config
	outage atomic.Bool
}

// accountLog writes an account's log. It detects requests that the API server did not answer within the provider's
// timeout of 2 s, which only the log shows.
type accountLog struct {
	*account
	to io.Writer
}

func (l accountLog) Write(line []byte) (int, error) {
	if bytes.Contains(line, []byte("the API server is unavailable;")) {
		l.outage.Store(true)
	}
	return l.to.Write(line)
}

func newSimulation(c *cluster.Cluster) (*simulation, error) {
	dir := filepath.Join(c.Dir, "simulated")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(filepath.Join(dir, "providers.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	return &simulation{
		c:         c,
		dir:       dir,
		log:       log,
		clients:   map[string]kubernetes.Interface{},
		providers: map[types.UID]*account{},
	}, nil
}

// config creates a node's client configuration. It stores a client of the node, which requests its pods' tokens.
func (s *simulation) config(ctx context.Context, node string) (*rest.Config, error) {
	config, err := s.c.ControlPlane.NodeConfig(ctx, node)
	if err != nil {
		return nil, err
	}
	config.QPS = -1
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clients[node] = client
	return config, nil
}

func (s *simulation) running() []*account {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*account
	for _, p := range s.providers {
		all = append(all, p)
	}
	return all
}

// bound starts a pod's provider. It logs an error, because the node only retries.
func (s *simulation) bound(ctx context.Context, pod *corev1.Pod) (stop func(), err error) {
	command := pod.Spec.Containers[0].Command
	if len(command) == 0 || command[0] != program {
		return nil, nil // a pod of another chart; it becomes ready immediately
	}
	stop, err = s.run(ctx, pod)
	if err != nil {
		fmt.Fprintf(s.log, "pod %s on %s does not start: %v\n", pod.Name, pod.Spec.NodeName, err)
	}
	return stop, err
}

// run starts a pod's provider and returns when its startup probe succeeds.
func (s *simulation) run(ctx context.Context, pod *corev1.Pod) (stop func(), err error) {
	p, err := s.newAccount(ctx, pod)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	stop = func() {
		cancel()
		wg.Wait()
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.providers, pod.UID)
	}
	wg.Go(func() {
		if err := provider.Run(ctx, p.config); err != nil {
			p.config.Log.Error("the provider ended", "error", err)
		}
	})
	container := &pod.Spec.Containers[0]
	if err := p.started(ctx, container.StartupProbe); err != nil {
		stop()
		return nil, err
	}
	for _, probe := range []*corev1.Probe{container.ReadinessProbe, container.LivenessProbe} {
		wg.Go(func() { s.keepProbing(ctx, p, probe) })
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.providers[pod.UID] = p
	return stop, nil
}

// started probes more often than the chart configures, so that the measured time is the product's, not the probe's.
func (p *account) started(ctx context.Context, probe *corev1.Probe) error {
	for deadline := time.Now().Add(2 * time.Minute); ; {
		err := p.check(ctx, probe)
		if err == nil || time.Now().After(deadline) {
			return err
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

// keepProbing probes with the chart's period. The start is random, because 250 kubelets do not probe at the same time.
func (s *simulation) keepProbing(ctx context.Context, p *account, probe *corev1.Probe) {
	period := time.Duration(probe.PeriodSeconds) * time.Second
	for next := rand.N(period); pause(ctx, next) == nil; next = period {
		err := p.check(ctx, probe)
		if ctx.Err() != nil {
			return
		}
		s.probes.Add(1)
		if err != nil {
			s.failedProbes.Add(1)
			p.config.Log.Error("a probe failed", "error", err)
		}
	}
}

// check does what the program does for a probe, and what the probe's command does with the result.
func (p *account) check(ctx context.Context, probe *corev1.Probe) error {
	if probe == nil || probe.Exec == nil {
		return errors.New("the chart lacks this probe, or the probe runs no command")
	}
	command := probe.Exec.Command
	f := pflag.NewFlagSet("container-probe.exe", pflag.ContinueOnError)
	acceptOther := f.Bool("accept-other", false, "")
	if len(command) == 0 || command[0] != f.Name() {
		return fmt.Errorf("the probe's command is %q, want %s", command, f.Name())
	}
	if err := f.Parse(command[1:]); err != nil {
		return fmt.Errorf("command %q: %w", command, err)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(probe.TimeoutSeconds)*time.Second)
	defer cancel()
	state, detail := provider.SelfCheck(ctx, p.config)
	if state == selfcheck.OK || state == selfcheck.Other && *acceptOther {
		return nil
	}
	return errors.New(detail)
}

// flags are the common flags of the commands in the provider's pods. An unknown flag is an error, so that this
// simulation cannot ignore a new flag of the chart.
type flags struct{ namespace, secret string }

func (a *flags) set(command string) *pflag.FlagSet {
	f := pflag.NewFlagSet(command, pflag.ContinueOnError)
	f.StringVar(&a.namespace, "namespace", "", "")
	f.StringVar(&a.secret, "secret", "", "")
	return f
}

func (a *flags) parse(f *pflag.FlagSet, command []string) (credential.Reference, error) {
	if len(command) < 2 || command[0] != program || command[1] != f.Name() {
		return credential.Reference{}, fmt.Errorf("the command is %q, want %s %s", command, program, f.Name())
	}
	if err := f.Parse(command[2:]); err != nil {
		return credential.Reference{}, fmt.Errorf("command %q: %w", command, err)
	}
	return credential.NewReference(a.namespace, a.secret)
}

// newAccount configures a provider from a pod's command and environment, as a kubelet and the program do.
func (s *simulation) newAccount(ctx context.Context, pod *corev1.Pod) (*account, error) {
	var a flags
	var logs logging.Flags
	var identity string
	var lifetime, maxStale time.Duration
	f := a.set("run")
	f.StringVar(&identity, "plugin-identity", endpoint.Readers[0], "")
	f.DurationVar(&lifetime, "certificate-lifetime", provider.DefaultLifetime, "")
	f.DurationVar(&maxStale, "max-stale", provider.DefaultMaxStale, "")
	logs.Add(f)
	ref, err := a.parse(f, pod.Spec.Containers[0].Command)
	if err != nil {
		return nil, err
	}
	p := &account{pod: pod.Name}
	log, err := logs.Logger(accountLog{p, s.log})
	if err != nil {
		return nil, err
	}
	node := filepath.Join(s.dir, pod.Spec.NodeName)
	api, err := s.serviceAccount(ctx, pod, filepath.Join(node, "pods", string(pod.UID)))
	if err != nil {
		return nil, err
	}
	p.config = provider.Config{
		Account:      ref,
		API:          api,
		Publisher:    endpoint.Publisher{Root: filepath.Join(node, "gmsa"), Reader: identity},
		Certificates: provider.Embedded{Lifetime: lifetime},
		MaxStale:     maxStale,
		Log:          log.With("node", pod.Spec.NodeName, "pod", pod.Name),
	}
	for _, e := range pod.Spec.Containers[0].Env {
		if e.Name == podUID && e.ValueFrom != nil && e.ValueFrom.FieldRef != nil &&
			e.ValueFrom.FieldRef.FieldPath == "metadata.uid" {
			p.config.Instance = string(pod.UID)
		}
	}
	return p, nil
}

// serviceAccount writes the files of the pod's ServiceAccount. The node requests the token, which is bound to the pod.
// It is not renewed, because a run is shorter than its lifetime of an hour.
func (s *simulation) serviceAccount(ctx context.Context, pod *corev1.Pod, dir string) (kube.Server, error) {
	source, err := tokenSource(pod)
	if err != nil {
		return kube.Server{}, err
	}
	s.mu.Lock()
	client := s.clients[pod.Spec.NodeName]
	s.mu.Unlock()
	request := &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{
			ExpirationSeconds: source.ExpirationSeconds,
			BoundObjectRef: &authenticationv1.BoundObjectReference{
				Kind:       "Pod",
				APIVersion: "v1",
				Name:       pod.Name,
				UID:        pod.UID,
			},
		},
	}
	accounts := client.CoreV1().ServiceAccounts(pod.Namespace)
	answer, err := accounts.CreateToken(ctx, pod.Spec.ServiceAccountName, request, metav1.CreateOptions{})
	if err != nil {
		return kube.Server{}, err
	}
	server := kube.Server{
		URL:       s.c.ControlPlane.Server,
		TokenFile: filepath.Join(dir, "token"),
		CAFile:    filepath.Join(dir, "ca.crt"),
	}
	return server, errors.Join(
		os.MkdirAll(dir, 0o700),
		os.WriteFile(server.TokenFile, []byte(answer.Status.Token), 0o600),
		os.WriteFile(server.CAFile, s.c.ControlPlane.CA, 0o600),
	)
}

// tokenSource is the pod's projected token at the standard path.
func tokenSource(pod *corev1.Pod) (*corev1.ServiceAccountTokenProjection, error) {
	for _, mount := range pod.Spec.Containers[0].VolumeMounts {
		i := slices.IndexFunc(pod.Spec.Volumes, func(v corev1.Volume) bool {
			return v.Name == mount.Name && v.Projected != nil
		})
		if i < 0 || path.Clean(mount.MountPath) != tokens {
			continue
		}
		for _, source := range pod.Spec.Volumes[i].Projected.Sources {
			if source.ServiceAccountToken != nil {
				return source.ServiceAccountToken, nil
			}
		}
	}
	return nil, fmt.Errorf("no token is mounted at %s", tokens)
}
