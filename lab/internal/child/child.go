// Package child starts processes that do not outlive this one, however it ends.
package child

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
)

// Process is a started child.
type Process struct {
	// Done is closed when the process has ended and was waited for; Err is valid from then on.
	Done chan struct{}
	Err  error

	cmd *exec.Cmd
}

// Start starts cmd in a process group of its own, so that an interrupt typed at a terminal reaches it through this
// process's orderly end and not directly. The kernel sends it signal when this process dies.
func Start(cmd *exec.Cmd, signal syscall.Signal) (*Process, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	cmd.SysProcAttr.Pdeathsig = signal
	p := &Process{Done: make(chan struct{}), cmd: cmd}
	started := make(chan error)
	go func() {
		// PR_SET_PDEATHSIG means the death of the thread that forked, so that thread must live as long as the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		p.Err = cmd.Wait()
		close(p.Done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// Guard is for a process that is about to change its user, at which the kernel forgets that it shall die with this one: a
// shell that waits for this process's end then kills the process group, until end is called. It must be called while the process
// group exists, for its number may be used again.
func (p *Process) Guard() (end func(), err error) {
	waits, held, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer waits.Close()
	guard := exec.Command("/bin/sh", "-c", `read -r line; kill -s KILL -- "-$0"`, strconv.Itoa(p.PID()))
	guard.Stdin = waits
	guard.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := guard.Start(); err != nil {
		held.Close()
		return nil, fmt.Errorf("guarding process %d: %w", p.PID(), err)
	}
	return func() {
		_ = guard.Process.Kill()
		_ = guard.Wait() // it was killed
		held.Close()
	}, nil
}

// PID is the process's id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Signal sends a signal; to a process that has ended it is os.ErrProcessDone.
func (p *Process) Signal(s syscall.Signal) error { return p.cmd.Process.Signal(s) }
