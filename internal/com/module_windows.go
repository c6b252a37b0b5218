package com

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/windows"
)

// pin keeps the module mapped until the process exits, despite any call of FreeLibrary. Every export calls it, because
// any of them can be the first.
func pin() error {
	_, err := module(windows.GET_MODULE_HANDLE_EX_FLAG_PIN)
	return err
}

// ModulePath returns the path of the DLL or program that contains this code.
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

// module finds the module by the address of a package-level variable, which is in its data section.
func module(flag uint32) (m windows.Handle, err error) {
	const fromAddress = windows.GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS
	err = windows.GetModuleHandleEx(flag|fromAddress, (*uint16)(unsafe.Pointer(&factoryTable)), &m)
	return m, err
}
