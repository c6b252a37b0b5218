package kubelet

import (
	"context"
	"os"
	"os/exec"
	"syscall"

	"github.com/ccgrkc/ccgrkc/lab/internal/child"
	"github.com/ccgrkc/ccgrkc/lab/internal/netns"
	corev1 "k8s.io/api/core/v1"
)

// start is what a runtime needs to start a container.
type start struct {
	id         string
	image      *image
	argv       []string
	env        map[string]string
	mounts     []mount
	workingDir string
	log        *os.File
	security   *corev1.SecurityContext // the container's, over the pod's
	network    *netns.Namespace        // nil for the machine's
}

type mount struct {
	source, target string
	readOnly       bool
}

// running is a container that was started.
type running struct {
	process *child.Process
	asksEnd syscall.Signal // what asks its first process to end
	// command is another program in the container.
	command func(ctx context.Context, argv []string) *exec.Cmd
	// release ends what the first process left behind, and removes what was made for the container.
	release func() error
}

// runtime starts containers: the Linux and the Windows way.
type runtime interface {
	start(ctx context.Context, s start) (*running, error)
}

// exitCode is that of a shell: 128 and the signal's number for a process that a signal ended. Of a Windows exit code, Wine
// passes on the lowest 8 bits.
func exitCode(err error) int32 {
	if err == nil {
		return 0
	}
	exit, ok := err.(*exec.ExitError)
	if !ok {
		return 128
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int32(status.Signal())
	}
	return int32(exit.ExitCode())
}
