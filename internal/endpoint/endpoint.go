// Package endpoint is the meeting point on the host: the files through which the plugin finds the Account Provider of
// one impersonation account. It owns their layout; nobody else knows a file's name.
//
//	<root>/<namespace>/<secret>/current              names the generation in force
//	<root>/<namespace>/<secret>/<generation>/        port, ca.crt, client.crt, client.key
//
// A generation is written whole before current names it and never changes afterwards, so that a reader has one whole
// generation or an error, whatever moment a writer is killed at. There is no lock: two providers of one account may
// overlap for the time of a rolling update, the last one to publish is found, and each mends what the other took away
// (Publication.Intact).
//
// The package does not judge certificates; that is package mtls.
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

// The causes by which a reader can fail, for errors.Is.
var (
	ErrAbsent    = errors.New("no endpoint is published")
	ErrDamaged   = errors.New("the endpoint is incomplete")
	ErrUntrusted = errors.New("the endpoint was not made by a trusted identity")
	ErrAccess    = errors.New("the endpoint may not be read by this identity")
)

const (
	currentFile    = "current"
	portFile       = "port"
	caFile         = "ca.crt"
	clientCertFile = "client.crt"
	clientKeyFile  = "client.key"

	generationPrefix = "g-"
	generationLength = len(generationPrefix) + 32

	// maxFileLength bounds what a reader takes into memory; a chain of certificates is a few KiB.
	maxFileLength = 64 << 10
)

// Endpoint is what a client needs to call one Account Provider. The byte fields are PEM.
type Endpoint struct {
	Generation string // set by Publish and Resolve
	Port       uint16 // on 127.0.0.1
	CA         []byte // the only root that the server's certificate may chain to
	ClientCert []byte
	ClientKey  []byte
}

// Wipe clears the private key.
func (e *Endpoint) Wipe() { clear(e.ClientKey) }

// Current returns the name of the generation in force. It reads one file.
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
		return "", fmt.Errorf("%w: %s names no generation", ErrDamaged, currentFile)
	}
	return name, nil
}

// Resolve reads the generation in force. It follows a publication that happens meanwhile.
func Resolve(root string, ref credential.Reference) (*Endpoint, error) {
	dir := directory(root, ref)
	var name string
	// Each turn past the first means that current moved on after it was read. Publications are hours apart.
	for range 10 {
		next, err := Current(root, ref)
		if err != nil {
			return nil, err
		}
		if next == name {
			return nil, classify(ref, fmt.Errorf("%w: generation %s, which %s names, has lost files", ErrDamaged, name, currentFile))
		}
		name = next
		e, err := load(dir, name)
		if err == nil {
			return e, nil
		}
		if !isGone(err) {
			return nil, classify(ref, err)
		}
	}
	return nil, classify(ref, fmt.Errorf("%w: %s changes faster than it can be read", ErrDamaged, currentFile))
}

// Generations returns every generation on disk that can be read, for clean-up; the unreadable ones come as names.
func Generations(root string, ref credential.Reference) (whole []*Endpoint, broken []string, err error) {
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
			whole = append(whole, e)
		} else {
			broken = append(broken, entry.Name())
		}
	}
	return whole, broken, nil
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
		return nil, fmt.Errorf("%w: %s of generation %s holds no port number", ErrDamaged, portFile, name)
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
		return nil, fmt.Errorf("%w: %s has %d bytes, %d at most", ErrDamaged, path, info.Size(), maxFileLength)
	}
	// The size is read from the open file, so one allocation holds it all and no grown copy of a key stays behind.
	b := make([]byte, info.Size())
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, fmt.Errorf("%w: %s: %v", ErrDamaged, path, err)
	}
	return b, nil
}

// directory is where one account's files are. ref is checked when it is made, so it cannot lead out of root.
func directory(root string, ref credential.Reference) string {
	return filepath.Join(root, ref.Namespace, ref.Secret)
}

func isGeneration(name string) bool {
	hex, ok := strings.CutPrefix(name, generationPrefix)
	return ok && len(name) == generationLength && strings.Trim(hex, "0123456789abcdef") == ""
}

// checkChain checks root, which everything hangs from, and the directories below it from the top down: what a trusted
// directory holds cannot be swapped by others after it was looked at.
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

// classify gives an error of the file system one of the four causes, and names the account.
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
