// Package verify checks the path of a credential from a credential spec to a Kerberos ticket as the gMSA. The checks
// follow the order in which ccg.exe and the plugin work. Each check has a state, a duration and, on failure, a remedy.
// The package changes nothing.
package verify

import (
	"context"
	"errors"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/ccgrkc/ccgrkc/internal/directory"
	"github.com/ccgrkc/ccgrkc/internal/inventory"
)

// State is the result of a check.
type State string

const (
	OK      State = "ok"
	Warning State = "warning" // the check passed, but something needs attention
	Failed  State = "failed"  // the check found a fault
	Skipped State = "skipped" // the check could not run here
	NotRun  State = "notRun"  // the check depends on one that failed
)

// String returns the state as text output shows it.
func (s State) String() string {
	if s == NotRun {
		return "not run"
	}
	return string(s)
}

// Step is one check and its result.
type Step struct {
	Name   string `json:"name"`
	State  State  `json:"state"`
	Detail string `json:"detail,omitempty"` // one sentence
	// stable name of the fault, from package directory or from this package
	Cause      string  `json:"cause,omitempty"`
	Remedy     string  `json:"remedy,omitempty"`     // what to do
	Permission string  `json:"permission,omitempty"` // the missing permission, if that is why the check was skipped
	Ms         float64 `json:"ms"`                   // duration
}

// Causes of this package. Package directory has its own.
const (
	causeSpecNotFound      = "credential-spec-not-found"
	causeSpecInvalid       = "credential-spec-invalid"
	causeSpecMismatch      = "credential-spec-of-another-domain"
	causeNoPlugin          = "no-plugin"
	causeForeignPlugin     = "foreign-plugin"
	causeInputInvalid      = "plugin-input-invalid"
	causeReleaseNotFound   = "release-not-found"
	causeReleaseNoNode     = "release-selects-no-node"
	causeReleaseNotReady   = "release-not-ready"
	causeReleaseTwice      = "two-releases-of-one-secret"
	causeSecretNotFound    = "secret-not-found"
	causeSecretInvalid     = "secret-invalid"
	causeNodeNotFound      = "node-not-found"
	causeNodeNotWindows    = "node-not-windows"
	causeNodeNotReady      = "node-not-ready"
	causeNodeOutside       = "node-outside-selector"
	CauseInstallerMissing  = "installer-not-on-node"
	causePluginState       = "plugin-not-installed"
	CausePluginForeign     = "foreign-registration"
	causeSelfTest          = "plugin-does-not-answer"
	causeProviderMissing   = "provider-not-on-node"
	causeProviderUnhealthy = "provider-does-not-answer"
	causeNodeDNS           = "node-dns"
	causeNodePorts         = "node-ports"
	causeNodeClock         = "clock-skew"
)

func ok(detail string) Step { return Step{State: OK, Detail: detail} }

func warning(cause, detail, remedy string) Step {
	return Step{State: Warning, Cause: cause, Detail: detail, Remedy: remedy}
}

func failed(cause, detail, remedy string) Step {
	return Step{State: Failed, Cause: cause, Detail: detail, Remedy: remedy}
}

// skipped returns a check that could not run because of an error of the API server.
func skipped(what string, err error, permission string) Step {
	u := inventory.NewSkipped(what, err, permission)
	s := Step{State: Skipped, Detail: what + ": " + u.Why, Permission: u.Permission}
	if u.Permission != "" {
		s.Detail = "requires permission: " + u.Permission
	}
	return s
}

// isAccessError reports whether the API server is unreachable or denied the caller access. Such an error says nothing
// about the object.
func isAccessError(err error) bool {
	if _, ok := errors.AsType[*url.Error](err); ok {
		return true
	}
	if _, ok := errors.AsType[net.Error](err); ok {
		return true
	}
	return apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) || apierrors.IsServerTimeout(err) ||
		apierrors.IsTimeout(err) || apierrors.IsServiceUnavailable(err) || apierrors.IsInternalError(err) ||
		apierrors.IsTooManyRequests(err) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// inconclusiveCauses are about the connection from this machine to the domain. They say nothing about the checked
// object. docs/gmsactl.md lists them.
var inconclusiveCauses = []*directory.Cause{
	directory.DNSUnreachable, directory.DNSNotFound, directory.DCUnreachable, directory.Timeout, directory.WrongDomain,
	directory.CertificateNotTrusted, directory.EncryptionRefused, directory.ClockSkew, directory.AnswerInvalid,
	directory.Referral, directory.SizeLimit, directory.Unexpected,
}

// IsInconclusive reports whether a cause says nothing about the checked object.
func IsInconclusive(cause *directory.Cause) bool { return slices.Contains(inconclusiveCauses, cause) }

// directoryStep returns a check that failed or was skipped because of an error of package directory.
func directoryStep(err error) Step {
	if errors.Is(err, context.Canceled) {
		return Step{State: Skipped, Detail: err.Error()}
	}
	cause := directory.CauseOf(err)
	if cause == nil {
		cause = directory.Unexpected
	}
	s := failed(cause.Name, err.Error(), cause.Remedy)
	if IsInconclusive(cause) {
		s.State = Skipped
		s.Remedy += " This check ran on your machine. To check from a node, add --node."
	}
	return s
}

// checklist runs checks one after another.
type checklist struct{ steps []Step }

// check runs f, unless a check in needs did not pass. The result is then NotRun, or Skipped if that check was skipped.
func (c *checklist) check(name string, needs []string, f func() Step) {
	var s Step
	if unmet := c.unmet(needs); unmet != nil {
		s = Step{State: NotRun, Detail: "needs: " + unmet.Name}
		if unmet.State == Skipped {
			s.State = Skipped
		}
	} else {
		start := time.Now()
		s = f()
		s.Ms = float64(time.Since(start).Microseconds()) / 1000
	}
	s.Name = name
	c.steps = append(c.steps, s)
}

// unmet returns the first needed check that did not pass. Failed checks precede skipped ones.
func (c *checklist) unmet(needs []string) *Step {
	var skipped *Step
	for _, need := range needs {
		s := c.step(need)
		switch {
		case s == nil:
		case s.State == Failed || s.State == NotRun:
			return s
		case s.State == Skipped && skipped == nil:
			skipped = s
		}
	}
	return skipped
}

func (c *checklist) step(name string) *Step {
	for i := range c.steps {
		if c.steps[i].Name == name {
			return &c.steps[i]
		}
	}
	return nil
}

// FirstFailed returns the first check that failed, or nil.
func FirstFailed(steps []Step) *Step { return first(steps, Failed) }

// FirstSkipped returns the first check that was skipped, or nil.
func FirstSkipped(steps []Step) *Step { return first(steps, Skipped) }

func first(steps []Step, state State) *Step {
	for i := range steps {
		if steps[i].State == state {
			return &steps[i]
		}
	}
	return nil
}

// firstLine shortens a program's output to its first line.
func firstLine(text string) string {
	text = strings.TrimSpace(text)
	line, _, more := strings.Cut(text, "\n")
	if line = strings.TrimSpace(line); more {
		line += " …"
	}
	return line
}
