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

// Mount shows a Unix file or directory at a Windows path on drive C.
type Mount struct {
	Source   string
	Target   string
	ReadOnly bool
}

// View is the node's disk with mounts that only the view's programs see, like a HostProcess container under containerd
// 1.7 and later. Files outside the mounts are the node's. A view has its own Wine session, which leads to two
// differences from Windows: its registry is a private copy of the node's registry as last written to disk, and its
// programs can reach the node's programs only over the network and through files, not through COM.
type View struct {
	node   *Node
	prefix string
	env    []string
	server *child.Process
	points []string
}

// View creates a view in dir, which must not exist. Its first program starts after almost a second. The system mounts
// apply to the machine's Unix paths, as the view's programs see them.
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
	// A mount comes before the mounts below it.
	mounts = slices.Clone(mounts)
	slices.SortStableFunc(mounts, func(a, b Mount) int {
		return strings.Compare(windowsKey(a.Target), windowsKey(b.Target))
	})
	drive := filepath.Join(dir, "drive_c")
	binds := []mountns.Mount{{Source: filepath.Join(n.dir, "drive_c"), Target: drive}}
	for i, m := range mounts {
		target, err := v.mountPoint(mounts[:i], m)
		if err != nil {
			v.Close()
			return nil, err
		}
		target = filepath.Join(drive, target)
		binds = append(binds, mountns.Mount{Source: m.Source, Target: target, ReadOnly: m.ReadOnly})
	}
	binds = append(binds, system...)
	server := exec.CommandContext(context.WithoutCancel(ctx), wineserver, "--foreground", "--persistent")
	server.Env = v.env
	var err error
	if v.server, err = mountns.Start(server, syscall.SIGINT, binds); err != nil {
		v.Close()
		return nil, err
	}
	// Wait for the server: a program that finds none starts another one, which this process does not control.
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
	// With .update-timestamp, Wine does not update the prefix. In the file wineserver, Debian's Wine stores the
	// directory of the sockets.
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

// mountPoint creates the target of a mount if it is missing, and returns its path below drive C. If the target is below
// another mount, it is created in that mount's source and remains. Otherwise it is on the node's disk, and Close
// removes it.
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
		parts = parts[len(parts)-strings.Count(below, "\x00"):]
		return filepath.Join(v.targetOf(mounts, outer), matchCase(outer.Source, parts))
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

// takeMountPoint creates the missing parts of a path on the node's disk, and counts the views that use them.
func (n *Node) takeMountPoint(v *View, target string, dir bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	drive := filepath.Join(n.dir, "drive_c")
	parts := strings.Split(target, "/")
	for i := range parts {
		point := filepath.Join(parts[:i+1]...)
		_, missing := os.Lstat(filepath.Join(drive, point))
		if missing == nil && n.mountPoints[point] == 0 {
			continue // it belongs to the node
		}
		n.mountPoints[point]++
		v.points = append(v.points, point)
		if err := n.saveMountPoints(); err != nil {
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
		// The removal fails if a program has created files in the directory. It then belongs to the node.
		_ = os.Remove(filepath.Join(n.dir, "drive_c", point))
	}
	return n.saveMountPoints()
}

// saveMountPoints writes the list to disk, so that Boot can remove the mount points after a power failure.
func (n *Node) saveMountPoints() error {
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
	return n.saveMountPoints()
}

// UnixPath is the Unix path of a Windows path on the node's drive C. Parts of the path can be missing. Case is ignored,
// the drive is optional, and both kinds of slashes are allowed.
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

// windowsKey is a key for comparing paths: the parts in lower case, each followed by a NUL, so that the key of a parent
// directory is a prefix.
func windowsKey(path string) string {
	var key strings.Builder
	for _, part := range windowsParts(path) {
		key.WriteString(strings.ToLower(part) + "\x00")
	}
	return key.String()
}

// matchCase joins the parts below dir. Parts that exist get the case of the existing file.
func matchCase(dir string, parts []string) string {
	path := ""
	for _, part := range parts {
		if _, err := os.Lstat(filepath.Join(dir, path, part)); err != nil {
			entries, _ := os.ReadDir(filepath.Join(dir, path)) // none if it does not exist
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

// Command returns a command for a program in the view, like Node.Command. Its output must be a file too, because the
// first program starts Windows' services, which inherit it. dir is the working directory, a Windows path.
func (v *View) Command(ctx context.Context, dir, exe string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, wine64, append([]string{exe}, args...)...)
	cmd.Env = slices.Clone(v.env)
	// Mounted files keep the case of the mount.
	drive := filepath.Join(v.prefix, "drive_c")
	seen := fmt.Sprintf("/proc/%d/root%s", v.server.PID(), drive)
	mountns.Enter(cmd, v.server.PID(), filepath.Join(drive, matchCase(seen, windowsParts(dir))))
	return cmd
}

// Run runs a program and returns its standard output and error.
func (v *View) Run(ctx context.Context, dir, exe string, args ...string) ([]byte, error) {
	return output(v.Command(ctx, dir, exe, args...))
}

// Close kills every process of the view and removes its files, including those on the node's disk.
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
