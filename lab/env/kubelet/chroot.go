package kubelet

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	"github.com/ccgrkc/ccgrkc/lab/internal/mountns"
	corev1 "k8s.io/api/core/v1"
)

// chroot is the runtime of Linux nodes. A container is a copy of its image in a mount namespace, with its volumes. Its
// processes see no other files of the machine. They use the pod's network, but the machine's processes, users and
// resources. This is not a security boundary.
type chroot struct {
	dir string
}

func (r *chroot) start(ctx context.Context, s start) (*running, error) {
	dir := filepath.Join(r.dir, s.id)
	root := filepath.Join(dir, "root")
	release := func() error { return os.RemoveAll(dir) }
	if err := s.image.copyTo(ctx, root); err != nil {
		return nil, fmt.Errorf("%w%s", err, note(release()))
	}
	mounts := []mount{{source: "/proc", target: "/proc"}, {source: "/dev", target: "/dev"}}
	for _, name := range []string{"hosts", "resolv.conf"} {
		mounts = append(mounts, mount{source: "/etc/" + name, target: "/etc/" + name, readOnly: true})
	}
	outer := slices.Clone(s.mounts)
	slices.SortStableFunc(outer, func(a, b mount) int {
		return len(filepath.Clean(a.target)) - len(filepath.Clean(b.target))
	})
	var binds []mountns.Mount
	for _, m := range append(mounts, outer...) {
		if err := r.mountPoint(root, m, outer); err != nil {
			return nil, fmt.Errorf("%w%s", err, note(release()))
		}
		target := filepath.Join(root, m.target)
		binds = append(binds, mountns.Mount{Source: m.source, Target: target, ReadOnly: m.readOnly})
	}
	workingDir := s.workingDir
	if workingDir == "" {
		workingDir = "/"
	}
	if err := os.MkdirAll(filepath.Join(root, workingDir), 0o755); err != nil {
		return nil, fmt.Errorf("%w%s", err, note(release()))
	}
	if s.env["PATH"] == "" {
		s.env["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	}
	var enter []string
	if s.network != nil {
		enter = append(enter, "/usr/bin/nsenter", "--net="+s.network.Path(), "--")
	}
	enter = append(enter, "/usr/bin/unshare", "--root="+root, "--wd="+workingDir)
	enter = append(enter, identity(s.security)...)
	command := func(ctx context.Context, argv []string) *exec.Cmd {
		cmd := exec.CommandContext(ctx, enter[0], slices.Concat(enter[1:], []string{"--"}, argv)...)
		cmd.Env = environ(s.env)
		return cmd
	}
	first := command(context.WithoutCancel(ctx), s.argv)
	first.Stdout, first.Stderr = s.log, s.log
	process, err := mountns.Start(first, syscall.SIGKILL, binds)
	if err != nil {
		return nil, fmt.Errorf("%w%s", err, note(release()))
	}
	release = func() error {
		// Its children are in its process group, except those that left it.
		_ = syscall.Kill(-process.PID(), syscall.SIGKILL)
		return os.RemoveAll(dir)
	}
	if changesUser(s.security) {
		unguard, err := process.Guard()
		if err != nil {
			return nil, fmt.Errorf("%w%s", err, note(release()))
		}
		kill := release
		release = func() error {
			unguard()
			return kill()
		}
	}
	return &running{
		process:   process,
		endSignal: syscall.SIGTERM,
		command: func(ctx context.Context, argv []string) *exec.Cmd {
			cmd := command(ctx, argv)
			mountns.Enter(cmd, process.PID(), "")
			return cmd
		},
		release: release,
	}, nil
}

// mountPoint creates a mount's target in the copy of the image and, if it is below another mount, in that mount's
// source.
func (r *chroot) mountPoint(root string, m mount, others []mount) error {
	info, err := os.Stat(m.source)
	if err != nil {
		return err
	}
	points := []string{filepath.Join(root, m.target)}
	for _, o := range others {
		if below, err := filepath.Rel(o.target, m.target); err == nil && below != "." && filepath.IsLocal(below) {
			points = append(points, filepath.Join(o.source, below))
		}
	}
	for _, point := range points {
		if _, err := os.Stat(point); err == nil {
			continue
		}
		dir := point
		if !info.IsDir() {
			dir = filepath.Dir(point)
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if !info.IsDir() {
			if err := os.WriteFile(point, nil, 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// identity is the container's user and group, by default root. It ignores the user in the image.
func identity(security *corev1.SecurityContext) []string {
	var args []string
	if security.RunAsGroup != nil {
		args = append(args, "--setgid="+strconv.FormatInt(*security.RunAsGroup, 10))
	} else if security.RunAsUser != nil {
		args = append(args, "--setgid=0")
	}
	if security.RunAsUser != nil {
		args = append(args, "--setuid="+strconv.FormatInt(*security.RunAsUser, 10))
	}
	return args
}

func changesUser(security *corev1.SecurityContext) bool { return len(identity(security)) > 0 }

func note(err error) string {
	if err == nil {
		return ""
	}
	return "; " + err.Error()
}
