// Command uninstall-hook is what the charts' uninstall hooks run: it ends a DaemonSet's pods, and waits until another's
// have cleaned every node.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/ccgrkc/ccgrkc/internal/kube"
	"github.com/ccgrkc/ccgrkc/internal/uninstall"
	"github.com/ccgrkc/ccgrkc/internal/version"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "uninstall-hook:", err)
		stop()
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:   "uninstall-hook",
		Short: "Takes a release off the nodes before Helm deletes it",
		Long: `uninstall-hook runs in the uninstall hooks of the charts rancher-gmsa-plugin-installer and rancher-gmsa-account-provider.

helm uninstall first runs "stop", which ends the pods that keep the release installed on the nodes. Then a DaemonSet of the
chart cleans every Windows node, and "wait" waits for it. A node that does not follow in time makes "wait", and with it
helm uninstall, fail with that node's name; the release stays, so that helm uninstall can be run again.

Both ask the API server as the pod's ServiceAccount.`,
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
		Long: `Deletes a DaemonSet and waits until its pods are gone. Nodes that do not end theirs in time, because they are down or cut
off, are named and do not make it fail: "wait" will not pass them over.`,
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
	c.Flags().DurationVar(&timeout, "timeout", time.Minute, "how long to wait for the pods' end")
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
		Short: "Wait until the pods of a cleaning DaemonSet are ready on every node",
		Long: `Waits until the pods of a DaemonSet that cleans nodes are ready on every node it is meant for, and no pod of the DaemonSet
that "stop" deleted is left. Fails when that is not so in time, and names the nodes.`,
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
	c.Flags().StringVar(&cleaner.Name, "daemonset", "", "name of the cleaning DaemonSet (required)")
	c.Flags().StringVar(&cleaner.Selector, "selector", "", "label selector of its pods (required)")
	c.Flags().StringVar(&stopped.Name, "stopped-daemonset", "", "name of the DaemonSet that \"stop\" deleted (required)")
	c.Flags().StringVar(&stopped.Selector, "stopped-selector", "", "label selector of its pods (required)")
	c.Flags().DurationVar(&timeout, "timeout", 4*time.Minute, "how long to wait")
	required(c, "namespace", "daemonset", "selector", "stopped-daemonset", "stopped-selector")
	return c
}

// settle is longer than "uninstall --keep-running" takes to look again: 5 s, and 30 s to wait for a DLL that is loaded.
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
