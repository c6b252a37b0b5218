// Package controlplane runs a real Kubernetes control plane as one process on loopback, and creates objects in it for
// tests. The control plane has no nodes and runs no pods.
package controlplane

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/ccgrkc/ccgrkc/lab/env/tools"
	"github.com/ccgrkc/ccgrkc/lab/internal/cache"
	"github.com/ccgrkc/ccgrkc/lab/internal/child"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// ControlPlane is a control plane with a state directory. It can be stopped and restarted.
type ControlPlane struct {
	Kubeconfig string // path; cluster-admin
	Server     string // https://127.0.0.1:<port>; Restart does not change it
	CA         []byte // PEM; issuer of the API server's certificate

	dir     string
	program string
	client  kubernetes.Interface
	process *child.Process
}

// Start builds the control plane if necessary and starts it with the state in dir, which it creates if missing. It
// returns when the API server is ready and service accounts work. The control plane is killed when this process exits.
func Start(ctx context.Context, dir string) (*ControlPlane, error) {
	program, err := tools.Path(ctx, tools.ControlPlane, os.Stderr)
	if err != nil {
		return nil, err
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := prepare(ctx, dir, program); err != nil {
		return nil, err
	}
	cp := &ControlPlane{dir: dir, program: program}
	if err := cp.start(ctx, "127.0.0.1:0"); err != nil {
		return nil, err
	}
	config, err := clientcmd.BuildConfigFromFlags("", cp.Kubeconfig)
	if err != nil {
		cp.Kill()
		return nil, err
	}
	config.QPS = -1 // tests wait for the server, not for a rate limit
	cp.CA = config.CAData
	cp.client, err = kubernetes.NewForConfig(config)
	if err != nil {
		cp.Kill()
		return nil, err
	}
	return cp, nil
}

// prepare copies the snapshot into dir, unless dir already contains state. The snapshot is the state of a control plane
// that has started once: its CAs, its keys, and etcd's data with all objects of a new cluster. Files that depend on the
// address or expire soon are created at each start.
func prepare(ctx context.Context, dir, program string) error {
	snapshot, err := Snapshot(ctx, program, os.Stderr)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	unfinished := dir + ".unfinished"
	defer os.RemoveAll(unfinished)
	if out, err := exec.CommandContext(ctx, "cp", "-a", "--reflink=auto", snapshot, unfinished).CombinedOutput(); err != nil {
		return fmt.Errorf("copying the control plane's snapshot: %w\n%s", err, out)
	}
	// The rename fails if dir already contains state.
	if err := os.Rename(unfinished, dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// Snapshot returns the directory that prepare copies. It is created once for each control plane program and then
// cached.
func Snapshot(ctx context.Context, program string, progress io.Writer) (string, error) {
	return cache.Get(ctx, "snapshot-of-"+filepath.Base(program), progress, func(path string) error {
		if err := os.Mkdir(path, 0o700); err != nil {
			return err
		}
		cp := &ControlPlane{dir: path, program: program}
		if err := cp.start(ctx, "127.0.0.1:0"); err != nil {
			return err
		}
		cp.Stop()
		entries, err := os.ReadDir(path)
		if err != nil {
			return err
		}
		for _, e := range entries {
			switch name := e.Name(); {
			case name == "etcd", strings.HasPrefix(name, "ca."), strings.HasPrefix(name, "front-proxy-ca."), strings.HasPrefix(name, "service-account."):
			default:
				if err := os.RemoveAll(filepath.Join(path, name)); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// Client returns a client with cluster-admin permissions. It remains valid after a Restart.
func (cp *ControlPlane) Client() kubernetes.Interface { return cp.client }

// LogFile returns the path of the components' log.
func (cp *ControlPlane) LogFile() string { return filepath.Join(cp.dir, "control-plane.log") }

// AuditLog returns the path of the API server's audit log. Each line is a JSON event. The log contains the requests of
// all ServiceAccounts that are not in kube-system.
func (cp *ControlPlane) AuditLog() string { return filepath.Join(cp.dir, "audit.log") }

// PID returns the process ID of the control plane, even after it has stopped.
func (cp *ControlPlane) PID() int { return cp.process.PID() }

// Stop stops the process with SIGTERM, and with SIGKILL after 5 s. It resumes a paused process first.
func (cp *ControlPlane) Stop() {
	// Signals fail only if the process has already ended.
	_ = cp.process.Signal(syscall.SIGTERM)
	_ = cp.process.Signal(syscall.SIGCONT)
	select {
	case <-cp.process.Done:
	case <-time.After(5 * time.Second):
		cp.Kill()
	}
}

// Kill kills the process.
func (cp *ControlPlane) Kill() {
	_ = cp.process.Signal(syscall.SIGKILL)
	<-cp.process.Done
}

// Pause suspends the process. Its port still accepts connections, but there are no responses.
func (cp *ControlPlane) Pause() error { return cp.process.Signal(syscall.SIGSTOP) }

// Resume reverses Pause.
func (cp *ControlPlane) Resume() error { return cp.process.Signal(syscall.SIGCONT) }

// Restart stops the control plane if it runs, and starts it again with the same address, CAs, service account keys and
// objects.
func (cp *ControlPlane) Restart(ctx context.Context) error {
	cp.Stop()
	server, err := url.Parse(cp.Server)
	if err != nil {
		return err
	}
	return cp.start(ctx, server.Host)
}

func (cp *ControlPlane) start(ctx context.Context, listen string) error {
	stderr, err := os.Create(filepath.Join(cp.dir, "stderr.txt"))
	if err != nil {
		return err
	}
	defer stderr.Close()
	answer, stdout, err := os.Pipe()
	if err != nil {
		return err
	}
	defer answer.Close()
	cmd := exec.Command(cp.program, "--dir", cp.dir, "--listen", listen)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + cp.dir, "TMPDIR=" + os.TempDir()}
	process, err := child.Start(cmd, syscall.SIGKILL)
	stdout.Close() // so that the read end gets EOF when the process exits
	if err != nil {
		return fmt.Errorf("starting the control plane: %w", err)
	}
	cp.process = process

	stop := context.AfterFunc(ctx, func() { _ = process.Signal(syscall.SIGKILL) })
	defer stop()
	line, err := bufio.NewReader(answer).ReadBytes('\n')
	if err != nil {
		cp.Kill()
		output, _ := os.ReadFile(stderr.Name())
		err = errors.Join(ctx.Err(), noEOF(err))
		return fmt.Errorf("the control plane did not start: %s(log: %s): %w", output, cp.LogFile(), err)
	}
	var ready struct{ Kubeconfig, Server string }
	if err := json.Unmarshal(line, &ready); err != nil {
		cp.Kill()
		return fmt.Errorf("the control plane printed %q: %w", line, err)
	}
	cp.Kubeconfig, cp.Server = ready.Kubeconfig, ready.Server
	return nil
}

// noEOF replaces io.EOF, which means that the process ended.
func noEOF(err error) error {
	if err == io.EOF {
		return errors.New("the process ended")
	}
	return err
}
