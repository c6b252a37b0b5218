// Package winnode puts the product's Windows programs on a Wine node and runs them there against the lab's control plane: the
// Account Provider as a pod would run it, the installer, and the ccg.exe emulator. The demo and the end-to-end tests are
// built on it.
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

// HostPath is where providers publish, on a node's drive.
const HostPath = `C:\var\lib\rancher\gmsa`

// programs is where the product's programs are put on a node.
const programs = `C:\lab`

// Dist is the directory that make build fills: dist at the top of the checkout that the working directory is in.
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

// Stage is one node, one control plane, and a directory for what programs print.
type Stage struct {
	ControlPlane *controlplane.ControlPlane
	Node         *wine.Node
	Logs         string

	resolvConf atomic.Pointer[string]
}

// UseDNS makes the emulator go on to Active Directory, from now on, by the DNS server at this address: it runs where
// /etc/resolv.conf, which Wine reads, names that. Without it the emulator ends with what the plugin returned.
func (s *Stage) UseDNS(address string) error {
	path := filepath.Join(s.Logs, "resolv.conf")
	if err := os.WriteFile(path, []byte("nameserver "+address+"\n"), 0o644); err != nil {
		return err
	}
	s.resolvConf.Store(&path)
	return nil
}

// Put copies programs from make build's directory to the node.
func (s *Stage) Put(names ...string) error {
	for _, name := range names {
		from := filepath.Join(Dist(), name)
		if _, err := os.Stat(from); err != nil {
			return fmt.Errorf("%w; make build makes it", err)
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

// StartProvider runs the Account Provider of an account as a pod under containerd 1.6 would see its world: its own
// ServiceAccount token and CA below %CONTAINER_SANDBOX_MOUNT_POINT%, the API server in the environment.
func (s *Stage) StartProvider(ctx context.Context, account controlplane.Account, args ...string) (*Program, error) {
	sandbox := `C:\containers\` + account.Namespace + "-" + account.Release
	if err := s.ControlPlane.WriteServiceAccountFiles(ctx, account, s.Node.Path(sandbox+`\var\run\secrets\kubernetes.io\serviceaccount`), time.Hour); err != nil {
		return nil, err
	}
	server, err := url.Parse(s.ControlPlane.Server)
	if err != nil {
		return nil, err
	}
	args = append([]string{"run", "--namespace", account.Namespace, "--secret", account.Secret}, args...)
	cmd := s.Node.Command(context.Background(), programs+`\gmsa-account-provider.exe`, args...)
	cmd.Env = append(cmd.Env, "KUBERNETES_SERVICE_HOST="+server.Hostname(), "KUBERNETES_SERVICE_PORT="+server.Port(), "CONTAINER_SANDBOX_MOUNT_POINT="+sandbox)
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
			said, _ := os.ReadFile(p.LogFile)
			p.Kill()
			return nil, fmt.Errorf("provider of %s/%s: %s; its log:\n%s", account.Namespace, account.Release, bytes.TrimSpace(out), said)
		}
	}
}

// Ended tells whether the program is no longer running.
func (p *Program) Ended() bool {
	select {
	case <-p.process.Done:
		return true
	default:
		return false
	}
}

// Stop asks the program to end, as Ctrl-C does: Wine cannot deliver what ends a container.
func (p *Program) Stop() error {
	_ = p.process.Signal(syscall.SIGINT)
	select {
	case <-p.process.Done:
		return nil
	case <-time.After(20 * time.Second):
		p.Kill()
		return fmt.Errorf("the program did not end within 20 s; its log is %s", p.LogFile)
	}
}

// Kill ends the program as a power failure would.
func (p *Program) Kill() {
	_ = p.process.Signal(syscall.SIGKILL)
	<-p.process.Done
}

// Provider runs a short command of the Account Provider on the node.
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

// The product's programs and the emulator always say why they fail, so one that says nothing did not get to its first line:
// see wine.NeverStarted. It is tried again.
const startTries = 3

func neverRan(out []byte, err error) bool {
	return err != nil && (len(out) == 0 || wine.NeverStarted(out))
}

// Answer is what the emulator got, or did not get.
type Answer struct {
	Domain              string   `json:"domain"`
	Username            string   `json:"username"`
	PasswordFingerprint string   `json:"passwordFingerprint"`
	PasswordUnits       int      `json:"passwordUnits"`
	PasswordUTF16       []uint16 `json:"passwordUTF16"`
	ElapsedMs           float64  `json:"elapsedMs"`
	HResult             string   `json:"hresult"`
	Error               string   `json:"error"`

	// Of Active Directory, if the stage has a DNS server.
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
	Event int    `json:"event"` // of ccg.exe's log: 8 if Active Directory refused the account
	Cause string `json:"cause"` // of package directory

	// Of a gMSA that lives; see Live.
	Tickets   int `json:"tickets"`
	Refetches int `json:"refetches"`
	Failures  int `json:"failures"`
}

// Fetch has the emulator start a container with a credential spec that names the plugin input. A refusal is an Answer with an
// HResult or an Event, not an error.
func (s *Stage) Fetch(ctx context.Context, input string, flags ...string) (Answer, error) {
	spec, err := json.Marshal(CredentialSpec(input))
	if err != nil {
		return Answer{}, err
	}
	return s.FetchSpec(ctx, spec, flags...)
}

// FetchSpec is Fetch with a credential spec of one's own, in JSON.
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

// writeSpec puts a credential spec on the node and returns its Windows path.
func (s *Stage) writeSpec(spec []byte) (string, error) {
	file, err := os.CreateTemp(s.Node.Path(programs), "spec-*.json")
	if err != nil {
		return "", err
	}
	defer file.Close()
	_, err = file.Write(spec)
	return programs + `\` + filepath.Base(file.Name()), err
}

// directoryFlags are what make the emulator go on to Active Directory, if it is to.
func (s *Stage) directoryFlags() []string {
	if s.resolvConf.Load() == nil {
		return nil
	}
	return []string{"--directory"}
}

// emulator is a command of the emulator, which sees the DNS server of UseDNS.
func (s *Stage) emulator(ctx context.Context, args ...string) *exec.Cmd {
	cmd := s.Node.Command(ctx, programs+`\ccg.exe`, args...)
	if path := s.resolvConf.Load(); path != nil {
		mountns.Private(cmd, mountns.Mount{Source: *path, Target: "/etc/resolv.conf"})
	}
	return cmd
}

// StartContainer does what ccg.exe does when a container with this credential spec starts. Its error is what ccg.exe writes
// to its own log: what the plugin returned, or why Active Directory refused.
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

// Living is a gMSA that lives: the emulator gets ticket after ticket, and asks the plugin again when the gMSA's password has
// changed.
type Living struct {
	// First is what it got at its start.
	First Answer

	process  *child.Process
	out      string // what it prints
	file     string // while it is there, the emulator goes on
	specFile string
}

// Live starts a gMSA with a credential spec, and returns when it has its first ticket. The emulator asks for one every so
// often, and ends with Stop or with this process.
func (s *Stage) Live(ctx context.Context, spec []byte, every time.Duration) (*Living, error) {
	specFile, err := s.writeSpec(spec)
	if err != nil {
		return nil, err
	}
	l := &Living{file: s.Node.Path(specFile + ".lives"), specFile: s.Node.Path(specFile)}
	if err := os.WriteFile(l.file, nil, 0o600); err != nil {
		return nil, err
	}
	out, err := os.CreateTemp(s.Logs, "ccg-lives-*.log")
	if err != nil {
		return nil, err
	}
	defer out.Close()
	l.out = out.Name()
	args := append(s.directoryFlags(), "--renew-until", specFile+".lives", "--renew-every", every.String(), specFile)
	cmd := s.emulator(context.WithoutCancel(ctx), args...)
	noise, err := s.noise()
	if err != nil {
		return nil, err
	}
	defer noise.Close()
	cmd.Stdout, cmd.Stderr = out, noise
	if l.process, err = child.Start(cmd, syscall.SIGKILL); err != nil {
		return nil, err
	}
	for {
		answers, err := l.Answers()
		if err != nil {
			l.Kill()
			return nil, err
		}
		if len(answers) > 0 {
			l.First = answers[0]
			break
		}
		select {
		case <-ctx.Done():
			l.Kill()
			return nil, ctx.Err()
		case <-l.process.Done:
			return nil, fmt.Errorf("the emulator ended without an answer: %w", l.process.Err)
		case <-time.After(20 * time.Millisecond):
		}
	}
	if l.First.Error != "" {
		l.Kill()
		return nil, errors.New(l.First.Error)
	}
	return l, nil
}

// Answers are the first answer, then one for each time that the password was fetched again or the error changed.
func (l *Living) Answers() ([]Answer, error) {
	content, err := os.ReadFile(l.out)
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

// Wait waits until the latest answer is as wanted.
func (l *Living) Wait(ctx context.Context, wanted func(Answer) bool) (Answer, error) {
	for {
		answers, err := l.Answers()
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
		case <-l.process.Done:
			return last, fmt.Errorf("the emulator ended: %w", l.process.Err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Stop ends the gMSA and returns its last answer, with the number of tickets that it got.
func (l *Living) Stop() (Answer, error) {
	if err := errors.Join(os.Remove(l.file), os.Remove(l.specFile)); err != nil {
		return Answer{}, err
	}
	select {
	case <-l.process.Done:
	case <-time.After(20 * time.Second):
		l.Kill()
		return Answer{}, errors.New("the emulator did not end within 20 s")
	}
	answers, err := l.Answers()
	if err != nil {
		return Answer{}, err
	}
	return answers[len(answers)-1], nil
}

// Kill ends the gMSA at once.
func (l *Living) Kill() {
	_ = l.process.Signal(syscall.SIGKILL)
	<-l.process.Done
}

// CCG runs the emulator with arguments of one's own and returns what it printed.
func (s *Stage) CCG(ctx context.Context, args ...string) ([]byte, error) {
	noise, err := s.noise()
	if err != nil {
		return nil, err
	}
	defer noise.Close()
	var out []byte
	for range startTries {
		if out, err = s.ccg(ctx, noise, args...); err == nil || len(out) > 0 || ctx.Err() != nil {
			break
		}
	}
	return out, err
}

// noise is for what a surrogate that is started by an activation writes, lest it stand in the emulator's answer.
func (s *Stage) noise() (*os.File, error) {
	return os.OpenFile(filepath.Join(s.Logs, "surrogates.log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
}

func (s *Stage) ccg(ctx context.Context, noise *os.File, args ...string) ([]byte, error) {
	out, err := os.CreateTemp("", "ccg-*.json")
	if err != nil {
		return nil, err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	cmd := s.emulator(ctx, args...)
	cmd.Stdout, cmd.Stderr = out, noise
	runErr := cmd.Run()
	b, err := os.ReadFile(out.Name())
	return b, errors.Join(runErr, err)
}

// CredentialSpec is a credential spec with a plugin input; what is about Active Directory in it is made up.
func CredentialSpec(input string) map[string]any {
	return map[string]any{
		"CmsPlugins": []string{"ActiveDirectory"},
		"DomainJoinConfig": map[string]any{
			"Sid": "S-1-5-21-1004336348-1177238915-682003330", "Guid": "244818ae-87ac-4fcd-92ec-e79e5252348a", "MachineAccountName": "web01",
			"DnsTreeName": "corp.example.com", "DnsName": "corp.example.com", "NetBiosName": "CORP",
		},
		"ActiveDirectoryConfig": map[string]any{
			"GroupManagedServiceAccounts": []map[string]string{{"Name": "web01", "Scope": "corp.example.com"}, {"Name": "web01", "Scope": "CORP"}},
			"HostAccountConfig": map[string]string{
				"PortableCcgVersion": "1", "PluginGUID": com.CLSID, "PluginInput": input,
			},
		},
	}
}

// Fingerprint is what the emulator prints for a password.
func Fingerprint(password string) string {
	var b []byte
	for _, u := range utf16.Encode([]rune(password)) {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
