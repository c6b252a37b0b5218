package selfcheck_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/selfcheck"
	"github.com/ccgrkc/ccgrkc/internal/selfcheck/record"
)

// tempDir is like t.TempDir. Under Wine, os.RemoveAll fails.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "selfcheck")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		var paths []string
		err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
			paths = append(paths, path)
			return err
		})
		for _, path := range slices.Backward(paths) {
			err = errors.Join(err, os.Remove(path))
		}
		if err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestAResultIsValidForThreeIntervals(t *testing.T) {
	now := time.Now()
	for name, c := range map[string]struct {
		state  selfcheck.State
		age    time.Duration
		other  bool
		reason string // empty if the probe succeeds
	}{
		"recent":                         {state: selfcheck.OK, age: 0},
		"almost too old":                 {state: selfcheck.OK, age: 15 * time.Second},
		"too old":                        {state: selfcheck.OK, age: 16 * time.Second, reason: "hangs"},
		"from a wrong clock":             {state: selfcheck.OK, age: -16 * time.Second, reason: "hangs"},
		"failed":                         {state: selfcheck.Failed, reason: "no route"},
		"failed, another accepted":       {state: selfcheck.Failed, other: true, reason: "no route"},
		"another provider":               {state: selfcheck.Other, reason: "other"},
		"another provider, accepted":     {state: selfcheck.Other, other: true},
		"another provider, but too old":  {state: selfcheck.Other, other: true, age: time.Hour, reason: "hangs"},
		"a state of a different version": {state: "new", other: true, reason: "new"},
	} {
		t.Run(name, func(t *testing.T) {
			r := selfcheck.Result{
				State:    c.state,
				Detail:   "no route",
				Time:     now.Add(-c.age),
				Interval: 5 * time.Second,
			}
			err := r.Err(now, c.other)
			if (err == nil) != (c.reason == "") || err != nil && !strings.Contains(err.Error(), c.reason) {
				t.Errorf("got %v, want %q", err, c.reason)
			}
		})
	}
	if err := (selfcheck.Result{State: selfcheck.OK, Time: now}).Err(now, false); err == nil {
		t.Error("a result without an interval never becomes too old")
	}
}

func TestEveryReadGetsACompleteResult(t *testing.T) {
	path := filepath.Join(tempDir(t), "result.json")
	long := strings.Repeat("a reason that is too long\n\x1b[31m", 100)
	write := func(detail string) {
		r := selfcheck.Result{State: selfcheck.Failed, Detail: detail, Time: time.Now(), Interval: time.Second}
		if err := r.Write(path); err != nil {
			t.Error(err)
		}
	}
	write(long)
	var readers sync.WaitGroup
	done := make(chan struct{})
	for range 4 {
		readers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				r, err := selfcheck.Read(path)
				if err != nil || r.State != selfcheck.Failed {
					t.Errorf("%+v, %v", r, err)
					return
				}
				if !strings.Contains(long, r.Detail) {
					t.Errorf("nobody wrote %q", r.Detail)
					return
				}
			}
		})
	}
	for i := range 500 {
		write(long[i:])
	}
	close(done)
	readers.Wait()
}

func TestUnusableFilesAreErrors(t *testing.T) {
	dir := tempDir(t)
	path := filepath.Join(dir, "result.json")
	if _, err := selfcheck.Read(path); err == nil || !strings.Contains(err.Error(), "no self-check") {
		t.Errorf("a missing file: %v", err)
	}
	for _, content := range []string{"", `{"state":"ok"}`, strings.Repeat("[", 1<<20), strings.Repeat(" ", 4<<10)} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if r, err := selfcheck.Read(path); err == nil {
			t.Errorf("%.20q: got %+v", content, r)
		}
	}
}

func TestAPreviousResultIsDeletedAtTheStart(t *testing.T) {
	env := map[string]string{"CONTAINER_SANDBOX_MOUNT_POINT": tempDir(t), "POD_UID": "a"}
	getenv := func(name string) string { return env[name] }
	first, err := record.New(getenv, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Record(selfcheck.OK, ""); err != nil {
		t.Fatal(err)
	}
	if r, err := selfcheck.Read(selfcheck.Path(getenv)); err != nil || r.Err(time.Now(), false) != nil {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := record.New(getenv, time.Hour); err != nil {
		t.Fatal(err)
	}
	if r, err := selfcheck.Read(selfcheck.Path(getenv)); err == nil {
		t.Errorf("got the result of the previous program: %+v", r)
	}
	// Outside of a container there is nothing to record.
	none, err := record.New(func(string) string { return "" }, time.Hour)
	if err != nil || none.Record(selfcheck.OK, "") != nil {
		t.Errorf("outside of a container: %v", err)
	}
}
