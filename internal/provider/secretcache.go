package provider

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/credential"
)

const (
	// maxFresh is the maximum age of cached credentials while the API server is available.
	maxFresh = 5 * time.Second
	// maxNegative is how long a problem is returned again without a fetch, so that a pod in a crash loop does not put
	// load on the API server.
	maxNegative = time.Second
	// DefaultMaxStale is the maximum age of stale credentials.
	DefaultMaxStale = 24 * time.Hour
	// After a failed fetch, calls use stale credentials for outageHolds and do not wait for another fetch. From
	// retryAfter on, such a call also starts a fetch in the background. Only calls start fetches, so that idle
	// providers put no load on an API server that has a problem.
	outageHolds = 5 * time.Second
	retryAfter  = time.Second
)

// secretCache returns cached credentials that are at most maxFresh old, or fetches the Secret. Only while the API
// server is unavailable, it returns stale credentials up to the age of maxStale.
type secretCache struct {
	ctx      context.Context // of the provider
	read     func(context.Context) (credential.Credential, []string, error)
	maxStale time.Duration
	log      *slog.Logger
	metrics  *metrics

	mu       sync.Mutex
	copy     credential.Credential
	copiedAt time.Time           // start of the fetch; zero if there is no copy
	expiry   *time.Timer         // drops copy at its maximum age, even without a call
	problem  *credential.Problem // of the last fetch, if the API server responded
	problAt  time.Time
	outage   error // of the last fetch, if the API server was unavailable
	outageAt time.Time
	running  *fetch // shared by all waiting calls
	warned   string // the last logged warnings
}

type fetch struct {
	done chan struct{}
	err  error
}

// get returns credentials, which the caller must wipe. Its error is a *credential.Problem or the context's error.
func (s *secretCache) get(ctx context.Context) (_ credential.Credential, stale bool, _ error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.haveCopy(maxFresh) {
		return s.clone(), false, nil
	}
	if known := time.Since(s.outageAt); s.outage != nil && known < outageHolds && s.haveCopy(s.maxStale) {
		if known >= retryAfter {
			s.joinFetch()
		}
		return s.clone(), true, nil
	}
	if s.problem != nil && time.Since(s.problAt) < maxNegative {
		return credential.Credential{}, false, s.problem
	}

	f := s.joinFetch()
	s.mu.Unlock()
	select {
	case <-f.done:
	case <-ctx.Done():
	}
	s.mu.Lock()

	var problem *credential.Problem
	switch {
	case ctx.Err() != nil:
		return credential.Credential{}, false, ctx.Err()
	case f.err == nil && s.haveCopy(maxFresh):
		return s.clone(), false, nil
	case errors.As(f.err, &problem):
		return credential.Credential{}, false, problem
	case s.outage != nil && s.haveCopy(s.maxStale):
		return s.clone(), true, nil
	}
	detail := "the Kubernetes API server is unavailable, and there are no cached credentials"
	if f.err != nil {
		detail += ": " + f.err.Error()
	}
	return credential.Credential{}, false, &credential.Problem{Code: credential.ProblemUnavailable, Detail: detail}
}

func (s *secretCache) haveCopy(maxAge time.Duration) bool {
	return !s.copiedAt.IsZero() && time.Since(s.copiedAt) <= maxAge
}

// clone copies the password, because drop wipes the cached one while a call can still use the result.
func (s *secretCache) clone() credential.Credential {
	c := s.copy
	c.Password = credential.NewPassword(bytes.Clone(c.Password.Reveal()))
	return c
}

// fetch sends one request and stores the result. A caller cannot cancel it, because others can be waiting.
func (s *secretCache) fetch(f *fetch) {
	started := time.Now()
	cred, warnings, err := s.read(s.ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	defer close(f.done)
	f.err, s.running = err, nil
	if s.ctx.Err() != nil {
		return // the provider stops, and the result of a canceled request has no meaning
	}
	s.logWarnings(warnings)

	var problem *credential.Problem
	wasOut := s.outage != nil
	switch {
	case err == nil:
		s.drop()
		s.copy, s.copiedAt, s.problem, s.outage = cred, started, nil, nil
		s.expiry = time.AfterFunc(max(maxFresh, s.maxStale)-time.Since(started), s.expire)
		s.metrics.apiRequest(resultOK)
		if wasOut {
			s.log.Info("the API server is available again")
		}
	case errors.As(err, &problem):
		// A response, not an outage: credentials that the cluster no longer grants must not be used.
		s.drop()
		if s.problem == nil || s.problem.Code != problem.Code {
			s.log.Warn("no credentials are available", "code", problem.Code, "detail", problem.Detail)
		}
		s.problem, s.problAt, s.outage = problem, time.Now(), nil
		s.metrics.apiRequest(string(problem.Code))
	default:
		s.metrics.apiRequest(string(credential.ProblemUnavailable))
		s.outage, s.outageAt, s.problem = err, time.Now(), nil
		if !s.haveCopy(s.maxStale) {
			s.drop()
		}
		if !wasOut {
			s.log.Warn("the API server is unavailable; stale credentials are used up to maxStale",
				"error", err, "cached", !s.copiedAt.IsZero(), "maxStale", s.maxStale)
		}
	}
}

// joinFetch joins the fetch that is running, or starts one. The caller holds the lock.
func (s *secretCache) joinFetch() *fetch {
	if s.running == nil {
		s.running = &fetch{done: make(chan struct{})}
		go s.fetch(s.running)
	}
	return s.running
}

// expire drops the copy, unless a newer one has replaced it.
func (s *secretCache) expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.haveCopy(max(maxFresh, s.maxStale) - time.Millisecond) {
		s.drop()
	}
}

func (s *secretCache) drop() {
	if s.expiry != nil {
		s.expiry.Stop()
	}
	s.copy.Password.Wipe()
	s.copy, s.copiedAt = credential.Credential{}, time.Time{}
}

// logWarnings logs warnings about the Secret when they change, not with every fetch.
func (s *secretCache) logWarnings(warnings []string) {
	all := ""
	for _, w := range warnings {
		all += w + "\n"
	}
	if all == s.warned {
		return
	}
	s.warned = all
	for _, w := range warnings {
		s.log.Warn("the Secret was corrected: " + w)
	}
}

// state is the content of a health check: no secret, and nothing that needs a request to the API server.
func (s *secretCache) state() (cacheAge time.Duration, have bool, problem *credential.Problem) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.problem != nil:
		problem = s.problem
	case s.outage != nil:
		problem = &credential.Problem{Code: credential.ProblemUnavailable, Detail: s.outage.Error()}
	}
	if s.copiedAt.IsZero() {
		return 0, false, problem
	}
	return time.Since(s.copiedAt), true, problem
}
