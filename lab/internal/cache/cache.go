// Package cache keeps what is slow to make, a file or a directory, under the user's cache directory.
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

// Key is a name that changes with any of the parts.
func Key(parts ...[]byte) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:", len(p))
		h.Write(p)
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}

// Limit is the size in bytes above which Get removes the entries that were used least recently.
const Limit = 10 << 30

// Dir is the directory of the cache, below $XDG_CACHE_HOME or ~/.cache.
func Dir() (string, error) {
	base, err := os.UserCacheDir()
	return filepath.Join(base, "ccgrkc"), err
}

// held are the locks, *os.File by path of the entry, of what this process uses.
var held sync.Map

// Get returns the path of the entry called name. If there is none, make makes it at the path that it is given, and a
// rename puts it in place: an entry is whole or absent. One process makes, others that want the same entry wait for it.
// The entry stays at least as long as this process.
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
			now := time.Now() // of the last use
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

// evict removes entries, those first that were used least recently, until the others have at most limit bytes. Entries that a
// process uses stay. So do the locks: a process may wait for one.
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

// size is the size of the files below path, without those that are removed meanwhile.
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

// lock takes an advisory lock, which the kernel gives back if this process dies.
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
			fmt.Fprintf(progress, "waiting for another process that makes %s (%s)\n", filepath.Base(path), time.Since(began).Round(time.Second))
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}
