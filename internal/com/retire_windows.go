package com

import (
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/windows"
)

// A surrogate whose module is retired does nothing more than keep the module's file open, for minutes on an idle node and for
// as long as somebody holds a reference on a busy one. An uninstall waits for it. So the module ends its surrogate: it is the
// only class in it, by its own AppID.
const (
	// An upgraded module lets references live, whose holders call again, and ends when there is none.
	idleWhenReplaced = time.Second
	// One that is not registered any more has no business being called. What is under way takes 10 seconds at most.
	idleWhenGone = 5 * time.Second
)

type standing int32

const (
	registered standing = iota
	replaced
	gone
)

var (
	standsAs atomic.Int32 // a standing
	retiring atomic.Bool
)

// retire makes the surrogate end once it is idle, until the module is registered again.
func retire(as standing) {
	standsAs.Store(int32(as))
	if as == registered || !isSurrogate() || !retiring.CompareAndSwap(false, true) {
		return
	}
	go func() {
		defer retiring.Store(false)
		idleSince := time.Now()
		for ; ; time.Sleep(100 * time.Millisecond) {
			switch standing(standsAs.Load()) {
			case registered:
				return
			case replaced:
				if calls.Load() > 0 || credentials.refs.Load() > 0 {
					idleSince = time.Now()
				} else if time.Since(idleSince) > idleWhenReplaced {
					endProcess()
				}
			case gone:
				if calls.Load() > 0 {
					idleSince = time.Now()
				} else if time.Since(idleSince) > idleWhenGone {
					endProcess()
				}
			}
		}
	}()
}

// isSurrogate tells whether this process is COM's own host for DLLs. Any other that has loaded the module is not ours to end.
func isSurrogate() bool {
	host, err := os.Executable()
	return err == nil && strings.EqualFold(filepath.Base(host), "dllhost.exe")
}

// endProcess does not run the modules' exit code, which a Go runtime's threads could deadlock.
func endProcess() {
	_ = windows.TerminateProcess(windows.CurrentProcess(), 0)
}
