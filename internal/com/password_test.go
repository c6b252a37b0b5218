package com

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"
)

func TestPasswordsAreEncodedAsUTF16(t *testing.T) {
	for _, s := range []string{
		"", "a", "é", "密码", "𝄞", "a𝄞b", "𝄞𝄞", " leading and trailing ", `"quotes" \and\ 'more'`, "%", "%1 %%n", "<&>",
		"\u2028\ufeff",
		"\ud7ff\ue000", // the neighbours of the surrogates
		"\ufffd\uffff\U00010000\U0010ffff", strings.Repeat("𝄞", 256), strings.Repeat("x", 1024),
	} {
		want := utf16.Encode([]rune(s))
		got := make([]uint16, utf16Length([]byte(s)))
		encodeUTF16(got, []byte(s))
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%+q became %x, want %x", s, got, want)
		}
	}
}

// The three bytes that would encode a lone surrogate are not valid UTF-8 and must not become one.
func TestInvalidUTF8BecomesReplacementCharacters(t *testing.T) {
	for _, b := range [][]byte{{0xed, 0xa0, 0xb4}, {0xff}, {'a', 0xf0, 0x9d, 0x84}} {
		want := utf16.Encode([]rune(string(b)))
		got := make([]uint16, utf16Length(b))
		encodeUTF16(got, b)
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%x became %x, want %x", b, got, want)
		}
	}
}

// Code that formats, logs or encodes a password by mistake does not reveal it.
func TestPasswordIsNeverPrinted(t *testing.T) {
	const marker = "m4rker"
	units := utf16.Encode([]rune(marker))
	p := newPassword(units)
	result := Result{DomainName: "corp.example.com", Username: "web", Password: p}
	type hidden struct{ r Result } // fmt reads unexported fields without calling their methods
	type bare struct{ p Password }
	h, b := hidden{result}, bare{p}

	var out strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%T", "%t", "%e", "%c", "%U", "%b",
		"%o"} {
		for _, v := range []any{p, &p, result, &result, h, &h, b, &b, []any{h, p}, map[string]Password{"p": p},
			fmt.Errorf("wrapped: %v", p)} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
	}
	for _, l := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(l).Info("result", "password", p, "result", result, "hidden", h, "bare", b)
	}
	for _, v := range []any{p, result, map[string]any{"p": p}} {
		encoded, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(encoded)
	}
	forms := []string{marker}
	for _, verb := range []string{"%d", "%x", "%X", "%#x", "%#v", "%q", "%c", "%U", "%b", "%o"} {
		forms = append(forms, strings.Trim(fmt.Sprintf(verb, units), "[]{}"))
	}
	for _, form := range forms {
		if strings.Contains(out.String(), form) {
			t.Errorf("the password was printed as %q", form)
		}
	}
	if got := string(utf16.Decode(p.Reveal())); got != marker {
		t.Errorf("Reveal gives %q", got)
	}
}

func TestWipeClearsWhatRevealReturned(t *testing.T) {
	p := newPassword(utf16.Encode([]rune("S3cret")))
	units := p.Reveal()
	p.Wipe()
	if slices.ContainsFunc(units, func(unit uint16) bool { return unit != 0 }) {
		t.Errorf("left over: %v", units)
	}
	Password{}.Wipe()
}

func TestAnHResultPrintsItsNumberAndCause(t *testing.T) {
	for hr, want := range map[HRESULT]string{
		0xA0040001: "0xA0040001 (endpoint-absent)", 0x80070057: "0x80070057 (invalid-input)", 0x800706BA: "0x800706BA",
		5: "0x00000005",
	} {
		if got := hr.Error(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
