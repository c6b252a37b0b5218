package admission

import (
	"context"
	"sync"
)

// slots limit the number of concurrent requests. One client address has at most half of them, so that an
// unauthenticated client leaves the other half to the API server. If a proxy gives both the same address, they share
// one half.
type slots struct {
	all chan struct{}

	mu      sync.Mutex
	clients map[string]*clientSlots // addresses that hold a slot or wait for one
}

type clientSlots struct {
	slots chan struct{}
	users int
}

func newSlots(n int) *slots {
	return &slots{all: make(chan struct{}, n), clients: map[string]*clientSlots{}}
}

// acquire waits for a slot until ctx is done, and reports whether it got one. The caller releases it.
func (s *slots) acquire(ctx context.Context, address string) (release func(), ok bool) {
	s.mu.Lock()
	client := s.clients[address]
	if client == nil {
		client = &clientSlots{slots: make(chan struct{}, max(1, cap(s.all)/2))}
		s.clients[address] = client
	}
	client.users++
	s.mu.Unlock()
	forget := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if client.users--; client.users == 0 {
			delete(s.clients, address)
		}
	}
	// The client's slot comes first, so that no address has more waiters for the common slots than it can hold.
	select {
	case client.slots <- struct{}{}:
	case <-ctx.Done():
		forget()
		return nil, false
	}
	select {
	case s.all <- struct{}{}:
	case <-ctx.Done():
		<-client.slots
		forget()
		return nil, false
	}
	return func() {
		<-s.all
		<-client.slots
		forget()
	}, true
}
