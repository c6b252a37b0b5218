package credential

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

const marker = "m4rker-pässwörd"

// A password that is formatted, logged or encoded by somebody who did not think of it stays unseen.
func TestPasswordIsNeverPrinted(t *testing.T) {
	p := NewPassword([]byte(marker))
	c := Credential{DomainName: "corp.example.com", Username: "web", Password: p}
	type hidden struct{ c Credential } // fmt reads unexported fields without calling their methods
	h := hidden{c}

	var out strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%T"} {
		for _, v := range []any{p, &p, c, &c, h, &h, []any{h, p}, map[string]Password{"p": p},
			fmt.Errorf("wrapped: %v", p)} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
	}
	for _, l := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(l).Info("credential", "password", p, "credential", c, "hidden", h)
	}
	for _, v := range []any{p, c, map[string]any{"p": p}} {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(b)
	}
	for _, form := range []string{marker, fmt.Sprintf("%x", marker), fmt.Sprintf("%X", marker),
		fmt.Sprint([]byte(marker)), "m4rker"} {
		if strings.Contains(out.String(), form) {
			t.Errorf("the password got out as %q", form)
		}
	}
	if got := string(p.Reveal()); got != marker {
		t.Errorf("Reveal gives %q", got)
	}
}

func TestWipeClearsWhatRevealReturned(t *testing.T) {
	p := NewPassword([]byte(marker))
	b := p.Reveal()
	p.Wipe()
	if strings.Trim(string(b), "\x00") != "" {
		t.Errorf("left over: %q", b)
	}
	Password{}.Wipe()
}

func TestReferencesFollowTheRulesOfTheAPIServer(t *testing.T) {
	longest := strings.Repeat("n", 63) + ":" + strings.Repeat("s", 253)
	for _, good := range []string{"a:b", "gmsa-system:web-creds", "1:2", "ns:a.b-c.d", "con:nul", longest} {
		ref, err := ParseReference(good)
		if err != nil {
			t.Errorf("%q: %v", good, err)
		} else if ref.String() != good {
			t.Errorf("%q became %q", good, ref)
		}
	}
}

func TestInvalidPluginInputsAreRejected(t *testing.T) {
	for name, bad := range map[string]string{
		"empty": "", "no colon": "web-creds", "two colons": "a:b:c", "parent directory": "..:x",
		"parent directory as secret": "x:..",
		"slash":                      "a/b:c", "backslash": `a\b:c`, "upper case": "A:b", "upper case secret": "a:B",
		"64 KiB":            strings.Repeat("a", 64<<10),
		"64 KiB with colon": "a:" + strings.Repeat("b", 64<<10), "NUL inside": "a:b\x00c", "non-BMP": "a:\U0001d11e",
		"no namespace": ":b",
		"no secret":    "a:", "space": "a: b", "newline": "a:b\n", "namespace of 64": strings.Repeat("n", 64) + ":s",
		"namespace with dot": "a.b:c", "secret of 254": "a:" + strings.Repeat("s", 254), "hyphen first": "a:-b",
		"hyphen last": "a:b-",
		"dot first":   "a:.b", "dots": "a:b..c", "drive": "c:/x", "stream": "a:b:$DATA", "percent": "a:%2e%2e",
		"full width": "a:ｂ", "not UTF-8": "a:\xff",
		"self-test": "?self-test",
	} {
		ref, err := ParseReference(bad)
		if err == nil {
			t.Errorf("%s: accepted as %+v", name, ref)
			continue
		}
		if !strings.Contains(err.Error(), InputForm) {
			t.Errorf("%s: the error does not show the form: %v", name, err)
		}
		if len(err.Error()) > 3*MaxInputLength {
			t.Errorf("%s: the error has %d bytes", name, len(err.Error()))
		}
	}
}

func secret(domain, user, password string) map[string][]byte {
	return map[string][]byte{KeyDomainName: []byte(domain), KeyUsername: []byte(user), KeyPassword: []byte(password)}
}

// oddPasswords are all accepted and must travel unchanged.
var oddPasswords = []string{
	"x", strings.Repeat("p", 1024), `"quotes" 'single'`, `back\slash\`, "  spaces  ", "é", "密码", "𝄞", "%", "%1%n%s",
	`{"a":"b"}`, "<&>]]>", "\u2028\u2029", "\ufeff", "e\u0301",
}

func TestPasswordsOfAnyUnicodeAreAccepted(t *testing.T) {
	for _, want := range oddPasswords {
		c, warnings, err := FromSecret(secret("corp.example.com", "web", want))
		if err != nil || len(warnings) > 0 {
			t.Errorf("%.20q: %v, warnings %q", want, err, warnings)
			continue
		}
		body, err := Encode(c)
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeCredential(body)
		if err != nil {
			t.Errorf("%.20q: %v", want, err)
		} else if string(got.Password.Reveal()) != want {
			t.Errorf("%.20q became %.20q", want, got.Password.Reveal())
		}
	}
}

func TestOneTrailingNewlineIsIgnoredWithAWarning(t *testing.T) {
	for _, end := range []string{"\n", "\r\n"} {
		c, warnings, err := FromSecret(secret("corp.example.com"+end, "web"+end, "secret"+end))
		if err != nil {
			t.Fatal(err)
		}
		if c.DomainName != "corp.example.com" || c.Username != "web" || string(c.Password.Reveal()) != "secret" {
			t.Errorf("%q left: %q %q", end, c.DomainName, c.Username)
		}
		if len(warnings) != 3 {
			t.Errorf("warnings: %q", warnings)
		}
	}
	if _, _, err := FromSecret(secret("corp.example.com", "web", "secret\n\n")); err == nil {
		t.Error("two newlines were accepted")
	}
}

func TestErrorsOfBadSecretsSpecifyKeyAndRemedy(t *testing.T) {
	without := func(key string) map[string][]byte {
		d := secret("corp.example.com", "web", marker)
		delete(d, key)
		return d
	}
	for name, c := range map[string]struct {
		data map[string][]byte
		want []string
	}{
		"no domain":           {without(KeyDomainName), []string{`"domainName" is missing`}},
		"no user":             {without(KeyUsername), []string{`"username" is missing`}},
		"no password":         {without(KeyPassword), []string{`"password" is missing`}},
		"empty domain":        {secret("", "web", marker), []string{"domainName", "empty"}},
		"empty password":      {secret("corp.example.com", "web", ""), []string{"password", "empty"}},
		"only a line end":     {secret("corp.example.com", "web", "\n"), []string{"password", "empty"}},
		"NetBIOS domain":      {secret("CORP", "web", marker), []string{"NetBIOS", "corp.example.com"}},
		"URL for a domain":    {secret("ldap://corp.example.com", "web", marker), []string{"DNS name"}},
		"final dot":           {secret("corp.example.com.", "web", marker), []string{"remove the dot"}},
		"domain with space":   {secret("corp.example.com ", "web", marker), []string{"DNS name"}},
		"not a DNS character": {secret("corp.exämple.com", "web", marker), []string{"characters other than letters"}},
		"down-level user":     {secret("corp.example.com", `CORP\web`, marker), []string{`sAMAccountName`}},
		"user principal name": {secret("corp.example.com", "web@corp.example.com", marker), []string{`before the @`}},
		"user with space":     {secret("corp.example.com", "web ", marker), []string{"space"}},
		"user with bracket":   {secret("corp.example.com", "web[1]", marker), []string{"sAMAccountName"}},
		"NUL in password":     {secret("corp.example.com", "web", marker+"\x00x"), []string{"password", "U+0000"}},
		"tab in password":     {secret("corp.example.com", "web", marker+"\tx"), []string{"password", "U+0009"}},
		"C1 in password":      {secret("corp.example.com", "web", marker+"\u0085x"), []string{"password", "U+0085"}},
		"long password": {secret("corp.example.com", "web", marker+strings.Repeat("x", 1024)),
			[]string{"password", "maximum is 1024"}},
		"Latin-1 password":    {secret("corp.example.com", "web", marker+"\xe9"), []string{"password", "UTF-8"}},
		"password as user":    {secret("corp.example.com", marker+`\\x`, "x"), []string{"username", "backslash"}},
		"password as UPN":     {secret("corp.example.com", marker+"@x", "x"), []string{"username", "@"}},
		"password as account": {secret("corp.example.com", marker+"+", "x"), []string{"username"}},
		"password as domain":  {secret(marker, "web", "x"), []string{"domainName"}},
		"password with dots":  {secret("x."+marker, "web", "x"), []string{"domainName"}},
		"password and slash":  {secret(marker+"/", "web", "x"), []string{"domainName"}},
		"nothing":             {nil, []string{"is missing"}},
	} {
		_, warnings, err := FromSecret(c.data)
		if err == nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %q does not contain %q", name, err, want)
			}
		}
		if s := err.Error() + strings.Join(warnings, ""); strings.Contains(s, "m4rker") {
			t.Errorf("%s: the password is in %q", name, s)
		}
	}
}

func TestInvalidResponsesAreRejected(t *testing.T) {
	for name, body := range map[string]string{
		"empty": "", "not JSON": "hello", "null": "null", "list": "[]", "no fields": "{}",
		"cut":                 `{"domainName":"corp.example.com","username":"web","password":"eA==`,
		"goes on":             `{"domainName":"corp.example.com","username":"web","password":"eA=="}{}`,
		"password not base64": `{"domainName":"corp.example.com","username":"web","password":"m4rker-!"}`,
		"empty password":      `{"domainName":"corp.example.com","username":"web","password":""}`,
		"down-level user":     `{"domainName":"corp.example.com","username":"CORP\\web","password":"eA=="}`,
		"NUL in password":     `{"domainName":"corp.example.com","username":"web","password":"AA=="}`,
		"too long":            `{"domainName":"corp.example.com","username":"web","password":"eA=="` + strings.Repeat(" ", MaxWireLength) + "}",
	} {
		c, err := DecodeCredential([]byte(body))
		if err == nil {
			t.Errorf("%s: accepted as %+v", name, c)
		} else if strings.Contains(err.Error(), "m4rker") {
			t.Errorf("%s: the error quotes the body: %v", name, err)
		}
	}
}

func TestProblemsKeepTheirCode(t *testing.T) {
	for _, code := range ProblemCodes {
		b, _ := json.Marshal(&Problem{code, "detail"})
		p, err := DecodeProblem(b)
		if err != nil || p.Code != code || p.Detail != "detail" {
			t.Errorf("%s: %v, %v", code, p, err)
		}
	}
	for _, bad := range []string{"", "<html>", `{"code":"teapot"}`, `{}`} {
		if p, err := DecodeProblem([]byte(bad)); err == nil {
			t.Errorf("%q was taken as %v", bad, p)
		}
	}
}

func FuzzParseReference(f *testing.F) {
	for _, s := range []string{"a:b", "..:x", "a/b:c", "con:nul", "a:b\x00", "?self-test"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, input string) {
		ref, err := ParseReference(input)
		if err != nil {
			return
		}
		if ref.String() != input {
			t.Errorf("%q is accepted as %q", input, ref)
		}
		for _, part := range []string{ref.Namespace, ref.Secret} {
			if strings.ContainsAny(part, `/\:`+"\x00 ") || part == "." || part == ".." ||
				strings.Contains(part, "..") || part == "" {
				t.Errorf("%q has the part %q", input, part)
			}
		}
	})
}

func FuzzFromSecret(f *testing.F) {
	f.Add([]byte("corp.example.com"), []byte("web"), []byte("secret"))
	f.Add([]byte("CORP\n"), []byte(`CORP\web`), []byte("\x00"))
	f.Fuzz(func(t *testing.T, domain, user, password []byte) {
		c, _, err := FromSecret(map[string][]byte{KeyDomainName: domain, KeyUsername: user, KeyPassword: password})
		if err != nil {
			return
		}
		body, err := Encode(c)
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeCredential(body)
		if err != nil {
			t.Fatalf("a Secret is accepted whose answer is not: %v", err)
		}
		if got.DomainName != c.DomainName || got.Username != c.Username ||
			string(got.Password.Reveal()) != string(c.Password.Reveal()) {
			t.Error("the credential changed on the wire")
		}
	})
}
