package installer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/windows"
)

// The order is the reverse of install's: ccg.exe forgets the class first, the files go last.
var uninstallSteps = []step{
	{"journal", func(_ context.Context, c *Config) error { return c.finishJournal() }},
	{"comclasses", func(_ context.Context, c *Config) error {
		return c.unlessForeign(func() error {
			return c.withAccess(c.comClassesKey(), func() error { return deleteTree(c.comClassesKey()) })
		})
	}},
	{"appid", func(_ context.Context, c *Config) error {
		return c.unlessForeign(func() error { return deleteTree(c.appIDKey()) })
	}},
	// CLSID goes after the others: its description is what tells them from somebody else's.
	{"clsid", func(_ context.Context, c *Config) error {
		return c.unlessForeign(func() error { return deleteTree(c.clsidKey()) })
	}},
	{"event-source", func(_ context.Context, c *Config) error { return deleteTree(c.EventSource) }},
	{"files", func(ctx context.Context, c *Config) error { return c.removeProgramDir(ctx) }},
	{"journal-key", func(_ context.Context, c *Config) error { return c.removeJournalKey() }},
	{"read-back", func(_ context.Context, c *Config) error { return c.checkGone() }},
}

// Uninstall removes all that Install makes and reads back that nothing is left. A DLL that a surrogate still has loaded is
// moved aside and deleted when the host restarts, and the log says so.
func Uninstall(ctx context.Context, c *Config) error {
	return c.runSteps(ctx, "uninstall", uninstallSteps)
}

// unlessForeign leaves alone what somebody else has registered under the same class since.
func (c *Config) unlessForeign(fn func() error) error {
	foreign, err := c.foreign()
	if err != nil {
		return err
	}
	if foreign != "" {
		c.Log.Warn("the class's registration is not this project's and is left alone", "class", CLSID, "found", foreign)
		return nil
	}
	return fn()
}

func (c *Config) removeProgramDir(ctx context.Context) error {
	deadline := time.Now().Add(c.UnloadWait)
	for {
		files, err := c.leftovers("")
		if err != nil {
			return err
		}
		left, _ := removeFiles(files)
		if len(left) == 0 {
			return c.removeEmptyProgramDir()
		}
		if !time.Now().Before(deadline) || ctx.Err() != nil {
			return c.giveUpOn(left)
		}
		c.Log.Debug("waiting for the surrogate to end", "files", left)
		select {
		case <-ctx.Done():
		case <-time.After(250 * time.Millisecond):
		}
	}
}

// giveUpOn leaves loaded files to the next restart of the host.
func (c *Config) giveUpOn(files []string) error {
	for _, file := range files {
		aside, err := deleteAtRestart(file)
		if err != nil {
			return fmt.Errorf("%s is still in use and could not be marked for deletion: %w; end the dllhost.exe that "+
				"has it loaded and uninstall again", file, err)
		}
		c.Log.Warn("this file is still in use; it is deleted when the host restarts, or by the next uninstall", "file", aside)
	}
	return moveAtRestart(c.ProgramDir)
}

func (c *Config) removeEmptyProgramDir() error {
	err := os.Remove(verbatim(c.ProgramDir))
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if errors.Is(err, windows.ERROR_DIR_NOT_EMPTY) {
		c.Log.Warn("files that are not this project's are left where they are", "directory", c.ProgramDir)
		return nil
	}
	return err
}

// checkGone reads everything again, through other code than removed it.
func (c *Config) checkGone() error {
	var left []string
	keys := []string{c.EventSource, c.Journal}
	foreign, err := c.foreign()
	if err != nil {
		return err
	}
	if foreign == "" {
		keys = append(keys, c.clsidKey(), c.appIDKey(), c.comClassesKey())
	}
	for _, path := range keys {
		present, err := keyExists(path)
		if err != nil {
			return err
		}
		if present {
			left = append(left, `HKLM\`+path)
		}
	}
	files, err := c.leftovers("")
	if err != nil {
		return err
	}
	for _, file := range files {
		if !strings.HasSuffix(file, asideSuffix) { // those are marked for deletion, and were named in the log
			left = append(left, file)
		}
	}
	if len(left) > 0 {
		return fmt.Errorf("still there after the uninstall: %s; is another installer running (the DaemonSet)?", strings.Join(left, ", "))
	}
	return nil
}
