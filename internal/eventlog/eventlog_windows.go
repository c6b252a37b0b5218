package eventlog

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/windows"

	"github.com/ccgrkc/ccgrkc/internal/plugin/cause"
)

// Write writes one event. The inserts are %1, %2 and so on of the message. It opens the event source for each event:
// events are rare, and a restart of the Event Log service invalidates handles.
func Write(c *cause.Cause, inserts ...string) error {
	source, err := windows.UTF16PtrFromString(Source)
	if err != nil {
		return err
	}
	log, err := windows.RegisterEventSource(nil, source)
	if err != nil {
		return fmt.Errorf("open the event source %s: %w", Source, err)
	}
	defer windows.DeregisterEventSource(log)

	strings := make([]*uint16, len(inserts)+1) // never empty, so that it has an address
	for i, s := range inserts {
		if strings[i], err = windows.UTF16PtrFromString(s); err != nil {
			return fmt.Errorf("event %d: insert %d: %w", c.Event, i+1, err)
		}
	}
	err = windows.ReportEvent(log, kind(c.Severity), 0, c.MessageID(), 0, uint16(len(inserts)), 0, &strings[0], nil)
	runtime.KeepAlive(strings)
	if err != nil {
		return fmt.Errorf("write event %d: %w", c.Event, err)
	}
	return nil
}

func kind(s cause.Severity) uint16 {
	switch s {
	case cause.Informational:
		return windows.EVENTLOG_INFORMATION_TYPE
	case cause.Warning:
		return windows.EVENTLOG_WARNING_TYPE
	default:
		return windows.EVENTLOG_ERROR_TYPE
	}
}
