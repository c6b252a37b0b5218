package credential

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
)

// The wire form is a JSON object whose password is base64 of UTF-8: encoding/json then never makes a Go string of it,
// and what holds it can be wiped.
type wire struct {
	DomainName string `json:"domainName"`
	Username   string `json:"username"`
	Password   []byte `json:"password"`
}

// MaxWireLength is the length in bytes of the longest answer that a valid credential has: three values of at most
// MaxValueLength, each at most six times as long when escaped, and the object around them.
const MaxWireLength = 3*6*MaxValueLength + 64

// Encode returns the wire form. The caller wipes it.
func Encode(c Credential) ([]byte, error) {
	// Put together by hand, because json.Marshal leaves what it wrote in a buffer that it keeps for others.
	domain, err := json.Marshal(c.DomainName)
	if err != nil {
		return nil, err
	}
	user, err := json.Marshal(c.Username)
	if err != nil {
		return nil, err
	}
	password := c.Password.Reveal()
	b := make([]byte, 0, len(domain)+len(user)+base64.StdEncoding.EncodedLen(len(password))+64)
	b = append(append(b, `{"domainName":`...), domain...)
	b = append(append(b, `,"username":`...), user...)
	b = base64.StdEncoding.AppendEncode(append(b, `,"password":"`...), password)
	return append(b, `"}`...), nil
}

// DecodeCredential reads the wire form and checks it as strictly as the Secret was checked: the reader does not trust the
// writer. Its errors never quote the body.
func DecodeCredential(body []byte) (Credential, error) {
	if len(body) > MaxWireLength {
		return Credential{}, fmt.Errorf("answer of %d bytes is longer than a credential can be", len(body))
	}
	var w wire
	// Not a json.Decoder, which would copy the body. Fields that a later version adds are passed over.
	if err := json.Unmarshal(body, &w); err != nil {
		clear(w.Password)
		return Credential{}, errors.New("answer is not the JSON of a credential")
	}
	c := Credential{DomainName: w.DomainName, Username: w.Username, Password: NewPassword(w.Password)}
	if err := c.check(); err != nil {
		c.Password.Wipe()
		return Credential{}, fmt.Errorf("answer: %w", err)
	}
	return c, nil
}
