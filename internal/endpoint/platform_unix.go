//go:build !windows

package endpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// DefaultRoot is the root on Unix, for development and tests.
const DefaultRoot = "/var/lib/rancher/gmsa"

func makeAncestors(root string) error { return os.MkdirAll(root, 0o700) }

func checkAncestors(string) error { return nil }

func (Publisher) secureDir(path string) error {
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := checkTrusted(path); err != nil {
		return err
	}
	return os.Chmod(path, 0o700)
}

// checkTrusted rejects symbolic links, and directories that neither root nor this user owns.
func checkTrusted(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%w: %s is not a directory", ErrUntrusted, path)
	}
	if uid := info.Sys().(*syscall.Stat_t).Uid; uid != 0 && int(uid) != os.Geteuid() {
		return fmt.Errorf("%w: %s is owned by user %d", ErrUntrusted, path, uid)
	}
	return nil
}

func openFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ELOOP) {
		return nil, fmt.Errorf("%w: %s is a symbolic link", ErrUntrusted, path)
	}
	return f, err
}

func isBusy(error) bool { return false }

// isRemoved reports that a file was removed while its generation was read.
func isRemoved(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// removeEmptyAbove does nothing: on Unix, where only tests run, the directories above root are not ours.
func removeEmptyAbove(string) {}
