package directory

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	ber "github.com/go-asn1-ber/asn1-ber"
)

// nested returns a message of nested elements.
func nested(depth int) []byte {
	var b []byte
	for i := depth - 1; i >= 0; i-- {
		b = binary.BigEndian.AppendUint32(append(b, 0x30, 0x84), uint32(6*i))
	}
	return b
}

// decode reads one message and decodes it, as go-ldap does.
func decode(in []byte) (*ber.Packet, error) {
	message, err := newMessageReader(bytes.NewReader(in)).next()
	if err != nil {
		return nil, err
	}
	p, err := ber.DecodePacketErr(message)
	if err != nil {
		return nil, errors.Join(errNotLDAP, err)
	}
	return p, nil
}

func TestOnlyCompleteMessagesWithinTheLimitsAreDecoded(t *testing.T) {
	for name, c := range map[string]struct {
		in   []byte
		want error
	}{
		"nothing":              {nil, io.EOF},
		"one byte":             {[]byte{0x30}, errTruncated},
		"length truncated":     {[]byte{0x30, 0x84, 0, 0}, errTruncated},
		"content truncated":    {[]byte{0x30, 10, 2, 1, 1}, errTruncated},
		"another protocol":     {[]byte("HTTP/1.1 400 Bad Request\r\n"), errNotLDAP},
		"2 GiB announced":      {[]byte{0x30, 0x84, 0x7f, 0xff, 0xff, 0xff, 2, 1, 1}, errTooLarge},
		"just too large":       {append([]byte{0x30, 0x84, 0, 0x10, 0, 1}, make([]byte, 1<<20+1)...), errTooLarge},
		"64 bits of length":    {[]byte{0x30, 0x88, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, errNotLDAP},
		"indefinite length":    {[]byte{0x30, 0x80, 2, 1, 1, 0, 0}, errNotLDAP},
		"indefinite inside":    {[]byte{0x30, 4, 0x30, 0x80, 0, 0}, errNotLDAP},
		"child beyond message": {[]byte{0x30, 3, 2, 9, 1}, errNotLDAP},
		"child beyond parent":  {[]byte{0x30, 7, 0x30, 3, 2, 3, 1, 2, 3}, errNotLDAP},
		"24 levels":            {nested(24), errNotLDAP},
		"100,000 levels":       {nested(100_000), errNotLDAP},
		"tag of many bytes":    {[]byte{0x30, 4, 0x3f, 0x81, 1, 0}, errNotLDAP},
		"a message":            {[]byte{0x30, 3, 2, 1, 1}, nil},
		"23 levels":            {nested(23), nil},
	} {
		if _, err := decode(c.in); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if c.want != nil {
			continue
		}
		if got, err := newMessageReader(bytes.NewReader(c.in)).next(); err != nil || !bytes.Equal(got, c.in) {
			t.Errorf("%s: got %d bytes of %d, %v", name, len(got), len(c.in), err)
		}
	}
}

func TestTheResponseToOneRequestIsLimited(t *testing.T) {
	one := append([]byte{0x30, 0x84, 0, 0x10, 0, 0, 0x04, 0x84, 0, 0x0f, 0xff, 0xfa}, make([]byte, 1<<20-6)...)
	m := newMessageReader(&endless{one: one})
	for i := range 5 {
		_, err := m.next()
		if i < 3 && err != nil {
			t.Fatalf("message %d: %v", i, err)
		}
		if i == 4 && !errors.Is(err, errTooLarge) {
			t.Errorf("5 MiB were read: %v", err)
		}
	}
}

type endless struct {
	one []byte
	at  int
}

func (e *endless) Read(p []byte) (int, error) {
	n := copy(p, e.one[e.at:])
	e.at = (e.at + n) % len(e.one)
	return n, nil
}

// asn1-ber decodes each message that next returns, and must not panic.
func FuzzMessages(f *testing.F) {
	f.Add([]byte{0x30, 3, 2, 1, 1})
	f.Add(nested(10))
	f.Fuzz(func(t *testing.T, in []byte) {
		message, err := newMessageReader(bytes.NewReader(in)).next()
		if err != nil {
			return
		}
		if len(message) > len(in) {
			t.Fatalf("%d bytes from %d", len(message), len(in))
		}
		_, _ = ber.ReadPacket(bytes.NewReader(message))
	})
}
