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

// The reverse order of install: first the registration with CCG, last the files.
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
	// CLSID last, because its description identifies the registration as ours.
	{"clsid", func(_ context.Context, c *Config) error {
		return c.unlessForeign(func() error { return deleteTree(c.clsidKey()) })
	}},
	{"event-source", func(_ context.Context, c *Config) error { return deleteTree(c.EventSource) }},
	{"files", func(ctx context.Context, c *Config) error { return c.removeProgramDir(ctx) }},
	{"journal-key", func(_ context.Context, c *Config) error { return c.removeJournalKey() }},
	{"read-back", func(_ context.Context, c *Config) error { return c.checkRemoved() }},
}

// Uninstall removes everything that Install creates, and verifies it. If a surrogate still has the DLL loaded,
// Uninstall renames the DLL, logs that, and Windows deletes it when the host restarts.
func Uninstall(ctx context.Context, c *Config) error {
	return c.runSteps(ctx, "uninstall", uninstallSteps)
}

// unlessForeign does not call fn if the registration is foreign.
func (c *Config) unlessForeign(fn func() error) error {
	foreign, err := c.foreign()
	if err != nil {
		return err
	}
	if foreign != "" {
		c.Log.Warn("the class is registered by another product; its registration is unchanged", "class", CLSID, "found",
			foreign)
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
			return c.scheduleDeletion(left)
		}
		c.Log.Debug("waiting for the surrogate to exit", "files", left)
		select {
		case <-ctx.Done():
		case <-time.After(250 * time.Millisecond):
		}
	}
}

// scheduleDeletion lets Windows delete loaded files when the host restarts.
func (c *Config) scheduleDeletion(files []string) error {
	for _, file := range files {
		aside, err := deleteAtRestart(file)
		if err != nil {
			return fmt.Errorf("%s is in use and could not be scheduled for deletion: %w; stop the dllhost.exe that "+
				"has it loaded and uninstall again", file, err)
		}
		c.Log.Warn("the file is in use; it is deleted when the host restarts, or by the next uninstall", "file", aside)
	}
	return scheduleAtRestart(c.ProgramDir)
}

func (c *Config) removeEmptyProgramDir() error {
	err := os.Remove(verbatim(c.ProgramDir))
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if errors.Is(err, windows.ERROR_DIR_NOT_EMPTY) {
		c.Log.Warn("the directory contains other files, so it is not removed", "directory", c.ProgramDir)
		return nil
	}
	return err
}

// checkRemoved verifies the removal, with other code than the removal itself.
func (c *Config) checkRemoved() error {
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
		if !strings.HasSuffix(file, asideSuffix) { // scheduled for deletion, and logged
			left = append(left, file)
		}
	}
	if len(left) > 0 {
		return fmt.Errorf("the uninstall did not remove %s; check whether another installer is running, such as the "+
			"DaemonSet's",
			strings.Join(left, ", "))
	}
	return nil
}
