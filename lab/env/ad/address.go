package ad

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// The ports of a domain controller. They are fixed.
var ports = []int{53, 88, 389, 636}

// takeAddress reserves an unused loopback address. A file lock protects it from other runs of the lab; the kernel
// releases the lock when this process ends.
func takeAddress() (address string, release func(), err error) {
	dir := filepath.Join(os.TempDir(), "ccgrkc-addresses")
	if err := takeDir(dir); err != nil {
		return "", nil, err
	}
	var busy error
	for range 200 {
		address := fmt.Sprintf("127.77.%d.%d", rand.IntN(254)+1, rand.IntN(254)+1)
		f, err := os.OpenFile(filepath.Join(dir, address), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return "", nil, err
		}
		if err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err == nil {
			if err = isFree(address); err == nil {
				return address, func() { f.Close() }, nil
			}
		}
		f.Close()
		if errors.Is(err, os.ErrPermission) {
			return "", nil, fmt.Errorf("ports below 1024 need root: %w", err)
		}
		busy = err
	}
	return "", nil, fmt.Errorf("no free address in 127.77.0.0/16: %w", busy)
}

// takeDir creates a directory, or accepts an existing one to which no other user can write. Its path is predictable,
// and a link in it would make this process, which is root, open any file.
func takeDir(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if owner := info.Sys().(*syscall.Stat_t).Uid; info.Mode() != os.ModeDir|0o700 || int(owner) != os.Getuid() {
		return fmt.Errorf("%s is %s of user %d, not a directory of user %d with mode 0700: remove it",
			dir, info.Mode(), owner, os.Getuid())
	}
	return nil
}

func isFree(address string) error {
	for _, port := range ports {
		l, err := net.Listen("tcp", net.JoinHostPort(address, strconv.Itoa(port)))
		if err != nil {
			return err
		}
		l.Close()
	}
	return nil
}
