package ad

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ccgrkc/ccgrkc/lab/labtest"
)

// A directory that another user could have created or changed is rejected.
func TestTheLockDirectoryIsProtected(t *testing.T) {
	t.Parallel()
	labtest.Require(t) // root: it gives a directory to another user
	for name, puts := range map[string]func(dir string) error{
		"open to all":    func(dir string) error { return mkdir(dir, 0o777) },
		"sticky":         func(dir string) error { return mkdir(dir, 0o700|os.ModeSticky) },
		"a file":         func(dir string) error { return os.WriteFile(dir, nil, 0o700) },
		"another user's": func(dir string) error { return errors.Join(mkdir(dir, 0o700), os.Chown(dir, 65534, 65534)) },
		"a link": func(dir string) error {
			return errors.Join(mkdir(dir+"-target", 0o700), os.Symlink(dir+"-target", dir))
		},
		"a dangling link": func(dir string) error { return os.Symlink(dir+"-target", dir) },
	} {
		dir := filepath.Join(t.TempDir(), "addresses")
		must(t, puts(dir))
		if err := takeDir(dir); err == nil || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: %v", name, err)
		}
	}
	dir := filepath.Join(t.TempDir(), "addresses")
	must(t, takeDir(dir))
	must(t, takeDir(dir)) // like the next run
}

// mkdir is os.Mkdir without the umask.
func mkdir(dir string, mode os.FileMode) error {
	return errors.Join(os.Mkdir(dir, mode.Perm()), os.Chmod(dir, mode))
}
