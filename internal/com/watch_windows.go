package com

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"

	"github.com/ccgrkc/ccgrkc/internal/plugin/cause"
)

// An upgrade registers another DLL while this one is loaded. New activations would still use this one until the
// surrogate exits, which on a busy node never happens. The module therefore watches its registration. When another DLL
// is registered, or none, it suspends the class objects of the process (CoSuspendClassObjects). The next activation
// then starts a surrogate with the new DLL. Existing references and running calls are unaffected. See
// exitWhenUnregistered for the exit of the process.

const registration = `SOFTWARE\Classes\CLSID\` + CLSID

// absentPause is the interval for checking a missing registration, because there is no key to watch. It is not urgent:
// without a registration there are no activations.
const absentPause = 2 * time.Second

// startSuspending runs with the first class object. COM ignores a suspension before the surrogate has registered its
// class objects.
var startSuspending = sync.OnceFunc(func() {
	if !isSurrogate() {
		return
	}
	suspended := false
	go watch(func(state registrationState) {
		if suspend := state != registered; suspend != suspended {
			suspended = suspend
			setSuspended(suspend)
		}
	})
})

// watch calls changed with the state of the registration, now and after each change. It returns only after an error.
func watch(changed func(registrationState)) {
	var hr HRESULT
	defer recovered("the watch of the registration", &hr)
	runtime.LockOSThread() // Windows cancels a notification when its thread exits
	own, err := ModulePath()
	if err != nil {
		class.Report(cause.Unexpected, "", err.Error())
		return
	}
	for {
		err := checkAndWait(func(path string) { changed(stateOf(path, own)) })
		if err != nil {
			class.Report(cause.Unexpected, "", fmt.Sprintf(
				"the registration cannot be watched, so an upgrade needs a restart of the surrogate: %v", err))
			return
		}
	}
}

func stateOf(path, own string) registrationState {
	switch {
	case path == "":
		return unregistered
	case sameFile(path, own):
		return registered
	default:
		return replaced
	}
}

// checkAndWait calls check with the registered path, "" if there is none, and returns after the next change.
func checkAndWait(check func(path string)) error {
	key, err := registry.OpenKey(registry.LOCAL_MACHINE, registration, registry.NOTIFY|registry.QUERY_VALUE)
	if errors.Is(err, registry.ErrNotExist) {
		check("")
		time.Sleep(absentPause)
		return nil
	}
	if err != nil {
		return err
	}
	defer key.Close()
	changed, err := windows.CreateEvent(nil, 0, 0, nil)
	if err != nil {
		return err
	}
	defer windows.CloseHandle(changed)
	// Request the notification before reading, so that no change in between is missed.
	const what = windows.REG_NOTIFY_CHANGE_NAME | windows.REG_NOTIFY_CHANGE_LAST_SET
	err = windows.RegNotifyChangeKeyValue(windows.Handle(key), true, what, changed, true)
	if errors.Is(err, windows.ERROR_KEY_DELETED) {
		return nil
	}
	if err != nil {
		return err
	}
	path, err := registeredPath(key)
	if err != nil {
		return err
	}
	check(path)
	_, err = windows.WaitForSingleObject(changed, windows.INFINITE)
	return err
}

func registeredPath(key registry.Key) (string, error) {
	server, err := registry.OpenKey(key, "InprocServer32", registry.QUERY_VALUE)
	if errors.Is(err, registry.ErrNotExist) || errors.Is(err, windows.ERROR_KEY_DELETED) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer server.Close()
	path, _, err := server.GetStringValue("")
	if errors.Is(err, registry.ErrNotExist) || errors.Is(err, windows.ERROR_KEY_DELETED) {
		return "", nil
	}
	return path, err
}

// sameFile compares files and not only paths: if the same path in another form counted as another DLL, every activation
// would fail.
func sameFile(path, own string) bool {
	if strings.EqualFold(path, own) {
		return true
	}
	a, err := os.Stat(path)
	if err != nil {
		return false
	}
	b, err := os.Stat(own)
	return err == nil && os.SameFile(a, b)
}

// setSuspended suspends or resumes activations of the process's class objects.
func setSuspended(suspended bool) {
	// The surrogate's threads are in the multithreaded apartment. This thread joins it for the call.
	if err := windows.CoInitializeEx(0, windows.COINIT_MULTITHREADED); err == nil {
		defer windows.CoUninitialize()
	}
	proc, name := procCoResume, "CoResumeClassObjects"
	if suspended {
		proc, name = procCoSuspend, "CoSuspendClassObjects"
	}
	if r, _, _ := proc.Call(); HRESULT(r).Failed() {
		class.Report(cause.Unexpected, "", fmt.Sprintf("%s returned %v; an upgrade needs a restart of the surrogate",
			name, HRESULT(r)))
	}
}
