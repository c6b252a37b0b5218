package endpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/windows"

	"github.com/ccgrkc/ccgrkc/internal/winsec"
)

// DefaultRoot is the root on Windows. The prefix \\?\ disables the parsing of names: "con" and "nul" are valid names of
// namespaces, and a path with a long Secret name exceeds MAX_PATH.
const DefaultRoot = `\\?\C:\var\lib\rancher\gmsa`

// descriptors maps each of Readers to the security descriptor of the directories.
var descriptors = map[string]string{
	"network-service": winsec.DirPluginReadable,
	"local-service":   winsec.DirAdminOnly + "(A;OICI;0x1200a9;;;LS)",
	"launching-user":  winsec.DirAdminOnly,
}

// makeAncestors creates the missing directories above root, from the drive down, each only in a checked directory. The
// kubelet and other programs use these directories too, so existing ones are not changed.
func makeAncestors(root string) error {
	for _, dir := range ancestors(root) {
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := checkTrusted(dir); err != nil {
			return err
		}
	}
	return nil
}

// checkAncestors checks every directory between the drive and root: the owner of one can replace everything below it.
func checkAncestors(root string) error {
	for _, dir := range ancestors(root) {
		if err := checkTrusted(dir); err != nil {
			return err
		}
	}
	return nil
}

// removeEmptyAbove removes the default root and the directories above it, from the bottom up to the first that is not
// empty. A publisher that creates one at the same time retries. For a custom root it does nothing.
func removeEmptyAbove(root string) {
	if root != DefaultRoot {
		return
	}
	dirs := append(ancestors(root), root)
	for _, dir := range slices.Backward(dirs) {
		if os.Remove(dir) != nil {
			return
		}
	}
}

// ancestors returns the directories above root, without the drive, from the top down.
func ancestors(root string) (dirs []string) {
	drive := filepath.VolumeName(root) + `\`
	for dir := filepath.Dir(root); len(dir) > len(drive); dir = filepath.Dir(dir) {
		dirs = append(dirs, dir)
	}
	slices.Reverse(dirs)
	return dirs
}

func (p Publisher) secureDir(path string) error {
	reader := p.Reader
	if reader == "" {
		reader = Readers[0]
	}
	sddl, ok := descriptors[reader]
	if !ok {
		return fmt.Errorf("plugin identity %q is unknown; it must be one of %q", reader, Readers)
	}
	return trustError(winsec.SecureDir(path, sddl))
}

func checkTrusted(path string) error { return trustError(winsec.CheckTrusted(path)) }

func openFile(path string) (*os.File, error) {
	f, err := winsec.OpenTrusted(path)
	return f, trustError(err)
}

func trustError(err error) error {
	if errors.Is(err, winsec.ErrUntrusted) {
		return fmt.Errorf("%w: %w", ErrUntrusted, err)
	}
	return err
}

// isBusy reports that another process has the file open, or a file in the directory to remove.
func isBusy(err error) bool {
	return errors.Is(err, windows.ERROR_ACCESS_DENIED) || errors.Is(err, windows.ERROR_SHARING_VIOLATION) ||
		errors.Is(err, windows.ERROR_DIR_NOT_EMPTY)
}

// isRemoved reports that a file was removed while its generation was read.
func isRemoved(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, windows.ERROR_DELETE_PENDING) ||
		errors.Is(err, windows.ERROR_SHARING_VIOLATION)
}
