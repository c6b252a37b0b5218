package provider

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/kube"
)

const (
	// fetchTimeout limits one request to the API server.
	fetchTimeout = 2 * time.Second
	// maxSecretLength limits a response of the API server, in bytes: a Secret has at most 1 MiB of data, plus base64
	// and metadata.
	maxSecretLength = 3 << 20
)

// secretReader reads one Secret and no other.
type secretReader struct {
	client *kube.Client
	ref    credential.Reference
	url    string
}

func newSecretReader(api kube.Server, ref credential.Reference) (*secretReader, error) {
	client, err := kube.NewClient(api, "gmsa-account-provider")
	if err != nil {
		return nil, err
	}
	client.SetTimeout(fetchTimeout)
	url := client.URL(nil, "api", "v1", "namespaces", ref.Namespace, "secrets", ref.Secret)
	return &secretReader{client, ref, url}, nil
}

// read reads the Secret, in at most fetchTimeout and kube.ConfirmTimeout. A *credential.Problem is a verdict of the API
// server. Any other error is an outage.
func (r *secretReader) read(ctx context.Context) (credential.Credential, []string, error) {
	body, _, err := r.client.Get(ctx, r.url, maxSecretLength)
	if err != nil {
		return credential.Credential{}, nil, r.failure(err)
	}
	defer clear(body)
	var secret struct {
		Kind string            `json:"kind"`
		Data map[string][]byte `json:"data"`
	}
	defer func() {
		for _, v := range secret.Data {
			clear(v)
		}
	}()
	if err := json.Unmarshal(body, &secret); err != nil || secret.Kind != "Secret" {
		return credential.Credential{}, nil,
			errors.New("API server: the response is not a Secret") // err could quote the body
	}
	cred, warnings, err := credential.FromSecret(secret.Data)
	if err != nil {
		return credential.Credential{}, warnings, &credential.Problem{
			Code:   credential.ProblemSecretInvalid,
			Detail: fmt.Sprintf("secret %s/%s: %v", r.ref.Namespace, r.ref.Secret, err),
		}
	}
	return cred, warnings, nil
}

// failure returns the problem that err means, or an error without text from the API server.
func (r *secretReader) failure(err error) error {
	var status *kube.StatusError
	if !errors.As(err, &status) {
		return err
	}
	switch status.Code {
	case http.StatusNotFound:
		return &credential.Problem{Code: credential.ProblemSecretNotFound, Detail: fmt.Sprintf(
			"secret %s/%s does not exist; create it: kubectl create secret generic %s --namespace %s "+
				"--from-literal=domainName=<DNS name> --from-literal=username=<account> "+
				"--from-file=password=<file>",
			r.ref.Namespace, r.ref.Secret, r.ref.Secret, r.ref.Namespace)}
	case http.StatusForbidden:
		return &credential.Problem{Code: credential.ProblemForbidden, Detail: fmt.Sprintf(
			"the provider's ServiceAccount has no permission to get secret %s/%s; restore the release's Role and "+
				"RoleBinding with helm upgrade", r.ref.Namespace, r.ref.Secret)}
	case http.StatusUnauthorized:
		return &credential.Problem{Code: credential.ProblemForbidden, Detail: fmt.Sprintf(
			"secret %s/%s: the API server rejects the provider's ServiceAccount token; if the ServiceAccount was "+
				"deleted, restore it and restart the provider's pod", r.ref.Namespace,
			r.ref.Secret)}
	}
	return fmt.Errorf("API server: status %d", status.Code)
}
