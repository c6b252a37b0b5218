package shell

import (
	"os/exec"
	"strings"
	"testing"
)

var hostile = []string{"$(touch x)", "`touch x`", "a;touch x", "a'b", "a b", "", "-n", "a\nb", "a&b|c>d", `a\b"c`, "*",
	"~", "%PATH%", "ä", "#x", "!x"}

func TestCommandQuotesWordsForAShell(t *testing.T) {
	t.Parallel()
	words := append([]string{"printf", `%s\000`, "--selector=a=b,c", "web01"}, hostile...)
	cmd := exec.Command("sh", "-c", Command(words...))
	cmd.Dir = t.TempDir()
	out, err := cmd.CombinedOutput()
	if want := strings.Join(words[2:], "\x00") + "\x00"; err != nil || string(out) != want {
		t.Errorf("%v: %q, want %q", err, out, want)
	}
	if got := Command("kubectl", "get", "pod", "a b", "it's", "",
		"-o=x"); got != `kubectl get pod 'a b' 'it'\''s' '' -o=x` {
		t.Error(got)
	}
}

func TestIsPlainAcceptsOnlyPlainWords(t *testing.T) {
	t.Parallel()
	for _, w := range []string{"web01", "corp.example.com", "gmsa-reader", "a_b", "1"} {
		if !IsPlain(w) {
			t.Errorf("%q is not plain", w)
		}
	}
	for _, w := range append(hostile, "@a", ".a", "_a", "a,b", "a:b", "a/b", "a=b", "a$") {
		if IsPlain(w) {
			t.Errorf("%q is plain", w)
		}
	}
}
