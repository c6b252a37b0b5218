// Package ad runs a real Active Directory with gMSAs: a Samba domain controller on its own loopback address. It
// provisions a domain once and stores it as an archive in the lab's cache. Each start unpacks the archive, so that a
// start takes a second and has no state of an earlier run. It needs root for ports below 1024.
//
// Differences from Windows: there is one domain controller in a forest of one domain; there are no AD Web Services on
// port 9389, no SMB and no RPC; wrong passwords lock an account only during Lock.
package ad

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/directory"
	"github.com/ccgrkc/ccgrkc/lab/internal/child"
)

// Options select the domain. It has a user, a group that contains the user, and a gMSA whose password the group can
// read.
type Options struct {
	DNSName string // corp.example.com
	NetBIOS string // CORP
	Reader  string // gmsa-reader: the impersonation account, in the group GmsaReaders
	GMSA    string // web01

	// Forwarder is the address of a DNS server for the names of other domains; "": they do not exist. Two servers that
	// forward to each other loop.
	Forwarder string
	// ClockOffset is added to the domain controller's clock.
	ClockOffset time.Duration
}

// Group is the group that can read the password of a domain's gMSA.
const Group = "GmsaReaders"

// The standard domains.
var (
	Corp  = Options{DNSName: "corp.example.com", NetBIOS: "CORP", Reader: "gmsa-reader", GMSA: "web01"}
	Other = Options{DNSName: "other.example.net", NetBIOS: "OTHER", Reader: "other-reader", GMSA: "app01"}
)

// Domain is a running domain with its one domain controller.
type Domain struct {
	DNSName string // corp.example.com
	NetBIOS string // CORP
	DC      string // host name of the domain controller, dc1.corp.example.com
	Address string // loopback address of the domain controller and its DNS server
	CA      string // PEM file of the CA that signed its certificate

	Reader        credential.Credential // the impersonation account, with a new password for each start
	Administrator credential.Credential
	GMSA          string // the gMSA whose password Reader can read

	dir     string
	options Options
	release func() // of the address
	console *console
	samba   *child.Process
}

// host is the domain controller's host name, without domain.
const host = "dc1"

// Start unpacks a domain into dir, which must not exist, and starts it. The domain ends with this process.
func Start(ctx context.Context, dir string, o Options) (*Domain, error) {
	template, err := Template(ctx, o, os.Stderr)
	if err != nil {
		return nil, err
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if _, err := os.Lstat(dir); err == nil {
		return nil, fmt.Errorf("%s exists; a domain needs a new directory", dir)
	}
	address, release, err := takeAddress()
	if err != nil {
		return nil, err
	}
	d := &Domain{
		DNSName:       o.DNSName,
		NetBIOS:       o.NetBIOS,
		DC:            host + "." + o.DNSName,
		Address:       address,
		CA:            filepath.Join(dir, "private", "tls", "ca.pem"),
		Reader:        credential.Credential{DomainName: o.DNSName, Username: o.Reader, Password: newPassword()},
		Administrator: credential.Credential{DomainName: o.DNSName, Username: "Administrator", Password: newPassword()},
		GMSA:          o.GMSA,
		dir:           dir,
		options:       o,
		release:       release,
	}
	if err := d.start(ctx, template); err != nil {
		d.Stop()
		return nil, fmt.Errorf("domain %s: %w", o.DNSName, err)
	}
	return d, nil
}

func (d *Domain) start(ctx context.Context, template string) error {
	if err := unpack(template, d.dir); err != nil {
		return err
	}
	if err := writeConfig(d.dir, d.options, d.Address); err != nil {
		return err
	}
	if err := makeCertificates(filepath.Dir(d.CA), d.DC, d.DNSName, d.Address); err != nil {
		return err
	}
	var err error
	if d.console, err = startConsole(d.dir); err != nil {
		return err
	}
	settled := make(chan error, 1)
	go func() {
		settled <- d.do(ctx, "settle", with{
			"old":  provisionAddress,
			"new":  d.Address,
			"gmsa": d.GMSA,
			"passwords": map[string]string{
				d.Reader.Username:        string(d.Reader.Password.Reveal()),
				d.Administrator.Username: string(d.Administrator.Password.Reveal()),
			},
		})
	}()
	if err := errors.Join(d.serve(ctx), <-settled); err != nil {
		return err
	}
	// Generate the gMSA's passwords now, so that the first reader does not wait for them.
	return d.do(ctx, "touch", with{"name": d.GMSA, "address": d.Address})
}

// serve starts the domain controller and waits until its ports are open.
func (d *Domain) serve(ctx context.Context) error {
	log, err := os.OpenFile(filepath.Join(d.dir, "log", "samba.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command("/usr/sbin/samba", "-F", "--no-process-group", "-M", "single",
		"--configfile="+filepath.Join(d.dir, "smb.conf"), "--debug-stdout")
	cmd.Env, cmd.Dir = environment, d.dir
	if d.options.ClockOffset != 0 {
		cmd.Env = append(cmd.Env[:len(cmd.Env):len(cmd.Env)], "LD_PRELOAD="+faketime,
			fmt.Sprintf("FAKETIME=%+d", int(d.options.ClockOffset.Seconds())))
	}
	cmd.Stdout, cmd.Stderr = log, log
	if d.samba, err = child.Start(cmd, syscall.SIGKILL); err != nil {
		return err
	}
	for _, port := range ports {
		for {
			conn, err := net.DialTimeout("tcp", net.JoinHostPort(d.Address, strconv.Itoa(port)), time.Second)
			if err == nil {
				conn.Close()
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("port %d did not open: %w\n%s", port, ctx.Err(), d.logTail())
			case <-d.samba.Done:
				return fmt.Errorf("samba exited: %w\n%s", d.samba.Err, d.logTail())
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	return nil
}

// logTail returns the end of the domain controller's log.
func (d *Domain) logTail() []byte {
	b, _ := os.ReadFile(filepath.Join(d.dir, "log", "samba.log"))
	return b[max(0, len(b)-4096):]
}

// Stop stops the domain permanently. Its files remain in its directory.
func (d *Domain) Stop() {
	d.end(syscall.SIGTERM)
	if d.console != nil {
		d.console.close()
		d.console = nil
	}
	if d.release != nil {
		d.release()
		d.release = nil
	}
}

// Kill stops the domain controller like a power failure. Accounts can still be changed, and Restart starts it again.
func (d *Domain) Kill() { d.end(syscall.SIGKILL) }

// Restart stops the domain controller if it runs, and starts it at the same address and with all changes.
func (d *Domain) Restart(ctx context.Context) error {
	d.end(syscall.SIGTERM)
	return d.serve(ctx)
}

func (d *Domain) end(signal syscall.Signal) {
	if d.samba == nil {
		return
	}
	_ = d.samba.Signal(signal)
	select {
	case <-d.samba.Done:
	case <-time.After(5 * time.Second):
		_ = d.samba.Signal(syscall.SIGKILL)
		<-d.samba.Done
	}
	d.samba = nil
}

// Config returns a configuration with the domain's own DNS server and CA.
func (d *Domain) Config(security directory.Security) (directory.Config, error) {
	pem, err := os.ReadFile(d.CA)
	if err != nil {
		return directory.Config{}, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	return directory.Config{Domain: d.DNSName, DNSServer: d.Address, Security: security, RootCAs: pool}, nil
}

// PID returns the ID of the domain controller's only process.
func (d *Domain) PID() int { return d.samba.PID() }

// newPassword returns a random password that meets the domain's policy: three kinds of characters, and no account name
// in it.
func newPassword() credential.Password {
	return credential.NewPassword([]byte("Pw-" + strings.ToLower(rand.Text())))
}

// StartPair starts both standard domains below dir. The DNS server of Corp resolves the names of both.
func StartPair(ctx context.Context, dir string) (corp, other *Domain, err error) {
	if other, err = Start(ctx, filepath.Join(dir, Other.DNSName), Other); err != nil {
		return nil, nil, err
	}
	o := Corp
	o.Forwarder = other.Address
	if corp, err = Start(ctx, filepath.Join(dir, Corp.DNSName), o); err != nil {
		other.Stop()
		return nil, nil, err
	}
	return corp, other, nil
}

// writeConfig writes the configuration of the domain controller. All its paths are in the domain's directory.
func writeConfig(dir string, o Options, address string) error {
	for _, sub := range []string{
		"private/tls", "state/sysvol/" + o.DNSName + "/scripts", "cache", "lock", "run", "log", "bind-dns", "ncalrpc",
	} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return err
		}
	}
	forwarder := o.Forwarder
	if forwarder == "" {
		forwarder = "none"
	}
	var conf bytes.Buffer
	fmt.Fprintf(&conf, smbConf, strings.ToUpper(o.DNSName), o.NetBIOS, strings.ToUpper(host), address, forwarder,
		o.DNSName)
	return os.WriteFile(filepath.Join(dir, "smb.conf"), conf.Bytes(), 0o600)
}

// Paths use the working directory, which is the domain's directory: the path of a socket can have 107 bytes, and test
// directories have long paths. Without "old password allowed period = 0", a simple bind accepts the old password for an
// hour after a change.
const smbConf = `[global]
	realm = %[1]s
	workgroup = %[2]s
	netbios name = %[3]s
	server role = active directory domain controller
	ad dc functional level = 2016
	server services = ldap, cldap, kdc, dns
	interfaces = %[4]s/8
	bind interfaces only = yes
	disable netbios = yes
	dns forwarder = %[5]s
	old password allowed period = 0
	private dir = /proc/self/cwd/private
	state directory = /proc/self/cwd/state
	cache directory = /proc/self/cwd/cache
	lock directory = /proc/self/cwd/lock
	pid directory = /proc/self/cwd/run
	ncalrpc dir = /proc/self/cwd/ncalrpc
	binddns dir = /proc/self/cwd/bind-dns
	winbindd socket directory = /proc/self/cwd/run/winbindd
	ntp signd socket directory = /proc/self/cwd/run/ntp_signd
	usershare path =
	log file = /proc/self/cwd/log/%%m.log
	logging = file
	max log size = 0
	log level = 1
	load printers = no
	printcap name = /dev/null
[sysvol]
	path = /proc/self/cwd/state/sysvol
	read only = no
[netlogon]
	path = /proc/self/cwd/state/sysvol/%[6]s/scripts
	read only = no
`
