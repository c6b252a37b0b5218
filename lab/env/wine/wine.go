// Package wine makes a Wine prefix a "Windows node": a machine with its own registry, file system and processes on which
// the product's Windows binaries run, with what Go and COM need there. It is not Windows: DACLs on files and the
// permissions of an AppID are kept at best and never enforced, and nobody can be impersonated.
package wine

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
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

// Debian's wrappers choose between 32 and 64 bits, and let the server linger or not; the lab needs to know.
const (
	wine64     = "/usr/lib/wine/wine64"
	wineserver = "/usr/lib/wine/wineserver64"
)

//go:embed build.sh src
var sources embed.FS

// Node is one prefix, with a session while it runs.
type Node struct {
	dir  string
	env  []string
	opts options

	mu          sync.Mutex
	session     *child.Process
	mountPoints map[string]int // made for views on the node's disk, with the number of views that need them; see view.go
}

// Option changes how a node is made.
type Option func(*options)

type options struct {
	containersFeature bool
	surrogateIdle     time.Duration
	debug             string
}

// WithoutContainersFeature leaves out the registry key of CCG, which Windows has only with the Containers feature.
func WithoutContainersFeature() Option { return func(o *options) { o.containersFeature = false } }

// WithSurrogateIdle makes surrogates end after this time without use, instead of a minute.
func WithSurrogateIdle(d time.Duration) Option { return func(o *options) { o.surrogateIdle = d } }

// WithDebug sets Wine's debug channels, such as trace+eventlog. What they say goes to the programs' standard error.
func WithDebug(channels string) Option { return func(o *options) { o.debug = channels } }

// New makes a node in dir, which must not exist, from a template that is made once and kept in the user's cache. The node
// runs until Stop, and dies with this process.
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
		return nil, fmt.Errorf("%s exists; a node is made anew", dir)
	}
	if out, err := exec.CommandContext(ctx, "cp", "-a", "--reflink=auto", template, dir).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("copying the prefix's template: %w\n%s", err, out)
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

// Template returns the directory that nodes are copied from. It is made once for each version of Wine and of the lab's
// sources, in about 15 s.
func Template(ctx context.Context, progress *os.File) (string, error) {
	version, err := exec.CommandContext(ctx, wine64, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("%s does not run; hack/apt.sh installs it: %w", wine64, err)
	}
	parts := [][]byte{version}
	entries, err := sources.ReadDir("src")
	if err != nil {
		return "", err
	}
	names := []string{"build.sh"}
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
		return makeTemplate(ctx, path)
	})
}

func makeTemplate(ctx context.Context, prefix string) error {
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
		return fmt.Errorf("building what a prefix needs: %w\n%s", err, out)
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
		// Where Wine looks for the surrogate of every class, 64-bit ones too.
		"dllhost.exe": `C:\windows\syswow64\dllhost.exe`,
	} {
		if err := node.Install(filepath.Join(built, file), to); err != nil {
			return err
		}
	}
	if out, err := node.Run(ctx, "regsvr32", "/s", `C:\windows\system32\ccgplugins.dll`); err != nil {
		return fmt.Errorf("registering the proxy and stub: %w\n%s", err, out)
	}
	// Links into the home of whoever made the template are nobody else's business.
	return unlinkProfile(node.Path(`C:\users`))
}

// unlinkProfile replaces the links that wineboot makes from a profile's folders to the Unix user's by directories.
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

// open starts a session on the prefix: a server of its own that stays when the last program has ended, so that COM's
// services and the registry's DACLs stay too.
func open(dir string, opts options) (*Node, error) {
	n := &Node{dir: dir, opts: opts, mountPoints: map[string]int{}, env: []string{
		"WINEPREFIX=" + dir,
		"WINEDEBUG=" + opts.debug,
		"WINELOADER=" + wine64,
		"WINESERVER=" + wineserver,
		// Not needed, and Wine would ask to download them.
		"WINEDLLOVERRIDES=mscoree,mshtml=",
		"HOME=" + dir,
		"PATH=/usr/bin:/bin",
		// File names and arguments are Unicode on their way to Windows programs.
		"LC_ALL=C.UTF-8",
		fmt.Sprintf("SURROGATE_IDLE_MS=%d", opts.surrogateIdle.Milliseconds()),
	}}
	return n, n.startSession()
}

func (n *Node) startSession() error {
	server := exec.Command(wineserver, "--foreground", "--persistent")
	server.Env = n.env
	// On SIGINT the server ends every process of the session, writes the registry and exits.
	session, err := child.Start(server, syscall.SIGINT)
	if err != nil {
		return fmt.Errorf("starting wineserver: %w", err)
	}
	n.session = session
	return nil
}

// firstProgram runs a program, with which Windows' services start, and turns the Containers feature on.
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

// Stop ends the session and every process in it, in order. A node that does not run stays so.
func (n *Node) Stop() {
	n.mu.Lock()
	defer n.mu.Unlock()
	stopServer(n.session, n.env)
}

func stopServer(server *child.Process, env []string) {
	defer removeServerDir(serverDir(server))
	kill := exec.Command(wineserver, "--kill")
	kill.Env = env
	// It fails when the session has ended already, which is what is wanted.
	_ = kill.Run()
	select {
	case <-server.Done:
	case <-time.After(10 * time.Second):
		_ = server.Signal(syscall.SIGKILL)
		<-server.Done
	}
}

// Kill ends every process at once, as a power failure does. What the registry had not written to the disk is lost: the
// server writes every 30 s.
func (n *Node) Kill() {
	n.mu.Lock()
	defer n.mu.Unlock()
	defer removeServerDir(serverDir(n.session))
	_ = n.session.Signal(syscall.SIGKILL)
	<-n.session.Done
	killProcesses(n.dir)
}

// serverDir is where a wineserver keeps its socket, below /tmp: its working directory, once it has made it; "" before.
func serverDir(server *child.Process) string {
	dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", server.PID()))
	if err != nil || !strings.HasPrefix(filepath.Base(dir), "server-") {
		return ""
	}
	return dir
}

// removeServerDir removes what Wine leaves of a server that has ended.
func removeServerDir(dir string) {
	if dir != "" {
		_ = os.RemoveAll(dir)
		_ = os.Remove(filepath.Dir(dir)) // unless another server is in it
	}
}

// killProcesses ends the processes of a prefix whose server is dead, so that no new ones come.
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

// processes are the Unix ids of the processes of a prefix.
func processes(prefix string) []int {
	files, _ := filepath.Glob("/proc/[0-9]*/environ")
	var pids []int
	for _, file := range files {
		// A process that ends meanwhile is none, and one that has ended and was not waited for has no environment.
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

// Install copies a file to the node, where the directory is made if it is missing.
func (n *Node) Install(hostPath, winPath string) error {
	content, err := os.ReadFile(hostPath)
	if err != nil {
		return err
	}
	to := n.Path(winPath)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	// A new file, so that one that is loaded keeps its content.
	if err := os.Remove(to); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.WriteFile(to, content, 0o755)
}

// Command is a program of the node: a name that Windows finds by itself, or a Windows path. Its environment is the
// node's and nothing of this process's; the caller may add to Env, and a surrogate that the program's activation starts
// inherits it, as it does standard output and error in Wine. So these must be files: a pipe stays open for as long as
// the surrogate lives, and Wait with it. Killing the command kills the Windows program.
func (n *Node) Command(ctx context.Context, exe string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, wine64, append([]string{exe}, args...)...)
	cmd.Env = append([]string(nil), n.env...)
	cmd.Dir = n.dir
	return cmd
}

// Run runs a program to its end and returns what it, and what it started, wrote to standard output and error. One that Wine
// says it could not start is started again.
func (n *Node) Run(ctx context.Context, exe string, args ...string) (out []byte, err error) {
	for range startTries {
		if out, err = output(n.Command(ctx, exe, args...)); err == nil || !NeverStarted(out) {
			break
		}
	}
	return out, err
}

const startTries = 3

// NeverStarted tells whether Wine says, in what a failed program should have written, that it could not start it. Under Wine 8
// that happens to about one program in 1,500: a system DLL fails to initialize, or the loader takes the program for a
// document. Others end with no output at all.
func NeverStarted(out []byte) bool {
	return bytes.Contains(out, []byte("DLL initialization failed")) || bytes.Contains(out, []byte("ShellExecuteEx failed: Internal error"))
}

// output uses a file and not a pipe, for the reason that Command names.
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
