// Command lab keeps the standard lab running, so that charts and commands can be tried by hand. lab up starts it in the
// background and prints how to use it. lab down stops it.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/ccgrkc/ccgrkc/lab/env/cluster"
	"github.com/ccgrkc/ccgrkc/lab/env/tools"
)

const usage = `lab runs a cluster for gMSAs on this machine: a real control plane, three Windows nodes under Wine, one
Linux node and two Active Directory domains.

  lab up      start the lab in the background, if it is not running, and print how to use it
  lab down    stop the lab and remove its files
`

func main() {
	if len(os.Args) != 2 {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	commands := map[string]func(*state) error{"up": up, "down": down, "serve": serve}
	run, known := commands[os.Args[1]]
	if !known {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	s, err := newState()
	if err == nil {
		err = run(s)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

// state is the directory that the running lab and the commands share.
type state struct {
	dir string
}

func newState() (*state, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(base, "ccgrkc", "lab")
	return &state{dir}, os.MkdirAll(dir, 0o700)
}

func (s *state) file(name string) string { return filepath.Join(s.dir, name) }

// facts is what up prints and down needs. The file facts.json exists while the lab is ready.
type facts struct {
	PID        int
	Kubeconfig string
	Programs   string // directory with helm, helm3 and kubectl
	Domains    []domain
}

type domain struct {
	DNSName, DC, Address, CA   string
	Reader, PasswordFile, GMSA string
}

// running returns the facts of the running lab, or nil. A lab holds the lock until it exits.
func (s *state) running() (*facts, error) {
	lock, err := s.lock()
	if err == nil {
		return nil, lock.Close()
	}
	if !errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, err
	}
	content, err := os.ReadFile(s.file("facts.json"))
	if err != nil {
		return nil, fmt.Errorf("a lab is starting or does not respond; its log is %s: %w", s.file("log"), err)
	}
	var f facts
	return &f, json.Unmarshal(content, &f)
}

func (s *state) lock() (*os.File, error) {
	f, err := os.OpenFile(s.file("lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func up(s *state) error {
	f, err := s.running()
	if err != nil {
		return err
	}
	if f == nil {
		if f, err = s.start(); err != nil {
			return err
		}
	} else {
		fmt.Println("# The lab is already running.")
	}
	fmt.Printf(`export KUBECONFIG=%s
export PATH=%s:$PATH
# This directory contains helm (4), helm3 and kubectl. The nodes pull the charts' image from the lab's own registry, by
# its public name. Stop the lab with: make lab-down
#
# Active Directory (Samba). The DNS server of the first domain resolves both domains. Pods that use a gMSA use it.
`, f.Kubeconfig, f.Programs)
	for _, d := range f.Domains {
		fmt.Printf(`# %s: domain controller %s (DNS, Kerberos, LDAP on %s), CA %s
#   %s can read the password of the gMSA %s. The password of %[5]s is in %[7]s.
`, d.DNSName, d.DC, d.Address, d.CA, d.Reader, d.GMSA, d.PasswordFile)
	}
	if len(f.Domains) > 0 {
		fmt.Printf("# Use it with: gmsactl --dns-server %s\n", f.Domains[0].Address)
	}
	return nil
}

// start runs this program again, in a new session, and waits until the lab is ready.
func (s *state) start() (*facts, error) {
	if err := os.Remove(s.file("facts.json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	log, err := os.Create(s.file("log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	fmt.Fprintln(os.Stderr, "starting the lab ...")
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, "serve")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case err := <-ended:
			content, _ := os.ReadFile(s.file("log"))
			return nil, fmt.Errorf("the lab did not start: %w\n%s", err, bytes.TrimSpace(content))
		case <-time.After(100 * time.Millisecond):
		}
		if content, err := os.ReadFile(s.file("facts.json")); err == nil {
			var f facts
			return &f, json.Unmarshal(content, &f)
		}
	}
}

// serve runs the lab until SIGTERM.
func serve(s *state) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	lock, err := s.lock()
	if err != nil {
		return fmt.Errorf("a lab is already running: %w", err)
	}
	defer lock.Close()
	dir := s.file("cluster")
	if err := os.RemoveAll(dir); err != nil { // left by a lab that was killed
		return err
	}
	c, err := cluster.StartStandard(ctx, dir)
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	defer c.Stop()

	if err := c.StartAD(ctx); err != nil {
		return err
	}
	var domains []domain
	for _, d := range c.AD {
		file := filepath.Join(dir, "ad", d.Reader.Username+".txt")
		if err := os.WriteFile(file, d.Reader.Password.Reveal(), 0o600); err != nil {
			return err
		}
		domains = append(domains, domain{d.DNSName, d.DC, d.Address, d.CA, d.Reader.Username, file, d.GMSA})
	}

	programs := filepath.Join(dir, "bin")
	if err := os.Mkdir(programs, 0o700); err != nil {
		return err
	}
	for name, tool := range map[string]tools.Tool{"helm": tools.Helm4, "helm3": tools.Helm3, "kubectl": tools.Kubectl} {
		path, err := tools.Path(ctx, tool, os.Stderr)
		if err != nil {
			return err
		}
		if err := os.Symlink(path, filepath.Join(programs, name)); err != nil {
			return err
		}
	}
	content, err := json.Marshal(facts{os.Getpid(), c.ControlPlane.Kubeconfig, programs, domains})
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.file("facts.json.new"), content, 0o600); err != nil {
		return err
	}
	if err := os.Rename(s.file("facts.json.new"), s.file("facts.json")); err != nil {
		return err
	}
	defer os.Remove(s.file("facts.json"))
	<-ctx.Done()
	return nil
}

func down(s *state) error {
	f, err := s.running()
	if err != nil {
		return err
	}
	if f == nil {
		fmt.Println("the lab is not running")
		return nil
	}
	if err := syscall.Kill(f.PID, syscall.SIGTERM); err != nil {
		return err
	}
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if f, err := s.running(); err == nil && f == nil {
			fmt.Println("the lab has stopped")
			return nil
		}
	}
	content, _ := os.ReadFile(s.file("log"))
	log := bytes.TrimSpace(content)
	return fmt.Errorf("the lab, process %d, did not stop within a minute; its log:\n%s", f.PID, log)
}
