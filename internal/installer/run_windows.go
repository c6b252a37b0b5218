package installer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"

	"github.com/ccgrkc/ccgrkc/internal/logonce"
	"github.com/ccgrkc/ccgrkc/internal/selfcheck"
	"github.com/ccgrkc/ccgrkc/internal/selfcheck/record"
)

// Run installs, and then repairs the registration until ctx ends: immediately after a change of a key, and at every
// interval. It fails if the first install fails. It logs later failures and retries. After the install and after each
// check, it records the result for the container's probes.
func Run(ctx context.Context, c *Config, interval time.Duration, results *record.Recorder) error {
	if err := Install(ctx, c); err != nil {
		return err
	}
	var unwritten logonce.Errors
	c.record(results, nil, &unwritten)
	c.Log.Info("installed, watching the registration", "dll", c.dllPath(), "interval", interval)
	changed := make(chan struct{}, 1)
	stopped := make(chan struct{})
	watching, stop := context.WithCancel(ctx)
	go func() {
		defer close(stopped)
		if err := c.watch(watching, changed); err != nil {
			c.Log.Warn("the registry can no longer be watched; it is checked at every interval", "error", err)
		}
	}()
	defer func() {
		stop()
		<-stopped
	}()
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	failed := false
	for {
		select {
		case <-ctx.Done():
			c.Log.Info("stopping; the plugin remains installed")
			return nil
		case <-changed:
		case <-ticker.C:
		}
		err := c.repair(ctx, failed)
		if ctx.Err() != nil {
			continue
		}
		c.record(results, err, &unwritten)
		failed = err != nil
	}
}

func (c *Config) record(results *record.Recorder, failure error, unwritten *logonce.Errors) {
	state, detail := selfcheck.OK, ""
	if failure != nil {
		state, detail = selfcheck.Failed, failure.Error()
	}
	if err := results.Record(state, detail); unwritten.New(err) && err != nil {
		c.Log.Error("the result of the check cannot be written; the probe of this pod fails", "error", err)
	}
}

// repair checks the host without a self-test, so that a healthy host does not start a surrogate at every interval. A
// repair ends with the self-test. If the previous repair failed, perhaps with the self-test, repair installs again.
func (c *Config) repair(ctx context.Context, failed bool) error {
	report, err := c.inspect()
	if err != nil {
		c.Log.Error("the registration could not be checked", "error", err)
		return err
	}
	healthy := report.Foreign == "" && len(report.Journal) == 0
	for _, row := range report.Rows {
		if row.State != OK {
			healthy = false
			c.Log.Warn("drift", "object", row.Object, "value", row.Value, "expected", row.Expected, "actual",
				row.Actual)
		}
	}
	if healthy && !failed {
		if len(report.Leftovers) > 0 {
			c.removeOldVersions()
		}
		return nil
	}
	if err := Install(ctx, c); err != nil {
		if ctx.Err() == nil {
			c.Log.Error("the registration could not be repaired; retrying", "error", err)
		}
		return err
	}
	c.Log.Info("repaired", "dll", c.dllPath())
	return nil
}

// watch sends to changed when one of the keys changes or is deleted, and once at the start, until ctx ends. It does not
// watch missing keys; those are checked at every interval.
//
// A notification reports one change. watch requests the next notification before it sends to changed, so that the
// receiver sees all previous changes and misses no later one.
func (c *Config) watch(ctx context.Context, changed chan<- struct{}) error {
	cancel, err := windows.CreateEvent(nil, 1, 0, nil)
	if err != nil {
		return err
	}
	defer windows.CloseHandle(cancel)
	stop := context.AfterFunc(ctx, func() { windows.SetEvent(cancel) })
	defer func() {
		if !stop() {
			_, _ = windows.WaitForSingleObject(cancel, windows.INFINITE) // AfterFunc is about to set it
		}
	}()
	send := func() {
		select {
		case changed <- struct{}{}:
		default: // one is already pending
		}
	}
	last, err := c.notify()
	if err != nil {
		return err
	}
	defer func() { last.close() }()
	send() // changes before this moment were not watched
	for {
		events := []windows.Handle{cancel}
		for _, key := range last.keys {
			events = append(events, key.event)
		}
		if _, err := windows.WaitForMultipleObjects(events, false, uint32(rearm.Milliseconds())); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return nil
		}
		next, err := c.notify()
		if err != nil {
			return err
		}
		// A recreated key was not watched until now.
		if last.happened() || !slices.Equal(last.absent, next.absent) {
			send()
		}
		last.close()
		last = next
	}
}

// rearm is the maximum delay to detect a recreated key, or a deleted one without notification.
const rearm = time.Second

// watched returns the keys under HKLM that this installer writes.
func (c *Config) watched() []string {
	return []string{c.clsidKey(), c.appIDKey(), c.comClassesKey(), c.EventSource}
}

// notification waits for the first change of each key.
type notification struct {
	keys   []watchedKey
	absent []string // missing keys
}

type watchedKey struct {
	registry.Key
	event windows.Handle // one per key, because requesting a notification resets its event
}

// notify requests a notification of the next change of each key.
func (c *Config) notify() (*notification, error) {
	// Without REG_NOTIFY_THREAD_AGNOSTIC, Windows cancels the notification when its thread exits, which Go can do any
	// time.
	const filter = windows.REG_NOTIFY_CHANGE_NAME | windows.REG_NOTIFY_CHANGE_LAST_SET |
		windows.REG_NOTIFY_THREAD_AGNOSTIC
	n := &notification{}
	for _, path := range c.watched() {
		event, err := windows.CreateEvent(nil, 1, 0, nil)
		if err != nil {
			n.close()
			return nil, err
		}
		key, err := registry.OpenKey(registry.LOCAL_MACHINE, path,
			registry.NOTIFY|registry.QUERY_VALUE|registry.WOW64_64KEY)
		if err == nil {
			if err = windows.RegNotifyChangeKeyValue(windows.Handle(key), true, filter, event, true); err == nil {
				n.keys = append(n.keys, watchedKey{key, event})
				continue
			}
			key.Close()
		}
		windows.CloseHandle(event)
		// Deleted, possibly after OpenKey. The deletion of a tree notifies with its first subkey.
		if !errors.Is(err, registry.ErrNotExist) && !errors.Is(err, windows.ERROR_KEY_DELETED) {
			n.close()
			return nil, fmt.Errorf(`watch HKLM\%s: %w`, path, err)
		}
		n.absent = append(n.absent, path)
	}
	return n, nil
}

// happened reports whether there was a change. Wine does not notify the deletion of the watched key itself, and another
// key can have the same name by now.
func (n *notification) happened() bool {
	return slices.ContainsFunc(n.keys, func(key watchedKey) bool {
		signalled, err := windows.WaitForSingleObject(key.event, 0)
		_, statErr := key.Stat()
		return err == nil && signalled == windows.WAIT_OBJECT_0 || errors.Is(statErr, windows.ERROR_KEY_DELETED)
	})
}

func (n *notification) close() {
	for _, key := range n.keys {
		key.Close()
		windows.CloseHandle(key.event)
	}
}
