package kubelet

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/ccgrkc/ccgrkc/lab/env/wine"
	"github.com/ccgrkc/ccgrkc/lab/internal/child"
	"github.com/ccgrkc/ccgrkc/lab/internal/mountns"
)

// Sandbox is the layout of a HostProcess container's image and volumes, as in hcsshim (internal/jobcontainers). In both
// versions CONTAINER_SANDBOX_MOUNT_POINT is the root of the container's files, with a trailing backslash, and the
// volumes are below it.
type Sandbox string

const (
	// Containerd17 shows the image at C:\hpc and the volumes also at their mountPath, only to the container.
	Containerd17 Sandbox = "1.7"
	// Containerd16 puts both on the node's disk, at C:\C\<container id>, visible to all processes.
	Containerd16 Sandbox = "1.6"
)

const (
	sandboxVariable = "CONTAINER_SANDBOX_MOUNT_POINT"
	hpc             = `C:\hpc`
	sharedImages    = `C:\lab\images`
	sandboxes16     = `C:\C`
)

// hostProcess is the runtime of Windows nodes. Every container runs under the node's Wine as the node's user:
//   - Containerd17, with volumes: in a view of the node's disk (wine.View), so with a private copy of its registry;
//   - Containerd17, without: in the node's own session, with its registry; the image is at C:\lab\images\<digest>;
//   - Containerd16: in the node's own session.
//
// Containers that are not HostProcess run in the same way: as programs on the node, not as Windows containers.
type hostProcess struct {
	dir     string
	node    *wine.Node
	sandbox Sandbox
	// resolvConf: see Options.
	resolvConf func() string
}

// system lists the mounts of a container outside the node's disk.
func (r *hostProcess) system() []mountns.Mount {
	if r.resolvConf == nil || r.resolvConf() == "" {
		return nil
	}
	return []mountns.Mount{{Source: r.resolvConf(), Target: "/etc/resolv.conf", ReadOnly: true}}
}

func (r *hostProcess) start(ctx context.Context, s start) (*running, error) {
	if r.sandbox == Containerd16 {
		return r.start16(ctx, s)
	}
	if len(s.mounts) == 0 {
		return r.startShared(ctx, s)
	}
	return r.startView(ctx, s)
}

func (r *hostProcess) startView(ctx context.Context, s start) (_ *running, err error) {
	dir := filepath.Join(r.dir, s.id)
	root := filepath.Join(dir, "root")
	var view *wine.View
	release := func() error {
		if view != nil {
			if err := view.Close(); err != nil {
				return err
			}
		}
		return os.RemoveAll(dir)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w%s", err, note(release()))
		}
	}()
	if err := s.image.copyTo(ctx, root); err != nil {
		return nil, err
	}
	mounts := []wine.Mount{{Source: root, Target: hpc}}
	for _, m := range s.mounts {
		mounts = append(mounts, wine.Mount{Source: m.source, Target: m.target, ReadOnly: m.readOnly},
			wine.Mount{Source: m.source, Target: below(hpc, m.target), ReadOnly: m.readOnly})
	}
	if view, err = r.node.View(ctx, filepath.Join(dir, "wine"), mounts, r.system()...); err != nil {
		return nil, err
	}
	c := windowsContainer{root: hpc, files: root, start: s}
	command := func(ctx context.Context, argv []string) *exec.Cmd {
		argv = c.commandLine(argv)
		cmd := view.Command(ctx, c.workingDir(false), argv[0], argv[1:]...)
		cmd.Env = append(cmd.Env, c.environ()...)
		return cmd
	}
	return c.run(command, release)
}

func (r *hostProcess) startShared(ctx context.Context, s start) (*running, error) {
	root := sharedImages + `\` + s.image.digest
	files := r.node.UnixPath(root)
	if _, err := os.Stat(files); err != nil {
		partial := files + "." + s.id
		if err := s.image.copyTo(ctx, partial); err != nil {
			return nil, err
		}
		// Another container of the same image can be faster.
		if err := os.Rename(partial, files); err != nil {
			if err := os.RemoveAll(partial); err != nil {
				return nil, err
			}
		}
	}
	c := windowsContainer{root: root, files: files, start: s}
	return c.run(r.inSession(c, false), func() error { return nil })
}

func (r *hostProcess) start16(ctx context.Context, s start) (_ *running, err error) {
	root := sandboxes16 + `\` + s.id
	files := r.node.UnixPath(root)
	release := func() error {
		err := os.RemoveAll(files)
		_ = os.Remove(filepath.Dir(files)) // fails while another container has files there
		return err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w%s", err, note(release()))
		}
	}()
	if err := s.image.copyTo(ctx, files); err != nil {
		return nil, err
	}
	for _, m := range s.mounts {
		// Links to the volumes, as in containerd 1.6.
		link := r.node.UnixPath(below(root, m.target))
		if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
			return nil, err
		}
		if err := os.Symlink(m.source, link); err != nil {
			return nil, err
		}
	}
	c := windowsContainer{root: root, files: files, start: s}
	return c.run(r.inSession(c, true), release)
}

func (r *hostProcess) inSession(c windowsContainer, fallback bool) func(context.Context, []string) *exec.Cmd {
	system := r.system()
	return func(ctx context.Context, argv []string) *exec.Cmd {
		argv = c.commandLine(argv)
		cmd := r.node.Command(ctx, argv[0], argv[1:]...)
		cmd.Env = append(cmd.Env, c.environ()...)
		cmd.Dir = r.node.UnixPath(c.workingDir(fallback))
		if system != nil {
			mountns.Private(cmd, system...)
		}
		return cmd
	}
}

// windowsContainer applies hcsshim's rules to a container's configuration.
type windowsContainer struct {
	root  string // Windows path of the container's own files
	files string // their Unix path
	start
}

func (c windowsContainer) run(command func(context.Context, []string) *exec.Cmd,
	release func() error) (*running, error) {
	first := command(context.Background(), c.argv)
	first.Stdout, first.Stderr = c.log, c.log
	process, err := child.Start(first, syscall.SIGKILL)
	if err != nil {
		return nil, fmt.Errorf("%w%s", err, note(release()))
	}
	// A real container gets CTRL_SHUTDOWN_EVENT, which Go delivers as SIGTERM. Wine cannot send it. It turns SIGINT
	// into CTRL_C_EVENT, which Go delivers as os.Interrupt.
	return &running{process: process, endSignal: syscall.SIGINT, command: command, release: release}, nil
}

func (c windowsContainer) expand(s string) string {
	for _, form := range []string{"%" + sandboxVariable + "%", "$env:" + sandboxVariable} {
		s = strings.ReplaceAll(s, form, c.root)
	}
	return s
}

// commandLine searches a program without a drive first in the container's files, like hcsshim. If it is not there, Wine
// searches it.
func (c windowsContainer) commandLine(argv []string) []string {
	argv = slices.Clone(argv)
	for i := range argv {
		argv[i] = c.expand(argv[i])
	}
	program := strings.ReplaceAll(argv[0], "/", `\`)
	if !strings.HasPrefix(program, `\`) && !strings.Contains(program, ":") {
		for _, name := range []string{program, program + ".exe"} {
			path := filepath.Join(c.files, strings.ReplaceAll(name, `\`, "/"))
			if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
				argv[0] = c.root + `\` + name
				break
			}
		}
	}
	return argv
}

func (c windowsContainer) environ() []string {
	env := map[string]string{}
	for name, value := range c.env {
		env[name] = c.expand(value)
	}
	env[sandboxVariable] = c.root + `\`
	return environ(env)
}

func (c windowsContainer) workingDir(fallback bool) string {
	dir := c.expand(c.start.workingDir)
	switch {
	case dir == "":
		return c.root
	case fallback && dir == c.start.workingDir:
		return below(c.root, dir)
	}
	return dir
}

// below joins a Windows path, without its drive, to root.
func below(root, path string) string {
	path = strings.ReplaceAll(path, "/", `\`)
	if len(path) >= 2 && path[1] == ':' {
		path = path[2:]
	}
	return root + `\` + strings.TrimLeft(path, `\`)
}

// clearAfterPowerFailure removes the files of containers from the node's disk.
func (r *hostProcess) clearAfterPowerFailure() error {
	err := os.RemoveAll(r.node.UnixPath(sandboxes16))
	// Incomplete copies.
	entries, _ := os.ReadDir(r.node.UnixPath(sharedImages))
	for _, e := range entries {
		if strings.Contains(e.Name(), ".") && e.Type() == fs.ModeDir {
			if err := os.RemoveAll(filepath.Join(r.node.UnixPath(sharedImages), e.Name())); err != nil {
				return err
			}
		}
	}
	return err
}
