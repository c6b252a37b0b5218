package winsec

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/windows"
)

// Descriptors for SecureDir. Each says:
//
//	O:BA G:BA   owner and group are Administrators: both SYSTEM and an elevated administrator may set that owner, while
//	            O:SY would need SeRestorePrivilege of the latter
//	D:PAI       the DACL is protected: nothing is inherited from above, C:\'s "Users may create" least of all
//	OICI        files and directories that are made inside inherit the entry
//	FA          everything;  0x1200a9 = read, list, traverse, execute
const (
	// DirAdminOnly is for what nobody but SYSTEM and Administrators may read.
	DirAdminOnly = "O:BAG:BAD:PAI(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)"
	// DirPluginReadable is for what the plugin's surrogate, which runs as NETWORK SERVICE, reads too.
	DirPluginReadable = "O:BAG:BAD:PAI(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;OICI;0x1200a9;;;NS)"
	// DirProgram is for programs: every account may load them, only SYSTEM and Administrators may change them.
	DirProgram = "O:BAG:BAD:PAI(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;OICI;0x1200a9;;;BU)"
)

// takeoverTries bounds the race with somebody who makes the directory again each time that it is removed.
const takeoverTries = 8

// SecureDir makes path a directory with the owner and the protected DACL of sddl. The directory above must exist and must
// itself be safe: who may rename path's parent decides what path is.
//
// A directory that an untrusted account made beforehand is never adopted, since whoever made it may still hold a handle
// that no new DACL takes away. If it is empty it is removed and made anew, else the answer is an error that matches
// ErrUntrusted and that names the path, the owner and the remedy. A link is refused always.
func SecureDir(path, sddl string) error {
	descriptor, err := windows.SecurityDescriptorFromString(sddl)
	if err != nil {
		return fmt.Errorf("security descriptor %q of %s: %w", sddl, path, err)
	}
	err = secureDir(path, descriptor)
	if !errors.Is(err, windows.ERROR_ACCESS_DENIED) && !errors.Is(err, windows.ERROR_INVALID_OWNER) {
		return err
	}
	// The DACL of a directory that somebody else made can keep even administrators out, and a token may carry
	// Administrators without the right to make it an owner. Both are what these two privileges are for.
	return RunWithPrivileges([]string{SeBackupPrivilege, SeRestorePrivilege}, func() error { return secureDir(path, descriptor) })
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
	var refusal error
	for range takeoverTries {
		err := windows.CreateDirectory(name, attributes)
		if err != nil && err != windows.ERROR_ALREADY_EXISTS {
			return &os.PathError{Op: "create", Path: path, Err: err}
		}
		refusal = secureExisting(name, path, descriptor)
		if errors.Is(refusal, windows.ERROR_FILE_NOT_FOUND) {
			continue // removed since, by somebody else
		}
		var untrusted *UntrustedError
		if !errors.As(refusal, &untrusted) || untrusted.Owner == "" {
			return refusal
		}
		// RemoveDirectory is the check for emptiness too: it and it alone leaves no moment between check and act. It also
		// fails while somebody holds the directory open without sharing deletion.
		if err := windows.RemoveDirectory(name); err != nil {
			untrusted.Reason += fmt.Sprintf(", and it cannot be removed and made anew (%v)", err)
			return untrusted
		}
	}
	return refusal
}

// secureExisting sets the descriptor of the directory at path, if that is a real one which a trusted account made.
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
		return &UntrustedError{Path: path, Reason: "it is a file, a directory is wanted",
			Remedy: "delete the file as an administrator and start again"}
	}
	// Not SetSecurityInfo, which would also walk the directory and rewrite what is in it.
	err = windows.SetKernelObjectSecurity(handle, windows.OWNER_SECURITY_INFORMATION|windows.GROUP_SECURITY_INFORMATION|
		windows.DACL_SECURITY_INFORMATION|windows.PROTECTED_DACL_SECURITY_INFORMATION, descriptor)
	if err != nil {
		return &os.PathError{Op: "set owner and DACL of", Path: path, Err: err}
	}
	_, err = checkHandle(handle, path)
	return err
}
