// Package doctor diagnoses an installation. Collect reads the objects. Diagnose applies rules to them and reads nothing
// else, so a bundle contains everything that a report is based on. Each rule finds one kind of fault and has a remedy.
package doctor

import (
	"cmp"
	"slices"

	"github.com/ccgrkc/ccgrkc/internal/inventory"
	"github.com/ccgrkc/ccgrkc/internal/shell"
)

// Severity is the severity of a finding.
type Severity string

const (
	Error   Severity = "error"   // something does not work
	Warning Severity = "warning" // it works now, but not permanently or not on all nodes
)

// Finding is one fault or warning.
type Finding struct {
	Severity Severity `json:"severity"`
	Code     string   `json:"code"`   // stable, kebab-case
	Object   string   `json:"object"` // kind and name: Secret gmsa-system/web-creds
	Text     string   `json:"text"`   // the fault
	Remedy   string   `json:"remedy"` // what to do
	Commands []string `json:"commands,omitempty"`

	order int // causes precede their effects
}

// The order of findings, from the installation to a pod.
const (
	orderCharts = iota
	orderNodes
	orderSecrets
	orderCertificates
	orderSpecs
	orderWebhooks
	orderUse
	orderPods        // the fault of a pod
	orderNotStarting // the pod does not start
)

// Report is the result of Diagnose.
type Report struct {
	Scope    string              `json:"scope"` // the cluster, one pod or one node
	Findings []Finding           `json:"findings"`
	Skipped  []inventory.Skipped `json:"skipped"` // objects that could not be checked
	Checked  []string            `json:"checked"`
}

var rules = []func(o *Objects) []Finding{
	charts, daemonSets, nodes, secrets, certificates, credentialSpecs, webhooks, denials, uses, pods,
}

// Diagnose applies the rules. Errors precede warnings, and causes precede their effects.
func Diagnose(o *Objects) *Report {
	r := &Report{
		Scope:    o.Scope,
		Findings: []Finding{},
		Skipped:  o.Skipped,
		Checked:  o.checked(),
	}
	for _, rule := range rules {
		r.Findings = append(r.Findings, rule(o)...)
	}
	slices.SortStableFunc(r.Findings, func(a, b Finding) int {
		return cmp.Or(
			cmp.Compare(a.Severity, b.Severity),
			cmp.Compare(a.order, b.order),
			cmp.Compare(a.Object, b.Object),
			cmp.Compare(a.Code, b.Code),
		)
	})
	if r.Skipped == nil {
		r.Skipped = []inventory.Skipped{}
	}
	return r
}

var command = shell.Command
