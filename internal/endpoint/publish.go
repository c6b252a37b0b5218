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

// Publisher writes endpoints below Root, which it creates if need be.
type Publisher struct {
	Root string
	// Reader is the identity that the plugin runs as, and that may therefore read: one of the values of Readers. Empty
	// means the first. It has no meaning where there are no Windows identities.
	Reader string
}

// Readers lists the identities that the plugin can run as, the default first. The last one is whoever activates it, which
// is ccg.exe as SYSTEM.
var Readers = []string{"network-service", "local-service", "launching-user"}

// Publication is one generation that this process made.
type Publication struct {
	Generation string
	dir        string
}

// Publish makes e the endpoint in force for ref and removes all others, those of killed providers included.
func (p Publisher) Publish(ref credential.Reference, e Endpoint) (*Publication, error) {
	var err error
	// Another provider of the account may be ending, or publishing, just now, and sweep a directory that this one has
	// just made.
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

func (p Publisher) publish(ref credential.Reference, e Endpoint) (_ *Publication, err error) {
	dir := directory(p.Root, ref)
	if err := makeAncestors(p.Root); err != nil {
		return nil, err
	}
	for _, d := range []struct{ what, path string }{{"root", p.Root}, {"namespace", filepath.Dir(dir)}, {"account", dir}} {
		if err := p.secureDir(d.path); err != nil {
			return nil, err
		}
		faultpoint.Reached("publish." + d.what)
	}

	pub := &Publication{Generation: newGeneration(), dir: dir}
	generation := filepath.Join(dir, pub.Generation)
	defer func() {
		if err != nil {
			_ = removeGeneration(generation) // best effort: the next publication sweeps it
		}
	}()
	if err := p.secureDir(generation); err != nil {
		return nil, err
	}
	faultpoint.Reached("publish.generation")
	for _, f := range []struct {
		name string
		data []byte
	}{{portFile, []byte(strconv.Itoa(int(e.Port)) + "\n")}, {caFile, e.CA}, {clientCertFile, e.ClientCert}, {clientKeyFile, e.ClientKey}} {
		if err := writeNew(filepath.Join(generation, f.name), f.data); err != nil {
			return nil, err
		}
		faultpoint.Reached("publish." + f.name)
	}

	next := filepath.Join(dir, currentFile+"-"+pub.Generation)
	if err := writeNew(next, []byte(pub.Generation+"\n")); err != nil {
		return nil, err
	}
	faultpoint.Reached("publish.next")
	if err := whileBusy(func() error { return os.Rename(next, filepath.Join(dir, currentFile)) }); err != nil {
		_ = os.Remove(next)
		return nil, err
	}
	faultpoint.Reached("publish.current")
	// From here on the generation is in force, so nothing may fail. What cannot be removed now, because a reader has it
	// open, goes with the next publication.
	_ = sweep(dir, pub.Generation)
	faultpoint.Reached("publish.swept")
	return pub, nil
}

// InForce tells whether readers find this very generation, whole.
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

// Withdraw removes the generation that is this process's own, and no other. What is then empty goes too.
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

// Remove removes the named generations of ref, and current if it names one of them or none that exists. What is then
// empty goes too, the root and what was made above it included. The caller has made sure that no provider serves them any
// more.
func Remove(root string, ref credential.Reference, names []string) error {
	dir := directory(root, ref)
	for _, name := range names {
		if err := (&Publication{Generation: name, dir: dir}).Withdraw(); err != nil {
			return fmt.Errorf("account %s: %w", ref, err)
		}
	}
	left, broken, err := Generations(root, ref)
	if err != nil {
		return err
	}
	if len(left)+len(broken) == 0 {
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

// removeEmpty removes the account's directory and its namespace's, if nothing is in them. os.Remove refuses the others.
func removeEmpty(dir string) {
	_ = os.Remove(dir)
	_ = os.Remove(filepath.Dir(dir))
}

// sweep removes all generations but one, and what killed writers left of current.
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

// removeGeneration removes a directory of files, or one file. What somebody else put there under such a name, a link above
// all, is removed itself and never followed. It does not go deeper: nothing of ours does. (Nor does os.RemoveAll work
// under Wine 8.)
func removeGeneration(path string) error {
	if checkTrusted(path) == nil {
		entries, _ := os.ReadDir(path) // of a file there are none
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
	_, _ = rand.Read(b[:]) // never fails: crypto/rand
	return generationPrefix + hex.EncodeToString(b[:])
}

// writeNew writes a file that must not exist yet.
func writeNew(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

// whileBusy tries what Windows refuses while a reader has a file open: replacing it, or removing it for good.
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
