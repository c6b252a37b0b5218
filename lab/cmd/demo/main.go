// Command demo shows the product as its users meet it, on one machine: three charts installed with helm on a real control plane,
// accounts in a real Active Directory, the Windows programs under Wine, pods that want a gMSA, and an emulator in place of
// ccg.exe. It ends with what was proven and how long each step took, and leaves nothing running.
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
	input     = namespace + ":web-creds"
	// A node cannot give itself a label below this prefix.
	label    = "node-restriction.kubernetes.io/gmsa-account"
	selector = `nodeSelector.node-restriction\.kubernetes\.io/gmsa-account=web`
)

func main() {
	keep := flag.String("logs", "", "keep the lab's files, logs included, in this directory")
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

func (d *demo) run(ctx context.Context, keep string) (err error) {
	dir := keep
	if keep == "" {
		if dir, err = os.MkdirTemp("", "ccgrkc-demo-"); err != nil {
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
	}
	var c *cluster.Cluster
	if err := d.do("Start a control plane, a registry with the image, the Windows nodes win-1, win-2, win-3 (Wine) and linux-1", func() (string, error) {
		c, err = cluster.StartStandard(ctx, dir)
		return "", err
	}); err != nil {
		return err
	}
	defer c.Stop()

	var corp *ad.Domain
	var granting string // the command that a denial ends with
	if err := d.do("Start an Active Directory: a domain controller of corp.example.com (Samba) with the gMSA web01, which gmsa-reader may read", func() (string, error) {
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
	for _, step := range []struct {
		what string
		do   func() (string, error)
	}{
		{"helm install " + cluster.Installer, func() (string, error) {
			_, err := plugin.Install(ctx)
			return "on all three Windows nodes the plugin is registered, was activated out of process, and its self-test answered", err
		}},
		{"helm install " + cluster.Webhook, func() (string, error) {
			_, err := hook.Install(ctx)
			return "two replicas on linux-1 made their certificate, and the API server trusts it; it knows GMSACredentialSpecs now", err
		}},
		{"kubectl label node win-1 win-3 " + label + "=web; helm install web " + cluster.Provider + " for these nodes", func() (string, error) {
			if err := errors.Join(c.Label(ctx, "win-1", label+"=web"), c.Label(ctx, "win-3", label+"=web")); err != nil {
				return "", err
			}
			_, err := web.Install(ctx, "--set", selector)
			return "the Account Provider is ready on win-1 and win-3, and waits for its Secret", err
		}},
		{"gmsactl credspec create --gmsa web01 --account " + namespace + "/web " + strings.Join(account, " ") + " --apply", func() (string, error) {
			if err := writePassword(c, corp.Reader.Password); err != nil {
				return "", err
			}
			out, err := c.Gmsactl(ctx, append([]string{"credspec", "create", "--gmsa", corp.GMSA, "--account", namespace + "/web", "--apply"}, account...)...)
			return "the credential spec is made over LDAP, from Linux: " + line(out, "created"), err
		}},
		{"A pod that names web01, for win-1, whose ServiceAccount may not use it", func() (string, error) {
			if _, err := c.Run(ctx, tools.Kubectl, "create", "serviceaccount", "web"); err != nil {
				return "", err
			}
			out, err := createPod(ctx, c, "app", "win-1")
			if err == nil {
				return "", fmt.Errorf("the pod was let in:\n%s", out)
			}
			fmt.Print(indent(out))
			_, grant, ok := strings.Cut(out, "echo ")
			if !ok {
				return "", fmt.Errorf("the denial has no command in it:\n%s", out)
			}
			granting = "echo " + strings.TrimSpace(grant)
			return "the pod is denied, and the denial ends with the command that grants the right", nil
		}},
		{"That command, as it was printed, and the same pod again, before the Secret exists", func() (string, error) {
			if out, err := shell(ctx, c, granting); err != nil {
				return "", fmt.Errorf("%w\n%s", err, out)
			}
			out, err := createPod(ctx, c, "app", "win-1")
			if err != nil {
				return "", err
			}
			fmt.Print(indent(out))
			if !strings.Contains(out, "Warning: ") {
				return "", errors.New("kubectl showed no warning that the Secret is missing")
			}
			message, err := c.WaitForRefusal(ctx, "default", "app", "secret-not-found", time.Minute)
			return "the pod is let in with a warning; on the node it does not start, and says why: " + message, err
		}},
		{"gmsactl account create " + namespace + "/web " + strings.Join(account, " "), func() (string, error) {
			out, err := c.Gmsactl(ctx, append([]string{"account", "create", namespace + "/web", "--gmsa", corp.GMSA}, account...)...)
			return "the password was proven to Active Directory before it was written: " + line(out, "created"), err
		}},
		{"The same pod starts, without anybody touching it", func() (string, error) {
			if err := c.WaitForPod(ctx, "default", "app", time.Minute); err != nil {
				return "", err
			}
			return ticket(ctx, c, "win-1")
		}},
		{"A second pod is scheduled to win-2, which the release's nodeSelector leaves out", func() (string, error) {
			if _, err := createPod(ctx, c, "outside", "win-2"); err != nil {
				return "", err
			}
			message, err := c.WaitForRefusal(ctx, "default", "outside", "0xA0040001", time.Minute)
			return "a node outside the nodeSelector has nothing to give: " + message, err
		}},
		{"gmsactl verify web01 --node win-1", func() (string, error) {
			out, err := c.Gmsactl(ctx, "verify", corp.GMSA, "--node", "win-1")
			fmt.Print(indent(out))
			return "every link holds, from the credential spec to a Kerberos ticket of the gMSA, and on the node", err
		}},
		{"The account's password changes in Active Directory; gmsactl account rotate " + namespace + "/web --password-file password.txt", func() (string, error) {
			if err := corp.SetPassword(ctx, corp.Reader.Username, ad.NewPassword()); err != nil {
				return "", err
			}
			if out, err := c.Gmsactl(ctx, "verify", corp.GMSA); err == nil {
				return "", fmt.Errorf("the old password still counts:\n%s", out)
			}
			if err := writePassword(c, corp.Reader.Password); err != nil {
				return "", err
			}
			began := time.Now()
			if _, err := c.Gmsactl(ctx, "account", "rotate", namespace+"/web", "--password-file", "password.txt"); err != nil {
				return "", err
			}
			for _, node := range []string{"win-1", "win-3"} {
				if _, err := ticket(ctx, c, node); err != nil {
					return "", err
				}
			}
			return fmt.Sprintf("ccg on both nodes gets tickets with the new password %.1f s after the Secret was written (a copy serves for 5 s)", time.Since(began).Seconds()), nil
		}},
		{"Active Directory rolls the gMSA's own password, while a gMSA lives on win-1", func() (string, error) {
			contents, err := credentialSpec(ctx, c)
			if err != nil {
				return "", err
			}
			living, err := c.Node("win-1").Stage.Live(ctx, contents, 500*time.Millisecond)
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
			return fmt.Sprintf("ccg asked the plugin again and read the new managed password; it has had %d tickets by now", a.Tickets), err
		}},
		{"helm upgrade web, while ccg on win-1 calls 20 times a second", func() (string, error) {
			end, err := c.Node("win-1").Load(ctx, input)
			if err != nil {
				return "", err
			}
			_, err = web.Install(ctx, "--set", selector, "--set", "log.level=debug")
			r, loadErr := end()
			return fmt.Sprintf("all %d calls were answered while the pods were replaced", r.Calls), errors.Join(err, loadErr)
		}},
		{"Somebody writes CORP\\gmsa-reader into the Secret; gmsactl doctor", func() (string, error) {
			if err := patchUsername(ctx, c, `CORP\gmsa-reader`); err != nil {
				return "", err
			}
			out, err := c.Gmsactl(ctx, "doctor")
			fmt.Print(indent(out))
			if err == nil || !strings.Contains(out, "(secret-invalid)") {
				return "", fmt.Errorf("doctor did not name it: %w", err)
			}
			return "doctor names the Secret, the key and the command that mends it", patchUsername(ctx, c, corp.Reader.Username)
		}},
		{"helm uninstall all three; kubectl delete pods", func() (string, error) {
			if _, err := c.Run(ctx, tools.Kubectl, "delete", "pod", "app", "outside"); err != nil {
				return "", err
			}
			for _, release := range []cluster.Release{web, plugin, hook} {
				if _, err := release.Uninstall(ctx); err != nil {
					return "", err
				}
			}
			for _, node := range c.WindowsNodes() {
				if left, err := node.Left(ctx); err != nil || len(left) > 0 {
					return "", errors.Join(err, fmt.Errorf("%s still holds %q", node.Name, left))
				}
			}
			if _, err := c.Run(ctx, tools.Kubectl, "get", "gmsacredentialspec", corp.GMSA); err != nil {
				return "", err
			}
			_, err := c.Run(ctx, tools.Kubectl, "get", "secret", "web-creds", "--namespace", namespace)
			return "no key and no file is left on any node; the Secret and the GMSACredentialSpec, which are the user's, are still there", err
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

// createPod creates, with kubectl, a pod that names the credential spec web01, and returns what kubectl printed.
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

// shell runs a line as an administrator would.
func shell(ctx context.Context, c *cluster.Cluster, line string) (string, error) {
	cmd, err := c.Shell(ctx, line)
	if err != nil {
		return "", err
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// ticket has the emulator do once more what it does when a pod starts, and tells of the ticket. An answer from before a
// change of the Secret may come for 5 seconds.
func ticket(ctx context.Context, c *cluster.Cluster, node string) (string, error) {
	contents, err := credentialSpec(ctx, c)
	if err != nil {
		return "", err
	}
	var a winnode.Answer
	err = cluster.Eventually(ctx, 15*time.Second, func() error {
		if a, err = c.Node(node).Stage.FetchSpec(ctx, contents); err == nil && a.Ticket == nil {
			err = fmt.Errorf("ccg on %s got %+v", node, a)
		}
		return err
	})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("ccg on %s read the managed password as %s, and has a Kerberos ticket: %s for %s, %s, until %s", node, a.Username,
		a.Ticket.Service, a.Ticket.Client, a.Ticket.EncryptionType, a.Ticket.End.UTC().Format(time.DateTime)+" UTC"), nil
}

// credentialSpec reads the contents of the GMSACredentialSpec that gmsactl made.
func credentialSpec(ctx context.Context, c *cluster.Cluster) ([]byte, error) {
	contents, err := c.Run(ctx, tools.Kubectl, "get", "gmsacredentialspec", "web01", "--output", "jsonpath={.credspec}")
	return []byte(contents), err
}

// writePassword puts the account's password where the commands of the demo read it.
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

// line is the line of a program's output that holds a word.
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
	fmt.Printf("%6.1f s  in all, clean-up included\n\n", time.Since(d.began).Seconds())
	if err != nil {
		fmt.Fprintln(os.Stderr, "The demo failed:", strings.TrimSpace(err.Error()))
		return
	}
	fmt.Println("Proven, with a real control plane, real helm, a real Active Directory and the Windows binaries under Wine; ccg.exe and the kubelet\nare the lab's own:")
	for _, s := range d.steps {
		if s.proven != "" {
			fmt.Printf("  - %s\n", s.proven)
		}
	}
}
