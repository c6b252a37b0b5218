package winsec

import (
	"fmt"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/windows"
)

// Names of privileges ([MS-LSAD] 3.1.1.2.1).
const (
	SeBackupPrivilege        = "SeBackupPrivilege"        // read any object
	SeRestorePrivilege       = "SeRestorePrivilege"       // write any object, set any owner
	SeTakeOwnershipPrivilege = "SeTakeOwnershipPrivilege" // become the owner of any object
)

// PrivilegeError is the error if the token of this process does not have all of these privileges.
type PrivilegeError struct {
	Names []string
	Err   error
}

func (e *PrivilegeError) Error() string {
	return fmt.Sprintf("this process cannot enable %s: %v; run it as SYSTEM or as an elevated administrator",
		strings.Join(e.Names, ", "), e.Err)
}

func (e *PrivilegeError) Unwrap() error { return e.Err }

// x/sys drops the last error: if AdjustTokenPrivileges has not enabled all privileges, it succeeds with the last error
// ERROR_NOT_ALL_ASSIGNED.
var procAdjustTokenPrivileges = windows.NewLazySystemDLL("advapi32.dll").NewProc("AdjustTokenPrivileges")

// RunWithPrivileges calls fn with the given privileges, which are enabled only on this thread and only for this call. A
// goroutine that fn starts does not have them.
func RunWithPrivileges(names []string, fn func() error) error {
	luids := make([]windows.LUID, len(names))
	for i, name := range names {
		if err := windows.LookupPrivilegeValue(nil, windows.StringToUTF16Ptr(name), &luids[i]); err != nil {
			return &PrivilegeError{Names: []string{name}, Err: err}
		}
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// The thread impersonates its own process, so that only a copy of the process's token is changed.
	if err := windows.ImpersonateSelf(windows.SecurityImpersonation); err != nil {
		return &PrivilegeError{Names: names, Err: err}
	}
	defer func() {
		if err := windows.RevertToSelf(); err != nil {
			panic("winsec: a thread cannot drop its privileges: " + err.Error()) // other goroutines would inherit them
		}
	}()
	var token windows.Token
	err := windows.OpenThreadToken(windows.CurrentThread(), windows.TOKEN_ADJUST_PRIVILEGES|windows.TOKEN_QUERY, false,
		&token)
	if err != nil {
		return &PrivilegeError{Names: names, Err: err}
	}
	defer token.Close()
	for i, luid := range luids { // one by one, so that the error contains the missing one
		wanted := windows.Tokenprivileges{
			PrivilegeCount: 1,
			Privileges:     [1]windows.LUIDAndAttributes{{Luid: luid, Attributes: windows.SE_PRIVILEGE_ENABLED}},
		}
		ok, _, err := procAdjustTokenPrivileges.Call(uintptr(token), 0, uintptr(unsafe.Pointer(&wanted)), 0, 0, 0)
		if ok == 0 || err == windows.ERROR_NOT_ALL_ASSIGNED {
			return &PrivilegeError{Names: names[i : i+1], Err: err}
		}
	}
	return fn()
}
