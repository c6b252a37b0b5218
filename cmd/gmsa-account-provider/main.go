// Command gmsa-account-provider serves the credentials of one impersonation account to the CCG plugin on its host.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/endpoint"
	"github.com/ccgrkc/ccgrkc/internal/kube"
	"github.com/ccgrkc/ccgrkc/internal/logging"
	"github.com/ccgrkc/ccgrkc/internal/provider"
	"github.com/ccgrkc/ccgrkc/internal/version"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := command()
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "gmsa-account-provider:", err)
		stop()
		os.Exit(1)
	}
}

// account is what every subcommand is about.
type account struct {
	namespace, secret, root string
}

func (a *account) flags(c *cobra.Command) {
	c.Flags().StringVar(&a.namespace, "namespace", "", "namespace of the Secret (required)")
	c.Flags().StringVar(&a.secret, "secret", "", "name of the Secret, usually <release>-creds (required)")
	c.Flags().StringVar(&a.root, "host-path", endpoint.DefaultRoot, "directory on the host below which the endpoint files are")
	_ = c.MarkFlagRequired("namespace")
	_ = c.MarkFlagRequired("secret")
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:   "gmsa-account-provider",
		Short: "Serves the credentials of one impersonation account to the CCG plugin on this host",
		Long: `gmsa-account-provider is the Account Provider of one impersonation account.

It reads one Secret from the Kubernetes API server, as its ServiceAccount, and serves it over mutual TLS on a loopback
port of the host. How to reach it, and the client certificate that opens it, stand in files below --host-path that only
SYSTEM, Administrators and the plugin's identity may read. The Secret has the keys domainName (the domain's DNS name),
username (the bare account name) and password.`,
		Version:       version.String(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(run(), healthcheck(), cleanup())
	return root
}

func run() *cobra.Command {
	var (
		a                                    account
		api                                  kube.Server
		identity, mode, serverDir, clientDir string
		lifetime, maxStale                   time.Duration
		metrics                              string
		logs                                 logging.Flags
	)
	c := &cobra.Command{
		Use:   "run",
		Short: "Serve until stopped",
		Long: `Serves the credentials of one Secret until SIGTERM or Ctrl-C, then withdraws the endpoint files.

It starts, and goes on, without the Secret: calls are refused with the code secret-not-found until it appears. A call is
answered from a copy at most 5 seconds old. If the API server cannot be reached, the last good copy serves for up to
--max-stale. Deleted Secrets and withdrawn permissions count at once.`,
		Example: `  # in a pod
  gmsa-account-provider run --namespace gmsa-system --secret web-creds

  # anywhere
  gmsa-account-provider run --namespace gmsa-system --secret web-creds \
    --kube-api-server https://10.0.0.1:6443 --kube-token-file token --kube-ca-file ca.crt`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ref, err := credential.NewReference(a.namespace, a.secret)
			if err != nil {
				return err
			}
			log, err := logs.Logger(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			if api == (kube.Server{}) {
				if api, err = kube.InCluster(os.Getenv); err != nil {
					return fmt.Errorf("%w; name the API server with --kube-api-server, --kube-token-file and --kube-ca-file", err)
				}
			}
			certificates, err := certificatesFrom(mode, lifetime, serverDir, clientDir)
			if err != nil {
				return err
			}
			if maxStale < 0 {
				return fmt.Errorf("--max-stale %s: want 0 or more", maxStale)
			}
			return provider.Run(cmd.Context(), provider.Config{
				Account: ref, API: api, Publisher: endpoint.Publisher{Root: a.root, Reader: identity},
				Certificates: certificates, MaxStale: maxStale, MetricsAddress: metrics, Instance: os.Getenv(podUID), Log: log,
			})
		},
	}
	a.flags(c)
	f := c.Flags()
	f.StringVar(&identity, "plugin-identity", endpoint.Readers[0], fmt.Sprintf("identity that the plugin runs as and that may read the endpoint files, as the installer's --run-as: one of %q", endpoint.Readers))
	f.StringVar(&mode, "certificates", "embedded", "where certificates come from: embedded (made here) or secrets (mounted)")
	f.DurationVar(&lifetime, "certificate-lifetime", provider.DefaultLifetime, "lifetime of embedded certificates; renewed at two thirds of it")
	f.StringVar(&serverDir, "server-certificate-dir", "", "with --certificates secrets: directory in the container with tls.crt, tls.key and ca.crt of the server")
	f.StringVar(&clientDir, "client-certificate-dir", "", "with --certificates secrets: directory in the container with tls.crt, tls.key and ca.crt of the client")
	f.DurationVar(&maxStale, "max-stale", provider.DefaultMaxStale, "how long the last good copy serves while the API server cannot be reached; 0: not at all")
	f.StringVar(&metrics, "metrics-address", "", "host:port for Prometheus metrics on /metrics; empty: off")
	f.StringVar(&api.URL, "kube-api-server", "", "URL of the API server (default: as Kubernetes tells a pod)")
	f.StringVar(&api.TokenFile, "kube-token-file", "", "file with the ServiceAccount's token; with --kube-api-server")
	f.StringVar(&api.CAFile, "kube-ca-file", "", "file with the API server's CA; with --kube-api-server")
	logs.Add(f)
	c.MarkFlagsRequiredTogether("kube-api-server", "kube-token-file", "kube-ca-file")
	c.MarkFlagsRequiredTogether("server-certificate-dir", "client-certificate-dir")
	return c
}

func healthcheck() *cobra.Command {
	var (
		a       account
		output  string
		timeout time.Duration
		require bool
		thisPod bool
	)
	c := &cobra.Command{
		Use:   "healthcheck",
		Short: "Prove that the provider answers through the files on the host, as the plugin would call it",
		Long: `Reads the endpoint files on the host, connects with the client certificate in them, and asks the provider how it is.
Exits 0 if the provider answers. Whether the Secret was good when it was last read is shown, and decides nothing: a provider
without its Secret is healthy, it waits. With --require-credentials the provider reads the Secret now, and the exit code tells
whether it is good.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return healthcheckRun(cmd, a, output, timeout, require, thisPod)
		},
	}
	a.flags(c)
	c.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	c.Flags().DurationVar(&timeout, "timeout", 5*time.Second, "how long to wait for the answer")
	c.Flags().BoolVar(&require, "require-credentials", false, "have the provider read the Secret, and fail if it is not good")
	c.Flags().BoolVar(&thisPod, "this-pod", false, "fail if the provider of another pod answers, as at the beginning of a rolling update; needs the environment variable "+podUID)
	return c
}

// podUID is the environment variable by which a pod's processes know one another, set from the pod's metadata.uid.
const podUID = "POD_UID"

func healthcheckRun(cmd *cobra.Command, a account, output string, timeout time.Duration, require, thisPod bool) error {
	ref, err := credential.NewReference(a.namespace, a.secret)
	if err != nil {
		return err
	}
	if output != "text" && output != "json" {
		return fmt.Errorf("--output %q: want text or json", output)
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
	defer cancel()
	h, err := provider.Check(ctx, a.root, ref, require)
	if err != nil {
		return err
	}
	own := os.Getenv(podUID)
	if thisPod && own == "" {
		return fmt.Errorf("--this-pod: the environment variable %s is not set; the chart sets it from metadata.uid", podUID)
	}
	if thisPod && h.Instance != own {
		return fmt.Errorf("account %s: it is another pod's provider that answers; this pod is %q, that one %q", ref, own, h.Instance)
	}
	out := cmd.OutOrStdout()
	if output == "json" {
		if err := json.NewEncoder(out).Encode(h); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(out, "account %s: the provider answers (version %s)\n", ref, h.Version)
		if h.Problem != "" {
			fmt.Fprintf(out, "the Secret: %s: %s\n", h.Problem, h.Detail)
		} else if h.CacheAgeSeconds != nil {
			fmt.Fprintf(out, "the Secret: good, copy %.0f s old\n", *h.CacheAgeSeconds)
		} else {
			fmt.Fprintln(out, "the Secret: not read yet")
		}
	}
	if require && h.CacheAgeSeconds == nil {
		return fmt.Errorf("account %s: the provider has no good copy of the Secret", ref)
	}
	return nil
}

func cleanup() *cobra.Command {
	var (
		a    account
		stay bool
	)
	c := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove what a killed provider left on the host for one Secret",
		Long: `Removes the endpoint files of one account if no provider serves them any more. Files of a provider that answers stay,
and the command fails. It may run any number of times.

With --keep-running it goes on until stopped once all is clean: what the container of a DaemonSet must do.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ref, err := credential.NewReference(a.namespace, a.secret)
			if err != nil {
				return err
			}
			n, err := provider.Cleanup(cmd.Context(), a.root, ref)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "account %s: %d left-over generations removed, nothing is left\n", ref, n)
			if stay {
				<-cmd.Context().Done()
			}
			return nil
		},
	}
	a.flags(c)
	c.Flags().BoolVar(&stay, "stay", false, "when all is clean, go on until stopped")
	return c
}

// mountedDir is where the container finds a directory that the pod mounts. A certificate in it tells the mount from the path.
func mountedDir(dir string) string {
	return filepath.Dir(kube.MountedFile(os.Getenv, filepath.Join(dir, "tls.crt")))
}

func certificatesFrom(mode string, lifetime time.Duration, serverDir, clientDir string) (provider.Certificates, error) {
	switch mode {
	case "embedded":
		if lifetime < time.Second {
			return nil, fmt.Errorf("--certificate-lifetime %s: want at least 1s", lifetime)
		}
		if serverDir != "" {
			return nil, errors.New("--server-certificate-dir and --client-certificate-dir go with --certificates secrets")
		}
		return provider.Embedded{Lifetime: lifetime}, nil
	case "secrets":
		if serverDir == "" {
			return nil, errors.New("--certificates secrets needs --server-certificate-dir and --client-certificate-dir")
		}
		return &provider.FromSecrets{ServerDir: mountedDir(serverDir), ClientDir: mountedDir(clientDir)}, nil
	default:
		return nil, fmt.Errorf("--certificates %q: want embedded or secrets", mode)
	}
}
