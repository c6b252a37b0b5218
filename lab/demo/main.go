// Command demo shows the way of a credential on one machine: a real control plane, the Windows programs under Wine, and an
// emulator in place of ccg.exe. It ends with what was proven and how long each step took, and leaves nothing running.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/ccgrkc/ccgrkc/lab/controlplane"
	"github.com/ccgrkc/ccgrkc/lab/stage"
	"github.com/ccgrkc/ccgrkc/lab/wine"
)

var account = controlplane.Account{Namespace: "gmsa-system", Release: "web", Secret: "web-creds"}

const pluginInput = "gmsa-system:web-creds"

func main() {
	logs := flag.String("logs", "", "keep the programs' logs in this directory")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	d := &demo{began: time.Now()}
	err := d.run(ctx, *logs)
	stop()
	d.summary(err)
	if err != nil {
		os.Exit(1)
	}
}

// demo remembers the steps for the summary.
type demo struct {
	began time.Time
	steps []step
}

type step struct {
	what   string
	proven string // empty: it was only preparation
	took   time.Duration
}

// do runs one step and shows that it goes on.
func (d *demo) do(what string, f func() (proven string, err error)) error {
	fmt.Printf("-> %s\n", what)
	began := time.Now()
	proven, err := f()
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if proven != "" {
		fmt.Printf("   %s\n", proven)
	}
	d.steps = append(d.steps, step{what, proven, time.Since(began)})
	return nil
}

func (d *demo) run(ctx context.Context, logs string) (err error) {
	dir, err := os.MkdirTemp("", "ccgrkc-demo-")
	if err != nil {
		return err
	}
	defer func() {
		// A log that explains a failure outlives it.
		if err == nil {
			err = os.RemoveAll(dir)
		} else {
			fmt.Printf("the logs are in %s\n", dir)
		}
	}()
	if logs == "" {
		logs = filepath.Join(dir, "logs")
	}
	if err := os.MkdirAll(logs, 0o700); err != nil {
		return err
	}
	s := &stage.Stage{Logs: logs}

	if err := d.do("Start etcd, kube-apiserver, kube-controller-manager and kube-scheduler", func() (string, error) {
		s.ControlPlane, err = controlplane.Start(ctx, filepath.Join(dir, "control-plane"))
		if err != nil {
			return "", err
		}
		return "", nil
	}); err != nil {
		return err
	}
	defer s.ControlPlane.Stop()

	if err := d.do("Make a Wine prefix the Windows node, and put the Windows programs on it", func() (string, error) {
		s.Node, err = wine.New(ctx, filepath.Join(dir, "node"))
		if err != nil {
			return "", err
		}
		return "", s.Put("gmsa-account-provider.exe", "ccg-plugin-installer.exe", "lab/ccg.exe")
	}); err != nil {
		return err
	}
	defer s.Node.Stop()

	var provider *stage.Program
	defer func() {
		if provider != nil && !provider.Ended() {
			provider.Kill()
		}
	}()
	cp := s.ControlPlane
	for _, step := range []struct {
		what string
		do   func() (string, error)
	}{
		{"Create namespace, ServiceAccount, Role (get secrets, resourceNames [" + account.Secret + "]), RoleBinding and the Secret", func() (string, error) {
			return "", errors.Join(
				cp.CreateNamespace(ctx, account.Namespace), cp.CreateAccount(ctx, account), cp.PutSecret(ctx, account, secret("Old-Pässwörd-密码")))
		}},
		{"Install the plugin on the node: ccg-plugin-installer install", func() (string, error) {
			out, err := s.Installer(ctx, "install")
			if err != nil {
				return "", fmt.Errorf("%w\n%s", err, out)
			}
			return "the plugin is registered, was activated out of process, and its self-test answered", nil
		}},
		{"Start the Account Provider with a token of its ServiceAccount", func() (string, error) {
			provider, err = s.StartProvider(ctx, account)
			return "the provider's healthcheck reached it through the files on the host, over mutual TLS", err
		}},
		{"ccg fetches the credentials for " + pluginInput, func() (string, error) {
			if _, err := expect(ctx, s, "Old-Pässwörd-密码", time.Now()); err != nil {
				return "", err
			}
			return "ccg has the user, the domain and the password of the Secret, unchanged", nil
		}},
		{"Change the password in the Secret", func() (string, error) {
			changed := time.Now()
			if err := cp.PutSecret(ctx, account, secret("New-Pässwörd-𝄞")); err != nil {
				return "", err
			}
			return expect(ctx, s, "New-Pässwörd-𝄞", changed)
		}},
		{"Delete the RoleBinding", func() (string, error) {
			deleted := time.Now()
			if err := cp.DeleteRoleBinding(ctx, account); err != nil {
				return "", err
			}
			return refused(ctx, s, "forbidden", "0xA0040009", deleted)
		}},
		{"Restore it, and delete the Secret", func() (string, error) {
			if err := cp.CreateRoleBinding(ctx, account); err != nil {
				return "", err
			}
			if _, err := expect(ctx, s, "New-Pässwörd-𝄞", time.Now()); err != nil {
				return "", err
			}
			deleted := time.Now()
			if err := cp.DeleteSecret(ctx, account); err != nil {
				return "", err
			}
			return refused(ctx, s, "secret-not-found", "0xA0040007", deleted)
		}},
		{"Stop the provider", func() (string, error) {
			if err := provider.Stop(); err != nil {
				return "", err
			}
			return "the provider took its files with it", nothingLeft(s.Node.Path(stage.HostPath))
		}},
		{"Uninstall the plugin: ccg-plugin-installer uninstall", func() (string, error) {
			out, err := s.Installer(ctx, "uninstall")
			if err != nil {
				return "", fmt.Errorf("%w\n%s", err, out)
			}
			return "the uninstalled plugin left no key and no file", nothingLeft(s.Node.Path(`C:\Program Files\CCGRKC`))
		}},
	} {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := d.do(step.what, step.do); err != nil {
			return err
		}
	}
	return nil
}

func secret(password string) map[string][]byte {
	return map[string][]byte{"domainName": []byte("corp.example.com"), "username": []byte("gmsa-reader"), "password": []byte(password)}
}

// freshness is how long an answer from before a change may still come: the provider's copy serves for 5 seconds.
const freshness = 15 * time.Second

// expect has the emulator fetch until the password is this one.
func expect(ctx context.Context, s *stage.Stage, password string, since time.Time) (string, error) {
	for {
		a, err := s.Fetch(ctx, pluginInput)
		if err != nil {
			return "", err
		}
		if a.PasswordFingerprint == stage.Fingerprint(password) {
			return fmt.Sprintf("ccg has the new password %.1f s after the change (a copy serves for 5 s)", time.Since(since).Seconds()), nil
		}
		if time.Since(since) > freshness {
			return "", fmt.Errorf("ccg got %+v", a)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// refused has the emulator fetch until it is refused for this cause.
func refused(ctx context.Context, s *stage.Stage, cause, hresult string, since time.Time) (string, error) {
	for {
		a, err := s.Fetch(ctx, pluginInput)
		if err != nil {
			return "", err
		}
		if a.HResult == hresult {
			return fmt.Sprintf("ccg is refused with %s, %s (%.1f s after the change)", hresult, cause, time.Since(since).Seconds()), nil
		}
		if time.Since(since) > freshness {
			return "", fmt.Errorf("ccg got %+v", a)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func nothingLeft(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if len(entries) > 0 {
		return fmt.Errorf("%s still holds %v", dir, entries)
	}
	return nil
}

func (d *demo) summary(err error) {
	fmt.Println()
	for _, s := range d.steps {
		fmt.Printf("%6.1f s  %s\n", s.took.Seconds(), s.what)
	}
	fmt.Printf("%6.1f s  in all, clean-up included\n\n", time.Since(d.began).Seconds())
	if err != nil {
		fmt.Fprintln(os.Stderr, "The demo failed:", strings.TrimSpace(err.Error()))
		return
	}
	fmt.Println("Proven, with a real API server and the Windows binaries under Wine; only ccg.exe was an emulator:")
	for _, s := range d.steps {
		if s.proven != "" {
			fmt.Printf("  - %s\n", s.proven)
		}
	}
}
