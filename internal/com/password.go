package com

import (
	"fmt"
	"log/slog"
)

// Password holds the UTF-16 code units of a password as the class returned them. Only Reveal returns them. The zero
// value is the empty password.
//
// It is not a credential.Password, which holds UTF-8: a conversion would create another copy to wipe, and it would hide
// invalid UTF-16 from a test of the class.
type Password struct {
	// A function, for the reason in credential.Password.
	units func() []uint16
}

const redacted = "[redacted]"

func newPassword(units []uint16) Password { return Password{units: func() []uint16 { return units }} }

// Reveal returns the code units, not a copy: Wipe clears them.
func (p Password) Reveal() []uint16 {
	if p.units == nil {
		return nil
	}
	return p.units()
}

// Wipe overwrites the password with zeros.
func (p Password) Wipe() { clear(p.Reveal()) }

func (p Password) String() string               { return redacted }
func (p Password) GoString() string             { return redacted }
func (p Password) Format(f fmt.State, _ rune)   { _, _ = f.Write([]byte(redacted)) }
func (p Password) LogValue() slog.Value         { return slog.StringValue(redacted) }
func (p Password) MarshalText() ([]byte, error) { return []byte(redacted), nil }
