package provider

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/kube"
)

const (
	// fetchTimeout limits one request to the API server. A call to the provider waits for at most one.
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
	url := client.URL(nil, "api", "v1", "namespaces", ref.Namespace, "secrets", ref.Secret)
	return &secretReader{client, ref, url}, nil
}

// read sends one request. A *credential.Problem is a response of the API server. Any other error is an outage.
func (r *secretReader) read(ctx context.Context) (credential.Credential, []string, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	resp, err := r.client.Do(ctx, http.MethodGet, r.url)
	if err != nil {
		return credential.Credential{}, nil, err
	}
	defer resp.Body.Close()
	body, err := readAndWipeCopies(resp.Body, maxSecretLength)
	defer clear(body)
	if err != nil {
		return credential.Credential{}, nil, fmt.Errorf("API server: %w", err)
	}
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return credential.Credential{}, nil,
			&credential.Problem{Code: credential.ProblemSecretNotFound, Detail: fmt.Sprintf(
				"secret %s/%s does not exist; create it: kubectl create secret generic %s --namespace %s "+
					"--from-literal=domainName=<DNS name> --from-literal=username=<account> "+
					"--from-file=password=<file>",
				r.ref.Namespace, r.ref.Secret, r.ref.Secret, r.ref.Namespace)}
	case http.StatusForbidden:
		return credential.Credential{}, nil, &credential.Problem{Code: credential.ProblemForbidden, Detail: fmt.Sprintf(
			"the provider's ServiceAccount has no permission to get secret %s/%s; restore the release's Role and "+
				"RoleBinding with helm upgrade", r.ref.Namespace, r.ref.Secret)}
	case http.StatusUnauthorized:
		return credential.Credential{}, nil, &credential.Problem{Code: credential.ProblemForbidden, Detail: fmt.Sprintf(
			"secret %s/%s: the API server rejects the provider's ServiceAccount token; if the ServiceAccount was "+
				"deleted, restore it and restart the provider's pod", r.ref.Namespace,
			r.ref.Secret)}
	default:
		return credential.Credential{}, nil, fmt.Errorf("API server: status %d", resp.StatusCode)
	}

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

// readAndWipeCopies is io.ReadAll with a limit. It wipes the smaller buffers when it replaces them.
func readAndWipeCopies(r io.Reader, limit int) ([]byte, error) {
	b := make([]byte, 0, 16<<10)
	for {
		if len(b) == cap(b) {
			if cap(b) >= limit {
				clear(b)
				return nil, fmt.Errorf("the response is longer than %d bytes", limit)
			}
			grown := make([]byte, len(b), min(2*cap(b), limit))
			copy(grown, b)
			clear(b)
			b = grown
		}
		n, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if err == io.EOF {
			return b, nil
		}
		if err != nil {
			clear(b)
			return nil, err
		}
	}
}
