// Package credential is the value that travels from the Secret to ccg.exe: the domain, user name and password of an
// impersonation account, the reference that names its Secret, its form on the wire, and the codes of what can go
// wrong on the way. It knows nothing of files, networks or Windows.
package credential

import (
	"fmt"
	"log/slog"
)

// Credential is what ICcgDomainAuthCredentials::GetPasswordCredentials hands to ccg.exe.
type Credential struct {
	DomainName string // DNS name of the Active Directory domain, such as corp.example.com
	Username   string // bare sAMAccountName
	Password   Password
}

// Password holds the UTF-8 of a password and shows it to nobody who does not ask with Reveal: formatting with any verb,
// encoding as JSON or text, and logging all give a fixed word. The zero value is the empty password.
type Password struct {
	// A function, because fmt does not call the methods of a value in somebody's unexported field: it prints the field,
	// and follows even a pointer when the verb does not fit. Of a function it can print no more than the address.
	utf8 func() []byte
}

const redacted = "[redacted]"

// NewPassword takes over the bytes: the caller must not use them again.
func NewPassword(utf8 []byte) Password { return Password{utf8: func() []byte { return utf8 }} }

// Reveal returns the password's UTF-8 itself, not a copy: Wipe clears what it returned.
func (p Password) Reveal() []byte {
	if p.utf8 == nil {
		return nil
	}
	return p.utf8()
}

// Wipe overwrites the password with zeros. Copies that the Go runtime made by moving a stack or growing a slice are out
// of its reach.
func (p Password) Wipe() { clear(p.Reveal()) }

func (p Password) String() string               { return redacted }
func (p Password) GoString() string             { return redacted }
func (p Password) Format(f fmt.State, _ rune)   { _, _ = f.Write([]byte(redacted)) }
func (p Password) LogValue() slog.Value         { return slog.StringValue(redacted) }
func (p Password) MarshalText() ([]byte, error) { return []byte(redacted), nil }
