package cli

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ccgrkc/ccgrkc/internal/escape"
)

// completionTimeout limits how long completion waits for the cluster.
const completionTimeout = 2 * time.Second

// completions escapes names: cobra prints one completion on each line, with its description after a tab.
func completions(names []string) []string {
	for i := range names {
		names[i] = escape.Value(names[i])
	}
	return names
}

func (g *globals) completeContexts(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	config, err := g.config.ToRawKubeConfigLoader().RawConfig()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return completions(slices.Sorted(maps.Keys(config.Contexts))), cobra.ShellCompDirectiveNoFileComp
}

func (g *globals) completeNamespaces(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	c, err := g.inventory()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
	defer cancel()
	list, err := c.Kube.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, n := range list.Items {
		names = append(names, n.Name)
	}
	return completions(names), cobra.ShellCompDirectiveNoFileComp
}

// completeCredentialSpecs completes the names of the cluster's GMSACredentialSpecs and of files.
func (g *globals) completeCredentialSpecs(cmd *cobra.Command, _ []string, _ string) ([]string,
	cobra.ShellCompDirective) {
	c, err := g.inventory()
	if err != nil {
		return nil, cobra.ShellCompDirectiveDefault
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
	defer cancel()
	specs, err := c.CredentialSpecs(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return completions(slices.Sorted(maps.Keys(specs))), cobra.ShellCompDirectiveDefault
}
