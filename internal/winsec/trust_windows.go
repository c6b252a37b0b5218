package winsec

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/windows"
)

// ErrUntrusted matches every UntrustedError with errors.Is.
var ErrUntrusted = errors.New("not trusted")

// UntrustedError describes a path that is not trusted.
type UntrustedError struct {
	Path   string
	Owner  string // account and SID; "" if the reason is not the owner
	Reason string
	Remedy string
}

func (e *UntrustedError) Error() string {
	if e.Owner == "" {
		return fmt.Sprintf("%s is not trusted: %s; %s", e.Path, e.Reason, e.Remedy)
	}
	return fmt.Sprintf("%s, owned by %s, is not trusted: %s; %s", e.Path, e.Owner, e.Reason, e.Remedy)
}

// Is makes every UntrustedError match ErrUntrusted.
func (e *UntrustedError) Is(target error) bool { return target == ErrUntrusted }

// trustedInstaller is the SID of NT SERVICE\TrustedInstaller, which owns the files of Windows. It has no well-known SID
// type.
const trustedInstaller = "S-1-5-80-956008885-3418522649-1831038044-1853292631-2271478464"

// CheckTrusted returns nil if no part of path is a link and if the owner of path is SYSTEM, Administrators,
// TrustedInstaller or the user of this process, except LOCAL SERVICE and NETWORK SERVICE. For another owner or a link,
// it returns an error that matches ErrUntrusted. For a missing path, the error matches fs.ErrNotExist.
//
// To read a file afterwards, use OpenTrusted, which leaves no gap between check and use.
func CheckTrusted(path string) error {
	handle, err := openForCheck(path, windows.READ_CONTROL|windows.FILE_READ_ATTRIBUTES)
	if err != nil {
		return err
	}
	defer windows.CloseHandle(handle)
	_, err = checkHandle(handle, path)
	return err
}

// OpenTrusted opens a file for reading. The rule of CheckTrusted applies.
func OpenTrusted(path string) (*os.File, error) {
	handle, err := openForCheck(path, windows.GENERIC_READ)
	if err != nil {
		return nil, err
	}
	directory, err := checkHandle(handle, path)
	if err == nil && directory {
		err = &UntrustedError{
			Path:   path,
			Reason: "it is a directory, not a file",
			Remedy: "delete the directory as an administrator and retry",
		}
	}
	if err != nil {
		windows.CloseHandle(handle)
		return nil, err
	}
	return os.NewFile(uintptr(handle), path), nil
}

// openForCheck opens path itself and never the target of a link.
func openForCheck(path string, access uint32) (windows.Handle, error) {
	verbatim, err := verbatimPath(path)
	if err != nil {
		return 0, err
	}
	name, err := windows.UTF16PtrFromString(verbatim)
	if err != nil {
		return 0, &os.PathError{Op: "open", Path: path, Err: err}
	}
	handle, err := windows.CreateFile(name, access,
		windows.FILE_SHARE_READ|windows.FILE_SHARE_WRITE|windows.FILE_SHARE_DELETE, nil, windows.OPEN_EXISTING,
		windows.FILE_FLAG_BACKUP_SEMANTICS|windows.FILE_FLAG_OPEN_REPARSE_POINT, 0)
	if err != nil {
		return 0, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return handle, nil
}

// checkHandle applies the rule to an open handle, and reports whether it is a directory.
func checkHandle(handle windows.Handle, path string) (directory bool, err error) {
	directory, err = checkLocation(handle, path)
	if err != nil {
		return directory, err
	}
	owner, err := ownerOf(handle, path)
	if err != nil {
		return directory, err
	}
	trusted, err := isTrusted(owner)
	if err != nil {
		return directory, err
	}
	if !trusted {
		return directory, &UntrustedError{
			Path:  path,
			Owner: accountName(owner),
			Reason: "the owner must be SYSTEM, Administrators, TrustedInstaller or this process's own user (unless " +
				"services share it)",
			Remedy: "find out who created it, then delete it as an administrator and retry",
		}
	}
	return directory, nil
}

// checkLocation rejects a link, and a handle to another location because a directory above is a link.
func checkLocation(handle windows.Handle, path string) (directory bool, err error) {
	var info windows.ByHandleFileInformation
	if err := windows.GetFileInformationByHandle(handle, &info); err != nil {
		return false, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	directory = info.FileAttributes&windows.FILE_ATTRIBUTE_DIRECTORY != 0
	if info.FileAttributes&windows.FILE_ATTRIBUTE_REPARSE_POINT != 0 {
		return directory, &UntrustedError{
			Path:   path,
			Reason: "it is a reparse point (a junction or symbolic link)",
			Remedy: "find out who created it, then delete the link as an administrator and retry",
		}
	}
	wanted, err := verbatimPath(path)
	if err != nil {
		return directory, err
	}
	final, err := finalPath(handle)
	if err != nil {
		return directory, &os.PathError{Op: "find the final path of", Path: path, Err: err}
	}
	if !strings.EqualFold(wanted, final) {
		return directory, &UntrustedError{
			Path:   path,
			Reason: "its real path is " + final,
			Remedy: "delete the link in the path, or specify the real path",
		}
	}
	return directory, nil
}

func ownerOf(handle windows.Handle, path string) (*windows.SID, error) {
	descriptor, err := windows.GetSecurityInfo(handle, windows.SE_FILE_OBJECT, windows.OWNER_SECURITY_INFORMATION)
	if err != nil {
		return nil, &os.PathError{Op: "read the owner of", Path: path, Err: err}
	}
	owner, _, err := descriptor.Owner()
	if err != nil || owner == nil {
		return nil, &os.PathError{Op: "read the owner of", Path: path,
			Err: errors.Join(errors.New("there is no owner"), err)}
	}
	return owner, nil
}

func isTrusted(owner *windows.SID) (bool, error) {
	user, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		return false, fmt.Errorf("read the user of this process: %w", err)
	}
	return trusts(user.User.Sid, owner), nil
}

// trusts reports whether a process of this user trusts the owner. It does not trust its own user if that is LOCAL
// SERVICE or NETWORK SERVICE: many services share these accounts, and each of them could have created the file.
func trusts(user, owner *windows.SID) bool {
	switch {
	case owner.IsWellKnown(windows.WinLocalSystemSid), owner.IsWellKnown(windows.WinBuiltinAdministratorsSid),
		owner.String() == trustedInstaller:
		return true
	case owner.IsWellKnown(windows.WinLocalServiceSid), owner.IsWellKnown(windows.WinNetworkServiceSid):
		return false
	}
	return owner.Equals(user)
}

// accountName returns domain, account and SID.
func accountName(sid *windows.SID) string {
	account, domain, _, err := sid.LookupAccount("")
	if err != nil {
		return sid.String() // a deleted account, or one of an unreachable domain
	}
	return fmt.Sprintf(`%s\%s (%s)`, domain, account, sid)
}

func finalPath(handle windows.Handle) (string, error) {
	buffer := make([]uint16, windows.MAX_PATH+4)
	for {
		n, err := windows.GetFinalPathNameByHandle(handle, &buffer[0], uint32(len(buffer)), 0)
		if err != nil {
			return "", err
		}
		if n < uint32(len(buffer)) {
			return windows.UTF16ToString(buffer[:n]), nil
		}
		buffer = make([]uint16, n+1)
	}
}

// verbatimPath returns the \\?\ form of an absolute path on a drive. Windows does not parse such a path: there is no
// limit at MAX_PATH, and con or nul, which are valid names in Kubernetes, are not devices.
func verbatimPath(path string) (string, error) {
	bare, verbatim := strings.CutPrefix(path, `\\?\`)
	if len(bare) < 3 || bare[1] != ':' || bare[2] != '\\' {
		return "", fmt.Errorf("path %q is not an absolute path on a drive, such as C:\\var", path)
	}
	if !verbatim {
		bare = filepath.Clean(bare)
	}
	return `\\?\` + bare, nil
}
