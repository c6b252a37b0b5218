package admission

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/credspec"
)

// accountTimeout bounds the question for an account: nobody waits long for a warning.
const accountTimeout = time.Second

// pluginProblem is why a GMSACredentialSpec that names our plugin cannot work: a sentence, and a word for metrics. Both are ""
// if nothing is known against it, or another plugin's is named. It has no control characters, which a warning must not have.
func (h *handler) pluginProblem(ctx context.Context, name string, contents []byte) (text, kind string) {
	var spec credspec.Spec
	_ = json.Unmarshal(contents, &spec) // a field of the wrong type stays empty
	if !spec.UsesPlugin() {
		return "", ""
	}
	ref, err := credential.ParseReference(spec.ActiveDirectoryConfig.HostAccountConfig.PluginInput)
	if err != nil {
		return fmt.Sprintf("GMSACredentialSpec %s has a wrong PluginInput, so that its pods get no gMSA: %v", name, err), "input"
	}
	ctx, cancel := context.WithTimeout(ctx, accountTimeout)
	defer cancel()
	account, err := h.Cluster.Account(ctx, ref)
	if err != nil {
		h.Log.Warn("it is not known whether an account is served", "account", ref.String(), "credentialSpec", name, "error", err)
		h.Metrics.unanswered()
		return "", ""
	}
	switch account {
	case AccountUnserved:
		return fmt.Sprintf("no release of rancher-gmsa-account-provider serves %s (GMSACredentialSpec %s): install it, upgrade one older than the webhook, or set webhook.serviceAccount, webhook.namespace",
			ref, name), "release"
	case SecretMissing:
		return fmt.Sprintf("Secret %s is missing in namespace %s, so that pods of GMSACredentialSpec %s get no gMSA: gmsactl account create %s/<release> makes it",
			ref.Secret, ref.Namespace, name, ref.Namespace), "secret"
	}
	return "", ""
}
