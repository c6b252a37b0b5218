package credential

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The keys of the Secret.
const (
	KeyDomainName = "domainName"
	KeyUsername   = "username"
	KeyPassword   = "password"
)

// MaxValueLength is the length in bytes of UTF-8 that no value may exceed.
const MaxValueLength = 1024

// FromSecret checks the data of a Secret. It returns warnings for what it mended: one line end after a value, which is
// what echo leaves in a file. Errors name the key and say what to write; neither ever quotes a value. The password is
// copied, so the caller may wipe data.
func FromSecret(data map[string][]byte) (Credential, []string, error) {
	var warnings []string
	value := func(key string) []byte {
		v := data[key]
		trimmed, hadNewline := bytes.CutSuffix(v, []byte("\n"))
		if hadNewline {
			trimmed = bytes.TrimSuffix(trimmed, []byte("\r"))
			warnings = append(warnings, fmt.Sprintf("key %q ends with a line end, which was dropped; write the value with printf or kubectl --from-literal, not with echo", key))
		}
		return trimmed
	}
	for _, key := range []string{KeyDomainName, KeyUsername, KeyPassword} {
		if _, ok := data[key]; !ok {
			return Credential{}, nil, fmt.Errorf("key %q is missing; the Secret needs %s, %s and %s", key, KeyDomainName, KeyUsername, KeyPassword)
		}
	}
	c := Credential{
		DomainName: string(value(KeyDomainName)),
		Username:   string(value(KeyUsername)),
		Password:   NewPassword(bytes.Clone(value(KeyPassword))),
	}
	if err := c.check(); err != nil {
		c.Password.Wipe()
		return Credential{}, warnings, err
	}
	return c, warnings, nil
}

// check is the whole definition of a valid credential. What ccg.exe does with DOMAIN\user or user@domain fails later, in
// ways that nobody can read, so it is refused here.
func (c Credential) check() error {
	if err := checkText([]byte(c.DomainName)); err != nil {
		return fmt.Errorf("key %q %w", KeyDomainName, err)
	}
	if err := checkDomainName(c.DomainName); err != nil {
		return fmt.Errorf("key %q %w", KeyDomainName, err)
	}
	if err := checkText([]byte(c.Username)); err != nil {
		return fmt.Errorf("key %q %w", KeyUsername, err)
	}
	if err := checkUsername(c.Username); err != nil {
		return fmt.Errorf("key %q %w", KeyUsername, err)
	}
	if err := checkText(c.Password.Reveal()); err != nil {
		return fmt.Errorf("key %q %w", KeyPassword, err)
	}
	return nil
}

// checkText reports what no value may be. The error never quotes the value.
func checkText(v []byte) error {
	if len(v) == 0 {
		return errors.New("is empty")
	}
	if len(v) > MaxValueLength {
		return fmt.Errorf("has %d bytes, %d at most", len(v), MaxValueLength)
	}
	if !utf8.Valid(v) {
		return errors.New("is not UTF-8; save the file as UTF-8 before making the Secret")
	}
	for rest := v; len(rest) > 0; {
		r, size := utf8.DecodeRune(rest)
		// C0, DEL and C1: a NUL would end the string early on its way through COM, a line end is an accident.
		if unicode.IsControl(r) {
			return fmt.Errorf("holds the control character U+%04X", r)
		}
		rest = rest[size:]
	}
	return nil
}

// The errors of the next two say the shape of what is wrong and never quote it: keys get swapped, and then the value is
// the password.
func checkDomainName(v string) error {
	switch {
	case strings.ContainsAny(v, `\/@: `):
		return errors.New("is not a DNS name; write the domain's DNS name alone, such as corp.example.com")
	case strings.HasSuffix(v, "."):
		return errors.New("ends with a dot; leave the dot out")
	case !strings.Contains(v, "."):
		return errors.New("looks like a NetBIOS name; write the domain's DNS name, such as corp.example.com")
	case len(v) > 253:
		return fmt.Errorf("has %d characters, a DNS name at most 253", len(v))
	}
	for label := range strings.SplitSeq(v, ".") {
		if label == "" || len(label) > 63 || strings.HasPrefix(label, "-") || strings.HasSuffix(label, "-") {
			return errors.New("is not a DNS name: each part has 1 to 63 characters and does not begin or end with a hyphen")
		}
		for _, r := range label {
			// The underscore is no host name's, but Active Directory has domains with it.
			if !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '-' || r == '_') {
				return errors.New("is not a DNS name: it holds something other than letters, digits, hyphens and dots")
			}
		}
	}
	return nil
}

func checkUsername(v string) error {
	switch {
	case strings.Contains(v, `\`):
		return errors.New(`has a domain and a backslash in front; write the bare account name, without DOMAIN\`)
	case strings.Contains(v, "@"):
		return errors.New("is a user principal name; write the bare account name, usually what stands before the @")
	case strings.TrimSpace(v) != v:
		return errors.New("begins or ends with a space")
	case strings.ContainsAny(v, `"/[]:;|=,+*?<>`):
		// What sAMAccountName never holds: [MS-SAMR] 3.1.1.6.
		return errors.New(`holds one of "/[]:;|=,+*?<>, which no sAMAccountName does`)
	}
	return nil
}
