// Command demo shows the product as its users meet it, on one machine: charts installed with helm on a real control plane,
// the Windows programs under Wine, pods that want a gMSA, and an emulator in place of ccg.exe. It ends with what was proven
// and how long each step took, and leaves nothing running.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/ccgrkc/ccgrkc/lab/cluster"
	"github.com/ccgrkc/ccgrkc/lab/stage"
	"github.com/ccgrkc/ccgrkc/lab/tools"
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

	plugin := cluster.Release{Cluster: c, Chart: cluster.Installer, Namespace: namespace, Name: cluster.Installer}
	web := cluster.Release{Cluster: c, Chart: cluster.Provider, Namespace: namespace, Name: "web"}
	var changed time.Time
	for _, step := range []struct {
		what string
		do   func() (string, error)
	}{
		{"helm install " + cluster.Installer, func() (string, error) {
			_, err := plugin.Install(ctx)
			return "on all three Windows nodes the plugin is registered, was activated out of process, and its self-test answered", err
		}},
		{"kubectl label node win-1 win-3 " + label + "=web; helm install web " + cluster.Provider + " for these nodes", func() (string, error) {
			if err := errors.Join(c.Label(ctx, "win-1", label+"=web"), c.Label(ctx, "win-3", label+"=web")); err != nil {
				return "", err
			}
			_, err := web.Install(ctx, "--set", selector)
			return "the Account Provider is ready on win-1 and win-3, and waits for its Secret", err
		}},
		{"A pod with a credential spec (plugin input " + input + ") is scheduled to win-1, before the Secret exists", func() (string, error) {
			if err := c.CreateAppPod(ctx, "default", "app", "win-1", input); err != nil {
				return "", err
			}
			message, err := c.WaitForRefusal(ctx, "default", "app", "secret-not-found", time.Minute)
			return "the pod does not start, and says why: " + message, err
		}},
		{"kubectl create secret generic web-creds", func() (string, error) {
			if err := c.PutSecret(ctx, namespace, "web-creds", "Old-Pässwörd-密码"); err != nil {
				return "", err
			}
			return "the same pod starts, without anybody touching it", c.WaitForPod(ctx, "default", "app", time.Minute)
		}},
		{"A second pod is scheduled to win-2, which the release's nodeSelector leaves out", func() (string, error) {
			if err := c.CreateAppPod(ctx, "default", "outside", "win-2", input); err != nil {
				return "", err
			}
			message, err := c.WaitForRefusal(ctx, "default", "outside", "0xA0040001", time.Minute)
			return "a node outside the nodeSelector has nothing to give: " + message, err
		}},
		{"helm test web", func() (string, error) {
			_, err := web.Test(ctx)
			return "the provider answered through the files on the node, with good credentials", err
		}},
		{"Change the password in the Secret", func() (string, error) {
			changed = time.Now()
			if err := c.PutSecret(ctx, namespace, "web-creds", "New-Pässwörd-𝄞"); err != nil {
				return "", err
			}
			for _, node := range []string{"win-1", "win-3"} {
				if err := expect(ctx, c.Node(node), "New-Pässwörd-𝄞"); err != nil {
					return "", err
				}
			}
			return fmt.Sprintf("ccg has the new password on both nodes %.1f s after the change (a copy serves for 5 s)", time.Since(changed).Seconds()), nil
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
		{"helm uninstall both; kubectl delete pods", func() (string, error) {
			if _, err := c.Run(ctx, tools.Kubectl, "delete", "pod", "app", "outside"); err != nil {
				return "", err
			}
			for _, release := range []cluster.Release{web, plugin} {
				if _, err := release.Uninstall(ctx); err != nil {
					return "", err
				}
			}
			for _, node := range c.WindowsNodes() {
				if left, err := node.Left(ctx); err != nil || len(left) > 0 {
					return "", errors.Join(err, fmt.Errorf("%s still holds %q", node.Name, left))
				}
			}
			_, err := c.Run(ctx, tools.Kubectl, "get", "secret", "web-creds", "--namespace", namespace)
			return "no key and no file is left on any node; the Secret, which is the user's, is still there", err
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

// expect has the emulator fetch until the password is this one. An answer from before a change may come for 5 seconds.
func expect(ctx context.Context, node *cluster.Node, password string) error {
	return cluster.Eventually(ctx, 15*time.Second, func() error {
		a, err := node.Stage.Fetch(ctx, input)
		if err == nil && a.PasswordFingerprint != stage.Fingerprint(password) {
			err = fmt.Errorf("ccg on %s got %+v", node.Name, a)
		}
		return err
	})
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
	fmt.Println("Proven, with a real control plane, real helm and the Windows binaries under Wine; ccg.exe and the kubelet are the lab's own:")
	for _, s := range d.steps {
		if s.proven != "" {
			fmt.Printf("  - %s\n", s.proven)
		}
	}
}
