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
	// maxFresh is the age up to which a copy is served without asking the API server.
	maxFresh = 5 * time.Second
	// maxNegative is how long a refusal is repeated without asking again, so that a pod in a crash loop does not become
	// load on the API server.
	maxNegative = time.Second
	// DefaultMaxStale is the age up to which a copy is served while the API server cannot be asked.
	DefaultMaxStale = 24 * time.Hour
	// outageHolds is how long a failed fetch speaks for the calls that follow: they need not wait for another that may
	// fail. From retryAfter on such a call has the API server asked again meanwhile. Who is not called does not ask: an API
	// server in trouble is not asked by every node's idle providers.
	outageHolds = 5 * time.Second
	retryAfter  = time.Second
)

// source answers calls from a copy of the Secret that is at most maxFresh old. During an outage of the API server, and
// only then, the last good copy serves for up to maxStale.
type source struct {
	ctx      context.Context // of the provider's life
	read     func(context.Context) (credential.Credential, []string, error)
	maxStale time.Duration
	log      *slog.Logger
	metrics  *metrics

	mu       sync.Mutex
	copy     credential.Credential
	copiedAt time.Time           // when copy was asked for; zero: there is none
	expiry   *time.Timer         // drops copy when it may serve no more, also if nobody calls
	problem  *credential.Problem // the last answer, if it was a refusal
	problAt  time.Time
	outage   error // why the API server cannot be asked; nil: it can, or has not been tried
	outageAt time.Time
	running  *fetch // shared by all who wait for it
	warned   string // the warnings that were logged last
}

type fetch struct {
	done chan struct{}
	err  error
}

// get returns a credential that the caller owns and wipes. Its error is always a *credential.Problem or the context's.
func (s *source) get(ctx context.Context) (_ credential.Credential, stale bool, _ error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.haveCopy(maxFresh) {
		return s.clone(), false, nil
	}
	if known := time.Since(s.outageAt); s.outage != nil && known < outageHolds && s.haveCopy(s.maxStale) {
		if known >= retryAfter {
			s.share()
		}
		return s.clone(), true, nil
	}
	if s.problem != nil && time.Since(s.problAt) < maxNegative {
		return credential.Credential{}, false, s.problem
	}

	f := s.share()
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
	detail := "the Kubernetes API server cannot be asked, and there is no copy of the Secret that may still serve"
	if f.err != nil {
		detail += ": " + f.err.Error()
	}
	return credential.Credential{}, false, &credential.Problem{Code: credential.ProblemUnavailable, Detail: detail}
}

func (s *source) haveCopy(maxAge time.Duration) bool {
	return !s.copiedAt.IsZero() && time.Since(s.copiedAt) <= maxAge
}

// clone copies, because the source wipes its own copy when it drops it, while a call may still be using this one.
func (s *source) clone() credential.Credential {
	c := s.copy
	c.Password = credential.NewPassword(bytes.Clone(c.Password.Reveal()))
	return c
}

// fetch asks once and puts the outcome where everybody finds it. It does not end when a caller goes away: others may wait.
func (s *source) fetch(f *fetch) {
	asked := time.Now()
	cred, warnings, err := s.read(s.ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	defer close(f.done)
	f.err, s.running = err, nil
	if s.ctx.Err() != nil {
		return // the provider ends; what a request that was broken off says means nothing
	}
	s.logWarnings(warnings)

	var problem *credential.Problem
	wasOut := s.outage != nil
	switch {
	case err == nil:
		s.drop()
		s.copy, s.copiedAt, s.problem, s.outage = cred, asked, nil, nil
		s.expiry = time.AfterFunc(max(maxFresh, s.maxStale)-time.Since(asked), s.expire)
		s.metrics.fetched("ok")
		if wasOut {
			s.log.Info("the API server answers again")
		}
	case errors.As(err, &problem):
		// An answer, not an outage: what the cluster no longer allows is not served from memory.
		s.drop()
		if s.problem == nil || s.problem.Code != problem.Code {
			s.log.Warn("the Secret cannot be served", "code", problem.Code, "detail", problem.Detail)
		}
		s.problem, s.problAt, s.outage = problem, time.Now(), nil
		s.metrics.fetched(string(problem.Code))
	default:
		s.metrics.fetched("outage")
		s.outage, s.outageAt, s.problem = err, time.Now(), nil
		if !s.haveCopy(s.maxStale) {
			s.drop()
		}
		if !wasOut {
			s.log.Warn("the API server cannot be asked; the last copy serves if it is young enough",
				"error", err, "haveCopy", !s.copiedAt.IsZero(), "maxStale", s.maxStale)
		}
	}
}

// share joins the fetch that is running, or starts one. The caller holds the lock.
func (s *source) share() *fetch {
	if s.running == nil {
		s.running = &fetch{done: make(chan struct{})}
		go s.fetch(s.running)
	}
	return s.running
}

// expire drops the copy, unless it has been replaced since.
func (s *source) expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.haveCopy(max(maxFresh, s.maxStale) - time.Millisecond) {
		s.drop()
	}
}

func (s *source) drop() {
	if s.expiry != nil {
		s.expiry.Stop()
	}
	s.copy.Password.Wipe()
	s.copy, s.copiedAt = credential.Credential{}, time.Time{}
}

// logWarnings logs what is odd about the Secret when it changes, not with every fetch.
func (s *source) logWarnings(warnings []string) {
	all := ""
	for _, w := range warnings {
		all += w + "\n"
	}
	if all == s.warned {
		return
	}
	s.warned = all
	for _, w := range warnings {
		s.log.Warn("the Secret was read, but: " + w)
	}
}

// state is what a health check is told: no secret, and no answer that depends on asking the API server now.
func (s *source) state() (copyAge time.Duration, have bool, problem *credential.Problem) {
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
