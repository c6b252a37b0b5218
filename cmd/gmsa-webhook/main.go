// Command gmsa-webhook is the admission webhook: it copies GMSACredentialSpecs into the pods that name them, and refuses pods
// that may not use theirs.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/ccgrkc/ccgrkc/internal/admission"
	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/kube"
	"github.com/ccgrkc/ccgrkc/internal/logging"
	"github.com/ccgrkc/ccgrkc/internal/servingcert"
	"github.com/ccgrkc/ccgrkc/internal/version"
	"github.com/ccgrkc/ccgrkc/internal/webhook"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // the second signal ends the process at once
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "gmsa-webhook:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:   "gmsa-webhook",
		Short: "Copies GMSACredentialSpecs into the pods that name them, and refuses pods that may not use theirs",
		Long: `gmsa-webhook is the admission webhook for pods with group Managed Service Accounts.

The API server asks it about each pod that has gMSA fields. POST /mutate puts the contents of the GMSACredentialSpec that the
pod, or one of its containers, names into the pod, where the kubelet reads them. POST /validate lets the pod pass if its
ServiceAccount may "use" that GMSACredentialSpec, and the contents are those of the object. Nothing else is ever served, and
no Secret but the one with its own certificate is ever read.`,
		Version:       version.String(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(run(), &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		Run:   func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), version.String()) },
	})
	return root
}

// flags are run's.
type flags struct {
	listen, healthListen string
	namespace, service   string
	mutating, validating string
	certificates         string
	secret, dir          string
	lifetime, settle     time.Duration
	clients              servingcert.Clients
	randomHostname       bool
	pluginInput          string
	shutdownDelay        time.Duration
	logs                 logging.Flags
}

func run() *cobra.Command {
	var o flags
	c := &cobra.Command{
		Use:   "run",
		Short: "Serve until stopped",
		Long: `Serves admission reviews over TLS 1.3 until SIGTERM or Ctrl-C. It asks the API server as the pod's ServiceAccount, and waits
for one that is away.

The certificate. With --certificates self it is made here, renewed when a third of --certificate-lifetime is left, and shared
by all replicas in the Secret --certificate-secret, which must exist and may be empty. With --certificates dir it is
read from --certificate-dir (tls.crt, tls.key, and ca.crt if there is one), again and again. In both modes the CA is
written into every caBundle of the two configurations, and a new certificate is served only when they have held its CA
for --certificate-settle, so that no API server meets a certificate that it does not know. A directory without ca.crt leaves
the configurations alone.

Ready, at /readyz on --health-listen, is a replica whose certificate is in date and trusted by both configurations. A new
replica with a directory whose CA they did not hold waits until every API server knows it. Time is told by the API server's
clock. To replace the certificate now, empty the Secret: the one that is served goes on until the new one is known.

At SIGTERM /readyz fails at once, reviews are answered for another --shutdown-delay, in which Services forget the
replica, and then those under way are finished. A second signal ends it on the spot.`,
		Example: `  # in a pod, with a certificate of its own
  gmsa-webhook run --namespace cattle-windows-gmsa-system --service rancher-gmsa-webhook \
    --mutating-configuration rancher-gmsa-webhook --validating-configuration rancher-gmsa-webhook

  # with a certificate of cert-manager's, mounted from its Secret
  gmsa-webhook run --namespace cattle-windows-gmsa-system --service rancher-gmsa-webhook \
    --mutating-configuration rancher-gmsa-webhook --validating-configuration rancher-gmsa-webhook \
    --certificates dir --certificate-dir /certificates

  # only for an API server that shows a certificate, and only for pods that can work
  gmsa-webhook run ... --client-ca-file /clients/ca.crt --client-name kube-apiserver --plugin-input deny`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if os.Getenv("GOMEMLIMIT") == "" {
				debug.SetMemoryLimit(memoryLimit)
			}
			log, err := o.logs.Logger(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			source, err := o.source()
			if err != nil {
				return err
			}
			api, err := kube.InCluster(os.Getenv)
			if err != nil {
				return err
			}
			client, err := kube.NewClient(api, "gmsa-webhook/"+version.String())
			if err != nil {
				return err
			}
			client.KeepIdle(idleConnections)
			keeper, err := servingcert.New(servingcert.Config{
				API:        client,
				DNSName:    o.service + "." + o.namespace + ".svc",
				Mutating:   o.mutating,
				Validating: o.validating,
				Source:     source,
				Settle:     o.settle,
				Log:        log,
			})
			if err != nil {
				return fmt.Errorf("--certificate-lifetime, --certificate-settle: %w", err)
			}
			metrics := admission.NewMetrics(keeper.Expiry)
			server := webhook.Server{
				Listen:       o.listen,
				HealthListen: o.healthListen,
				Clients:      o.clients,
				Keeper:       keeper,
				Metrics:      metrics,
				Admission: admission.NewHandler(admission.Config{
					Cluster:        admission.NewCluster(client),
					Metrics:        metrics,
					Log:            log,
					RandomHostname: o.randomHostname,
					PluginInput:    admission.OnProblem(o.pluginInput),
				}),
				ShutdownDelay: o.shutdownDelay,
				Log:           log,
			}
			log.Info("starting", "version", version.String(), "apiServer", api.URL)
			return server.Run(cmd.Context())
		},
	}
	f := c.Flags()
	f.StringVar(&o.listen, "listen", ":9443", "address for admission reviews, over TLS")
	f.StringVar(&o.healthListen, "health-listen", ":9440", "address for /livez, /readyz and /metrics, over plain HTTP")
	f.StringVar(&o.namespace, "namespace", "", "namespace of the webhook's Service and Secret (required)")
	f.StringVar(&o.service, "service", "", "name of the webhook's Service (required)")
	f.StringVar(&o.mutating, "mutating-configuration", "", "name of the MutatingWebhookConfiguration (required)")
	f.StringVar(&o.validating, "validating-configuration", "", "name of the ValidatingWebhookConfiguration (required)")
	f.StringVar(&o.certificates, "certificates", "self", "where the certificate comes from: self (made here) or dir (mounted)")
	f.StringVar(&o.secret, "certificate-secret", "", "with --certificates self: Secret in which replicas share the certificate (default: the Service's name and -tls)")
	f.StringVar(&o.dir, "certificate-dir", "", "with --certificates dir: directory with tls.crt, tls.key and perhaps ca.crt")
	f.DurationVar(&o.lifetime, "certificate-lifetime", servingcert.DefaultLifetime, "with --certificates self: lifetime of a certificate; renewed when a third of it is left")
	f.DurationVar(&o.settle, "certificate-settle", servingcert.DefaultSettle, "how long every API server takes at most to learn of a change of the configurations; short only for tests")
	f.StringVar(&o.clients.CAFile, "client-ca-file", "", "answer only clients with a certificate of a CA in this file; for API servers whose AdmissionConfiguration gives them one")
	f.StringVar(&o.clients.Name, "client-name", "", "with --client-ca-file: the common name that the client's certificate must have (default: any)")
	f.BoolVar(&o.randomHostname, "random-hostname", false, "give pods with a gMSA that have no host name a random one")
	f.StringVar(&o.pluginInput, "plugin-input", "warn", "on a GMSACredentialSpec for the CCG plugin whose plugin input cannot work: warn, or deny the pod")
	f.DurationVar(&o.shutdownDelay, "shutdown-delay", 5*time.Second, "how long reviews are still taken after SIGTERM")
	o.logs.Add(f)
	for _, required := range []string{"namespace", "service", "mutating-configuration", "validating-configuration"} {
		_ = c.MarkFlagRequired(required)
	}
	return c
}

// memoryLimit is from where on garbage is not left lying, in bytes. The most that strangers can have reviews come to needs about as
// much; without a limit it came to 168 MiB resident, with it to 93.
const memoryLimit = 64 << 20

// idleConnections to the API server stay open between reviews, each of some 30 KiB.
const idleConnections = 16

// source validates the flags and returns the source of the serving certificate. It needs no API server.
func (o *flags) source() (servingcert.Source, error) {
	var source servingcert.Source
	// Both names become part of a host name and of URLs; a reference is checked as Kubernetes checks names.
	if _, err := credential.NewReference(o.namespace, o.service); err != nil {
		return nil, fmt.Errorf("--namespace %q, --service %q: want the names of a namespace and of a Service in it", o.namespace, o.service)
	}
	switch o.certificates {
	case "self":
		if o.dir != "" {
			return nil, fmt.Errorf("--certificate-dir %s goes with --certificates dir", o.dir)
		}
		if o.secret == "" {
			o.secret = o.service + "-tls"
		}
		if _, err := credential.NewReference(o.namespace, o.secret); err != nil {
			return nil, fmt.Errorf("--certificate-secret %q: want the name of a Secret", o.secret)
		}
		source = servingcert.Self{Namespace: o.namespace, Secret: o.secret, Lifetime: o.lifetime}
	case "dir":
		if o.dir == "" {
			return nil, errors.New("--certificates dir needs --certificate-dir")
		}
		if o.secret != "" {
			return nil, fmt.Errorf("--certificate-secret %s goes with --certificates self; mount the Secret and name the directory with --certificate-dir", o.secret)
		}
		source = &servingcert.Dir{Path: o.dir}
	default:
		return nil, fmt.Errorf("--certificates %q: want self or dir", o.certificates)
	}
	switch admission.OnProblem(o.pluginInput) {
	case admission.Warn, admission.Deny:
	default:
		return nil, fmt.Errorf("--plugin-input %q: want warn or deny", o.pluginInput)
	}
	if o.clients.Name != "" && o.clients.CAFile == "" {
		return nil, fmt.Errorf("--client-name %s: want --client-ca-file too, which says whose word for the name counts", o.clients.Name)
	}
	if o.shutdownDelay < 0 {
		return nil, fmt.Errorf("--shutdown-delay %s: want 0 or more", o.shutdownDelay)
	}
	return source, nil
}
