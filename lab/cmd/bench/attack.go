package main

import (
	"fmt"
	"os"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/connlimit/connlimittest"
	"github.com/ccgrkc/ccgrkc/lab/internal/child"
)

// hostileConnections is the number on each port.
const hostileConnections = 15000

// attack prints the memory of a program while clients open and hold connections to its ports, and the time of the
// slowest good call, of which each opens a connection.
func attack(program string, p *child.Process, call func() error, targets ...connlimittest.Target) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	a := connlimittest.Attack{Program: self, Targets: targets}
	if err := a.Start(); err != nil {
		return err
	}
	defer a.Stop()
	var slowest time.Duration
	for held := 0; held < 100; {
		if a.Opened() {
			held++
		}
		began := time.Now()
		if err := call(); err != nil {
			return fmt.Errorf("%s, with hostile connections: %w", program, err)
		}
		slowest = max(slowest, time.Since(began))
	}
	memory, err := connlimittest.Memory(p.PID(), "VmHWM")
	if err != nil {
		return err
	}
	what := fmt.Sprintf("%s, %d hostile connections on each port, ", program, hostileConnections)
	bound := fmt.Sprintf("%d MiB", connlimittest.MaxMemory>>20)
	value(what+"memory", fmt.Sprintf("%.1f MiB", float64(memory)/(1<<20)), bound)
	value(what+"slowest", ms(slowest), "")
	return nil
}
