package installer

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/ccgrkc/ccgrkc/internal/faultpoint"
	"github.com/ccgrkc/ccgrkc/internal/winsec"
	"golang.org/x/sys/windows"
)

// Files in the program directory have the name ccg-plugin-<hash>.dll. Temporary and renamed files have a random part
// and one of the other suffixes.
const (
	dllPrefix   = "ccg-plugin-"
	dllSuffix   = ".dll"
	tempSuffix  = ".tmp" // being written
	asideSuffix = ".old" // renamed because it is loaded
)

// dllName contains the content's hash, so that an upgrade never replaces a loaded file.
func dllName(dll []byte) string {
	sum := sha256.Sum256(dll)
	return dllPrefix + hex.EncodeToString(sum[:])[:16] + dllSuffix
}

// ourFile reports whether a file in the program directory is this project's.
func ourFile(name string) bool {
	name = strings.ToLower(name)
	return strings.HasPrefix(name, dllPrefix) &&
		(strings.HasSuffix(name, dllSuffix) || strings.HasSuffix(name, tempSuffix) ||
			strings.HasSuffix(name, asideSuffix))
}

// checkDLL compares the installed DLL with the expected one.
func (c *Config) checkDLL() (Row, error) {
	sum := sha256.Sum256(c.DLL)
	row := Row{Object: c.dllPath(), Expected: "sha256 " + hex.EncodeToString(sum[:]), State: OK}
	file, err := winsec.OpenTrusted(verbatim(c.dllPath()))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		row.Actual, row.State = "no such file", Missing
		return row, nil
	case errors.Is(err, winsec.ErrUntrusted):
		row.Actual, row.State = err.Error(), Drift
		return row, nil
	case err != nil:
		return row, err
	}
	defer file.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, file); err != nil {
		return row, err
	}
	row.Actual = "sha256 " + hex.EncodeToString(hash.Sum(nil))
	if !bytes.Equal(hash.Sum(nil), sum[:]) {
		row.State = Drift
	}
	return row, nil
}

// storeDLL writes the DLL. A reader sees the complete file or none.
func (c *Config) storeDLL() error {
	row, err := c.checkDLL()
	if err != nil || row.State == OK {
		return err
	}
	if row.State == Drift {
		// A loaded file can be renamed, but not deleted or replaced.
		aside := randomName(c.dllPath(), asideSuffix)
		c.Log.Warn("the DLL was changed; renaming it and writing it again",
			"file", c.dllPath(), "found", row.Actual, "to", aside)
		if err := os.Rename(verbatim(c.dllPath()), verbatim(aside)); err != nil {
			return err
		}
		faultpoint.Reached("install.dll.aside")
	}
	temp := randomName(c.dllPath(), tempSuffix)
	file, err := os.OpenFile(verbatim(temp), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(c.DLL)
	if err == nil {
		err = file.Sync()
	}
	err = errors.Join(err, file.Close())
	if err != nil {
		os.Remove(verbatim(temp))
		return fmt.Errorf("write %s: %w", temp, err)
	}
	faultpoint.Reached("install.dll.written")
	if err := os.Rename(verbatim(temp), verbatim(c.dllPath())); err != nil {
		os.Remove(verbatim(temp))
		return err
	}
	row, err = c.checkDLL()
	if err == nil && row.State != OK {
		err = fmt.Errorf("%s was written but contains %s, want %s", row.Object, row.Actual, row.Expected)
	}
	return err
}

// leftovers lists this project's files in the program directory, except the one to keep ("" to keep none).
func (c *Config) leftovers(keep string) ([]string, error) {
	entries, err := os.ReadDir(verbatim(c.ProgramDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var files []string
	for _, entry := range entries {
		path := filepath.Join(c.ProgramDir, entry.Name())
		if ourFile(entry.Name()) && !strings.EqualFold(path, keep) {
			files = append(files, path)
		}
	}
	return files, nil
}

// removeFiles deletes files and returns those that it could not delete: for a loaded DLL, access is denied.
func removeFiles(files []string) (left []string, err error) {
	for _, file := range files {
		if removeErr := os.Remove(verbatim(file)); removeErr != nil && !errors.Is(removeErr, fs.ErrNotExist) {
			left = append(left, file)
			err = errors.Join(err, removeErr)
		}
	}
	return left, err
}

// deleteAtRestart renames a loaded file and schedules its deletion for the next restart of the host. Without the new
// name, the restart would delete the DLL of an install before it.
func deleteAtRestart(file string) (string, error) {
	aside := file
	if !strings.HasSuffix(strings.ToLower(file), asideSuffix) {
		aside = randomName(file, asideSuffix)
		if err := os.Rename(verbatim(file), verbatim(aside)); err != nil {
			return file, err
		}
	}
	return aside, scheduleAtRestart(aside)
}

func scheduleAtRestart(path string) error {
	// Windows reads this list before it supports \\?\, so it needs the plain path.
	if err := windows.MoveFileEx(windows.StringToUTF16Ptr(path), nil, windows.MOVEFILE_DELAY_UNTIL_REBOOT); err != nil {
		return &os.PathError{Op: "delete at restart", Path: path, Err: err}
	}
	return nil
}

func randomName(path, suffix string) string {
	return strings.TrimSuffix(path, dllSuffix) + "-" + strings.ToLower(rand.Text()[:8]) + suffix
}
