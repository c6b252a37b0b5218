//go:build !windows

package reach

import "syscall"

const connectionRefused = syscall.ECONNREFUSED
