// Package doctor names what is wrong with an installation: rules over objects that were read, each of which finds one kind of
// fault and says what to do. Collect reads the objects, Diagnose applies the rules and reads nothing more, so that a bundle
// shows all that a report rests on.
package doctor

import (
	"cmp"
	"slices"

	"github.com/ccgrkc/ccgrkc/internal/inventory"
	"github.com/ccgrkc/ccgrkc/internal/shell"
)

// Severity is how bad a finding is.
type Severity string

const (
	Error   Severity = "error"   // something does not work
	Warning Severity = "warning" // it works, and will not always, or not everywhere
)

// Finding is one thing that is wrong.
type Finding struct {
	Severity Severity `json:"severity"`
	Code     string   `json:"code"`   // stable, kebab-case
	Object   string   `json:"object"` // kind and name: Secret gmsa-system/web-creds
	Text     string   `json:"text"`   // what is wrong
	Remedy   string   `json:"remedy"` // what to do
	Commands []string `json:"commands,omitempty"`

	order int // causes before what they cause
}

// Where a finding stands on the way from the installation to a pod.
const (
	orderCharts = iota
	orderNodes
	orderSecrets
	orderCertificates
	orderSpecs
	orderWebhooks
	orderUse
	orderPods  // what is wrong with a pod
	orderStuck // that it does not start for it
)

// Report is what doctor tells.
type Report struct {
	Scope    string             `json:"scope"` // what was looked at: the cluster, one pod, one node
	Findings []Finding          `json:"findings"`
	Unseen   []inventory.Unseen `json:"notLookedAt"` // what could not be looked at
	Looked   []string           `json:"lookedAt"`
}

var rules = []func(o *Objects) []Finding{
	charts, daemonSets, nodes, secrets, certificates, credentialSpecs, webhooks, refusals, uses, pods,
}

// Diagnose applies the rules. What is worst comes first, and a cause before what it causes.
func Diagnose(o *Objects) *Report {
	r := &Report{Scope: o.Scope, Findings: []Finding{}, Unseen: o.Unseen, Looked: o.looked()}
	for _, rule := range rules {
		r.Findings = append(r.Findings, rule(o)...)
	}
	slices.SortStableFunc(r.Findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Severity, b.Severity), cmp.Compare(a.order, b.order), cmp.Compare(a.Object, b.Object), cmp.Compare(a.Code, b.Code))
	})
	if r.Unseen == nil {
		r.Unseen = []inventory.Unseen{}
	}
	return r
}

var command = shell.Command
