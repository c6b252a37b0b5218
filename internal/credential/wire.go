package credential

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
	b, err := json.Marshal(wire{c.DomainName, c.Username, c.Password.Reveal()})
	if err != nil {
		return nil, errors.New("credential cannot be encoded") // the cause could quote a value
	}
	return b, nil
}

// DecodeCredential reads the wire form and checks it as strictly as the Secret was checked: the reader does not trust the
// writer. Its errors never quote the body.
func DecodeCredential(body []byte) (Credential, error) {
	if len(body) > MaxWireLength {
		return Credential{}, fmt.Errorf("answer of %d bytes is longer than a credential can be", len(body))
	}
	var w wire
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&w); err != nil {
		clear(w.Password)
		return Credential{}, errors.New("answer is not the JSON of a credential")
	}
	if _, err := dec.Token(); err != io.EOF {
		clear(w.Password)
		return Credential{}, errors.New("answer goes on after the credential")
	}
	c := Credential{DomainName: w.DomainName, Username: w.Username, Password: NewPassword(w.Password)}
	if err := c.check(); err != nil {
		c.Password.Wipe()
		return Credential{}, fmt.Errorf("answer: %w", err)
	}
	return c, nil
}
