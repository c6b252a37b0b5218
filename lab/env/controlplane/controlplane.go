// Package controlplane runs a real Kubernetes control plane, one process on loopback, and makes what the product's tests
// need in it. It is no cluster: it has no nodes and runs no pods.
package controlplane

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/ccgrkc/ccgrkc/lab/env/tools"
	"github.com/ccgrkc/ccgrkc/lab/internal/child"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// ControlPlane is a control plane on a state directory, running or not.
type ControlPlane struct {
	Kubeconfig string // path; cluster-admin
	Server     string // https://127.0.0.1:<port>, the same after a Restart
	CA         []byte // PEM; what the server's certificate is signed by

	dir     string
	program string
	client  kubernetes.Interface
	process *child.Process
}

// Start builds the control plane if need be and starts it on the state in dir, which is made if it is missing. It
// returns when the API server is ready and service accounts work. The process dies with this one.
func Start(ctx context.Context, dir string) (*ControlPlane, error) {
	program, err := tools.Path(ctx, tools.ControlPlane, os.Stderr)
	if err != nil {
		return nil, err
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
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

// Client is a client with all rights. It stays good over a Restart.
func (cp *ControlPlane) Client() kubernetes.Interface { return cp.client }

// LogFile is the path of the components' log.
func (cp *ControlPlane) LogFile() string { return filepath.Join(cp.dir, "control-plane.log") }

// AuditLog is the path of the API server's audit log: one JSON event a line, for each request of a ServiceAccount that is not
// in kube-system.
func (cp *ControlPlane) AuditLog() string { return filepath.Join(cp.dir, "audit.log") }

// PID is the id of the process that runs, or ran last.
func (cp *ControlPlane) PID() int { return cp.process.PID() }

// Stop ends the process as an administrator would: SIGTERM, and SIGKILL when that takes 5 s. A paused one is resumed.
func (cp *ControlPlane) Stop() {
	// A process that has ended already is what is wanted, so the signals' errors say nothing.
	_ = cp.process.Signal(syscall.SIGTERM)
	_ = cp.process.Signal(syscall.SIGCONT)
	select {
	case <-cp.process.Done:
	case <-time.After(5 * time.Second):
		cp.Kill()
	}
}

// Kill ends the process at once.
func (cp *ControlPlane) Kill() {
	_ = cp.process.Signal(syscall.SIGKILL)
	<-cp.process.Done
}

// Pause stops the process as it is: its port accepts connections and nobody answers.
func (cp *ControlPlane) Pause() error { return cp.process.Signal(syscall.SIGSTOP) }

// Resume ends a Pause.
func (cp *ControlPlane) Resume() error { return cp.process.Signal(syscall.SIGCONT) }

// Restart starts the control plane again at the same address, with the same certificate authority, service account keys
// and objects. One that still runs is stopped first.
func (cp *ControlPlane) Restart(ctx context.Context) error {
	cp.Stop()
	server, err := url.Parse(cp.Server)
	if err != nil {
		return err
	}
	return cp.start(ctx, server.Host)
}

func (cp *ControlPlane) start(ctx context.Context, listen string) error {
	complaints, err := os.Create(filepath.Join(cp.dir, "stderr.txt"))
	if err != nil {
		return err
	}
	defer complaints.Close()
	answer, stdout, err := os.Pipe()
	if err != nil {
		return err
	}
	defer answer.Close()
	cmd := exec.Command(cp.program, "--dir", cp.dir, "--listen", listen)
	cmd.Stdout, cmd.Stderr = stdout, complaints
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + cp.dir, "TMPDIR=" + os.TempDir()}
	process, err := child.Start(cmd, syscall.SIGKILL)
	stdout.Close() // so that the end of the process is the end of the answer
	if err != nil {
		return fmt.Errorf("starting the control plane: %w", err)
	}
	cp.process = process

	stop := context.AfterFunc(ctx, func() { _ = process.Signal(syscall.SIGKILL) })
	defer stop()
	line, err := bufio.NewReader(answer).ReadBytes('\n')
	if err != nil {
		cp.Kill()
		said, _ := os.ReadFile(complaints.Name())
		return fmt.Errorf("the control plane did not start: %s(its log: %s): %w", said, cp.LogFile(), errors.Join(ctx.Err(), noEOF(err)))
	}
	var ready struct{ Kubeconfig, Server string }
	if err := json.Unmarshal(line, &ready); err != nil {
		cp.Kill()
		return fmt.Errorf("the control plane said %q: %w", line, err)
	}
	cp.Kubeconfig, cp.Server = ready.Kubeconfig, ready.Server
	return nil
}

// noEOF replaces io.EOF, which is how the end of the process shows, by words.
func noEOF(err error) error {
	if err == io.EOF {
		return errors.New("the process ended")
	}
	return err
}
