package cause

import (
	"strings"
	"testing"
)

func TestCausesHaveUniqueNamesHResultsAndEvents(t *testing.T) {
	names, hresults, events := map[string]bool{}, map[uint32]bool{}, map[uint16]bool{}
	for _, c := range All {
		if names[c.Name] || hresults[c.HResult] || events[c.Event] {
			t.Errorf("%s: its name, HRESULT %#x or event %d is taken", c.Name, c.HResult, c.Event)
		}
		names[c.Name], hresults[c.HResult], events[c.Event] = true, true, true
	}
}

// Clients and runbooks keep these numbers: a released one never changes its meaning.
func TestReleasedNumbersDoNotChange(t *testing.T) {
	released := map[uint32]string{
		0x80070057: "invalid-input", 0x8007000E: "out-of-memory", 0x8000FFFF: "unexpected", 0x80004003: "null-pointer",
		0xA0040001: "endpoint-absent", 0xA0040002: "endpoint-damaged", 0xA0040003: "endpoint-untrusted",
		0xA0040004: "endpoint-unreadable", 0xA0040005: "provider-unreachable", 0xA0040006: "provider-foreign",
		0xA0040007: "secret-not-found", 0xA0040008: "secret-invalid", 0xA0040009: "forbidden",
		0xA004000A: "unavailable",
		0xA004000B: "response-invalid",
	}
	for hr, name := range released {
		if c := OfHResult(hr); c == nil || c.Name != name {
			t.Errorf("HRESULT 0x%08X is %v, was %s", hr, c, name)
		}
	}
	if len(released) != len(All)-1 {
		t.Errorf("%d failures are listed here, %d in the table", len(released), len(All)-1)
	}
	if c := OfHResult(0); c != nil {
		t.Errorf("S_OK has the cause %s", c.Name)
	}
}

func TestEveryFailureHasAnErrorHResultAndARemedy(t *testing.T) {
	for _, c := range All {
		if c == Loaded {
			continue
		}
		if c.HResult>>31 != 1 {
			t.Errorf("%s: HRESULT 0x%08X is a success", c.Name, c.HResult)
		}
		for _, s := range []string{c.Text, c.Remedy} {
			if !strings.HasSuffix(s, ".") {
				t.Errorf("%s: %q is no sentence", c.Name, s)
			}
			if strings.Contains(s, "%") {
				t.Errorf("%s: %q has a percent sign, which a message table expands", c.Name, s)
			}
		}
	}
}
