// Package logonce decides whether a loop that gets errors repeatedly logs one. It compares the causes of errors,
// because their texts contain names that are new in each attempt, such as a port or a temporary file.
package logonce

import (
	"errors"
	"fmt"
	"syscall"
)

// Errors remembers the cause of the last error of a loop. The zero value is ready for use.
type Errors struct{ last string }

// New reports whether the cause of err differs from that of the last call. No error is a cause of its own, so the end
// of a failure is new, too.
func (e *Errors) New(err error) bool {
	last := e.last
	e.last = causeOf(err)
	return e.last != last
}

// causeOf identifies the innermost error: by its number, by the text of a variable, or by its type. The text of any
// other error can contain a name or the time. An error can have a method Cause that returns its identity.
func causeOf(err error) string {
	for {
		inner := errors.Unwrap(err)
		if several, ok := err.(interface{ Unwrap() []error }); ok && len(several.Unwrap()) > 0 {
			inner = several.Unwrap()[0] // by convention, the error that the others explain
		}
		if inner == nil {
			break
		}
		err = inner
	}
	switch err := err.(type) {
	case nil:
		return ""
	case interface{ Cause() string }:
		return err.Cause()
	case syscall.Errno:
		return fmt.Sprintf("errno %d", uintptr(err))
	}
	if fmt.Sprintf("%T", err) == fmt.Sprintf("%T", errors.New("")) {
		return err.Error()
	}
	return fmt.Sprintf("%T", err)
}
