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
// what echo leaves in a file. Errors name the key and say what to write; neither ever quotes a password. The password is
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
		return fmt.Errorf("key %q: %w", KeyDomainName, err)
	}
	if err := checkText([]byte(c.Username)); err != nil {
		return fmt.Errorf("key %q %w", KeyUsername, err)
	}
	if err := checkUsername(c.Username); err != nil {
		return fmt.Errorf("key %q: %w", KeyUsername, err)
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

func checkDomainName(v string) error {
	switch {
	case strings.ContainsAny(v, `\/@: `):
		return fmt.Errorf("%q is not a DNS name; write the domain's DNS name alone, such as corp.example.com", v)
	case strings.HasSuffix(v, "."):
		return fmt.Errorf("%q ends with a dot; leave the dot out", v)
	case !strings.Contains(v, "."):
		return fmt.Errorf("%q looks like a NetBIOS name; write the domain's DNS name, such as corp.example.com", v)
	case len(v) > 253:
		return fmt.Errorf("the DNS name has %d characters, 253 at most", len(v))
	}
	for label := range strings.SplitSeq(v, ".") {
		if label == "" || len(label) > 63 || strings.HasPrefix(label, "-") || strings.HasSuffix(label, "-") {
			return fmt.Errorf("%q is not a DNS name: each part has 1 to 63 characters and does not begin or end with a hyphen", v)
		}
		for _, r := range label {
			// The underscore is no host name's, but Active Directory has domains with it.
			if !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '-' || r == '_') {
				return fmt.Errorf("%q is not a DNS name: %q is not allowed in it", v, r)
			}
		}
	}
	return nil
}

func checkUsername(v string) error {
	if _, user, ok := strings.Cut(v, `\`); ok {
		return fmt.Errorf("%q has a domain in front; write the bare account name %q", v, user)
	}
	if user, _, ok := strings.Cut(v, "@"); ok {
		return fmt.Errorf("%q is a user principal name; write the bare account name, probably %q", v, user)
	}
	if strings.TrimSpace(v) != v {
		return fmt.Errorf("%q begins or ends with a space", v)
	}
	// What sAMAccountName never holds: [MS-SAMR] 3.1.1.6.
	if i := strings.IndexAny(v, `"/[]:;|=,+*?<>`); i >= 0 {
		return fmt.Errorf("%q holds %q, which no sAMAccountName does", v, v[i])
	}
	return nil
}
