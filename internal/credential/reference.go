package credential

import (
	"errors"
	"fmt"
	"strings"
)

// Reference identifies the Secret of one impersonation account. The fields of a Reference that ParseReference or
// NewReference returned are safe as path elements and in a URL.
type Reference struct {
	Namespace string
	Secret    string
}

// PluginClass is the plugin's COM class, PluginGUID in a credential spec. It never changes: existing
// GMSACredentialSpecs contain it.
const PluginClass = "{E4781092-F116-4B79-B55E-28EB6A224E26}"

// secretSuffix is the end of the name of a release's Secret, unless the chart's value credentials.secretName is set.
const secretSuffix = "-creds"

// SecretName returns the default name of the credentials Secret of a release.
func SecretName(release string) string { return release + secretSuffix }

// ReleaseName returns the name of the release whose default Secret has this name. A name without the usual suffix is
// returned unchanged.
func ReleaseName(secret string) string { return strings.TrimSuffix(secret, secretSuffix) }

// InputForm is the accepted form of a plugin input, for messages.
const InputForm = "<namespace>:<secret>, for example gmsa-system:web-creds"

// MaxInputLength is the length in bytes of the longest plugin input that can be valid: a namespace of 63 characters,
// a colon, and a Secret's name of 253.
const MaxInputLength = 63 + 1 + 253

// ParseReference parses a plugin input. Its error specifies the wrong part and shows InputForm.
func ParseReference(input string) (Reference, error) {
	if len(input) > MaxInputLength {
		return Reference{}, fmt.Errorf("plugin input has %d bytes, the maximum is %d; the form is %s",
			len(input), MaxInputLength, InputForm)
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
	if err := ValidateName(secret); err != nil {
		return Reference{}, fmt.Errorf("secret: %w", err)
	}
	return Reference{Namespace: namespace, Secret: secret}, nil
}

// String returns the reference in the form of a plugin input.
func (r Reference) String() string { return r.Namespace + ":" + r.Secret }

// Release returns namespace and name of the release that this Secret has its default name from, as gmsa-system/web.
func (r Reference) Release() string { return r.Namespace + "/" + ReleaseName(r.Secret) }

// CertificateName is the DNS name in the server and the client certificate of this account's provider. It binds a
// certificate to one account, even if several accounts share a CA. It is unique, because a namespace has no dot.
func (r Reference) CertificateName() string {
	return r.Secret + "." + r.Namespace + ".gmsa-account-provider"
}

// checkLabel checks an RFC 1123 label, the form of the names of namespaces.
func checkLabel(s string) error {
	if s == "" {
		return errors.New("the name is empty")
	}
	if len(s) > 63 {
		return fmt.Errorf("the name has %d characters, the maximum is 63", len(s))
	}
	return checkLabelCharacters(s)
}

// ValidateName checks an RFC 1123 subdomain, the form of the names of Secrets, GMSACredentialSpecs and Helm releases.
// Kubernetes limits the length of the whole name, not of each label.
func ValidateName(s string) error {
	if s == "" {
		return errors.New("the name is empty")
	}
	if len(s) > 253 {
		return fmt.Errorf("the name has %d characters, the maximum is 253", len(s))
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
			return fmt.Errorf("%q starts or ends with a hyphen", s)
		default:
			return fmt.Errorf("%q contains characters other than lower-case letters, digits and hyphens", s)
		}
	}
	return nil
}
