//go:build !windows

package dccheck

import "syscall"

const connectionRefused = syscall.ECONNREFUSED
