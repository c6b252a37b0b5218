// Package mountns runs programs in their own mount namespaces, in which directories and files appear at other paths. It
// needs root and util-linux.
package mountns

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/ccgrkc/ccgrkc/lab/internal/child"
)

// Mount shows Source, including mounts below it, at Target. Target must exist.
type Mount struct {
	Source, Target string
	ReadOnly       bool
}

// script mounts in order, reports the success or the errors to file 3, and then executes the program.
const script = `while [ "$1" != -- ]; do
	/usr/bin/mount -o "$1" "$2" "$3" 2>&3 || exit 125
	shift 3
done
shift
echo mounted >&3
exec 3>&-
exec "$@"`

// Start starts cmd in its own namespace and returns when everything is mounted. The kernel sends signal to the process
// when this one dies.
func Start(cmd *exec.Cmd, signal syscall.Signal, mounts []Mount) (*child.Process, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("a mount namespace needs root; run the lab as root")
	}
	args := []string{"/usr/bin/unshare", "--mount", "--propagation", "private", "--", "/bin/sh", "-c", script, "sh"}
	for _, m := range mounts {
		options := "rbind"
		if m.ReadOnly {
			options = "bind,ro"
		}
		args = append(args, options, m.Source, m.Target)
	}
	args = append(args, "--")
	cmd.Args = append(args, cmd.Args...)
	cmd.Path = args[0]
	report, reportWriter, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer report.Close()
	cmd.ExtraFiles = []*os.File{reportWriter}
	process, err := child.Start(cmd, signal)
	reportWriter.Close()
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(report)
	if err != nil || string(text) != "mounted\n" {
		_ = process.Signal(syscall.SIGKILL)
		<-process.Done
		return nil, fmt.Errorf("mounting: %s%w", strings.TrimSpace(string(text)), errors.Join(err, process.Err))
	}
	return process, nil
}

// Private makes cmd run in its own namespace, with these mounts. If a mount fails, the command exits with status 125.
func Private(cmd *exec.Cmd, mounts ...Mount) {
	const script = `while [ "$1" != -- ]; do
	/usr/bin/mount -o bind,ro "$1" "$2" || exit 125
	shift 2
done
shift
exec "$@"`
	args := []string{"/usr/bin/unshare", "--mount", "--propagation", "private", "--", "/bin/sh", "-c", script, "sh"}
	for _, m := range mounts {
		args = append(args, m.Source, m.Target)
	}
	cmd.Args = append(append(args, "--"), cmd.Args...)
	cmd.Path, cmd.Err = args[0], nil
}

// Enter makes cmd run in the mount namespace of a process. Its working directory is dir in that namespace, or the root.
func Enter(cmd *exec.Cmd, pid int, dir string) {
	args := []string{"/usr/bin/nsenter", fmt.Sprintf("--mount=/proc/%d/ns/mnt", pid)}
	if dir != "" {
		args = append(args, "--wdns="+dir)
	}
	cmd.Args = append(append(args, "--"), cmd.Args...)
	cmd.Path, cmd.Err = args[0], nil
}
