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
	return uintptr(answer(input, domainName, username, password))
}

func answer(input *uint16, domainName, username, password *unsafe.Pointer) (hr HRESULT) {
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
	defer strings.freeUnlessGiven()
	d, u, p := strings.add([]byte(c.DomainName)), strings.add([]byte(c.Username)), strings.add(c.Password.Reveal())
	if d == nil || u == nil || p == nil {
		class.Report(cause.OutOfMemory, text, "CoTaskMemAlloc gave nothing")
		return HRESULT(cause.OutOfMemory.HResult)
	}
	*domainName, *username, *password = d, u, p
	strings.given = true
	return sOK
}

// readInput copies the caller's string, which may be of any length, up to one code unit more than a valid one can have:
// enough for package credential to see that it is too long.
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

// taskStrings are strings in memory of CoTaskMemAlloc, which COM's rule for out parameters asks for: the caller frees them
// with CoTaskMemFree.
type taskStrings struct {
	allocated [][]uint16
	given     bool // to the caller, who frees them now
}

// add returns a NUL-terminated copy of UTF-8 text, or nil if there is no memory.
func (s *taskStrings) add(text []byte) unsafe.Pointer {
	n := utf16Length(text)
	address, _, _ := procCoTaskMemAlloc.Call(uintptr(2 * (n + 1)))
	if address == 0 {
		return nil
	}
	p := foreign(address)
	units := unsafe.Slice((*uint16)(p), n+1)
	s.allocated = append(s.allocated, units)
	encodeUTF16(units[:n], text)
	units[n] = 0
	return p
}

func (s *taskStrings) freeUnlessGiven() {
	if s.given {
		return
	}
	for _, units := range s.allocated {
		clear(units)
		windows.CoTaskMemFree(unsafe.Pointer(&units[0]))
	}
}
