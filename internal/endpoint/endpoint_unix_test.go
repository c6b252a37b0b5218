//go:build !windows

package endpoint

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// Attack: another user created the directory, or a link in its place, before the first provider.
func TestPlantedDirectoriesAreNotTrusted(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root, to make files of another user")
	}
	const stranger = 12345
	plant := map[string]func(t *testing.T, root string){
		"account directory": func(t *testing.T, root string) {
			publish(t, root, ref, 1)
			chown(t, directory(root, ref), stranger)
		},
		"namespace directory": func(t *testing.T, root string) {
			publish(t, root, ref, 1)
			chown(t, filepath.Dir(directory(root, ref)), stranger)
		},
		"link to a directory": func(t *testing.T, root string) {
			elsewhere := t.TempDir()
			publish(t, elsewhere, ref, 1)
			if err := os.Symlink(filepath.Join(elsewhere, ref.Namespace),
				filepath.Join(root, ref.Namespace)); err != nil {
				t.Fatal(err)
			}
		},
	}
	for name, f := range plant {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			f(t, root)
			if e, err := Resolve(root, ref); !errors.Is(err, ErrUntrusted) {
				t.Errorf("resolved %v, %v", e, err)
			}
			if _, err := (Publisher{Root: root}).Publish(ref, sample(2)); !errors.Is(err, ErrUntrusted) {
				t.Errorf("published into it: %v", err)
			}
		})
	}
}

// Attack: a file is a link, or not a regular file.
func TestPlantedFilesAreNotFollowed(t *testing.T) {
	for _, name := range []string{portFile, caFile, clientCertFile, clientKeyFile, "../" + currentFile} {
		t.Run(filepath.Base(name), func(t *testing.T) {
			root := t.TempDir()
			p := publish(t, root, ref, 1)
			path := filepath.Join(directory(root, ref), p.Generation, name)
			if err := os.Rename(path, path+".moved"); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(path+".moved", path); err != nil {
				t.Fatal(err)
			}
			if e, err := Resolve(root, ref); !errors.Is(err, ErrUntrusted) {
				t.Errorf("%v, %v", e, err)
			}
		})
	}
}

// Attack: a link with the name of a generation, so that the clean-up deletes the content of its target.
func TestLinksAmongGenerationsAreRemovedAndNotFollowed(t *testing.T) {
	for name, remove := range map[string]func(root string) error{
		"publication": func(root string) error { _, err := Publisher{Root: root}.Publish(ref, sample(2)); return err },
		"clean-up": func(root string) error {
			whole, broken, err := Generations(root, ref)
			for _, e := range whole {
				broken = append(broken, e.Generation)
			}
			return errors.Join(err, Remove(root, ref, broken))
		},
	} {
		t.Run(name, func(t *testing.T) {
			root, elsewhere := t.TempDir(), t.TempDir()
			publish(t, root, ref, 1)
			precious := filepath.Join(elsewhere, "precious")
			if err := os.WriteFile(precious, []byte("data"), 0o600); err != nil {
				t.Fatal(err)
			}
			link := filepath.Join(directory(root, ref), generationPrefix+"00000000000000000000000000000000")
			if err := os.Symlink(elsewhere, link); err != nil {
				t.Fatal(err)
			}
			if err := remove(root); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(precious); err != nil {
				t.Errorf("the link was followed: %v", err)
			}
			if _, err := os.Lstat(link); err == nil {
				t.Error("the link is left")
			}
		})
	}
}

func chown(t *testing.T, path string, uid int) {
	t.Helper()
	if err := os.Chown(path, uid, uid); err != nil {
		t.Fatal(err)
	}
}
