package plugin

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/endpoint"
	"github.com/ccgrkc/ccgrkc/internal/plugin/cause"
)

// Attack: another program holds an endpoint file, so that opening it does not return. The call ends after its budget.
func TestACallEndsIfTheEndpointFilesCannotBeOpened(t *testing.T) {
	for name, block := range map[string]func(p *Plugin, wait func()){
		"current": func(p *Plugin, wait func()) {
			p.current = func(string, credential.Reference) (string, error) { wait(); return "", endpoint.ErrAbsent }
		},
		"generation": func(p *Plugin, wait func()) {
			p.current = func(string, credential.Reference) (string, error) { return "g-1", nil }
			p.resolve = func(string, credential.Reference) (*endpoint.Endpoint, error) {
				wait()
				return nil, endpoint.ErrAbsent
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := New(Config{})
				released := make(chan struct{})
				block(p, func() { <-released })
				began := time.Now()
				_, err := p.Get(t.Context(), input)
				var failure *Failure
				if !errors.As(err, &failure) || failure.Cause != cause.EndpointDamaged {
					t.Errorf("%v", err)
				}
				if took := time.Since(began); took > DefaultBudget {
					t.Errorf("the call took %s", took)
				}
				// The number of such calls is limited.
				for range 2 * maxAbandoned {
					_, _ = p.Get(t.Context(), input)
				}
				if n := len(p.reads); n != maxAbandoned {
					t.Errorf("%d calls hang, want %d", n, maxAbandoned)
				}
				close(released)
				synctest.Wait()
				if n := len(p.reads); n != 0 {
					t.Errorf("%d calls hang after the release", n)
				}
			})
		})
	}
}

func TestAnEndpointThatIsReadTooLateIsWiped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(Config{})
		key := []byte("key")
		p.current = func(string, credential.Reference) (string, error) { return "g-1", nil }
		p.resolve = func(string, credential.Reference) (*endpoint.Endpoint, error) {
			time.Sleep(time.Minute)
			return &endpoint.Endpoint{ClientKey: key}, nil
		}
		if _, err := p.Get(t.Context(), input); err == nil {
			t.Error("no error")
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if !bytes.Equal(key, make([]byte, len(key))) {
			t.Error("the key is still in memory")
		}
	})
}

// The Event Log service can hang. The caller still gets its HRESULT.
func TestACallEndsIfTheEventLogHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		released := make(chan struct{})
		p := New(Config{Report: func(Event) { <-released }})
		began := time.Now()
		if _, err := p.Get(t.Context(), "invalid"); err == nil {
			t.Error("no error")
		}
		if took := time.Since(began); took > reportTimeout {
			t.Errorf("took %s", took)
		}
		close(released)
	})
}

// A panic in another goroutine would terminate the surrogate.
func TestAPanicWhileFilesAreReadIsAFailure(t *testing.T) {
	var mu sync.Mutex
	var events []Event
	p := New(Config{Report: func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		events = append(events, e)
		panic("in the report")
	}})
	p.current = func(string, credential.Reference) (string, error) { panic("secret") }
	_, err := p.Get(context.Background(), input)
	var failure *Failure
	if !errors.As(err, &failure) || failure.Cause != cause.Unexpected || strings.Contains(err.Error(), "secret") {
		t.Errorf("%v", err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(events) != 1 || events[0].Cause != cause.Unexpected {
		t.Errorf("%+v", events)
	}
}
