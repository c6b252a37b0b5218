// Package endpoint manages the files through which the plugin finds the Account Provider of one impersonation account.
// It owns their layout: no other package knows the file names.
//
//	<root>/<namespace>/<secret>/current              the name of the active generation
//	<root>/<namespace>/<secret>/<generation>/        port, ca.crt, client.crt, client.key
//
// A generation is complete before current contains its name, and never changes afterwards. A reader therefore gets a
// complete generation or an error, even if a writer is killed at any moment. There is no lock: during a rolling update,
// two providers of one account publish, and readers find the last one. Each provider publishes again if the other
// removed its files (Publication.InForce).
//
// Package mtls verifies the certificates.
package endpoint

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/ccgrkc/ccgrkc/internal/credential"
)

// The errors of a reader, for errors.Is.
var (
	ErrAbsent    = errors.New("no endpoint is published")
	ErrDamaged   = errors.New("the endpoint is incomplete")
	ErrUntrusted = errors.New("the endpoint was not created by a trusted account")
	ErrAccess    = errors.New("this account has no permission to read the endpoint")
)

const (
	currentFile    = "current"
	portFile       = "port"
	caFile         = "ca.crt"
	clientCertFile = "client.crt"
	clientKeyFile  = "client.key"

	generationPrefix = "g-"
	generationLength = len(generationPrefix) + 32

	// maxFileLength limits the memory of a reader. A certificate chain has a few KiB.
	maxFileLength = 64 << 10
)

// Endpoint is what a client needs to connect to one Account Provider. The byte fields are PEM.
type Endpoint struct {
	Generation string // set by Publish and Resolve
	Port       uint16 // on 127.0.0.1
	CA         []byte // the only root for the server's certificate
	ClientCert []byte
	ClientKey  []byte
}

// Wipe clears the private key.
func (e *Endpoint) Wipe() { clear(e.ClientKey) }

// Current returns the name of the active generation. It reads one file.
func Current(root string, ref credential.Reference) (string, error) {
	dir := directory(root, ref)
	if err := checkChain(root, filepath.Dir(dir), dir); err != nil {
		return "", classify(ref, err)
	}
	name, err := currentIn(dir)
	if err != nil {
		return "", classify(ref, err)
	}
	return name, nil
}

func currentIn(dir string) (string, error) {
	b, err := readFile(filepath.Join(dir, currentFile))
	if err != nil {
		return "", err
	}
	name := strings.TrimSuffix(string(b), "\n")
	if !isGeneration(name) {
		return "", fmt.Errorf("%w: %s does not contain the name of a generation", ErrDamaged, currentFile)
	}
	return name, nil
}

// Resolve reads the active generation. If a provider publishes meanwhile, it reads the new one.
func Resolve(root string, ref credential.Reference) (*Endpoint, error) {
	dir := directory(root, ref)
	var name string
	// Each iteration after the first means that current changed after it was read. Publications are hours apart.
	for range 10 {
		next, err := Current(root, ref)
		if err != nil {
			return nil, err
		}
		if next == name {
			return nil, classify(ref, fmt.Errorf("%w: files of the active generation %s are missing", ErrDamaged, name))
		}
		name = next
		e, err := load(dir, name)
		if err == nil {
			return e, nil
		}
		if !isRemoved(err) {
			return nil, classify(ref, err)
		}
	}
	return nil, classify(ref, fmt.Errorf("%w: %s changes too fast", ErrDamaged, currentFile))
}

// Generations returns all generations on disk for clean-up: the readable ones, and the names of the others.
func Generations(root string, ref credential.Reference) (readable []*Endpoint, unreadable []string, err error) {
	dir := directory(root, ref)
	if err := checkChain(root, filepath.Dir(dir), dir); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil, nil
		}
		return nil, nil, classify(ref, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, classify(ref, err)
	}
	for _, entry := range entries {
		if !isGeneration(entry.Name()) {
			continue
		}
		if e, err := load(dir, entry.Name()); err == nil {
			readable = append(readable, e)
		} else {
			unreadable = append(unreadable, entry.Name())
		}
	}
	return readable, unreadable, nil
}

func load(dir, name string) (*Endpoint, error) {
	generation := filepath.Join(dir, name)
	if err := checkTrusted(generation); err != nil {
		return nil, err
	}
	e := &Endpoint{Generation: name}
	port, err := readFile(filepath.Join(generation, portFile))
	if err != nil {
		return nil, err
	}
	n, err := strconv.ParseUint(strings.TrimSuffix(string(port), "\n"), 10, 16)
	if err != nil || n == 0 {
		return nil, fmt.Errorf("%w: %s of generation %s does not contain a port number", ErrDamaged, portFile, name)
	}
	e.Port = uint16(n)
	for _, f := range []struct {
		name string
		into *[]byte
	}{{caFile, &e.CA}, {clientCertFile, &e.ClientCert}, {clientKeyFile, &e.ClientKey}} {
		b, err := readFile(filepath.Join(generation, f.name))
		if err != nil {
			e.Wipe()
			return nil, err
		}
		if len(b) == 0 {
			e.Wipe()
			return nil, fmt.Errorf("%w: %s of generation %s is empty", ErrDamaged, f.name, name)
		}
		*f.into = b
	}
	return e, nil
}

func readFile(path string) ([]byte, error) {
	f, err := openFile(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: %s is not a regular file", ErrUntrusted, path)
	}
	if info.Size() > maxFileLength {
		return nil, fmt.Errorf("%w: %s has %d bytes, the maximum is %d", ErrDamaged, path, info.Size(), maxFileLength)
	}
	// One allocation of the exact size: a growing buffer would leave copies of a key.
	b := make([]byte, info.Size())
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, fmt.Errorf("%w: %s: %v", ErrDamaged, path, err)
	}
	return b, nil
}

// directory returns the directory of one account. It is always below root, because NewReference validates the names.
func directory(root string, ref credential.Reference) string {
	return filepath.Join(root, ref.Namespace, ref.Secret)
}

func isGeneration(name string) bool {
	hex, ok := strings.CutPrefix(name, generationPrefix)
	return ok && len(name) == generationLength && strings.Trim(hex, "0123456789abcdef") == ""
}

// checkChain checks root, the directories above it, and the given directories below it, from the top down: other users
// cannot replace the content of a directory that is trusted.
func checkChain(root string, below ...string) error {
	if err := checkAncestors(root); err != nil {
		return err
	}
	for _, dir := range append([]string{root}, below...) {
		if err := checkTrusted(dir); err != nil {
			return err
		}
	}
	return nil
}

// classify wraps an error of the file system in one of the four errors, and adds the account.
func classify(ref credential.Reference, err error) error {
	for _, cause := range []error{ErrAbsent, ErrDamaged, ErrUntrusted, ErrAccess} {
		if errors.Is(err, cause) {
			return fmt.Errorf("account %s: %w", ref, err)
		}
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("account %s: %w on this host", ref, ErrAbsent)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("account %s: %w: %v", ref, ErrAccess, err)
	default:
		return fmt.Errorf("account %s: %w: %v", ref, ErrDamaged, err)
	}
}
