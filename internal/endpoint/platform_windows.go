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

// DefaultRoot is where providers publish. The prefix \\?\ makes Windows take every name as it stands: "con" and "nul" are
// valid names of namespaces, and a long Secret's name exceeds MAX_PATH.
const DefaultRoot = `\\?\C:\var\lib\rancher\gmsa`

// descriptors gives each of Readers the descriptor of the directories that it reads.
var descriptors = map[string]string{
	"network-service": winsec.DirPluginReadable,
	"local-service":   winsec.DirAdminOnly + "(A;OICI;0x1200a9;;;LS)",
	"launching-user":  winsec.DirAdminOnly,
}

// makeAncestors makes what is missing above root, from the drive down: nothing is made in a directory that was not checked.
// Those directories are shared with the kubelet and others, so an existing one is not changed.
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

// checkAncestors checks every directory between the drive and root: whoever owns one can put another tree in its place.
func checkAncestors(root string) error {
	for _, dir := range ancestors(root) {
		if err := checkTrusted(dir); err != nil {
			return err
		}
	}
	return nil
}

// removeEmptyAbove removes the default root and the directories above it, from the bottom up to the first that is not empty.
// A publisher that makes one at the same moment tries again. What is above another root is whose who chose it.
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

// ancestors are the directories above root, the drive's left out, from the top down.
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
		return fmt.Errorf("plugin identity %q is unknown; it is one of %q", reader, Readers)
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

// isBusy tells that another process has the file open just now, or has one open in a directory that is to be removed.
func isBusy(err error) bool {
	return errors.Is(err, windows.ERROR_ACCESS_DENIED) || errors.Is(err, windows.ERROR_SHARING_VIOLATION) || errors.Is(err, windows.ERROR_DIR_NOT_EMPTY)
}

// isGone tells that a file went away while its generation was being read.
func isGone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, windows.ERROR_DELETE_PENDING) || errors.Is(err, windows.ERROR_SHARING_VIOLATION)
}
