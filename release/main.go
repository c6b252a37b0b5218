// Command images builds CCGRKC's container images, and pushes them, without a container engine.
//
// It reads built programs and writes an OCI image layout: one index, with an image for windows/amd64 (HostProcess
// containers) and one each for linux/amd64 and linux/arm64 (the webhook, the charts' Jobs, gmsactl). It neither
// compiles nor signs programs.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		stop()
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "images",
		Short:         "Build and push CCGRKC's container images without a container engine",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(buildCommand(), pushCommand(), digestCommand())
	return root
}

func buildCommand() *cobra.Command {
	var o options
	c := &cobra.Command{
		Use:   "build",
		Short: "Write an OCI image layout from the programs in a directory",
		Long: `Writes one multi-platform image as an OCI image layout. The directory --dist must contain:

  ccg-plugin-installer.exe, gmsa-account-provider.exe, container-probe.exe
      the programs of the Windows image
  ccg-plugin.dll
      the DLL in the installer, for the SBOM
  uninstall-hook, gmsa-webhook, gmsactl in linux-amd64 and linux-arm64
      the programs of the Linux images

The same programs and flags result in the same digest. The SBOM (CycloneDX 1.6) of each program is in its image, below
/sbom, and in the directory sbom next to --out.

The Windows image has a base layer that HostProcess containers can use on every version of Windows Server. With --base
scratch, the command creates it; with --base REFERENCE, it pulls it.`,
		Example: `  images build --version v1.2.3 --revision "$(git rev-parse HEAD)" --dist ../dist --out ../dist/image
  images build --version v1.2.3 --dist ../dist --out ../dist/image \
    --base mcr.microsoft.com/oss/kubernetes/windows-host-process-containers-base-image:v1.0.0`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.log = cmd.OutOrStdout()
			_, err := build(cmd.Context(), o)
			return err
		},
	}
	f := c.Flags()
	f.StringVar(&o.version, "version", "", "version of the programs, for labels and SBOMs (required)")
	f.StringVar(&o.revision, "revision", "", "commit of the programs, for a label")
	f.StringVar(&o.dist, "dist", "../dist", "directory with the programs")
	f.StringVar(&o.out, "out", "../dist/image", "directory of the layout, which is replaced")
	f.StringVar(&o.base, "base", scratch, "base of the Windows image: scratch, or an image reference to pull")
	_ = c.MarkFlagRequired("version")
	return c
}

func pushCommand() *cobra.Command {
	var (
		layout, to string
		insecure   bool
	)
	c := &cobra.Command{
		Use:   "push",
		Short: "Push an image layout to a registry",
		Long: `Pushes all platforms of a layout with one tag. It uses the credentials of docker login or podman login. It
uses HTTP for a registry on a loopback address, and HTTPS for others, unless --insecure is set.`,
		Example: `  images push --layout ../dist/image --to ghcr.io/ccgrkc/ccgrkc:v1.2.3
  images push --layout ../dist/image --to 127.0.0.1:5000/ccgrkc/ccgrkc:v1.2.3`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return push(cmd.Context(), layout, to, insecure, cmd.OutOrStdout())
		},
	}
	c.Flags().StringVar(&layout, "layout", "../dist/image", "directory of the layout")
	c.Flags().StringVar(&to, "to", "", "destination HOST[:PORT]/PATH:TAG (required)")
	c.Flags().BoolVar(&insecure, "insecure", false, "allow HTTP without TLS")
	_ = c.MarkFlagRequired("to")
	return c
}

func digestCommand() *cobra.Command {
	var layout string
	c := &cobra.Command{
		Use:   "digest",
		Short: "Print the digest of the image in a layout",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, digest, err := open(layout)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), digest)
			return nil
		},
	}
	c.Flags().StringVar(&layout, "layout", "../dist/image", "directory of the layout")
	return c
}
