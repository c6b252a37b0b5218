package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/ccgrkc/ccgrkc/lab/env/cluster"
	"github.com/ccgrkc/ccgrkc/lab/env/scale"
)

// callsPerHour is the assumed load: 10 pod starts per node and hour, with one call each.
const callsPerHour = 10

// requests prints how many API requests the providers send. The nodes are simulated, the providers are real processes:
// see package scale.
func requests(ctx context.Context, dir string) error {
	const nodes, releases = 250, 4
	fmt.Fprintf(os.Stderr, "starting %d simulated nodes with %d releases; this takes about 90 s ...\n", nodes, releases)
	dir = filepath.Join(dir, "scale")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	c, err := cluster.Start(ctx, dir)
	if err != nil {
		return err
	}
	defer c.Stop()
	r, err := scale.Run(ctx, c, nodes, releases, 30*time.Second, io.Discard)
	if err != nil {
		return err
	}
	var slowest time.Duration
	for _, i := range r.Installed[1:] {
		slowest = max(slowest, i.Ready)
	}
	number := func(f float64) string { return fmt.Sprintf("%.2f", f) }
	value(fmt.Sprintf("%d nodes: installer, until all pods are Ready", nodes), seconds(r.Installed[0].Ready), "")
	value(fmt.Sprintf("%d nodes: slowest of %d provider releases", nodes, releases), seconds(slowest), "")
	value("API requests per node and hour, without calls", number(r.IdlePerNodeHour()), "0")
	// The Secret does not exist yet. On a new connection, a provider sends a refused request twice.
	value("API requests per start of a provider", number(float64(len(r.Started))/float64(r.Providers)), "2")
	value("API requests per call, with no call in the 5 s before", number(r.PerCall()), "1")
	value(fmt.Sprintf("API requests per node and hour, %d calls (calculated)", callsPerHour),
		number(callsPerHour*r.PerCall()), fmt.Sprint(callsPerHour))
	value(fmt.Sprintf("memory of %d nodes, %d providers and a registry", nodes, r.Providers),
		fmt.Sprintf("%d MiB", r.Memory>>20), "")
	fmt.Printf("\nRequests of the providers' ServiceAccounts in the API server's audit log:\n"+
		"  at the start, before the Secrets exist: %s\n"+
		"  for %d calls: %s\n"+
		"  in %.1f provider-hours without calls, with probes: %d\n"+
		"Requests of kubelets are not counted.\n",
		scale.Breakdown(r.Started), r.Calls, scale.Breakdown(r.Called),
		r.IdleProviderHours(), len(r.Waiting)+len(r.Idle))
	return nil
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }
