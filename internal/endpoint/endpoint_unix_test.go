//go:build !windows

package endpoint

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/ccgrkc/ccgrkc/internal/credential"
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

// Attack: a pod fills the host's disk. A publication that fails at any of its files leaves nothing behind, and the
// active generation remains. Here the disk is a limit of the file size in another process: like a full disk, it lets a
// part of the file through.
func TestAFailedPublicationLeavesNothingBehind(t *testing.T) {
	if file := os.Getenv("ENDPOINT_TEST_FULL_AT"); file != "" {
		publishOnAFullDisk(t, os.Getenv("ENDPOINT_TEST_FULL_ROOT"), file)
		return
	}
	for _, file := range []string{portFile, caFile, clientCertFile, clientKeyFile, currentFile} {
		t.Run(file, func(t *testing.T) {
			root := t.TempDir()
			fails := func() {
				t.Helper()
				child := exec.Command(os.Args[0], "-test.run=^TestAFailedPublicationLeavesNothingBehind$")
				child.Env = append(os.Environ(), "ENDPOINT_TEST_FULL_AT="+file, "ENDPOINT_TEST_FULL_ROOT="+root)
				if out, err := child.CombinedOutput(); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
			}
			fails()
			if left := filesBelow(t, root); len(left) > 0 {
				t.Errorf("the first publication failed and left %q", left)
			}
			active := publish(t, root, ref, 1)
			before := filesBelow(t, root)
			for range 3 {
				fails()
			}
			if after := filesBelow(t, root); !slices.Equal(before, after) {
				t.Errorf("a later publication failed and left %q, want %q", after, before)
			}
			if !active.InForce() {
				t.Error("the active generation is lost")
			}
		})
	}
}

func TestAPublicationWithoutADirectoryLeavesNothingBehind(t *testing.T) {
	root := t.TempDir()
	tooLong := credential.Reference{Namespace: ref.Namespace, Secret: strings.Repeat("a", 300)}
	if _, err := (Publisher{Root: root}).Publish(tooLong, sample(1)); !errors.Is(err, syscall.ENAMETOOLONG) {
		t.Fatal(err)
	}
	if left := filesBelow(t, root); len(left) > 0 {
		t.Errorf("left %q", left)
	}
	publish(t, root, ref, 1)
	before := filesBelow(t, root)
	if _, err := (Publisher{Root: root}).Publish(tooLong, sample(2)); err == nil {
		t.Fatal("published")
	}
	if after := filesBelow(t, root); !slices.Equal(before, after) {
		t.Errorf("left %q, want %q", after, before)
	}
}

// publishOnAFullDisk publishes in a process that cannot write the given file.
func publishOnAFullDisk(t *testing.T, root, file string) {
	long := bytes.Repeat([]byte("x"), 1000)
	e, limit := sample(1), uint64(100)
	switch file {
	case portFile:
		limit = 1
	case caFile:
		e.CA = long
	case clientCertFile:
		e.ClientCert = long
	case clientKeyFile:
		e.ClientKey = long
	case currentFile:
		limit = 20 // shorter than the name of a generation
	}
	signal.Ignore(syscall.SIGXFSZ)
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: limit, Max: limit}); err != nil {
		t.Fatal(err)
	}
	_, err := Publisher{Root: root}.Publish(ref, e)
	if !errors.Is(err, syscall.EFBIG) || !strings.Contains(err.Error(), file) {
		t.Fatalf("error %v, want %v at %s", err, syscall.EFBIG, file)
	}
}

func filesBelow(t *testing.T, root string) (paths []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if path != root {
			paths = append(paths, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func chown(t *testing.T, path string, uid int) {
	t.Helper()
	if err := os.Chown(path, uid, uid); err != nil {
		t.Fatal(err)
	}
}
