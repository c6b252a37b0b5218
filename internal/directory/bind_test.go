package directory

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	ber "github.com/go-asn1-ber/asn1-ber"
	"github.com/go-ldap/ldap/v3"

	"github.com/ccgrkc/ccgrkc/internal/credential"
)

func wantCause(t *testing.T, err error, want *Cause) {
	t.Helper()
	got := CauseOf(err)
	if got == nil || got != want {
		t.Errorf("cause %v of %v; want %s", got, err, want.Name)
	}
	if err != nil && strings.Contains(err.Error(), "m4rker") {
		t.Errorf("the password is in %v", err)
	}
}

func rejectedBind(data string) string {
	return "80090308: LdapErr: DSID-0C09042A, comment: AcceptSecurityContext error, data " + data + ", v3839"
}

func TestRejectedBindsHaveACause(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		code int64
		text string
		want *Cause
	}{
		"525":                   {49, rejectedBind("525"), UnknownAccount},
		"52e":                   {49, rejectedBind("52e"), WrongPassword},
		"52f":                   {49, rejectedBind("52f"), LogonRestricted},
		"530":                   {49, rejectedBind("530"), LogonRestricted},
		"531":                   {49, rejectedBind("531"), LogonRestricted},
		"532":                   {49, rejectedBind("532"), PasswordExpired},
		"533":                   {49, rejectedBind("533"), AccountDisabled},
		"701":                   {49, rejectedBind("701"), AccountExpired},
		"773":                   {49, rejectedBind("773"), MustChangePassword},
		"775":                   {49, rejectedBind("775"), AccountLocked},
		"unknown data":          {49, rejectedBind("fff"), Unexpected},
		"no data":               {49, "", WrongPassword},
		"stronger needed":       {8, "BindSimple: Transport encryption required.", EncryptionRefused},
		"confidentiality":       {13, "", EncryptionRefused},
		"referral":              {10, "0000202B: RefErr", Referral},
		"busy":                  {51, "", DCUnreachable},
		"unavailable":           {52, "", DCUnreachable},
		"protocol error":        {2, "\x1b[2Jm", Unexpected},
		"operations error":      {1, "", Unexpected},
		"result out of RFC4511": {4711, "", Unexpected},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFakeDC(t, answers{"bind": result(ldap.ApplicationBindResponse, c.code, c.text)})
			_, err := Bind(t.Context(), f.config(), reader())
			wantCause(t, err, c.want)
			if strings.ContainsRune(err.Error(), 0x1b) {
				t.Errorf("control characters from the server: %q", err)
			}
		})
	}
}

// shortTimeout is for exchanges that must time out.
const shortTimeout = 200 * time.Millisecond

// Each server sends one faulty response, after a correct bind.
func TestFaultyServersAreHandled(t *testing.T) {
	t.Parallel()
	whole := func(id int64) []byte { return entryMessage(id, gmsaEntry(nil)) }
	reference := func(id int64) []byte {
		r := ber.Encode(ber.ClassApplication, ber.TypeConstructed, ldap.ApplicationSearchResultReference, nil, "")
		r.AppendChild(text("ldap://127.0.0.1/DC=corp,DC=example,DC=test"))
		return envelope(id, r)
	}
	repeat := func(message func(id int64) []byte) func(net.Conn, int64) {
		return func(c net.Conn, id int64) {
			for {
				if _, err := c.Write(message(id)); err != nil {
					return
				}
			}
		}
	}
	empty := func(id int64, tag ber.Tag) []byte {
		return envelope(id, ber.Encode(ber.ClassApplication, ber.TypeConstructed, tag, nil, ""))
	}
	send := func(message []byte) func(net.Conn, int64) {
		return func(c net.Conn, _ int64) { _, _ = c.Write(message) }
	}
	user := entry{"CN=web01", attributes{"sAMAccountName": {"web01"}, "objectClass": {"top", "person", "user"}}}
	for name, c := range map[string]struct {
		answer func(net.Conn, int64)
		want   *Cause
	}{
		"truncated": {func(c net.Conn, id int64) {
			_, _ = c.Write(whole(id)[:40])
			_ = c.Close()
		}, AnswerInvalid},
		"closes": {func(c net.Conn, _ int64) { _ = c.Close() }, DCUnreachable},
		"closes in a response": {func(c net.Conn, id int64) {
			_, _ = c.Write(whole(id))
			_ = c.Close()
		}, DCUnreachable},
		"1 GiB announced": {func(c net.Conn, id int64) {
			_, _ = c.Write([]byte{0x30, 0x84, 0x40, 0, 0, 0})
			silent(c, id)
		}, AnswerInvalid},
		"slow":              {slowly(whole), Timeout},
		"silent":            {silent, Timeout},
		"endless entries":   {repeat(whole), SizeLimit},
		"endless referrals": {repeat(reference), nil},
		"wrong message IDs": {repeat(func(id int64) []byte { return whole(id + 1) }), nil},
		"deeply nested":     {send(nested(100_000)), AnswerInvalid},
		"not LDAP":          {send([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")), AnswerInvalid},
		"an entry without attributes": {func(c net.Conn, id int64) {
			_, _ = c.Write(empty(id, ldap.ApplicationSearchResultEntry))
		}, AnswerInvalid},
		"an empty result": {func(c net.Conn, id int64) {
			_, _ = c.Write(empty(id, ldap.ApplicationSearchResultDone))
		}, AnswerInvalid},
		"no operation":   {send([]byte{0x30, 3, 2, 1, 3}), AnswerInvalid},
		"referral":       {searchResult(10, "0000202B: RefErr: DSID-031007F9"), Referral},
		"size limit":     {searchResult(4, ""), SizeLimit},
		"admin limit":    {searchResult(11, ""), SizeLimit},
		"time limit":     {searchResult(3, ""), Timeout},
		"no such object": {searchResult(32, ""), GMSANotFound},
		"no permission":  {searchResult(50, ""), NoReadPermission},
		"no key":         {searchResult(1, "8009000D: failed to find a suitable root key"), NoKDSKey},
		"not found":      {entries(), GMSANotFound},
		"a user":         {entries(user), NotAGMSA},
		"not readable":   {entries(gmsaEntry(nil)), NoReadPermission},
		"damaged":        {entries(gmsaEntry(attributes{"msDS-ManagedPassword": {"m4rker"}})), ManagedPasswordDamaged},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFakeDC(t, answers{"accounts": c.answer})
			s := f.bind(t)
			if c.want == Timeout || c.want == nil || name == "no operation" {
				s.config.Timeout = shortTimeout
			}
			start := time.Now()
			_, err := s.ManagedPassword(t.Context(), "web01")
			if c.want == nil { // the time limit or the byte limit, whichever is first
				c.want = AnswerInvalid
				if CauseOf(err) == Timeout {
					c.want = Timeout
				}
			}
			wantCause(t, err, c.want)
			if d := time.Since(start); d > 4*time.Second {
				t.Errorf("took %s", d)
			}
			s.config.Timeout = shortTimeout
			readable := c.want == NoReadPermission || c.want == ManagedPasswordDamaged
			if _, err := s.GMSA(t.Context(), "web01"); err == nil && !readable {
				t.Error("the gMSA was read")
			}
		})
	}
}

func TestReferralsAmongTheResultsAreNotFollowed(t *testing.T) {
	t.Parallel()
	f := newFakeDC(t, answers{"accounts": func(c net.Conn, id int64) {
		r := ber.Encode(ber.ClassApplication, ber.TypeConstructed, ldap.ApplicationSearchResultReference, nil, "")
		r.AppendChild(text("ldap://127.0.0.1/DC=DomainDnsZones,DC=corp,DC=example,DC=test"))
		_, _ = c.Write(envelope(id, r))
		entries(gmsaEntry(nil))(c, id)
	}})
	if g, err := f.bind(t).GMSA(t.Context(), "web01"); err != nil || g.Name != "web01" {
		t.Errorf("%v, %v", g, err)
	}
	if got := f.received(); got != "root bind accounts" {
		t.Errorf("requests: %s", got)
	}
}

// Only a domain controller of the domain, identified by its certificate, receives the password.
func TestOtherServersDoNotReceiveThePassword(t *testing.T) {
	t.Parallel()
	_, otherRoots := newCertificate(t, "127.0.0.1")
	forged := fakeDNS(t, 0, "0 0 389 "+outsideHost+".")
	const other = "DC=other,DC=example,DC=test"
	for name, c := range map[string]struct {
		change func(*Config)
		answer answers
		want   *Cause
	}{
		"another CA": {
			change: func(c *Config) { c.RootCAs = otherRoots },
			want:   CertificateNotTrusted,
		},
		"another CA, StartTLS": {
			change: func(c *Config) { c.RootCAs, c.Security = otherRoots, StartTLS },
			want:   CertificateNotTrusted,
		},
		"another name": {
			change: func(c *Config) { c.Servers = []string{"localhost"} },
			want:   CertificateNotTrusted,
		},
		"a forged SRV record": {
			change: func(c *Config) { c.Servers, c.DNSServer = nil, forged },
			want:   CertificateNotTrusted,
		},
		"a forged SRV record, StartTLS": {
			change: func(c *Config) { c.Servers, c.DNSServer, c.Security = nil, forged, StartTLS },
			want:   CertificateNotTrusted,
		},
		"no TLS": {
			change: func(c *Config) { c.ports = map[string]string{"636": c.ports["88"]} },
			want:   EncryptionRefused,
		},
		"LDAP instead of TLS": {
			change: func(c *Config) { c.ports = map[string]string{"636": c.ports["389"]} },
			want:   EncryptionRefused,
		},
		"StartTLS rejected": {
			change: func(c *Config) { c.Security = StartTLS },
			answer: answers{"starttls": result(ldap.ApplicationExtendedResponse, 52, "no certificate")},
			want:   EncryptionRefused,
		},
		"plain text after StartTLS": {
			change: func(c *Config) { c.Security = StartTLS },
			answer: answers{"starttls": func(c net.Conn, id int64) {
				accepted := resultMessage(id, ldap.ApplicationExtendedResponse, 0, "")
				_, _ = c.Write(append(accepted, resultMessage(2, ldap.ApplicationBindResponse, 0, "")...))
			}},
			want: EncryptionRefused,
		},
		"another domain": {
			change: func(*Config) {},
			answer: answers{"root": entries(rootEntry(other, other))},
			want:   WrongDomain,
		},
		"no domain": {
			change: func(*Config) {},
			answer: answers{"root": entries(entry{"", attributes{"vendorName": {"x"}}})},
			want:   AnswerInvalid,
		},
		"no root DSE": {
			change: func(*Config) {},
			answer: answers{"root": entries()},
			want:   AnswerInvalid,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFakeDC(t, c.answer)
			config := f.config()
			c.change(&config)
			_, err := Bind(t.Context(), config, reader())
			wantCause(t, err, c.want)
			if strings.Contains(f.received(), "bind") {
				t.Errorf("requests: %s", f.received())
			}
		})
	}
}

func TestARejectedPasswordIsSentOnlyOnce(t *testing.T) {
	t.Parallel()
	f := newFakeDC(t, answers{"bind": result(ldap.ApplicationBindResponse, 49, rejectedBind("52e"))})
	config := f.config()
	config.Servers = []string{"127.0.0.1", "127.0.0.1", "127.0.0.1"}
	_, err := Bind(t.Context(), config, reader())
	wantCause(t, err, WrongPassword)
	if got := strings.Count(f.received(), "bind"); got != 1 {
		t.Errorf("sent %d times", got)
	}
}

func TestAnEmptyPasswordIsNotSent(t *testing.T) {
	t.Parallel()
	f := newFakeDC(t, nil)
	_, err := Bind(t.Context(), f.config(), credential.Credential{Username: "reader"})
	wantCause(t, err, WrongPassword)
	if f.received() != "" {
		t.Errorf("requests: %s", f.received())
	}
}

func TestTheSecondOfTwoDomainControllersIsUsed(t *testing.T) {
	t.Parallel()
	f := newFakeDC(t, nil)
	config := f.config()
	config.Servers = []string{"127.0.0.7", "127.0.0.1"}
	s, err := Bind(t.Context(), config, reader())
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	config.Servers = []string{"127.0.0.7", "127.0.0.8"}
	_, err = Bind(t.Context(), config, reader())
	wantCause(t, err, DCUnreachable)
	for _, server := range config.Servers {
		if !strings.Contains(err.Error(), server) {
			t.Errorf("%v does not contain %s", err, server)
		}
	}
}

// This test uses a fake because a child domain is expensive to create with Samba.
func TestAChildDomainHasTheForestOfItsRootDomain(t *testing.T) {
	t.Parallel()
	const child, root = "DC=corp,DC=example,DC=test", "DC=example,DC=test"
	f := newFakeDC(t, answers{
		"root": entries(rootEntry(child, root)),
		"partitions": entries(
			crossRef("EXAMPLE,CN=Partitions", root, "example.test"),
			crossRef("CORP,CN=Partitions", child, fakeDomain)),
	})
	got, err := f.bind(t).Domain(t.Context())
	want := Domain{
		SID:           "S-1-5-21-1-2-3-1256",
		GUID:          "33323130-3534-3736-3839-616263646566",
		DNSName:       fakeDomain,
		NetBIOSName:   "CORP",
		ForestDNSName: "example.test",
	}
	if err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestADomainNameCanHaveOneLabel(t *testing.T) {
	t.Parallel()
	f := newFakeDC(t, answers{
		"root":       entries(rootEntry("DC=corp", "DC=corp")),
		"partitions": entries(crossRef("CORP,CN=Partitions", "DC=corp", "corp")),
	})
	config := f.config()
	config.Domain = "corp"
	s, err := Bind(t.Context(), config, reader())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if d, err := s.Domain(t.Context()); err != nil || d.DNSName != "corp" || d.ForestDNSName != "corp" {
		t.Errorf("%+v, %v", d, err)
	}
}

func TestAnIncompleteDomainIsAnError(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]answers{
		"no object": {"domain": entries()},
		"no SID":    {"domain": entries(entry{"DC=corp", attributes{"objectGUID": {"0123456789abcdef"}}})},
		"no GUID":   {"domain": entries(entry{"DC=corp", attributes{"objectSid": {sidOf(1)}}})},
		"no names":  {"partitions": entries()},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, err := newFakeDC(t, answer).bind(t).Domain(t.Context())
			wantCause(t, err, AnswerInvalid)
			if d != (Domain{}) {
				t.Errorf("incomplete domain: %+v", d)
			}
		})
	}
}

func TestNamesAreEscapedInFilters(t *testing.T) {
	t.Parallel()
	f := newFakeDC(t, nil)
	s := f.bind(t)
	for name, want := range map[string]string{
		"web01":                  "web01",
		"web01$":                 "web01",
		"*":                      `\2a`,
		"a)(objectClass=*":       `a\29\28objectClass=\2a`,
		`back\slash`:             `back\5cslash`,
		"nul\x00":                `nul\00`,
		`"quo'ted"`:              `"quo'ted"`,
		"jürgen":                 `j\c3\bcrgen`,
		"密码":                     `\e5\af\86\e7\a0\81`,
		"\xff\xfe":               `\ff\fe`,
		"$":                      "",
		"":                       "",
		strings.Repeat("x", 300): strings.Repeat("x", 300),
	} {
		f.mu.Lock()
		f.filter = ""
		f.mu.Unlock()
		_, err := s.GMSA(t.Context(), name)
		wantCause(t, err, GMSANotFound)
		full := ""
		if want != "" {
			full = fmt.Sprintf("(|(sAMAccountName=%s$)(sAMAccountName=%s))", want, want)
		}
		f.mu.Lock()
		if f.filter != full {
			t.Errorf("the filter for %q is %s; want %s", name, f.filter, full)
		}
		f.mu.Unlock()
	}
}

// A cancelled call returns immediately from each step, with an error that it was interrupted, not that a server was too
// slow.
func TestACancelledCallReturnsImmediatelyWithoutACause(t *testing.T) {
	t.Parallel()
	_, silentPort := listen(t, func(c net.Conn) { silent(c, 0) })
	bind := func(security Security, ports map[string]string, answer answers) func(context.Context) error {
		f := newFakeDC(t, answer)
		config := f.config()
		config.Timeout, config.Security = time.Minute, security
		maps.Copy(config.ports, ports)
		return func(ctx context.Context) error {
			s, err := Bind(ctx, config, reader())
			if err == nil {
				s.Close()
			}
			return err
		}
	}
	f := newFakeDC(t, answers{"accounts": silent, "domain": silent})
	config := f.config()
	config.Timeout = time.Minute
	config.ports["88"] = silentPort
	session := func(call func(ctx context.Context, s *Session) error) func(context.Context) error {
		s, err := Bind(t.Context(), config, reader())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		return func(ctx context.Context) error { return call(ctx, s) }
	}
	dns := fakeDNS(t, 255) // receives queries and answers none
	for name, call := range map[string]func(context.Context) error{
		"DNS": func(ctx context.Context) error {
			_, err := Locate(ctx, Config{Domain: fakeDomain, DNSServer: dns, Timeout: time.Minute})
			return err
		},
		"root DSE": bind(LDAPS, nil, answers{"root": silent}),
		"bind":     bind(LDAPS, nil, answers{"bind": silent}),
		"TLS":      bind(LDAPS, map[string]string{"636": silentPort}, nil),
		"StartTLS": bind(StartTLS, nil, answers{"starttls": silent}),
		"Kerberos": bind(Kerberos, map[string]string{"88": silentPort}, nil),
		"auto":     bind(Auto, map[string]string{"88": silentPort}, nil),
		"domain":   session(func(ctx context.Context, s *Session) error { _, err := s.Domain(ctx); return err }),
		"gMSA":     session(func(ctx context.Context, s *Session) error { _, err := s.GMSA(ctx, "web01"); return err }),
		"password": session(func(ctx context.Context, s *Session) error {
			_, err := s.ManagedPassword(ctx, "web01")
			return err
		}),
		"ticket": session(func(ctx context.Context, s *Session) error {
			_, err := s.TicketAs(ctx, "web01", &ManagedPassword{})
			return err
		}),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(50*time.Millisecond, cancel)
			start := time.Now()
			err := call(ctx)
			if CauseOf(err) != nil || !errors.Is(err, context.Canceled) ||
				!strings.Contains(err.Error(), "interrupted") {
				t.Errorf("%v", err)
			}
			if d := time.Since(start); d > 4*time.Second {
				t.Errorf("took %s", d)
			}
		})
	}
}

// The caller's own deadline is a timeout, not an interruption. An error about the account keeps its cause after a
// cancellation, because it counts as a failed logon.
func TestDeadlinesAndAccountErrorsKeepTheirCause(t *testing.T) {
	t.Parallel()
	f := newFakeDC(t, answers{"accounts": silent})
	s := f.bind(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := s.GMSA(ctx, "web01")
	wantCause(t, err, Timeout)

	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	wantCause(t, interrupted(cancelled, WrongPassword.of("account x", "dc1", nil)), WrongPassword)
	if err := interrupted(cancelled, nil); err != nil {
		t.Error(err)
	}
}

// A session can be idle for longer than the timeout of one exchange.
func TestASessionCanBeIdleLongerThanTheTimeout(t *testing.T) {
	t.Parallel()
	config := newFakeDC(t, nil).config()
	config.Timeout = shortTimeout
	s, err := Bind(t.Context(), config, reader())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	time.Sleep(2 * config.Timeout)
	if _, err := s.Domain(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestClosedSessionsLeaveNoGoroutines(t *testing.T) {
	f := newFakeDC(t, nil)
	before := runtime.NumGoroutine()
	for range 20 {
		s, err := Bind(t.Context(), f.config(), reader())
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		s.Close()
	}
	deadline := time.Now().Add(5 * time.Second)
	for runtime.NumGoroutine() > before+3 && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	if after := runtime.NumGoroutine(); after > before+3 {
		t.Errorf("%d goroutines before, %d after", before, after)
	}
}

func TestInvalidConfigurationsAreRejected(t *testing.T) {
	for _, domain := range []string{
		"", ".", "corp example", "CORP\\x", "http://corp", "a@b", strings.Repeat("x", 300), "a\x00b",
	} {
		if _, err := Locate(t.Context(), Config{Domain: domain}); CauseOf(err) != DNSNotFound {
			t.Errorf("%q: %v", domain, err)
		}
	}
	for in, want := range map[string]Security{
		"":         Auto,
		"auto":     Auto,
		"Kerberos": Kerberos,
		"LDAPS":    LDAPS,
		"starttls": StartTLS,
	} {
		if got, err := ParseSecurity(in); err != nil || got != want {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	for _, bad := range []string{"none", "plain", "ldap", "ssl"} {
		if got, err := ParseSecurity(bad); err == nil {
			t.Errorf("%q was accepted as %q", bad, got)
		}
	}
	if _, err := Bind(t.Context(), Config{Domain: "corp.example.test", Security: "plain"}, reader()); err == nil {
		t.Error("an unprotected bind was accepted")
	}
	var e *Error
	if !errors.As(error(Timeout.of("x", "y", nil)), &e) {
		t.Error("an *Error is not found by errors.As")
	}
}
