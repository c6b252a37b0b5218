package scale

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/ccgrkc/ccgrkc/lab/env/cluster"
	"github.com/ccgrkc/ccgrkc/lab/labtest"
)

// DESIGN 5: providers that nobody calls ask the API server for nothing, whatever their number. What they ask for, once at
// their start and once for a call, is their own Secret.
func TestTwoHundredAndFiftyNodesAndFourReleases(t *testing.T) {
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
		t.Logf("%s: %d pods ready after %.1f s, helm after %.1f s", i.Release, i.Pods, i.Ready.Seconds(), i.Helm.Seconds())
	}
	t.Logf("at start %s; waiting %s; for %d calls %s; idle %s", Breakdown(r.Started), Breakdown(r.Waiting), r.Calls, Breakdown(r.Called), Breakdown(r.Idle))
	t.Logf("%d probes, %d failed; %d providers had no answer in time from the API server; %d MiB here, %d MiB of the control plane",
		r.Probes, r.FailedProbes, len(r.Outages), r.Memory>>20, r.ControlPlaneMemory>>20)

	if len(r.Installed) != 1+releases || r.Providers != nodes*releases || r.Calls != r.Providers*callsInARow {
		t.Errorf("%d releases, %d providers, %d calls", len(r.Installed), r.Providers, r.Calls)
	}
	if r.Probes-r.FailedProbes < int64(r.Providers) {
		t.Errorf("%d of %d probes failed", r.FailedProbes, r.Probes)
	}
	for what, requests := range map[string][]Request{"without their Secrets": r.Waiting, "idle": r.Idle} {
		if len(requests) > 0 {
			t.Errorf("%s: %d requests, %s, the first is %s", what, len(requests), Breakdown(requests), requests[0])
		}
	}
	for what, requests := range map[string][]Request{"at their start": r.Started, "for their calls": r.Called} {
		for _, q := range requests {
			if q.Verb != "get" || q.Resource != "secrets" || q.Namespace != namespace || q.Name != q.User+"-creds" {
				t.Errorf("%s: %s", what, q)
			}
		}
		if err := notMoreThanACopyAllows(requests, r); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// notMoreThanACopyAllows tells that each provider asked, and asked again only when the copy from the time before had become
// too old, unless the API server had not answered.
func notMoreThanACopyAllows(requests []Request, r Report) error {
	// A copy serves for 5 s from when it was asked for, which may be 2 s before the API server notes the request.
	const apart = 3 * time.Second
	last := map[string]time.Time{}
	for _, q := range slices.SortedFunc(slices.Values(requests), func(a, b Request) int { return a.At.Compare(b.At) }) {
		before, again := last[q.Pod]
		if gap := q.At.Sub(before); again && gap < apart && !r.Outages[q.Pod] {
			return fmt.Errorf("%s, %s after the time before; %d requests of %d providers", q, gap, len(requests), r.Providers)
		}
		last[q.Pod] = q.At
	}
	if len(last) != r.Providers {
		return fmt.Errorf("%d pods asked, want %d", len(last), r.Providers)
	}
	return nil
}
