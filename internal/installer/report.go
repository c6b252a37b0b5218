package installer

import (
	"io"
	"strings"
	"text/tabwriter"

	"github.com/ccgrkc/ccgrkc/internal/escape"
	"github.com/ccgrkc/ccgrkc/internal/plugin/selftest"
)

// State is the state of a row or of the host.
type State string

// States of a row, and of the host.
const (
	OK      State = "ok"
	Drift   State = "drift"
	Missing State = "missing"

	Installed    State = "installed"
	NotInstalled State = "not installed"
)

// Exit codes of the status command.
const (
	ExitInstalled    = 0
	ExitFailed       = 1
	ExitNotInstalled = 3
	ExitDrift        = 4
)

// Row is one value or file of the installation, as expected and as found.
type Row struct {
	Object   string `json:"object"` // a registry key under HKEY_LOCAL_MACHINE, or a file
	Value    string `json:"value,omitempty"`
	Expected string `json:"expected"`
	Actual   string `json:"actual"`
	State    State  `json:"state"`
}

// SelfTest is the response of the class, or an error.
type SelfTest struct {
	selftest.Report
	Error string `json:"error,omitempty"`
}

// Report is the result of Status.
type Report struct {
	State     State     `json:"state"`
	Rows      []Row     `json:"rows"`
	Foreign   string    `json:"foreign,omitempty"`   // registration of the same class by another product
	Leftovers []string  `json:"leftovers,omitempty"` // files of other versions, and temporary ones
	Journal   []string  `json:"journal,omitempty"`   // keys whose owner and DACL a killed installer has not restored
	Notes     []string  `json:"notes,omitempty"`
	SelfTest  *SelfTest `json:"selfTest,omitempty"` // nil if the registration is incomplete
}

// ExitCode returns the exit code for the state.
func (r *Report) ExitCode() int {
	switch r.State {
	case Installed:
		return ExitInstalled
	case NotInstalled:
		return ExitNotInstalled
	}
	return ExitDrift
}

// conclude derives the state of the host. Leftovers do not change it: an old DLL remains while a surrogate has it
// loaded.
func (r *Report) conclude() {
	counts := map[State]int{}
	for _, row := range r.Rows {
		counts[row.State]++
	}
	switch {
	case r.Foreign != "" || len(r.Journal) > 0:
		r.State = Drift
	case counts[Missing] == len(r.Rows):
		r.State = NotInstalled
	case counts[OK] < len(r.Rows):
		r.State = Drift
	case r.SelfTest == nil || r.SelfTest.Error != "":
		r.State = Drift
	default:
		r.State = Installed
	}
}

// WriteText writes the report as a table for people.
func (r *Report) WriteText(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	escape.Fprintf(table, "STATE\tOBJECT\tVALUE\tEXPECTED\tACTUAL\n")
	for _, row := range r.Rows {
		actual := row.Actual
		if row.State == OK {
			actual = "="
		}
		escape.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", row.State, row.Object, row.Value, row.Expected, actual)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	var b strings.Builder
	switch {
	case r.SelfTest == nil:
		escape.Fprintf(&b, "self-test: not run, because the registration is incomplete\n")
	case r.SelfTest.Error != "":
		escape.Fprintf(&b, "self-test: failed: %s\n", r.SelfTest.Error)
	default:
		escape.Fprintf(&b, "self-test: ok, version %s as %s from %s (process %d)\n",
			r.SelfTest.Version, r.SelfTest.Identity, r.SelfTest.Module, r.SelfTest.PID)
	}
	if r.Foreign != "" {
		escape.Fprintf(&b, "foreign registration: %s\n", r.Foreign)
	}
	for _, key := range r.Journal {
		escape.Fprintf(&b, "interrupted change: owner and DACL of %s are not restored; run install or uninstall\n", key)
	}
	for _, file := range r.Leftovers {
		escape.Fprintf(&b, "leftover file: %s\n", file)
	}
	for _, note := range r.Notes {
		escape.Fprintf(&b, "note: %s\n", note)
	}
	escape.Fprintf(&b, "state: %s\n", r.State)
	_, err := io.WriteString(w, b.String())
	return err
}
