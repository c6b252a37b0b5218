package com

import (
	"fmt"

	"github.com/ccgrkc/ccgrkc/internal/plugin/cause"
)

// HRESULT is the result of a COM call ([MS-ERREF] 2.1). It implements error.
type HRESULT uint32

// Failed reports whether the severity, the highest bit, is set.
func (hr HRESULT) Failed() bool { return hr>>31 == 1 }

// Cause returns the plugin's cause with this HRESULT, or nil.
func (hr HRESULT) Cause() *cause.Cause { return cause.OfHResult(uint32(hr)) }

func (hr HRESULT) Error() string {
	if c := hr.Cause(); c != nil {
		return fmt.Sprintf("0x%08X (%s)", uint32(hr), c.Name)
	}
	return fmt.Sprintf("0x%08X", uint32(hr))
}
