package dccheck

import "golang.org/x/sys/windows"

// Windows' own number: syscall.ECONNREFUSED is one that Go made up, and no call returns it.
const connectionRefused = windows.WSAECONNREFUSED
