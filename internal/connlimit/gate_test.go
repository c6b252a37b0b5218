package connlimit

import (
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

var (
	attacker = netip.MustParseAddr("127.0.0.2")
	good     = netip.MustParseAddr("127.0.0.1")
)

// Attack: hundreds of handshakes of one address wait. Another address comes next, and then the newest.
func TestTheAddressWithFewWaitersComesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		g.free = 1
		if !g.enter(attacker, nil, time.Minute) {
			t.Fatal("the gate is not free")
		}
		var order []string
		wait := func(name string, address netip.Addr) {
			go func() {
				if g.enter(address, nil, time.Minute) {
					order = append(order, name)
				}
			}()
			synctest.Wait()
		}
		wait("old", attacker)
		wait("good", good)
		wait("new", attacker)
		for range 3 {
			g.leave()
			synctest.Wait()
		}
		if want := []string{"good", "new", "old"}; !slices.Equal(order, want) {
			t.Errorf("%q, want %q", order, want)
		}
		g.leave()
		if g.free != 1 || len(g.counts) != 0 {
			t.Errorf("left: %d free, %v", g.free, g.counts)
		}
	})
}

func TestAnEvictedConnectionLeavesTheGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		g.free = 0
		closed := make(chan struct{})
		time.AfterFunc(time.Second, func() { close(closed) })
		began := time.Now()
		if g.enter(attacker, closed, time.Minute) || time.Since(began) != time.Second {
			t.Errorf("an evicted connection waited for %s", time.Since(began))
		}
		began = time.Now()
		if g.enter(attacker, nil, time.Minute) || time.Since(began) != time.Minute {
			t.Errorf("a waiting connection waited for %s", time.Since(began))
		}
		if len(g.waiting) != 0 || len(g.counts) != 0 {
			t.Errorf("left: %v, %v", g.waiting, g.counts)
		}
	})
}
