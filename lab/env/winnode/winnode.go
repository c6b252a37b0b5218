// Package winnode runs the product's Windows programs on a Wine node with the lab's control plane: the Account Provider
// as in a pod, the installer, and the emulator of ccg.exe. The demo and the end-to-end tests use it.
package winnode

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"
	"unicode/utf16"

	"github.com/ccgrkc/ccgrkc/internal/com"
	"github.com/ccgrkc/ccgrkc/lab/env/controlplane"
	"github.com/ccgrkc/ccgrkc/lab/env/wine"
	"github.com/ccgrkc/ccgrkc/lab/internal/child"
	"github.com/ccgrkc/ccgrkc/lab/internal/mountns"
)

// HostPath is the directory in which providers publish their endpoints.
const HostPath = `C:\var\lib\rancher\gmsa`

// programs is the directory of the product's programs on a node.
const programs = `C:\lab`

// Dist is the output directory of make build: dist in the root of the checkout.
func Dist() string {
	dir, err := os.Getwd()
	if err != nil {
		return "dist"
	}
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "hack", "build-dll.sh")); err == nil {
			return filepath.Join(dir, "dist")
		}
	}
	return "dist"
}

// Stage is a Wine node, a control plane, and a directory for the programs' output.
type Stage struct {
	ControlPlane *controlplane.ControlPlane
	Node         *wine.Node
	Logs         string

	resolvConf atomic.Pointer[string]
}

// UseDNS makes the emulator continue with Active Directory, with the DNS server at this address: it replaces the
// emulator's /etc/resolv.conf, which Wine reads. Without it, the emulator exits after the plugin's answer.
func (s *Stage) UseDNS(address string) error {
	path := filepath.Join(s.Logs, "resolv.conf")
	if err := os.WriteFile(path, []byte("nameserver "+address+"\n"), 0o644); err != nil {
		return err
	}
	s.resolvConf.Store(&path)
	return nil
}

// Put copies programs from Dist to the node.
func (s *Stage) Put(names ...string) error {
	for _, name := range names {
		from := filepath.Join(Dist(), name)
		if _, err := os.Stat(from); err != nil {
			return fmt.Errorf("%w; build it with make build", err)
		}
		if err := s.Node.Install(from, programs+`\`+filepath.Base(name)); err != nil {
			return err
		}
	}
	return nil
}

// Program is a running program of the node.
type Program struct {
	LogFile string
	process *child.Process
}

// StartProvider starts the Account Provider of an account as in a pod under containerd 1.6: its ServiceAccount token
// and CA are below %CONTAINER_SANDBOX_MOUNT_POINT%, and the API server is in the environment.
func (s *Stage) StartProvider(ctx context.Context, account controlplane.Account, args ...string) (*Program, error) {
	sandbox := `C:\containers\` + account.Namespace + "-" + account.Release
	token := s.Node.Path(sandbox + `\var\run\secrets\kubernetes.io\serviceaccount`)
	if err := s.ControlPlane.WriteServiceAccountFiles(ctx, account, token, time.Hour); err != nil {
		return nil, err
	}
	server, err := url.Parse(s.ControlPlane.Server)
	if err != nil {
		return nil, err
	}
	args = append([]string{"run", "--namespace", account.Namespace, "--secret", account.Secret}, args...)
	cmd := s.Node.Command(context.Background(), programs+`\gmsa-account-provider.exe`, args...)
	cmd.Env = append(cmd.Env,
		"KUBERNETES_SERVICE_HOST="+server.Hostname(),
		"KUBERNETES_SERVICE_PORT="+server.Port(),
		"CONTAINER_SANDBOX_MOUNT_POINT="+sandbox)
	log, err := os.CreateTemp(s.Logs, "provider-"+account.Release+"-*.log")
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	process, err := child.Start(cmd, syscall.SIGKILL)
	if err != nil {
		return nil, err
	}
	p := &Program{LogFile: log.Name(), process: process}
	for deadline := time.Now().Add(30 * time.Second); ; {
		out, err := s.Provider(ctx, "healthcheck", "--namespace", account.Namespace, "--secret", account.Secret)
		if err == nil {
			return p, nil
		}
		if p.Ended() || time.Now().After(deadline) {
			log, _ := os.ReadFile(p.LogFile)
			p.Kill()
			return nil, fmt.Errorf("provider of %s/%s: %s; its log:\n%s",
				account.Namespace, account.Release, bytes.TrimSpace(out), log)
		}
	}
}

// Ended reports whether the program has exited.
func (p *Program) Ended() bool {
	select {
	case <-p.process.Done:
		return true
	default:
		return false
	}
}

// Stop stops the program as Ctrl+C does: Wine cannot deliver the event that stops a container.
func (p *Program) Stop() error {
	_ = p.process.Signal(syscall.SIGINT)
	select {
	case <-p.process.Done:
		return nil
	case <-time.After(20 * time.Second):
		p.Kill()
		return fmt.Errorf("the program did not exit within 20 s; its log is %s", p.LogFile)
	}
}

// Kill kills the program, like a power failure.
func (p *Program) Kill() {
	_ = p.process.Signal(syscall.SIGKILL)
	<-p.process.Done
}

// Provider runs a command of the Account Provider on the node, such as healthcheck.
func (s *Stage) Provider(ctx context.Context, args ...string) ([]byte, error) {
	return s.run(ctx, "gmsa-account-provider.exe", args...)
}

// Installer runs a command of the installer on the node.
func (s *Stage) Installer(ctx context.Context, args ...string) ([]byte, error) {
	return s.run(ctx, "ccg-plugin-installer.exe", args...)
}

func (s *Stage) run(ctx context.Context, program string, args ...string) ([]byte, error) {
	var out []byte
	var err error
	for range startTries {
		out, err = s.Node.Run(ctx, programs+`\`+program, args...)
		if !neverRan(out, err) {
			break
		}
	}
	log, openErr := os.OpenFile(filepath.Join(s.Logs, program+".log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if openErr != nil {
		return out, errors.Join(err, openErr)
	}
	defer log.Close()
	fmt.Fprintf(log, "%s %q\n%s\n", program, args, out)
	return out, err
}

// The product's programs and the emulator print an error when they fail. A program that failed without output did not
// start (see wine.NeverStarted), so it is tried again.
const startTries = 3

func neverRan(out []byte, err error) bool {
	return err != nil && (len(out) == 0 || wine.NeverStarted(out))
}

// Answer is the emulator's output.
type Answer struct {
	Domain              string   `json:"domain"`
	Username            string   `json:"username"`
	PasswordFingerprint string   `json:"passwordFingerprint"`
	PasswordUnits       int      `json:"passwordUnits"`
	PasswordUTF16       []uint16 `json:"passwordUTF16"`
	ElapsedMs           float64  `json:"elapsedMs"`
	HResult             string   `json:"hresult"`
	Error               string   `json:"error"`

	// From Active Directory, after UseDNS.
	GMSA             string `json:"gmsa"`
	DomainController string `json:"domainController"`
	Security         string `json:"security"`
	Ticket           *struct {
		Client         string    `json:"client"` // web01$@CORP.EXAMPLE.COM
		Service        string    `json:"service"`
		KDC            string    `json:"kdc"`
		EncryptionType string    `json:"encryptionType"`
		Start          time.Time `json:"start"`
		End            time.Time `json:"end"`
		Previous       bool      `json:"previous"`
	} `json:"ticket"`
	Event int    `json:"event"` // in ccg.exe's log: 8 if Active Directory rejected the account
	Cause string `json:"cause"` // from package directory

	// For StartGMSA.
	Tickets   int `json:"tickets"`
	Refetches int `json:"refetches"`
	Failures  int `json:"failures"`
}

// Fetch runs the emulator as for the start of a container whose credential spec has this plugin input. A failure of the
// plugin or of Active Directory is an Answer with an HResult or an Event, not an error.
func (s *Stage) Fetch(ctx context.Context, input string, flags ...string) (Answer, error) {
	spec, err := json.Marshal(CredentialSpec(input))
	if err != nil {
		return Answer{}, err
	}
	return s.FetchSpec(ctx, spec, flags...)
}

// FetchSpec is Fetch with a whole credential spec, in JSON.
func (s *Stage) FetchSpec(ctx context.Context, spec []byte, flags ...string) (Answer, error) {
	file, err := s.writeSpec(spec)
	if err != nil {
		return Answer{}, err
	}
	defer os.Remove(s.Node.Path(file))
	out, err := s.CCG(ctx, append(append(s.directoryFlags(), flags...), file)...)
	var a Answer
	if jsonErr := json.Unmarshal(out, &a); jsonErr != nil {
		return Answer{}, fmt.Errorf("the emulator printed %q: %v, %v", out, jsonErr, err)
	}
	return a, nil
}

// writeSpec writes a credential spec to the node and returns its Windows path.
func (s *Stage) writeSpec(spec []byte) (string, error) {
	file, err := os.CreateTemp(s.Node.Path(programs), "spec-*.json")
	if err != nil {
		return "", err
	}
	defer file.Close()
	_, err = file.Write(spec)
	return programs + `\` + filepath.Base(file.Name()), err
}

// directoryFlags make the emulator continue with Active Directory after UseDNS.
func (s *Stage) directoryFlags() []string {
	if s.resolvConf.Load() == nil {
		return nil
	}
	return []string{"--directory"}
}

// emulator returns a command for the emulator with the DNS server of UseDNS.
func (s *Stage) emulator(ctx context.Context, args ...string) *exec.Cmd {
	cmd := s.Node.Command(ctx, programs+`\ccg.exe`, args...)
	if path := s.resolvConf.Load(); path != nil {
		mountns.Private(cmd, mountns.Mount{Source: *path, Target: "/etc/resolv.conf"})
	}
	return cmd
}

// StartContainer does what ccg.exe does at the start of a container with this credential spec. Its error is the text of
// ccg.exe's log: the error of the plugin or of Active Directory.
func (s *Stage) StartContainer(ctx context.Context, spec []byte) error {
	a, err := s.FetchSpec(ctx, spec)
	switch {
	case err != nil:
		return err
	case a.Event != 0:
		return errors.New(a.Error)
	case a.Error != "":
		return fmt.Errorf("ccg.exe: the plug-in returned %s", a.Error)
	}
	return nil
}

// RunningGMSA is a gMSA in use: the emulator gets tickets periodically, and calls the plugin again after the managed
// password has changed.
type RunningGMSA struct {
	// First is the answer at the start.
	First Answer

	process  *child.Process
	out      string // the emulator's output
	file     string // the emulator runs while this file exists
	specFile string
}

// StartGMSA starts to use a gMSA, and returns when the emulator has the first ticket. The emulator gets further tickets
// at this interval, until Stop or until this process ends.
func (s *Stage) StartGMSA(ctx context.Context, spec []byte, every time.Duration) (*RunningGMSA, error) {
	specFile, err := s.writeSpec(spec)
	if err != nil {
		return nil, err
	}
	g := &RunningGMSA{file: s.Node.Path(specFile + ".running"), specFile: s.Node.Path(specFile)}
	if err := os.WriteFile(g.file, nil, 0o600); err != nil {
		return nil, err
	}
	out, err := os.CreateTemp(s.Logs, "ccg-gmsa-*.log")
	if err != nil {
		return nil, err
	}
	defer out.Close()
	g.out = out.Name()
	args := append(s.directoryFlags(), "--renew-until", specFile+".running", "--renew-every", every.String(), specFile)
	cmd := s.emulator(context.WithoutCancel(ctx), args...)
	surrogates, err := s.surrogateLog()
	if err != nil {
		return nil, err
	}
	defer surrogates.Close()
	cmd.Stdout, cmd.Stderr = out, surrogates
	if g.process, err = child.Start(cmd, syscall.SIGKILL); err != nil {
		return nil, err
	}
	for {
		answers, err := g.Answers()
		if err != nil {
			g.Kill()
			return nil, err
		}
		if len(answers) > 0 {
			g.First = answers[0]
			break
		}
		select {
		case <-ctx.Done():
			g.Kill()
			return nil, ctx.Err()
		case <-g.process.Done:
			return nil, fmt.Errorf("the emulator exited without an answer: %w", g.process.Err)
		case <-time.After(20 * time.Millisecond):
		}
	}
	if g.First.Error != "" {
		g.Kill()
		return nil, errors.New(g.First.Error)
	}
	return g, nil
}

// Answers returns the first answer, and one for each further password retrieval or change of the error.
func (g *RunningGMSA) Answers() ([]Answer, error) {
	content, err := os.ReadFile(g.out)
	if err != nil {
		return nil, err
	}
	var answers []Answer
	for line := range bytes.Lines(content) {
		if !bytes.HasSuffix(line, []byte("\n")) {
			break
		}
		var a Answer
		if err := json.Unmarshal(line, &a); err != nil {
			return nil, fmt.Errorf("the emulator printed %q: %w", line, err)
		}
		answers = append(answers, a)
	}
	return answers, nil
}

// Wait waits until wanted returns true for the last answer.
func (g *RunningGMSA) Wait(ctx context.Context, wanted func(Answer) bool) (Answer, error) {
	for {
		answers, err := g.Answers()
		if err != nil {
			return Answer{}, err
		}
		last := answers[len(answers)-1]
		if wanted(last) {
			return last, nil
		}
		select {
		case <-ctx.Done():
			return last, fmt.Errorf("the gMSA's last answer is %+v: %w", last, ctx.Err())
		case <-g.process.Done:
			return last, fmt.Errorf("the emulator exited: %w", g.process.Err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Stop stops the emulator and returns its last answer, with the number of tickets.
func (g *RunningGMSA) Stop() (Answer, error) {
	if err := errors.Join(os.Remove(g.file), os.Remove(g.specFile)); err != nil {
		return Answer{}, err
	}
	select {
	case <-g.process.Done:
	case <-time.After(20 * time.Second):
		g.Kill()
		return Answer{}, errors.New("the emulator did not exit within 20 s")
	}
	answers, err := g.Answers()
	if err != nil {
		return Answer{}, err
	}
	return answers[len(answers)-1], nil
}

// Kill kills the emulator.
func (g *RunningGMSA) Kill() {
	_ = g.process.Signal(syscall.SIGKILL)
	<-g.process.Done
}

// CCG runs the emulator with these arguments and returns its output.
func (s *Stage) CCG(ctx context.Context, args ...string) ([]byte, error) {
	surrogates, err := s.surrogateLog()
	if err != nil {
		return nil, err
	}
	defer surrogates.Close()
	var out []byte
	for range startTries {
		if out, err = s.ccg(ctx, surrogates, args...); err == nil || len(out) > 0 || ctx.Err() != nil {
			break
		}
	}
	return out, err
}

// surrogateLog is the standard error of the emulator and of the surrogates that its activations start. They must not
// write to the emulator's output.
func (s *Stage) surrogateLog() (*os.File, error) {
	return os.OpenFile(filepath.Join(s.Logs, "surrogates.log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
}

func (s *Stage) ccg(ctx context.Context, surrogates *os.File, args ...string) ([]byte, error) {
	out, err := os.CreateTemp("", "ccg-*.json")
	if err != nil {
		return nil, err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	cmd := s.emulator(ctx, args...)
	cmd.Stdout, cmd.Stderr = out, surrogates
	runErr := cmd.Run()
	b, err := os.ReadFile(out.Name())
	return b, errors.Join(runErr, err)
}

// CredentialSpec is a credential spec with this plugin input and a fictitious domain.
func CredentialSpec(input string) map[string]any {
	return map[string]any{
		"CmsPlugins": []string{"ActiveDirectory"},
		"DomainJoinConfig": map[string]any{
			"Sid":                "S-1-5-21-1004336348-1177238915-682003330",
			"Guid":               "244818ae-87ac-4fcd-92ec-e79e5252348a",
			"MachineAccountName": "web01",
			"DnsTreeName":        "corp.example.com",
			"DnsName":            "corp.example.com",
			"NetBiosName":        "CORP",
		},
		"ActiveDirectoryConfig": map[string]any{
			"GroupManagedServiceAccounts": []map[string]string{
				{"Name": "web01", "Scope": "corp.example.com"},
				{"Name": "web01", "Scope": "CORP"},
			},
			"HostAccountConfig": map[string]string{
				"PortableCcgVersion": "1",
				"PluginGUID":         com.CLSID,
				"PluginInput":        input,
			},
		},
	}
}

// Fingerprint is the emulator's fingerprint of a password.
func Fingerprint(password string) string {
	var b []byte
	for _, u := range utf16.Encode([]rune(password)) {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
