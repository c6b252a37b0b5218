package ad

import (
	"bufio"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/ccgrkc/ccgrkc/lab/internal/child"
)

//go:embed console.py
var script string

// environment is the environment of Samba's programs. Another Python on PATH would not have Samba's modules.
var environment = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "TZ=UTC", "LC_ALL=C.UTF-8"}

// console is a process of Samba's Python with an open domain database.
type console struct {
	process *child.Process
	in      io.WriteCloser
	log     string

	mu  sync.Mutex
	out *bufio.Reader
}

func startConsole(dir string) (*console, error) {
	in, toChild, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	fromChild, out, err := os.Pipe()
	if err != nil {
		toChild.Close()
		return nil, err
	}
	defer out.Close()
	c := &console{in: toChild, out: bufio.NewReader(fromChild), log: filepath.Join(dir, "log", "console.log")}
	file := filepath.Join(dir, "console.py")
	log, err := os.OpenFile(c.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err == nil {
		defer log.Close()
		err = os.WriteFile(file, []byte(script), 0o600)
	}
	if err == nil {
		cmd := exec.Command("/usr/bin/python3", "-I", "-B", file, filepath.Join(dir, "smb.conf"))
		cmd.Env, cmd.Dir = environment, dir
		cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, log
		c.process, err = child.Start(cmd, syscall.SIGKILL)
	}
	if err != nil {
		toChild.Close()
		fromChild.Close()
		return nil, err
	}
	go func() {
		<-c.process.Done
		fromChild.Close()
	}()
	return c, nil
}

// call runs one command in the console. It decodes the result unless result is nil. If ctx is done, call kills the
// console, and the command can be complete or not.
func (c *console) call(ctx context.Context, result any, do string, with map[string]any) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { _ = c.process.Signal(syscall.SIGKILL) })
	defer stop()
	if with == nil {
		with = map[string]any{}
	}
	line, err := json.Marshal(map[string]any{"do": do, "with": with})
	if err != nil {
		return err
	}
	_, err = c.in.Write(append(line, '\n'))
	clear(line)
	var answer []byte
	if err == nil {
		answer, err = c.out.ReadBytes('\n')
	}
	if err != nil {
		log, _ := os.ReadFile(c.log)
		return fmt.Errorf("the Python of Samba exited: %w\n%s", errors.Join(ctx.Err(), err), log)
	}
	var a struct {
		Result json.RawMessage
		Error  string
	}
	if err := json.Unmarshal(answer, &a); err != nil {
		return fmt.Errorf("the Python of Samba answered %q: %w", answer, err)
	}
	if a.Error != "" {
		return fmt.Errorf("%s: %s", do, a.Error)
	}
	if result == nil {
		return nil
	}
	return json.Unmarshal(a.Result, result)
}

func (c *console) close() {
	c.in.Close()
	<-c.process.Done
}
