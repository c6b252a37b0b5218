package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/credspec"
	"github.com/ccgrkc/ccgrkc/internal/directory"
	"github.com/ccgrkc/ccgrkc/lab/env/ad"
	"github.com/ccgrkc/ccgrkc/lab/env/cluster"
	"github.com/ccgrkc/ccgrkc/lab/env/controlplane"
	"github.com/ccgrkc/ccgrkc/lab/env/tools"
	"github.com/ccgrkc/ccgrkc/lab/env/wine"
	"github.com/ccgrkc/ccgrkc/lab/env/winnode"
	"github.com/ccgrkc/ccgrkc/lab/labtest"
)

// The second account, in another domain.
var app = controlplane.Account{Namespace: web.Namespace, Release: "app", Secret: "app-creds"}

const appInput = "gmsa-system:app-creds"

// ccgFailure begins the text of ccg.exe's event 8.
const ccgFailure = "Container Credential Guard failed to fetch gmsa credentials"

// startPair starts the two domains and returns their directory.
func startPair(t *testing.T) (corp, other *ad.Domain, dir string) {
	t.Helper()
	labtest.Require(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	dir = t.TempDir()
	corp, other, err := ad.StartPair(ctx, dir)
	labtest.Must(t, err)
	t.Cleanup(corp.Stop)
	t.Cleanup(other.Stop)
	return corp, other, dir
}

// newPath is a node with the complete credential path for the account web. Its DNS server resolves both domains.
func newPath(t *testing.T, corp *ad.Domain, options ...wine.Option) (*winnode.Stage, *winnode.Program) {
	t.Helper()
	s := newStage(t, options...)
	labtest.Must(t, s.UseDNS(corp.Address))
	install(t, s, "--log-level", "debug")
	labtest.Must(t, s.ControlPlane.PutSecret(t.Context(), web, data(corp.Reader)))
	return s, startProvider(t, s, web, "--log-level", "debug")
}

// data is the data of a credentials Secret.
func data(c credential.Credential) map[string][]byte {
	return map[string][]byte{
		"domainName": []byte(c.DomainName),
		"username":   []byte(c.Username),
		"password":   c.Password.Reveal(),
	}
}

func bind(t *testing.T, d *ad.Domain) *directory.Session {
	t.Helper()
	config, err := d.Config(directory.Kerberos)
	labtest.Must(t, err)
	s, err := directory.Bind(t.Context(), config, d.Reader)
	labtest.Must(t, err)
	t.Cleanup(s.Close)
	return s
}

// spec is the credential spec of a domain's gMSA, created as in gmsactl.
func spec(t *testing.T, d *ad.Domain, gmsa, input string) []byte {
	t.Helper()
	domain, err := bind(t, d).Domain(t.Context())
	labtest.Must(t, err)
	return credspec.New(credspec.Domain(domain), gmsa, input).JSON()
}

func fetchSpec(t *testing.T, s *winnode.Stage, spec []byte, flags ...string) winnode.Answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	a, err := s.FetchSpec(ctx, spec, flags...)
	labtest.Must(t, err)
	return a
}

func TestEachReleaseGetsTicketsOnlyInItsOwnDomain(t *testing.T) {
	t.Parallel()
	corp, other, _ := startPair(t)
	s, _ := newPath(t, corp)
	ctx := t.Context()
	labtest.Must(t, errors.Join(
		s.ControlPlane.CreateAccount(ctx, app),
		s.ControlPlane.PutSecret(ctx, app, data(other.Reader))))
	startProvider(t, s, app)

	for _, test := range []struct {
		domain      *ad.Domain
		gmsa, input string
		ticket      string // the ticket's client; "" if there is none
		cause       string // why there is none
	}{
		{corp, "web01", webInput, "web01$@CORP.EXAMPLE.COM", ""},
		{other, "app01", appInput, "app01$@OTHER.EXAMPLE.NET", ""},
		{corp, "web01", appInput, "", "gmsa-not-found"},
		{other, "app01", webInput, "", "gmsa-not-found"},
	} {
		a := fetchSpec(t, s, spec(t, test.domain, test.gmsa, test.input))
		switch {
		case test.ticket == "":
			if a.Event != 8 || a.Cause != test.cause || a.Ticket != nil {
				t.Errorf("%s with %s: %+v", test.gmsa, test.input, a)
			}
		case a.Ticket == nil || a.Ticket.Client != test.ticket || a.DomainController != test.domain.DC ||
			a.Security != "kerberos" || a.Username != test.domain.Reader.Username:
			t.Errorf("%s with %s: %+v", test.gmsa, test.input, a)
		}
	}

	// Active Directory rejects a wrong password in the Secret. The error has the text of ccg.exe's event 8.
	wrong := corp.Reader
	wrong.Password = ad.NewPassword()
	labtest.Must(t, s.ControlPlane.PutSecret(ctx, web, data(wrong)))
	web01 := spec(t, corp, "web01", webInput)
	labtest.Must(t, cluster.Eventually(ctx, 8*time.Second, func() error {
		a := fetchSpec(t, s, web01)
		text := ccgFailure + " for web01 using plugin " + credspec.PluginGUID +
			". Error reason: account gmsa-reader@corp.example.com: "
		if a.Event != 8 || a.Cause != "wrong-password" || !strings.HasPrefix(a.Error, text) {
			return errors.New(a.Error)
		}
		return nil
	}))
	if err := s.StartContainer(ctx, web01); err == nil || !strings.Contains(err.Error(), ccgFailure) {
		t.Errorf("a container starts with a wrong password: %v", err)
	}
	labtest.Must(t, corp.RemoveMember(ctx, ad.Group, corp.Reader.Username))
	labtest.Must(t, s.ControlPlane.PutSecret(ctx, web, data(corp.Reader)))
	labtest.Must(t, cluster.Eventually(ctx, 8*time.Second, func() error {
		if a := fetchSpec(t, s, web01); a.Event != 8 || a.Cause != "no-read-permission" {
			return errors.New(a.Error)
		}
		return nil
	}))
}

func TestGMSAKeepsWorkingWhenPasswordsChange(t *testing.T) {
	t.Parallel()
	corp, _, _ := startPair(t)
	s, provider := newPath(t, corp)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	gmsa, err := s.StartGMSA(ctx, spec(t, corp, "web01", webInput), 200*time.Millisecond)
	labtest.Must(t, err)
	t.Cleanup(gmsa.Kill)

	rolled := func(times int) {
		t.Helper()
		labtest.Must(t, corp.RollManagedPassword(ctx, "web01"))
		a, err := gmsa.Wait(ctx, func(a winnode.Answer) bool { return a.Refetches == times && a.Error == "" })
		labtest.Must(t, err)
		if a.Failures != 0 {
			t.Errorf("after change %d of the managed password, the gMSA was without a ticket: %+v", times, a)
		}
	}
	rolled(1)

	labtest.Must(t, corp.SetPassword(ctx, corp.Reader.Username, ad.NewPassword()))
	labtest.Must(t, s.ControlPlane.PutSecret(ctx, web, data(corp.Reader)))
	time.Sleep(6 * time.Second) // the old password is cached for 5 seconds
	rolled(2)

	// Without a provider, a change of the managed password leads to an error. With the provider, the gMSA works again.
	labtest.Must(t, provider.Stop())
	labtest.Must(t, corp.RollManagedPassword(ctx, "web01"))
	_, err = gmsa.Wait(ctx, func(a winnode.Answer) bool { return strings.Contains(a.Error, "0xA004") })
	labtest.Must(t, err)
	startProvider(t, s, web)
	_, err = gmsa.Wait(ctx, func(a winnode.Answer) bool { return a.Refetches == 3 && a.Error == "" })
	labtest.Must(t, err)
	last, err := gmsa.Stop()
	labtest.Must(t, err)
	if last.Tickets < 10 || last.Failures == 0 {
		t.Errorf("the gMSA's last answer: %+v", last)
	}
}

// On a cluster with the charts, a pod starts only if Active Directory accepts the account. A HostProcess container
// finds the domain through DNS, with both versions of containerd.
func TestPodStartsOnlyIfActiveDirectoryAcceptsTheAccount(t *testing.T) {
	t.Parallel()
	labtest.Require(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	c, err := cluster.Start(ctx, t.TempDir())
	labtest.Must(t, err)
	t.Cleanup(c.Stop)
	labtest.Must(t, c.StartAD(ctx))
	corp := c.AD[0]
	for name, sandbox := range map[string]cluster.NodeOptions{"win-1": {}, "win-2": {Sandbox: "1.6"}} {
		_, err := c.AddWindows(ctx, name, sandbox)
		labtest.Must(t, err)
	}
	for chart, name := range map[string]string{cluster.Installer: "plugin", cluster.Provider: "web"} {
		_, err := cluster.Release{Cluster: c, Chart: chart, Namespace: web.Namespace, Name: name}.Install(ctx)
		labtest.Must(t, err)
	}
	labtest.Must(t, c.PutSecret(ctx, web.Namespace, web.Secret, "not the password"))
	web01 := spec(t, corp, "web01", webInput)
	for _, node := range c.WindowsNodes() {
		labtest.Must(t, c.CreateGMSAPod(ctx, "default", "app-"+node.Name, node.Name, web01))
	}
	for _, node := range c.WindowsNodes() {
		message, err := c.WaitForStartFailure(ctx, "default", "app-"+node.Name, ccgFailure+" for web01", time.Minute)
		labtest.Must(t, err)
		if !strings.Contains(message, "hcs::CreateComputeSystem") ||
			!strings.Contains(message, "account gmsa-reader@corp.example.com: The password is wrong") {
			t.Errorf("the pod on %s has the message %q", node.Name, message)
		}
	}
	labtest.Must(t, c.PutSecret(ctx, web.Namespace, web.Secret, string(corp.Reader.Password.Reveal())))
	for _, node := range c.WindowsNodes() {
		labtest.Must(t, c.WaitForPod(ctx, "default", "app-"+node.Name, time.Minute))
	}

	for _, node := range c.WindowsNodes() {
		for _, daemonSet := range []string{"plugin", "web"} {
			pod, err := c.Pod(ctx, web.Namespace, daemonSet, node.Name)
			labtest.Must(t, err)
			out, err := c.Run(ctx, tools.Kubectl, "exec", "--namespace", web.Namespace, pod, "--",
				"ccg-plugin-installer.exe", "check-domain", "--domain", corp.DNSName, "-o", "json")
			if err != nil || !strings.Contains(out, corp.DC) || !strings.Contains(out, corp.Address) {
				t.Errorf("check-domain in %s on %s: %v\n%s", daemonSet, node.Name, err, out)
			}
		}
	}
}

// The test searches all output for the account's password and the managed password, while a gMSA is in use and
// afterwards.
func TestAccountAndManagedPasswordsAreNeverWrittenAnywhere(t *testing.T) {
	t.Parallel()
	corp, _, dir := startPair(t)
	s, provider := newPath(t, corp, wine.WithDebug(traceEvents))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	const marker = "m4rk3r-Zx9-Pw"
	labtest.Must(t, corp.SetPassword(ctx, corp.Reader.Username, credential.NewPassword([]byte(marker))))
	labtest.Must(t, s.ControlPlane.PutSecret(ctx, web, data(corp.Reader)))
	web01 := spec(t, corp, "web01", webInput)
	labtest.Must(t, cluster.Eventually(ctx, 8*time.Second, func() error {
		if a := fetchSpec(t, s, web01); a.PasswordFingerprint != winnode.Fingerprint(marker) || a.Ticket == nil {
			return errors.New(a.Error)
		}
		return nil
	}))

	needles := map[string][]byte{}
	for form, needle := range forms(marker) {
		needles["the account's password as "+form] = needle
	}
	note := func(when string) {
		m, err := bind(t, corp).ManagedPassword(ctx, "web01")
		labtest.Must(t, err)
		for form, needle := range rawForms(m.Current.Reveal()) {
			needles["the managed password "+when+" as "+form] = needle
		}
	}
	note("before the change")
	gmsa, err := s.StartGMSA(ctx, web01, 100*time.Millisecond)
	labtest.Must(t, err)
	t.Cleanup(gmsa.Kill)
	labtest.Must(t, corp.RollManagedPassword(ctx, "web01"))
	note("after the change")
	_, err = gmsa.Wait(ctx, func(a winnode.Answer) bool { return a.Refetches == 1 })
	labtest.Must(t, err)
	written := processes(t)

	// Each failure of Active Directory occurs once.
	for _, fail := range []func() error{
		func() error { return corp.DisableGMSA(ctx, "web01") },
		func() error { return corp.Disable(ctx, corp.Reader.Username) },
		func() error { return corp.Remove(ctx, corp.Reader.Username) },
		func() error { corp.Kill(); return nil },
	} {
		labtest.Must(t, fail())
		if a := fetchSpec(t, s, web01); a.Event != 8 {
			t.Errorf("no event 8: %+v", a)
		}
	}
	_, err = gmsa.Stop()
	labtest.Must(t, err)
	labtest.Must(t, provider.Stop())
	s.Node.Stop() // writes the registry to files

	for _, dir := range []string{s.Logs, s.Node.Path(`C:\..`), filepath.Join(dir, ad.Corp.DNSName, "log")} {
		labtest.Must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			written[path], err = os.ReadFile(path)
			return err
		}))
	}
	if !anyContains(written, "Container Credential Guard failed") && !anyContains(written, `"refetches":1`) {
		t.Fatalf("the %d searched files do not include the emulator's output", len(written))
	}
	for path, b := range written {
		for what, needle := range needles {
			if bytes.Contains(b, needle) {
				t.Errorf("%s contains %s", path, what)
			}
		}
	}
}

// rawForms are the usual encodings of random bytes, and of the text that Kerberos derives from them.
func rawForms(password []byte) map[string][]byte {
	part := password[:24] // at offset 0, the base64 of the part is a part of the whole base64
	var units []uint16
	for i := 0; i+1 < len(part); i += 2 {
		units = append(units, uint16(part[i])|uint16(part[i+1])<<8)
	}
	text := string(utf16.Decode(units))
	quoted, _ := json.Marshal(text)
	return map[string][]byte{
		"bytes":          part,
		"hex":            []byte(hex.EncodeToString(part)),
		"upper-case hex": []byte(strings.ToUpper(hex.EncodeToString(part))),
		"base64":         []byte(base64.StdEncoding.EncodeToString(part)),
		"UTF-8":          []byte(text),
		"JSON":           bytes.Trim(quoted, `"`),
	}
}
