package directory

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	ber "github.com/go-asn1-ber/asn1-ber"
)

// nested is a message of elements within elements.
func nested(depth int) []byte {
	var b []byte
	for i := depth - 1; i >= 0; i-- {
		b = binary.BigEndian.AppendUint32(append(b, 0x30, 0x84), uint32(6*i))
	}
	return b
}

func TestOnlyWholeBoundedMessagesGetThrough(t *testing.T) {
	for name, c := range map[string]struct {
		in   []byte
		want error
	}{
		"nothing":              {nil, io.EOF},
		"one byte":             {[]byte{0x30}, errCutOff},
		"length cut off":       {[]byte{0x30, 0x84, 0, 0}, errCutOff},
		"content cut off":      {[]byte{0x30, 10, 2, 1, 1}, errCutOff},
		"another protocol":     {[]byte("HTTP/1.1 400 Bad Request\r\n"), errNoBER},
		"2 GiB announced":      {[]byte{0x30, 0x84, 0x7f, 0xff, 0xff, 0xff, 2, 1, 1}, errTooLarge},
		"just too large":       {append([]byte{0x30, 0x84, 0, 0x10, 0, 1}, make([]byte, 1<<20+1)...), errTooLarge},
		"64 bits of length":    {[]byte{0x30, 0x88, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, errNoBER},
		"indefinite length":    {[]byte{0x30, 0x80, 2, 1, 1, 0, 0}, errNoBER},
		"indefinite inside":    {[]byte{0x30, 4, 0x30, 0x80, 0, 0}, errNoBER},
		"child beyond parent":  {[]byte{0x30, 3, 2, 9, 1}, errNoBER},
		"24 levels":            {nested(24), errNoBER},
		"a hundred thousand":   {nested(100_000), errNoBER},
		"tag of several bytes": {[]byte{0x30, 4, 0x3f, 0x81, 1, 0}, errNoBER},
		"a message":            {[]byte{0x30, 3, 2, 1, 1}, nil},
		"23 levels":            {nested(23), nil},
	} {
		got, err := newMessages(bytes.NewReader(c.in)).next()
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if c.want == nil && !bytes.Equal(got, c.in) {
			t.Errorf("%s: got %d bytes of %d", name, len(got), len(c.in))
		}
	}
}

func TestOneQuestionCannotBeAnsweredForEver(t *testing.T) {
	one := append([]byte{0x30, 0x84, 0, 0x10, 0, 0, 0x04, 0x84, 0, 0x0f, 0xff, 0xfa}, make([]byte, 1<<20-6)...)
	m := newMessages(&endless{one: one})
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

// What passes here is decoded by go-asn1-ber, which must not fail on it: it has no bounds of its own.
func FuzzMessages(f *testing.F) {
	f.Add([]byte{0x30, 3, 2, 1, 1})
	f.Add(nested(10))
	f.Fuzz(func(t *testing.T, in []byte) {
		message, err := newMessages(bytes.NewReader(in)).next()
		if err != nil {
			return
		}
		if len(message) > len(in) {
			t.Fatalf("%d bytes came of %d", len(message), len(in))
		}
		_, _ = ber.ReadPacket(bytes.NewReader(message))
	})
}
