package admission

import (
	"context"
	"sync"
)

// slots are how many reviews there may be at once. One remote address has at most half of them, so that a stranger, who must have
// some address, leaves room for the API server. If both have the same, behind a proxy, they wait in one line.
type slots struct {
	all chan struct{}

	mu   sync.Mutex
	each map[string]*share // of addresses that have a place or wait for one
}

type share struct {
	places chan struct{}
	users  int
}

func newSlots(n int) *slots { return &slots{all: make(chan struct{}, n), each: map[string]*share{}} }

// take waits for a place until ctx ends, and tells whether there was one; it is given back with leave.
func (s *slots) take(ctx context.Context, address string) (leave func(), ok bool) {
	s.mu.Lock()
	mine := s.each[address]
	if mine == nil {
		mine = &share{places: make(chan struct{}, max(1, cap(s.all)/2))}
		s.each[address] = mine
	}
	mine.users++
	s.mu.Unlock()
	forget := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if mine.users--; mine.users == 0 {
			delete(s.each, address)
		}
	}
	// The share comes first: of each address no more wait for a place among all than it may have.
	select {
	case mine.places <- struct{}{}:
	case <-ctx.Done():
		forget()
		return nil, false
	}
	select {
	case s.all <- struct{}{}:
	case <-ctx.Done():
		<-mine.places
		forget()
		return nil, false
	}
	return func() {
		<-s.all
		<-mine.places
		forget()
	}, true
}
