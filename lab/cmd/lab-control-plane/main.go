// Command lab-control-plane is a Kubernetes control plane in one process: etcd, kube-apiserver, kube-controller-manager
// and kube-scheduler, unchanged, from their Go modules. It is for tests on one machine: one member, loopback only, no
// fsync. All its state is in one directory. After a kill it can start again with the same directory and address; the
// certificate authority, the service account keys and the objects are kept.
//
// When the cluster is ready, it prints one line of JSON: {"kubeconfig": "<file>", "server": "<URL>"}. The components
// log to control-plane.log in the directory. audit.log lists the requests of pods.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

func main() {
	dir := flag.String("dir", "", "directory of the cluster's state, created if missing (required)")
	listen := flag.String("listen", "127.0.0.1:0", "IP address and port of the API server; 0 selects a free port")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// The components log to file descriptor 2, so this program writes its own errors to a copy of it.
	stderr, err := duplicate(os.Stderr)
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab-control-plane:", err)
		os.Exit(1)
	}
	if err := run(ctx, *dir, *listen); err != nil {
		fmt.Fprintln(stderr, "lab-control-plane:", err)
		os.Exit(1)
	}
}

// run returns nil when ctx ends. It does not wait for the components: their data is in the kernel's page cache, where
// the next process reads it, as after a kill.
func run(ctx context.Context, dir, listen string) error {
	if dir == "" {
		return fmt.Errorf("no state directory; set --dir")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	// etcd's sockets have relative paths, because an absolute one can exceed the 108 bytes of a Unix socket's address.
	if err := os.Chdir(dir); err != nil {
		return err
	}
	if err := logTo("control-plane.log"); err != nil {
		return err
	}

	if err := os.WriteFile("audit-policy.yaml", []byte(auditPolicy), 0o600); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return fmt.Errorf("API server's address: %w", err)
	}
	address := listener.Addr().(*net.TCPAddr)
	server := "https://" + address.String()
	identities, err := issueIdentities(dir, server, address.IP)
	if err != nil {
		return err
	}

	ended := make(chan error, 4)
	if err := startEtcd(ended); err != nil {
		return err
	}
	if err := startAPIServer(ctx, listener, ended); err != nil {
		return err
	}
	client, err := identities.admin.client()
	if err != nil {
		return err
	}
	if err := waitReady(ctx, client, ended); err != nil {
		return err
	}
	if err := forgetServiceAccount(ctx, client); err != nil {
		return err
	}
	if err := startControllerManager(ctx, identities.controllerManager.kubeconfig, ended); err != nil {
		return err
	}
	if err := startScheduler(ctx, identities.scheduler.kubeconfig, ended); err != nil {
		return err
	}
	if err := untilControllersWork(ctx, client, ended); err != nil {
		return err
	}

	ready := map[string]string{"kubeconfig": identities.admin.kubeconfig, "server": server}
	if err := json.NewEncoder(os.Stdout).Encode(ready); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-ended:
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
}

// auditPolicy records the requests of all ServiceAccounts outside the control plane, without bodies. Tests read from it
// which requests a chart's pods send, and how often.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  userGroups: ["system:serviceaccounts:kube-system"]
- level: Metadata
  userGroups: ["system:serviceaccounts"]
- level: None
`

func duplicate(f *os.File) (*os.File, error) {
	fd, err := syscall.Dup(int(f.Fd()))
	if err != nil {
		return nil, fmt.Errorf("duplicating %s: %w", f.Name(), err)
	}
	syscall.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// logTo redirects file descriptor 2 to the log: klog and etcd write to it, independent of os.Stderr.
func logTo(name string) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := syscall.Dup3(int(f.Fd()), 2, 0); err != nil {
		return fmt.Errorf("redirecting the log to %s: %w", name, err)
	}
	return nil
}
