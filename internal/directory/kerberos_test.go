package directory

import (
	"bytes"
	"context"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	ber "github.com/go-asn1-ber/asn1-ber"
	"github.com/go-ldap/ldap/v3"
	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	krb "github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"
)

func TestKDCErrorsHaveACause(t *testing.T) {
	k := kdc{host: "dc1"}
	for _, c := range []struct {
		code         int32
		status       uint32
		account, own *Cause
	}{
		{1, 0, AccountExpired, GMSADisabled},
		{6, 0, UnknownAccount, GMSANotFound},
		{7, 0, KDCRefused, KDCRefused},
		{12, 0, LogonRestricted, LogonRestricted},
		{12, 0xC0000070, LogonRestricted, LogonRestricted},
		{14, 0, EncryptionTypeUnsupported, EncryptionTypeUnsupported},
		{18, 0, AccountRevoked, GMSADisabled},
		{18, 0xC0000072, AccountDisabled, GMSADisabled},
		{18, 0xC0000234, AccountLocked, GMSADisabled},
		{18, 0xC0000193, AccountExpired, GMSADisabled},
		{18, 0xC000006F, LogonRestricted, LogonRestricted},
		{23, 0, PasswordExpired, KDCRefused},
		{23, 0xC0000071, PasswordExpired, KDCRefused},
		{23, 0xC0000224, MustChangePassword, KDCRefused},
		{24, 0, WrongPassword, KDCRefused},
		{24, 0xC000006A, WrongPassword, KDCRefused},
		{37, 0, ClockSkew, ClockSkew},
		{37, 0xC0000133, ClockSkew, ClockSkew},
		{60, 0, KDCRefused, KDCRefused},
		{68, 0, WrongDomain, WrongDomain},
		{9999, 0xC0FFEE00, KDCRefused, KDCRefused},
	} {
		for gmsa, want := range map[bool]*Cause{false: c.account, true: c.own} {
			if got := k.explain("account x", gmsa, &kdcError{code: c.code, status: c.status}); got.Cause != want {
				t.Errorf("%d, 0x%08X, gMSA %v: %s; want %s", c.code, c.status, gmsa, got.Cause.Name, want.Name)
			}
		}
	}
}

func TestTheClockDifferenceIsReported(t *testing.T) {
	for by, want := range map[time.Duration]string{10 * time.Minute: "10m0s ahead", -time.Hour: "1h0m0s behind"} {
		err := kdc{host: "dc1"}.explain("account x", false, &kdcError{code: 37, time: time.Now().Add(by)})
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not contain %q", err, want)
		}
	}
}

// Windows sends only the status, Samba sends it in a sequence ([MS-KILE] 2.2.1).
func TestTheNTSTATUSIsFoundInBothForms(t *testing.T) {
	extended := binary.LittleEndian.AppendUint32(nil, 0xC0000234)
	extended = append(extended, 0, 0, 0, 0, 1, 0, 0, 0)
	one := types.PAData{PADataType: 3, PADataValue: extended}
	alone, err := asn1.Marshal(one)
	if err != nil {
		t.Fatal(err)
	}
	sequence, err := asn1.Marshal([]types.PAData{{PADataType: 19, PADataValue: []byte{1}}, one})
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"alone": alone, "in a sequence": sequence} {
		if got := statusOf(data); got != 0xC0000234 {
			t.Errorf("%s: 0x%08X", name, got)
		}
	}
	short, _ := asn1.Marshal(types.PAData{PADataType: 3, PADataValue: extended[:4]})
	for name, data := range map[string][]byte{"nothing": nil, "garbage": {1, 2, 3}, "short": short} {
		if got := statusOf(data); got != 0 {
			t.Errorf("%s: 0x%08X", name, got)
		}
	}
}

// Salt and iteration count from the KDC are not authenticated.
func TestVeryLowAndHighIterationCountsAreRejected(t *testing.T) {
	for p, ok := range map[string]bool{
		"":                 true,
		"\x00\x00\x10\x00": true,
		"\x00\x01\x00\x00": true,
		"\x00\x00\x00\x01": false,
		"\x00\x00\x0f\xff": false,
		"\x00\x00\x00\x00": false,
		"\xff\xff\xff\xff": false,
		"\x00\x10":         false,
	} {
		if _, err := keyParameters([]byte(p)); (err == nil) != ok {
			t.Errorf("%x: %v", p, err)
		}
	}
	info, err := asn1.Marshal([]struct {
		EType int32  `asn1:"explicit,tag:0"`
		Salt  string `asn1:"explicit,optional,tag:1,ia5"`
	}{{EType: 23}})
	if err != nil {
		t.Fatal(err)
	}
	offer := types.PADataSequence{{PADataType: 19, PADataValue: info}}
	if _, err := chooseKey(offer, 0, aes, passwordKey([]byte("x"))); !errors.Is(err, errNoCommonType) {
		t.Errorf("RC4 was accepted as the only type: %v", err)
	}
}

// This test covers errors of a KDC before a key is involved. The suite lab/suites/ad tests the others with a real KDC.
func TestFaultyKDCsAreHandled(t *testing.T) {
	t.Parallel()
	read := func(c net.Conn) {
		var head [4]byte
		_, _ = io.ReadFull(c, head[:])
		_, _ = io.CopyN(io.Discard, c, int64(binary.BigEndian.Uint32(head[:])))
	}
	send := func(b ...byte) func(net.Conn) {
		return func(c net.Conn) {
			read(c)
			_, _ = c.Write(b)
		}
	}
	for name, c := range map[string]struct {
		serve func(net.Conn)
		want  *Cause
	}{
		"silent": {func(c net.Conn) { silent(c, 0) }, Timeout},
		"closes": {func(c net.Conn) {}, DCUnreachable},
		"4 GiB announced": {func(c net.Conn) {
			send(0xff, 0xff, 0xff, 0xff)(c)
			silent(c, 0)
		}, AnswerInvalid},
		"truncated":     {send(0, 0, 0, 9, 0x7e), AnswerInvalid},
		"length only":   {send(0, 0, 0, 0), AnswerInvalid},
		"not Kerberos":  {send([]byte("HTTP/1.1 400 Bad Request\r\n")...), AnswerInvalid},
		"no Kerberos":   {send(0, 0, 0, 3, 1, 2, 3), AnswerInvalid},
		"damaged error": {send(0, 0, 0, 3, 0x7e, 2, 3), AnswerInvalid},
		"slow": {func(c net.Conn) {
			read(c)
			slowly(func(int64) []byte { return append([]byte{0, 0, 0, 100}, make([]byte, 100)...) })(c, 0)
		}, Timeout},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFakeDC(t, nil)
			config := f.config()
			config.Security = Kerberos
			if c.want == Timeout {
				config.Timeout = shortTimeout
			}
			_, config.ports["88"] = listen(t, c.serve)
			start := time.Now()
			_, err := Bind(t.Context(), config, reader())
			wantCause(t, err, c.want)
			if d := time.Since(start); d > 4*time.Second {
				t.Errorf("took %s", d)
			}
			if got := f.received(); got != "root" {
				t.Errorf("requests: %s", got)
			}
		})
	}
}

// With auto, TLS is used if the KDC is unavailable. If TLS fails too, the error contains both.
func TestAutoFallsBackToTLS(t *testing.T) {
	t.Parallel()
	f := newFakeDC(t, nil)
	config := f.config()
	config.Security = Auto
	s, err := Bind(t.Context(), config, reader())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.Security() != LDAPS {
		t.Errorf("bound with %s", s.Security())
	}
	config.RootCAs = nil
	_, err = Bind(t.Context(), config, reader())
	wantCause(t, err, DCUnreachable)
	for _, want := range []string{"ldaps: certificate-not-trusted", "starttls: certificate-not-trusted"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not contain %q", err, want)
		}
	}
}

// acceptor is the server's side of a SASL bind, with a ticket whose key the test knows. It is a fake because a real
// domain controller does not make these errors.
type acceptor struct {
	key    types.EncryptionKey
	offer  []byte
	reply  func(part *apRepPart)
	early  bool // completes the bind before a security layer is agreed
	forger bool // cannot decrypt the ticket, and encrypts the AP-REP with another key
	chosen []byte
}

// apRepPart is EncAPRepPart (RFC 4120 5.5.2), which gokrb5 can decode but not encode.
type apRepPart struct {
	CTime    time.Time           `asn1:"generalized,explicit,tag:0"`
	Cusec    int                 `asn1:"explicit,tag:1"`
	Subkey   types.EncryptionKey `asn1:"explicit,tag:2"`
	Sequence int64               `asn1:"explicit,tag:3"`
}

func (a *acceptor) serve(t *testing.T, c net.Conn) {
	w := newGSSContext(t)
	for step := 1; ; step++ {
		request, err := ber.ReadPacket(c)
		if err != nil {
			return
		}
		id := request.Children[0].Value.(int64)
		var token []byte
		if auth := request.Children[1].Children[2]; len(auth.Children) > 1 {
			token = auth.Children[1].ByteValue
		}
		code := int64(ldap.LDAPResultSaslBindInProgress)
		var answer []byte
		switch step {
		case 1:
			var request krb.APReq
			if err := request.Unmarshal(token[bytes.Index(token, krb5OID)+len(krb5OID)+2:]); err != nil {
				t.Error(err)
				return
			}
			var auth types.Authenticator
			if a.forger {
				a.key.KeyValue = bytes.Repeat([]byte{8}, 32)
			} else {
				sealedAuth := request.EncryptedAuthenticator
				plain, err := crypto.DecryptEncPart(sealedAuth, a.key, keyusage.AP_REQ_AUTHENTICATOR)
				if err != nil || auth.Unmarshal(plain) != nil {
					t.Error("the authenticator cannot be decrypted", err)
					return
				}
			}
			part := apRepPart{auth.CTime, auth.Cusec, types.EncryptionKey{KeyType: aes[0], KeyValue: w.key}, 200}
			if a.reply != nil {
				a.reply(&part)
			}
			b, err := asn1.MarshalWithParams(part, "application,explicit,tag:27")
			if err != nil {
				t.Error(err)
				return
			}
			sealedPart, err := crypto.GetEncryptedData(b, a.key, keyusage.AP_REP_ENCPART, 0)
			if err != nil {
				t.Error(err)
				return
			}
			reply := krb.APRep{PVNO: 5, MsgType: 15, EncPart: sealedPart}
			b, err = asn1.MarshalWithParams(reply, "application,explicit,tag:15")
			if err != nil {
				t.Error(err)
				return
			}
			body := append(append(bytes.Clone(krb5OID), 2, 0), b...)
			answer = append([]byte{0x60, 0x81, byte(len(body))}, body...)
		case 2:
			answer = fromServer(t, w, a.offer, sentByServer|withSubkey, 200, 0)
		case 3:
			code = 0
			a.chosen = token
		}
		if a.early {
			code = 0
		}
		credentials := ber.NewString(ber.ClassContext, ber.TypePrimitive, 7, string(answer), "")
		_, err = c.Write(resultMessage(id, ldap.ApplicationBindResponse, code, "", credentials))
		if err != nil || code == 0 {
			return
		}
	}
}

func TestAServerWithoutSealingOrValidProofIsRejected(t *testing.T) {
	key := types.EncryptionKey{KeyType: aes[0], KeyValue: bytes.Repeat([]byte{9}, 32)}
	for name, c := range map[string]struct {
		a    acceptor
		want string
	}{
		"valid":             {acceptor{offer: []byte{7, 0xff, 0xff, 0xff}}, ""},
		"no layer":          {acceptor{offer: []byte{1, 0, 0, 0}}, "does not support sealing"},
		"only signing":      {acceptor{offer: []byte{3, 0xff, 0xff, 0xff}}, "does not support sealing"},
		"an empty offer":    {acceptor{offer: nil}, "does not support sealing"},
		"tiny buffers":      {acceptor{offer: []byte{7, 0, 0, 9}}, "too small"},
		"early success":     {acceptor{early: true}, "completed the bind too early"},
		"a replayed AP-REP": {acceptor{reply: func(p *apRepPart) { p.Cusec ^= 1 }}, "another connection"},
		"an older AP-REP": {acceptor{reply: func(p *apRepPart) {
			p.CTime = p.CTime.Add(-time.Hour)
		}}, "another connection"},
		"an RC4 key": {acceptor{reply: func(p *apRepPart) {
			p.Subkey.KeyType = 23
		}}, "no supported encryption type"},
		"a truncated key": {acceptor{reply: func(p *apRepPart) {
			p.Subkey.KeyValue = p.Subkey.KeyValue[:5]
		}}, "wrong length"},
		"a forged AP-REP": {acceptor{forger: true}, "does not prove its identity"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.a.key = key
			here, there := net.Pipe()
			done := make(chan struct{})
			go func() {
				defer close(done)
				defer func() { _ = there.Close() }()
				c.a.serve(t, there)
			}()
			ticket := &ticket{key: key, cname: types.PrincipalName{NameType: 1, NameString: []string{"reader"}}}
			ticket.Ticket = krb.Ticket{
				TktVNO:  5,
				Realm:   "CORP.EXAMPLE.TEST",
				SName:   types.PrincipalName{NameType: 2, NameString: []string{"ldap", "dc1"}},
				EncPart: types.EncryptedData{EType: 18, Cipher: []byte("opaque")},
			}
			conn, err := bindSealed(context.Background(), here, 10*time.Second, ticket, "CORP.EXAMPLE.TEST")
			_ = here.Close()
			<-done
			if c.want == "" {
				if err != nil || conn == nil {
					t.Fatal(err)
				}
				if !bytes.Contains(c.a.chosen, []byte{4, 0x0f, 0xff, 0xff}) {
					t.Errorf("chosen layer: %x", c.a.chosen)
				}
				return
			}
			if err == nil || !strings.Contains(fmt.Sprint(err), c.want) {
				t.Errorf("%v; want %q", err, c.want)
			}
		})
	}
}

func FuzzStatus(f *testing.F) {
	f.Add([]byte{0x30, 0})
	f.Fuzz(func(_ *testing.T, data []byte) { _ = statusOf(data) })
}

// The token is from a server that is not authenticated yet.
func FuzzEstablish(f *testing.F) {
	f.Add(append([]byte{0x60, 0x20}, append(bytes.Clone(krb5OID), 2, 0, 0x6f, 0)...))
	f.Add(append([]byte{0x60, 0x20}, append(bytes.Clone(krb5OID), 3, 0, 0x7e, 0)...))
	t := &ticket{key: types.EncryptionKey{KeyType: aes[0], KeyValue: make([]byte, 32)}}
	f.Fuzz(func(_ *testing.T, token []byte) { _, _ = establish(token, t, types.Authenticator{}) })
}

func TestEncryptedPartsOfAnyWrongLengthAreRejected(t *testing.T) {
	key := types.EncryptionKey{KeyType: aes[0], KeyValue: make([]byte, 32)}
	for n := range 80 {
		if _, err := decrypt(key, make([]byte, n), 1); err == nil {
			t.Errorf("%d bytes were decrypted", n)
		}
		short := types.EncryptionKey{KeyType: aes[0], KeyValue: make([]byte, n%32)}
		if _, err := decrypt(short, make([]byte, 64), 1); err == nil {
			t.Errorf("a key of %d bytes was used", n%32)
		}
	}
}
