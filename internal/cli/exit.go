package cli

import (
	"context"
	"errors"
	"net"
	"net/url"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/ccgrkc/ccgrkc/internal/directory"
	"github.com/ccgrkc/ccgrkc/internal/escape"
	"github.com/ccgrkc/ccgrkc/internal/verify"
)

// Exit codes. Scripts rely on them.
const (
	exitOK         = 0
	exitFault      = 1 // a check failed
	exitUsage      = 2
	exitIncomplete = 3 // no check failed, but some were skipped
)

// exitError is an error with an exit code. If err is nil, gmsactl prints no message.
type exitError struct {
	code int
	err  error
}

func (f *exitError) Error() string {
	if f.err == nil {
		return ""
	}
	return f.err.Error()
}

// EscapedText is for package escape: the errors of this package can have several lines.
func (f *exitError) EscapedText() escape.Text {
	if f.err == nil {
		return ""
	}
	return escape.Error(f.err)
}

func (f *exitError) Unwrap() error { return f.err }

// faultf returns an error about a checked object.
func faultf(format string, args ...any) error {
	return &exitError{exitFault, escape.Errorf(format, args...)}
}

// usagef returns an error about the command line.
func usagef(format string, args ...any) error {
	return &exitError{exitUsage, escape.Errorf(format, args...)}
}

// incompletef returns an error that prevented a check.
func incompletef(format string, args ...any) error {
	return &exitError{exitIncomplete, escape.Errorf(format, args...)}
}

// exitWith returns an error that exits with code and without a message.
func exitWith(code int) error {
	if code == exitOK {
		return nil
	}
	return &exitError{code, nil}
}

// exitCode returns the exit code of an error. An error without a code has exitIncomplete if a server is unreachable or
// denied access.
func exitCode(err error) int {
	if err == nil {
		return exitOK
	}
	if f, ok := asExitError(err); ok {
		return f.code
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || isDenied(err) ||
		isUnreachable(err) ||
		verify.IsInconclusive(directory.CauseOf(err)) {
		return exitIncomplete
	}
	return exitFault
}

func asExitError(err error) (*exitError, bool) { return errors.AsType[*exitError](err) }

// isDenied reports whether the API server denied the user access.
func isDenied(err error) bool {
	return apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err)
}

// isUnreachable reports whether a server did not answer, or whether the API server is temporarily unavailable.
func isUnreachable(err error) bool {
	if _, ok := errors.AsType[*url.Error](err); ok {
		return true
	}
	if _, ok := errors.AsType[net.Error](err); ok {
		return true
	}
	return apierrors.IsServerTimeout(err) || apierrors.IsServiceUnavailable(err) || apierrors.IsTimeout(err) ||
		apierrors.IsTooManyRequests(err) || apierrors.IsInternalError(err)
}
