package directory

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
	"unicode/utf16"

	"github.com/jcmturner/gokrb5/v8/iana/errorcode"
	"github.com/jcmturner/gokrb5/v8/iana/etypeID"
	//lint:ignore SA1019 the RC4 key of an account is an MD4 sum (RFC 4757 2)
	"golang.org/x/crypto/md4"

	"github.com/ccgrkc/ccgrkc/internal/credential"
)

// ManagedPassword is the password of a gMSA, from the attribute msDS-ManagedPassword.
type ManagedPassword struct {
	Current   credential.Password // UTF-16 LE: 128 random code units, not necessarily valid UTF-16
	Previous  credential.Password // empty: there is no previous password
	Query     time.Duration       // time until the next query
	Unchanged time.Duration       // minimum remaining lifetime: Query minus the allowed clock skew
}

// Wipe overwrites both passwords with zeros.
func (m *ManagedPassword) Wipe() {
	m.Current.Wipe()
	m.Previous.Wipe()
}

// A domain controller that cannot compute the password returns NTE_NO_KEY ([MS-ERREF] 2.1.1) or an error that contains
// the container of the root keys ([MS-ADTS] 6.1.1.4.14).
const (
	nteNoKey = "8009000D"
	rootKeys = "CN=Master Root Keys"
)

// ManagedPassword reads the current and the previous password of a gMSA. If the account has no permission to read them,
// the domain controller omits the attribute.
func (s *Session) ManagedPassword(ctx context.Context, name string) (_ *ManagedPassword, err error) {
	defer func() { err = interrupted(ctx, err) }()
	e, err := s.gmsa(ctx, name, "msDS-ManagedPassword")
	if err != nil {
		e := err.(*Error)
		r, ok := errors.AsType[*ldapResult](err)
		if ok && (strings.Contains(r.text, nteNoKey) || strings.Contains(r.text, rootKeys)) {
			e.Cause = NoKDSKey
		}
		return nil, e
	}
	subject := "gMSA " + e.GetAttributeValue("sAMAccountName")
	blob := e.GetRawAttributeValue("msDS-ManagedPassword")
	if len(blob) == 0 {
		return nil, NoReadPermission.of(subject, s.server, fmt.Errorf("requested as %s", s.account))
	}
	defer clear(blob)
	m, err := ParseManagedPassword(blob)
	if err != nil {
		return nil, ManagedPasswordDamaged.of(subject, s.server, err)
	}
	return m, nil
}

// ParseManagedPassword decodes an MSDS-MANAGEDPASSWORD_BLOB ([MS-ADTS] 2.2.19). The passwords are copies, so the caller
// can clear the blob.
func ParseManagedPassword(blob []byte) (*ManagedPassword, error) {
	const headerLength = 16
	if len(blob) < headerLength {
		return nil, fmt.Errorf("the blob has %d bytes, fewer than its header", len(blob))
	}
	le := binary.LittleEndian
	if version := le.Uint16(blob); version != 1 {
		return nil, fmt.Errorf("the blob has version %d; only version 1 is supported", version)
	}
	if length := le.Uint32(blob[4:]); int64(length) != int64(len(blob)) {
		return nil, fmt.Errorf("the blob has %d bytes, but its length field is %d", len(blob), length)
	}
	m := &ManagedPassword{}
	for _, field := range []struct {
		name     string
		at       int
		optional bool
		to       *credential.Password
	}{
		{"current password", 8, false, &m.Current},
		{"previous password", 10, true, &m.Previous},
	} {
		offset := int(le.Uint16(blob[field.at:]))
		if offset == 0 && field.optional {
			continue
		}
		if offset < headerLength || offset >= len(blob) {
			m.Wipe()
			return nil, fmt.Errorf("the %s is at %d in a blob of %d bytes", field.name, offset, len(blob))
		}
		end := offset
		for end+1 < len(blob) && (blob[end] != 0 || blob[end+1] != 0) {
			end += 2
		}
		if end+1 >= len(blob) || end == offset {
			m.Wipe()
			return nil, fmt.Errorf("the %s is empty or not terminated", field.name)
		}
		*field.to = credential.NewPassword(bytes.Clone(blob[offset:end]))
	}
	for _, field := range []struct {
		name string
		at   int
		to   *time.Duration
	}{
		{"query interval", 12, &m.Query},
		{"unchanged interval", 14, &m.Unchanged},
	} {
		offset := int(le.Uint16(blob[field.at:]))
		if offset < headerLength || offset+8 > len(blob) {
			m.Wipe()
			return nil, fmt.Errorf("the %s is at %d in a blob of %d bytes", field.name, offset, len(blob))
		}
		units := le.Uint64(blob[offset:]) // of 100 nanoseconds
		if units > math.MaxInt64/100 {
			m.Wipe()
			return nil, fmt.Errorf("the %s is longer than 292 years", field.name)
		}
		*field.to = time.Duration(units) * 100
	}
	return m, nil
}

// managedKey returns the keyFunc of a managed password. AES keys derive from its UTF-8 form, with U+FFFD for each
// unpaired surrogate. The RC4 key derives from the UTF-16 form.
func managedKey(utf16le []byte) keyFunc {
	return func(etype int32, salt, parameters string) ([]byte, error) {
		if etype == etypeID.RC4_HMAC {
			h := md4.New()
			_, _ = h.Write(utf16le)
			return h.Sum(nil), nil
		}
		units := make([]uint16, len(utf16le)/2)
		for i := range units {
			units[i] = binary.LittleEndian.Uint16(utf16le[2*i:])
		}
		runes := utf16.Decode(units)
		clear(units)
		utf8 := []byte(string(runes))
		clear(runes)
		defer clear(utf8)
		return passwordKey(utf8)(etype, salt, parameters)
	}
}

// Ticket describes a ticket-granting ticket. It does not contain the ticket.
type Ticket struct {
	Client         string // web01$@CORP.EXAMPLE.COM
	Service        string // krbtgt/CORP.EXAMPLE.COM
	KDC            string // the domain controller that issued it
	EncryptionType string // of the gMSA's key
	Start, End     time.Time
	Previous       bool // the KDC accepted the previous password, not the current one
}

// TicketAs gets a Kerberos ticket-granting ticket as the gMSA, from the domain controller of the session, and discards
// it. It tries the current password, then the previous one. In the 5 minutes before a change, the blob's current
// password is already the next one. After a change, a domain controller might not know it yet.
func (s *Session) TicketAs(ctx context.Context, gmsa string, m *ManagedPassword) (_ Ticket, err error) {
	defer func() { err = interrupted(ctx, err) }()
	name := gmsa
	if name == "" || name[len(name)-1] != '$' {
		name += "$"
	}
	subject := "gMSA " + sanitize(name)
	k := kdc{config: s.config, host: s.server, ip: s.ip}
	// RC4 is the last choice. It is no risk: the password has 128 random code units.
	etypes := append(append([]int32{}, aes...), etypeID.RC4_HMAC)
	t, err := k.login(ctx, name, etypes, managedKey(m.Current.Reveal()))
	previous := false
	e, ok := errors.AsType[*kdcError](err)
	if ok && e.code == errorcode.KDC_ERR_PREAUTH_FAILED && len(m.Previous.Reveal()) > 0 {
		previous = true
		t, err = k.login(ctx, name, etypes, managedKey(m.Previous.Reveal()))
	}
	if err != nil {
		return Ticket{}, k.explain(subject, true, err)
	}
	start := t.part.StartTime
	if start.IsZero() {
		start = t.part.AuthTime
	}
	return Ticket{
		Client:         t.cname.PrincipalNameString() + "@" + s.config.realm(),
		Service:        t.SName.PrincipalNameString(),
		KDC:            s.server,
		EncryptionType: encryptionTypes[t.etype],
		Start:          start,
		End:            t.part.EndTime,
		Previous:       previous,
	}, nil
}

var encryptionTypes = map[int32]string{
	etypeID.AES256_CTS_HMAC_SHA1_96: "aes256-cts-hmac-sha1-96",
	etypeID.AES128_CTS_HMAC_SHA1_96: "aes128-cts-hmac-sha1-96",
	etypeID.RC4_HMAC:                "rc4-hmac",
}
