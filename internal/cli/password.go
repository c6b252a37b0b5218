package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/escape"
)

// passwordFlags specify the source of a password. A password is never an argument: other processes can read arguments,
// and shells store them.
type passwordFlags struct {
	file  string
	stdin bool
}

func (f *passwordFlags) add(c *cobra.Command, whose string) {
	c.Flags().StringVar(&f.file, "password-file", "",
		"file that contains only "+whose+"; a trailing line break is ignored; - means standard input")
	c.Flags().BoolVar(&f.stdin, "password-stdin", false,
		"read "+whose+" from standard input; a trailing line break is ignored")
	c.MarkFlagsMutuallyExclusive("password-file", "password-stdin")
	// The default error would contain the password: "unknown shorthand flag: 'p' in -psecret".
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		if text := err.Error(); strings.HasPrefix(text, "unknown flag: --pass") ||
			strings.HasPrefix(text, "unknown shorthand flag: 'p'") {
			return errPasswordArgument
		}
		return err
	})
}

var errPasswordArgument = &exitError{exitUsage,
	errors.New("a password is not accepted on the command line: other processes can " +
		"read it, and the shell stores it. Omit it to be prompted, or use --password-file or --password-stdin. If " +
		"you just typed the " +
		"password, change it")}

// isSet reports whether a flag specifies the source of the password.
func (f passwordFlags) isSet() bool { return f.file != "" || f.stdin }

// read reads the password from the source in the flags, or prompts for it. what is the prompt. With confirm, the user
// types the password twice. The caller wipes it.
func (f passwordFlags) read(ctx context.Context, g *globals, what string, confirm bool) (credential.Password, error) {
	switch {
	case f.stdin, f.file == "-":
		return passwordFrom(g.streams.In, "standard input")
	case f.file != "":
		return passwordFromFile(f.file)
	}
	terminal, ok := g.streams.In.(*os.File)
	if !ok || !term.IsTerminal(int(terminal.Fd())) {
		return credential.Password{}, usagef(
			"cannot prompt for %s: standard input is not a terminal; use --password-file or --password-stdin", what)
	}
	escape.Fprintf(g.streams.ErrOut, "%s: ", capitalize(what))
	first, err := readHidden(ctx, terminal, g.streams.ErrOut)
	if err != nil {
		return credential.Password{}, fmt.Errorf("reading %s: %w", what, err)
	}
	if confirm {
		escape.Fprintf(g.streams.ErrOut, "Confirm password: ")
		second, err := readHidden(ctx, terminal, g.streams.ErrOut)
		if err != nil {
			clear(first)
			return credential.Password{}, fmt.Errorf("reading %s: %w", what, err)
		}
		same := bytes.Equal(first, second)
		clear(second)
		if !same {
			clear(first)
			return credential.Password{}, usagef("the passwords differ; nothing was changed")
		}
	}
	return credential.NewPassword(first), nil
}

// readHidden reads a line without echo. On Ctrl-C, it restores the terminal.
func readHidden(ctx context.Context, terminal *os.File, echo io.Writer) ([]byte, error) {
	defer escape.Fprintf(echo, "\n")
	fd := int(terminal.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return nil, err
	}
	type line struct {
		text []byte
		err  error
	}
	done := make(chan line, 1)
	go func() {
		text, err := term.ReadPassword(fd)
		done <- line{text, err}
	}()
	select {
	case l := <-done:
		return l.text, l.err
	case <-ctx.Done():
		_ = term.Restore(fd, before)
		return nil, ctx.Err()
	}
}

// passwordFromFile reads a password from a file. The caller wipes it.
func passwordFromFile(path string) (credential.Password, error) {
	f, err := os.Open(path)
	if err != nil {
		return credential.Password{}, usagef("--password-file: %w", err)
	}
	defer f.Close()
	return passwordFrom(f, path)
}

// passwordFrom reads a password. Its errors do not contain the password. Package credential checks whether a Secret can
// contain it.
func passwordFrom(r io.Reader, name string) (credential.Password, error) {
	// A growing buffer would leave copies in memory, so this one has the maximum size.
	buffer := make([]byte, credential.MaxValueLength+len("\r\n")+1)
	n, err := io.ReadFull(r, buffer)
	switch {
	case err == nil:
		clear(buffer)
		return credential.Password{}, usagef("%s has more than %d bytes; it must contain only the password", name,
			credential.MaxValueLength)
	case err != io.EOF && err != io.ErrUnexpectedEOF:
		clear(buffer)
		return credential.Password{}, usagef("reading %s: %w", name, err)
	}
	text := buffer[:n]
	// Windows editors and PowerShell write a byte order mark. It is not part of the password.
	for _, mark := range []string{"\uFEFF", "\xff\xfe", "\xfe\xff"} {
		if bytes.HasPrefix(text, []byte(mark)) {
			clear(buffer)
			return credential.Password{}, usagef("%s starts with a byte order mark; save it as UTF-8 without one", name)
		}
	}
	text = bytes.TrimSuffix(text, []byte("\n"))
	text = bytes.TrimSuffix(text, []byte("\r"))
	if len(text) == 0 {
		return credential.Password{}, usagef("%s is empty; it must contain the password", name)
	}
	return credential.NewPassword(text), nil
}

// prompt prompts for a value that is not secret.
func (g *globals) prompt(ctx context.Context, what, flag string) (string, error) {
	terminal, ok := g.streams.In.(*os.File)
	if !ok || !term.IsTerminal(int(terminal.Fd())) {
		return "", usagef("%s is required: add %s", what, flag)
	}
	escape.Fprintf(g.streams.ErrOut, "%s: ", capitalize(what))
	type line struct {
		text string
		err  error
	}
	done := make(chan line, 1)
	go func() {
		// Byte by byte, because the next line is the password.
		var text []byte
		for one := make([]byte, 1); ; {
			if _, err := terminal.Read(one); err != nil {
				done <- line{"", err}
				return
			}
			if one[0] == '\n' {
				done <- line{strings.TrimSpace(string(text)), nil}
				return
			}
			text = append(text, one[0])
		}
	}()
	select {
	case l := <-done:
		if l.err != nil {
			return "", fmt.Errorf("reading %s: %w", what, l.err)
		}
		return l.text, nil
	case <-ctx.Done():
		escape.Fprintf(g.streams.ErrOut, "\n")
		return "", ctx.Err()
	}
}

func capitalize(s string) string { return strings.ToUpper(s[:1]) + s[1:] }
