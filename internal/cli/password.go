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
)

// passwordFlags are the ways in which a command gets a password. An argument is none of them: every process of a machine
// can read the arguments of all others, and shells keep them.
type passwordFlags struct {
	file  string
	stdin bool
}

func (f *passwordFlags) add(c *cobra.Command, whose string) {
	c.Flags().StringVar(&f.file, "password-file", "", "file with "+whose+" and nothing else; one line end is dropped; - reads standard input")
	c.Flags().BoolVar(&f.stdin, "password-stdin", false, "read "+whose+" from standard input; one line end is dropped")
	c.MarkFlagsMutuallyExclusive("password-file", "password-stdin")
	// Not "unknown shorthand flag: 'p' in -psecret".
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		if text := err.Error(); strings.HasPrefix(text, "unknown flag: --pass") || strings.HasPrefix(text, "unknown shorthand flag: 'p'") {
			return errPasswordArgument
		}
		return err
	})
}

var errPasswordArgument = &failure{exitUsage, errors.New("a password is not taken from the command line, which other processes can read and the shell keeps. " +
	"Leave it out, and it is asked for; or use --password-file or --password-stdin. If you have just typed the password, it is known now: change it")}

// given reports whether a flag says where the password is.
func (f passwordFlags) given() bool { return f.file != "" || f.stdin }

// read reads the password from where the flags say, or from the terminal. what names it for the prompt; a new one is
// asked for twice. The caller wipes it.
func (f passwordFlags) read(ctx context.Context, g *globals, what string, twice bool) (credential.Password, error) {
	switch {
	case f.stdin, f.file == "-":
		return passwordFrom(g.streams.In, "standard input")
	case f.file != "":
		return passwordFromFile(f.file)
	}
	terminal, ok := g.streams.In.(*os.File)
	if !ok || !term.IsTerminal(int(terminal.Fd())) {
		return credential.Password{}, usagef("standard input is no terminal to ask for %s: use --password-file or --password-stdin", what)
	}
	fmt.Fprintf(g.streams.ErrOut, "%s: ", g.shown(capital(what)))
	first, err := readHidden(ctx, terminal, g.streams.ErrOut)
	if err != nil {
		return credential.Password{}, fmt.Errorf("reading %s: %w", what, err)
	}
	if twice {
		fmt.Fprint(g.streams.ErrOut, "The same again: ")
		second, err := readHidden(ctx, terminal, g.streams.ErrOut)
		if err != nil {
			clear(first)
			return credential.Password{}, fmt.Errorf("reading %s: %w", what, err)
		}
		same := bytes.Equal(first, second)
		clear(second)
		if !same {
			clear(first)
			return credential.Password{}, usagef("these were two different passwords; nothing was changed")
		}
	}
	return credential.NewPassword(first), nil
}

// readHidden reads a line without echo. Ctrl-C ends it, and the terminal is then as it was.
func readHidden(ctx context.Context, terminal *os.File, echo io.Writer) ([]byte, error) {
	defer fmt.Fprintln(echo)
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

// passwordFrom reads a password. What is wrong with it is said without a word of it; whether it can be the password of a
// Secret is left to package credential.
func passwordFrom(r io.Reader, name string) (credential.Password, error) {
	// One buffer of the largest size, so that no copies are left behind by growing it.
	buffer := make([]byte, credential.MaxValueLength+len("\r\n")+1)
	n, err := io.ReadFull(r, buffer)
	switch {
	case err == nil:
		clear(buffer)
		return credential.Password{}, usagef("%s has more than %d bytes: put the password into it and nothing else", name, credential.MaxValueLength)
	case err != io.EOF && err != io.ErrUnexpectedEOF:
		clear(buffer)
		return credential.Password{}, usagef("reading %s: %w", name, err)
	}
	text := buffer[:n]
	// What Windows' editors and PowerShell put first is no part of a password.
	if bytes.HasPrefix(text, []byte("\uFEFF")) || bytes.HasPrefix(text, []byte("\xff\xfe")) || bytes.HasPrefix(text, []byte("\xfe\xff")) {
		clear(buffer)
		return credential.Password{}, usagef("%s begins with a byte order mark: save it as UTF-8 without one", name)
	}
	text = bytes.TrimSuffix(text, []byte("\n"))
	text = bytes.TrimSuffix(text, []byte("\r"))
	if len(text) == 0 {
		return credential.Password{}, usagef("%s is empty: put the password into it", name)
	}
	return credential.NewPassword(text), nil
}

// ask asks for a value that is no secret, if there is a terminal.
func (g *globals) ask(ctx context.Context, what, flag string) (string, error) {
	terminal, ok := g.streams.In.(*os.File)
	if !ok || !term.IsTerminal(int(terminal.Fd())) {
		return "", usagef("%s is needed: add %s", what, flag)
	}
	fmt.Fprintf(g.streams.ErrOut, "%s: ", capital(what))
	type line struct {
		text string
		err  error
	}
	done := make(chan line, 1)
	go func() {
		// Byte by byte: the line after this one is the password's.
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
		fmt.Fprintln(g.streams.ErrOut)
		return "", ctx.Err()
	}
}

func capital(s string) string { return strings.ToUpper(s[:1]) + s[1:] }
