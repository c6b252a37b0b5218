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

// The ports on which a domain controller is looked for. None of them can be moved.
var ports = []int{53, 88, 389, 636}

// takeAddress finds a loopback address on which nobody listens, and holds it against other runs of the lab with a lock that
// the kernel gives back when this process ends.
func takeAddress() (address string, release func(), err error) {
	dir := filepath.Join(os.TempDir(), "ccgrkc-addresses")
	if err := os.MkdirAll(dir, 0o700); err != nil {
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
			return "", nil, fmt.Errorf("a domain controller listens on ports below 1024, which needs root: %w", err)
		}
		busy = err
	}
	return "", nil, fmt.Errorf("no free address in 127.77.0.0/16: %w", busy)
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
