package scale

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/lab/env/cluster"
	"github.com/ccgrkc/ccgrkc/lab/labtest"
)

// Without calls, providers send no API requests. At their start and for a call, they get only their own Secret, once.
func TestProvidersOn250NodesRequestOnlyTheirSecretWhenCalled(t *testing.T) {
	labtest.Require(t)
	const nodes, releases = 250, 4
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	c, err := cluster.Start(ctx, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Stop)
	r, err := Run(ctx, c, nodes, releases, 30*time.Second, t.Output())
	if err != nil {
		t.Fatal(err)
	}

	for _, i := range r.Installed {
		t.Logf("%s: %d pods ready after %.1f s, helm after %.1f s",
			i.Release, i.Pods, i.Ready.Seconds(), i.Helm.Seconds())
	}
	t.Logf("requests at start: %s; waiting: %s; for %d calls: %s; idle: %s",
		Breakdown(r.Started), Breakdown(r.Waiting), r.Calls, Breakdown(r.Called), Breakdown(r.Idle))
	t.Logf("%d probes, %d failed; %d providers timed out; %d MiB in this process, %d MiB in the control plane",
		r.Probes, r.FailedProbes, len(r.Outages), r.Memory>>20, r.ControlPlaneMemory>>20)

	if len(r.Installed) != 1+releases || r.Providers != nodes*releases || r.Calls != r.Providers*callsInARow {
		t.Errorf("%d releases, %d providers, %d calls", len(r.Installed), r.Providers, r.Calls)
	}
	if r.Probes-r.FailedProbes < int64(r.Providers) {
		t.Errorf("%d of %d probes failed", r.FailedProbes, r.Probes)
	}
	for what, requests := range map[string][]Request{"without their Secrets": r.Waiting, "idle": r.Idle} {
		if len(requests) > 0 {
			t.Errorf("%s: %d requests: %s; first: %s", what, len(requests), Breakdown(requests), requests[0])
		}
	}
	for what, requests := range map[string][]Request{"at their start": r.Started, "for their calls": r.Called} {
		for _, q := range requests {
			if q.Verb != "get" || q.Resource != "secrets" || q.Namespace != namespace || q.Name != credential.SecretName(q.User) {
				t.Errorf("%s: %s", what, q)
			}
		}
		if err := checkCacheUse(requests, r); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// checkCacheUse verifies that each provider sent a request, and sent another one only when its cached credentials were
// too old. After a timeout, a provider can retry earlier. On a new connection, it sends a refused request twice.
func checkCacheUse(requests []Request, r Report) error {
	// Cached credentials are valid for 5 s from the request, which can be 2 s before the API server logs it.
	const apart = 3 * time.Second
	last, confirmed := map[string]Request{}, map[string]bool{}
	for _, q := range slices.SortedFunc(slices.Values(requests), func(a, b Request) int { return a.At.Compare(b.At) }) {
		before, again := last[q.Pod]
		if again && before.Code == http.StatusNotFound && !confirmed[q.Pod] {
			confirmed[q.Pod] = true
			continue
		}
		if gap := q.At.Sub(before.At); again && gap < apart && !r.Outages[q.Pod] {
			return fmt.Errorf("%s, only %s after the last request; %d requests of %d providers",
				q, gap, len(requests), r.Providers)
		}
		last[q.Pod] = q
	}
	if len(last) != r.Providers {
		return fmt.Errorf("%d pods sent requests, want %d", len(last), r.Providers)
	}
	return nil
}
