package directory

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"github.com/jcmturner/gokrb5/v8/config"
	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/iana/errorcode"
	"github.com/jcmturner/gokrb5/v8/iana/etypeID"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	"github.com/jcmturner/gokrb5/v8/iana/nametype"
	"github.com/jcmturner/gokrb5/v8/iana/patype"
	krb "github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"
)

// This file uses the messages and the cryptography of gokrb5, but not its client. That client has no context and no
// timeout, allocates as much memory as a server announces, renews tickets in the background, and returns a KDC's error
// code only as text.

// aes lists the encryption types for a password that a person chose. RC4 is excluded: a fake KDC could request it, and
// the client's answer would make guessing the password much faster.
var aes = []int32{etypeID.AES256_CTS_HMAC_SHA1_96, etypeID.AES128_CTS_HMAC_SHA1_96}

// maxSkew is the allowed clock difference (RFC 4120 1.6; Active Directory's default policy).
const maxSkew = 5 * time.Minute

// kdc is the Kerberos service of one domain controller. It uses TCP: responses with group memberships are too large for
// UDP.
type kdc struct {
	config Config
	host   string // for error messages
	ip     string // address of the LDAP connection, so that both go to the same domain controller
}

// kdcError is a KRB-ERROR (RFC 4120 5.9.1).
type kdcError struct {
	code   int32
	status uint32 // NTSTATUS ([MS-KILE] 2.2.2); 0: none
	time   time.Time
	text   string
	data   []byte // e-data: for PREAUTH_REQUIRED, the authentication methods
}

func (e *kdcError) Error() string {
	s := "Kerberos error " + errorcode.Lookup(e.code)
	if e.status != 0 {
		s += fmt.Sprintf(", NTSTATUS 0x%08X", e.status)
	}
	if e.text != "" {
		s += ", " + sanitize(e.text)
	}
	return s
}

// send sends one request to the KDC (RFC 4120 7.2.2). For a KRB-ERROR it returns a *kdcError.
func (k kdc) send(ctx context.Context, request []byte) ([]byte, error) {
	conn, err := k.config.dial(ctx, k.ip, "88")
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	defer limit(ctx, conn, k.config.Timeout)()
	if _, err := conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(request))), request...)); err != nil {
		return nil, err
	}
	var head [4]byte
	if _, err := io.ReadFull(conn, head[:]); errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, errTruncated
	} else if err != nil { // io.EOF: the KDC closed the connection without a response
		return nil, err
	}
	length := binary.BigEndian.Uint32(head[:])
	if length > maxMessage {
		return nil, errTooLarge
	}
	response, err := io.ReadAll(io.LimitReader(conn, int64(length)))
	if err != nil {
		return nil, err
	}
	if len(response) < int(length) || length == 0 {
		return nil, errTruncated
	}
	const applicationError = 0x7e // [APPLICATION 30]
	if response[0] != applicationError {
		return response, nil
	}
	var e krb.KRBError
	if err := e.Unmarshal(response); err != nil {
		return nil, errors.New("the Kerberos error cannot be decoded")
	}
	return nil, &kdcError{code: e.ErrorCode, status: statusOf(e.EData), time: e.STime, text: e.EText, data: e.EData}
}

// statusOf finds the NTSTATUS in an error's e-data. It is a KERB-ERROR-DATA of type 3 with a KERB_EXT_ERROR ([MS-KILE]
// 2.2.1, 2.2.2), encoded as PA-DATA. Windows sends only this element, Samba sends it in a sequence.
func statusOf(data []byte) uint32 {
	const extendedError = 3
	var sequence types.PADataSequence
	if sequence.Unmarshal(data) != nil {
		var single types.PAData
		if single.Unmarshal(data) != nil {
			return 0
		}
		sequence = types.PADataSequence{single}
	}
	for _, d := range sequence {
		if d.PADataType == extendedError && len(d.PADataValue) == 12 {
			return binary.LittleEndian.Uint32(d.PADataValue)
		}
	}
	return 0
}

// keyFunc derives the long-term key of an account.
type keyFunc func(etype int32, salt, parameters string) ([]byte, error)

// passwordKey returns the keyFunc of a password in UTF-8.
func passwordKey(utf8 []byte) keyFunc {
	return func(etype int32, salt, parameters string) ([]byte, error) {
		e, err := crypto.GetEtype(etype)
		if err != nil {
			return nil, err
		}
		return e.StringToKey(string(utf8), salt, parameters)
	}
}

// ticket is a ticket with its session key.
type ticket struct {
	krb.Ticket
	key   types.EncryptionKey
	part  krb.EncKDCRepPart
	cname types.PrincipalName
	etype int32 // of the key that decrypted the response
}

func (k kdc) requestConfig(etypes []int32) *config.Config {
	return &config.Config{LibDefaults: config.LibDefaults{
		NoAddresses:          true,
		TicketLifetime:       10 * time.Hour,
		KDCDefaultOptions:    types.NewKrbFlags(),
		DefaultTktEnctypeIDs: etypes,
		DefaultTGSEnctypeIDs: etypes,
	}}
}

// login gets a ticket-granting ticket in an AS exchange with an encrypted timestamp (RFC 4120 3.1, 5.2.7.2). The first
// request is without authentication: the response contains salt and encryption type, and it does not count as a failed
// logon. So a wrong password counts only once.
func (k kdc) login(ctx context.Context, user string, etypes []int32, key keyFunc) (*ticket, error) {
	realm := k.config.realm()
	cname := types.PrincipalName{NameType: nametype.KRB_NT_PRINCIPAL, NameString: []string{user}}
	request, err := krb.NewASReqForTGT(realm, k.requestConfig(etypes), cname)
	if err != nil {
		return nil, err
	}
	exchange := func() ([]byte, error) {
		b, err := request.Marshal()
		if err != nil {
			return nil, err
		}
		return k.send(ctx, b)
	}
	var longTerm types.EncryptionKey
	response, err := exchange()
	if e, ok := errors.AsType[*kdcError](err); ok && e.code == errorcode.KDC_ERR_PREAUTH_REQUIRED {
		var methods types.PADataSequence
		if err := methods.Unmarshal(e.data); err != nil {
			return nil, errors.New("the KDC's list of authentication methods cannot be decoded")
		}
		if longTerm, err = chooseKey(methods, 0, etypes, key); err != nil {
			return nil, err
		}
		stamp, err := types.GetPAEncTSEncAsnMarshalled()
		if err != nil {
			return nil, err
		}
		sealed, err := crypto.GetEncryptedData(stamp, longTerm, keyusage.AS_REQ_PA_ENC_TIMESTAMP, 0)
		if err != nil {
			return nil, err
		}
		value, err := sealed.Marshal()
		if err != nil {
			return nil, err
		}
		request.PAData = types.PADataSequence{{PADataType: patype.PA_ENC_TIMESTAMP, PADataValue: value}}
		if response, err = exchange(); err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, err
	}

	var reply krb.ASRep
	if err := reply.Unmarshal(response); err != nil {
		return nil, errors.New("the KDC's response cannot be decoded")
	}
	if longTerm.KeyType != reply.EncPart.EType { // the KDC required no authentication, or chose another key
		if longTerm, err = chooseKey(reply.PAData, reply.EncPart.EType, etypes, key); err != nil {
			return nil, err
		}
	}
	t, err := open(reply.KDCRepFields, longTerm, keyusage.AS_REP_ENCPART, request.ReqBody)
	if err != nil {
		return nil, err
	}
	if skew := time.Until(t.part.AuthTime).Abs(); skew > maxSkew {
		return nil, &kdcError{code: errorcode.KRB_AP_ERR_SKEW, time: t.part.AuthTime}
	}
	return t, nil
}

// chooseKey derives the key for an encryption type that the KDC offers (ETYPE-INFO2, RFC 4120 5.2.7.5). If want is 0,
// it is the KDC's first type that is in etypes.
func chooseKey(offer types.PADataSequence, want int32, etypes []int32, key keyFunc) (types.EncryptionKey, error) {
	for _, d := range offer {
		if d.PADataType != patype.PA_ETYPE_INFO2 {
			continue
		}
		var infos types.ETypeInfo2
		if err := infos.Unmarshal(d.PADataValue); err != nil {
			return types.EncryptionKey{}, errors.New("the KDC's list of encryption types cannot be decoded")
		}
		for _, info := range infos {
			if !slices.Contains(etypes, info.EType) || want != 0 && info.EType != want {
				continue
			}
			parameters, err := keyParameters(info.S2KParams)
			if err != nil {
				return types.EncryptionKey{}, err
			}
			value, err := key(info.EType, info.Salt, parameters)
			return types.EncryptionKey{KeyType: info.EType, KeyValue: value}, err
		}
	}
	return types.EncryptionKey{}, errNoCommonType
}

var errNoCommonType = errors.New("the KDC offers no supported encryption type")

// keyParameters checks the iteration count of the AES key derivation (RFC 3962 4). It is not authenticated: a low count
// would make the password easier to guess, and a very high count would keep this program busy.
func keyParameters(p []byte) (string, error) {
	const standard, maximum = 4096, 1 << 20
	if len(p) == 0 {
		return fmt.Sprintf("%08x", standard), nil
	}
	if len(p) != 4 || binary.BigEndian.Uint32(p) < standard || binary.BigEndian.Uint32(p) > maximum {
		return "", fmt.Errorf("the KDC requests an invalid iteration count (%.8x)", p)
	}
	return hex.EncodeToString(p), nil
}

// serviceTicket gets a ticket for a service of the same realm in a TGS exchange (RFC 4120 3.3).
func (k kdc) serviceTicket(ctx context.Context, tgt *ticket, service ...string) (*ticket, error) {
	sname := types.PrincipalName{NameType: nametype.KRB_NT_SRV_INST, NameString: service}
	if len(tgt.SName.NameString) == 0 { // gokrb5 reads the first element without a check
		return nil, errors.New("the KDC's ticket has no service name")
	}
	request, err := krb.NewTGSReq(tgt.cname, k.config.realm(), k.requestConfig(aes), tgt.Ticket, tgt.key, sname, false)
	if err != nil {
		return nil, err
	}
	b, err := request.Marshal()
	if err != nil {
		return nil, err
	}
	response, err := k.send(ctx, b)
	if err != nil {
		return nil, err
	}
	var reply krb.TGSRep
	if err := reply.Unmarshal(response); err != nil {
		return nil, errors.New("the KDC's response cannot be decoded")
	}
	return open(reply.KDCRepFields, tgt.key, keyusage.TGS_REP_ENCPART_SESSION_KEY, request.ReqBody)
}

// open decrypts a KDC's response and checks that it belongs to the request (RFC 4120 3.1.5, 3.3.4): its encrypted part
// contains the nonce of the request.
func open(reply krb.KDCRepFields, key types.EncryptionKey, usage uint32, request krb.KDCReqBody) (*ticket, error) {
	if reply.EncPart.EType != key.KeyType {
		return nil, errNoCommonType
	}
	plain, err := decrypt(key, reply.EncPart.Cipher, usage)
	if err != nil {
		return nil, errors.New("the KDC's response cannot be decrypted with the account's key")
	}
	var part krb.EncKDCRepPart
	if err := part.Unmarshal(plain); err != nil {
		return nil, errors.New("the KDC's response cannot be decoded")
	}
	if part.Nonce != request.Nonce || part.SRealm != request.Realm || reply.CRealm != request.Realm ||
		!slices.Equal(part.SName.NameString, request.SName.NameString) || len(reply.Ticket.SName.NameString) == 0 {
		return nil, errors.New("the KDC's response does not belong to the request")
	}
	return &ticket{Ticket: reply.Ticket, key: part.Key, part: part, cname: reply.CName, etype: key.KeyType}, nil
}

// decrypt checks the lengths first: gokrb5 slices before it checks them.
func decrypt(key types.EncryptionKey, sealed []byte, usage uint32) ([]byte, error) {
	e, err := crypto.GetEtype(key.KeyType)
	if err != nil {
		return nil, err
	}
	if len(sealed) < e.GetConfounderByteSize()+e.GetHMACBitLength()/8 || len(key.KeyValue) != e.GetKeyByteSize() {
		return nil, errors.New("the encrypted part is too short")
	}
	return e.DecryptMessage(key.KeyValue, sealed, usage)
}

// explain converts a KDC's error or a connection error to an Error. A gMSA has other causes than a user: no person
// enters its password or locks it out by mistake.
func (k kdc) explain(subject string, gmsa bool, err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok { // no connection
		e.Subject, e.Server = subject, k.host
		return e
	}
	e, ok := errors.AsType[*kdcError](err)
	if !ok {
		return transportError(subject, k.host, err)
	}
	cause := KDCRefused
	switch e.code {
	case errorcode.KDC_ERR_NAME_EXP:
		cause = AccountExpired
	case errorcode.KDC_ERR_C_PRINCIPAL_UNKNOWN:
		cause = UnknownAccount
	case errorcode.KDC_ERR_POLICY:
		cause = LogonRestricted
	case errorcode.KDC_ERR_ETYPE_NOSUPP:
		cause = EncryptionTypeUnsupported
	case errorcode.KDC_ERR_CLIENT_REVOKED:
		cause = AccountRevoked
	case errorcode.KDC_ERR_KEY_EXPIRED:
		cause = PasswordExpired
	case errorcode.KDC_ERR_PREAUTH_FAILED:
		cause = WrongPassword
	case errorcode.KRB_AP_ERR_SKEW:
		cause = ClockSkew
		if ahead := time.Until(e.time).Round(time.Second); e.time.IsZero() {
			break
		} else if ahead > 0 {
			err = fmt.Errorf("%w; its clock is %s ahead of this one", e, ahead)
		} else {
			err = fmt.Errorf("%w; its clock is %s behind this one", e, -ahead)
		}
	case errorcode.KDC_ERR_WRONG_REALM:
		cause = WrongDomain
	}
	if c := statusCause[e.status]; c != nil && cause != ClockSkew {
		cause = c
	}
	if gmsa {
		switch cause {
		case AccountDisabled, AccountLocked, AccountExpired, AccountRevoked:
			cause = GMSADisabled
		case UnknownAccount:
			cause = GMSANotFound
		case WrongPassword, PasswordExpired, MustChangePassword:
			cause = KDCRefused
		}
	}
	return cause.of(subject, k.host, err)
}

// statusCause maps the NTSTATUS of a rejected logon ([MS-ERREF] 2.3.1).
var statusCause = map[uint32]*Cause{
	0xC0000064: UnknownAccount,
	0xC000006A: WrongPassword,
	0xC000006E: LogonRestricted,
	0xC000006F: LogonRestricted, // logon hours
	0xC0000070: LogonRestricted, // workstation
	0xC0000071: PasswordExpired,
	0xC0000072: AccountDisabled,
	0xC0000193: AccountExpired,
	0xC0000224: MustChangePassword,
	0xC0000234: AccountLocked,
	0xC0000413: LogonRestricted, // authentication policy
}

// transportError converts a failure without a complete response to an Error.
func transportError(subject, server string, err error) *Error {
	cause := AnswerInvalid
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() || errors.Is(err, context.DeadlineExceeded) {
		cause, err = Timeout, errors.New("no complete response before the timeout")
	} else if errors.Is(err, errNoCommonType) {
		cause = EncryptionTypeUnsupported
	} else if _, ok := errors.AsType[*net.OpError](err); ok || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		cause, err = DCUnreachable, fmt.Errorf("the connection failed: %w", err)
	}
	return cause.of(subject, server, err)
}
