package escape

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/escape/hostile"
)

func TestNoValueControlsATerminal(t *testing.T) {
	for what, value := range hostile.Values("web") {
		var out bytes.Buffer
		Fprintf(&out, "%s|%v|%q|%-40s|%40s|%.3s\n", value, value, value, value, value, value)
		Fprintf(&out, "%v|%v|%s|%v|%+v\n", errors.New(value), []string{value}, stringer(value), named(value),
			struct{ S string }{value})
		Fprintf(&out, "%v|%v\n", Errorf("%w", errors.New(value)), Sprintf("%s", value))
		err := Errorf("a: %w", fmt.Errorf("%s: %w", value, errors.New(value)))
		Fprintf(&out, "%v|%v\n", err, fmt.Errorf("b: %w", err))
		_, _ = LogWriter(&out).Write([]byte(value + "\n"))
		if err := WriteJSON(&out, map[string]string{value: value}, "  "); err != nil {
			t.Fatal(err)
		}
		if err := hostile.Check(out.String()); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if n := strings.Count(out.String(), "\n"); n != 8 {
			t.Errorf("%s: %d lines, want 8: %q", what, n, out.String())
		}
		if once := Value(value); Value(once) != once || once == value {
			t.Errorf("%s: %q becomes %q, then %q", what, value, once, Value(once))
		}
	}
}

type stringer string

func (s stringer) String() string { return string(s) }

type named string

func TestVisibleTextRemains(t *testing.T) {
	for _, text := range []string{"", "web-creds", `C:\x "y" 'z' %s`, "Müller ἀ 日本 𝄞 e\u0301", "\ufffd"} {
		if got := Value(text); got != text {
			t.Errorf("%q became %q", text, got)
		}
		got := string(Sprintf("%s %-3d|%6.2f|%t|%s", text, 7, 1.5, true, time.Second))
		if want := text + " 7  |  1.50|true|1s"; got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if got, want := Value("a\r\n\tb\x1b\U000e0001\xff"), `a\r\n\tb\u001b\U000e0001\xff`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got, want := string(Sprintf("%-9s|%*s|", "a\n", 5, "b\t")), `a\n      |  b\t|`; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestLimitedTextHasAtMostNCharacters(t *testing.T) {
	for s, want := range map[string]string{
		"":                        "",
		"日本":                      "日本",
		"日\n":                     `日\n`,
		"日本語":                     "日本",
		"\xff\xff\xff":            "\ufffd\ufffd",
		"𝄞𝄞":                      "𝄞𝄞",
		strings.Repeat("𝄞", 1000): "𝄞𝄞",
	} {
		if got, more := Limited(s, 2); got != want || more != (len([]rune(s)) > 2) {
			t.Errorf("%.20q: %q, %t", s, got, more)
		}
	}
}

// JSON keeps its meaning: only an invalid byte, which JSON cannot contain, is replaced.
func TestEscapedJSONHasTheSameValue(t *testing.T) {
	for what, value := range hostile.Values("web") {
		for _, indent := range []string{"", "  "} {
			var out bytes.Buffer
			if err := WriteJSON(&out, []string{value}, indent); err != nil {
				t.Fatal(err)
			}
			var got []string
			if err := json.Unmarshal(out.Bytes(), &got); err != nil || got[0] != strings.ToValidUTF8(value, "\ufffd") &&
				!strings.Contains(what, "invalid") {
				t.Errorf("%s: %q, %v", what, got, err)
			}
		}
	}
	if got, want := JSON("{\"a\":\"\xff\u202e\U000e0001\"}"), `{"a":"`+"\ufffd"+`\u202e\udb40\udc01"}`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// The line breaks of a program's own errors remain, and errors.Is and errors.As work through them.
func TestErrorsKeepTheirLinesAndTheirCause(t *testing.T) {
	err := Errorf("Secret %s: %w\nRun: %s", "a\nb", fs.ErrNotExist, "x")
	if got, want := string(Error(err)), `Secret a\nb: file does not exist`+"\nRun: x"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		t.Error("the cause is lost")
	}
	outer := Errorf("verify: %w", err)
	if got, want := string(Error(outer)), `verify: Secret a\nb: file does not exist`+"\nRun: x"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := string(Error(fmt.Errorf("verify: %w", err))); strings.Contains(got, "\n") {
		t.Errorf("an error of package fmt has two lines: %q", got)
	}
	two := Errorf("%w, %w", fs.ErrExist, fs.ErrClosed)
	if !errors.Is(two, fs.ErrExist) || !errors.Is(two, fs.ErrClosed) {
		t.Error("one of two causes is lost")
	}
}

// builders are the files that use the functions of package fmt to build a value, which the printer escapes. Others need
// a reason here.
var builders = []string{
	"internal/credspec/credspec.go", // a document
	"internal/directory/bind.go",    // a fmt.Formatter
	"internal/directory/cause.go",   // an error
	"internal/directory/domain.go",  // an LDAP filter
	"internal/directory/sid.go",     // a SID
	"internal/escape/escape.go",     // this package
	"internal/faultpoint/on.go",     // constants, in test builds only
}

// A program prints with this package only, so that new code is safe, too. Packages whose names end in test are not part
// of a program.
func TestProgramsPrintOnlyThroughThisPackage(t *testing.T) {
	for _, dir := range []string{"cmd", "internal"} {
		err := filepath.WalkDir(filepath.Join("../..", dir), func(path string, _ fs.DirEntry, err error) error {
			name := strings.TrimPrefix(filepath.ToSlash(path), "../../")
			if err != nil || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") ||
				strings.HasSuffix(filepath.Dir(path), "test") || slices.Contains(builders, name) {
				return err
			}
			set := token.NewFileSet()
			file, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			ast.Inspect(file, func(n ast.Node) bool {
				if what := prints(n); what != "" {
					t.Errorf("%s: %s does not escape values; use package escape", set.Position(n.Pos()), what)
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// prints returns the function of package fmt that an expression uses to print, or "".
func prints(n ast.Node) string {
	selector, ok := n.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	pkg, ok := selector.X.(*ast.Ident)
	if !ok || pkg.Name != "fmt" ||
		!strings.HasPrefix(selector.Sel.Name, "Print") && !strings.HasPrefix(selector.Sel.Name, "Fprint") {
		return ""
	}
	return "fmt." + selector.Sel.Name
}
