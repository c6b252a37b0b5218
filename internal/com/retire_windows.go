package com

import (
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/windows"
)

// A surrogate whose module is not registered any more does nothing but keep the module's file open, for minutes on an idle
// node and for as long as somebody holds a reference on a busy one. An uninstall waits for it. So the module ends its
// surrogate: it is the only class in it, by its own AppID. After an upgrade nobody waits, and COM ends it in its own time.
//
// idleWhenGone is how long no call must have been under way before: an activation that had begun has this long.
const idleWhenGone = 5 * time.Second

type standing int32

const (
	registered standing = iota
	replaced
	gone
)

var standsAs atomic.Int32 // a standing

// startRetirement runs from the first time that the module was not registered, for as long as the process.
var startRetirement = sync.OnceFunc(func() { go retirement() })

func retire(as standing) {
	standsAs.Store(int32(as))
	if as == gone {
		startRetirement()
	}
}

// retirement ends the process when the module has been gone and idle for long enough.
func retirement() {
	idleSince := time.Now()
	for ; ; time.Sleep(100 * time.Millisecond) {
		switch {
		case standing(standsAs.Load()) != gone, calls.Load() > 0:
			idleSince = time.Now()
		case time.Since(idleSince) > idleWhenGone:
			// Not ExitProcess: the modules' exit code could deadlock with a Go runtime's threads.
			_ = windows.TerminateProcess(windows.CurrentProcess(), 0)
		}
	}
}

// isSurrogate tells whether this process is COM's host for this very class. Any other that has loaded the module, another
// class's surrogate among them, is not ours to suspend or to end.
func isSurrogate() bool {
	// The AppID is the class's own identifier. Windows writes DllHost.exe /Processid:{AppID}, Wine /PROCESSID:{CLSID}.
	command := strings.ToUpper(windows.UTF16PtrToString(windows.GetCommandLine()))
	return strings.Contains(command, "DLLHOST.EXE") && strings.Contains(command, "/PROCESSID:"+strings.ToUpper(CLSID))
}
