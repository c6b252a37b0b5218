package endpoint

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/faultpoint"
)

// Publisher writes endpoints below Root. It creates Root if necessary.
type Publisher struct {
	Root string
	// Reader is the plugin identity, which gets read permission: one of Readers. Empty means the first. It has an
	// effect only on Windows.
	Reader string
}

// Readers lists the possible plugin identities, the default first. With launching-user, the plugin runs as the account
// that activates it: ccg.exe runs as SYSTEM.
var Readers = []string{"network-service", "local-service", "launching-user"}

// Publication is one generation of this process.
type Publication struct {
	Generation string
	dir        string
}

// Publish makes e the active generation of ref and removes all others, including those of killed providers.
func (p Publisher) Publish(ref credential.Reference, e Endpoint) (*Publication, error) {
	var err error
	// Another provider of the account can stop or publish at the same time, and then removes directories that this one
	// has just created.
	for range 3 {
		var pub *Publication
		pub, err = p.publish(ref, e)
		if err == nil {
			return pub, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return nil, fmt.Errorf("publish the endpoint of account %s: %w", ref, err)
}

func (p Publisher) publish(ref credential.Reference, e Endpoint) (*Publication, error) {
	dir := directory(p.Root, ref)
	if err := p.secureDirs(dir); err != nil {
		return nil, err
	}
	pub, err := p.write(dir, e)
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // otherwise another provider uses the directories
		removeEmpty(dir)
	}
	return pub, err
}

// secureDirs creates the directories of an account, or checks them.
func (p Publisher) secureDirs(dir string) error {
	if err := makeAncestors(p.Root); err != nil {
		return err
	}
	for _, d := range []struct{ what, path string }{
		{"root", p.Root},
		{"namespace", filepath.Dir(dir)},
	} {
		if err := p.secureDir(d.path); err != nil {
			return err
		}
		faultpoint.Reached("publish." + d.what)
	}
	if err := p.secureDir(dir); err != nil {
		_ = os.Remove(filepath.Dir(dir)) // fails if it is not empty
		return err
	}
	faultpoint.Reached("publish.account")
	return nil
}

// write writes a generation and makes it active. If it fails, it leaves no file behind.
func (p Publisher) write(dir string, e Endpoint) (_ *Publication, err error) {
	pub := &Publication{Generation: newGeneration(), dir: dir}
	generation := filepath.Join(dir, pub.Generation)
	next := filepath.Join(dir, currentFile+"-"+pub.Generation)
	defer func() {
		if err != nil { // best effort: the next publication removes what is left
			_ = removeOne(next)
			_ = removeGeneration(generation)
		}
	}()
	if err := p.secureDir(generation); err != nil {
		return nil, err
	}
	faultpoint.Reached("publish.generation")
	for _, f := range []struct {
		name string
		data []byte
	}{
		{portFile, []byte(strconv.Itoa(int(e.Port)) + "\n")},
		{caFile, e.CA},
		{clientCertFile, e.ClientCert},
		{clientKeyFile, e.ClientKey},
	} {
		if err := writeNew(filepath.Join(generation, f.name), f.data); err != nil {
			return nil, err
		}
		faultpoint.Reached("publish." + f.name)
	}

	if err := writeNew(next, []byte(pub.Generation+"\n")); err != nil {
		return nil, err
	}
	faultpoint.Reached("publish.next")
	if err := whileBusy(func() error { return os.Rename(next, filepath.Join(dir, currentFile)) }); err != nil {
		return nil, err
	}
	faultpoint.Reached("publish.current")
	// The generation is active now, so errors are ignored. The next publication removes files that a reader has open.
	_ = sweep(dir, pub.Generation)
	faultpoint.Reached("publish.swept")
	return pub, nil
}

// InForce reports whether this generation is active and complete.
func (p *Publication) InForce() bool {
	name, err := currentIn(p.dir)
	if err != nil || name != p.Generation {
		return false
	}
	e, err := load(p.dir, name)
	if err != nil {
		return false
	}
	e.Wipe()
	return true
}

// Withdraw removes this generation and no other, and then the empty directories.
func (p *Publication) Withdraw() error {
	if name, err := currentIn(p.dir); err == nil && name == p.Generation {
		if err := removeOne(filepath.Join(p.dir, currentFile)); err != nil {
			return fmt.Errorf("withdraw the endpoint: %w", err)
		}
		faultpoint.Reached("withdraw.current")
	}
	if err := removeGeneration(filepath.Join(p.dir, p.Generation)); err != nil {
		return fmt.Errorf("withdraw the endpoint: %w", err)
	}
	faultpoint.Reached("withdraw.generation")
	removeEmpty(p.dir)
	return nil
}

// Remove removes the given generations of ref, and current if it contains the name of one of them or of a missing one.
// It then removes the empty directories, including the root and those above it. The caller must check that no provider
// uses the generations.
func Remove(root string, ref credential.Reference, names []string) error {
	dir := directory(root, ref)
	for _, name := range names {
		if err := (&Publication{Generation: name, dir: dir}).Withdraw(); err != nil {
			return fmt.Errorf("account %s: %w", ref, err)
		}
	}
	readable, unreadable, err := Generations(root, ref)
	if err != nil {
		return err
	}
	if len(readable)+len(unreadable) == 0 {
		if err := sweep(dir, ""); err != nil {
			return fmt.Errorf("account %s: %w", ref, err)
		}
		if err := removeOne(filepath.Join(dir, currentFile)); err != nil {
			return fmt.Errorf("account %s: %w", ref, err)
		}
		removeEmpty(dir)
		removeEmptyAbove(root)
	}
	return nil
}

// removeEmpty removes the directories of the account and of its namespace if they are empty. Otherwise os.Remove fails.
func removeEmpty(dir string) {
	_ = os.Remove(dir)
	_ = os.Remove(filepath.Dir(dir))
}

// sweep removes all generations but one, and the temporary files of killed writers.
func sweep(dir, keep string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		name := entry.Name()
		if name == keep || !isGeneration(name) && !strings.HasPrefix(name, currentFile+"-") {
			continue
		}
		if err := removeGeneration(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// removeGeneration removes a directory of files, or one file. It removes links and never follows them. It does not
// remove subdirectories, which a generation does not have. (os.RemoveAll does not work under Wine 8.)
func removeGeneration(path string) error {
	if checkTrusted(path) == nil {
		entries, _ := os.ReadDir(path) // none if path is a file
		for _, entry := range entries {
			if err := removeOne(filepath.Join(path, entry.Name())); err != nil {
				return err
			}
		}
	}
	return removeOne(path)
}

func removeOne(path string) error {
	err := whileBusy(func() error { return os.Remove(path) })
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func newGeneration() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // crypto/rand: never fails
	return generationPrefix + hex.EncodeToString(b[:])
}

// writeNew writes a file that must not exist.
func writeNew(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

// whileBusy retries an operation that Windows denies while a reader has the file open.
func whileBusy(f func() error) error {
	deadline := time.Now().Add(2 * time.Second)
	for {
		err := f()
		if err == nil || !isBusy(err) || time.Now().After(deadline) {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
}
