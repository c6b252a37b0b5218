package com

import (
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/windows"
)

// After an uninstall, a surrogate would keep the module's file open: for minutes on an idle node, and on a busy node
// until all references are released. The uninstall waits for that. The module therefore terminates its surrogate, which
// serves no other class. After an upgrade nothing waits for the surrogate, so COM stops it.

// exitDelay is the time without a call before the surrogate exits, so that a started activation can finish.
const exitDelay = 5 * time.Second

type registrationState int32

const (
	registered registrationState = iota
	replaced                     // by another DLL
	unregistered
)

var currentState atomic.Int32 // a registrationState

var startExitLoop = sync.OnceFunc(func() { go exitLoop() })

// exitWhenUnregistered stores the state, and starts to wait for the exit when the module is not registered any more.
func exitWhenUnregistered(state registrationState) {
	currentState.Store(int32(state))
	if state == unregistered {
		startExitLoop()
	}
}

// exitLoop terminates the process when the module has been unregistered and idle for exitDelay.
func exitLoop() {
	idleSince := time.Now()
	for ; ; time.Sleep(100 * time.Millisecond) {
		switch {
		case registrationState(currentState.Load()) != unregistered, calls.Load() > 0:
			idleSince = time.Now()
		case time.Since(idleSince) > exitDelay:
			// Not ExitProcess: the exit code of the modules could deadlock with threads of the Go runtime.
			_ = windows.TerminateProcess(windows.CurrentProcess(), 0)
		}
	}
}

// isSurrogate reports whether this process is COM's surrogate for this class. Other processes that have loaded the
// module must not be suspended or terminated.
func isSurrogate() bool {
	// The AppID equals the CLSID. Windows writes DllHost.exe /Processid:{AppID}, Wine /PROCESSID:{CLSID}.
	command := strings.ToUpper(windows.UTF16PtrToString(windows.GetCommandLine()))
	return strings.Contains(command, "DLLHOST.EXE") && strings.Contains(command, "/PROCESSID:"+strings.ToUpper(CLSID))
}
