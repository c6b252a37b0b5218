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

// An upgrade registers another DLL while this one is loaded. New activations would go on to reach this one for as long as
// the surrogate lives, which a busy node never lets end. So the module watches its registration: once it is another's, or
// gone, the process's class objects are suspended (CoSuspendClassObjects). The next activation then starts a surrogate
// with the new DLL, while calls and references that exist go on here undisturbed. See retire for what becomes of it then.

const registration = `SOFTWARE\Classes\CLSID\` + CLSID

// absentPause is the time between two looks at a registration that is gone: there is no key whose change could be waited
// for, and nothing hurries, since without a registration nobody is activated.
const absentPause = 2 * time.Second

// startSuspending begins with the first class object. COM forgets a suspension that comes before its surrogate has registered
// them.
var startSuspending = sync.OnceFunc(func() {
	if !isSurrogate() {
		return
	}
	suspended := false
	go watch(func(as standing) {
		if retired := as != registered; retired != suspended {
			suspended = retired
			setSuspended(retired)
		}
	})
})

// watch calls changed with how the module stands, now and after each change. It never returns while the process lives.
func watch(changed func(standing)) {
	var hr HRESULT
	defer recovered("the watch of the registration", &hr)
	runtime.LockOSThread() // a notification ends with the thread that asked for it
	own, err := ModulePath()
	if err != nil {
		class.Report(cause.Unexpected, "", err.Error())
		return
	}
	for {
		err := lookAndWait(func(path string) { changed(standingOf(path, own)) })
		if err != nil {
			class.Report(cause.Unexpected, "", fmt.Sprintf("the registration cannot be watched, so an upgrade needs a restart of the surrogate: %v", err))
			return
		}
	}
}

func standingOf(path, own string) standing {
	switch {
	case path == "":
		return gone
	case sameFile(path, own):
		return registered
	default:
		return replaced
	}
}

// lookAndWait calls look with the registered path, "" if there is none, and returns after the next change.
func lookAndWait(look func(path string)) error {
	key, err := registry.OpenKey(registry.LOCAL_MACHINE, registration, registry.NOTIFY|registry.QUERY_VALUE)
	if errors.Is(err, registry.ErrNotExist) {
		look("")
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
	// First ask, then look: a change in between is not missed.
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
	look(path)
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

// sameFile compares files, not only spellings: a module that took itself for retired because its path is written in another
// way would end every activation.
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

// setSuspended holds back or lets in new activations of the process's class objects.
func setSuspended(suspended bool) {
	// The surrogate's threads are in the multithreaded apartment; this one joins it for the call.
	if err := windows.CoInitializeEx(0, windows.COINIT_MULTITHREADED); err == nil {
		defer windows.CoUninitialize()
	}
	proc, name := procCoResume, "CoResumeClassObjects"
	if suspended {
		proc, name = procCoSuspend, "CoSuspendClassObjects"
	}
	if r, _, _ := proc.Call(); HRESULT(r).Failed() {
		class.Report(cause.Unexpected, "", fmt.Sprintf("%s returned %v; an upgrade needs a restart of the surrogate", name, HRESULT(r)))
	}
}
