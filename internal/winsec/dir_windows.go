package winsec

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/windows"
)

// Security descriptors for SecureDir:
//
//	O:BA G:BA   owner and group are Administrators: SYSTEM and an elevated administrator can set that owner. For
//	            O:SY, an administrator would need SeRestorePrivilege.
//	D:PAI       the DACL is protected: it does not inherit entries from above, such as the permission of Users to
//	            create files below C:\
//	OICI        files and directories inside inherit the entry
//	FA          full access;  0x1200a9 = read, list, traverse, execute
const (
	// DirAdminOnly is for directories that only SYSTEM and Administrators can read.
	DirAdminOnly = "O:BAG:BAD:PAI(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)"
	// DirPluginReadable is for directories that the plugin, which runs as NETWORK SERVICE, can read too.
	DirPluginReadable = "O:BAG:BAD:PAI(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;OICI;0x1200a9;;;NS)"
	// DirProgram is for programs: every account can load them, only SYSTEM and Administrators can change them.
	DirProgram = "O:BAG:BAD:PAI(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;OICI;0x1200a9;;;BU)"
)

// takeoverTries limits the attempts if another account recreates the directory after each removal.
const takeoverTries = 8

// SecureDir creates a directory, or changes an existing one, with the owner and the protected DACL of sddl. The parent
// must exist and must be secure, because an account that can rename the parent can replace path.
//
// SecureDir never uses a directory that an untrusted account created: that account can still have an open handle, which
// a new DACL does not close. It replaces an empty directory. For another one, it returns an error that matches
// ErrUntrusted and contains the path, the owner and the remedy. It always rejects a link.
func SecureDir(path, sddl string) error {
	descriptor, err := windows.SecurityDescriptorFromString(sddl)
	if err != nil {
		return fmt.Errorf("security descriptor %q of %s: %w", sddl, path, err)
	}
	err = secureDir(path, descriptor)
	if !errors.Is(err, windows.ERROR_ACCESS_DENIED) && !errors.Is(err, windows.ERROR_INVALID_OWNER) {
		return err
	}
	// The DACL of an existing directory can deny administrators access, and a token can contain Administrators without
	// the permission to set that owner. These two privileges permit both.
	privileges := []string{SeBackupPrivilege, SeRestorePrivilege}
	return RunWithPrivileges(privileges, func() error { return secureDir(path, descriptor) })
}

func secureDir(path string, descriptor *windows.SECURITY_DESCRIPTOR) error {
	verbatim, err := verbatimPath(path)
	if err != nil {
		return err
	}
	name, err := windows.UTF16PtrFromString(verbatim)
	if err != nil {
		return &os.PathError{Op: "secure", Path: path, Err: err}
	}
	attributes := &windows.SecurityAttributes{
		Length:             uint32(unsafe.Sizeof(windows.SecurityAttributes{})),
		SecurityDescriptor: descriptor,
	}
	var lastErr error
	for range takeoverTries {
		err := windows.CreateDirectory(name, attributes)
		if err != nil && err != windows.ERROR_ALREADY_EXISTS {
			return &os.PathError{Op: "create", Path: path, Err: err}
		}
		lastErr = secureExisting(name, path, descriptor)
		if errors.Is(lastErr, windows.ERROR_FILE_NOT_FOUND) {
			continue // another process has removed it
		}
		var untrusted *UntrustedError
		if !errors.As(lastErr, &untrusted) || untrusted.Owner == "" {
			return lastErr
		}
		// RemoveDirectory also checks that the directory is empty: a separate check would leave a gap. It also fails
		// while another process has the directory open without sharing deletion.
		if err := windows.RemoveDirectory(name); err != nil {
			untrusted.Reason += fmt.Sprintf(", and it cannot be removed and recreated (%v)", err)
			return untrusted
		}
	}
	return lastErr
}

// secureExisting sets the security descriptor of the directory at path, if a trusted account owns it.
func secureExisting(name *uint16, path string, descriptor *windows.SECURITY_DESCRIPTOR) error {
	// No FILE_SHARE_DELETE: while this handle is open the directory cannot be renamed or removed.
	handle, err := windows.CreateFile(name,
		windows.READ_CONTROL|windows.WRITE_DAC|windows.WRITE_OWNER|windows.FILE_READ_ATTRIBUTES,
		windows.FILE_SHARE_READ|windows.FILE_SHARE_WRITE, nil, windows.OPEN_EXISTING,
		windows.FILE_FLAG_BACKUP_SEMANTICS|windows.FILE_FLAG_OPEN_REPARSE_POINT, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer windows.CloseHandle(handle)

	directory, err := checkHandle(handle, path)
	if err != nil {
		return err
	}
	if !directory {
		return &UntrustedError{
			Path:   path,
			Reason: "it is a file, not a directory",
			Remedy: "delete the file as an administrator and retry",
		}
	}
	// SetSecurityInfo would also change the content of the directory.
	err = windows.SetKernelObjectSecurity(handle, windows.OWNER_SECURITY_INFORMATION|windows.GROUP_SECURITY_INFORMATION|
		windows.DACL_SECURITY_INFORMATION|windows.PROTECTED_DACL_SECURITY_INFORMATION, descriptor)
	if err != nil {
		return &os.PathError{Op: "set owner and DACL of", Path: path, Err: err}
	}
	_, err = checkHandle(handle, path)
	return err
}
