package plugin

import (
	"crypto/tls"
	"sync"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/credential"
)

// An idle connection saves the next call the TLS handshake. It was verified with the certificates of one generation, so
// it is used only while that generation is active.
const (
	maxIdle     = 4 // per account
	idleTimeout = 30 * time.Second
)

// pool holds idle connections by account. The zero value is ready for use.
type pool struct {
	mu   sync.Mutex
	idle map[credential.Reference]*idle
}

// idle holds the connections of one account, the last used one last.
type idle struct {
	generation string
	conns      []*tls.Conn
	expiry     *time.Timer
}

// take returns a connection of this generation, or nil. It closes connections of other generations.
func (p *pool) take(ref credential.Reference, generation string) *tls.Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.idle[ref]
	if s == nil {
		return nil
	}
	if s.generation != generation || len(s.conns) == 0 {
		p.remove(ref)
		return nil
	}
	last := len(s.conns) - 1
	conn := s.conns[last]
	s.conns[last] = nil
	s.conns = s.conns[:last]
	return conn
}

// put adds a connection. All connections of an account are closed after idleTimeout without a call.
func (p *pool) put(ref credential.Reference, generation string, conn *tls.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.idle[ref]
	if s != nil && s.generation != generation {
		// take decides which of the two is active, so one generation per account is enough.
		p.remove(ref)
		s = nil
	}
	if s == nil {
		s = &idle{generation: generation}
		s.expiry = time.AfterFunc(idleTimeout, func() { p.expire(ref, s) })
		if p.idle == nil {
			p.idle = map[credential.Reference]*idle{}
		}
		p.idle[ref] = s
	}
	if len(s.conns) == maxIdle {
		go conn.Close()
		return
	}
	s.conns = append(s.conns, conn)
	s.expiry.Reset(idleTimeout)
}

// drop closes all connections of one account.
func (p *pool) drop(ref credential.Reference) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.remove(ref)
}

func (p *pool) expire(ref credential.Reference, s *idle) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.idle[ref] == s { // else its timer fired during the replacement
		p.remove(ref)
	}
}

func (p *pool) remove(ref credential.Reference) {
	s := p.idle[ref]
	if s == nil {
		return
	}
	delete(p.idle, ref)
	s.expiry.Stop()
	for _, conn := range s.conns {
		// Close sends an alert and can block for seconds if the peer does not read. Do not hold the lock meanwhile.
		go conn.Close()
	}
}
