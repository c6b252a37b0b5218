package directory

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	ber "github.com/go-asn1-ber/asn1-ber"
	"github.com/go-ldap/ldap/v3"

	"github.com/ccgrkc/ccgrkc/internal/credential"
)

// Session is a bound connection to one domain controller. It is for one goroutine at a time. Formatting it shows the
// server only: it holds session keys.
type Session struct {
	config   Config
	account  string // user@domain, for messages
	server   string // host name of the domain controller, or what was given for it
	ip       string
	security Security

	mu     sync.Mutex
	conn   *ldapConn
	ldap   *ldap.Conn
	root   rootDSE
	offset time.Duration
}

// Server is the domain controller's host name.
func (s *Session) Server() string { return s.server }

// Security is how the connection is protected: Kerberos, LDAPS or StartTLS.
func (s *Session) Security() Security { return s.security }

// Time is what the domain controller's clock showed when the session was bound, in whole seconds.
func (s *Session) Time() time.Time { return s.root.time }

// Offset is how far the domain controller's clock was ahead of this machine's, to a second; negative: behind.
func (s *Session) Offset() time.Duration { return s.offset }

// Close ends the connection.
func (s *Session) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.conn.SetDeadline(time.Now().Add(time.Second)) // TLS says goodbye, to a server that may not listen
	_ = s.ldap.Close()
}

func (s *Session) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "session with %s (%s)", s.server, s.security)
}

// Bind connects to a domain controller and proves the account's password to it. It tries the servers in turn, but sends
// a password that one of them refused to no other: every refusal counts towards a lockout.
func Bind(ctx context.Context, c Config, cred credential.Credential) (_ *Session, err error) {
	defer func() { err = interrupted(ctx, err) }()
	if c, err = c.complete(); err != nil {
		return nil, err
	}
	account := cred.Username + "@" + c.Domain
	if len(cred.Password.Reveal()) == 0 { // an LDAP server takes a bind without a password for an anonymous one
		return nil, WrongPassword.of("account "+account, "", errors.New("the password is empty"))
	}
	servers, err := c.locate(ctx)
	if err != nil {
		return nil, err
	}
	var failed []error
	for _, server := range servers {
		s, err := c.bind(ctx, server, account, cred)
		if err == nil {
			return s, nil
		}
		failed = append(failed, err)
		if !slices.Contains([]*Cause{DCUnreachable, DNSNotFound, DNSUnreachable, Timeout, CertificateNotTrusted, EncryptionRefused, AnswerInvalid}, CauseOf(err)) || ctx.Err() != nil {
			return nil, err
		}
	}
	if len(failed) == 1 {
		return nil, failed[0]
	}
	var each []string
	for _, err := range failed {
		e := err.(*Error)
		each = append(each, fmt.Sprintf("%s: %s: %v", e.Server, e.Cause.Name, e.Err))
	}
	return nil, CauseOf(failed[0]).of("domain "+c.Domain, "", fmt.Errorf("none of %d domain controllers: %s", len(servers), strings.Join(each, "; ")))
}

func (c Config) bind(ctx context.Context, server, account string, cred credential.Credential) (*Session, error) {
	switch c.Security {
	case Kerberos:
		return c.bindKerberos(ctx, server, account, cred)
	case LDAPS, StartTLS:
		return c.bindTLS(ctx, c.Security, server, account, cred)
	}
	s, err := c.bindKerberos(ctx, server, account, cred)
	if err == nil {
		return s, nil
	}
	first := err.(*Error)
	// Wherever the password was judged already, it is not sent again. What is left: Kerberos could not be asked, or
	// its answer stands for several causes.
	status, _ := errors.AsType[*kdcError](first)
	if aboutAccount(first.Cause) && (first.Cause != PasswordExpired || status == nil || status.status != 0) {
		return nil, first
	}
	var also []string
	for _, security := range []Security{LDAPS, StartTLS} {
		if d, ok := errors.AsType[*dialError](first); ok && d.port == "389" && security == StartTLS || ctx.Err() != nil {
			continue
		}
		s, err := c.bindTLS(ctx, security, server, account, cred)
		if err == nil {
			return s, nil
		}
		e := err.(*Error)
		if aboutAccount(e.Cause) {
			return nil, e
		}
		also = append(also, fmt.Sprintf("%s: %s: %v", security, e.Cause.Name, e.Err))
	}
	if len(also) > 0 {
		first.Err = fmt.Errorf("%w; %s", first.Err, strings.Join(also, "; "))
	}
	return nil, first
}

// aboutAccount tells whether a cause is a judgement on the account, which no other way to ask would change.
func aboutAccount(c *Cause) bool {
	return slices.Contains([]*Cause{UnknownAccount, WrongPassword, AccountDisabled, AccountLocked, AccountExpired, PasswordExpired, MustChangePassword, LogonRestricted, WrongDomain}, c)
}

func (c Config) bindKerberos(ctx context.Context, server, account string, cred credential.Credential) (*Session, error) {
	subject := "account " + account
	// What the server is called is asked in plain text, of anybody. No harm: a service name that ends in the domain is
	// given to the domain's controllers only ([MS-ADTS] 5.1.1.4), so nobody else can use the ticket.
	plain, err := c.dial(ctx, server, "389")
	if err != nil {
		return nil, about(err, subject)
	}
	ip, _, _ := net.SplitHostPort(plain.RemoteAddr().String())
	s := c.session(plain, server, ip, account, Kerberos)
	err = s.readRoot(ctx)
	s.Close()
	if err != nil {
		return nil, about(err, subject)
	}
	if s.root.host == "" {
		return nil, AnswerInvalid.of(subject, server, errors.New("it does not say its host name"))
	}
	k := kdc{config: c, host: server, ip: ip}
	tgt, err := k.login(ctx, cred.Username, aes, passwordKey(cred.Password.Reveal()))
	if err != nil {
		return nil, k.explain(subject, false, err)
	}
	service, err := k.serviceTicket(ctx, tgt, "ldap", s.root.host, c.Domain)
	if err != nil {
		e := k.explain(subject, false, err)
		e.Err = fmt.Errorf("ticket for ldap/%s/%s: %w", sanitize(s.root.host), c.Domain, e.Err)
		return nil, e
	}
	raw, err := c.dial(ctx, ip, "389")
	if err != nil {
		return nil, about(err, subject)
	}
	conn, err := bindSealed(ctx, raw, c.Timeout, service, c.realm())
	if err != nil {
		_ = raw.Close()
		if _, ok := errors.AsType[*kdcError](err); ok {
			return nil, k.explain(subject, false, err)
		}
		if errors.Is(err, errNotSealed) {
			return nil, EncryptionRefused.of(subject, server, err)
		}
		e := ldapError(subject, server, err, nil)
		if e.Cause == WrongPassword { // Kerberos took it
			e.Cause = Unexpected
		}
		return nil, e
	}
	bound := c.session(conn, s.root.host, ip, account, Kerberos)
	if err := bound.readRoot(ctx); err != nil {
		bound.Close()
		return nil, about(err, subject)
	}
	return bound, nil
}

func (c Config) bindTLS(ctx context.Context, security Security, server, account string, cred credential.Credential) (*Session, error) {
	subject := "account " + account
	// A certificate proves a name, and where DNS gave the name, whoever forges DNS answers may own one and have a good
	// certificate for it. So it must be a name that only the domain gives out. Kerberos needs no such rule.
	if len(c.Servers) == 0 && !c.owns(server) {
		return nil, CertificateNotTrusted.of(subject, server, fmt.Errorf("DNS names it as a domain controller, but its name is not within %s: name it with --dc if it is one", c.Domain))
	}
	port := "636"
	if security == StartTLS {
		port = "389"
	}
	raw, err := c.dial(ctx, server, port)
	if err != nil {
		return nil, about(err, subject)
	}
	ip, _, _ := net.SplitHostPort(raw.RemoteAddr().String())
	conn, err := c.handshake(ctx, raw, security, server)
	if err != nil {
		_ = raw.Close()
		e := tlsError(subject, server, err)
		e.Err = fmt.Errorf("TCP port %s: %w", port, e.Err)
		return nil, e
	}
	s := c.session(conn, server, ip, account, security)
	if err := s.readRoot(ctx); err != nil { // before the password: a wrong domain would call it wrong
		s.Close()
		return nil, about(err, subject)
	}
	if s.root.host != "" {
		s.server = s.root.host
	}
	end := s.conn.begin(ctx, c.Timeout)
	err = s.ldap.Bind(account, string(cred.Password.Reveal()))
	end()
	if err != nil {
		e := ldapError(subject, s.server, err, s.conn)
		s.Close()
		return nil, e
	}
	return s, nil
}

// owns tells whether a host's name is within the domain's.
func (c Config) owns(host string) bool {
	return strings.HasSuffix(strings.ToLower(host), "."+strings.ToLower(c.Domain))
}

func (c Config) handshake(ctx context.Context, raw net.Conn, security Security, server string) (net.Conn, error) {
	ctx, cancel := c.exchange(ctx)
	defer cancel()
	if security == StartTLS {
		if err := startTLS(ctx, raw, c.Timeout); err != nil {
			return nil, err
		}
	}
	conn := tls.Client(raw, &tls.Config{ServerName: strings.Trim(server, "[]"), RootCAs: c.RootCAs, MinVersion: tls.VersionTLS12})
	return conn, conn.HandshakeContext(ctx)
}

// startTLS asks the server to go on in TLS (RFC 4511 4.14).
func startTLS(ctx context.Context, raw net.Conn, timeout time.Duration) error {
	defer limit(ctx, raw, timeout)()
	request := ber.Encode(ber.ClassApplication, ber.TypeConstructed, ldap.ApplicationExtendedRequest, nil, "")
	request.AppendChild(ber.NewString(ber.ClassContext, ber.TypePrimitive, 0, "1.3.6.1.4.1.1466.20037", ""))
	answer, err := roundTrip(raw, newMessageReader(raw), 1, request)
	if err != nil {
		return err
	}
	return ldap.GetLDAPError(answer)
}

func tlsError(subject, server string, err error) *Error {
	if e, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return CertificateNotTrusted.of(subject, server, errors.New(sanitize(e.Err.Error()))) // it quotes the certificate
	}
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() || errors.Is(err, context.DeadlineExceeded) {
		return Timeout.of(subject, server, errors.New("no TLS in time"))
	}
	// A domain controller without a certificate listens on 636 and hangs up at the first byte, and answers StartTLS
	// with "unavailable".
	return EncryptionRefused.of(subject, server, errors.New(sanitize("no TLS: "+err.Error())))
}

func (c Config) session(conn net.Conn, server, ip, account string, security Security) *Session {
	s := &Session{config: c, account: account, server: server, ip: ip, security: security, conn: newLDAPConn(conn)}
	s.ldap = ldap.NewConn(s.conn, security != Kerberos)
	s.ldap.SetTimeout(c.Timeout + time.Second) // a second line: the connection's deadline comes first
	s.ldap.Start()
	return s
}

func about(err error, subject string) *Error {
	e := err.(*Error)
	e.Subject = subject
	return e
}

// rootDSE is what a domain controller says of itself ([MS-ADTS] 3.1.1.3.2).
type rootDSE struct {
	host, domain, forest, configuration string // the last three are distinguished names
	time                                time.Time
}

// readRoot reads the root DSE and refuses a server of another domain.
func (s *Session) readRoot(ctx context.Context) error {
	subject := "domain " + s.config.Domain
	asked := time.Now()
	entries, err := s.search(ctx, subject, &ldap.SearchRequest{
		Scope: ldap.ScopeBaseObject, SizeLimit: 1, Filter: "(objectClass=*)",
		Attributes: []string{"dnsHostName", "defaultNamingContext", "rootDomainNamingContext", "configurationNamingContext", "currentTime"},
	})
	if err != nil {
		return err
	}
	if len(entries) != 1 {
		return AnswerInvalid.of(subject, s.server, errors.New("it has no root DSE"))
	}
	e := entries[0]
	s.root = rootDSE{
		host: sanitize(e.GetAttributeValue("dnsHostName")), domain: e.GetAttributeValue("defaultNamingContext"),
		forest: e.GetAttributeValue("rootDomainNamingContext"), configuration: e.GetAttributeValue("configurationNamingContext"),
	}
	if s.root.domain == "" || s.root.configuration == "" {
		return AnswerInvalid.of(subject, s.server, errors.New("its root DSE names no domain: it is no domain controller"))
	}
	if name := dnsName(s.root.domain); !strings.EqualFold(name, s.config.Domain) {
		return WrongDomain.of(subject, s.server, fmt.Errorf("it serves %q", sanitize(name)))
	}
	if t, err := time.Parse("20060102150405.0Z", e.GetAttributeValue("currentTime")); err == nil {
		// The time has whole seconds, cut off: half a second more is the best guess.
		s.root.time = t
		s.offset = t.Add(time.Second / 2).Sub(asked.Add(time.Since(asked) / 2)).Round(time.Second)
	}
	return nil
}

// dnsName turns DC=corp,DC=example,DC=com into corp.example.com, and what is not of that form into "".
func dnsName(dn string) string {
	parsed, err := ldap.ParseDN(dn)
	if err != nil {
		return ""
	}
	var labels []string
	for _, rdn := range parsed.RDNs {
		if len(rdn.Attributes) != 1 || !strings.EqualFold(rdn.Attributes[0].Type, "DC") {
			return ""
		}
		labels = append(labels, rdn.Attributes[0].Value)
	}
	return strings.Join(labels, ".")
}

// search asks one question. Referrals among the results are passed over, and none is followed: Active Directory adds
// them to a search of a whole domain, for its child domains and for the DNS zones.
func (s *Session) search(ctx context.Context, subject string, request *ldap.SearchRequest) ([]*ldap.Entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	request.EnforceSizeLimit = true
	request.TimeLimit = max(1, int(s.config.Timeout/time.Second))
	end := s.conn.begin(ctx, s.config.Timeout)
	defer end()
	result, err := s.ldap.Search(request)
	if err != nil {
		return nil, ldapError(subject, s.server, err, s.conn)
	}
	return result.Entries, nil
}

// ldapData finds the Windows error code in the text of a refused bind, such as "…, data 52e, v3839".
var ldapData = regexp.MustCompile(`data ([0-9a-fA-F]{1,8})\b`)

// bindCause is what the code in a refused bind means ([MS-ERREF] 2.2).
var bindCause = map[uint64]*Cause{
	0x525: UnknownAccount,
	0x52e: WrongPassword,
	0x52f: LogonRestricted,
	0x530: LogonRestricted, // logon hours
	0x531: LogonRestricted, // workstation
	0x532: PasswordExpired,
	0x533: AccountDisabled,
	0x569: LogonRestricted, // logon type
	0x701: AccountExpired,
	0x773: MustChangePassword,
	0x775: AccountLocked,
}

// ldapRefusal is a result code other than success, with what the server says of it. It keeps nothing of the packet.
type ldapRefusal struct {
	code uint16
	text string
}

func (e *ldapRefusal) Error() string { return fmt.Sprintf("LDAP result %d, %s", e.code, e.text) }

// ldapError turns what an LDAP server answered, or what became of the connection, into an Error.
func ldapError(subject, server string, err error, conn *ldapConn) *Error {
	if conn != nil {
		if failed := conn.failed.Load(); failed != nil {
			return transport(subject, server, *failed)
		}
	}
	e, ok := errors.AsType[*ldap.Error](err)
	if !ok {
		return transport(subject, server, err)
	}
	if errors.Is(err, ldap.ErrSizeLimitExceeded) {
		return SizeLimit.of(subject, server, errors.New("it sends more than was asked for"))
	}
	var text error = &ldapRefusal{e.ResultCode, sanitize(e.Err.Error())}
	cause := Unexpected
	switch e.ResultCode {
	case ldap.LDAPResultInvalidCredentials:
		cause = WrongPassword
		if m := ldapData.FindStringSubmatch(e.Err.Error()); m != nil {
			code, _ := strconv.ParseUint(m[1], 16, 32)
			if cause = bindCause[code]; cause == nil {
				cause = Unexpected
			}
		}
	case ldap.LDAPResultStrongAuthRequired, ldap.LDAPResultConfidentialityRequired, ldap.LDAPResultAuthMethodNotSupported, ldap.LDAPResultInappropriateAuthentication:
		cause = EncryptionRefused
	case ldap.LDAPResultReferral:
		cause = Referral
	case ldap.LDAPResultSizeLimitExceeded, ldap.LDAPResultAdminLimitExceeded:
		cause = SizeLimit
	case ldap.LDAPResultTimeLimitExceeded:
		cause = Timeout
	case ldap.LDAPResultBusy, ldap.LDAPResultUnavailable:
		cause = DCUnreachable
	case ldap.LDAPResultInsufficientAccessRights:
		cause = NoReadPermission
	case ldap.ErrorNetwork, ldap.ErrorUnexpectedMessage, ldap.ErrorUnexpectedResponse, ldap.ErrorMalformedPacket:
		cause, text = AnswerInvalid, errors.New(sanitize(e.Err.Error()))
	}
	return cause.of(subject, server, text)
}
