// Package child starts processes that end with this one, even if it is killed.
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
	// Done is closed when the process has ended; Err is valid from then on.
	Done chan struct{}
	Err  error

	cmd *exec.Cmd
}

// Start starts cmd in its own process group, so that Ctrl+C in a terminal reaches only this process, which then stops
// its children in order. The kernel sends signal to the child when this process dies.
func Start(cmd *exec.Cmd, signal syscall.Signal) (*Process, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	cmd.SysProcAttr.Pdeathsig = signal
	p := &Process{Done: make(chan struct{}), cmd: cmd}
	started := make(chan error)
	go func() {
		// PR_SET_PDEATHSIG reacts to the end of the thread that forked, so the thread must live as long as the child.
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

// Guard starts a shell that kills the process group when this process ends. A process that changes its user needs it,
// because the kernel then clears its parent-death signal. Call end while the process group exists: its id can be
// reused.
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

func (p *Process) PID() int { return p.cmd.Process.Pid }

// Signal sends a signal. If the process has ended, it returns os.ErrProcessDone.
func (p *Process) Signal(s syscall.Signal) error { return p.cmd.Process.Signal(s) }
