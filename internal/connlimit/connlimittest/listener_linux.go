package connlimittest

import (
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// BreakListener shuts down a listener of a process, so that accept(2) fails for good. It needs the right to trace the
// process, which a parent usually has. The error wraps unix.EPERM if it does not.
func BreakListener(pid int, address string) error {
	want, err := net.ResolveTCPAddr("tcp4", address)
	if err != nil {
		return err
	}
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("pidfd_open: %w", err)
	}
	defer unix.Close(process)
	const descriptors = 1024 // more than the programs under test have
	for n := range descriptors {
		fd, err := unix.PidfdGetfd(process, n, 0)
		if err == unix.EBADF {
			continue
		}
		if err != nil {
			return fmt.Errorf("pidfd_getfd: %w", err)
		}
		defer unix.Close(fd)
		listening, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		if err != nil || listening == 0 {
			continue
		}
		name, _ := unix.Getsockname(fd)
		if a, ok := name.(*unix.SockaddrInet4); ok && a.Port == want.Port {
			return unix.Shutdown(fd, unix.SHUT_RDWR)
		}
	}
	return fmt.Errorf("process %d has no listener on %s", pid, address)
}
