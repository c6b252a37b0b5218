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

// clsctxLocalServer selects a server in another process, as ccg.exe does (CLSCTX, wtypesbase.h).
const clsctxLocalServer = 4

// Object is an object of the class in another process. Any goroutine can use it.
type Object struct {
	p *interfacePointer
}

// interfacePointer is the target of an interface pointer: it begins with the address of a table of functions.
type interfacePointer struct {
	table *[4]uintptr // IUnknown's three and GetPasswordCredentials
}

// enterMTA keeps the multithreaded apartment alive until the process exits. Every thread that has not joined another
// apartment is then in it, so goroutines can move between threads.
var enterMTA = sync.OnceValue(func() error {
	var cookie uintptr
	if r, _, _ := procCoIncrementMTAUsage.Call(uintptr(unsafe.Pointer(&cookie))); HRESULT(r).Failed() {
		return fmt.Errorf("start COM: %w", HRESULT(r))
	}
	return nil
})

// Activate creates an object of the class in another process. The caller must release it. errors.As finds the HRESULT
// of a failure.
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

// Release releases the object. Do not use it afterwards.
func (o *Object) Release() {
	_, _, _ = syscall.SyscallN(o.p.table[2], uintptr(unsafe.Pointer(o.p)))
	o.p = nil
}

// GetPasswordCredentials calls the method with this plugin input. If the call fails, the error is its HRESULT.
func (o *Object) GetPasswordCredentials(input string) (Result, error) {
	in, err := windows.UTF16PtrFromString(input)
	if err != nil {
		// COM would truncate the input at the NUL, which results in another input.
		return Result{}, fmt.Errorf("plugin input %q contains a NUL: %w", input, HRESULT(cause.InvalidInput.HResult))
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
		return Result{}, errors.New("the class returned success and a null pointer: its proxy/stub or its server has " +
			"a bug")
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
	original := unsafe.Slice(p, n)
	units := append([]uint16(nil), original...)
	clear(original)
	windows.CoTaskMemFree(unsafe.Pointer(p))
	return units
}
