package directory

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/directory"
	"github.com/ccgrkc/ccgrkc/lab/env/ad"
)

// The standard domains, shared by tests that change only their own accounts.
var corp, other *ad.Domain

// corpDir is the directory of corp's files.
var corpDir string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "directory-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() { _ = os.RemoveAll(dir) }()
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
		defer cancel()
		if corp, other, err = ad.StartPair(ctx, dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		corpDir = filepath.Join(dir, ad.Corp.DNSName)
		defer corp.Stop()
		defer other.Stop()
		code := m.Run()
		if leaked := output.search(); leaked != "" {
			fmt.Fprintln(os.Stderr, "FAIL: the output contains a password: ", leaked)
			return 1
		}
		return code
	}())
}

// transcript collects the output of the package, and the passwords that it must not contain.
type transcript struct {
	mu      sync.Mutex
	text    strings.Builder
	secrets [][]byte
}

var output transcript

func (s *transcript) add(values ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range values {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
			fmt.Fprintf(&s.text, verb+"\n", v)
		}
		if b, err := json.Marshal(v); err == nil {
			s.text.Write(b)
		}
	}
}

func (s *transcript) secret(b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.secrets = append(s.secrets, bytes.Clone(b))
}

// search returns the form of a secret that is in the output, or "".
func (s *transcript) search() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	text := s.text.String()
	for _, b := range s.secrets {
		for _, form := range []string{
			string(b), fmt.Sprintf("%x", b), strings.Trim(fmt.Sprint(b), "[]"),
			strings.Trim(fmt.Sprintf("%#v", b), "[]byte{}"),
		} {
			if len(form) > 6 && strings.Contains(text, form) {
				return form
			}
		}
	}
	return ""
}

func config(t testing.TB, d *ad.Domain, security directory.Security) directory.Config {
	t.Helper()
	pem, err := os.ReadFile(d.CA)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	return directory.Config{Domain: d.DNSName, DNSServer: d.Address, Security: security, RootCAs: roots}
}

func bind(t testing.TB, c directory.Config, who credential.Credential) (*directory.Session, error) {
	t.Helper()
	output.secret(who.Password.Reveal())
	s, err := directory.Bind(t.Context(), c, who)
	output.add(c, s, err)
	if err == nil {
		t.Cleanup(s.Close)
	}
	return s, err
}

func mustBind(t testing.TB, d *ad.Domain, security directory.Security) *directory.Session {
	t.Helper()
	s, err := bind(t, config(t, d, security), d.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func managedPassword(t testing.TB, s *directory.Session, gmsa string) *directory.ManagedPassword {
	t.Helper()
	m, err := s.ManagedPassword(t.Context(), gmsa)
	output.add(m, err)
	if err != nil {
		t.Fatal(err)
	}
	output.secret(m.Current.Reveal())
	output.secret(m.Previous.Reveal())
	return m
}

func wantCause(t testing.TB, err error, want *directory.Cause) {
	t.Helper()
	output.add(err)
	got := directory.CauseOf(err)
	if want == nil {
		if err != nil {
			t.Errorf("%v", err)
		}
		return
	}
	if got != want {
		t.Errorf("%v, of %v; want %s", got, err, want.Name)
	}
}

func try(t testing.TB, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestAllStepsSucceedWithEachProtection(t *testing.T) {
	for _, security := range []directory.Security{
		directory.Auto, directory.Kerberos, directory.LDAPS, directory.StartTLS,
	} {
		t.Run(string(security), func(t *testing.T) {
			start := time.Now()
			s := mustBind(t, corp, security)
			d, err := s.Domain(t.Context())
			try(t, err)
			g, err := s.GMSA(t.Context(), corp.GMSA+"$")
			try(t, err)
			m := managedPassword(t, s, corp.GMSA)
			k, err := s.TicketAs(t.Context(), corp.GMSA, m)
			try(t, err)
			t.Logf("bind, domain, gMSA, managed password and ticket took %s", time.Since(start).Round(time.Millisecond))
			output.add(d, g, k)

			if want := security; s.Security() != want && (want != directory.Auto || s.Security() != directory.Kerberos) {
				t.Errorf("bound with %s", s.Security())
			}
			if s.Server() != corp.DC || s.Offset().Abs() > 2*time.Second || time.Since(s.Time()).Abs() > time.Minute {
				t.Errorf("%s, %s, %s", s.Server(), s.Time(), s.Offset())
			}
			if !strings.HasPrefix(d.SID, "S-1-5-21-") || len(d.GUID) != 36 || d.GUID != strings.ToLower(d.GUID) ||
				d.DNSName != corp.DNSName || d.NetBIOSName != corp.NetBIOS || d.ForestDNSName != corp.DNSName {
				t.Errorf("%+v", d)
			}
			if g.Name != corp.GMSA || !strings.HasPrefix(g.SID, d.SID+"-") || !g.Enabled ||
				g.DNSHostName != corp.GMSA+"."+corp.DNSName || !slices.Contains(g.SPNs, "HTTP/"+g.DNSHostName) ||
				g.EncryptionTypes != ad.AES|ad.RC4 || g.PasswordInterval != 30*24*time.Hour ||
				g.PasswordLastSet.IsZero() || !slices.Contains(g.Readers, ad.Group) ||
				!strings.HasPrefix(g.DN, "CN="+corp.GMSA+",") {
				t.Errorf("%+v", g)
			}
			if len(m.Current.Reveal()) != 256 || m.Query <= m.Unchanged || m.Unchanged <= 0 {
				t.Errorf("%d bytes, query in %s, unchanged for %s", len(m.Current.Reveal()), m.Query, m.Unchanged)
			}
			realm := strings.ToUpper(corp.DNSName)
			if k.Client != corp.GMSA+"$@"+realm || k.Service != "krbtgt/"+realm || k.KDC != corp.DC || k.Previous ||
				k.EncryptionType != "aes256-cts-hmac-sha1-96" || k.End.Sub(k.Start) < time.Hour {
				t.Errorf("%+v", k)
			}
		})
	}
}

func BenchmarkAllSteps(b *testing.B) {
	c := config(b, corp, directory.Auto)
	for b.Loop() {
		s, err := directory.Bind(b.Context(), c, corp.Reader)
		try(b, err)
		_, err = s.Domain(b.Context())
		try(b, err)
		_, err = s.GMSA(b.Context(), corp.GMSA)
		try(b, err)
		m, err := s.ManagedPassword(b.Context(), corp.GMSA)
		try(b, err)
		_, err = s.TicketAs(b.Context(), corp.GMSA, m)
		try(b, err)
		s.Close()
	}
}

// The test sets each state on a real account, and binds with each protection.
func TestAccountStatesHaveACause(t *testing.T) {
	type states struct{ kerberos, ldaps, auto *directory.Cause }
	same := func(c *directory.Cause) states { return states{c, c, c} }
	for name, c := range map[string]struct {
		prepare func(ctx context.Context, user string) error
		want    states
	}{
		"valid":            {func(context.Context, string) error { return nil }, same(nil)},
		"disabled":         {corp.Disable, same(directory.AccountDisabled)},
		"locked":           {corp.Lock, same(directory.AccountLocked)},
		"expired":          {corp.Expire, same(directory.AccountExpired)},
		"password expired": {corp.ExpirePassword, same(directory.PasswordExpired)},
		"no hours":         {corp.RestrictLogonHours, same(directory.LogonRestricted)},
		// Samba's KDC ignores the workstation.
		"another workstation": {corp.RestrictWorkstations, states{nil, directory.LogonRestricted, nil}},
		"must change password": {func(ctx context.Context, user string) error {
			return corp.MustChange(ctx, user, credential.NewPassword([]byte(password)))
		}, same(directory.MustChangePassword)},
		"wrong password": {func(ctx context.Context, user string) error {
			return corp.SetPassword(ctx, user, ad.NewPassword())
		}, same(directory.WrongPassword)},
		// Over LDAP, Active Directory does not distinguish an unknown user from a wrong password.
		"unknown": {corp.Remove, states{directory.UnknownAccount, directory.WrongPassword, directory.UnknownAccount}},
		// This is the state of an account whose password is older than the domain's AES support.
		"RC4 key only": {removeAESKeys, states{directory.EncryptionTypeUnsupported, nil, nil}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			user := "state-" + strings.ReplaceAll(name, " ", "-")
			try(t, corp.AddUser(t.Context(), user, credential.NewPassword([]byte(password))), c.prepare(t.Context(), user))
			for security, want := range map[directory.Security]*directory.Cause{
				directory.Kerberos: c.want.kerberos,
				directory.LDAPS:    c.want.ldaps,
				directory.Auto:     c.want.auto,
			} {
				_, err := bind(t, config(t, corp, security), credential.Credential{
					Username: user,
					Password: credential.NewPassword([]byte(password)),
				})
				wantCause(t, err, want)
			}
		})
	}
}

const password = "M4rker-Passwörd-𝄞 \"'\\"

// removeAESKeys removes all keys of a user except the RC4 key. Samba has no interface for that, so it changes the
// database file.
func removeAESKeys(ctx context.Context, user string) error {
	base := "DC=" + strings.ReplaceAll(corp.DNSName, ".", ",DC=")
	cmd := exec.CommandContext(ctx, "/usr/bin/python3", "-c", `
import ldb, samba, sys
db = samba.Ldb(url=sys.argv[1])
m = ldb.Message(ldb.Dn(db, sys.argv[2]))
m["x"] = ldb.MessageElement([], ldb.FLAG_MOD_DELETE, "supplementalCredentials")
db.modify(m)`, filepath.Join(corpDir, "private", "sam.ldb.d", strings.ToUpper(base)+".ldb"), "CN="+user+",CN=Users,"+base)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}

func TestGMSAStatesHaveACause(t *testing.T) {
	s := mustBind(t, corp, directory.Kerberos)
	read := func(t *testing.T, gmsa string) error {
		_, err := s.ManagedPassword(t.Context(), gmsa)
		return err
	}
	t.Run("not found", func(t *testing.T) {
		for _, name := range []string{
			"nosuch", "", "$", "*", "web*", "web01)(x=", `we\b01`, other.GMSA, strings.Repeat("x", 5000),
		} {
			wantCause(t, read(t, name), directory.GMSANotFound)
		}
	})
	t.Run("not a gMSA", func(t *testing.T) {
		for _, name := range []string{corp.Reader.Username, ad.Group, "dc1", "dc1$"} {
			wantCause(t, read(t, name), directory.NotAGMSA)
		}
	})
	t.Run("no read permission", func(t *testing.T) {
		try(t, corp.AddGMSA(t.Context(), "unreadable"))
		wantCause(t, read(t, "unreadable"), directory.NoReadPermission)
		g, err := s.GMSA(t.Context(), "unreadable")
		if err != nil || slices.Contains(g.Readers, ad.Group) {
			t.Errorf("%v, %v", g.Readers, err)
		}
		try(t, corp.Grant(t.Context(), "unreadable", ad.Group))
		wantCause(t, read(t, "unreadable"), nil)
		try(t, corp.Revoke(t.Context(), "unreadable", ad.Group))
		wantCause(t, read(t, "unreadable"), directory.NoReadPermission)
	})
	t.Run("disabled", func(t *testing.T) {
		try(t, corp.AddGMSA(t.Context(), "disabled", ad.Group), corp.DisableGMSA(t.Context(), "disabled"))
		if g, err := s.GMSA(t.Context(), "disabled"); err != nil || g.Enabled {
			t.Errorf("%+v, %v", g, err)
		}
		_, err := s.TicketAs(t.Context(), "disabled", managedPassword(t, s, "disabled"))
		wantCause(t, err, directory.GMSADisabled)
	})
	t.Run("removed", func(t *testing.T) {
		try(t, corp.AddGMSA(t.Context(), "removed", ad.Group))
		m := managedPassword(t, s, "removed")
		try(t, corp.RemoveGMSA(t.Context(), "removed"))
		_, err := s.TicketAs(t.Context(), "removed", m)
		wantCause(t, err, directory.GMSANotFound)
	})
	t.Run("rolled", func(t *testing.T) {
		try(t, corp.AddGMSA(t.Context(), "rolled", ad.Group))
		before := managedPassword(t, s, "rolled")
		try(t, corp.RollManagedPassword(t.Context(), "rolled"))
		after := managedPassword(t, s, "rolled")
		old := before.Current.Reveal()
		if !bytes.Equal(after.Previous.Reveal(), old) || bytes.Equal(after.Current.Reveal(), old) {
			t.Error("the old current password is not the new previous password")
		}
		k, err := s.TicketAs(t.Context(), "rolled", after)
		if err != nil || k.Previous {
			t.Errorf("%+v, %v", k, err)
		}
		// This is the state in the minutes before a change: the current password is not valid yet.
		invalid := credential.NewPassword(bytes.Repeat([]byte{'x', 0}, 128))
		next := &directory.ManagedPassword{Current: invalid, Previous: after.Current}
		k, err = s.TicketAs(t.Context(), "rolled", next)
		if err != nil || !k.Previous {
			t.Errorf("%+v, %v", k, err)
		}
		_, err = s.TicketAs(t.Context(), "rolled", &directory.ManagedPassword{Current: invalid})
		wantCause(t, err, directory.KDCRefused)
	})
	t.Run("odd names", func(t *testing.T) {
		for _, name := range []string{"wéb-1", "web 2", "w(e)b3", "web'4", "网5"} {
			try(t, corp.AddGMSA(t.Context(), name, ad.Group))
			g, err := s.GMSA(t.Context(), name)
			if err != nil || g.Name != name {
				t.Errorf("%q: %+v, %v", name, g, err)
				continue
			}
			k, err := s.TicketAs(t.Context(), name, managedPassword(t, s, name))
			if err != nil || !strings.HasPrefix(k.Client, name+"$@") {
				t.Errorf("%q: %+v, %v", name, k, err)
			}
		}
	})
}

func TestUsersOfAnyNameAndPassword(t *testing.T) {
	t.Parallel()
	for user, secret := range map[string]string{
		"jürgen":      "Päss-wörd-1 ",
		"o'neil (x)":  `Quo"te\'d-1`,
		"密码":          "密码-Passwort-1",
		"dot.ted-1_2": "𝄞-Musik-12345",
		"UPPER":       strings.Repeat("Long-pässword-1 ", 16),
	} {
		try(t, corp.AddUser(t.Context(), user, credential.NewPassword([]byte(secret))))
		for _, security := range []directory.Security{directory.Kerberos, directory.LDAPS} {
			account := credential.Credential{Username: user, Password: credential.NewPassword([]byte(secret))}
			_, err := bind(t, config(t, corp, security), account)
			if err != nil {
				t.Errorf("%q, %s: %v", user, security, err)
			}
		}
	}
}

func TestTwoDomainsAreIndependent(t *testing.T) {
	t.Parallel()
	sids := map[string]bool{}
	for d, foreign := range map[*ad.Domain]*ad.Domain{corp: other, other: corp} {
		s := mustBind(t, d, directory.Auto)
		domain, err := s.Domain(t.Context())
		if err != nil || domain.DNSName != d.DNSName {
			t.Errorf("%+v, %v", domain, err)
		}
		sids[domain.SID] = true
		_, err = s.TicketAs(t.Context(), d.GMSA, managedPassword(t, s, d.GMSA))
		wantCause(t, err, nil)
		_, err = s.ManagedPassword(t.Context(), foreign.GMSA)
		wantCause(t, err, directory.GMSANotFound)

		_, err = bind(t, config(t, d, directory.Auto), foreign.Reader)
		wantCause(t, err, directory.UnknownAccount)
		for _, security := range []directory.Security{directory.Auto, directory.LDAPS} {
			c := config(t, d, security)
			c.Servers = []string{foreign.Address}
			c.RootCAs = config(t, foreign, security).RootCAs
			_, err = bind(t, c, d.Reader)
			wantCause(t, err, directory.WrongDomain)
		}
	}
	if len(sids) != 2 {
		t.Errorf("%d SIDs", len(sids))
	}
}

func TestUnreachableDomainControllersHaveACause(t *testing.T) {
	t.Parallel()
	const unused = "127.78.0.1"
	for name, c := range map[string]struct {
		change func(*directory.Config)
		want   *directory.Cause
		text   string
	}{
		"unknown domain": {
			func(c *directory.Config) { c.Domain = "nosuch." + corp.DNSName },
			directory.DNSNotFound, "_ldap._tcp.dc._msdcs.nosuch.",
		},
		"DNS server that does not run": {
			func(c *directory.Config) { c.DNSServer = unused },
			directory.DNSUnreachable, unused,
		},
		"unknown host": {
			func(c *directory.Config) { c.Servers = []string{"dc9." + corp.DNSName} },
			directory.DNSNotFound, "dc9.",
		},
		"host where nothing listens": {
			func(c *directory.Config) { c.Servers = []string{unused} },
			directory.DCUnreachable, "nothing listens on TCP port 389",
		},
		"CA of another domain": {
			func(c *directory.Config) { c.RootCAs, c.Security = config(t, other, "").RootCAs, directory.LDAPS },
			directory.CertificateNotTrusted, "unknown authority",
		},
		"CA of another domain, StartTLS": {
			func(c *directory.Config) { c.RootCAs, c.Security = config(t, other, "").RootCAs, directory.StartTLS },
			directory.CertificateNotTrusted, "unknown authority",
		},
		"CA of another domain, auto": {
			func(c *directory.Config) { c.RootCAs = config(t, other, "").RootCAs },
			nil, "",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := config(t, corp, directory.Auto)
			c.change(&config)
			_, err := bind(t, config, corp.Reader)
			wantCause(t, err, c.want)
			if err != nil && !strings.Contains(err.Error(), c.text) {
				t.Errorf("%v does not contain %q", err, c.text)
			}
		})
	}
}

// The kernel drops connections to a listener whose queue is full, as a firewall does.
func TestFilteredPortsAreDistinguishedFromClosedPorts(t *testing.T) {
	t.Parallel()
	const address = "127.78.0.2"
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	try(t, err)
	defer func() { _ = syscall.Close(fd) }()
	try(t, syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1),
		syscall.Bind(fd, &syscall.SockaddrInet4{Port: 389, Addr: [4]byte{127, 78, 0, 2}}), syscall.Listen(fd, 0))
	for range 4 {
		c, err := net.DialTimeout("tcp", address+":389", 100*time.Millisecond)
		if err == nil {
			defer func() { _ = c.Close() }()
		}
	}
	c := config(t, corp, directory.Kerberos)
	c.Servers, c.Timeout = []string{address}, 300*time.Millisecond
	start := time.Now()
	_, err = bind(t, c, corp.Reader)
	wantCause(t, err, directory.DCUnreachable)
	if !strings.Contains(err.Error(), "a firewall drops the packets") || time.Since(start) > 2*time.Second {
		t.Errorf("%v after %s", err, time.Since(start))
	}
}

func TestADomainControllerThatIsDownIsSkipped(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "d")
	d, err := ad.Start(t.Context(), dir, ad.Corp)
	try(t, err)
	defer d.Stop()
	dead, err := d.AddDeadDC(t.Context(), "dc0", 0)
	try(t, err)
	first := false
	for range 20 { // the order is random
		servers, err := directory.Locate(t.Context(), config(t, d, directory.Auto))
		try(t, err)
		if len(servers) != 2 {
			t.Fatalf("%q", servers)
		}
		c := config(t, d, directory.Auto)
		s, err := bind(t, c, d.Reader)
		try(t, err)
		if s.Server() != d.DC {
			t.Errorf("bound to %s", s.Server())
		}
		first = first || servers[0] == dead
	}
	if !first {
		t.Error("the domain controller that is down was never the first")
	}

	t.Run("killed between bind and search", func(t *testing.T) {
		s := mustBind(t, d, directory.Kerberos)
		d.Kill()
		_, err := s.GMSA(t.Context(), d.GMSA)
		wantCause(t, err, directory.DCUnreachable)
		try(t, d.Restart(t.Context()))
		_, err = mustBind(t, d, directory.Kerberos).GMSA(t.Context(), d.GMSA)
		wantCause(t, err, nil)
	})
	t.Run("stops answering", func(t *testing.T) {
		s := mustBind(t, d, directory.Kerberos)
		try(t, syscall.Kill(d.PID(), syscall.SIGSTOP))
		defer func() { _ = syscall.Kill(d.PID(), syscall.SIGCONT) }()
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		start := time.Now()
		_, err := s.GMSA(ctx, d.GMSA)
		wantCause(t, err, directory.Timeout)
		c := config(t, d, directory.Auto)
		c.Servers, c.Timeout = []string{d.Address}, 300*time.Millisecond
		_, err = bind(t, c, d.Reader)
		wantCause(t, err, directory.Timeout)
		if time.Since(start) > 4*time.Second {
			t.Errorf("took %s", time.Since(start))
		}
	})
	t.Run("without a certificate", func(t *testing.T) {
		conf := filepath.Join(dir, "smb.conf")
		text, err := os.ReadFile(conf)
		try(t, err)
		d.Kill()
		try(t, os.WriteFile(conf, bytes.Replace(text, []byte("[global]\n"), []byte("[global]\n\ttls enabled = no\n"), 1), 0o600))
		// Windows without a certificate listens on port 636 and closes each connection, and rejects StartTLS. Samba
		// would exit.
		l, err := net.Listen("tcp", d.Address+":636")
		try(t, err)
		defer func() { _ = l.Close() }()
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_ = c.Close()
			}
		}()
		try(t, d.Restart(t.Context()))
		c := config(t, d, directory.LDAPS)
		c.Servers = []string{d.Address}
		_, err = bind(t, c, d.Reader)
		wantCause(t, err, directory.EncryptionRefused)
		if s := mustBind(t, d, directory.Auto); s.Security() != directory.Kerberos {
			t.Errorf("bound with %s", s.Security())
		}
	})
}

func TestADomainWithoutARootKeyHasACause(t *testing.T) {
	t.Parallel()
	d, err := ad.Start(t.Context(), filepath.Join(t.TempDir(), "d"), ad.Corp)
	try(t, err)
	defer d.Stop()
	try(t, d.RemoveKDSKeys(t.Context()))
	_, err = mustBind(t, d, directory.Auto).ManagedPassword(t.Context(), d.GMSA)
	wantCause(t, err, directory.NoKDSKey)
}

func TestAClockDifferenceHasACause(t *testing.T) {
	t.Parallel()
	o := ad.Corp
	o.ClockOffset = 10 * time.Minute
	d, err := ad.Start(t.Context(), filepath.Join(t.TempDir(), "d"), o)
	try(t, err)
	defer d.Stop()
	_, err = bind(t, config(t, d, directory.Kerberos), d.Reader)
	wantCause(t, err, directory.ClockSkew)
	if err != nil && !strings.Contains(err.Error(), "10m0s ahead") && !strings.Contains(err.Error(), "9m59s ahead") {
		t.Errorf("%v does not contain the difference", err)
	}
	// LDAPS does not depend on the clock, but the ticket does.
	s := mustBind(t, d, directory.Auto)
	if s.Security() != directory.LDAPS || (s.Offset()-10*time.Minute).Abs() > 2*time.Second {
		t.Errorf("%s, %s", s.Security(), s.Offset())
	}
	_, err = s.TicketAs(t.Context(), d.GMSA, managedPassword(t, s, d.GMSA))
	wantCause(t, err, directory.ClockSkew)
}
