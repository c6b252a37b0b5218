package credential

import (
	"errors"
	"fmt"
	"strings"
)

// Reference names the Secret of one impersonation account. A Reference that ParseReference or NewReference returned is
// safe as path elements and in a URL.
type Reference struct {
	Namespace string
	Secret    string
}

// InputForm is the accepted form of a plugin input, for messages.
const InputForm = "<namespace>:<secret>, for example gmsa-system:web-creds"

// MaxInputLength is the length in bytes of the longest plugin input that can be valid: a namespace of 63 characters,
// a colon, and a Secret's name of 253.
const MaxInputLength = 63 + 1 + 253

// ParseReference reads the PluginInput of a credential spec. Its error says which part is wrong and shows InputForm.
func ParseReference(input string) (Reference, error) {
	if len(input) > MaxInputLength {
		return Reference{}, fmt.Errorf("plugin input of %d bytes is longer than any valid one (%d); the form is %s", len(input), MaxInputLength, InputForm)
	}
	namespace, secret, ok := strings.Cut(input, ":")
	if !ok {
		return Reference{}, fmt.Errorf("plugin input %q has no colon; the form is %s", input, InputForm)
	}
	ref, err := NewReference(namespace, secret)
	if err != nil {
		return Reference{}, fmt.Errorf("plugin input %q: %w; the form is %s", input, err, InputForm)
	}
	return ref, nil
}

// NewReference checks both names as the API server does.
func NewReference(namespace, secret string) (Reference, error) {
	if err := checkLabel(namespace); err != nil {
		return Reference{}, fmt.Errorf("namespace: %w", err)
	}
	if err := checkSubdomain(secret); err != nil {
		return Reference{}, fmt.Errorf("secret: %w", err)
	}
	return Reference{Namespace: namespace, Secret: secret}, nil
}

// String returns the reference in the form of a plugin input.
func (r Reference) String() string { return r.Namespace + ":" + r.Secret }

// CertificateName is the DNS name that the server and the client certificate of this account's provider carry. It binds
// a certificate to one account even where several accounts share a CA. It cannot be mistaken: a namespace has no dot.
func (r Reference) CertificateName() string {
	return r.Secret + "." + r.Namespace + ".gmsa-account-provider"
}

// checkLabel checks an RFC 1123 label, the form of a namespace's name.
func checkLabel(s string) error {
	if s == "" {
		return errors.New("the name is empty")
	}
	if len(s) > 63 {
		return fmt.Errorf("the name has %d characters, 63 at most", len(s))
	}
	return checkLabelCharacters(s)
}

// checkSubdomain checks an RFC 1123 subdomain, the form of a Secret's name. Kubernetes bounds the whole, not each label.
func checkSubdomain(s string) error {
	if s == "" {
		return errors.New("the name is empty")
	}
	if len(s) > 253 {
		return fmt.Errorf("the name has %d characters, 253 at most", len(s))
	}
	for label := range strings.SplitSeq(s, ".") {
		if err := checkLabelCharacters(label); err != nil {
			return err
		}
	}
	return nil
}

func checkLabelCharacters(s string) error {
	if s == "" {
		return errors.New("a part between dots is empty")
	}
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
		case c == '-' && i > 0 && i < len(s)-1:
		case c == '-':
			return fmt.Errorf("%q begins or ends with a hyphen", s)
		default:
			return fmt.Errorf("%q holds something other than lower-case letters, digits and hyphens", s)
		}
	}
	return nil
}
