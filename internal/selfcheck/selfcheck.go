// Package selfcheck carries the result of a program's check of itself to the probes of its container, through a file. A
// probe then starts a small process that reads this file: it needs no network, no cryptography and little memory, which
// counts against the container's limit.
//
// This package links only the standard library's basic packages, because the probe program does. Package record creates
// the file's directory.
package selfcheck

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
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

// length is the length of a file in bytes. maxDetail keeps a result below it.
const (
	length    = 4 << 10
	maxDetail = 512
)

// Result is the content of the file: JSON, spaces up to the fixed length, and a checksum.
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

// Write writes the file at path. It overwrites the previous result, because Windows does not let a program replace a
// file that a probe has open.
func (r Result) Write(path string) error {
	if len(r.Detail) > maxDetail {
		r.Detail = r.Detail[:maxDetail]
	}
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	data = append(data, bytes.Repeat([]byte{' '}, length-checksumLength-len(data))...)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(append(data, checksum(data)...), 0)
	return errors.Join(err, f.Close())
}

// checksumLength is the length of a checksum: 8 hexadecimal digits and a line break.
const checksumLength = 9

// checksum detects a file that is being written. It is no protection against changes.
func checksum(data []byte) string { return fmt.Sprintf("%08x\n", crc32.ChecksumIEEE(data)) }

// Read returns the result in the file at path. If the file is being written, it tries again.
func Read(path string) (r Result, err error) {
	for range 20 {
		if r, err = read(path); !errors.Is(err, errIncomplete) {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	return r, err
}

var errIncomplete = errors.New("not the complete result of a self-check")

func read(path string) (Result, error) {
	var r Result
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, fmt.Errorf("%s: no self-check has finished yet", path)
	}
	if err != nil {
		return r, err
	}
	defer f.Close()
	data := make([]byte, length)
	if _, err := io.ReadFull(f, data); err != nil {
		return r, fmt.Errorf("%s: %w: %w", path, errIncomplete, err)
	}
	data, sum := data[:length-checksumLength], string(data[length-checksumLength:])
	if checksum(data) != sum {
		return r, fmt.Errorf("%s: %w: the checksum differs", path, errIncomplete)
	}
	return r, json.Unmarshal(data, &r)
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
		return fmt.Errorf("self-check: %s: %s", r.State, r.Detail)
	}
}
