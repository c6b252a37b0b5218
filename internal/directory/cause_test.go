package directory

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"unicode"

	"github.com/ccgrkc/ccgrkc/internal/credential"
)

var update = flag.Bool("update", false, "write the table of causes to docs/active-directory.md")

func TestCausesHaveStableNamesTextsAndRemedies(t *testing.T) {
	names := map[string]bool{}
	for _, c := range Causes {
		if names[c.Name] || c.Name != strings.ToLower(c.Name) || strings.ContainsAny(c.Name, " _.") {
			t.Errorf("%s: the name is not unique or not in kebab case", c.Name)
		}
		names[c.Name] = true
		for _, s := range []string{c.Text, c.Remedy} {
			if !strings.HasSuffix(s, ".") || !unicode.IsUpper([]rune(s)[0]) {
				t.Errorf("%s: %q is not a sentence", c.Name, s)
			}
		}
	}
	// Scripts rely on these names. A released name must remain.
	for _, name := range strings.Fields(`
		dns-unreachable dns-not-found dc-unreachable timeout wrong-domain certificate-not-trusted encryption-refused
		unknown-account wrong-password account-disabled account-locked account-expired account-revoked
		password-expired must-change-password logon-restricted clock-skew encryption-type-unsupported kdc-refused
		gmsa-not-found not-a-gmsa gmsa-disabled no-read-permission no-kds-key managed-password-damaged answer-invalid
		referral size-limit unexpected
	`) {
		if !names[name] {
			t.Errorf("%s is missing", name)
		}
		delete(names, name)
	}
	for name := range names {
		t.Errorf("%s is missing in this test", name)
	}
}

func TestTheDocumentationContainsTheTableOfCauses(t *testing.T) {
	const file = "../../docs/active-directory.md"
	const head = "| cause | what it means | what to do |\n|---|---|---|\n"
	var table strings.Builder
	escape := strings.NewReplacer("<", "&lt;", ">", "&gt;", "|", `\|`, "*", `\*`).Replace
	for _, c := range Causes {
		fmt.Fprintf(&table, "| `%s` | %s | %s |\n", c.Name, escape(c.Text), escape(c.Remedy))
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), head)
	if !ok {
		t.Fatalf("%s has no table of causes", file)
	}
	end := 0
	for _, line := range strings.SplitAfter(rest, "\n") {
		if !strings.HasPrefix(line, "|") {
			break
		}
		end += len(line)
	}
	if rest[:end] == table.String() {
		return
	}
	if !*update {
		t.Fatalf("%s is out of date: go test ./internal/directory -run Documentation -update", file)
	}
	if err := os.WriteFile(file, []byte(before+head+table.String()+rest[end:]), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestAnErrorIsOneLineWithoutControlCharacters(t *testing.T) {
	text := sanitize("80090308: data 52e\x00\x1b[31m\n" + strings.Repeat("x", 10_000))
	err := WrongPassword.of("account web@corp.example.com", "dc1.corp.example.com", errors.New(text))
	got := err.Error()
	const want = "account web@corp.example.com: The password is wrong " +
		`(dc1.corp.example.com: 80090308: data 52e\u0000\u001b[31m\nxxx`
	if !strings.HasPrefix(got, want) {
		t.Errorf("%.200q", got)
	}
	if len(got) > 500 || strings.ContainsFunc(got, unicode.IsControl) {
		t.Errorf("%d bytes: %.100q", len(got), got)
	}
	if CauseOf(fmt.Errorf("verify: %w", err)) != WrongPassword || CauseOf(errors.New("x")) != nil ||
		CauseOf(nil) != nil {
		t.Error("CauseOf does not unwrap errors")
	}
}

// Formatted and encoded values contain no password and no key.
func TestFormattedValuesContainNoSecret(t *testing.T) {
	const marker = "m4rker"
	utf16 := []byte{'m', 0, '4', 0, 'r', 0, 'k', 0, 'e', 0, 'r', 0}
	m := &ManagedPassword{Current: credential.NewPassword(utf16), Previous: credential.NewPassword([]byte(marker))}
	s := &Session{
		server:   "dc1",
		security: Kerberos,
		conn:     newLDAPConn(&sealedConn{w: &gssContext{key: []byte(marker)}}),
	}
	var out strings.Builder
	for _, v := range []any{m, *m, s, Config{}, Ticket{}, WrongPassword.of("account x", "", nil), []any{m, s}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
		if b, err := json.Marshal(v); err == nil {
			out.Write(b)
		}
	}
	for _, form := range []string{
		marker, string(utf16), fmt.Sprintf("%x", marker), fmt.Sprintf("%x", utf16), fmt.Sprint([]byte(marker)),
		fmt.Sprint(utf16), fmt.Sprintf("%#v", []byte(marker)),
	} {
		if strings.Contains(out.String(), strings.Trim(form, "[]")) {
			t.Errorf("the secret is in the output as %q", form)
		}
	}
}

// The server on port 636 can be any program. It chooses the content of its certificate.
func TestNamesInACertificateAreSanitized(t *testing.T) {
	t.Parallel()
	certificate := &x509.Certificate{DNSNames: []string{"\x1b[2Jdc9"}}
	rejected := &tls.CertificateVerificationError{Err: x509.HostnameError{Certificate: certificate, Host: "dc1"}}
	err := tlsError("account reader", "dc1", rejected)
	if text := err.Error(); strings.ContainsRune(text, 0x1b) || !strings.Contains(text, "dc9") {
		t.Errorf("%q", text)
	}
}
