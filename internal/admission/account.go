package admission

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/credspec"
)

// accountTimeout limits the account check: a warning must not delay a pod for long.
const accountTimeout = time.Second

// Reasons of a warning, for metrics.
const (
	warnPluginInput = "plugin-input-invalid"
	warnRelease     = "release-missing"
	warnSecret      = "secret-missing"
)

// pluginProblem returns why pods cannot obtain the gMSA of a credential spec that uses our plugin, and the reason for
// metrics. Both are "" if there is no known problem or the spec uses another plugin. The text has no control
// characters: the API server drops warnings that have any.
func (h *handler) pluginProblem(ctx context.Context, name string, content []byte) (text, reason string) {
	var spec credspec.Spec
	_ = json.Unmarshal(content, &spec) // a field of the wrong type stays empty
	if !spec.UsesPlugin() {
		return "", ""
	}
	ref, err := credential.ParseReference(spec.ActiveDirectoryConfig.HostAccountConfig.PluginInput)
	if err != nil {
		text = fmt.Sprintf("GMSACredentialSpec %s: PluginInput is invalid, so its pods get no gMSA: %v", name, err)
		return text, warnPluginInput
	}
	ctx, cancel := context.WithTimeout(ctx, h.accountTimeout)
	defer cancel()
	state, err := h.Cluster.Account(ctx, ref)
	if err != nil {
		h.Log.Warn("cannot check account", "account", ref.String(), "credentialSpec", name, "error", err)
		h.Metrics.accountCheckFailed()
		return "", ""
	}
	switch state {
	case ReleaseMissing:
		text = fmt.Sprintf("GMSACredentialSpec %s: no release of rancher-gmsa-account-provider provides %s; "+
			"install or upgrade it, or set its values webhook.serviceAccount and webhook.namespace", name, ref)
		return text, warnRelease
	case SecretMissing:
		text = fmt.Sprintf("GMSACredentialSpec %s: Secret %s/%s is missing, so its pods get no gMSA; "+
			"create it with gmsactl account create %s/<release>", name, ref.Namespace, ref.Secret, ref.Namespace)
		return text, warnSecret
	}
	return "", ""
}
