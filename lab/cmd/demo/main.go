// Command demo shows the product in use, on one machine. It installs the three charts with Helm on a real control
// plane, creates accounts in a real Active Directory and pods that use a gMSA, and runs the Windows programs under
// Wine. An emulator replaces ccg.exe. At the end it prints the time of each step and what was verified. It leaves
// nothing running.
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

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/lab/env/ad"
	"github.com/ccgrkc/ccgrkc/lab/env/cluster"
	"github.com/ccgrkc/ccgrkc/lab/env/tools"
	"github.com/ccgrkc/ccgrkc/lab/env/winnode"
)

const (
	namespace = "cattle-windows-gmsa-system"
	release   = namespace + "/web"
	input     = namespace + ":web-creds"
	// A node cannot set a label with this prefix on itself.
	label    = "node-restriction.kubernetes.io/gmsa-account=web"
	selector = `nodeSelector.node-restriction\.kubernetes\.io/gmsa-account=web`
)

func main() {
	keep := flag.String("logs", "", "directory in which to keep the lab's files, including logs")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	d := &demo{began: time.Now()}
	err := d.run(ctx, *keep)
	stop()
	d.summary(err)
	if err != nil {
		os.Exit(1)
	}
}

// demo collects the steps for the summary.
type demo struct {
	began time.Time
	steps []step
}

type step struct {
	what     string
	verified string // empty for a preparation
	took     time.Duration
}

// do announces one step and runs it.
func (d *demo) do(what string, f func() (verified string, err error)) error {
	fmt.Printf("-> %s\n", what)
	began := time.Now()
	verified, err := f()
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if verified != "" {
		fmt.Printf("   %s\n", verified)
	}
	d.steps = append(d.steps, step{what, verified, time.Since(began)})
	return nil
}

func (d *demo) run(ctx context.Context, keep string) (err error) {
	dir := keep
	if keep == "" {
		if dir, err = os.MkdirTemp("", "ccgrkc-demo-"); err != nil {
			return err
		}
		defer func() {
			// After a failure, the logs are needed.
			if err == nil {
				err = os.RemoveAll(dir)
			} else {
				fmt.Printf("the logs are in %s\n", dir)
			}
		}()
	}
	var c *cluster.Cluster
	start := "Start a control plane, a registry with the image, three Windows nodes (Wine) and one Linux node"
	if err := d.do(start, func() (string, error) {
		c, err = cluster.StartStandard(ctx, dir)
		return "", err
	}); err != nil {
		return err
	}
	defer c.Stop()

	var corp *ad.Domain
	var grant string // the command at the end of a denial
	startAD := "Start a domain controller of corp.example.com (Samba) with the gMSA web01 and the account gmsa-reader"
	if err := d.do(startAD, func() (string, error) {
		if err := c.StartAD(ctx); err != nil {
			return "", err
		}
		corp = c.AD[0]
		return "", nil
	}); err != nil {
		return err
	}

	hook := cluster.Release{Cluster: c, Chart: cluster.Webhook, Namespace: namespace, Name: cluster.Webhook}
	plugin := cluster.Release{Cluster: c, Chart: cluster.Installer, Namespace: namespace, Name: cluster.Installer}
	web := cluster.Release{Cluster: c, Chart: cluster.Provider, Namespace: namespace, Name: "web"}
	account := []string{"--domain", corp.DNSName, "--username", corp.Reader.Username, "--password-file", "password.txt"}
	flags := strings.Join(account, " ")
	rotate := "gmsactl account rotate " + release + " --password-file password.txt"
	for _, step := range []struct {
		what string
		do   func() (string, error)
	}{
		{"helm install " + cluster.Installer, func() (string, error) {
			_, err := plugin.Install(ctx)
			return "the plugin is registered on all three Windows nodes, and its self-test passed", err
		}},
		{"helm install " + cluster.Webhook, func() (string, error) {
			_, err := hook.Install(ctx)
			return "two replicas run on linux-1, the API server trusts their certificate, and the CRD is installed", err
		}},
		{"kubectl label node win-1 win-3 " + label + "; helm install web " + cluster.Provider, func() (string, error) {
			if err := errors.Join(c.Label(ctx, "win-1", label), c.Label(ctx, "win-3", label)); err != nil {
				return "", err
			}
			_, err := web.Install(ctx, "--set", selector)
			return "the Account Provider is ready on win-1 and win-3, and its Secret does not exist yet", err
		}},
		{"gmsactl credspec create --apply --gmsa web01 --account " + release + " " + flags, func() (string, error) {
			if err := writePassword(c, corp.Reader.Password); err != nil {
				return "", err
			}
			args := []string{"credspec", "create", "--gmsa", corp.GMSA, "--account", release, "--apply"}
			out, err := c.Gmsactl(ctx, append(args, account...)...)
			return "the credential spec was created over LDAP, from Linux: " + line(out, "created"), err
		}},
		{"Create a pod that uses web01 on win-1; its ServiceAccount lacks the permission", func() (string, error) {
			if _, err := c.Run(ctx, tools.Kubectl, "create", "serviceaccount", "web"); err != nil {
				return "", err
			}
			out, err := createPod(ctx, c, "app", "win-1")
			if err == nil {
				return "", fmt.Errorf("the pod was allowed:\n%s", out)
			}
			fmt.Print(indent(out))
			_, command, ok := strings.Cut(out, "echo ")
			if !ok {
				return "", fmt.Errorf("the denial contains no command:\n%s", out)
			}
			grant = "echo " + strings.TrimSpace(command)
			return "the pod is denied, and the denial ends with the command that grants the permission", nil
		}},
		{"Run that command as printed and create the pod again; the Secret does not exist yet", func() (string, error) {
			if out, err := shell(ctx, c, grant); err != nil {
				return "", fmt.Errorf("%w\n%s", err, out)
			}
			out, err := createPod(ctx, c, "app", "win-1")
			if err != nil {
				return "", err
			}
			fmt.Print(indent(out))
			if !strings.Contains(out, "Warning: ") {
				return "", errors.New("kubectl printed no warning about the missing Secret")
			}
			message, err := c.WaitForStartFailure(ctx, "default", "app", "secret-not-found", time.Minute)
			return "the pod is allowed with a warning but does not start; its status shows: " + message, err
		}},
		{"gmsactl account create " + release + " " + flags, func() (string, error) {
			args := []string{"account", "create", release, "--gmsa", corp.GMSA}
			out, err := c.Gmsactl(ctx, append(args, account...)...)
			return "the password was verified with Active Directory, then written: " + line(out, "created"), err
		}},
		{"The same pod starts without a further command", func() (string, error) {
			if err := c.WaitForPod(ctx, "default", "app", time.Minute); err != nil {
				return "", err
			}
			return ticket(ctx, c, "win-1")
		}},
		{"Create a second pod on win-2, which the release's nodeSelector excludes", func() (string, error) {
			if _, err := createPod(ctx, c, "outside", "win-2"); err != nil {
				return "", err
			}
			message, err := c.WaitForStartFailure(ctx, "default", "outside", "0xA0040001", time.Minute)
			return "a node outside the nodeSelector provides no credentials: " + message, err
		}},
		{"gmsactl verify web01 --node win-1", func() (string, error) {
			out, err := c.Gmsactl(ctx, "verify", corp.GMSA, "--node", "win-1")
			fmt.Print(indent(out))
			return "all checks passed, from the credential spec to a Kerberos ticket of the gMSA, and on the node", err
		}},
		{"Change the account's password in Active Directory; " + rotate, func() (string, error) {
			if err := corp.SetPassword(ctx, corp.Reader.Username, ad.NewPassword()); err != nil {
				return "", err
			}
			if out, err := c.Gmsactl(ctx, "verify", corp.GMSA); err == nil {
				return "", fmt.Errorf("the old password is still valid:\n%s", out)
			}
			if err := writePassword(c, corp.Reader.Password); err != nil {
				return "", err
			}
			began := time.Now()
			args := []string{"account", "rotate", release, "--password-file", "password.txt"}
			if _, err := c.Gmsactl(ctx, args...); err != nil {
				return "", err
			}
			for _, node := range []string{"win-1", "win-3"} {
				if _, err := ticket(ctx, c, node); err != nil {
					return "", err
				}
			}
			return fmt.Sprintf("both nodes get tickets with the new password %.1f s after the Secret was written "+
				"(cached credentials are at most 5 s old)", time.Since(began).Seconds()), nil
		}},
		{"Active Directory changes the managed password while a gMSA is in use on win-1", func() (string, error) {
			contents, err := credentialSpec(ctx, c)
			if err != nil {
				return "", err
			}
			living, err := c.Node("win-1").Stage.StartGMSA(ctx, contents, 500*time.Millisecond)
			if err != nil {
				return "", err
			}
			defer living.Kill()
			if err := corp.RollManagedPassword(ctx, corp.GMSA); err != nil {
				return "", err
			}
			ctx, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			a, err := living.Wait(ctx, func(a winnode.Answer) bool { return a.Refetches > 0 && a.Error == "" })
			return fmt.Sprintf("the emulator called the plugin again, read the new managed password and got %d tickets",
				a.Tickets), err
		}},
		{"helm upgrade web, while the emulator on win-1 calls the plugin 20 times per second", func() (string, error) {
			end, err := c.Node("win-1").Load(ctx, input)
			if err != nil {
				return "", err
			}
			_, err = web.Install(ctx, "--set", selector, "--set", "log.level=debug")
			r, loadErr := end()
			return fmt.Sprintf("all %d calls succeeded during the upgrade", r.Calls), errors.Join(err, loadErr)
		}},
		{"Write the wrong user name CORP\\gmsa-reader into the Secret; gmsactl doctor", func() (string, error) {
			if err := patchUsername(ctx, c, `CORP\gmsa-reader`); err != nil {
				return "", err
			}
			out, err := c.Gmsactl(ctx, "doctor")
			fmt.Print(indent(out))
			if err == nil || !strings.Contains(out, "(secret-invalid)") {
				return "", fmt.Errorf("doctor did not report secret-invalid: %w", err)
			}
			return "doctor reports the Secret, the key and the command that fixes it",
				patchUsername(ctx, c, corp.Reader.Username)
		}},
		{"helm uninstall all three; kubectl delete pods", func() (string, error) {
			if _, err := c.Run(ctx, tools.Kubectl, "delete", "pod", "app", "outside"); err != nil {
				return "", err
			}
			for _, r := range []cluster.Release{web, plugin, hook} {
				if _, err := r.Uninstall(ctx); err != nil {
					return "", err
				}
			}
			for _, node := range c.WindowsNodes() {
				if left, err := node.Leftovers(ctx); err != nil || len(left) > 0 {
					return "", errors.Join(err, fmt.Errorf("%s still has %q", node.Name, left))
				}
			}
			if _, err := c.Run(ctx, tools.Kubectl, "get", "gmsacredentialspec", corp.GMSA); err != nil {
				return "", err
			}
			_, err := c.Run(ctx, tools.Kubectl, "get", "secret", "web-creds", "--namespace", namespace)
			return "nothing is left on any node; the user's Secret and GMSACredentialSpec still exist", err
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

// createPod creates a pod with the credential spec name web01, and returns kubectl's output.
func createPod(ctx context.Context, c *cluster.Cluster, name, node string) (string, error) {
	manifest := filepath.Join(c.Dir, name+".yaml")
	if err := os.WriteFile(manifest, fmt.Appendf(nil, `apiVersion: v1
kind: Pod
metadata:
  name: %s
spec:
  serviceAccountName: web
  nodeSelector:
    kubernetes.io/hostname: %s
  securityContext:
    windowsOptions:
      gmsaCredentialSpecName: web01
  containers:
    - name: app
      image: %s
`, name, node, c.AppImage()), 0o600); err != nil {
		return "", err
	}
	return c.Run(ctx, tools.Kubectl, "create", "-f", manifest)
}

// shell runs a command line as an administrator.
func shell(ctx context.Context, c *cluster.Cluster, line string) (string, error) {
	cmd, err := c.Shell(ctx, line)
	if err != nil {
		return "", err
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// ticket lets the emulator do what it does when a pod starts, and describes the Kerberos ticket. For 5 seconds after a
// change of the Secret, the provider can return the old credentials.
func ticket(ctx context.Context, c *cluster.Cluster, node string) (string, error) {
	contents, err := credentialSpec(ctx, c)
	if err != nil {
		return "", err
	}
	var a winnode.Answer
	err = cluster.Eventually(ctx, 15*time.Second, func() error {
		if a, err = c.Node(node).Stage.FetchSpec(ctx, contents); err == nil && a.Ticket == nil {
			err = fmt.Errorf("the emulator on %s got %+v", node, a)
		}
		return err
	})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("the emulator on %s read the managed password as %s and got a Kerberos ticket: "+
		"%s for %s, %s, until %s UTC", node, a.Username, a.Ticket.Service, a.Ticket.Client, a.Ticket.EncryptionType,
		a.Ticket.End.UTC().Format(time.DateTime)), nil
}

// credentialSpec reads the credential spec that gmsactl created.
func credentialSpec(ctx context.Context, c *cluster.Cluster) ([]byte, error) {
	contents, err := c.Run(ctx, tools.Kubectl, "get", "gmsacredentialspec", "web01", "--output", "jsonpath={.credspec}")
	return []byte(contents), err
}

// writePassword writes the account's password to the file that the demo's commands read.
func writePassword(c *cluster.Cluster, p credential.Password) error {
	return os.WriteFile(filepath.Join(c.Dir, "password.txt"), p.Reveal(), 0o600)
}

func patchUsername(ctx context.Context, c *cluster.Cluster, name string) error {
	secrets := c.ControlPlane.Client().CoreV1().Secrets(namespace)
	secret, err := secrets.Get(ctx, "web-creds", metav1.GetOptions{})
	if err != nil {
		return err
	}
	secret.Data["username"] = []byte(name)
	_, err = secrets.Update(ctx, secret, metav1.UpdateOptions{})
	return err
}

// line is the first line of out that contains word.
func line(out, word string) string {
	for l := range strings.Lines(out) {
		if strings.Contains(l, word) {
			return strings.TrimSpace(l)
		}
	}
	return ""
}

func indent(s string) string {
	return "   | " + strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n   | ") + "\n"
}

func (d *demo) summary(err error) {
	fmt.Println()
	for _, s := range d.steps {
		fmt.Printf("%6.1f s  %s\n", s.took.Seconds(), s.what)
	}
	fmt.Printf("%6.1f s  in total, including clean-up\n\n", time.Since(d.began).Seconds())
	if err != nil {
		fmt.Fprintln(os.Stderr, "The demo failed:", strings.TrimSpace(err.Error()))
		return
	}
	fmt.Println("Verified with a real control plane, Helm, a real Active Directory and Windows binaries under Wine.")
	fmt.Println("The lab emulates ccg.exe and the kubelet.")
	for _, s := range d.steps {
		if s.verified != "" {
			fmt.Printf("  - %s\n", s.verified)
		}
	}
}
