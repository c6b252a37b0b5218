package installer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"
)

// Run installs, then keeps the registration as it should be until ctx ends: at once when a key changes, and every interval
// in any case. Its first install must succeed; after that a failure is logged and tried again.
func Run(ctx context.Context, c *Config, interval time.Duration) error {
	if err := Install(ctx, c); err != nil {
		return err
	}
	c.Log.Info("installed, watching", "dll", c.dllPath(), "interval", interval)
	changed := make(chan struct{}, 1)
	stopped := make(chan struct{})
	watching, stop := context.WithCancel(ctx)
	go func() {
		defer close(stopped)
		if err := c.watch(watching, changed); err != nil {
			c.Log.Warn("the registry is not watched any more, only checked at every interval", "error", err)
		}
	}()
	defer func() {
		stop()
		<-stopped
	}()
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			c.Log.Info("stopping; the registration stays")
			return nil
		case <-changed:
		case <-ticker.C:
		}
		c.heal(ctx)
	}
}

// heal looks without activating anything, so that a healthy host starts no surrogate every interval.
func (c *Config) heal(ctx context.Context) {
	report, err := c.inspect()
	if err != nil {
		c.Log.Error("the registration could not be checked", "error", err)
		return
	}
	healthy := report.Foreign == "" && len(report.Journal) == 0
	for _, row := range report.Rows {
		if row.State != OK {
			healthy = false
			c.Log.Warn("drift", "object", row.Object, "value", row.Value, "expected", row.Expected, "actual", row.Actual)
		}
	}
	if healthy {
		if len(report.Leftovers) > 0 {
			c.removeOldVersions()
		}
		return
	}
	if err := Install(ctx, c); err != nil {
		if ctx.Err() == nil {
			c.Log.Error("the registration could not be healed, trying again", "error", err)
		}
		return
	}
	c.Log.Info("healed", "dll", c.dllPath())
}

// watch sends to changed when one of the keys changes or goes away, and once at the beginning, until ctx ends. A key that
// stays absent is left to the interval.
//
// A notification tells of one change. The next is set up before a change is told, so that whoever then looks sees all that came
// before it, and nothing that comes after it is missed.
func (c *Config) watch(ctx context.Context, changed chan<- struct{}) error {
	cancel, err := windows.CreateEvent(nil, 1, 0, nil)
	if err != nil {
		return err
	}
	defer windows.CloseHandle(cancel)
	stop := context.AfterFunc(ctx, func() { windows.SetEvent(cancel) })
	defer func() {
		if !stop() {
			_, _ = windows.WaitForSingleObject(cancel, windows.INFINITE) // it is about to be set
		}
	}()
	tell := func() {
		select {
		case changed <- struct{}{}:
		default: // one is already waiting to be seen
		}
	}
	last, err := c.notify()
	if err != nil {
		return err
	}
	defer func() { last.close() }()
	tell() // until now nothing was watched
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
		// A key that was made again could be changed unseen until now.
		if last.happened() || !slices.Equal(last.absent, next.absent) {
			tell()
		}
		last.close()
		last = next
	}
}

// rearm bounds how late it is seen that a key was made again or, where that is not notified, went away.
const rearm = time.Second

// watched are the keys under HKLM that hold what this installer writes.
func (c *Config) watched() []string {
	return []string{c.clsidKey(), c.appIDKey(), c.comClassesKey(), c.EventSource}
}

// notification is of the first change of each key.
type notification struct {
	keys   []watchedKey
	absent []string // keys that were not there
}

type watchedKey struct {
	registry.Key
	event windows.Handle // its own: to set up a notification resets the event that it is given
}

// notify has the changes of all keys notified, each key's first one from now on.
func (c *Config) notify() (*notification, error) {
	// REG_NOTIFY_THREAD_AGNOSTIC: without it the notification ends with the thread that asked, which Go may end at any time.
	const filter = windows.REG_NOTIFY_CHANGE_NAME | windows.REG_NOTIFY_CHANGE_LAST_SET | windows.REG_NOTIFY_THREAD_AGNOSTIC
	n := &notification{}
	for _, path := range c.watched() {
		event, err := windows.CreateEvent(nil, 1, 0, nil)
		if err != nil {
			n.close()
			return nil, err
		}
		key, err := registry.OpenKey(registry.LOCAL_MACHINE, path, registry.NOTIFY|registry.QUERY_VALUE|registry.WOW64_64KEY)
		if err == nil {
			if err = windows.RegNotifyChangeKeyValue(windows.Handle(key), true, filter, event, true); err == nil {
				n.keys = append(n.keys, watchedKey{key, event})
				continue
			}
			key.Close()
		}
		windows.CloseHandle(event)
		// Deleted, perhaps since it was opened: whoever deletes a tree wakes the watch with the first subkey.
		if !errors.Is(err, registry.ErrNotExist) && !errors.Is(err, windows.ERROR_KEY_DELETED) {
			n.close()
			return nil, fmt.Errorf(`watch HKLM\%s: %w`, path, err)
		}
		n.absent = append(n.absent, path)
	}
	return n, nil
}

// happened tells whether there was a change. Not every one is notified: under Wine the deletion of the watched key itself is
// not, and another key of its name may be there by now.
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
