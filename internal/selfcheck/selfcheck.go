// Package selfcheck carries the result of a program's check of itself to the probes of its container, through a file. A
// probe then starts a small process that reads this file: it needs no network, no cryptography and little memory, which
// counts against the container's limit.
//
// This package links only the standard library's basic packages, because the probe program does. Package record creates
// the file's directory.
package selfcheck

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// State is the result of a check.
type State string

const (
	// OK means that this container's program works.
	OK State = "ok"
	// Other means that the program of another pod does this one's work, as at the start of a rolling update.
	Other State = "other"
	// Failed means that the check failed.
	Failed State = "failed"
)

// maxAge is the age, in intervals, from which a result is too old: the program hangs or does not get the processor.
const maxAge = 3

// maxLength limits a file, in bytes. maxDetail keeps a result below it.
const (
	maxLength = 4 << 10
	maxDetail = 512
)

// Result is the content of the file, as JSON.
type Result struct {
	State  State  `json:"state"`
	Detail string `json:"detail,omitempty"` // the reason, without secrets
	// Time is when the check ended, by the wall clock. Interval is the time between two checks.
	Time     time.Time     `json:"time"`
	Interval time.Duration `json:"intervalNanoseconds"`
}

// Path returns the file of this container, or "" outside of a HostProcess container: getenv has the container's
// environment. CONTAINER_SANDBOX_MOUNT_POINT is the directory of the container's files (KEP-1981). The pod's UID keeps
// containers apart on hosts where that directory is not private.
func Path(getenv func(string) string) string {
	sandbox := getenv("CONTAINER_SANDBOX_MOUNT_POINT")
	if sandbox == "" {
		return ""
	}
	return filepath.Join(sandbox, "selfcheck", "result-"+getenv("POD_UID")+".json")
}

// Write replaces the file at path.
func (r Result) Write(path string) error {
	if len(r.Detail) > maxDetail {
		r.Detail = r.Detail[:maxDetail]
	}
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	next := path + ".new"
	if err := os.WriteFile(next, data, 0o600); err != nil {
		return err
	}
	// Windows denies the replacement while a probe has the file open, which takes far less than a millisecond.
	err = os.Rename(next, path)
	for try := 0; err != nil && try < 10; try++ {
		time.Sleep(10 * time.Millisecond)
		err = os.Rename(next, path)
	}
	return err
}

// Read returns the result in the file at path.
func Read(path string) (Result, error) {
	var r Result
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, fmt.Errorf("%s: no self-check has finished yet", path)
	}
	if err != nil {
		return r, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxLength))
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return r, fmt.Errorf("%s: not the result of a self-check: %w", path, err)
	}
	return r, nil
}

// Err returns nil if the check succeeded and is recent. If other is set, another pod's program is sufficient.
func (r Result) Err(now time.Time, other bool) error {
	// Round strips the monotonic clock, which does not advance while a virtual machine sleeps. A time in the future is
	// no better than an old one: one of the clocks was wrong.
	age := now.Round(0).Sub(r.Time).Abs()
	switch {
	case r.Interval <= 0 || age > maxAge*r.Interval:
		return fmt.Errorf("the last self-check is %s old, but one is due every %s: the program hangs or the node is "+
			"overloaded", age.Round(time.Second), r.Interval)
	case r.State == OK || r.State == Other && other:
		return nil
	default:
		return fmt.Errorf("self-check: %s: %q", r.State, r.Detail)
	}
}
