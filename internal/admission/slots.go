package admission

import (
	"context"
	"slices"
	"sync"
)

// slots limit the number of concurrent requests, and share them between client addresses and namespaces.
//
// One address has at most half of the slots, so that an unauthenticated client leaves the other half to the API server.
// If a proxy gives both the same address, they share one half.
//
// A free slot goes to the address that holds the fewest, and there to the namespace that holds the fewest. So a request
// does not wait for the requests that another namespace has in the queue, only until one slot is free.
type slots struct {
	size int

	mu          sync.Mutex
	used        int
	ofAddress   map[string]int // the slots that each address holds
	ofNamespace map[owner]int
	waiting     []*waiter // in order of arrival
}

// owner is what a slot counts for. An unauthenticated client can claim any namespace, so a namespace counts only
// within its address.
type owner struct{ address, namespace string }

type waiter struct {
	owner
	granted chan struct{} // closed with the slot
}

func newSlots(size int) *slots {
	return &slots{size: size, ofAddress: map[string]int{}, ofNamespace: map[owner]int{}}
}

// acquire waits for a slot until ctx is done, and reports whether it got one. The caller releases it.
func (s *slots) acquire(ctx context.Context, o owner) (release func(), ok bool) {
	w := &waiter{o, make(chan struct{})}
	s.mu.Lock()
	s.waiting = append(s.waiting, w)
	s.grant()
	s.mu.Unlock()
	select {
	case <-w.granted:
	case <-ctx.Done():
		if s.leave(w) {
			return nil, false
		}
	}
	return func() { s.release(o) }, true
}

// leave removes w from the queue. It returns false if w already has a slot.
func (s *slots) leave(w *waiter) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.waiting, w)
	if i < 0 {
		return false
	}
	s.waiting = slices.Delete(s.waiting, i, i+1)
	return true
}

func (s *slots) release(o owner) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used--
	if s.ofAddress[o.address]--; s.ofAddress[o.address] == 0 {
		delete(s.ofAddress, o.address)
	}
	if s.ofNamespace[o]--; s.ofNamespace[o] == 0 {
		delete(s.ofNamespace, o)
	}
	s.grant()
}

// grant gives the free slots to requests in the queue.
func (s *slots) grant() {
	for s.used < s.size {
		next := -1
		for i, w := range s.waiting {
			if s.ofAddress[w.address] < max(1, s.size/2) && (next < 0 || s.precedes(w, s.waiting[next])) {
				next = i
			}
		}
		if next < 0 {
			return
		}
		w := s.waiting[next]
		s.waiting = slices.Delete(s.waiting, next, next+1)
		s.used++
		s.ofAddress[w.address]++
		s.ofNamespace[w.owner]++
		close(w.granted)
	}
}

// precedes reports whether a gets a slot before b, which has waited longer.
func (s *slots) precedes(a, b *waiter) bool {
	if x, y := s.ofAddress[a.address], s.ofAddress[b.address]; x != y {
		return x < y
	}
	return s.ofNamespace[a.owner] < s.ofNamespace[b.owner]
}
