package cache

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

func TestEvictRemovesTheLeastRecentlyUsedEntriesThatNobodyUses(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	dir, err := Dir()
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"used", "oldest", "older", "newest"} {
		if _, err := Get(context.Background(), name, io.Discard, func(path string) error {
			return os.WriteFile(path, make([]byte, 100), 0o600)
		}); err != nil {
			t.Fatal(err)
		}
		lock := filepath.Join(dir, name+lockSuffix)
		if name != "used" {
			// Replace the lock file, as if the process that held the lock had exited.
			if err := os.Remove(lock); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(lock, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		at := time.Now().Add(time.Duration(i-10) * time.Hour)
		if err := os.Chtimes(lock, at, at); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct {
		limit int64
		want  []string
	}{{400, []string{"used", "oldest", "older", "newest"}}, {250, []string{"used", "newest"}}, {0, []string{"used"}}} {
		if err := evict(dir, step.limit); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"used", "oldest", "older", "newest"} {
			_, err := os.Stat(filepath.Join(dir, name))
			if wanted := slices.Contains(step.want, name); wanted != (err == nil) {
				t.Errorf("with a limit of %d bytes, entry %s: %v", step.limit, name, err)
			}
		}
	}
}
