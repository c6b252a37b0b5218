package directory

import (
	"bytes"
	"context"
	"crypto/hmac"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	ber "github.com/go-asn1-ber/asn1-ber"
	"github.com/go-ldap/ldap/v3"
	"github.com/jcmturner/gokrb5/v8/asn1tools"
	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/crypto/etype"
	"github.com/jcmturner/gokrb5/v8/gssapi"
	"github.com/jcmturner/gokrb5/v8/iana/chksumtype"
	"github.com/jcmturner/gokrb5/v8/iana/flags"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	krb "github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"
)

// gssContext is the initiator's side of an established Kerberos GSS-API context (RFC 4121).
type gssContext struct {
	etype    etype.EType
	key      []byte
	subkey   bool   // key is the acceptor's subkey
	sent     uint64 // sequence number of the next token to send
	received uint64 // required sequence number of the next received token
}

const (
	wrapHeader   = 16
	sentByServer = 1 // flags of a wrap token, RFC 4121 4.2.2
	sealed       = 2
	withSubkey   = 4
)

func header(flag byte, extra, rotation uint16, sequence uint64) []byte {
	h := []byte{5, 4, flag, 0xff}
	h = binary.BigEndian.AppendUint16(h, extra)
	h = binary.BigEndian.AppendUint16(h, rotation)
	return binary.BigEndian.AppendUint64(h, sequence)
}

// wrap creates a token (RFC 4121 4.2.4), either sealed or only signed.
func (w *gssContext) wrap(plain []byte, seal bool) ([]byte, error) {
	var flag byte
	if w.subkey {
		flag |= withSubkey
	}
	sequence := w.sent
	w.sent++
	if seal {
		h := header(flag|sealed, 0, 0, sequence)
		_, body, err := w.etype.EncryptMessage(w.key, append(bytes.Clone(plain), h...), keyusage.GSSAPI_INITIATOR_SEAL)
		return append(h, body...), err
	}
	signed := append(bytes.Clone(plain), header(flag, 0, 0, sequence)...)
	sum, err := w.etype.GetChecksumHash(w.key, signed, keyusage.GSSAPI_INITIATOR_SEAL)
	if err != nil {
		return nil, err
	}
	token := header(flag, uint16(len(sum)), 0, sequence)
	return append(append(token, plain...), sum...), nil
}

// unwrap opens a token from the server. The token must have the next sequence number and, if seal is set, be sealed.
func (w *gssContext) unwrap(token []byte, seal bool) ([]byte, error) {
	if len(token) < wrapHeader || token[0] != 5 || token[1] != 4 || token[3] != 0xff {
		return nil, errors.New("not a Kerberos wrap token")
	}
	flag := token[2]
	extra, rotation := binary.BigEndian.Uint16(token[4:]), binary.BigEndian.Uint16(token[6:])
	sequence := binary.BigEndian.Uint64(token[8:])
	switch {
	case flag&sentByServer == 0:
		return nil, errors.New("the wrap token was sent by this side")
	case (flag&withSubkey != 0) != w.subkey:
		return nil, errors.New("the wrap token uses another key")
	case seal && flag&sealed == 0:
		return nil, errors.New("the wrap token is not sealed")
	case sequence != w.received:
		return nil, fmt.Errorf("the wrap token has sequence number %d instead of %d", sequence, w.received)
	}
	body := bytes.Clone(token[wrapHeader:])
	if n := len(body); n > 0 { // RFC 4121 4.2.5; Windows and Samba rotate
		r := int(rotation) % n
		body = append(body[r:], body[:r]...)
	}
	if flag&sealed != 0 {
		if len(body) < w.etype.GetConfounderByteSize()+w.etype.GetHMACBitLength()/8 {
			return nil, errors.New("the wrap token is too short")
		}
		plain, err := w.etype.DecryptMessage(w.key, body, keyusage.GSSAPI_ACCEPTOR_SEAL)
		if err != nil {
			return nil, errors.New("the wrap token cannot be decrypted")
		}
		n := len(plain) - wrapHeader - int(extra)
		if n < 0 || !bytes.Equal(plain[len(plain)-wrapHeader:], header(flag, extra, 0, sequence)) {
			return nil, errors.New("the wrap token contains a different header")
		}
		w.received++
		return plain[:n], nil
	}
	n := len(body) - int(extra)
	if n < 0 {
		return nil, errors.New("the wrap token is too short")
	}
	signed := append(bytes.Clone(body[:n]), header(flag, 0, 0, sequence)...)
	sum, err := w.etype.GetChecksumHash(w.key, signed, keyusage.GSSAPI_ACCEPTOR_SEAL)
	if err != nil {
		return nil, err
	}
	if !hmac.Equal(sum, body[n:]) {
		return nil, errors.New("the wrap token has a wrong checksum")
	}
	w.received++
	return body[:n], nil
}

// sealedConn is the SASL security layer: each token has a length prefix of four bytes (RFC 4752 3.3).
type sealedConn struct {
	net.Conn
	maxToken int // the server's limit for one token, in bytes

	read   sync.Mutex // go-ldap reads and writes in different goroutines; each direction has its own counter
	unread []byte
	write  sync.Mutex
	w      *gssContext
}

func (c *sealedConn) Read(p []byte) (int, error) {
	c.read.Lock()
	defer c.read.Unlock()
	for len(c.unread) == 0 {
		var head [4]byte
		if _, err := io.ReadFull(c.Conn, head[:]); err != nil {
			return 0, err
		}
		length := binary.BigEndian.Uint32(head[:])
		if length > maxMessage+64<<10 { // a token can be larger than the message in it
			return 0, errTooLarge
		}
		token, err := io.ReadAll(io.LimitReader(c.Conn, int64(length)))
		if err != nil {
			return 0, err
		}
		if len(token) < int(length) {
			return 0, errTruncated
		}
		if c.unread, err = c.w.unwrap(token, true); err != nil {
			return 0, err
		}
	}
	n := copy(p, c.unread)
	c.unread = c.unread[n:]
	return n, nil
}

func (c *sealedConn) Write(p []byte) (int, error) {
	c.write.Lock()
	defer c.write.Unlock()
	const overhead = 128 // two headers, confounder, checksum
	written := 0
	for len(p) > 0 {
		n := min(len(p), c.maxToken-overhead)
		token, err := c.w.wrap(p[:n], true)
		if err != nil {
			return written, err
		}
		length := binary.BigEndian.AppendUint32(nil, uint32(len(token)))
		if _, err := c.Conn.Write(append(length, token...)); err != nil {
			return written, err
		}
		written += n
		p = p[n:]
	}
	return written, nil
}

// krb5OID is the object identifier of Kerberos as a GSS-API mechanism, in DER (RFC 4121 4.1).
var krb5OID = []byte{0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x12, 0x01, 0x02, 0x02}

// apRequest creates the first token of a context (RFC 4121 4.1). The response is verified with the returned
// authenticator.
func apRequest(t *ticket, realm string) ([]byte, types.Authenticator, error) {
	auth, err := types.NewAuthenticator(realm, t.cname)
	if err != nil {
		return nil, auth, err
	}
	sum := make([]byte, 24) // no channel bindings: the security layer protects the connection
	binary.LittleEndian.PutUint32(sum, 16)
	binary.LittleEndian.PutUint32(sum[20:], gssapi.ContextFlagMutual|gssapi.ContextFlagReplay|
		gssapi.ContextFlagSequence|gssapi.ContextFlagInteg|gssapi.ContextFlagConf)
	auth.Cksum = types.Checksum{
		CksumType: chksumtype.GSSAPI,
		Checksum:  sum,
	}
	request, err := krb.NewAPReq(t.Ticket, t.key, auth)
	if err != nil {
		return nil, auth, err
	}
	types.SetFlag(&request.APOptions, flags.APOptionMutualRequired)
	b, err := request.Marshal()
	if err != nil {
		return nil, auth, err
	}
	return asn1tools.AddASNAppTag(append(append(bytes.Clone(krb5OID), 1, 0), b...), 0), auth, nil // 01 00: KRB_AP_REQ
}

// establish verifies the server's response to the first token. It proves that the server can decrypt the ticket.
func establish(token []byte, t *ticket, auth types.Authenticator) (*gssContext, error) {
	i := bytes.Index(token[:min(len(token), 6+len(krb5OID))], krb5OID) // after a tag and a length of up to 5 bytes
	if i < 0 || len(token) < i+len(krb5OID)+2 {
		return nil, errors.New("the server's response is not a Kerberos token")
	}
	kind, body := binary.BigEndian.Uint16(token[i+len(krb5OID):]), token[i+len(krb5OID)+2:]
	switch kind {
	case 0x0200: // KRB_AP_REP
	case 0x0300:
		var e krb.KRBError
		if err := e.Unmarshal(body); err != nil {
			return nil, errors.New("the Kerberos error cannot be decoded")
		}
		return nil, &kdcError{code: e.ErrorCode, status: statusOf(e.EData), time: e.STime, text: e.EText}
	default:
		return nil, errors.New("the server's response is an unexpected token")
	}
	var reply krb.APRep
	if err := reply.Unmarshal(body); err != nil {
		return nil, errors.New("the server's AP-REP cannot be decoded")
	}
	plain, err := decrypt(t.key, reply.EncPart.Cipher, keyusage.AP_REP_ENCPART)
	if err != nil {
		return nil, errors.New("the server does not prove its identity: its AP-REP cannot be decrypted")
	}
	var part krb.EncAPRepPart
	if err := part.Unmarshal(plain); err != nil {
		return nil, errors.New("the server's AP-REP cannot be decoded")
	}
	if !part.CTime.Equal(auth.CTime.Truncate(time.Second)) || part.Cusec != auth.Cusec { // RFC 4120 3.2.5
		return nil, errors.New("the server's AP-REP belongs to another connection")
	}
	w := &gssContext{sent: uint64(auth.SeqNumber), received: uint64(part.SequenceNumber)}
	key := t.key
	if len(part.Subkey.KeyValue) > 0 {
		key, w.subkey = part.Subkey, true
	}
	if key.KeyType != aes[0] && key.KeyType != aes[1] {
		return nil, errNoCommonType
	}
	if w.etype, err = crypto.GetEtype(key.KeyType); err != nil {
		return nil, err
	}
	if w.key = key.KeyValue; len(w.key) != w.etype.GetKeyByteSize() {
		return nil, errors.New("the server's key has a wrong length")
	}
	return w, nil
}

var errNotSealed = errors.New("it does not support sealing of the connection")

// bindSealed performs the SASL bind with GSSAPI (RFC 4752 3.1) and returns the sealed connection. If the server does
// not support sealing, it returns an error.
func bindSealed(ctx context.Context, conn net.Conn, timeout time.Duration, t *ticket, realm string) (net.Conn, error) {
	defer limit(ctx, conn, timeout)()
	in := newMessageReader(conn)
	first, auth, err := apRequest(t, realm)
	if err != nil {
		return nil, err
	}
	token, err := bindStep(conn, in, 1, first, ldap.LDAPResultSaslBindInProgress)
	if err != nil {
		return nil, err
	}
	w, err := establish(token, t, auth)
	if err != nil {
		return nil, err
	}
	if token, err = bindStep(conn, in, 2, nil, ldap.LDAPResultSaslBindInProgress); err != nil {
		return nil, err
	}
	offer, err := w.unwrap(token, false)
	if err != nil {
		return nil, err
	}
	const layerSeal = 4
	if len(offer) != 4 || offer[0]&layerSeal == 0 {
		return nil, errNotSealed
	}
	maxToken := int(offer[1])<<16 | int(offer[2])<<8 | int(offer[3])
	if maxToken < 1024 {
		return nil, errors.New("its buffer is too small")
	}
	choice, err := w.wrap([]byte{layerSeal, 0x0f, 0xff, 0xff}, false)
	if err != nil {
		return nil, err
	}
	if _, err := bindStep(conn, in, 3, choice, ldap.LDAPResultSuccess); err != nil {
		return nil, err
	}
	return &sealedConn{Conn: conn, maxToken: maxToken, w: w}, nil
}

// bindStep sends one bind request with a token and returns the token of the response, which must have the result code
// want.
func bindStep(conn net.Conn, in *messageReader, id int64, token []byte, want uint16) ([]byte, error) {
	bind := ber.Encode(ber.ClassApplication, ber.TypeConstructed, ldap.ApplicationBindRequest, nil, "")
	bind.AppendChild(ber.NewInteger(ber.ClassUniversal, ber.TypePrimitive, ber.TagInteger, 3, ""))
	bind.AppendChild(ber.NewString(ber.ClassUniversal, ber.TypePrimitive, ber.TagOctetString, "", ""))
	auth := ber.Encode(ber.ClassContext, ber.TypeConstructed, 3, nil, "")
	auth.AppendChild(ber.NewString(ber.ClassUniversal, ber.TypePrimitive, ber.TagOctetString, "GSSAPI", ""))
	if len(token) > 0 {
		auth.AppendChild(ber.NewString(ber.ClassUniversal, ber.TypePrimitive, ber.TagOctetString, string(token), ""))
	}
	bind.AppendChild(auth)
	response, err := roundTrip(conn, in, id, bind)
	if err != nil {
		return nil, err
	}
	if err := ldap.GetLDAPError(response); err != nil && !ldap.IsErrorWithCode(err, want) {
		return nil, err
	} else if err == nil && want != ldap.LDAPResultSuccess {
		return nil, errors.New("the server completed the bind too early")
	}
	const serverCredentials = 7 // RFC 4511 4.2.2
	for _, c := range response.Children[1].Children[3:] {
		if c.ClassType == ber.ClassContext && c.Tag == serverCredentials {
			return c.Data.Bytes(), nil
		}
	}
	return nil, nil
}
