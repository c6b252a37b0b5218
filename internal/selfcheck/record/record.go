// Package record writes the result of a self-check for the container's probes.
package record

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/selfcheck"
)

// Recorder writes the results of one program. A nil Recorder, as outside of a container, writes nothing.
type Recorder struct {
	path     string
	interval time.Duration
}

// New creates the directory of the file, which only SYSTEM and Administrators can access, and deletes a previous
// result. It returns nil if the program does not run in a HostProcess container, which getenv tells.
func New(getenv func(string) string, interval time.Duration) (*Recorder, error) {
	path := selfcheck.Path(getenv)
	if path == "" {
		return nil, nil
	}
	if err := secureDir(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("directory of the self-check: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("result of a previous self-check: %w", err)
	}
	return &Recorder{path: path, interval: interval}, nil
}

// Record writes a result. Its detail must not contain secrets.
func (r *Recorder) Record(state selfcheck.State, detail string) error {
	if r == nil {
		return nil
	}
	result := selfcheck.Result{
		State:    state,
		Detail:   detail,
		Time:     time.Now(),
		Interval: r.interval,
	}
	return result.Write(r.path)
}
