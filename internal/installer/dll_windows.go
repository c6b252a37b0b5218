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

// A file in the program directory is named ccg-plugin-<hash>.dll, or, on its way in or out, that with a random part and one
// of these endings.
const (
	dllPrefix   = "ccg-plugin-"
	dllSuffix   = ".dll"
	tempSuffix  = ".tmp" // being written
	asideSuffix = ".old" // moved out of the way while it is loaded
)

// dllName holds the content's hash, so that another version never has to replace a file that is loaded.
func dllName(dll []byte) string {
	sum := sha256.Sum256(dll)
	return dllPrefix + hex.EncodeToString(sum[:])[:16] + dllSuffix
}

// ourFile tells this project's files in the program directory from others.
func ourFile(name string) bool {
	name = strings.ToLower(name)
	return strings.HasPrefix(name, dllPrefix) &&
		(strings.HasSuffix(name, dllSuffix) || strings.HasSuffix(name, tempSuffix) || strings.HasSuffix(name, asideSuffix))
}

// checkDLL says whether the DLL at its place is the one that it should be.
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

// storeDLL puts the DLL in its place. A reader of that name sees the whole file or none.
func (c *Config) storeDLL() error {
	row, err := c.checkDLL()
	if err != nil || row.State == OK {
		return err
	}
	if row.State == Drift {
		// A loaded file can be renamed, though neither deleted nor replaced.
		aside := randomName(c.dllPath(), asideSuffix)
		c.Log.Warn("the stored DLL is not the one that was installed, moving it aside", "file", c.dllPath(), "found", row.Actual, "to", aside)
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
		err = fmt.Errorf("%s was written and reads back as %s, want %s", row.Object, row.Actual, row.Expected)
	}
	return err
}

// leftovers lists this project's files in the program directory that are not the one to keep ("" to keep none).
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

// removeFiles deletes what is free and returns what is not: a loaded DLL is refused with "access denied".
func removeFiles(files []string) (left []string, err error) {
	for _, file := range files {
		if removeErr := os.Remove(verbatim(file)); removeErr != nil && !errors.Is(removeErr, fs.ErrNotExist) {
			left = append(left, file)
			err = errors.Join(err, removeErr)
		}
	}
	return left, err
}

// deleteAtRestart moves a file that stays loaded out of the way and asks Windows to delete it when the host restarts. The
// new name matters: an install before that restart must not lose its DLL.
func deleteAtRestart(file string) (string, error) {
	aside := file
	if !strings.HasSuffix(strings.ToLower(file), asideSuffix) {
		aside = randomName(file, asideSuffix)
		if err := os.Rename(verbatim(file), verbatim(aside)); err != nil {
			return file, err
		}
	}
	return aside, moveAtRestart(aside)
}

func moveAtRestart(path string) error {
	// The list that this adds to is read before \\?\ means anything, so it gets the plain path.
	if err := windows.MoveFileEx(windows.StringToUTF16Ptr(path), nil, windows.MOVEFILE_DELAY_UNTIL_REBOOT); err != nil {
		return &os.PathError{Op: "delete at restart", Path: path, Err: err}
	}
	return nil
}

func randomName(path, suffix string) string {
	return strings.TrimSuffix(path, dllSuffix) + "-" + strings.ToLower(rand.Text()[:8]) + suffix
}
