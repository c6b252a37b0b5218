package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/ccgrkc/ccgrkc/internal/directory"
	"github.com/ccgrkc/ccgrkc/internal/verify"
)

// Exit codes. Scripts rely on them.
const (
	exitGood   = 0
	exitWrong  = 1 // something is wrong with what was looked at
	exitUsage  = 2
	exitUnable = 3 // could not look; nothing was found wrong
)

// failure is an error that ends gmsactl with a code. Without err it ends silently: all is printed already.
type failure struct {
	code int
	err  error
}

func (f *failure) Error() string {
	if f.err == nil {
		return ""
	}
	return f.err.Error()
}

func (f *failure) Unwrap() error { return f.err }

// wrongf is an error about what was looked at.
func wrongf(format string, args ...any) error {
	return &failure{exitWrong, fmt.Errorf(format, args...)}
}

// usagef is an error about how gmsactl was called.
func usagef(format string, args ...any) error {
	return &failure{exitUsage, fmt.Errorf(format, args...)}
}

// unablef is an error about what kept gmsactl from looking.
func unablef(format string, args ...any) error {
	return &failure{exitUnable, fmt.Errorf(format, args...)}
}

// endWith ends gmsactl with a code and no further word.
func endWith(code int) error {
	if code == exitGood {
		return nil
	}
	return &failure{code, nil}
}

// exitCode returns the code that an error ends gmsactl with. Of an error without a code it asks whether somebody could not
// be reached or refused to be asked.
func exitCode(err error) int {
	if err == nil {
		return exitGood
	}
	if f, ok := asFailure(err); ok {
		return f.code
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || notAllowed(err) || unreachable(err) || verify.IsUnable(directory.CauseOf(err)) {
		return exitUnable
	}
	return exitWrong
}

func asFailure(err error) (*failure, bool) { return errors.AsType[*failure](err) }

// notAllowed reports whether the API server refused who asked, not what was asked for.
func notAllowed(err error) bool {
	return apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err)
}

// unreachable reports whether nobody answered, or the API server answered that it cannot now.
func unreachable(err error) bool {
	if _, ok := errors.AsType[*url.Error](err); ok {
		return true
	}
	if _, ok := errors.AsType[net.Error](err); ok {
		return true
	}
	return apierrors.IsServerTimeout(err) || apierrors.IsServiceUnavailable(err) || apierrors.IsTimeout(err) ||
		apierrors.IsTooManyRequests(err) || apierrors.IsInternalError(err)
}
