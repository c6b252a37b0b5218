// Package plugin is what the CCG plugin does with a plugin input: it finds the Account Provider's endpoint on this host,
// asks it over mutual TLS for the account's credential, and turns whatever goes wrong into one cause with one HRESULT
// and one event. It knows nothing of COM; package com does.
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

// DefaultBudget is how long one call may take. A pod's start waits for it.
const DefaultBudget = 10 * time.Second

// The pauses between two tries double from the first to the longest.
const (
	firstPause   = 50 * time.Millisecond
	longestPause = time.Second
)

// Config is what a Plugin needs from outside.
type Config struct {
	Root   string        // of the endpoints; endpoint.DefaultRoot in the DLL
	Budget time.Duration // per call; 0 means DefaultBudget
	Report func(Event)   // writes an event; nil writes none

	// Who answers a self-test.
	Identity func() string
	Module   func() string
}

// Plugin answers plugin inputs, any number at the same time.
type Plugin struct {
	config Config
	kept   connections
	limit  limiter
}

// New returns a Plugin that has touched nothing yet.
func New(config Config) *Plugin {
	if config.Budget == 0 {
		config.Budget = DefaultBudget
	}
	return &Plugin{config: config}
}

// Failure is every error of Get. Its text never holds a secret.
type Failure struct {
	Cause  *cause.Cause
	detail string
}

func (f *Failure) Error() string { return f.Cause.Name + ": " + f.detail }

func fail(c *cause.Cause, format string, args ...any) *Failure {
	return &Failure{Cause: c, detail: fmt.Sprintf(format, args...)}
}

// Get returns the credential that the plugin input names. The caller wipes it. An error is a *Failure and has been
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
	for tries, pause := 1, firstPause; ; tries, pause = tries+1, min(2*pause, longestPause) {
		c, failure := p.try(ctx, ref)
		if failure == nil {
			return c, nil
		}
		// A try that the end of the budget cut short says less than the one before it.
		if last == nil || ctx.Err() == nil {
			last = failure
		}
		if !last.Cause.Retry || !sleep(ctx, pause/2+rand.N(pause/2)) {
			if tries > 1 {
				last.detail += fmt.Sprintf(" (%d tries in %s)", tries, time.Since(start).Round(100*time.Millisecond))
			}
			return credential.Credential{}, last
		}
	}
}

// try looks for the endpoint and asks it once; a kept connection that turns out to be dead does not count.
func (p *Plugin) try(ctx context.Context, ref credential.Reference) (credential.Credential, *Failure) {
	// Half of the budget: a provider that hangs must leave time for the one that takes its place.
	ctx, cancel := context.WithTimeout(ctx, p.config.Budget/2)
	defer cancel()

	generation, err := endpoint.Current(p.config.Root, ref)
	if err != nil {
		p.kept.drop(ref)
		return credential.Credential{}, endpointFailure(err)
	}
	if conn := p.kept.take(ref, generation); conn != nil {
		c, again, failure := ask(ctx, conn, ref)
		if again {
			p.kept.put(ref, generation, conn)
		}
		if failure == nil || !broken(failure) {
			return c, failure
		}
		// The provider has ended, or has closed what was idle for long: the other connections are no better.
		p.kept.drop(ref)
	}

	e, err := endpoint.Resolve(p.config.Root, ref)
	if err != nil {
		return credential.Credential{}, endpointFailure(err)
	}
	defer e.Wipe()
	conn, failure := dial(ctx, ref, e)
	if failure != nil {
		return credential.Credential{}, failure
	}
	c, again, failure := ask(ctx, conn, ref)
	if again {
		p.kept.put(ref, e.Generation, conn)
	}
	return c, failure
}

// broken tells whether the connection failed rather than what came over it.
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
	return fail(cause.EndpointDamaged, "%v", err)
}

// selfTest proves that this code runs, and touches nothing else.
func (p *Plugin) selfTest() credential.Credential {
	report := selftest.Report{
		Version: version.String(), Identity: p.config.Identity(), Module: p.config.Module(), PID: os.Getpid(),
	}
	return credential.Credential{DomainName: report.Encode()}
}

// sleep returns false at once if ctx would end before the pause does.
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

// describePanic says what happened and where. The value itself may hold anything, so it is told only if the runtime made
// it: those texts hold types and numbers.
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
