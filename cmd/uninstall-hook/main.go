// Command uninstall-hook runs in the charts' uninstall hooks. It stops one DaemonSet, and waits until another one has
// cleaned up all nodes.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/ccgrkc/ccgrkc/internal/escape"
	"github.com/ccgrkc/ccgrkc/internal/kube"
	"github.com/ccgrkc/ccgrkc/internal/uninstall"
	"github.com/ccgrkc/ccgrkc/internal/version"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		escape.Fprintf(os.Stderr, "uninstall-hook: %v\n", err)
		stop()
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:   "uninstall-hook",
		Short: "Clean up nodes before Helm deletes a release",
		Long: `uninstall-hook runs in the uninstall hooks of the charts rancher-gmsa-plugin-installer and
rancher-gmsa-account-provider.

helm uninstall first runs "stop", which stops the pods that keep the release installed on the nodes. Then a DaemonSet of
the chart cleans up all Windows nodes, and "wait" waits for it. If a node is not clean in time, "wait" fails with the
node's name, and helm uninstall fails too. Helm keeps the release, so that you can run helm uninstall again.

Both commands call the API server as the pod's ServiceAccount.`,
		Version:       version.String(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(stop(), wait())
	return root
}

func stop() *cobra.Command {
	var (
		ds      uninstall.DaemonSet
		timeout time.Duration
	)
	c := &cobra.Command{
		Use:   "stop",
		Short: "Delete a DaemonSet and wait until its pods are gone",
		Long: `Deletes a DaemonSet and waits until its pods are gone. Pods on a node that is down or disconnected are
reported, but do not make this command fail. "wait" fails for such a node.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			w, err := watcher(cmd)
			if err != nil {
				return err
			}
			return w.Stop(cmd.Context(), ds, timeout)
		},
	}
	c.Flags().StringVar(&ds.Namespace, "namespace", "", "namespace of the DaemonSet (required)")
	c.Flags().StringVar(&ds.Name, "daemonset", "", "name of the DaemonSet (required)")
	c.Flags().StringVar(&ds.Selector, "selector", "", "label selector of its pods (required)")
	c.Flags().DurationVar(&timeout, "timeout", time.Minute, "time limit for the pods to stop")
	required(c, "namespace", "daemonset", "selector")
	return c
}

func wait() *cobra.Command {
	var (
		cleaner, stopped uninstall.DaemonSet
		timeout          time.Duration
	)
	c := &cobra.Command{
		Use:   "wait",
		Short: "Wait until a DaemonSet has cleaned up all nodes",
		Long: `Waits until the clean-up DaemonSet has a ready pod on each of its nodes, and until all pods of the
DaemonSet that "stop" deleted are gone. At the time limit it fails and lists the nodes that are not clean.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			w, err := watcher(cmd)
			if err != nil {
				return err
			}
			stopped.Namespace = cleaner.Namespace
			return w.Wait(cmd.Context(), cleaner, stopped, timeout, settle)
		},
	}
	c.Flags().StringVar(&cleaner.Namespace, "namespace", "", "namespace of both DaemonSets (required)")
	c.Flags().StringVar(&cleaner.Name, "daemonset", "", "name of the clean-up DaemonSet (required)")
	c.Flags().StringVar(&cleaner.Selector, "selector", "", "label selector of its pods (required)")
	c.Flags().StringVar(&stopped.Name, "stopped-daemonset", "", `name of the DaemonSet that "stop" deleted (required)`)
	c.Flags().StringVar(&stopped.Selector, "stopped-selector", "", "label selector of its pods (required)")
	c.Flags().DurationVar(&timeout, "timeout", 4*time.Minute, "time limit")
	required(c, "namespace", "daemonset", "selector", "stopped-daemonset", "stopped-selector")
	return c
}

// settle is longer than "uninstall --keep-running" needs for the next check: 5 s, plus 30 s if the DLL is loaded.
const settle = 40 * time.Second

func required(c *cobra.Command, flags ...string) {
	for _, f := range flags {
		_ = c.MarkFlagRequired(f)
	}
}

func watcher(cmd *cobra.Command) (*uninstall.Watcher, error) {
	server, err := kube.InCluster(os.Getenv)
	if err != nil {
		return nil, err
	}
	client, err := kube.NewClient(server, "uninstall-hook")
	if err != nil {
		return nil, err
	}
	return &uninstall.Watcher{API: client, Progress: cmd.OutOrStdout(), Every: time.Second}, nil
}
