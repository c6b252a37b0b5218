package provider

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/kube"
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
	// waitTimeout is how long a call waits for a fetch. It is longer than a fetch takes, and shorter than an attempt of
	// the plugin.
	waitTimeout = fetchTimeout + kube.ConfirmTimeout + 200*time.Millisecond
	// expiryInterval is how often a copy's age is checked without a call. A timer alone stops while a machine is
	// suspended.
	expiryInterval = time.Minute
)

// moment is a time by two clocks. The monotonic clock cannot be set, but it can stop while a machine is suspended.
type moment struct{ monotonic, wall time.Time }

// secretCache returns cached credentials that are at most maxFresh old, or fetches the Secret. Only while the API
// server is unavailable, it returns stale credentials up to the age of maxStale.
type secretCache struct {
	ctx      context.Context // of the provider
	read     func(context.Context) (credential.Credential, []string, error)
	maxStale time.Duration
	wall     func() time.Time // the wall clock; nil: time.Now
	log      *slog.Logger
	metrics  *metrics

	mu       sync.Mutex
	copy     credential.Credential
	copiedAt moment              // start of the fetch; zero if there is no copy
	expiry   *time.Timer         // drops copy at its maximum age, even without a call
	problem  *credential.Problem // of the last fetch, if the API server gave a verdict
	problAt  moment
	outage   error // of the last fetch, if the API server was unavailable
	outageAt moment
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
	if known := s.since(s.outageAt); s.outage != nil && known < outageHolds && s.haveCopy(s.maxStale) {
		if known >= retryAfter {
			s.joinFetch()
		}
		return s.clone(), true, nil
	}
	if s.problem != nil && s.since(s.problAt) < maxNegative {
		return credential.Credential{}, false, s.problem
	}

	f := s.joinFetch()
	s.mu.Unlock()
	timeout := time.NewTimer(waitTimeout)
	defer timeout.Stop()
	late := false
	select {
	case <-f.done:
	case <-ctx.Done():
	case <-timeout.C:
		late = true
	}
	s.mu.Lock()
	if late && s.running == f {
		s.beginOutage(fmt.Errorf("no result within %s", waitTimeout))
	}

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
	return s.copiedAt != moment{} && s.since(s.copiedAt) <= maxAge
}

func (s *secretCache) now() moment {
	now := time.Now()
	wall := now
	if s.wall != nil {
		wall = s.wall()
	}
	return moment{now, wall.Round(0)} // Round strips the monotonic reading
}

// since returns the time since m by the clock that shows more of it.
func (s *secretCache) since(m moment) time.Duration {
	now := s.now()
	return max(now.monotonic.Sub(m.monotonic), now.wall.Sub(m.wall))
}

// clone copies the password, because drop wipes the cached one while a call can still use the result.
func (s *secretCache) clone() credential.Credential {
	c := s.copy
	c.Password = credential.NewPassword(bytes.Clone(c.Password.Reveal()))
	return c
}

// fetch sends one request and stores the result. A caller cannot cancel it, because others can be waiting.
func (s *secretCache) fetch(f *fetch) {
	started := s.now()
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
		s.expireLater()
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
		s.problem, s.problAt, s.outage = problem, s.now(), nil
		s.metrics.apiRequest(string(problem.Code))
	default:
		s.metrics.apiRequest(string(credential.ProblemUnavailable))
		s.beginOutage(err)
	}
}

// beginOutage records that the API server gave no answer. The caller holds the lock.
func (s *secretCache) beginOutage(err error) {
	wasOut := s.outage != nil
	s.outage, s.outageAt, s.problem = err, s.now(), nil
	if !s.haveCopy(s.maxStale) {
		s.drop()
	}
	if !wasOut {
		s.log.Warn("the API server is unavailable; stale credentials are used up to maxStale",
			"error", err, "cached", s.copiedAt != moment{}, "maxStale", s.maxStale)
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

// expireLater checks the age of the copy when it can have expired. The caller holds the lock.
func (s *secretCache) expireLater() {
	if s.expiry != nil {
		s.expiry.Stop() // this can be a timer that drop did not stop in time
	}
	left := max(maxFresh, s.maxStale) - s.since(s.copiedAt)
	s.expiry = time.AfterFunc(min(max(left, 0), expiryInterval), s.expire)
}

// expire drops the copy if it has expired.
func (s *secretCache) expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.copiedAt == moment{}:
	case s.haveCopy(max(maxFresh, s.maxStale) - time.Millisecond):
		s.expireLater()
	default:
		s.drop()
	}
}

func (s *secretCache) drop() {
	if s.expiry != nil {
		s.expiry.Stop()
	}
	s.copy.Password.Wipe()
	s.copy, s.copiedAt = credential.Credential{}, moment{}
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
	if s.copiedAt == (moment{}) {
		return 0, false, problem
	}
	return s.since(s.copiedAt), true, problem
}
