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

// watch sends to changed when one of the keys changes or goes away, until ctx ends. A key that stays absent is left to the
// interval.
func (c *Config) watch(ctx context.Context, changed chan<- struct{}) error {
	cancel, err := windows.CreateEvent(nil, 1, 0, nil)
	if err != nil {
		return err
	}
	defer windows.CloseHandle(cancel)
	defer context.AfterFunc(ctx, func() { windows.SetEvent(cancel) })()
	for ctx.Err() == nil {
		seen, err := c.watchOnce(cancel)
		if err != nil {
			return err
		}
		if !seen {
			continue
		}
		select {
		case changed <- struct{}{}:
		default: // one is already waiting to be seen
		}
	}
	return nil
}

// rearm bounds the time for which a key that was deleted and made again is not watched.
const rearm = 5 * time.Second

func (c *Config) watchOnce(cancel windows.Handle) (seen bool, err error) {
	// REG_NOTIFY_THREAD_AGNOSTIC: without it the notification ends with the thread that asked, which Go may end at any time.
	const filter = windows.REG_NOTIFY_CHANGE_NAME | windows.REG_NOTIFY_CHANGE_LAST_SET | windows.REG_NOTIFY_THREAD_AGNOSTIC
	event, err := windows.CreateEvent(nil, 1, 0, nil)
	if err != nil {
		return false, err
	}
	defer windows.CloseHandle(event)
	var absent []string
	for _, path := range []string{c.clsidKey(), c.appIDKey(), c.comClassesKey(), c.EventSource} {
		h, err := registry.OpenKey(registry.LOCAL_MACHINE, path, registry.NOTIFY|registry.WOW64_64KEY)
		if errors.Is(err, registry.ErrNotExist) || errors.Is(err, windows.ERROR_KEY_DELETED) {
			absent = append(absent, path)
			continue
		}
		if err != nil {
			return false, fmt.Errorf(`watch HKLM\%s: %w`, path, err)
		}
		defer h.Close()
		err = windows.RegNotifyChangeKeyValue(windows.Handle(h), true, filter, event, true)
		if errors.Is(err, windows.ERROR_KEY_DELETED) { // since it was opened: whoever deletes a tree wakes the watch with the first subkey
			absent = append(absent, path)
			continue
		}
		if err != nil {
			return false, fmt.Errorf(`watch HKLM\%s: %w`, path, err)
		}
	}
	signalled, err := windows.WaitForMultipleObjects([]windows.Handle{event, cancel}, false, uint32(rearm.Milliseconds()))
	// A key that was made again could be changed unseen until now.
	madeAgain := slices.ContainsFunc(absent, func(path string) bool { present, _ := keyExists(path); return present })
	return signalled == windows.WAIT_OBJECT_0 || madeAgain, err
}
