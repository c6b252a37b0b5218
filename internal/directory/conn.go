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

// Limits for the data that a server sends. The largest expected response is a gMSA with its service principal names:
// about 100 KiB.
const (
	maxMessage  = 1 << 20 // bytes of one LDAP message, one sealed buffer or one Kerberos response
	maxResponse = 4 << 20 // bytes of all messages that respond to one request
	maxDepth    = 23      // levels of nested elements in one LDAP message
)

// asn1-ber decodes recursively, and a stack overflow would end the program. Its defaults allow 1000 levels and 2 GiB.
// These limits also apply to values that go-ldap decodes separately, such as those of controls.
func init() {
	ber.MaxNestingDepth = maxDepth
	ber.MaxPacketLengthBytes = maxMessage
}

var (
	errTooLarge  = errors.New("the response is too large")
	errTruncated = errors.New("the response is truncated")
	errNotLDAP   = errors.New("the response is not LDAP")
)

// messageReader reads complete LDAP messages. It limits the bytes of one message and of one response; go-ldap limits
// neither.
type messageReader struct {
	r      *bufio.Reader
	budget atomic.Int64
}

func newMessageReader(r io.Reader) *messageReader {
	m := &messageReader{r: bufio.NewReader(r)}
	m.budget.Store(maxResponse)
	return m
}

func (m *messageReader) next() ([]byte, error) {
	head, err := m.r.Peek(2)
	if err != nil {
		if len(head) > 0 && errors.Is(err, io.EOF) {
			return nil, errTruncated
		}
		return nil, err
	}
	if head[0] != 0x30 { // RFC 4511 4.1.1: a message is a SEQUENCE
		return nil, errNotLDAP
	}
	if head[1] > 0x80 && head[1] <= 0x84 {
		if head, err = m.r.Peek(2 + int(head[1]&0x7f)); err != nil {
			return nil, truncated(err)
		}
	}
	length, n := definiteLength(head[1:])
	if n == 0 {
		return nil, errNotLDAP
	}
	size := 1 + int64(n) + length
	if length > maxMessage || m.budget.Add(-size) < 0 {
		return nil, errTooLarge
	}
	// ReadAll allocates memory for the bytes that arrive, not for the length that the server announces.
	message, err := io.ReadAll(io.LimitReader(m.r, size))
	if err != nil {
		return nil, truncated(err)
	}
	if int64(len(message)) < size {
		return nil, errTruncated
	}
	if !usesLDAPEncoding(message) {
		return nil, errNotLDAP
	}
	return message, nil
}

func truncated(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errTruncated
	}
	return err
}

// definiteLength decodes the length octets at the start of b. n is their number, or 0 if they are incomplete, in the
// indefinite form, or longer than 32 bits.
func definiteLength(b []byte) (length int64, n int) {
	if len(b) == 0 {
		return 0, 0
	}
	if b[0] < 0x80 {
		return int64(b[0]), 1
	}
	n = int(b[0]&0x7f) + 1
	if n < 2 || n > 5 || n > len(b) {
		return 0, 0
	}
	for _, x := range b[1:n] {
		length = length<<8 | int64(x)
	}
	return length, n
}

// usesLDAPEncoding reports whether each element in b has a one-byte tag and a definite length within b. LDAP uses no
// other encoding (RFC 4511 5.1), but asn1-ber accepts others. asn1-ber itself checks the depth, and each length against
// that of the element around it.
func usesLDAPEncoding(b []byte) bool {
	for len(b) > 0 {
		tag := b[0]
		length, n := definiteLength(b[1:])
		b = b[1:]
		if tag&0x1f == 0x1f || n == 0 || length > int64(len(b)-n) {
			return false
		}
		b = b[n:]
		if tag&0x20 == 0 { // primitive; the content of a constructed element is elements
			b = b[length:]
		}
	}
	return true
}

// ldapConn is a net.Conn for go-ldap that passes on only complete messages within the limits. It keeps the first error
// of the connection, because go-ldap returns it only as text.
type ldapConn struct {
	net.Conn
	in     *messageReader
	unread []byte
	failed atomic.Pointer[error]
}

func newLDAPConn(c net.Conn) *ldapConn { return &ldapConn{Conn: c, in: newMessageReader(c)} }

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

// begin sets the time limit and the byte limit of the next request. The returned function removes the time limit:
// go-ldap reads all the time, and a session can be idle between two requests.
func (c *ldapConn) begin(ctx context.Context, timeout time.Duration) (end func()) {
	c.in.budget.Store(maxResponse)
	return limit(ctx, c.Conn, timeout)
}

// limit sets a deadline on a connection and interrupts the exchange when ctx is done.
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

// roundTrip sends one LDAP operation and returns its response. StartTLS and the SASL bind use it instead of go-ldap.
// They change the layer below LDAP, and go-ldap reads ahead: an attacker could make it accept plain text as protected
// data.
func roundTrip(conn net.Conn, in *messageReader, id int64, operation *ber.Packet) (*ber.Packet, error) {
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
		return nil, fmt.Errorf("the server sent additional data before the connection was protected")
	}
	response, err := ber.ReadPacket(bytes.NewReader(message))
	if err != nil || len(response.Children) < 2 || len(response.Children[1].Children) < 3 {
		return nil, errNotLDAP
	}
	if got, ok := response.Children[0].Value.(int64); !ok || got != id {
		return nil, errNotLDAP
	}
	return response, nil
}
