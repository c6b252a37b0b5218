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

// MaxValueLength is the maximum length of a value, in bytes of UTF-8.
const MaxValueLength = 1024

// FromSecret converts the data of a Secret. It removes one newline at the end of a value, because echo adds one, and
// returns a warning for it. Errors specify the key and the correct form. Neither ever quotes a value. The password is
// copied, so the caller can wipe data.
func FromSecret(data map[string][]byte) (Credential, []string, error) {
	var warnings []string
	value := func(key string) []byte {
		v := data[key]
		trimmed, hadNewline := bytes.CutSuffix(v, []byte("\n"))
		if hadNewline {
			trimmed = bytes.TrimSuffix(trimmed, []byte("\r"))
			warnings = append(warnings, fmt.Sprintf("key %q ends with a newline, which was ignored; write the value "+
				"with printf or kubectl --from-literal, not with echo", key))
		}
		return trimmed
	}
	for _, key := range []string{KeyDomainName, KeyUsername, KeyPassword} {
		if _, ok := data[key]; !ok {
			return Credential{}, nil, fmt.Errorf("key %q is missing; the Secret needs %s, %s and %s",
				key, KeyDomainName, KeyUsername, KeyPassword)
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

// check defines valid credentials. With DOMAIN\user or user@domain, ccg.exe fails later and without a clear error, so
// these forms are rejected here.
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

// checkText checks what applies to all values. The error never quotes the value.
func checkText(v []byte) error {
	if len(v) == 0 {
		return errors.New("is empty")
	}
	if len(v) > MaxValueLength {
		return fmt.Errorf("has %d bytes, the maximum is %d", len(v), MaxValueLength)
	}
	if !utf8.Valid(v) {
		return errors.New("is not UTF-8; save the file as UTF-8, then create the Secret from it")
	}
	for rest := v; len(rest) > 0; {
		r, size := utf8.DecodeRune(rest)
		// C0, DEL and C1. COM would truncate the string at a NUL. A newline is a mistake.
		if unicode.IsControl(r) {
			return fmt.Errorf("contains the control character U+%04X", r)
		}
		rest = rest[size:]
	}
	return nil
}

// The errors of checkDomainName and checkUsername never quote the value: if a user swaps two keys, it is the password.
func checkDomainName(v string) error {
	switch {
	case strings.ContainsAny(v, `\/@: `):
		return errors.New("is not a DNS name; write only the domain's DNS name, such as corp.example.com")
	case strings.HasSuffix(v, "."):
		return errors.New("ends with a dot; remove the dot")
	case !strings.Contains(v, "."):
		return errors.New("looks like a NetBIOS name; write the domain's DNS name, such as corp.example.com")
	case len(v) > 253:
		return fmt.Errorf("has %d characters, the maximum of a DNS name is 253", len(v))
	}
	for label := range strings.SplitSeq(v, ".") {
		if label == "" || len(label) > 63 || strings.HasPrefix(label, "-") || strings.HasSuffix(label, "-") {
			return errors.New("is not a DNS name: each part has 1 to 63 characters and does not start or end with a " +
				"hyphen")
		}
		for _, r := range label {
			// Host names cannot contain an underscore, but names of Active Directory domains can.
			if !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '-' || r == '_') {
				return errors.New("is not a DNS name: it contains characters other than letters, digits, hyphens and " +
					"dots")
			}
		}
	}
	return nil
}

func checkUsername(v string) error {
	switch {
	case strings.Contains(v, `\`):
		return errors.New(`starts with a domain and a backslash; write the sAMAccountName, without DOMAIN\`)
	case strings.Contains(v, "@"):
		return errors.New("is a user principal name; write the sAMAccountName, usually the part before the @")
	case strings.TrimSpace(v) != v:
		return errors.New("starts or ends with a space")
	case strings.ContainsAny(v, `"/[]:;|=,+*?<>`):
		// [MS-SAMR] 3.1.1.6: a sAMAccountName cannot contain these.
		return errors.New(`contains one of "/[]:;|=,+*?<>, which a sAMAccountName cannot contain`)
	}
	return nil
}
