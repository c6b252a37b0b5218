package com

import (
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/windows"
)

// A surrogate whose module is retired does nothing more than keep the module's file open, for minutes on an idle node and for
// as long as somebody holds a reference on a busy one. An uninstall waits for it. So the module ends its surrogate: it is the
// only class in it, by its own AppID. A client's hold on the class object does not keep it; such a client asks again.
const (
	// An upgraded module lets references live, whose holders call again, and ends when there is none. An activation that began
	// before the class objects were suspended has this long to come to its first call.
	idleWhenReplaced = 30 * time.Second
	// One that is not registered any more has no business being called. What is under way takes 10 seconds at most.
	idleWhenGone = 5 * time.Second
)

type standing int32

const (
	registered standing = iota
	replaced
	gone
)

var standsAs atomic.Int32 // a standing

// startRetirement runs once the module was retired the first time, for as long as the process.
var startRetirement = sync.OnceFunc(func() { go retirement() })

func retire(as standing) {
	standsAs.Store(int32(as))
	if as != registered {
		startRetirement()
	}
}

// retirement ends the process when it has been retired and idle for long enough.
func retirement() {
	idleSince := time.Now()
	for ; ; time.Sleep(100 * time.Millisecond) {
		as := standing(standsAs.Load())
		switch {
		case as == registered, calls.Load() > 0, as == replaced && credentials.refs.Load() > 0:
			idleSince = time.Now()
		case as == replaced && time.Since(idleSince) > idleWhenReplaced, as == gone && time.Since(idleSince) > idleWhenGone:
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
