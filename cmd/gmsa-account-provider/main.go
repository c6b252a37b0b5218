// Command gmsa-account-provider gives the credentials of one impersonation account to the CCG plugin on its host.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/ccgrkc/ccgrkc/internal/connlimit"
	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/endpoint"
	"github.com/ccgrkc/ccgrkc/internal/escape"
	"github.com/ccgrkc/ccgrkc/internal/kube"
	"github.com/ccgrkc/ccgrkc/internal/logging"
	"github.com/ccgrkc/ccgrkc/internal/provider"
	"github.com/ccgrkc/ccgrkc/internal/selfcheck/record"
	"github.com/ccgrkc/ccgrkc/internal/version"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := command()
	if err := root.ExecuteContext(ctx); err != nil {
		escape.Fprintf(os.Stderr, "gmsa-account-provider: %v\n", err)
		stop()
		os.Exit(1)
	}
}

// account holds the flags of every subcommand.
type account struct {
	namespace, secret, root string
}

func (a *account) flags(c *cobra.Command) {
	c.Flags().StringVar(&a.namespace, "namespace", "", "namespace of the Secret (required)")
	c.Flags().StringVar(&a.secret, "secret", "", "name of the Secret, usually <release>-creds (required)")
	c.Flags().StringVar(&a.root, "host-path", endpoint.DefaultRoot, "root directory of the endpoint files on the host")
	_ = c.MarkFlagRequired("namespace")
	_ = c.MarkFlagRequired("secret")
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:   "gmsa-account-provider",
		Short: "Give the credentials of one impersonation account to the CCG plugin on this host",
		Long: `gmsa-account-provider is the Account Provider of one impersonation account.

It reads one Secret from the Kubernetes API server, as its ServiceAccount, and provides it over mutual TLS on a
loopback port of the host. The endpoint files below --host-path contain the port and the client certificate. Only
SYSTEM, Administrators and the plugin's identity can read them. The Secret has the keys domainName (the domain's DNS
name), username (the sAMAccountName, without domain) and password.`,
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
		Short: "Run the provider until it is stopped",
		Long: `Provides the credentials of one Secret until SIGTERM or Ctrl-C, then removes the endpoint files.

The provider also runs without the Secret. Calls then fail with the code secret-not-found until the Secret exists.
Cached credentials are at most 5 seconds old. While the API server is unavailable, the provider uses stale credentials
for up to --max-stale. If the Secret or the permission is deleted, the provider deletes its cached credentials with the
next call.`,
		Example: `  # in a pod
  gmsa-account-provider run --namespace gmsa-system --secret web-creds

  # outside of a cluster
  gmsa-account-provider run --namespace gmsa-system --secret web-creds \
    --kube-api-server https://10.0.0.1:6443 --kube-token-file token --kube-ca-file ca.crt`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			connlimit.LimitMemory()
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
					return fmt.Errorf("%w; specify --kube-api-server, --kube-token-file and --kube-ca-file", err)
				}
			}
			certificates, err := certificatesFrom(mode, lifetime, serverDir, clientDir)
			if err != nil {
				return err
			}
			if maxStale < 0 {
				return fmt.Errorf("--max-stale %s: must not be negative", maxStale)
			}
			results, err := record.New(os.Getenv, provider.SelfCheckInterval)
			if err != nil {
				return err
			}
			return provider.Run(cmd.Context(), provider.Config{
				Account:        ref,
				API:            api,
				Publisher:      endpoint.Publisher{Root: a.root, Reader: identity},
				Certificates:   certificates,
				MaxStale:       maxStale,
				MetricsAddress: metrics,
				Instance:       os.Getenv(podUID),
				SelfCheck:      results,
				Log:            log,
			})
		},
	}
	a.flags(c)
	f := c.Flags()
	f.StringVar(&identity, "plugin-identity", endpoint.Readers[0], fmt.Sprintf(
		"plugin identity, which can read the endpoint files, as in the installer's --run-as: one of %q",
		endpoint.Readers))
	f.StringVar(&mode, "certificates", "embedded",
		"source of the certificates: embedded (issued by the provider) or secrets (mounted)")
	f.DurationVar(&lifetime, "certificate-lifetime", provider.DefaultLifetime,
		"lifetime of embedded certificates, which are renewed after two thirds of it")
	f.StringVar(&serverDir, "server-certificate-dir", "",
		"with --certificates secrets: directory in the container with tls.crt, tls.key and ca.crt of the server")
	f.StringVar(&clientDir, "client-certificate-dir", "",
		"with --certificates secrets: directory in the container with tls.crt, tls.key and ca.crt of the client")
	f.DurationVar(&maxStale, "max-stale", provider.DefaultMaxStale,
		"maximum age of stale credentials, which are used while the API server is unavailable; 0 disables them")
	f.StringVar(&metrics, "metrics-address", "", "host:port for Prometheus metrics on /metrics (disabled if empty)")
	f.StringVar(&api.URL, "kube-api-server", "", "URL of the API server (default: from the pod's environment)")
	f.StringVar(&api.TokenFile, "kube-token-file", "", "file with the ServiceAccount's token, with --kube-api-server")
	f.StringVar(&api.CAFile, "kube-ca-file", "", "file with the API server's CA, with --kube-api-server")
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
	)
	c := &cobra.Command{
		Use:   "healthcheck",
		Short: "Connect to the provider as the plugin does, and check that it responds",
		Long: `Reads the endpoint files on the host, connects with the client certificate in them, and requests the
provider's health. The command succeeds if the provider responds, and prints the result of the last read of the Secret.
A provider without its Secret is healthy. With --require-credentials, the provider reads the Secret now, and the
command fails if the Secret does not exist or is invalid.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return healthcheckRun(cmd, a, output, timeout, require)
		},
	}
	a.flags(c)
	c.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	c.Flags().DurationVar(&timeout, "timeout", 5*time.Second, "maximum time to wait for the response")
	c.Flags().BoolVar(&require, "require-credentials", false,
		"read the Secret now, and fail if it does not exist or is invalid")
	return c
}

// podUID is the environment variable with the pod's metadata.uid. It identifies the provider of this pod.
const podUID = "POD_UID"

func healthcheckRun(cmd *cobra.Command, a account, output string, timeout time.Duration, require bool) error {
	ref, err := credential.NewReference(a.namespace, a.secret)
	if err != nil {
		return err
	}
	if output != "text" && output != "json" {
		return fmt.Errorf("--output %q: must be text or json", output)
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
	defer cancel()
	h, err := provider.Check(ctx, a.root, ref, require)
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	if output == "json" {
		if err := escape.WriteJSON(out, h, ""); err != nil {
			return err
		}
	} else {
		escape.Fprintf(out, "account %s: the provider responds (version %s)\n", ref, h.Version)
		if h.Problem != "" {
			escape.Fprintf(out, "Secret: %s: %s\n", h.Problem, h.Detail)
		} else if h.CacheAgeSeconds != nil {
			escape.Fprintf(out, "Secret: ok, read %.0f s ago\n", *h.CacheAgeSeconds)
		} else {
			escape.Fprintf(out, "Secret: not read yet\n")
		}
	}
	if require && h.CacheAgeSeconds == nil {
		return fmt.Errorf("account %s: the provider has no credentials", ref)
	}
	return nil
}

func cleanup() *cobra.Command {
	var (
		a           account
		keepRunning bool
	)
	c := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove the endpoint files that killed providers left on the host",
		Long: `Removes the endpoint files of one account. If a provider responds, the command keeps its files and
fails. You can repeat the command.

With --keep-running, the command does not exit after it has finished. A container of a DaemonSet must not exit.`,
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
			escape.Fprintf(cmd.OutOrStdout(), "account %s: removed %d generations; none remain\n", ref, n)
			if keepRunning {
				<-cmd.Context().Done()
			}
			return nil
		},
	}
	a.flags(c)
	c.Flags().BoolVar(&keepRunning, "keep-running", false, "do not exit after the clean-up")
	return c
}

// mountedDir returns the path of a mounted directory in the container; see kube.MountedFile.
func mountedDir(dir string) string {
	return filepath.Dir(kube.MountedFile(os.Getenv, filepath.Join(dir, "tls.crt")))
}

func certificatesFrom(mode string, lifetime time.Duration, serverDir, clientDir string) (provider.Certificates, error) {
	switch mode {
	case "embedded":
		if lifetime < time.Second {
			return nil, fmt.Errorf("--certificate-lifetime %s: the minimum is 1s", lifetime)
		}
		if serverDir != "" {
			return nil, errors.New("--server-certificate-dir and --client-certificate-dir require --certificates " +
				"secrets")
		}
		return provider.Embedded{Lifetime: lifetime}, nil
	case "secrets":
		if serverDir == "" {
			return nil, errors.New("--certificates secrets requires --server-certificate-dir and " +
				"--client-certificate-dir")
		}
		return &provider.FromSecrets{ServerDir: mountedDir(serverDir), ClientDir: mountedDir(clientDir)}, nil
	default:
		return nil, fmt.Errorf("--certificates %q: must be embedded or secrets", mode)
	}
}
