package com

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/ccgrkc/ccgrkc/internal/plugin/cause"
)

// clsctxLocalServer asks for a server in another process, as ccg.exe does (CLSCTX, wtypesbase.h).
const clsctxLocalServer = 4

// Object is an activated class, in another process. Any goroutine may use it.
type Object struct {
	p *interfacePointer
}

// interfacePointer is what COM gives: the address of an address of a table of functions.
type interfacePointer struct {
	table *[4]uintptr // IUnknown's three and GetPasswordCredentials
}

// enterMTA keeps the multithreaded apartment alive for good. Every thread that joined no apartment of its own is then in it,
// so goroutines may move between threads.
var enterMTA = sync.OnceValue(func() error {
	var cookie uintptr
	if r, _, _ := procCoIncrementMTAUsage.Call(uintptr(unsafe.Pointer(&cookie))); HRESULT(r).Failed() {
		return fmt.Errorf("start COM: %w", HRESULT(r))
	}
	return nil
})

// Activate asks COM for an object of the class, out of process only. The caller releases it. An HRESULT of COM is found
// with errors.As.
func Activate(clsid windows.GUID) (*Object, error) {
	if err := enterMTA(); err != nil {
		return nil, err
	}
	var p *interfacePointer
	r, _, _ := procCoCreateInstance.Call(uintptr(unsafe.Pointer(&clsid)), 0, clsctxLocalServer,
		uintptr(unsafe.Pointer(&iidCredentials)), uintptr(unsafe.Pointer(&p)))
	if HRESULT(r).Failed() {
		return nil, fmt.Errorf("activate class %s: %w", clsid, HRESULT(r))
	}
	return &Object{p}, nil
}

// Release gives the object back. It must not be used again.
func (o *Object) Release() {
	_, _, _ = syscall.SyscallN(o.p.table[2], uintptr(unsafe.Pointer(o.p)))
	o.p = nil
}

// GetPasswordCredentials calls the method with this plugin input. A failed HRESULT of the call is the error itself.
func (o *Object) GetPasswordCredentials(input string) (Result, error) {
	in, err := windows.UTF16PtrFromString(input)
	if err != nil {
		// The class could only be given what stands before the NUL, which is another input.
		return Result{}, fmt.Errorf("plugin input %q holds a NUL: %w", input, HRESULT(cause.InvalidInput.HResult))
	}
	var out [3]*uint16
	r, _, _ := syscall.SyscallN(o.p.table[3], uintptr(unsafe.Pointer(o.p)), uintptr(unsafe.Pointer(in)),
		uintptr(unsafe.Pointer(&out[0])), uintptr(unsafe.Pointer(&out[1])), uintptr(unsafe.Pointer(&out[2])))
	runtime.KeepAlive(in)
	if HRESULT(r).Failed() {
		return Result{}, HRESULT(r) // the out pointers are null
	}
	domainName, username, password := takeString(out[0]), takeString(out[1]), takeString(out[2])
	result := Result{windows.UTF16ToString(domainName), windows.UTF16ToString(username), newPassword(password)}
	if out[0] == nil || out[1] == nil || out[2] == nil {
		result.Password.Wipe()
		return Result{}, errors.New("the class returned success and a null pointer: its proxy/stub or its server is defective")
	}
	return result, nil
}

// takeString copies a NUL-terminated string, wipes it and frees it.
func takeString(p *uint16) []uint16 {
	if p == nil {
		return nil
	}
	n := 0
	for *(*uint16)(unsafe.Add(unsafe.Pointer(p), 2*n)) != 0 {
		n++
	}
	theirs := unsafe.Slice(p, n)
	own := append([]uint16(nil), theirs...)
	clear(theirs)
	windows.CoTaskMemFree(unsafe.Pointer(p))
	return own
}
