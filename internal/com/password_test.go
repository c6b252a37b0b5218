package com

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"unicode/utf16"
)

func TestPasswordsReachTheCallerCodeUnitByCodeUnit(t *testing.T) {
	for _, s := range []string{
		"", "a", "é", "密码", "𝄞", "a𝄞b", "𝄞𝄞", " leading and trailing ", `"quotes" \and\ 'more'`, "%", "%1 %%n", "<&>", "\u2028\ufeff",
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

// The three bytes that would encode a lone surrogate are not UTF-8; they must not become one.
func TestWhatIsNotUTF8BecomesReplacementCharacters(t *testing.T) {
	for _, b := range [][]byte{{0xed, 0xa0, 0xb4}, {0xff}, {'a', 0xf0, 0x9d, 0x84}} {
		want := utf16.Encode([]rune(string(b)))
		got := make([]uint16, utf16Length(b))
		encodeUTF16(got, b)
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%x became %x, want %x", b, got, want)
		}
	}
}

func TestNoFormattingShowsAPassword(t *testing.T) {
	units := utf16.Encode([]rune("S3cret"))
	result := Result{DomainName: "corp.example.com", Username: "web", Password: Password{&units}}
	encoded, err := json.Marshal(result)
	if err != nil {
		t.Fatal(err)
	}
	unitsShown := strings.Trim(fmt.Sprint(units), "[]")
	for _, s := range []string{
		string(encoded), fmt.Sprint(result), fmt.Sprintf("%+v", result), fmt.Sprintf("%#v", result), fmt.Sprintf("%s", result.Password),
		fmt.Sprintf("%x %d", result.Password, result.Password), fmt.Sprintf("%+v", struct{ r Result }{result}),
	} {
		if strings.Contains(s, unitsShown) || strings.Contains(s, "S3cret") || strings.Contains(s, "53") {
			t.Errorf("the password shows in %s", s)
		}
	}
	result.Password.Wipe()
	if units[0] != 0 || units[5] != 0 {
		t.Error("the password outlived Wipe")
	}
}

func TestAnHResultPrintsAsInWindowsWithOurName(t *testing.T) {
	for hr, want := range map[HRESULT]string{
		0xA0040001: "0xA0040001 (endpoint-absent)", 0x80070057: "0x80070057 (invalid-input)", 0x800706BA: "0x800706BA", 5: "0x00000005",
	} {
		if got := hr.Error(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
