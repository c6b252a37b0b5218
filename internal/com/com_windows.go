package com

import (
	"unsafe"

	"golang.org/x/sys/windows"
)

var (
	// ClassID is CLSID for Activate.
	ClassID = guid(CLSID)

	iidUnknown      = guid("{00000000-0000-0000-C000-000000000046}")
	iidClassFactory = guid("{00000001-0000-0000-C000-000000000046}")
	iidCredentials  = guid("{6ECDA518-2010-4437-8BC3-46E752B7B172}") // ICcgDomainAuthCredentials, ccgplugins.h
)

var (
	ole32                   = windows.NewLazySystemDLL("ole32.dll")
	procCoTaskMemAlloc      = ole32.NewProc("CoTaskMemAlloc")
	procCoCreateInstance    = ole32.NewProc("CoCreateInstance")
	procCoIncrementMTAUsage = ole32.NewProc("CoIncrementMTAUsage")
	procCoSuspend           = ole32.NewProc("CoSuspendClassObjects")
	procCoResume            = ole32.NewProc("CoResumeClassObjects")
)

const (
	sOK                     HRESULT = 0
	sFalse                  HRESULT = 1
	eNoInterface            HRESULT = 0x80004002
	classENoAggregation     HRESULT = 0x80040110
	classEClassNotAvailable HRESULT = 0x80040111
)

func guid(s string) windows.GUID {
	g, err := windows.GUIDFromString(s)
	if err != nil {
		panic(err) // a constant of this package
	}
	return g
}

// pointer converts an address outside Go's heap. A plain conversion is correct too, but vet reports it.
func pointer(address uintptr) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&address)) }
