package provider

import (
	"context"
	"fmt"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/logonce"
	"github.com/ccgrkc/ccgrkc/internal/selfcheck"
	"github.com/ccgrkc/ccgrkc/internal/selfcheck/record"
)

// SelfCheckInterval is the time between two checks of the provider by itself.
const SelfCheckInterval = 5 * time.Second

// selfCheckTimeout limits one check. Handshake and response take milliseconds on an idle node.
const selfCheckTimeout = 10 * time.Second

// checkSelf calls the account's provider through the endpoint files, as the plugin does, until ctx ends, and records
// the result for the container's probes.
func checkSelf(ctx context.Context, c Config, results *record.Recorder) {
	var failures logonce.Errors
	for ticker := time.NewTicker(SelfCheckInterval); ; {
		state, detail := SelfCheck(ctx, c)
		if ctx.Err() != nil {
			return
		}
		if err := results.Record(state, detail); failures.New(err) && err != nil {
			c.Log.Error("the result of the self-check cannot be written; the probes of this pod fail", "error", err)
		}
		select {
		case <-ctx.Done():
			ticker.Stop()
			return
		case <-ticker.C:
		}
	}
}

// SelfCheck reports whether the plugin reaches a provider of the account, and whether it is this one.
func SelfCheck(ctx context.Context, c Config) (selfcheck.State, string) {
	ctx, cancel := context.WithTimeout(ctx, selfCheckTimeout)
	defer cancel()
	h, err := Check(ctx, c.Publisher.Root, c.Account, false)
	switch {
	case err != nil:
		return selfcheck.Failed, err.Error()
	case h.Instance != c.Instance:
		return selfcheck.Other, fmt.Sprintf("account %s: the provider of another pod responded; this pod is %q, the "+
			"other %q", c.Account, c.Instance, h.Instance)
	}
	return selfcheck.OK, ""
}
