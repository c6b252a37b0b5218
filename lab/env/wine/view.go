package wine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/ccgrkc/ccgrkc/lab/internal/child"
	"github.com/ccgrkc/ccgrkc/lab/internal/mountns"
)

// Mount makes a Unix file or directory appear at a Windows path on drive C.
type Mount struct {
	Source   string
	Target   string
	ReadOnly bool
}

// View is the node's disk with mounts that only the view's own programs see, as a HostProcess container has it under
// containerd 1.7 and later: what is written outside the mounts is on the node's disk. Its session is its own, so two
// things are not as on Windows: the registry is a private copy of what the node last wrote to its disk, and no program
// of the view meets one of the node, by COM or otherwise, except over the network and through files.
type View struct {
	node   *Node
	prefix string
	env    []string
	server *child.Process
	points []string
}

// View makes a view in dir, which must not exist. It takes most of a second until its first program runs. What system says
// appears outside the disk, on the machine as the view's programs see it.
func (n *Node) View(ctx context.Context, dir string, mounts []Mount, system ...mountns.Mount) (*View, error) {
	v := &View{node: n, prefix: dir}
	for _, e := range n.env {
		switch name, _, _ := strings.Cut(e, "="); name {
		case "WINEPREFIX", "HOME":
			e = name + "=" + dir
		}
		v.env = append(v.env, e)
	}
	if err := v.makePrefix(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	// A mount below another comes after it.
	mounts = slices.Clone(mounts)
	slices.SortStableFunc(mounts, func(a, b Mount) int { return strings.Compare(windowsKey(a.Target), windowsKey(b.Target)) })
	drive := filepath.Join(dir, "drive_c")
	binds := []mountns.Mount{{Source: filepath.Join(n.dir, "drive_c"), Target: drive}}
	for i, m := range mounts {
		target, err := v.mountPoint(mounts[:i], m)
		if err != nil {
			v.Close()
			return nil, err
		}
		binds = append(binds, mountns.Mount{Source: m.Source, Target: filepath.Join(drive, target), ReadOnly: m.ReadOnly})
	}
	binds = append(binds, system...)
	server := exec.CommandContext(context.WithoutCancel(ctx), wineserver, "--foreground", "--persistent")
	server.Env = v.env
	var err error
	if v.server, err = mountns.Start(server, syscall.SIGINT, binds); err != nil {
		v.Close()
		return nil, err
	}
	// A program that finds no server starts one that nobody waits for.
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		if dir := serverDir(v.server); dir != "" {
			if _, err := os.Stat(filepath.Join(dir, "socket")); err == nil {
				return v, nil
			}
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			v.Close()
			return nil, fmt.Errorf("the server of the view %s did not start: %w", dir, ctx.Err())
		}
	}
}

func (v *View) makePrefix() error {
	for _, dir := range []string{"dosdevices", "drive_c"} {
		if err := os.MkdirAll(filepath.Join(v.prefix, dir), 0o700); err != nil {
			return err
		}
	}
	for name, to := range map[string]string{"c:": "../drive_c", "z:": "/"} {
		if err := os.Symlink(to, filepath.Join(v.prefix, "dosdevices", name)); err != nil {
			return err
		}
	}
	// With the time stamp Wine knows that the prefix is made; Debian's Wine keeps in the file wineserver which directory the
	// sockets are below.
	for _, name := range []string{"system.reg", "user.reg", "userdef.reg", ".update-timestamp", "wineserver"} {
		content, err := os.ReadFile(filepath.Join(v.node.dir, name))
		if errors.Is(err, os.ErrNotExist) && name == "wineserver" {
			continue
		}
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(v.prefix, name), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// mountPoint makes sure that the target of a mount exists and returns its path below drive C. Below another mount it is
// made there, where it stays; else on the node's disk, from where Close removes it.
func (v *View) mountPoint(before []Mount, m Mount) (string, error) {
	info, err := os.Stat(m.Source)
	if err != nil {
		return "", err
	}
	for _, outer := range slices.Backward(before) {
		below, ok := strings.CutPrefix(windowsKey(m.Target), windowsKey(outer.Target))
		if !ok {
			continue
		}
		parts := windowsParts(m.Target)
		parts = parts[len(parts)-strings.Count(below, "\x00"):]
		inner := matchCase(outer.Source, parts)
		if err := makePoint(filepath.Join(outer.Source, inner), info.IsDir()); err != nil {
			return "", err
		}
		return filepath.Join(v.targetOf(before, outer), inner), nil
	}
	drive := filepath.Join(v.node.dir, "drive_c")
	target := matchCase(drive, windowsParts(m.Target))
	if err := v.node.takeMountPoint(v, target, info.IsDir()); err != nil {
		return "", err
	}
	return target, nil
}

func (v *View) targetOf(mounts []Mount, m Mount) string {
	drive := filepath.Join(v.node.dir, "drive_c")
	for _, outer := range slices.Backward(mounts) {
		below, ok := strings.CutPrefix(windowsKey(m.Target), windowsKey(outer.Target))
		if !ok || below == "" {
			continue
		}
		parts := windowsParts(m.Target)
		return filepath.Join(v.targetOf(mounts, outer), matchCase(outer.Source, parts[len(parts)-strings.Count(below, "\x00"):]))
	}
	return matchCase(drive, windowsParts(m.Target))
}

func makePoint(path string, dir bool) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	if dir {
		return os.MkdirAll(path, 0o755)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, nil, 0o644)
}

// takeMountPoint makes what is missing of a path on the node's disk, and counts the views that need what was made.
func (n *Node) takeMountPoint(v *View, target string, dir bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	drive := filepath.Join(n.dir, "drive_c")
	parts := strings.Split(target, "/")
	for i := range parts {
		point := filepath.Join(parts[:i+1]...)
		_, missing := os.Lstat(filepath.Join(drive, point))
		if missing == nil && n.mountPoints[point] == 0 {
			continue // the node's own
		}
		n.mountPoints[point]++
		v.points = append(v.points, point)
		if err := n.noteMountPoints(); err != nil {
			return err
		}
		if missing == nil {
			continue
		}
		if err := makePoint(filepath.Join(drive, point), dir || i < len(parts)-1); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) releaseMountPoints(points []string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, point := range slices.Backward(points) {
		n.mountPoints[point]--
		if n.mountPoints[point] > 0 {
			continue
		}
		delete(n.mountPoints, point)
		// A directory into which a program of the node put something is the node's own from now on.
		_ = os.Remove(filepath.Join(n.dir, "drive_c", point))
	}
	return n.noteMountPoints()
}

// The list outlives a power failure of the node, so that the next Boot can remove what is in it.
func (n *Node) noteMountPoints() error {
	var points []string
	for point := range n.mountPoints {
		points = append(points, point)
	}
	slices.Sort(points)
	return os.WriteFile(filepath.Join(n.dir, "lab-mount-points"), []byte(strings.Join(points, "\n")), 0o600)
}

func (n *Node) clearMountPoints() error {
	list, err := os.ReadFile(filepath.Join(n.dir, "lab-mount-points"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, point := range slices.Backward(strings.Split(string(list), "\n")) {
		if point != "" {
			_ = os.Remove(filepath.Join(n.dir, "drive_c", point))
		}
	}
	clear(n.mountPoints)
	return n.noteMountPoints()
}

// UnixPath is the Unix path of a Windows path on the node's drive C, of which a part may not exist. Names are found in
// any case; the drive may be missing, and slashes may lean either way.
func (n *Node) UnixPath(winPath string) string {
	drive := filepath.Join(n.dir, "drive_c")
	return filepath.Join(drive, matchCase(drive, windowsParts(winPath)))
}

func windowsParts(path string) []string {
	path = strings.ReplaceAll(path, "/", `\`)
	if len(path) >= 2 && path[1] == ':' {
		path = path[2:]
	}
	return strings.FieldsFunc(path, func(r rune) bool { return r == '\\' })
}

// windowsKey compares paths: each part is followed by a NUL, in lower case, so that a prefix is a path above.
func windowsKey(path string) string {
	var key strings.Builder
	for _, part := range windowsParts(path) {
		key.WriteString(strings.ToLower(part) + "\x00")
	}
	return key.String()
}

// matchCase is the path of the parts below dir, spelled as what exists there is spelled.
func matchCase(dir string, parts []string) string {
	path := ""
	for _, part := range parts {
		if _, err := os.Lstat(filepath.Join(dir, path, part)); err != nil {
			entries, _ := os.ReadDir(filepath.Join(dir, path)) // what does not exist has none
			for _, e := range entries {
				if strings.EqualFold(e.Name(), part) {
					part = e.Name()
					break
				}
			}
		}
		path = filepath.Join(path, part)
	}
	return path
}

// Command is a program of the view, as Node.Command is one of the node: its output must be a file too, because the first
// program starts Windows' services, which inherit it. Its working directory is a Windows path.
func (v *View) Command(ctx context.Context, dir, exe string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, wine64, append([]string{exe}, args...)...)
	cmd.Env = slices.Clone(v.env)
	// The spelling of what is mounted is the mount's.
	drive := filepath.Join(v.prefix, "drive_c")
	seen := fmt.Sprintf("/proc/%d/root%s", v.server.PID(), drive)
	mountns.Enter(cmd, v.server.PID(), filepath.Join(drive, matchCase(seen, windowsParts(dir))))
	return cmd
}

// Run runs a program to its end and returns what it wrote to standard output and error.
func (v *View) Run(ctx context.Context, dir, exe string, args ...string) ([]byte, error) {
	return output(v.Command(ctx, dir, exe, args...))
}

// Close ends every process of the view and leaves nothing of it, on the node's disk neither.
func (v *View) Close() error {
	if v.server != nil {
		socket := serverDir(v.server)
		_ = v.server.Signal(syscall.SIGKILL)
		<-v.server.Done
		killProcesses(v.prefix)
		removeServerDir(socket)
	}
	err := v.node.releaseMountPoints(v.points)
	v.points = nil
	return errors.Join(err, os.RemoveAll(v.prefix))
}
