package cli

import (
	"errors"
	"os"

	"github.com/spf13/pflag"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	// For kubeconfigs with the user type auth-provider.
	_ "k8s.io/client-go/plugin/pkg/client/auth"

	"github.com/ccgrkc/ccgrkc/internal/escape"
	"github.com/ccgrkc/ccgrkc/internal/version"
)

// kubeFlags are kubectl's flags for the connection to a cluster. They come from client-go, because cli-runtime depends
// on Kustomize.
type kubeFlags struct {
	rules     *clientcmd.ClientConfigLoadingRules
	overrides *clientcmd.ConfigOverrides

	Namespace *string // value of --namespace
}

func newKubeFlags() *kubeFlags {
	overrides := &clientcmd.ConfigOverrides{}
	return &kubeFlags{clientcmd.NewDefaultClientConfigLoadingRules(), overrides, &overrides.Context.Namespace}
}

func (f *kubeFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.rules.ExplicitPath, "kubeconfig", "",
		"path of the kubeconfig file (default: $KUBECONFIG, or ~/.kube/config)")
	names := clientcmd.RecommendedConfigOverrideFlags("")
	// Every process of the machine can read secrets on a command line.
	names.AuthOverrideFlags.Token.LongName = ""
	names.AuthOverrideFlags.Username.LongName = ""
	names.AuthOverrideFlags.Password.LongName = ""
	names.ContextOverrideFlags.Namespace.ShortName = "n"
	names.ContextOverrideFlags.Namespace.Description = "namespace scope for this request"
	names.CurrentContext.Description = "kubeconfig context to use"
	clientcmd.BindOverrideFlags(f.overrides, flags, names)
}

// ToRawKubeConfigLoader returns the kubeconfig with the overrides from the flags.
func (f *kubeFlags) ToRawKubeConfigLoader() clientcmd.ClientConfig {
	return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(f.rules, f.overrides)
}

// ToRESTConfig returns the connection settings of the cluster. Its errors are about the kubeconfig.
func (f *kubeFlags) ToRESTConfig() (*rest.Config, error) {
	config, err := f.ToRawKubeConfigLoader().ClientConfig()
	if err != nil {
		return nil, kubeconfigError(err)
	}
	config.UserAgent = "gmsactl/" + version.String()
	stderr := escape.LogWriter(os.Stderr)
	config.WarningHandler = rest.NewWarningWriter(stderr, rest.WarningWriterOptions{Deduplicate: true})
	return config, nil
}

// kubeconfigError replaces an error of client-go that mentions an unused environment variable.
func kubeconfigError(err error) error {
	if clientcmd.IsEmptyConfig(err) {
		return errors.New("no kubeconfig found; specify one with --kubeconfig or $KUBECONFIG")
	}
	return err
}
