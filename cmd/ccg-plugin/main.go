//go:build windows

// Command ccg-plugin is ccg-plugin.dll, the CCG plugin. hack/build-dll.sh builds it, and ccg-plugin-installer registers
// it.
package main

import "C"

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/ccgrkc/ccgrkc/internal/com"
	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/endpoint"
	"github.com/ccgrkc/ccgrkc/internal/eventlog"
	"github.com/ccgrkc/ccgrkc/internal/plugin"
	"github.com/ccgrkc/ccgrkc/internal/plugin/cause"
	"github.com/ccgrkc/ccgrkc/internal/version"
)

func main() {} // required by -buildmode=c-shared, never called

var ccgPlugin = plugin.New(plugin.Config{
	Root: endpoint.DefaultRoot,
	Report: func(e plugin.Event) {
		_ = eventlog.Write(e.Cause, e.Input, e.Detail) // there is no other place to report to
	},
	Identity: identity,
	Module:   module,
})

func init() {
	com.Serve(com.Class{Get: get, Report: ccgPlugin.Report})
}

func get(input string) (credential.Credential, com.HRESULT) {
	c, err := ccgPlugin.Get(context.Background(), input)
	if err == nil {
		return c, 0
	}
	var failure *plugin.Failure
	if !errors.As(err, &failure) {
		return c, com.HRESULT(cause.Unexpected.HResult)
	}
	return c, com.HRESULT(failure.Cause.HResult)
}

var reportLoaded = sync.OnceFunc(func() {
	ccgPlugin.Report(cause.Loaded, "",
		fmt.Sprintf("version %s, %s, as %s, process %d", version.String(), module(), identity(), os.Getpid()))
})

//export DllGetClassObject
func DllGetClassObject(clsid, iid, out unsafe.Pointer) uint32 {
	hr := com.GetClassObject((*windows.GUID)(clsid), (*windows.GUID)(iid), (*unsafe.Pointer)(out))
	if !hr.Failed() {
		reportLoaded()
	}
	return uint32(hr)
}

//export DllCanUnloadNow
func DllCanUnloadNow() uint32 { return uint32(com.CanUnloadNow()) }

// identity is the account of the process, which reads the endpoint. A call of ccg.exe can impersonate another one.
func identity() string {
	user, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		return fmt.Sprintf("unknown (%v)", err)
	}
	account, domain, _, err := user.User.Sid.LookupAccount("")
	if err != nil {
		return user.User.Sid.String()
	}
	return domain + `\` + account
}

func module() string {
	path, err := com.ModulePath()
	if err != nil {
		return fmt.Sprintf("unknown (%v)", err)
	}
	return path
}
