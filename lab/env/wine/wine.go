// Package wine turns a Wine prefix into a "Windows node": a machine with its own registry, file system and processes,
// on which the product's Windows binaries run. It adds what Go and COM need and Wine lacks. It is not Windows: DACLs on
// files and the permissions of an AppID are at best stored and never enforced, and impersonation does not work.
package wine

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ccgrkc/ccgrkc/lab/internal/cache"
	"github.com/ccgrkc/ccgrkc/lab/internal/child"
)

// Not Debian's wrappers: they select 32 or 64 bits and the server's lifetime themselves.
const (
	wine64     = "/usr/lib/wine/wine64"
	wineserver = "/usr/lib/wine/wineserver64"
)

//go:embed build.sh src wine.go
var sources embed.FS

// Node is one prefix. While it runs, it has a Wine session.
type Node struct {
	dir  string
	env  []string
	opts options

	mu          sync.Mutex
	session     *child.Process
	mountPoints map[string]int // created for views on the node's disk, with the number of views that use them
}

// Option configures a node.
type Option func(*options)

type options struct {
	containersFeature bool
	surrogateIdle     time.Duration
	debug             string
}

// WithoutContainersFeature omits CCG's registry key, which Windows has only with the Containers feature.
func WithoutContainersFeature() Option { return func(o *options) { o.containersFeature = false } }

// WithSurrogateIdle sets the idle time after which a surrogate exits, by default a minute.
func WithSurrogateIdle(d time.Duration) Option { return func(o *options) { o.surrogateIdle = d } }

// WithDebug sets Wine's debug channels, such as trace+eventlog. Their output is in the programs' standard error.
func WithDebug(channels string) Option { return func(o *options) { o.debug = channels } }

// New creates a node in dir, which must not exist, from a cached template. The node runs until Stop or until this
// process ends.
func New(ctx context.Context, dir string, with ...Option) (*Node, error) {
	opts := options{containersFeature: true, surrogateIdle: time.Minute, debug: "-all"}
	for _, option := range with {
		option(&opts)
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	template, err := Template(ctx, os.Stderr)
	if err != nil {
		return nil, err
	}
	if _, err := os.Lstat(dir); err == nil {
		return nil, fmt.Errorf("%s exists; a new node needs a new directory", dir)
	}
	if err := copyTemplate(template, dir); err != nil {
		return nil, fmt.Errorf("copying the prefix's template: %w", err)
	}
	node, err := open(dir, opts)
	if err != nil {
		return nil, err
	}
	if err := node.firstProgram(ctx); err != nil {
		node.Stop()
		return nil, err
	}
	return node, nil
}

// copyTemplate copies a prefix. Windows' own large files, 700 MB of programs that are replaced but never written to, are hard
// links where the file system allows them.
func copyTemplate(template, dir string) error {
	return filepath.WalkDir(template, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(template, path)
		if err != nil {
			return err
		}
		to := filepath.Join(dir, name)
		switch {
		case e.IsDir():
			return os.Mkdir(to, info.Mode().Perm())
		case e.Type() == fs.ModeSymlink:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			return os.Symlink(target, to)
		case strings.HasPrefix(name, "drive_c/windows/") && info.Size() > 64<<10 && os.Link(path, to) == nil:
			return nil
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(to, content, info.Mode().Perm())
	})
}

// Boot starts a node again that was stopped or killed. One that runs is left as it is.
func (n *Node) Boot(ctx context.Context) error {
	n.mu.Lock()
	select {
	case <-n.session.Done:
	default:
		n.mu.Unlock()
		return nil
	}
	err := errors.Join(n.clearMountPoints(), n.startSession())
	n.mu.Unlock()
	if err != nil {
		return err
	}
	return n.firstProgram(ctx)
}

// Template returns the directory from which nodes are copied. It is built once for each version of Wine and of the
// lab's sources, in about 15 s.
func Template(ctx context.Context, progress *os.File) (string, error) {
	version, err := exec.CommandContext(ctx, wine64, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("%s does not run; install it with hack/apt.sh: %w", wine64, err)
	}
	parts := [][]byte{version}
	entries, err := sources.ReadDir("src")
	if err != nil {
		return "", err
	}
	names := []string{"build.sh", "wine.go"}
	for _, e := range entries {
		names = append(names, "src/"+e.Name())
	}
	for _, name := range names {
		content, err := sources.ReadFile(name)
		if err != nil {
			return "", err
		}
		parts = append(parts, []byte(name), content)
	}
	return cache.Get(ctx, "wine-"+cache.Key(parts...), progress, func(path string) error {
		fmt.Fprintln(progress, "building a Wine prefix (once, takes some seconds)")
		return buildTemplate(ctx, path)
	})
}

func buildTemplate(ctx context.Context, prefix string) error {
	work, err := os.MkdirTemp("", "lab-wine-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := os.CopyFS(work, sources); err != nil {
		return err
	}
	built := filepath.Join(work, "out")
	if out, err := exec.CommandContext(ctx, "sh", filepath.Join(work, "build.sh"), built).CombinedOutput(); err != nil {
		return fmt.Errorf("building the prefix's DLLs: %w\n%s", err, out)
	}

	if err := os.Mkdir(prefix, 0o700); err != nil {
		return err
	}
	node, err := open(prefix, options{debug: "-all"})
	if err != nil {
		return err
	}
	defer node.Stop()
	if out, err := node.Run(ctx, "wineboot", "--init"); err != nil {
		return fmt.Errorf("wineboot: %w\n%s", err, out)
	}
	for file, to := range map[string]string{
		"bcryptprimitives.dll": `C:\windows\system32\bcryptprimitives.dll`,
		"ccgplugins.dll":       `C:\windows\system32\ccgplugins.dll`,
		// Wine's path of the surrogate for all classes, including 64-bit ones.
		"dllhost.exe": `C:\windows\syswow64\dllhost.exe`,
	} {
		if err := node.Install(filepath.Join(built, file), to); err != nil {
			return err
		}
	}
	if out, err := node.Run(ctx, "regsvr32", "/s", `C:\windows\system32\ccgplugins.dll`); err != nil {
		return fmt.Errorf("registering the proxy and stub: %w\n%s", err, out)
	}
	// Without links to the home directory of the user who builds the template.
	return unlinkProfile(node.Path(`C:\users`))
}

// unlinkProfile replaces wineboot's links from a profile's folders to the Unix user's folders with directories.
func unlinkProfile(users string) error {
	return filepath.WalkDir(users, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.Type() != os.ModeSymlink {
			return err
		}
		if err := os.Remove(path); err != nil {
			return err
		}
		return os.Mkdir(path, 0o700)
	})
}

// open starts a session on the prefix. Its server continues after the last program has ended, so that COM's services
// and the registry's DACLs remain.
func open(dir string, opts options) (*Node, error) {
	n := &Node{dir: dir, opts: opts, mountPoints: map[string]int{}, env: []string{
		"WINEPREFIX=" + dir,
		"WINEDEBUG=" + opts.debug,
		"WINELOADER=" + wine64,
		"WINESERVER=" + wineserver,
		// Not needed. Without this, Wine prompts to download them.
		"WINEDLLOVERRIDES=mscoree,mshtml=",
		"HOME=" + dir,
		"PATH=/usr/bin:/bin",
		// Passes file names and arguments to Windows programs as Unicode.
		"LC_ALL=C.UTF-8",
		fmt.Sprintf("SURROGATE_IDLE_MS=%d", opts.surrogateIdle.Milliseconds()),
	}}
	return n, n.startSession()
}

func (n *Node) startSession() error {
	server := exec.Command(wineserver, "--foreground", "--persistent")
	server.Env = n.env
	// On SIGINT the server kills every process of the session, writes the registry and exits.
	session, err := child.Start(server, syscall.SIGINT)
	if err != nil {
		return fmt.Errorf("starting wineserver: %w", err)
	}
	n.session = session
	return nil
}

// firstProgram runs a first program, which starts Windows' services, and enables the Containers feature.
func (n *Node) firstProgram(ctx context.Context) error {
	const ccg = `HKLM\SYSTEM\CurrentControlSet\Control\CCG\COMClasses`
	args := []string{"query", `HKLM\SYSTEM\CurrentControlSet\Control`}
	if n.opts.containersFeature {
		args = []string{"add", ccg, "/f"}
	}
	if out, err := n.Run(ctx, "reg", args...); err != nil {
		return fmt.Errorf("the node's first program, reg %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// Stop ends the session and every process in it, in order. It does nothing if the node does not run.
func (n *Node) Stop() {
	n.mu.Lock()
	defer n.mu.Unlock()
	stopServer(n.session, n.env)
}

func stopServer(server *child.Process, env []string) {
	defer removeServerDir(serverDir(server))
	kill := exec.Command(wineserver, "--kill")
	kill.Env = env
	// It fails only if the session has already ended.
	_ = kill.Run()
	select {
	case <-server.Done:
	case <-time.After(10 * time.Second):
		_ = server.Signal(syscall.SIGKILL)
		<-server.Done
	}
}

// Kill kills every process, like a power failure. Changes of the registry since the last write are lost: the server
// writes it every 30 s.
func (n *Node) Kill() {
	n.mu.Lock()
	defer n.mu.Unlock()
	defer removeServerDir(serverDir(n.session))
	_ = n.session.Signal(syscall.SIGKILL)
	<-n.session.Done
	killProcesses(n.dir)
}

// serverDir is the directory of a wineserver's socket, below /tmp. It is the server's working directory, and "" until
// the server has created it.
func serverDir(server *child.Process) string {
	dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", server.PID()))
	if err != nil || !strings.HasPrefix(filepath.Base(dir), "server-") {
		return ""
	}
	return dir
}

// removeServerDir removes the files of a server that has ended.
func removeServerDir(dir string) {
	if dir != "" {
		_ = os.RemoveAll(dir)
		_ = os.Remove(filepath.Dir(dir)) // fails if another server uses it
	}
}

// killProcesses kills the processes of a prefix. Its server must have ended, so that no new processes start.
func killProcesses(prefix string) {
	for range 100 {
		pids := processes(prefix)
		if len(pids) == 0 {
			return
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// processes returns the Unix ids of the processes of a prefix.
func processes(prefix string) []int {
	files, _ := filepath.Glob("/proc/[0-9]*/environ")
	var pids []int
	for _, file := range files {
		// A process that ends meanwhile is skipped. A zombie has no environment.
		environ, _ := os.ReadFile(file)
		if !bytes.Contains(append([]byte{0}, environ...), []byte("\x00WINEPREFIX="+prefix+"\x00")) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Path is the Unix path of an absolute Windows path on the node's drive C.
func (n *Node) Path(winPath string) string {
	rest, ok := strings.CutPrefix(winPath, `C:\`)
	if !ok {
		panic(fmt.Sprintf(`%s does not begin with C:\`, winPath))
	}
	return filepath.Join(n.dir, "drive_c", filepath.FromSlash(strings.ReplaceAll(rest, `\`, "/")))
}

// Install copies a file to the node. It creates missing directories.
func (n *Node) Install(hostPath, winPath string) error {
	content, err := os.ReadFile(hostPath)
	if err != nil {
		return err
	}
	to := n.Path(winPath)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	// A new file, so that a loaded one keeps its content.
	if err := os.Remove(to); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.WriteFile(to, content, 0o755)
}

// Command returns a command for a Windows program, given by a Windows path or a name in Windows' search path. It has
// only the node's environment, nothing of this process's; the caller can add to Env. A surrogate that the program's
// activation starts inherits Env, standard output and standard error. The outputs must therefore be files: a pipe would
// remain open, and Wait would block, until the surrogate exits. Killing the command kills the Windows program.
func (n *Node) Command(ctx context.Context, exe string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, wine64, append([]string{exe}, args...)...)
	cmd.Env = append([]string(nil), n.env...)
	cmd.Dir = n.dir
	return cmd
}

// Run runs a program and returns the standard output and error of it and its children. It retries if Wine could not
// start the program.
func (n *Node) Run(ctx context.Context, exe string, args ...string) (out []byte, err error) {
	for range startTries {
		if out, err = output(n.Command(ctx, exe, args...)); err == nil || !NeverStarted(out) {
			break
		}
	}
	return out, err
}

const startTries = 3

// NeverStarted reports whether the output of a failed program is a message of Wine that it could not start the program.
// Under Wine 8 about one start in 1,500 fails: a system DLL fails to initialize, or the loader treats the program as a
// document. Some failed starts have no output at all.
func NeverStarted(out []byte) bool {
	return bytes.Contains(out, []byte("DLL initialization failed")) ||
		bytes.Contains(out, []byte("ShellExecuteEx failed: Internal error"))
}

// output uses a file, not a pipe: see Command.
func output(cmd *exec.Cmd) ([]byte, error) {
	out, err := os.CreateTemp("", "lab-wine-output-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	runErr := cmd.Run()
	content, err := os.ReadFile(out.Name())
	return content, errors.Join(runErr, err)
}
