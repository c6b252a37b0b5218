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

// start describes a container for a runtime.
type start struct {
	id         string
	image      *image
	argv       []string
	env        map[string]string
	mounts     []mount
	workingDir string
	log        *os.File
	security   *corev1.SecurityContext // the container's settings, with the pod's as defaults
	network    *netns.Namespace        // nil for the machine's network
}

type mount struct {
	source, target string
	readOnly       bool
}

// running is a started container.
type running struct {
	process   *child.Process
	endSignal syscall.Signal // requests that the first process exits
	// command runs another program in the container.
	command func(ctx context.Context, argv []string) *exec.Cmd
	// release kills the remaining processes and removes the container's files.
	release func() error
}

// runtime starts containers. Linux and Windows nodes have different ones.
type runtime interface {
	start(ctx context.Context, s start) (*running, error)
}

// exitCode is the exit code as in a shell: 128 plus the signal's number for a process that a signal ended. Wine passes
// only the lowest 8 bits of a Windows exit code.
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
