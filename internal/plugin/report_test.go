package plugin

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ccgrkc/ccgrkc/internal/plugin/cause"
)

func TestACrashLoopingPodWritesOneEventAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, j := newPlugin("", 0)
		for range 100 { // 100 calls in 50 seconds
			p.Report(cause.SecretNotFound, "ns:a", "detail")
			time.Sleep(500 * time.Millisecond)
		}
		p.Report(cause.SecretNotFound, "ns:b", "detail") // another input
		p.Report(cause.Forbidden, "ns:a", "detail")      // another cause
		time.Sleep(10 * time.Second)
		p.Report(cause.SecretNotFound, "ns:a", "detail")
		want := []Event{
			{cause.SecretNotFound, `"ns:a"`, "detail"},
			{cause.SecretNotFound, `"ns:b"`, "detail"},
			{cause.Forbidden, `"ns:a"`, "detail"},
			{cause.SecretNotFound, `"ns:a"`, "detail (99 events of the same kind were omitted before it)"},
		}
		if diff := cmp.Diff(want, j.events); diff != "" {
			t.Error(diff)
		}
	})
}

// A caller with varying inputs can fill neither the log nor the memory.
func TestEventsOfManyDifferentInputsAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, j := newPlugin("", 0)
		for i := range 10_000 {
			p.Report(cause.InvalidInput, fmt.Sprint("bad", i), "detail")
		}
		if len(j.events) > maxSeen+1 || len(p.limit.seen) > maxSeen+len(cause.All) {
			t.Errorf("%d events, %d remembered", len(j.events), len(p.limit.seen))
		}
		time.Sleep(interval)
		before := len(j.events)
		p.Report(cause.InvalidInput, "another", "detail")
		if len(j.events) != before+1 {
			t.Error("nothing is reported after the flood")
		}
	})
}

func TestEventInsertsAreEscapedForEventViewer(t *testing.T) {
	for input, want := range map[string]string{
		"ns:secret":              `"ns:secret"`,
		"%1 %%2":                 `"\x251 \x25\x252"`,
		"a\x00b\r\n\"":           `"a\x00b\r\n\""`,
		"é𝄞":                     `"\u00e9\U0001d11e"`,
		strings.Repeat("x", 201): `"` + strings.Repeat("x", 200) + `" (truncated)`,
		strings.Repeat("é", 201): `"` + strings.Repeat(`\u00e9`, 200) + `" (truncated)`,
		strings.Repeat("𝄞", 200): `"` + strings.Repeat(`\U0001d11e`, 200) + `"`,
		strings.Repeat("𝄞", 999): `"` + strings.Repeat(`\U0001d11e`, 200) + `" (truncated)`,
		"\xff":                   `"\ufffd"`,
	} {
		if got := quoteInput(input); got != want {
			t.Errorf("%.20q: got %s, want %s", input, got, want)
		}
	}
	if got, want := printable("key \"é\" 100%1\r\n\x00"), `key "é" 100\x251\r\n\u0000`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := printable(strings.Repeat("é", 5000)); len([]rune(got)) != maxDetail+len(" (truncated)") {
		t.Errorf("a detail has %d characters", len([]rune(got)))
	}
}
