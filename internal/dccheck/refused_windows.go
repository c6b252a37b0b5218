package dccheck

import "golang.org/x/sys/windows"

// syscall.ECONNREFUSED is a number that Go invented for Windows. No system call returns it.
const connectionRefused = windows.WSAECONNREFUSED
