package directory

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"

	ber "github.com/go-asn1-ber/asn1-ber"
)

// What a server may send. The largest answer that is asked for is a gMSA with its service principal names, some 100 KiB.
const (
	maxMessage = 1 << 20 // of one LDAP message, one sealed buffer, one Kerberos answer, in bytes
	maxAnswer  = 4 << 20 // of all messages that answer one question
	maxDepth   = 24      // of elements within elements in one message: go-asn1-ber recurses, and a stack overflow ends the program
)

var (
	errTooLarge = errors.New("the answer is larger than any that was asked for")
	errCutOff   = errors.New("the answer is cut off")
	errNoBER    = errors.New("the answer is not LDAP")
)

// messages reads whole LDAP messages, checked so far that go-asn1-ber can decode them without running out of memory or
// stack. It bounds what one question can make it read: go-ldap does not.
type messages struct {
	r      *bufio.Reader
	budget atomic.Int64
}

func newMessages(r io.Reader) *messages {
	m := &messages{r: bufio.NewReader(r)}
	m.budget.Store(maxAnswer)
	return m
}

func (m *messages) next() ([]byte, error) {
	head, err := m.r.Peek(2)
	if err != nil {
		if len(head) > 0 && errors.Is(err, io.EOF) {
			return nil, errCutOff
		}
		return nil, err
	}
	if head[0] != 0x30 { // RFC 4511 4.1.1: a message is a SEQUENCE
		return nil, errNoBER
	}
	length, headLength := int64(head[1]), int64(2)
	if n := int64(head[1] & 0x7f); head[1] >= 0x80 {
		if n < 1 || n > 4 { // RFC 4511 5.1: the indefinite form is not used
			return nil, errNoBER
		}
		if head, err = m.r.Peek(int(2 + n)); err != nil {
			return nil, cutOff(err)
		}
		length, headLength = 0, 2+n
		for _, b := range head[2:] {
			length = length<<8 | int64(b)
		}
	}
	if length > maxMessage || m.budget.Add(-length-headLength) < 0 {
		return nil, errTooLarge
	}
	// Memory follows what arrives, not what is announced.
	message, err := io.ReadAll(io.LimitReader(m.r, headLength+length))
	if err != nil {
		return nil, cutOff(err)
	}
	if int64(len(message)) < headLength+length {
		return nil, errCutOff
	}
	if !wellFormed(message, maxDepth) {
		return nil, errNoBER
	}
	return message, nil
}

func cutOff(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errCutOff
	}
	return err
}

// wellFormed tells whether b is a sequence of elements of definite length that fill it exactly, down to the depth.
func wellFormed(b []byte, depth int) bool {
	if depth == 0 {
		return false
	}
	for len(b) > 0 {
		if len(b) < 2 || b[0]&0x1f == 0x1f { // LDAP has no tag above 30
			return false
		}
		length, rest := int(b[1]), b[2:]
		if n := int(b[1] & 0x7f); b[1] >= 0x80 {
			if n < 1 || n > 4 || n > len(rest) {
				return false
			}
			length = 0
			for _, x := range rest[:n] {
				length = length<<8 | int(x)
			}
			rest = rest[n:]
		}
		if length < 0 || length > len(rest) {
			return false
		}
		if b[0]&0x20 != 0 && !wellFormed(rest[:length], depth-1) {
			return false
		}
		b = rest[length:]
	}
	return true
}

// ldapConn is a net.Conn for go-ldap that lets only whole, bounded messages through, and remembers what went wrong with
// the connection: go-ldap's own errors tell it as text only.
type ldapConn struct {
	net.Conn
	in     *messages
	unread []byte
	failed atomic.Pointer[error]
}

func newLDAPConn(c net.Conn) *ldapConn { return &ldapConn{Conn: c, in: newMessages(c)} }

func (c *ldapConn) Read(p []byte) (int, error) {
	if len(c.unread) == 0 {
		message, err := c.in.next()
		if err != nil {
			c.failed.CompareAndSwap(nil, &err)
			return 0, err
		}
		c.unread = message
	}
	n := copy(p, c.unread)
	c.unread = c.unread[n:]
	return n, nil
}

func (c *ldapConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if err != nil {
		c.failed.CompareAndSwap(nil, &err)
	}
	return n, err
}

// begin gives the next question its time and its bytes. The returned function ends it: between questions nothing may
// run out, because go-ldap reads all the time.
func (c *ldapConn) begin(ctx context.Context, timeout time.Duration) (end func()) {
	c.in.budget.Store(maxAnswer)
	return limit(ctx, c.Conn, timeout)
}

// limit gives an exchange on a connection a deadline and lets ctx end it early.
func limit(ctx context.Context, conn net.Conn, timeout time.Duration) (end func()) {
	deadline := time.Now().Add(timeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	_ = conn.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	return func() {
		if stop() {
			_ = conn.SetDeadline(time.Time{})
		}
	}
}

// roundTrip sends one LDAP operation and returns its one answer. It is for what comes before go-ldap may have the
// connection: StartTLS and the SASL bind change what is below LDAP, and go-ldap, which reads ahead at all times, could
// then be made to take what came in plain text for what was protected.
func roundTrip(conn net.Conn, in *messages, id int64, operation *ber.Packet) (*ber.Packet, error) {
	request := ber.Encode(ber.ClassUniversal, ber.TypeConstructed, ber.TagSequence, nil, "")
	request.AppendChild(ber.NewInteger(ber.ClassUniversal, ber.TypePrimitive, ber.TagInteger, id, ""))
	request.AppendChild(operation)
	if _, err := conn.Write(request.Bytes()); err != nil {
		return nil, err
	}
	message, err := in.next()
	if err != nil {
		return nil, err
	}
	if in.r.Buffered() > 0 {
		return nil, fmt.Errorf("the server sent more than the answer before the connection was protected")
	}
	answer, err := ber.ReadPacket(bytes.NewReader(message))
	if err != nil || len(answer.Children) < 2 || len(answer.Children[1].Children) < 3 {
		return nil, errNoBER
	}
	if got, ok := answer.Children[0].Value.(int64); !ok || got != id {
		return nil, errNoBER
	}
	return answer, nil
}
