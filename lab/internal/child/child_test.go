package child_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ccgrkc/ccgrkc/lab/internal/child"
)

// A guarded process that changed its user ends with its parent, even if the parent is killed.
func TestGuardedProcessDiesWithItsParent(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test changes a process's user, which needs root")
	}
	if os.Getenv("CCGRKC_GUARD_PARENT") != "" {
		cmd := exec.Command("/usr/bin/setpriv", "--reuid=65532", "--regid=65532", "--clear-groups", "--",
			"sleep", "3600")
		p, err := child.Start(cmd, syscall.SIGKILL)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Guard(); err != nil {
			t.Fatal(err)
		}
		fmt.Println(p.PID())
		time.Sleep(time.Hour)
	}
	parent := exec.Command(os.Args[0], "-test.run=^TestGuardedProcessDiesWithItsParent$")
	parent.Env = append(os.Environ(), "CCGRKC_GUARD_PARENT=1")
	stdout, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	time.Sleep(200 * time.Millisecond) // the user has changed
	killed := errors.Join(parent.Process.Kill(), err)
	_ = parent.Wait() // it was killed
	if killed != nil {
		t.Fatal(killed)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Second); syscall.Kill(pid, 0) == nil; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			t.Fatalf("process %d is still running", pid)
		}
	}
}
