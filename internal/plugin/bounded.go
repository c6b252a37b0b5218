package plugin

import (
	"context"
	"fmt"
	"time"
)

// The operating system has calls without a time limit: another program can delay the opening of a file (an oplock or a
// filter driver), and the Event Log service can hang. Such a call cannot be canceled, only abandoned.
const (
	// maxAbandoned limits the abandoned calls of one kind. Further ones fail immediately.
	maxAbandoned = 64
	// reportTimeout limits the writing of an event.
	reportTimeout = time.Second
)

// abandoned counts the calls of one kind that are in progress.
type abandoned chan struct{}

// within returns the result of f. If f does not return before ctx ends, or too many calls hang, it returns an error,
// and discard gets the result later.
func within[T any](ctx context.Context, calls abandoned, f func() (T, error), discard func(T)) (result T, err error) {
	select {
	case calls <- struct{}{}:
	default:
		return result, fmt.Errorf("%d earlier attempts have not returned", cap(calls))
	}
	type outcome struct {
		result T
		err    error
	}
	done := make(chan outcome)
	go func() {
		defer func() { <-calls }()
		var o outcome
		defer func() {
			select {
			case done <- o:
			case <-ctx.Done():
				discard(o.result)
			}
		}()
		defer func() {
			// A panic in this goroutine would terminate the surrogate.
			if value := recover(); value != nil {
				o.err = &panicError{describePanic(value)}
			}
		}()
		o.result, o.err = f()
	}()
	select {
	case o := <-done:
		return o.result, o.err
	case <-ctx.Done():
		return result, fmt.Errorf("no result in time: %w", ctx.Err())
	}
}

// panicError is a panic in a function that within called.
type panicError struct{ text string }

func (e *panicError) Error() string { return e.text }
