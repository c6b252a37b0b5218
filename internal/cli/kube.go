package cli

import (
	"errors"
	"os"

	"github.com/spf13/pflag"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	// For kubeconfigs with the user type auth-provider.
	_ "k8s.io/client-go/plugin/pkg/client/auth"

	"github.com/ccgrkc/ccgrkc/internal/version"
)

// kubeFlags are kubectl's flags for the way to a cluster. They are client-go's own: those of cli-runtime bring Kustomize along.
type kubeFlags struct {
	rules     *clientcmd.ClientConfigLoadingRules
	overrides *clientcmd.ConfigOverrides

	Namespace *string // what --namespace says; "" if nothing
}

func newKubeFlags() *kubeFlags {
	overrides := &clientcmd.ConfigOverrides{}
	return &kubeFlags{clientcmd.NewDefaultClientConfigLoadingRules(), overrides, &overrides.Context.Namespace}
}

func (f *kubeFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.rules.ExplicitPath, "kubeconfig", "", "path of the kubeconfig (default: $KUBECONFIG, or ~/.kube/config)")
	names := clientcmd.RecommendedConfigOverrideFlags("")
	// A secret on a command line can be read by every process of the machine.
	names.AuthOverrideFlags.Token.LongName = ""
	names.AuthOverrideFlags.Username.LongName = ""
	names.AuthOverrideFlags.Password.LongName = ""
	names.ContextOverrideFlags.Namespace.ShortName = "n"
	names.ContextOverrideFlags.Namespace.Description = "namespace, for what is in one"
	names.CurrentContext.Description = "context of the kubeconfig to use"
	clientcmd.BindOverrideFlags(f.overrides, flags, names)
}

// ToRawKubeConfigLoader returns what the kubeconfig and the flags say together.
func (f *kubeFlags) ToRawKubeConfigLoader() clientcmd.ClientConfig {
	return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(f.rules, f.overrides)
}

// ToRESTConfig returns how to reach the cluster. Its errors are about the kubeconfig.
func (f *kubeFlags) ToRESTConfig() (*rest.Config, error) {
	config, err := f.ToRawKubeConfigLoader().ClientConfig()
	if err != nil {
		return nil, kubeconfigError(err)
	}
	config.UserAgent = "gmsactl/" + version.String()
	config.WarningHandler = rest.NewWarningWriter(os.Stderr, rest.WarningWriterOptions{Deduplicate: true})
	return config, nil
}

// kubeconfigError says what to do where client-go speaks of a variable that nobody sets.
func kubeconfigError(err error) error {
	if clientcmd.IsEmptyConfig(err) {
		return errors.New("there is no kubeconfig: name one with --kubeconfig or $KUBECONFIG")
	}
	return err
}
