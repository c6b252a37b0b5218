package gmsactl

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ccgrkc/ccgrkc/lab/labtest"
)

// typedResult is the result of a run on a terminal. stdout is the content of the terminal.
type typedResult struct {
	result
	echo bool // the terminal echoes what is typed, after the end
}

// type_ runs the program on a separate terminal. dialogue contains prompts, each followed by the answer to type.
func (p *program) type_(line []string, dialogue ...string) typedResult {
	p.t.Helper()
	master, terminal := labtest.Terminal(p.t)
	defer master.Close()
	defer terminal.Close()

	cmd := p.command(line...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = terminal, terminal, terminal
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	must(p.t, cmd.Start())
	shown := make(chan []byte)
	go func() {
		for {
			b := make([]byte, 4096)
			n, err := master.Read(b)
			if err != nil {
				close(shown)
				return
			}
			shown <- b[:n]
		}
	}()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	var all, since bytes.Buffer
	deadline := time.After(time.Minute)
	for {
		if len(dialogue) > 1 && strings.Contains(since.String(), dialogue[0]) {
			// The program prints the prompt before it disables the echo. The terminal would show an answer in between.
			p.untilHidden(terminal, strings.HasPrefix(dialogue[0], "Password") ||
				strings.HasPrefix(dialogue[0], "Confirm"))
			answer := dialogue[1]
			if answer != "\x03" {
				answer += "\n"
			}
			_, err := master.WriteString(answer)
			must(p.t, err)
			dialogue = dialogue[2:]
			since.Reset()
			continue
		}
		select {
		case b := <-shown:
			all.Write(b)
			since.Write(b)
			continue
		case err := <-ended:
			if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
				p.t.Fatal(err)
			}
		case <-deadline:
			_ = cmd.Process.Kill()
			p.t.Fatalf("it waits for something else; the terminal shows:\n%s", all.String())
		}
		break
	}
	for drained := false; !drained; {
		select {
		case b := <-shown:
			all.Write(b)
		case <-time.After(100 * time.Millisecond):
			drained = true
		}
	}
	settings, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
	must(p.t, err)
	return typedResult{result{stdout: strings.ReplaceAll(all.String(), "\r\n", "\n"),
		code: cmd.ProcessState.ExitCode()}, settings.Lflag&unix.ECHO != 0}
}

func (p *program) untilHidden(terminal *os.File, hidden bool) {
	p.t.Helper()
	for range 1000 {
		settings, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
		must(p.t, err)
		if settings.Lflag&unix.ECHO == 0 == hidden {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	p.t.Fatalf("the terminal's echo is not %t", !hidden)
}
