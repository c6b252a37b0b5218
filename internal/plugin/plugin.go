// Package plugin resolves a plugin input: it finds the Account Provider's endpoint on this host, requests the
// credentials over mutual TLS, and maps each failure to one cause with one HRESULT and one event. It is independent of
// COM, which is in package com.
package plugin

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/endpoint"
	"github.com/ccgrkc/ccgrkc/internal/plugin/cause"
	"github.com/ccgrkc/ccgrkc/internal/plugin/selftest"
	"github.com/ccgrkc/ccgrkc/internal/version"
)

// DefaultBudget is the maximum duration of one call. The start of a pod waits for it.
const DefaultBudget = 10 * time.Second

// The pauses between attempts double from the first to the longest.
const (
	firstPause   = 50 * time.Millisecond
	longestPause = time.Second
)

// Config is the configuration of a Plugin.
type Config struct {
	Root   string        // of the endpoint files; endpoint.DefaultRoot in the DLL
	Budget time.Duration // per call; 0 means DefaultBudget
	Report func(Event)   // writes an event; can be nil

	// The content of a self-test report.
	Identity func() string
	Module   func() string
}

// Plugin resolves plugin inputs. Its methods can be called concurrently.
type Plugin struct {
	config Config
	pool   pool
	limit  limiter

	// The functions of package endpoint. Tests replace them.
	current func(root string, ref credential.Reference) (string, error)
	resolve func(root string, ref credential.Reference) (*endpoint.Endpoint, error)

	reads, reports abandoned
}

// New returns a Plugin. It has no side effects.
func New(config Config) *Plugin {
	if config.Budget == 0 {
		config.Budget = DefaultBudget
	}
	return &Plugin{
		config:  config,
		current: endpoint.Current,
		resolve: endpoint.Resolve,
		reads:   make(abandoned, maxAbandoned),
		reports: make(abandoned, maxAbandoned),
	}
}

// Failure is the type of every error of Get. Its text never contains a secret.
type Failure struct {
	Cause  *cause.Cause
	detail string
}

func (f *Failure) Error() string { return f.Cause.Name + ": " + f.detail }

func fail(c *cause.Cause, format string, args ...any) *Failure {
	return &Failure{Cause: c, detail: fmt.Sprintf(format, args...)}
}

// Get returns the credentials for the plugin input. The caller must wipe them. An error is a *Failure and has been
// reported.
func (p *Plugin) Get(ctx context.Context, input string) (c credential.Credential, err error) {
	defer func() {
		if value := recover(); value != nil {
			c, err = credential.Credential{}, p.failed(input, fail(cause.Unexpected, "%s", describePanic(value)))
		}
	}()
	c, failure := p.get(ctx, input)
	if failure != nil {
		return credential.Credential{}, p.failed(input, failure)
	}
	return c, nil
}

func (p *Plugin) failed(input string, f *Failure) error {
	p.Report(f.Cause, input, f.detail)
	return f
}

func (p *Plugin) get(ctx context.Context, input string) (credential.Credential, *Failure) {
	if input == selftest.Input {
		return p.selfTest(), nil
	}
	ref, err := credential.ParseReference(input)
	if err != nil {
		return credential.Credential{}, fail(cause.InvalidInput, "%v", err)
	}

	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, p.config.Budget)
	defer cancel()
	var last *Failure
	for attempts, pause := 1, firstPause; ; attempts, pause = attempts+1, min(2*pause, longestPause) {
		c, failure := p.try(ctx, ref)
		if failure == nil {
			return c, nil
		}
		// If the budget ended an attempt, the error of the previous attempt is more specific.
		if last == nil || ctx.Err() == nil {
			last = failure
		}
		if !last.Cause.Retry || !sleep(ctx, pause/2+rand.N(pause/2)) {
			if attempts > 1 {
				last.detail += fmt.Sprintf(" (%d attempts in %s)", attempts,
					time.Since(start).Round(100*time.Millisecond))
			}
			return credential.Credential{}, last
		}
	}
}

// try resolves the endpoint and sends one request. A failed idle connection does not count as an attempt.
func (p *Plugin) try(ctx context.Context, ref credential.Reference) (credential.Credential, *Failure) {
	// Half of the budget: if a provider hangs, there must be time for the one that replaces it.
	ctx, cancel := context.WithTimeout(ctx, p.config.Budget/2)
	defer cancel()

	generation, err := within(ctx, p.reads, func() (string, error) { return p.current(p.config.Root, ref) },
		func(string) {})
	if err != nil {
		p.pool.drop(ref)
		return credential.Credential{}, endpointFailure(err)
	}
	if conn := p.pool.take(ref, generation); conn != nil {
		c, reusable, failure := request(ctx, conn, ref)
		if reusable {
			p.pool.put(ref, generation, conn)
		}
		if failure == nil || !broken(failure) {
			return c, failure
		}
		// The provider has stopped, or has closed its idle connections. The others in the pool have failed too.
		p.pool.drop(ref)
	}

	e, err := within(ctx, p.reads, func() (*endpoint.Endpoint, error) { return p.resolve(p.config.Root, ref) },
		func(e *endpoint.Endpoint) {
			if e != nil {
				e.Wipe()
			}
		})
	if err != nil {
		return credential.Credential{}, endpointFailure(err)
	}
	defer e.Wipe()
	conn, failure := dial(ctx, ref, e)
	if failure != nil {
		return credential.Credential{}, failure
	}
	c, reusable, failure := request(ctx, conn, ref)
	if reusable {
		p.pool.put(ref, e.Generation, conn)
	}
	return c, failure
}

// broken reports whether the connection failed, and not only the request.
func broken(f *Failure) bool {
	return f.Cause == cause.ProviderUnreachable || f.Cause == cause.ProviderForeign
}

func endpointFailure(err error) *Failure {
	for _, known := range []struct {
		err   error
		cause *cause.Cause
	}{
		{endpoint.ErrUntrusted, cause.EndpointUntrusted},
		{endpoint.ErrAccess, cause.EndpointUnreadable},
		{endpoint.ErrDamaged, cause.EndpointDamaged},
		{endpoint.ErrAbsent, cause.EndpointAbsent},
	} {
		if errors.Is(err, known.err) {
			return fail(known.cause, "%v", err)
		}
	}
	var panicked *panicError
	if errors.As(err, &panicked) {
		return fail(cause.Unexpected, "%v", err)
	}
	return fail(cause.EndpointDamaged, "the endpoint files cannot be read: %v", err)
}

// selfTest reports that this code runs. It accesses no endpoint.
func (p *Plugin) selfTest() credential.Credential {
	report := selftest.Report{
		Version:  version.String(),
		Identity: p.config.Identity(),
		Module:   p.config.Module(),
		PID:      os.Getpid(),
	}
	return credential.Credential{DomainName: report.Encode()}
}

// sleep returns false immediately if ctx ends before the pause.
func sleep(ctx context.Context, pause time.Duration) bool {
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= pause {
		return false
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(pause):
		return true
	}
}

// describePanic describes a panic and its location. The value itself can contain a secret, so it is included only if it
// is an error of the runtime, whose texts contain only types and numbers.
func describePanic(value any) string {
	text := fmt.Sprintf("panic with a %T", value)
	if e, ok := value.(runtime.Error); ok {
		text = "panic: " + e.Error()
	}
	var pcs [32]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(1, pcs[:])])
	for panicked := false; ; {
		frame, more := frames.Next()
		if panicked && !strings.HasPrefix(frame.Function, "runtime.") {
			return fmt.Sprintf("%s in %s, line %d", text, frame.Function, frame.Line)
		}
		panicked = panicked || frame.Function == "runtime.gopanic"
		if !more {
			return text
		}
	}
}
