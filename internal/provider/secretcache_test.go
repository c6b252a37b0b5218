package provider

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/kube/kubetest"
)

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// cluster stands in for the API server.
type cluster struct {
	password atomic.Value // string; the result of a fetch if err is nil
	err      atomic.Value // errorBox
	takes    time.Duration
	fetches  atomic.Int64
}

type errorBox struct{ error }

func (c *cluster) set(password string, err error) {
	c.password.Store(password)
	c.err.Store(errorBox{err})
}

func (c *cluster) read(ctx context.Context) (credential.Credential, []string, error) {
	c.fetches.Add(1)
	time.Sleep(c.takes)
	if err := c.err.Load().(errorBox).error; err != nil {
		return credential.Credential{}, nil, err
	}
	return credential.Credential{DomainName: "corp.example.com", Username: "web",
		Password: credential.NewPassword([]byte(c.password.Load().(string)))}, nil, nil
}

func newSource(t *testing.T, c *cluster) *secretCache {
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	return &secretCache{ctx: ctx, read: c.read, maxStale: DefaultMaxStale, log: quiet(), metrics: newMetrics()}
}

// want calls get once and checks the password, or the problem code.
func want(t *testing.T, s *secretCache, password string, code credential.ProblemCode) (stale bool) {
	t.Helper()
	cred, stale, err := s.get(t.Context())
	var problem *credential.Problem
	switch {
	case code != "":
		if !errors.As(err, &problem) || problem.Code != code {
			t.Errorf("want %s, have %v (password %q)", code, err, cred.Password.Reveal())
		}
	case err != nil:
		t.Errorf("want a credential, have %v", err)
	case string(cred.Password.Reveal()) != password:
		t.Errorf("want the password %q, have %q", password, cred.Password.Reveal())
	}
	cred.Password.Wipe() // each call gets a copy: wiping it must not affect the next call
	return stale
}

var errOut = errors.New("connection refused")

func TestCachedCredentialsAreUsedForFiveSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{}
		s := newSource(t, c)
		c.set("one", nil)
		want(t, s, "one", "")
		c.set("two", nil)
		time.Sleep(4900 * time.Millisecond)
		want(t, s, "one", "")
		time.Sleep(200 * time.Millisecond)
		want(t, s, "two", "")
		if n := c.fetches.Load(); n != 2 {
			t.Errorf("%d fetches", n)
		}
	})
}

func TestConcurrentCallsShareOneFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{takes: time.Second}
		s := newSource(t, c)
		c.set("one", nil)
		var calls sync.WaitGroup
		for range 100 {
			calls.Go(func() { want(t, s, "one", "") })
		}
		calls.Wait()
		if n := c.fetches.Load(); n != 1 {
			t.Errorf("%d fetches", n)
		}
	})
}

func TestACanceledCallDoesNotCancelTheSharedFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{takes: time.Second}
		s := newSource(t, c)
		c.set("one", nil)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			if _, _, err := s.get(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("the caller that went away: %v", err)
			}
		}()
		synctest.Wait()
		var calls sync.WaitGroup
		calls.Go(func() { want(t, s, "one", "") })
		synctest.Wait()
		cancel()
		calls.Wait()
	})
}

func TestStaleCredentialsAreUsedDuringAnOutageUntilMaxStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{takes: fetchTimeout}
		s := newSource(t, c)
		c.set("one", nil)
		want(t, s, "one", "")
		time.Sleep(10 * time.Second)

		c.set("", errOut)
		began := time.Now()
		if !want(t, s, "one", "") {
			t.Error("a stale answer is not marked")
		}
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("the first call of the outage took %v", took)
		}
		for range 1000 {
			time.Sleep(7 * time.Millisecond)
			began := time.Now()
			want(t, s, "one", "")
			if took := time.Since(began); took > 50*time.Millisecond {
				t.Fatalf("a later call took %v", took)
			}
		}
		time.Sleep(DefaultMaxStale - time.Minute)
		want(t, s, "one", "")
		time.Sleep(time.Minute)
		want(t, s, "", credential.ProblemUnavailable)
		s.mu.Lock()
		if len(s.copy.Password.Reveal()) > 0 {
			t.Error("a copy that may not serve is still in memory")
		}
		s.mu.Unlock()
	})
}

// A provider without calls does not keep the password in memory.
func TestExpiredCredentialsAreWipedWithoutACall(t *testing.T) {
	for _, maxStale := range []time.Duration{0, time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			c := &cluster{}
			s := newSource(t, c)
			s.maxStale = maxStale
			c.set("one", nil)
			want(t, s, "one", "")
			s.mu.Lock()
			held := s.copy.Password.Reveal()
			s.mu.Unlock()
			time.Sleep(max(maxFresh, maxStale) - time.Second)
			if !bytes.Equal(held, []byte("one")) {
				t.Fatal("wiped too early")
			}
			time.Sleep(2 * time.Second)
			if !bytes.Equal(held, make([]byte, len("one"))) {
				t.Errorf("with maxStale %s the password is still in memory", maxStale)
			}
		})
	}
}

// After an outage, the first call gets fresh credentials, even after a long time without calls.
func TestAfterAnOutageTheNextCallFetches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{}
		s := newSource(t, c)
		c.set("one", nil)
		want(t, s, "one", "")
		for round := range 3 {
			time.Sleep(10 * time.Second)
			c.set("", errOut)
			want(t, s, "one", "")
			before := c.fetches.Load()
			time.Sleep(time.Minute)
			if n := c.fetches.Load(); n != before {
				t.Errorf("round %d: %d fetches that nobody asked for", round, n-before)
			}
			c.set("two", nil)
			if stale := want(t, s, "two", ""); stale {
				t.Error("still stale")
			}
			c.set("one", nil)
			time.Sleep(maxFresh + time.Millisecond)
			want(t, s, "one", "")
		}
	})
}

// With continuous calls, the cache detects the end of an outage within a second, and no call waits for it.
func TestCallsDuringAnOutageDoNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{}
		s := newSource(t, c)
		c.set("one", nil)
		want(t, s, "one", "")
		time.Sleep(10 * time.Second)
		c.set("", errOut)
		want(t, s, "one", "")
		before, began := c.fetches.Load(), time.Now()
		for range 600 {
			asked := time.Now()
			want(t, s, "one", "")
			if waited := time.Since(asked); waited > 0 {
				t.Fatalf("a call waited for %s", waited)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if n, most := c.fetches.Load()-before, int64(time.Since(began)/retryAfter); n > most || n < most/2 {
			t.Errorf("%d fetches in %s", n, time.Since(began))
		}
		c.set("two", nil)
		want(t, s, "one", "") // starts another fetch
		time.Sleep(2 * retryAfter)
		want(t, s, "two", "")
	})
}

// Attack: cached credentials outlive the permission. Deleted, forbidden and invalid are responses, not outages.
func TestADenialDropsTheCacheImmediately(t *testing.T) {
	for _, code := range []credential.ProblemCode{credential.ProblemSecretNotFound, credential.ProblemForbidden,
		credential.ProblemSecretInvalid} {
		synctest.Test(t, func(t *testing.T) {
			c := &cluster{}
			s := newSource(t, c)
			c.set("one", nil)
			want(t, s, "one", "")
			s.mu.Lock()
			held := s.copy.Password.Reveal()
			s.mu.Unlock()

			c.set("", &credential.Problem{Code: code, Detail: "no"})
			time.Sleep(maxFresh + time.Millisecond)
			want(t, s, "", code)
			for _, b := range held {
				if b != 0 {
					t.Fatal("the dropped copy is still in memory")
				}
			}
			// A following outage does not restore the credentials.
			c.set("", errOut)
			time.Sleep(maxNegative + time.Millisecond)
			want(t, s, "", credential.ProblemUnavailable)
			// After a correction of the Secret, they are available again.
			c.set("two", nil)
			time.Sleep(retryAfter + time.Millisecond)
			want(t, s, "two", "")
		})
	}
}

// Attack: a machine was suspended, so its monotonic clock shows no time. A copy's age is that of the wall clock.
func TestACopyAgesWhileTheMachineIsSuspended(t *testing.T) {
	// Sub would prefer the monotonic reading.
	if wall := new(secretCache).now().wall; wall != wall.Round(0) {
		t.Errorf("%s has a monotonic reading", wall)
	}
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{}
		s := newSource(t, c)
		var suspended time.Duration
		s.wall = func() time.Time { return time.Now().Add(suspended) }
		c.set("one", nil)
		want(t, s, "one", "")

		suspended += 48 * time.Hour
		c.set("two", nil)
		want(t, s, "two", "")

		// Longer than maxStale, while the API server is unavailable.
		suspended += 48 * time.Hour
		c.set("", errOut)
		want(t, s, "", credential.ProblemUnavailable)
		if age, have, _ := s.state(); have {
			t.Errorf("a copy of the age %s is left", age)
		}

		// Less than maxStale: the last outage was before, so the next call fetches.
		c.set("three", nil)
		time.Sleep(retryAfter)
		want(t, s, "three", "")
		time.Sleep(maxFresh + time.Second)
		c.set("", errOut)
		if !want(t, s, "three", "") {
			t.Error("a stale answer is not marked")
		}
		suspended += time.Hour
		c.set("four", nil)
		want(t, s, "four", "")

		// A clock that is set back does not make a copy younger.
		suspended -= 72 * time.Hour
		c.set("five", nil)
		time.Sleep(maxFresh + time.Second)
		want(t, s, "five", "")
	})
}

// The timer that wipes a copy stops with the machine.
func TestACopyIsWipedAfterTheMachineWasSuspended(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{}
		s := newSource(t, c)
		var suspended atomic.Int64
		s.wall = func() time.Time { return time.Now().Add(time.Duration(suspended.Load())) }
		c.set("one", nil)
		want(t, s, "one", "")
		s.mu.Lock()
		held := s.copy.Password.Reveal()
		s.mu.Unlock()
		time.Sleep(time.Hour)
		suspended.Store(int64(DefaultMaxStale))
		time.Sleep(expiryInterval + time.Millisecond)
		s.mu.Lock()
		defer s.mu.Unlock()
		if !bytes.Equal(held, make([]byte, len("one"))) || s.copiedAt != (moment{}) {
			t.Error("the password is still in memory")
		}
	})
}

// A fetch that never returns does not hold the calls that wait for it.
func TestCallsDoNotWaitForAFetchThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{}
		s := newSource(t, c)
		c.set("one", nil)
		want(t, s, "one", "")
		time.Sleep(maxFresh + time.Millisecond)

		hang := make(chan struct{})
		s.read = func(ctx context.Context) (credential.Credential, []string, error) {
			<-hang
			return c.read(ctx)
		}
		began := time.Now()
		var calls sync.WaitGroup
		for range 10 {
			calls.Go(func() {
				if !want(t, s, "one", "") {
					t.Error("a stale answer is not marked")
				}
			})
		}
		calls.Wait()
		if took := time.Since(began); took != waitTimeout {
			t.Errorf("the calls took %s", took)
		}
		began = time.Now()
		want(t, s, "one", "")
		if took := time.Since(began); took > 0 {
			t.Errorf("the next call took %s", took)
		}
		time.Sleep(DefaultMaxStale)
		began = time.Now()
		want(t, s, "", credential.ProblemUnavailable)
		if took := time.Since(began); took != waitTimeout {
			t.Errorf("a call without a copy took %s", took)
		}
		c.set("two", nil)
		close(hang)
		synctest.Wait()
		want(t, s, "two", "")
	})
}

// source is a secretCache that reads from a fake API server in memory. serve responds to its requests.
func source(t *testing.T, serve http.HandlerFunc) (*secretCache, *kubetest.Server) {
	t.Helper()
	api := kubetest.NewMemoryServer(t, serve)
	r, err := newSecretReader(api.Access(t, t.TempDir()), web)
	if err != nil {
		t.Fatal(err)
	}
	r.client.DialWith(api.Dial)
	s := newSource(t, &cluster{})
	s.read = r.read
	return s, api
}

// Attack: an API server in a crash loop refuses everything while it starts. The copy serves as in any outage, and then
// the API server's verdict ends it.
func TestACrashLoopOfTheAPIServerKeepsTheCopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var refusal atomic.Int64
		s, api := source(t, func(w http.ResponseWriter, _ *http.Request) {
			if code := refusal.Load(); code != 0 {
				kubetest.Status(w, int(code), "", "", "refused")
				return
			}
			_, _ = io.WriteString(w, secretJSON("corp.example.com", "web", "one"))
		})
		want(t, s, "one", "")
		api.Readyz(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) })
		for i := range 60 {
			time.Sleep(time.Second)
			refusal.Store([]int64{401, 403, 404}[i%3])
			want(t, s, "one", "")
		}
		api.Readyz(func(http.ResponseWriter, *http.Request) {})
		refusal.Store(403)
		time.Sleep(maxFresh)
		want(t, s, "", credential.ProblemForbidden)
	})
}

// A verdict is effective 5 seconds after the last good fetch, even where it takes 2 seconds to confirm it.
func TestNoCallGetsCredentialsFiveSecondsAfterAVerdict(t *testing.T) {
	for _, readyz := range []int{200, 401} {
		for _, refusal := range []int{401, 403, 404} {
			synctest.Test(t, func(t *testing.T) {
				var refused atomic.Bool
				s, api := source(t, func(w http.ResponseWriter, _ *http.Request) {
					if refused.Load() {
						kubetest.Status(w, refusal, "", "", "refused")
						return
					}
					_, _ = io.WriteString(w, secretJSON("corp.example.com", "web", "one"))
				})
				api.Readyz(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(readyz) })
				want(t, s, "one", "")
				refused.Store(true)
				began := time.Now()
				for time.Since(began) < 10*time.Second {
					time.Sleep(100 * time.Millisecond)
					asked := time.Now()
					cred, _, err := s.get(t.Context())
					if err == nil && time.Since(began) > maxFresh {
						t.Fatalf("/readyz %d, status %d: credentials after %s", readyz, refusal, time.Since(began))
					}
					if took := time.Since(asked); took > waitTimeout {
						t.Errorf("a call took %s", took)
					}
					cred.Password.Wipe()
				}
				if _, _, problem := s.state(); problem == nil || problem.Code == credential.ProblemUnavailable {
					t.Errorf("/readyz %d, status %d: %v", readyz, refusal, problem)
				}
			})
		}
	}
}

func TestWithoutMaxStaleCallsFailDuringAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{}
		s := newSource(t, c)
		s.maxStale = 0
		c.set("one", nil)
		want(t, s, "one", "")
		c.set("", errOut)
		time.Sleep(maxFresh + time.Millisecond)
		want(t, s, "", credential.ProblemUnavailable)
	})
}

// A pod in a crash loop that asks for a Secret that is not there does not become load on the API server.
func TestADenialIsReusedForOneSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{}
		s := newSource(t, c)
		c.set("", &credential.Problem{Code: credential.ProblemSecretNotFound})
		for range 1000 {
			want(t, s, "", credential.ProblemSecretNotFound)
			time.Sleep(10 * time.Millisecond)
		}
		if n := c.fetches.Load(); n > 11 {
			t.Errorf("%d fetches in 10 s", n)
		}
	})
}
