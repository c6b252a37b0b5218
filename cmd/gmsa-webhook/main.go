// Command gmsa-webhook is the admission webhook. It populates pods from the GMSACredentialSpecs that they reference,
// and denies pods that cannot use theirs.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/ccgrkc/ccgrkc/internal/admission"
	"github.com/ccgrkc/ccgrkc/internal/connlimit"
	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/escape"
	"github.com/ccgrkc/ccgrkc/internal/kube"
	"github.com/ccgrkc/ccgrkc/internal/logging"
	"github.com/ccgrkc/ccgrkc/internal/servingcert"
	"github.com/ccgrkc/ccgrkc/internal/version"
	"github.com/ccgrkc/ccgrkc/internal/webhook"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // the second signal terminates the process immediately
	if err := command().ExecuteContext(ctx); err != nil {
		escape.Fprintf(os.Stderr, "gmsa-webhook: %v\n", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:   "gmsa-webhook",
		Short: "Populate pods from the GMSACredentialSpecs that they reference, and validate them",
		Long: `gmsa-webhook is the admission webhook for pods that use a group Managed Service Account (gMSA).

The API server calls it for each pod that sets a gMSA field. POST /mutate copies the referenced GMSACredentialSpec into
the pod, where the kubelet reads it. POST /validate allows the pod if its ServiceAccount has the "use" permission for
the GMSACredentialSpec and the copy equals the object. The webhook reads one Secret, which contains its CA.`,
		Version:       version.String(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(run(), &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		Run:   func(cmd *cobra.Command, _ []string) { escape.Fprintf(cmd.OutOrStdout(), "%s\n", version.String()) },
	})
	return root
}

// flags are the flags of the run command.
type flags struct {
	listen, healthListen string
	namespace, service   string
	mutating, validating string
	certificates         string
	secret, dir          string
	caLifetime           time.Duration
	propagationDelay     time.Duration
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
		Long: `Serves admission requests over TLS 1.3 until SIGTERM or Ctrl-C. The webhook calls the API server as the
pod's ServiceAccount. While the API server is unavailable, the webhook retries.

Certificate: With --certificates self, the webhook creates a CA and stores it with its key in the Secret
--certificate-secret for all replicas. The Secret must exist, but can be empty. Each replica signs its own certificate
for at most 7 days, whose key stays in memory. The webhook replaces the CA when a third of --ca-lifetime is left. With
--certificates dir, the webhook reads tls.crt, tls.key and optionally ca.crt from --certificate-dir, and detects
changes.

In both modes the webhook writes the CA into every caBundle of the two webhook configurations. It serves a certificate
of a new CA only after they have contained this CA for --propagation-delay, so that every API server trusts it. If the
directory has no ca.crt, the webhook does not change the configurations.

Readiness: /readyz on --health-listen succeeds while the certificate is valid and both configurations trust it. A new
replica with a new CA becomes ready when every API server has had time to learn this CA. Certificates are renewed by the
API server's clock, and have expired only if the node's clock says so, too. To replace the CA, empty the Secret. The
webhook uses the old CA until every API server trusts the new one.

Shutdown: After SIGTERM, /readyz fails immediately. The webhook accepts requests for --shutdown-delay, until Services no
longer route to the replica, and completes those in progress. A second signal terminates it immediately.`,
		Example: `  # in a pod, with a CA of the webhook
  gmsa-webhook run --namespace cattle-windows-gmsa-system --service rancher-gmsa-webhook \
    --mutating-configuration rancher-gmsa-webhook --validating-configuration rancher-gmsa-webhook

  # with a certificate from cert-manager, mounted from its Secret
  gmsa-webhook run --namespace cattle-windows-gmsa-system --service rancher-gmsa-webhook \
    --mutating-configuration rancher-gmsa-webhook --validating-configuration rancher-gmsa-webhook \
    --certificates dir --certificate-dir /certificates

  # accept only an API server with a client certificate, and deny pods that cannot work
  gmsa-webhook run ... --client-ca-file /clients/ca.crt --client-name kube-apiserver --plugin-input deny`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			connlimit.LimitMemory()
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
				API:              client,
				DNSName:          o.service + "." + o.namespace + ".svc",
				Mutating:         o.mutating,
				Validating:       o.validating,
				Source:           source,
				PropagationDelay: o.propagationDelay,
				Log:              log,
			})
			if err != nil {
				return fmt.Errorf("--ca-lifetime, --propagation-delay: %w", err)
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
					PluginInput:    admission.ProblemAction(o.pluginInput),
				}),
				ShutdownDelay: o.shutdownDelay,
				Log:           log,
			}
			log.Info("starting", "version", version.String(), "apiServer", api.URL)
			return server.Run(cmd.Context())
		},
	}
	f := c.Flags()
	f.StringVar(&o.listen, "listen", ":9443", "address for admission requests, over TLS")
	f.StringVar(&o.healthListen, "health-listen", ":9440", "address for /livez, /readyz and /metrics, over plain HTTP")
	f.StringVar(&o.namespace, "namespace", "", "namespace of the webhook's Service and Secret (required)")
	f.StringVar(&o.service, "service", "", "name of the webhook's Service (required)")
	f.StringVar(&o.mutating, "mutating-configuration", "", "name of the MutatingWebhookConfiguration (required)")
	f.StringVar(&o.validating, "validating-configuration", "", "name of the ValidatingWebhookConfiguration (required)")
	f.StringVar(&o.certificates, "certificates", "self",
		"source of the certificate: self (issued by the webhook) or dir (mounted)")
	f.StringVar(&o.secret, "certificate-secret", "",
		"with --certificates self: Secret in which replicas share the CA and its key (default: <service>-tls)")
	f.StringVar(&o.dir, "certificate-dir", "",
		"with --certificates dir: directory with tls.crt, tls.key and optionally ca.crt")
	f.DurationVar(&o.caLifetime, "ca-lifetime", servingcert.DefaultCALifetime,
		"with --certificates self: lifetime of a CA, which is replaced when a third is left")
	f.DurationVar(&o.propagationDelay, "propagation-delay", servingcert.DefaultPropagationDelay,
		"maximum time until every API server applies a changed webhook configuration; use a short one only in tests")
	f.StringVar(&o.clients.CAFile, "client-ca-file", "",
		"CA file; accept only clients with a certificate of this CA (configure the API servers' client certificate "+
			"in their AdmissionConfiguration)")
	f.StringVar(&o.clients.Name, "client-name", "",
		"with --client-ca-file: required common name of the client's certificate (default: any)")
	f.BoolVar(&o.randomHostname, "random-hostname", false,
		"set a random host name in pods that use a gMSA and have no host name")
	f.StringVar(&o.pluginInput, "plugin-input", "warn",
		"action on pods whose GMSACredentialSpec has a plugin input that cannot work: warn or deny")
	f.DurationVar(&o.shutdownDelay, "shutdown-delay", 5*time.Second,
		"time for which requests are accepted after SIGTERM")
	o.logs.Add(f)
	for _, required := range []string{"namespace", "service", "mutating-configuration", "validating-configuration"} {
		_ = c.MarkFlagRequired(required)
	}
	return c
}

// idleConnections is the number of idle connections to the API server, with about 30 KiB each.
const idleConnections = 16

// source validates the flags and returns the source of the serving certificate. It needs no API server.
func (o *flags) source() (servingcert.Source, error) {
	var source servingcert.Source
	// Both names become part of a host name and of URLs.
	if _, err := credential.NewReference(o.namespace, o.service); err != nil {
		return nil, fmt.Errorf("--namespace %q, --service %q: want the names of a namespace and a Service",
			o.namespace, o.service)
	}
	switch o.certificates {
	case "self":
		if o.dir != "" {
			return nil, fmt.Errorf("--certificate-dir %s requires --certificates dir", o.dir)
		}
		if o.secret == "" {
			o.secret = o.service + "-tls"
		}
		if _, err := credential.NewReference(o.namespace, o.secret); err != nil {
			return nil, fmt.Errorf("--certificate-secret %q: want the name of a Secret", o.secret)
		}
		source = servingcert.Self{Namespace: o.namespace, Secret: o.secret, CALifetime: o.caLifetime}
	case "dir":
		if o.dir == "" {
			return nil, errors.New("--certificates dir requires --certificate-dir")
		}
		if o.secret != "" {
			return nil, fmt.Errorf("--certificate-secret %s requires --certificates self; with dir, mount the Secret "+
				"and set --certificate-dir", o.secret)
		}
		source = &servingcert.Dir{Path: o.dir}
	default:
		return nil, fmt.Errorf("--certificates %q: want self or dir", o.certificates)
	}
	switch admission.ProblemAction(o.pluginInput) {
	case admission.Warn, admission.Deny:
	default:
		return nil, fmt.Errorf("--plugin-input %q: want warn or deny", o.pluginInput)
	}
	if o.clients.Name != "" && o.clients.CAFile == "" {
		return nil, fmt.Errorf("--client-name %s requires --client-ca-file", o.clients.Name)
	}
	if o.shutdownDelay < 0 {
		return nil, fmt.Errorf("--shutdown-delay %s: want 0 or more", o.shutdownDelay)
	}
	return source, nil
}
