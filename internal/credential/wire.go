package credential

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
)

// The wire form is a JSON object. The password in it is base64 of UTF-8, so that encoding/json decodes it into bytes,
// which can be wiped, and not into a string.
type wire struct {
	DomainName string `json:"domainName"`
	Username   string `json:"username"`
	Password   []byte `json:"password"`
}

// MaxWireLength is the maximum length of the wire form in bytes: three values of MaxValueLength, each six times as long
// if every character is escaped, and the object around them.
const MaxWireLength = 3*6*MaxValueLength + 64

// Encode returns the wire form. The caller wipes it.
func Encode(c Credential) ([]byte, error) {
	// Not json.Marshal, because it leaves a copy of its output in a pooled buffer.
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

// DecodeCredential decodes the wire form and checks it as strictly as FromSecret, because the reader does not trust the
// writer. Its errors never quote the body.
func DecodeCredential(body []byte) (Credential, error) {
	if len(body) > MaxWireLength {
		return Credential{}, fmt.Errorf("response has %d bytes, the maximum is %d", len(body), MaxWireLength)
	}
	var w wire
	// Not a json.Decoder, which would copy the body. It ignores fields that a later version adds.
	if err := json.Unmarshal(body, &w); err != nil {
		clear(w.Password)
		return Credential{}, errors.New("response is not the JSON of credentials")
	}
	c := Credential{DomainName: w.DomainName, Username: w.Username, Password: NewPassword(w.Password)}
	if err := c.check(); err != nil {
		c.Password.Wipe()
		return Credential{}, fmt.Errorf("response: %w", err)
	}
	return c, nil
}
