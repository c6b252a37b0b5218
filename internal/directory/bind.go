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

// Session is a bound connection to one domain controller. Only one goroutine at a time can use it. Its formatted form
// contains only the server, because it holds session keys.
type Session struct {
	config   Config
	account  string // user@domain, for error messages
	server   string // host name of the domain controller, or the configured name or address
	ip       string
	security Security

	mu     sync.Mutex
	conn   *ldapConn
	ldap   *ldap.Conn
	root   rootDSE
	offset time.Duration
}

// Server returns the domain controller's host name.
func (s *Session) Server() string { return s.server }

// Security returns the protection of the connection: Kerberos, LDAPS or StartTLS.
func (s *Session) Security() Security { return s.security }

// Time returns the domain controller's clock at the time of the bind, in whole seconds.
func (s *Session) Time() time.Time { return s.root.time }

// Offset returns the difference between the domain controller's clock and this machine's, to a second. It is positive
// if the domain controller's clock is ahead.
func (s *Session) Offset() time.Duration { return s.offset }

// Close closes the connection.
func (s *Session) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.conn.SetDeadline(time.Now().Add(time.Second)) // TLS sends an alert, and the server might not read it
	_ = s.ldap.Close()
}

func (s *Session) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "session with %s (%s)", s.server, s.security)
}

// Bind connects to a domain controller and authenticates with the account's password. It tries the servers in order.
// After one of them rejects the password it tries no other, because each rejection counts towards a lockout.
func Bind(ctx context.Context, c Config, cred credential.Credential) (_ *Session, err error) {
	defer func() { err = interrupted(ctx, err) }()
	if c, err = c.complete(); err != nil {
		return nil, err
	}
	account := cred.Username + "@" + c.Domain
	if len(cred.Password.Reveal()) == 0 { // for an LDAP server, a bind without password is anonymous
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
		if !slices.Contains(tryNextServer, CauseOf(err)) || ctx.Err() != nil {
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
	all := fmt.Errorf("all %d domain controllers failed: %s", len(servers), strings.Join(each, "; "))
	return nil, CauseOf(failed[0]).of("domain "+c.Domain, "", all)
}

// tryNextServer lists the causes that are specific to one domain controller.
var tryNextServer = []*Cause{
	DCUnreachable, DNSNotFound, DNSUnreachable, Timeout, CertificateNotTrusted, EncryptionRefused, AnswerInvalid,
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
	// A password that the domain controller has accepted or rejected is not sent again. LDAPS and StartTLS are tried
	// only if Kerberos is unavailable or its answer can have several causes.
	status, _ := errors.AsType[*kdcError](first)
	if aboutAccount(first.Cause) && (first.Cause != PasswordExpired || status == nil || status.status != 0) {
		return nil, first
	}
	var also []string
	for _, security := range []Security{LDAPS, StartTLS} {
		if d, ok := errors.AsType[*dialError](first); ok && d.port == "389" && security == StartTLS {
			continue
		}
		if ctx.Err() != nil {
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

// aboutAccount reports whether a cause is a property of the account. Another protocol would give the same result.
func aboutAccount(c *Cause) bool {
	return slices.Contains([]*Cause{
		UnknownAccount, WrongPassword, AccountDisabled, AccountLocked, AccountExpired, PasswordExpired,
		MustChangePassword, LogonRestricted, WrongDomain,
	}, c)
}

func (c Config) bindKerberos(
	ctx context.Context, server, account string, cred credential.Credential,
) (*Session, error) {
	subject := "account " + account
	// The request for the server's host name is in plain text and unauthenticated. That is safe: only the domain's
	// controllers have service names that end in the domain ([MS-ADTS] 5.1.1.4), so no other server can use the ticket.
	plain, err := c.dial(ctx, server, "389")
	if err != nil {
		return nil, withSubject(err, subject)
	}
	ip, _, _ := net.SplitHostPort(plain.RemoteAddr().String())
	s := c.session(plain, server, ip, account, Kerberos)
	err = s.readRoot(ctx)
	s.Close()
	if err != nil {
		return nil, withSubject(err, subject)
	}
	if s.root.host == "" {
		return nil, AnswerInvalid.of(subject, server, errors.New("its root DSE has no host name"))
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
		return nil, withSubject(err, subject)
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
		if e.Cause == WrongPassword { // but Kerberos accepted it
			e.Cause = Unexpected
		}
		return nil, e
	}
	bound := c.session(conn, s.root.host, ip, account, Kerberos)
	if err := bound.readRoot(ctx); err != nil {
		bound.Close()
		return nil, withSubject(err, subject)
	}
	return bound, nil
}

func (c Config) bindTLS(
	ctx context.Context, security Security, server, account string, cred credential.Credential,
) (*Session, error) {
	subject := "account " + account
	// A certificate proves only a name. An attacker who forges DNS answers can return a name that he owns, with a valid
	// certificate. So a name from DNS must be within the domain. Kerberos does not need this rule.
	if len(c.Servers) == 0 && !c.contains(server) {
		return nil, CertificateNotTrusted.of(subject, server,
			fmt.Errorf("its name, from DNS, is not within %s: specify it with --dc if it is a domain controller",
				c.Domain))
	}
	port := "636"
	if security == StartTLS {
		port = "389"
	}
	raw, err := c.dial(ctx, server, port)
	if err != nil {
		return nil, withSubject(err, subject)
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
	if err := s.readRoot(ctx); err != nil { // before the bind, which in a wrong domain would fail with WrongPassword
		s.Close()
		return nil, withSubject(err, subject)
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

// contains reports whether a host's name is within the domain.
func (c Config) contains(host string) bool {
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
	conn := tls.Client(raw, &tls.Config{
		ServerName: strings.Trim(server, "[]"),
		RootCAs:    c.RootCAs,
		MinVersion: tls.VersionTLS12,
	})
	return conn, conn.HandshakeContext(ctx)
}

// startTLS requests TLS on the connection (RFC 4511 4.14).
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
		// The text contains names from the certificate.
		return CertificateNotTrusted.of(subject, server, errors.New(sanitize(e.Err.Error())))
	}
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() || errors.Is(err, context.DeadlineExceeded) {
		return Timeout.of(subject, server, errors.New("the TLS handshake timed out"))
	}
	// A domain controller without a certificate listens on port 636 and closes the connection at the first byte. It
	// answers StartTLS with "unavailable".
	return EncryptionRefused.of(subject, server, errors.New(sanitize("TLS is unavailable: "+err.Error())))
}

func (c Config) session(conn net.Conn, server, ip, account string, security Security) *Session {
	s := &Session{
		config:   c,
		account:  account,
		server:   server,
		ip:       ip,
		security: security,
		conn:     newLDAPConn(conn),
	}
	s.ldap = ldap.NewConn(s.conn, security != Kerberos)
	s.ldap.SetTimeout(c.Timeout + time.Second) // defense in depth: the connection's deadline is earlier
	s.ldap.Start()
	return s
}

func withSubject(err error, subject string) *Error {
	e := err.(*Error)
	e.Subject = subject
	return e
}

// rootDSE describes a domain controller ([MS-ADTS] 3.1.1.3.2).
type rootDSE struct {
	host, domain, forest, configuration string // the last three are distinguished names
	time                                time.Time
}

// readRoot reads the root DSE. It returns an error for a server of another domain.
func (s *Session) readRoot(ctx context.Context) error {
	subject := "domain " + s.config.Domain
	begin := time.Now()
	entries, err := s.search(ctx, subject, &ldap.SearchRequest{
		Scope:     ldap.ScopeBaseObject,
		SizeLimit: 1,
		Filter:    "(objectClass=*)",
		Attributes: []string{
			"dnsHostName", "defaultNamingContext", "rootDomainNamingContext", "configurationNamingContext",
			"currentTime",
		},
	})
	if err != nil {
		return err
	}
	if len(entries) != 1 {
		return AnswerInvalid.of(subject, s.server, errors.New("it has no root DSE"))
	}
	e := entries[0]
	s.root = rootDSE{
		host:          sanitize(e.GetAttributeValue("dnsHostName")),
		domain:        e.GetAttributeValue("defaultNamingContext"),
		forest:        e.GetAttributeValue("rootDomainNamingContext"),
		configuration: e.GetAttributeValue("configurationNamingContext"),
	}
	if s.root.domain == "" || s.root.configuration == "" {
		return AnswerInvalid.of(subject, s.server,
			errors.New("its root DSE contains no domain: it is not a domain controller"))
	}
	if name := dnsName(s.root.domain); !strings.EqualFold(name, s.config.Domain) {
		return WrongDomain.of(subject, s.server, fmt.Errorf("its domain is %q", sanitize(name)))
	}
	if t, err := time.Parse("20060102150405.0Z", e.GetAttributeValue("currentTime")); err == nil {
		// The server truncates the time to seconds. On average, half a second is missing.
		s.root.time = t
		s.offset = t.Add(time.Second / 2).Sub(begin.Add(time.Since(begin) / 2)).Round(time.Second)
	}
	return nil
}

// dnsName converts DC=corp,DC=example,DC=com to corp.example.com. It returns "" for any other form.
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

// search runs one search and ignores referrals in the result. Active Directory adds referrals for child domains and DNS
// zones to a search of a whole domain.
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

// ldapData finds the Windows error code in the text of a rejected bind, such as "…, data 52e, v3839".
var ldapData = regexp.MustCompile(`data ([0-9a-fA-F]{1,8})\b`)

// bindCause maps the Windows error code of a rejected bind ([MS-ERREF] 2.2).
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

// ldapResult is a result code other than success, and the server's text. It does not reference the packet.
type ldapResult struct {
	code uint16
	text string
}

func (e *ldapResult) Error() string { return fmt.Sprintf("LDAP result %d, %s", e.code, e.text) }

// ldapError converts an LDAP result or a connection error to an Error.
func ldapError(subject, server string, err error, conn *ldapConn) *Error {
	if conn != nil {
		if failed := conn.failed.Load(); failed != nil {
			return transportError(subject, server, *failed)
		}
	}
	e, ok := errors.AsType[*ldap.Error](err)
	if !ok {
		return transportError(subject, server, err)
	}
	if errors.Is(err, ldap.ErrSizeLimitExceeded) {
		return SizeLimit.of(subject, server, errors.New("it returned more entries than requested"))
	}
	var text error = &ldapResult{e.ResultCode, sanitize(e.Err.Error())}
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
	case ldap.LDAPResultStrongAuthRequired, ldap.LDAPResultConfidentialityRequired,
		ldap.LDAPResultAuthMethodNotSupported, ldap.LDAPResultInappropriateAuthentication:
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
