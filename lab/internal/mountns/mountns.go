// Package mountns runs programs in mount namespaces of their own, in which directories and files appear at other places.
// It needs root, and util-linux.
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

// Mount makes Source, with what is mounted below it, appear at Target, which must exist.
type Mount struct {
	Source, Target string
	ReadOnly       bool
}

// The mounts are made in order; then file 3 says so, and the shell becomes the program. What mount complains of goes to
// file 3 as well.
const script = `while [ "$1" != -- ]; do
	/usr/bin/mount -o "$1" "$2" "$3" 2>&3 || exit 125
	shift 3
done
shift
echo mounted >&3
exec 3>&-
exec "$@"`

// Start starts cmd in a namespace of its own. It returns when the mounts are made. The process dies with this one, by
// signal.
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
	answer, said, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer answer.Close()
	cmd.ExtraFiles = []*os.File{said}
	process, err := child.Start(cmd, signal)
	said.Close()
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(answer)
	if err != nil || string(text) != "mounted\n" {
		_ = process.Signal(syscall.SIGKILL)
		<-process.Done
		return nil, fmt.Errorf("mounting: %s%w", strings.TrimSpace(string(text)), errors.Join(err, process.Err))
	}
	return process, nil
}

// Private makes cmd run in a namespace of its own, with these mounts. Other than with Start, it is the command that fails
// where a mount fails, with status 125.
func Private(cmd *exec.Cmd, mounts ...Mount) {
	args := []string{"/usr/bin/unshare", "--mount", "--propagation", "private", "--", "/bin/sh", "-c", `while [ "$1" != -- ]; do
	/usr/bin/mount -o bind,ro "$1" "$2" || exit 125
	shift 2
done
shift
exec "$@"`, "sh"}
	for _, m := range mounts {
		args = append(args, m.Source, m.Target)
	}
	cmd.Args = append(append(args, "--"), cmd.Args...)
	cmd.Path, cmd.Err = args[0], nil
}

// Enter makes cmd run in the mount namespace of a process. Its working directory is dir as seen there, or the root.
func Enter(cmd *exec.Cmd, pid int, dir string) {
	args := []string{"/usr/bin/nsenter", fmt.Sprintf("--mount=/proc/%d/ns/mnt", pid)}
	if dir != "" {
		args = append(args, "--wdns="+dir)
	}
	cmd.Args = append(append(args, "--"), cmd.Args...)
	cmd.Path, cmd.Err = args[0], nil
}
