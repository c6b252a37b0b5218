package com

import (
	"fmt"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/plugin/cause"
)

// Class implements the class. Its functions are called concurrently.
type Class struct {
	// Get returns the credentials for a plugin input. It has reported a failure when it returns.
	Get func(input string) (credential.Credential, HRESULT)
	// Report writes an event for a failure in this package.
	Report func(c *cause.Cause, input, detail string)
}

// class is set once, by Serve.
var class Class

// Serve sets the implementation of the class. It also ensures that the surrogate exits after an uninstall, even if it
// was never called. Call it from an init function: cgo delays every export until they have finished.
func Serve(c Class) {
	class = c
	if isSurrogate() {
		go watch(exitWhenUnregistered)
	}
}

// object is a COM interface: a pointer to a table of functions.
type object struct {
	vtable *uintptr
	refs   atomic.Int32
}

var (
	// The order of the functions is defined by the interfaces: IUnknown's three come first.
	factoryTable = [...]uintptr{
		syscall.NewCallback(factoryQueryInterface), syscall.NewCallback(addRef), syscall.NewCallback(release),
		syscall.NewCallback(factoryCreateInstance), syscall.NewCallback(factoryLockServer),
	}
	credentialsTable = [...]uintptr{
		syscall.NewCallback(credentialsQueryInterface), syscall.NewCallback(addRef), syscall.NewCallback(release),
		syscall.NewCallback(getPasswordCredentials),
	}

	factory     = object{vtable: &factoryTable[0]}
	credentials = object{vtable: &credentialsTable[0]}

	locks atomic.Int32 // IClassFactory::LockServer
	calls atomic.Int32 // running exports and methods that no reference covers
)

// GetClassObject is the export DllGetClassObject.
func GetClassObject(clsid, iid *windows.GUID, out *unsafe.Pointer) (hr HRESULT) {
	calls.Add(1)
	defer calls.Add(-1)
	defer recovered("DllGetClassObject", &hr)
	if out == nil {
		return nullPointer()
	}
	*out = nil
	if clsid == nil || iid == nil {
		return nullPointer()
	}
	if err := pin(); err != nil {
		class.Report(cause.Unexpected, "", fmt.Sprintf("the module could not be pinned: %v", err))
		return HRESULT(cause.Unexpected.HResult)
	}
	if *clsid != ClassID {
		return classEClassNotAvailable
	}
	startSuspending()
	return queryInterface(&factory, iid, out, iidClassFactory)
}

// CanUnloadNow is the export DllCanUnloadNow. A Go runtime cannot be unloaded: its threads would run unmapped code.
// S_OK is safe nevertheless, because the module is pinned: COM closes its handle, and the code remains mapped.
func CanUnloadNow() (hr HRESULT) {
	defer recovered("DllCanUnloadNow", &hr)
	if err := pin(); err != nil {
		return sFalse
	}
	if factory.refs.Load() > 0 || credentials.refs.Load() > 0 || locks.Load() > 0 || calls.Load() > 0 {
		return sFalse
	}
	return sOK
}

func addRef(this *object) uintptr { return uintptr(uint32(this.refs.Add(1))) }

func release(this *object) uintptr { return uintptr(uint32(this.refs.Add(-1))) }

func factoryQueryInterface(this *object, iid *windows.GUID, out *unsafe.Pointer) uintptr {
	return uintptr(queryInterface(this, iid, out, iidClassFactory))
}

func credentialsQueryInterface(this *object, iid *windows.GUID, out *unsafe.Pointer) uintptr {
	return uintptr(queryInterface(this, iid, out, iidCredentials))
}

func queryInterface(this *object, iid *windows.GUID, out *unsafe.Pointer, own windows.GUID) HRESULT {
	if out == nil {
		return nullPointer()
	}
	*out = nil
	if iid == nil {
		return nullPointer()
	}
	if *iid != iidUnknown && *iid != own {
		return eNoInterface
	}
	this.refs.Add(1)
	*out = unsafe.Pointer(this)
	return sOK
}

func factoryCreateInstance(_ *object, outer unsafe.Pointer, iid *windows.GUID, out *unsafe.Pointer) uintptr {
	if out == nil {
		return uintptr(nullPointer())
	}
	*out = nil
	if outer != nil {
		return uintptr(classENoAggregation)
	}
	return uintptr(queryInterface(&credentials, iid, out, iidCredentials))
}

func factoryLockServer(_ *object, lock uintptr) uintptr {
	if uint32(lock) != 0 { // BOOL has 32 bits
		locks.Add(1)
	} else {
		locks.Add(-1)
	}
	return uintptr(sOK)
}

func nullPointer() HRESULT {
	class.Report(cause.NullPointer, "", "a required pointer is null")
	return HRESULT(cause.NullPointer.HResult)
}

// recovered is deferred and converts a panic to an HRESULT and an event. Package plugin does the same for its own
// panics, with more detail.
func recovered(where string, hr *HRESULT) {
	value := recover()
	if value == nil {
		return
	}
	*hr = HRESULT(cause.Unexpected.HResult)
	defer func() { _ = recover() }() // Report itself can be the cause of the panic
	class.Report(cause.Unexpected, "", fmt.Sprintf("panic with a %T in %s", value, where))
}
