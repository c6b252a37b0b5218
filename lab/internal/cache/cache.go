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

// Get returns the path of the entry called name. If there is none, make makes it at the path that it is given, and a
// rename puts it in place: an entry is whole or absent. One process makes, others that want the same entry wait for it.
// What is said on progress says why it takes long.
func Get(ctx context.Context, name string, progress io.Writer, make func(path string) error) (string, error) {
	base, err := os.UserCacheDir() // $XDG_CACHE_HOME, or ~/.cache
	if err != nil {
		return "", err
	}
	dir := filepath.Join(base, "ccgrkc")
	entry := filepath.Join(dir, name)
	if _, err := os.Stat(entry); err == nil {
		return entry, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	unlock, err := lock(ctx, entry+".lock", progress)
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(entry); !errors.Is(err, fs.ErrNotExist) {
		return entry, err
	}

	unfinished := entry + ".unfinished"
	if err := os.RemoveAll(unfinished); err != nil {
		return "", err
	}
	defer os.RemoveAll(unfinished)
	stop := report(progress, "still making "+name)
	err = make(unfinished)
	stop()
	if err != nil {
		return "", err
	}
	return entry, os.Rename(unfinished, entry)
}

// lock takes an advisory lock, which the kernel gives back if this process dies.
func lock(ctx context.Context, path string, progress io.Writer) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	stop := report(progress, "waiting for another process that makes "+filepath.Base(path))
	defer stop()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			f.Close()
			return nil, fmt.Errorf("locking %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// report says every 15 seconds that something still goes on, until stop is called.
func report(w io.Writer, what string) (stop func()) {
	begin, done := time.Now(), make(chan struct{})
	go func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(15 * time.Second):
				fmt.Fprintf(w, "%s (%s)\n", what, time.Since(begin).Round(time.Second))
			}
		}
	}()
	return func() { close(done) }
}
