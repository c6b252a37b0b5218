package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ccgrkc/ccgrkc/internal/credspec"
	"github.com/ccgrkc/ccgrkc/lab/env/tools"
)

const credentialSpecs = "/apis/windows.k8s.io/v1/gmsacredentialspecs"

// CredentialSpecCRD is the CRD of GMSACredentialSpec from the webhook's chart, in YAML.
func CredentialSpecCRD(ctx context.Context) ([]byte, error) {
	helm, err := tools.Path(ctx, tools.Helm4, os.Stderr)
	if err != nil {
		return nil, err
	}
	home, err := os.MkdirTemp("", "helm-") // excludes the user's configuration
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(home)
	cmd := exec.CommandContext(ctx, helm, "template", Webhook, Chart(Webhook), "--show-only", "templates/crd.yaml")
	cmd.Env = []string{"HOME=" + home}
	crd, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	if err != nil {
		return nil, fmt.Errorf("the CRD of chart %s: %w", Webhook, err)
	}
	return crd, nil
}

// InstallCRD installs the CRD of GMSACredentialSpec without the webhook.
func (c *Cluster) InstallCRD(ctx context.Context) error {
	crd, err := CredentialSpecCRD(ctx)
	if err != nil {
		return err
	}
	return c.Apply(ctx, crd, "wait", "--for=condition=Established", "--timeout=60s")
}

// Apply runs kubectl apply with the objects, and then the kubectl command then, if there is one, with the same objects.
func (c *Cluster) Apply(ctx context.Context, objects []byte, then ...string) error {
	dir, err := os.MkdirTemp(c.Dir, "apply-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "objects.yaml")
	if err := os.WriteFile(file, objects, 0o600); err != nil {
		return err
	}
	if _, err := c.Run(ctx, tools.Kubectl, "apply", "-f", file); err != nil || len(then) == 0 {
		return err
	}
	_, err = c.Run(ctx, tools.Kubectl, append(then, "-f", file)...)
	return err
}

// PutCredentialSpec creates or replaces a GMSACredentialSpec. contents is a credential spec in JSON.
func (c *Cluster) PutCredentialSpec(ctx context.Context, name string, contents []byte) error {
	object, err := json.Marshal(map[string]any{
		"apiVersion": "windows.k8s.io/v1",
		"kind":       "GMSACredentialSpec",
		"metadata":   map[string]any{"name": name},
		"credspec":   json.RawMessage(contents),
	})
	if err != nil {
		return err
	}
	client := c.ControlPlane.Client().CoreV1().RESTClient()
	err = client.Post().AbsPath(credentialSpecs).Body(object).Do(ctx).Error()
	if apierrors.IsAlreadyExists(err) {
		// Not a merge patch, which would keep fields that only the old spec has.
		patch, jsonErr := json.Marshal([]any{map[string]any{
			"op":    "replace",
			"path":  "/credspec",
			"value": json.RawMessage(contents),
		}})
		if jsonErr != nil {
			return jsonErr
		}
		err = client.Patch(types.JSONPatchType).AbsPath(credentialSpecs, name).Body(patch).Do(ctx).Error()
	}
	if err != nil {
		return fmt.Errorf("GMSACredentialSpec %s: %w", name, err)
	}
	return nil
}

// GrantUse grants a ServiceAccount the `use` permission on a GMSACredentialSpec, with the objects that the webhook's
// denials show.
func (c *Cluster) GrantUse(ctx context.Context, credentialSpec, namespace, serviceAccount string) error {
	return c.Apply(ctx, credspec.UseRBACManifest(credentialSpec, namespace, serviceAccount))
}
