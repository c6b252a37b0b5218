package winsec

import (
	"fmt"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/windows"
)

// Names of the privileges that the project uses ([MS-LSAD] 3.1.1.2.1).
const (
	SeBackupPrivilege        = "SeBackupPrivilege"        // open anything for reading
	SeRestorePrivilege       = "SeRestorePrivilege"       // open anything for writing, make anybody the owner
	SeTakeOwnershipPrivilege = "SeTakeOwnershipPrivilege" // become the owner of anything
)

// PrivilegeError says which privileges this process's token does not hold, all or some.
type PrivilegeError struct {
	Names []string
	Err   error
}

func (e *PrivilegeError) Error() string {
	return fmt.Sprintf("this process cannot enable %s: %v; run it as SYSTEM or as an elevated administrator",
		strings.Join(e.Names, ", "), e.Err)
}

func (e *PrivilegeError) Unwrap() error { return e.Err }

// x/sys drops the one answer that matters: AdjustTokenPrivileges succeeds, with ERROR_NOT_ALL_ASSIGNED as the last error,
// when it has enabled less than it was asked for.
var procAdjustTokenPrivileges = windows.NewLazySystemDLL("advapi32.dll").NewProc("AdjustTokenPrivileges")

// RunWithPrivileges calls fn with the named privileges enabled, on this thread and for this call only. A goroutine that fn
// starts does not have them.
func RunWithPrivileges(names []string, fn func() error) error {
	luids := make([]windows.LUID, len(names))
	for i, name := range names {
		if err := windows.LookupPrivilegeValue(nil, windows.StringToUTF16Ptr(name), &luids[i]); err != nil {
			return &PrivilegeError{Names: []string{name}, Err: err}
		}
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// The process's own token stays as it is: the thread impersonates its own process, and only that copy is changed.
	if err := windows.ImpersonateSelf(windows.SecurityImpersonation); err != nil {
		return &PrivilegeError{Names: names, Err: err}
	}
	defer func() {
		if err := windows.RevertToSelf(); err != nil {
			panic("winsec: a thread cannot give up its privileges: " + err.Error()) // other goroutines would inherit them
		}
	}()
	var token windows.Token
	err := windows.OpenThreadToken(windows.CurrentThread(), windows.TOKEN_ADJUST_PRIVILEGES|windows.TOKEN_QUERY, false, &token)
	if err != nil {
		return &PrivilegeError{Names: names, Err: err}
	}
	defer token.Close()
	for i, luid := range luids { // one by one, so that the error names the one that is missing
		wanted := windows.Tokenprivileges{PrivilegeCount: 1,
			Privileges: [1]windows.LUIDAndAttributes{{Luid: luid, Attributes: windows.SE_PRIVILEGE_ENABLED}}}
		ok, _, err := procAdjustTokenPrivileges.Call(uintptr(token), 0, uintptr(unsafe.Pointer(&wanted)), 0, 0, 0)
		if ok == 0 || err == windows.ERROR_NOT_ALL_ASSIGNED {
			return &PrivilegeError{Names: names[i : i+1], Err: err}
		}
	}
	return fn()
}
