package com

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/windows"
)

// pin keeps the module mapped for as long as the process lives, whatever FreeLibrary is called. Every export calls it,
// because any of them may be a host's first.
func pin() error {
	_, err := module(windows.GET_MODULE_HANDLE_EX_FLAG_PIN)
	return err
}

// ModulePath returns the path of the module, DLL or program, that this code is in.
func ModulePath() (string, error) {
	m, err := module(windows.GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT)
	if err != nil {
		return "", fmt.Errorf("find this module: %w", err)
	}
	path := make([]uint16, windows.MAX_LONG_PATH)
	n, err := windows.GetModuleFileName(m, &path[0], uint32(len(path)))
	if err != nil {
		return "", fmt.Errorf("find this module's path: %w", err)
	}
	return windows.UTF16ToString(path[:n]), nil
}

// module finds the module by an address in it: a package-level variable is in its data section.
func module(flag uint32) (m windows.Handle, err error) {
	const fromAddress = windows.GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS
	err = windows.GetModuleHandleEx(flag|fromAddress, (*uint16)(unsafe.Pointer(&factoryTable)), &m)
	return m, err
}
