// Package cache stores files and directories that take long to create, in the user's cache directory.
package cache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Key returns a name for an entry. The name changes if any of the parts changes.
func Key(parts ...[]byte) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:", len(p))
		h.Write(p)
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}

// Limit is the maximum size of the cache in bytes. Above it, Get removes the least recently used entries.
const Limit = 10 << 30

// Dir is the directory of the cache, below $XDG_CACHE_HOME or ~/.cache.
func Dir() (string, error) {
	base, err := os.UserCacheDir()
	return filepath.Join(base, "ccgrkc"), err
}

// held contains the locks of the entries that this process uses: *os.File by the entry's path.
var held sync.Map

// Get returns the path of an entry. If the entry does not exist, make creates it at a temporary path, and Get renames
// it. So an entry is either complete or missing. If several processes need the same missing entry, one creates it and
// the others wait. The entry is not removed while this process runs.
func Get(ctx context.Context, name string, progress io.Writer, make func(path string) error) (string, error) {
	dir, err := Dir()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	entry := filepath.Join(dir, name)
	for {
		if _, ok := held.Load(entry); ok {
			return entry, nil
		}
		f, err := lock(ctx, entry+lockSuffix, syscall.LOCK_SH, progress)
		if err != nil {
			return "", err
		}
		if _, err := os.Stat(entry); err == nil {
			if _, ok := held.LoadOrStore(entry, f); ok {
				f.Close()
			}
			now := time.Now() // evict reads this time of the last use
			return entry, os.Chtimes(f.Name(), now, now)
		}
		f.Close()
		if err := makeEntry(ctx, entry, progress, make); err != nil {
			return "", err
		}
		if err := evict(dir, Limit); err != nil {
			return "", err
		}
	}
}

func makeEntry(ctx context.Context, entry string, progress io.Writer, make func(path string) error) error {
	f, err := lock(ctx, entry+lockSuffix, syscall.LOCK_EX, progress)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := os.Stat(entry); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	unfinished := entry + ".unfinished"
	if err := os.RemoveAll(unfinished); err != nil {
		return err
	}
	defer os.RemoveAll(unfinished)
	if err := make(unfinished); err != nil {
		return err
	}
	now := time.Now()
	return errors.Join(os.Chtimes(f.Name(), now, now), os.Rename(unfinished, entry))
}

// evict removes the least recently used entries until the remaining ones have at most limit bytes. It does not remove
// entries that a process uses. It removes no lock files, because another process can be waiting for a lock.
func evict(dir string, limit int64) error {
	locks, err := filepath.Glob(filepath.Join(dir, "*"+lockSuffix))
	if err != nil {
		return err
	}
	type candidate struct {
		lock string
		size int64
		used time.Time
	}
	var total int64
	var all []candidate
	for _, l := range locks {
		info, err := os.Stat(l)
		if err != nil {
			return err
		}
		c := candidate{l, size(strings.TrimSuffix(l, lockSuffix)), info.ModTime()}
		total += c.size
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b candidate) int { return a.used.Compare(b.used) })
	for _, c := range all {
		if total <= limit {
			break
		}
		f, err := os.OpenFile(c.lock, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			total -= c.size
			err = os.RemoveAll(strings.TrimSuffix(c.lock, lockSuffix))
		}
		f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// size returns the total size of the files below path. It ignores files that another process removes during the walk.
func size(path string) (bytes int64) {
	_ = filepath.WalkDir(path, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if info, err := e.Info(); err == nil {
			bytes += info.Size()
		}
		return nil
	})
	return bytes
}

const lockSuffix = ".lock"

// lock takes an advisory lock. The kernel releases it if this process dies.
func lock(ctx context.Context, path string, how int, progress io.Writer) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	for waits := 0; ; waits++ {
		err := syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			f.Close()
			return nil, fmt.Errorf("locking %s: %w", path, err)
		}
		if waits%75 == 74 { // every 15 s
			fmt.Fprintf(progress, "waiting for another process that creates %s (%s)\n", filepath.Base(path), time.Since(began).Round(time.Second))
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}
