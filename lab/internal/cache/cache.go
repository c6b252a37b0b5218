// Package cache keeps files and directories that are slow to build in the user's cache directory.
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
	"strings"
	"syscall"
	"time"
)

// Key is a hash of the parts.
func Key(parts ...[]byte) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:", len(p))
		h.Write(p)
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}

// Get returns the path of the entry name. If it is missing, build creates it at a temporary path, and a rename moves it
// into place: an entry is complete or absent. One process builds an entry; others that need it wait.
func Get(ctx context.Context, name string, progress io.Writer, build func(path string) error) (string, error) {
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
	stop := report(progress, "still building "+name)
	err = build(unfinished)
	stop()
	if err != nil {
		return "", err
	}
	return entry, os.Rename(unfinished, entry)
}

// lock takes an advisory lock, which the kernel releases if this process dies.
func lock(ctx context.Context, path string, progress io.Writer) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	entry := strings.TrimSuffix(filepath.Base(path), ".lock")
	stop := report(progress, "waiting for another process that builds "+entry)
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

// report prints what and the time since the start every 15 seconds, until stop is called.
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
