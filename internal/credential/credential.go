// Package credential defines what travels from the Secret to ccg.exe: the credentials of an impersonation account
// (domain, user name, password), the reference to their Secret, their wire form, and the codes of the failures. It does
// not depend on files, networks or Windows.
package credential

import (
	"fmt"
	"log/slog"
)

// Credential is what ICcgDomainAuthCredentials::GetPasswordCredentials hands to ccg.exe.
type Credential struct {
	DomainName string // DNS name of the Active Directory domain, such as corp.example.com
	Username   string // sAMAccountName, without domain
	Password   Password
}

// Password holds the UTF-8 of a password. Only Reveal returns it: formatting with any verb, encoding as JSON or text,
// and logging all print a fixed word. The zero value is the empty password.
type Password struct {
	// A function, because fmt does not call the methods of a value in an unexported field of another struct. It prints
	// the field instead, and follows even a pointer if the verb does not match. Of a function it can print only the
	// address.
	utf8 func() []byte
}

const redacted = "[redacted]"

// NewPassword takes ownership of the bytes: the caller must not use them again.
func NewPassword(utf8 []byte) Password { return Password{utf8: func() []byte { return utf8 }} }

// Reveal returns the password's bytes, not a copy: Wipe clears them.
func (p Password) Reveal() []byte {
	if p.utf8 == nil {
		return nil
	}
	return p.utf8()
}

// Wipe overwrites the password with zeros. It cannot reach copies that the Go runtime created when it moved a stack or
// grew a slice.
func (p Password) Wipe() { clear(p.Reveal()) }

func (p Password) String() string               { return redacted }
func (p Password) GoString() string             { return redacted }
func (p Password) Format(f fmt.State, _ rune)   { _, _ = f.Write([]byte(redacted)) }
func (p Password) LogValue() slog.Value         { return slog.StringValue(redacted) }
func (p Password) MarshalText() ([]byte, error) { return []byte(redacted), nil }
