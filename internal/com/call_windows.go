package com

import (
	"unicode/utf16"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/plugin/cause"
)

// getPasswordCredentials is ICcgDomainAuthCredentials::GetPasswordCredentials.
func getPasswordCredentials(_ *object, input *uint16, domainName, username, password *unsafe.Pointer) uintptr {
	calls.Add(1)
	defer calls.Add(-1)
	return uintptr(respond(input, domainName, username, password))
}

func respond(input *uint16, domainName, username, password *unsafe.Pointer) (hr HRESULT) {
	defer recovered("GetPasswordCredentials", &hr)
	for _, out := range []*unsafe.Pointer{domainName, username, password} {
		if out != nil {
			*out = nil
		}
	}
	if input == nil || domainName == nil || username == nil || password == nil {
		return nullPointer()
	}
	text := readInput(input)
	c, hr := class.Get(text)
	if hr.Failed() {
		return hr
	}
	defer c.Password.Wipe()

	var strings taskStrings
	defer strings.freeUnlessReturned()
	d, u, p := strings.add([]byte(c.DomainName)), strings.add([]byte(c.Username)), strings.add(c.Password.Reveal())
	if d == nil || u == nil || p == nil {
		class.Report(cause.OutOfMemory, text, "CoTaskMemAlloc failed")
		return HRESULT(cause.OutOfMemory.HResult)
	}
	*domainName, *username, *password = d, u, p
	strings.returned = true
	return sOK
}

// readInput copies the caller's string, at most one code unit more than the maximum of a plugin input, so that package
// credential detects one that is too long.
func readInput(input *uint16) string {
	var units []uint16
	for len(units) <= credential.MaxInputLength {
		unit := *(*uint16)(unsafe.Add(unsafe.Pointer(input), 2*len(units)))
		if unit == 0 {
			break
		}
		units = append(units, unit)
	}
	return string(utf16.Decode(units))
}

// taskStrings holds strings that CoTaskMemAlloc allocated, as COM requires for out parameters: the caller frees them
// with CoTaskMemFree.
type taskStrings struct {
	allocated [][]uint16
	returned  bool // to the caller, who frees them
}

// add returns a NUL-terminated UTF-16 copy of UTF-8 text, or nil if there is no memory.
func (s *taskStrings) add(text []byte) unsafe.Pointer {
	n := utf16Length(text)
	address, _, _ := procCoTaskMemAlloc.Call(uintptr(2 * (n + 1)))
	if address == 0 {
		return nil
	}
	p := pointer(address)
	units := unsafe.Slice((*uint16)(p), n+1)
	s.allocated = append(s.allocated, units)
	encodeUTF16(units[:n], text)
	units[n] = 0
	return p
}

func (s *taskStrings) freeUnlessReturned() {
	if s.returned {
		return
	}
	for _, units := range s.allocated {
		clear(units)
		windows.CoTaskMemFree(unsafe.Pointer(&units[0]))
	}
}
