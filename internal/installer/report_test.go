package installer

import (
	"errors"
	"strings"
	"testing"

	"github.com/ccgrkc/ccgrkc/internal/escape"
	"github.com/ccgrkc/ccgrkc/internal/escape/hostile"
	"github.com/ccgrkc/ccgrkc/internal/plugin/selftest"
)

func TestTheStateFollowsFromTheItems(t *testing.T) {
	ok, drift, missing := Row{State: OK}, Row{State: Drift}, Row{State: Missing}
	answered, failed := &SelfTest{Report: selftest.Report{Version: "v1"}}, &SelfTest{Error: "no answer"}
	for name, test := range map[string]struct {
		report Report
		state  State
		exit   int
	}{
		"whole and answering": {Report{Rows: []Row{ok, ok}, SelfTest: answered}, Installed, 0},
		"an old file is left": {Report{Rows: []Row{ok, ok}, SelfTest: answered,
			Leftovers: []string{"x.dll"}}, Installed, 0},
		"nothing there":                 {Report{Rows: []Row{missing, missing}}, NotInstalled, 3},
		"half there":                    {Report{Rows: []Row{ok, missing}}, Drift, 4},
		"one value differs":             {Report{Rows: []Row{ok, drift}, SelfTest: answered}, Drift, 4},
		"whole, but it does not answer": {Report{Rows: []Row{ok, ok}, SelfTest: failed}, Drift, 4},
		"whole, but nobody asked":       {Report{Rows: []Row{ok, ok}}, Drift, 4},
		"owner and DACL not given back": {Report{Rows: []Row{ok, ok}, SelfTest: answered, Journal: []string{"key"}},
			Drift, 4},
		"nothing there, but not restored": {Report{Rows: []Row{missing}, Journal: []string{"key"}}, Drift, 4},
		"another product's class":         {Report{Rows: []Row{missing}, Foreign: "mscoree.dll"}, Drift, 4},
	} {
		report := test.report
		report.conclude()
		if report.State != test.state || report.ExitCode() != test.exit {
			t.Errorf("%s: %q, exit code %d; want %q, %d", name, report.State, report.ExitCode(), test.state, test.exit)
		}
	}
}

func TestTheTextListsEveryFault(t *testing.T) {
	report := Report{
		Rows: []Row{
			{Object: "KEY-A", Value: "RunAs", Expected: "EXPECTED-A", Actual: "ACTUAL-A", State: Drift},
			{Object: "KEY-B", Expected: "EXPECTED-B", Actual: "ACTUAL-B", State: OK},
		},
		Foreign: "FOREIGN", Leftovers: []string{"LEFTOVER"}, Journal: []string{"JOURNAL"}, Notes: []string{"NOTE"},
		SelfTest: &SelfTest{Error: "SELF-TEST"},
	}
	report.conclude()
	var b strings.Builder
	if err := report.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"KEY-A", "RunAs", "EXPECTED-A", "ACTUAL-A", "KEY-B", "EXPECTED-B", "FOREIGN",
		"LEFTOVER", "JOURNAL",
		"NOTE", "SELF-TEST", "state: drift"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the text lacks %s:\n%s", want, b.String())
		}
	}
	if strings.Contains(b.String(), "ACTUAL-B") {
		t.Errorf("the text repeats what is as it should be:\n%s", b.String())
	}
}

// Attack: another product, or a user who can write to the registry, chooses the values that the table shows.
func TestNoValueInTheRegistryControlsTheTerminal(t *testing.T) {
	for what, value := range hostile.Values("KEY") {
		for _, test := range []*SelfTest{
			nil,
			{Error: value},
			{Report: selftest.Report{Version: value, Identity: value, Module: value}},
		} {
			report := Report{
				State:     State(value),
				Rows:      []Row{{Object: value, Value: value, Expected: value, Actual: value, State: Drift}},
				Foreign:   value,
				Leftovers: []string{value},
				Journal:   []string{value},
				Notes:     []string{value},
				SelfTest:  test,
			}
			var text, document strings.Builder
			if err := errors.Join(report.WriteText(&text), escape.WriteJSON(&document, report, "  ")); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(hostile.Check(text.String()), hostile.Check(document.String())); err != nil {
				t.Errorf("%s: %v", what, err)
			}
			if n := strings.Count(text.String(), "\n"); n != 8 {
				t.Errorf("%s: %d lines, want 8:\n%s", what, n, text.String())
			}
		}
	}
}

func TestABinaryWithoutTheDLLReportsIt(t *testing.T) {
	dll, err := EmbeddedDLL()
	if err == nil && len(dll) == 0 {
		t.Error("the embedded DLL is empty")
	}
	if err != nil && !strings.Contains(err.Error(), "internal/installer/dll") {
		t.Errorf("%q does not say where the DLL belongs", err)
	}
}
