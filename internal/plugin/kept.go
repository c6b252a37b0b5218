package plugin

import (
	"crypto/tls"
	"sync"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/credential"
)

// A kept connection saves the next call the handshake. It was proven against one generation's certificates and counts as
// long as that generation is in force.
const (
	maxKept  = 4 // per account
	keepTime = 30 * time.Second
)

// connections holds idle connections by account. The zero value is ready for use.
type connections struct {
	mu    sync.Mutex
	stack map[credential.Reference]*stack
}

type stack struct {
	generation string
	conns      []*tls.Conn
	expiry     *time.Timer
}

// take returns a connection of this generation, or nil. Those of any other generation are closed.
func (k *connections) take(ref credential.Reference, generation string) *tls.Conn {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.stack[ref]
	if s == nil {
		return nil
	}
	if s.generation != generation || len(s.conns) == 0 {
		k.remove(ref)
		return nil
	}
	last := len(s.conns) - 1
	conn := s.conns[last]
	s.conns[last] = nil
	s.conns = s.conns[:last]
	return conn
}

// put keeps a connection until it is taken, or until the account was not asked for during keepTime.
func (k *connections) put(ref credential.Reference, generation string, conn *tls.Conn) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.stack[ref]
	if s != nil && s.generation != generation {
		// Which of the two is in force is for take to judge; one stack per account is enough.
		k.remove(ref)
		s = nil
	}
	if s == nil {
		s = &stack{generation: generation}
		s.expiry = time.AfterFunc(keepTime, func() { k.expire(ref, s) })
		if k.stack == nil {
			k.stack = map[credential.Reference]*stack{}
		}
		k.stack[ref] = s
	}
	if len(s.conns) == maxKept {
		go conn.Close()
		return
	}
	s.conns = append(s.conns, conn)
	s.expiry.Reset(keepTime)
}

// drop closes all connections of one account.
func (k *connections) drop(ref credential.Reference) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.remove(ref)
}

func (k *connections) expire(ref credential.Reference, s *stack) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.stack[ref] == s { // else its timer fired while it was being replaced
		k.remove(ref)
	}
}

func (k *connections) remove(ref credential.Reference) {
	s := k.stack[ref]
	if s == nil {
		return
	}
	delete(k.stack, ref)
	s.expiry.Stop()
	for _, conn := range s.conns {
		// Close says goodbye and can wait seconds for a peer that does not read; the lock must not.
		go conn.Close()
	}
}
