package admission

import (
	"maps"
	"sync"
	"time"
)

// recent remembers values for a short time. It holds at most max of them: when it is full, it remembers no others until
// one expires.
type recent[K comparable, V any] struct {
	ttl time.Duration
	max int
	now func() time.Time

	mu     sync.Mutex
	values map[K]expiring[V]
}

type expiring[V any] struct {
	value  V
	expiry time.Time
}

func newRecent[K comparable, V any](ttl time.Duration, limit int) *recent[K, V] {
	return &recent[K, V]{ttl: ttl, max: limit, now: time.Now, values: map[K]expiring[V]{}}
}

func (r *recent[K, V]) get(key K) (value V, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.values[key]
	if !r.now().Before(e.expiry) {
		return value, false
	}
	return e.value, true
}

func (r *recent[K, V]) put(key K, value V) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	if len(r.values) >= r.max {
		maps.DeleteFunc(r.values, func(_ K, e expiring[V]) bool { return !now.Before(e.expiry) })
	}
	if len(r.values) < r.max {
		r.values[key] = expiring[V]{value, now.Add(r.ttl)}
	}
}
