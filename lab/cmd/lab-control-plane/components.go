package main

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/spf13/pflag"
	"k8s.io/client-go/rest"
	"k8s.io/component-base/cli/flag"
	basecompatibility "k8s.io/component-base/compatibility"
	logsapi "k8s.io/component-base/logs/api/v1"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	apiserveroptions "k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	controllersoptions "k8s.io/kubernetes/cmd/kube-controller-manager/app/options"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	scheduleroptions "k8s.io/kubernetes/cmd/kube-scheduler/app/options"
)

// The components start from their options, not from their cobra commands: two cobra commands in one process register
// the same global flags and panic.

func startAPIServer(ctx context.Context, listener net.Listener, ended chan<- error) error {
	address := listener.Addr().(*net.TCPAddr)
	o := apiserveroptions.NewServerRunOptions()
	err := parse("kube-apiserver", o.Flags(),
		"--etcd-servers="+etcdEndpoint,
		"--bind-address="+address.IP.String(),
		"--advertise-address="+address.IP.String(),
		fmt.Sprintf("--secure-port=%d", address.Port),
		"--tls-cert-file=apiserver.crt", "--tls-private-key-file=apiserver.key",
		"--client-ca-file=ca.crt",
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--allow-privileged=true", // HostProcess pods are privileged
		// The names of the lab's nodes are not in DNS.
		"--kubelet-preferred-address-types=InternalIP",
		"--audit-policy-file=audit-policy.yaml", "--audit-log-path=audit.log",
		"--service-cluster-ip-range=10.0.0.0/16",
		"--endpoint-reconciler-type=none", // Endpoints cannot contain a loopback address
		"--enable-aggregator-routing=true",
		// Not the API server's address: tokens must remain valid after a restart at another address.
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=service-account.pub", "--service-account-signing-key-file=service-account.key",
		"--requestheader-client-ca-file=front-proxy-ca.crt", "--requestheader-allowed-names=front-proxy",
		"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file=front-proxy.crt", "--proxy-client-key-file=front-proxy.key",
		"--profiling=false",
	)
	if err != nil {
		return err
	}
	o.SecureServing.Listener = listener // already open, so no other process can take the port
	registry := o.GenericServerRunOptions.ComponentGlobalsRegistry
	if err := registry.Set(); err != nil {
		return fmt.Errorf("kube-apiserver: %w", err)
	}
	gates := registry.FeatureGateFor(basecompatibility.DefaultKubeComponent)
	if err := logsapi.ValidateAndApply(o.Logs, gates); err != nil {
		return fmt.Errorf("kube-apiserver: %w", err)
	}
	rest.SetDefaultWarningHandler(rest.NoWarnings{})
	completed, err := o.Complete(ctx)
	if err != nil {
		return fmt.Errorf("kube-apiserver: %w", err)
	}
	if errs := completed.Validate(); len(errs) > 0 {
		return fmt.Errorf("kube-apiserver: %w", errors.Join(errs...))
	}
	go func() { ended <- componentEnded("kube-apiserver", apiserver.Run(ctx, completed)) }()
	return nil
}

func startControllerManager(ctx context.Context, kubeconfig string, ended chan<- error) error {
	o, err := controllersoptions.NewKubeControllerManagerOptions()
	if err != nil {
		return fmt.Errorf("kube-controller-manager: %w", err)
	}
	known, aliases := controllers.KnownControllers(), controllers.ControllerAliases()
	disabled := controllers.ControllersDisabledByDefault()
	flags := o.Flags(known, disabled, aliases)
	o.ParsedFlags = &flags
	err = parse("kube-controller-manager", flags,
		"--kubeconfig="+kubeconfig,
		"--leader-elect=false",
		"--use-service-account-credentials=true",
		"--root-ca-file=ca.crt", "--service-account-private-key-file=service-account.key",
		"--cluster-signing-cert-file=ca.crt", "--cluster-signing-key-file=ca.key",
		"--secure-port=0", "--profiling=false",
		// At the default of 20 requests per second the first namespace takes 8 s.
		"--kube-api-qps=2000", "--kube-api-burst=4000",
		// The controller manager would create the default directory below /usr/libexec.
		"--flex-volume-plugin-dir=flex-volume-plugins",
	)
	if err != nil {
		return err
	}
	config, err := o.Config(ctx, known, disabled, aliases)
	if err != nil {
		return fmt.Errorf("kube-controller-manager: %w", err)
	}
	go func() { ended <- componentEnded("kube-controller-manager", controllers.Run(ctx, config.Complete())) }()
	return nil
}

func startScheduler(ctx context.Context, kubeconfig string, ended chan<- error) error {
	o := scheduleroptions.NewOptions()
	err := parse("kube-scheduler", *o.Flags,
		"--kubeconfig="+kubeconfig,
		"--leader-elect=false",
		"--secure-port=0", "--profiling=false",
		"--kube-api-qps=2000", "--kube-api-burst=4000",
	)
	if err != nil {
		return err
	}
	config, s, err := scheduler.Setup(ctx, o)
	if err != nil {
		return fmt.Errorf("kube-scheduler: %w", err)
	}
	go func() { ended <- componentEnded("kube-scheduler", scheduler.Run(ctx, config, s)) }()
	return nil
}

// parse parses flags like the component's command line, with its defaults and checks.
func parse(component string, sets flag.NamedFlagSets, args ...string) error {
	fs := pflag.NewFlagSet(component, pflag.ContinueOnError)
	for _, set := range sets.FlagSets {
		fs.AddFlagSet(set)
	}
	if err := fs.Parse(args); err != nil {
		return fmt.Errorf("%s: %w", component, err)
	}
	return nil
}

func componentEnded(component string, err error) error {
	if err == nil {
		return fmt.Errorf("%s ended; see control-plane.log", component)
	}
	return fmt.Errorf("%s ended: %w", component, err)
}
