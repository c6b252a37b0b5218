package endpoint

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/soak"
)

var ref = credential.Reference{Namespace: "gmsa-system", Secret: "web-creds"}

// sample is an endpoint whose files all contain the same number, to detect a mix of two.
func sample(n uint16) Endpoint {
	return Endpoint{Port: n, CA: fmt.Appendf(nil, "ca %d", n), ClientCert: fmt.Appendf(nil, "cert %d", n),
		ClientKey: fmt.Appendf(nil, "key %d", n)}
}

// tempDir is t.TempDir, which cannot remove a directory under Wine 8 (os.RemoveAll fails there).
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "endpoint-")
	if err != nil {
		t.Fatal(err)
	}
	if runtime.GOOS == "windows" {
		dir = `\\?\` + dir // as in DefaultRoot
	}
	t.Cleanup(func() {
		var paths []string
		_ = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, _ error) error {
			paths = append(paths, path)
			return nil
		})
		slices.Reverse(paths) // the content of a directory before the directory
		for _, path := range paths {
			if err := os.Remove(path); err != nil {
				t.Error(err)
			}
		}
	})
	return dir
}

func checkWhole(t *testing.T, e *Endpoint) {
	t.Helper()
	want := sample(e.Port)
	if !bytes.Equal(e.CA, want.CA) || !bytes.Equal(e.ClientCert, want.ClientCert) ||
		!bytes.Equal(e.ClientKey, want.ClientKey) {
		t.Errorf("a mix of generations: port %d, %q, %q, %q", e.Port, e.CA, e.ClientCert, e.ClientKey)
	}
}

func publish(t *testing.T, root string, ref credential.Reference, n uint16) *Publication {
	t.Helper()
	p, err := Publisher{Root: root}.Publish(ref, sample(n))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestResolveReturnsWhatWasPublished(t *testing.T) {
	root := filepath.Join(tempDir(t), "a", "b")
	p := publish(t, root, ref, 7)
	e, err := Resolve(root, ref)
	if err != nil {
		t.Fatal(err)
	}
	checkWhole(t, e)
	if e.Port != 7 || e.Generation != p.Generation {
		t.Errorf("resolved %+v, published %+v", e, p)
	}
	if name, err := Current(root, ref); err != nil || name != p.Generation {
		t.Errorf("Current: %q, %v", name, err)
	}
}

// The names of DOS devices are valid names of namespaces and Secrets.
func TestEveryValidNameHasItsOwnDirectory(t *testing.T) {
	root := tempDir(t)
	for i, name := range []string{"con:nul", "aux:com1.x", "a:b.c", "a-b:c"} {
		ref, err := credential.ParseReference(name)
		if err != nil {
			t.Fatal(err)
		}
		publish(t, root, ref, uint16(100+i))
	}
	for i, name := range []string{"con:nul", "aux:com1.x", "a:b.c", "a-b:c"} {
		ref, _ := credential.ParseReference(name)
		e, err := Resolve(root, ref)
		if err != nil || e.Port != uint16(100+i) {
			t.Errorf("%s: %v, %v", name, e, err)
		}
	}
}

// The path is longer than MAX_PATH. The lab leaves this test out on its Wine nodes: Wine 8 finds no final path there.
func TestTheLongestNamesHaveADirectory(t *testing.T) {
	root := tempDir(t)
	long := credential.Reference{Namespace: strings.Repeat("n", 63), Secret: strings.Repeat("s", 253)}
	publish(t, root, long, 1)
	if e, err := Resolve(root, long); err != nil || e.Port != 1 {
		t.Errorf("%v, %v", e, err)
	}
}

func TestWithoutPublicationTheEndpointIsAbsent(t *testing.T) {
	root := tempDir(t)
	for _, r := range []string{root, filepath.Join(root, "missing")} {
		if _, err := Resolve(r, ref); !errors.Is(err, ErrAbsent) {
			t.Errorf("Resolve: %v", err)
		}
		if _, err := Current(r, ref); !errors.Is(err, ErrAbsent) {
			t.Errorf("Current: %v", err)
		}
	}
}

func TestPublishRemovesFilesOfKilledProviders(t *testing.T) {
	root := tempDir(t)
	for n := range uint16(5) {
		publish(t, root, ref, n+1)
	}
	dir := directory(root, ref)
	if err := os.WriteFile(filepath.Join(dir, "current-g-left"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	publish(t, root, ref, 9)
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("left: %v, %v", entries, err)
	}
}

func TestWithdrawRemovesOnlyItsOwnGeneration(t *testing.T) {
	root := tempDir(t)
	first := publish(t, root, ref, 1)
	second := publish(t, root, ref, 2)
	if err := first.Withdraw(); err != nil {
		t.Fatal(err)
	}
	if e, err := Resolve(root, ref); err != nil || e.Port != 2 {
		t.Fatalf("the second provider's endpoint is gone: %v, %v", e, err)
	}
	if !second.InForce() || first.InForce() {
		t.Error("the second publication is in force, and the first is not")
	}
	other := credential.Reference{Namespace: ref.Namespace, Secret: "other-creds"}
	publish(t, root, other, 3)
	if err := second.Withdraw(); err != nil {
		t.Fatal(err)
	}
	if second.InForce() {
		t.Error("withdrawn and yet in force")
	}
	if _, err := Resolve(root, ref); !errors.Is(err, ErrAbsent) {
		t.Errorf("after Withdraw: %v", err)
	}
	if _, err := os.Stat(directory(root, ref)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the empty directory is left: %v", err)
	}
	if _, err := Resolve(root, other); err != nil {
		t.Errorf("the neighbour in the namespace suffered: %v", err)
	}
}

func TestRemoveLeavesNothing(t *testing.T) {
	root := tempDir(t)
	publish(t, root, ref, 1)
	dir := directory(root, ref)
	broken := filepath.Join(dir, newGeneration())
	if err := os.Mkdir(broken, 0o700); err != nil {
		t.Fatal(err)
	}
	whole, names, err := Generations(root, ref)
	if err != nil || len(whole) != 1 || len(names) != 1 {
		t.Fatalf("Generations: %v %v %v", whole, names, err)
	}
	if err := Remove(root, ref, names); err != nil {
		t.Fatal(err)
	}
	if _, err := Resolve(root, ref); err != nil {
		t.Fatalf("the whole one went too: %v", err)
	}
	if err := Remove(root, ref, []string{whole[0].Generation}); err != nil {
		t.Fatal(err)
	}
	if err := Remove(root, ref, nil); err != nil {
		t.Errorf("the second time: %v", err)
	}
	if entries, _ := os.ReadDir(root); len(entries) != 0 {
		t.Errorf("left: %v", entries)
	}
}

func TestDamagedFilesGiveAClearError(t *testing.T) {
	for name, c := range map[string]struct{ file, content string }{
		"current empty":      {"../" + currentFile, ""},
		"current elsewhere":  {"../" + currentFile, "../../other/g-00000000000000000000000000000000"},
		"current dangling":   {"../" + currentFile, "g-00000000000000000000000000000000\n"},
		"current of 1 MiB":   {"../" + currentFile, strings.Repeat("g", 1<<20)},
		"port empty":         {portFile, ""},
		"port zero":          {portFile, "0"},
		"port too large":     {portFile, "65536"},
		"port negative":      {portFile, "-1"},
		"port with host":     {portFile, "evil.example.com:443"},
		"CA empty":           {caFile, ""},
		"key empty":          {clientKeyFile, ""},
		"certificate 70 KiB": {clientCertFile, strings.Repeat("c", 70<<10)},
	} {
		t.Run(name, func(t *testing.T) {
			root := tempDir(t)
			p := publish(t, root, ref, 1)
			if err := os.WriteFile(filepath.Join(directory(root, ref), p.Generation, c.file), []byte(c.content),
				0o600); err != nil {
				t.Fatal(err)
			}
			e, err := Resolve(root, ref)
			if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), ref.String()) {
				t.Errorf("%v, %v", e, err)
			}
		})
	}
}

func TestReadersSeeCompleteGenerationsDuringReplacement(t *testing.T) {
	root := tempDir(t)
	publish(t, root, ref, 1)
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 8 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				e, err := Resolve(root, ref)
				if err != nil {
					t.Errorf("a reader failed: %v", err)
					return
				}
				checkWhole(t, e)
			}
		})
	}
	for n := range max(300, soak.N(15_000)) {
		publish(t, root, ref, uint16(n+2))
	}
	close(stop)
	readers.Wait()
}

func FuzzResolve(f *testing.F) {
	f.Add([]byte("g-00000000000000000000000000000000\n"), []byte("443\n"), []byte("ca"), []byte("key"))
	f.Add([]byte("../.."), []byte("-1"), []byte(""), []byte("\x00"))
	root := tempDir(f)
	p, err := Publisher{Root: root}.Publish(ref, sample(1))
	if err != nil {
		f.Fatal(err)
	}
	dir := directory(root, ref)
	f.Fuzz(func(t *testing.T, current, port, ca, key []byte) {
		if bytes.HasPrefix(current, []byte(generationPrefix)) {
			current = []byte(p.Generation + "\n")
		}
		for name, data := range map[string][]byte{currentFile: current, p.Generation + "/" + portFile: port,
			p.Generation + "/" + caFile: ca, p.Generation + "/" + clientKeyFile: key} {
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		e, err := Resolve(root, ref)
		if err != nil {
			return
		}
		if e.Port == 0 || e.Generation != p.Generation || !bytes.Equal(e.CA, ca) || !bytes.Equal(e.ClientKey, key) {
			t.Errorf("resolved %+v", e)
		}
	})
}
