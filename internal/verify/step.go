// Package verify follows the way of a credential from a credential spec to a Kerberos ticket as the gMSA, link by link, as
// ccg.exe and the plugin go it, and says of each link whether it holds, how long it took, and what to do if it does not. It
// changes nothing.
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

// State is how a step ended.
type State string

const (
	OK          State = "ok"
	Warning     State = "warning"       // it holds, and something about it is to be looked after
	Failed      State = "failed"        // it is broken
	NotReached  State = "not reached"   // a link before it is broken
	NotLookedAt State = "not looked at" // it could not be looked at, so it may be good or bad
)

// Step is one link.
type Step struct {
	Name   string  `json:"name"`
	State  State   `json:"state"`
	Detail string  `json:"detail,omitempty"` // what was found, in one sentence
	Cause  string  `json:"cause,omitempty"`  // stable name of what is wrong: one of package directory's, or of this package's
	Remedy string  `json:"remedy,omitempty"` // what to do
	Right  string  `json:"right,omitempty"`  // the right that is missing to look at it
	Ms     float64 `json:"ms"`               // how long it took
}

// Causes of this package, beside those of package directory.
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

// unseen is a step that an API server's answer kept from being looked at.
func unseen(what string, err error, right string) Step {
	u := inventory.NotSeen(what, err, right)
	s := Step{State: NotLookedAt, Detail: what + ": " + u.Why, Right: u.Right}
	if u.Right != "" {
		s.Detail = "needs the right to " + u.Right
	}
	return s
}

// cannotLook tells whether the API server did not answer, or refused who asked and not what was asked for.
func cannotLook(err error) bool {
	if _, ok := errors.AsType[*url.Error](err); ok {
		return true
	}
	if _, ok := errors.AsType[net.Error](err); ok {
		return true
	}
	return apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) || apierrors.IsServerTimeout(err) || apierrors.IsTimeout(err) ||
		apierrors.IsServiceUnavailable(err) || apierrors.IsInternalError(err) || apierrors.IsTooManyRequests(err) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// What lies between here and the domain, or is no answer at all, says nothing about what was asked for. docs/gmsactl.md
// lists these.
var unableCauses = []*directory.Cause{
	directory.DNSUnreachable, directory.DNSNotFound, directory.DCUnreachable, directory.Timeout, directory.WrongDomain,
	directory.CertificateNotTrusted, directory.EncryptionRefused, directory.ClockSkew, directory.AnswerInvalid,
	directory.Referral, directory.SizeLimit, directory.Unexpected,
}

// IsUnable reports whether Active Directory could not be asked for a cause, so that nothing is known to be wrong.
func IsUnable(cause *directory.Cause) bool { return slices.Contains(unableCauses, cause) }

// fromDirectory is a step that Active Directory's answer ended.
func fromDirectory(err error) Step {
	if errors.Is(err, context.Canceled) {
		return Step{State: NotLookedAt, Detail: err.Error()}
	}
	cause := directory.CauseOf(err)
	if cause == nil {
		cause = directory.Unexpected
	}
	s := failed(cause.Name, err.Error(), cause.Remedy)
	if IsUnable(cause) {
		s.State = NotLookedAt
		s.Remedy += " This was tried from here; --node tells what a node reaches."
	}
	return s
}

// walk takes steps one after another.
type walk struct{ steps []Step }

// take takes a step, unless one that it needs did not hold: then it is not reached, or cannot be looked at either.
func (w *walk) take(name string, needs []string, f func() Step) {
	var s Step
	if before := w.missing(needs); before != nil {
		s = Step{State: NotReached, Detail: "needs: " + before.Name}
		if before.State == NotLookedAt {
			s.State = NotLookedAt
		}
	} else {
		begin := time.Now()
		s = f()
		s.Ms = float64(time.Since(begin).Microseconds()) / 1000
	}
	s.Name = name
	w.steps = append(w.steps, s)
}

// missing returns the first of the needed steps that did not hold, a broken one before one that was not looked at.
func (w *walk) missing(needs []string) *Step {
	var unseen *Step
	for _, need := range needs {
		s := w.step(need)
		switch {
		case s == nil:
		case s.State == Failed || s.State == NotReached:
			return s
		case s.State == NotLookedAt && unseen == nil:
			unseen = s
		}
	}
	return unseen
}

func (w *walk) step(name string) *Step {
	for i := range w.steps {
		if w.steps[i].Name == name {
			return &w.steps[i]
		}
	}
	return nil
}

// Broken returns the first step that failed, or nil.
func Broken(steps []Step) *Step {
	for i := range steps {
		if steps[i].State == Failed {
			return &steps[i]
		}
	}
	return nil
}

// Unseen returns the first step that could not be looked at, or nil.
func Unseen(steps []Step) *Step {
	for i := range steps {
		if steps[i].State == NotLookedAt {
			return &steps[i]
		}
	}
	return nil
}

// firstLine is what a program said, short enough for a line.
func firstLine(text string) string {
	text = strings.TrimSpace(text)
	line, _, more := strings.Cut(text, "\n")
	if line = strings.TrimSpace(line); more {
		line += " …"
	}
	return line
}
