//go:build unix

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// runMain makes the test binary run as gmsactl, because signals affect a whole process.
const runMain = "GMSACTL_TEST_RUNS_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(runMain) != "" {
		main()
	}
	os.Exit(m.Run())
}

// start starts gmsactl and returns its output. The process does not outlive the test.
func start(t *testing.T, args ...string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	cmd.Env = []string{runMain + "=1", "HOME=" + t.TempDir()}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, &out
}

func TestCtrlCInterruptsDoctorIfTheAPIServerHangs(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0") // accepts connections and never answers
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_ = l.(*net.TCPListener).SetDeadline(time.Now().Add(20 * time.Second))
	cmd, out := start(t, "doctor", "--server", fmt.Sprintf("http://%s", l.Addr()))
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 3 || !strings.Contains(out.String(), l.Addr().String()) {
		t.Errorf("%v\n%s", cmd.ProcessState, out)
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("it exited after %v", took)
	}
}

// Reading a named pipe does not watch the context.
func TestTheSecondCtrlCKills(t *testing.T) {
	t.Parallel()
	pipe := filepath.Join(t.TempDir(), "spec.yaml")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	cmd, out := start(t, "credspec", "check", pipe)
	// Once gmsactl reads the pipe, its signal handler is installed.
	for {
		writer, err := os.OpenFile(pipe, os.O_WRONLY|syscall.O_NONBLOCK, 0)
		if err == nil {
			defer writer.Close()
			break
		}
		if !errors.Is(err, syscall.ENXIO) { // the pipe has no reader
			t.Fatal(err)
		}
		if begin.Add(20 * time.Second).Before(time.Now()) {
			t.Fatal("gmsactl does not read the file")
		}
		time.Sleep(10 * time.Millisecond)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for { // two signals in quick succession can merge into one, so send signals until it exits
		if err := cmd.Process.Signal(os.Interrupt); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Fatal(err)
		}
		select {
		case <-ended:
			if status := cmd.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() ||
				status.Signal() != syscall.SIGINT {
				t.Errorf("%v\n%s", cmd.ProcessState, out)
			}
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
}
