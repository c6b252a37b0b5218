package servingcert

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/ccgrkc/ccgrkc/internal/kube"
)

// configuration contains the fields of a MutatingWebhookConfiguration or ValidatingWebhookConfiguration that are read.
type configuration struct {
	resource string // mutatingwebhookconfigurations ...
	Metadata struct {
		Name            string `json:"name"`
		UID             string `json:"uid"`
		ResourceVersion string `json:"resourceVersion"`
		Generation      int64  `json:"generation"` // increases only with changes of webhooks
	} `json:"metadata"`
	Webhooks []struct {
		Name         string `json:"name"`
		ClientConfig struct {
			CABundle []byte `json:"caBundle"`
		} `json:"clientConfig"`
	} `json:"webhooks"`
}

func (c *configuration) String() string { return c.resource + "/" + c.Metadata.Name }

// version identifies the state of a configuration's webhooks.
func (c *configuration) version() string {
	return fmt.Sprint(c.Metadata.UID, "/", c.Metadata.Generation)
}

func (k *Keeper) configurationURL(resource, name string) string {
	return k.config.API.URL(nil, "apis", "admissionregistration.k8s.io", "v1", resource, name)
}

// readConfigurations reads both configurations.
func (k *Keeper) readConfigurations(ctx context.Context) ([]*configuration, error) {
	var both []*configuration
	for _, object := range []struct{ resource, name string }{
		{"mutatingwebhookconfigurations", k.config.Mutating},
		{"validatingwebhookconfigurations", k.config.Validating},
	} {
		c := &configuration{resource: object.resource}
		if err := k.get(ctx, k.configurationURL(object.resource, object.name), c); err != nil {
			err = fmt.Errorf("%s/%s: %w%s", object.resource, object.name, err, remedy(err, "get"))
			return nil, &problem{"get " + object.resource, err}
		}
		if len(c.Webhooks) == 0 {
			return nil, &problem{"no webhooks", fmt.Errorf("%s has no webhooks; restore it with helm upgrade", c)}
		}
		both = append(both, c)
	}
	return both, nil
}

// inject sets the caBundle of every webhook of c to ca. It fails with errOvertaken if c has changed since it was read,
// and updates c from the response.
func (k *Keeper) inject(ctx context.Context, c *configuration, ca []byte) error {
	// The patch tests the version, not only the webhooks' names: a keeper that was delayed after reading the Secret
	// would otherwise remove a CA that another one has added.
	patch := kube.JSONPatch{{Op: "test", Path: "/metadata/resourceVersion", Value: c.Metadata.ResourceVersion}}
	for i, w := range c.Webhooks {
		if !bytes.Equal(w.ClientConfig.CABundle, ca) {
			patch = append(patch, kube.JSONPatchOperation{
				Op:    "add",
				Path:  fmt.Sprintf("/webhooks/%d/clientConfig/caBundle", i),
				Value: ca,
			})
		}
	}
	if len(patch) == 1 {
		return nil
	}
	now := configuration{resource: c.resource}
	if err := k.call(ctx, http.MethodPatch, k.configurationURL(c.resource, c.Metadata.Name), patch, &now); err != nil {
		if code := kube.Code(err); code == http.StatusUnprocessableEntity || code == http.StatusConflict {
			err = fmt.Errorf("%w: %w", errOvertaken, err)
		}
		return &problem{"patch " + c.String(), fmt.Errorf("%s: %w%s", c, err, remedy(err, "patch"))}
	}
	*c = now
	k.config.Log.Info("CA bundle written", "configuration", c.String())
	return nil
}

// errOvertaken means that an object has changed since it was read.
var errOvertaken = errors.New("the object has changed since it was read")

func remedy(err error, verb string) string {
	switch kube.Code(err) {
	case http.StatusForbidden:
		return "; the webhook's ServiceAccount needs the verb " + verb + "; restore it with helm upgrade"
	case http.StatusNotFound:
		return "; restore it with helm upgrade"
	}
	return ""
}

// trusts returns nil if an API server with these configurations accepts p.
func (k *Keeper) trusts(seen []*configuration, p *pair, now clocks) error {
	for _, c := range seen {
		for _, w := range c.Webhooks {
			if _, err := p.verify(certificates(w.ClientConfig.CABundle), k.config.DNSName, now); err != nil {
				return fmt.Errorf("the caBundle of webhook %s in %s does not match the certificate: %w", w.Name, c, err)
			}
		}
	}
	return nil
}

// everywhere reports whether ca is in every caBundle.
func everywhere(seen []*configuration, ca *x509.Certificate) bool {
	for _, c := range seen {
		for _, w := range c.Webhooks {
			if !slices.ContainsFunc(certificates(w.ClientConfig.CABundle), ca.Equal) {
				return false
			}
		}
	}
	return true
}

// anywhere returns the certificates of all caBundles.
func anywhere(seen []*configuration) []*x509.Certificate {
	var all []*x509.Certificate
	for _, c := range seen {
		for _, w := range c.Webhooks {
			all = add(all, certificates(w.ClientConfig.CABundle)...)
		}
	}
	return all
}

// others reports whether API servers trust a CA other than ca. Then other replicas can be in use.
func others(seen []*configuration, ca *x509.Certificate, now clocks) bool {
	return slices.ContainsFunc(anywhere(seen), func(c *x509.Certificate) bool { return !c.Equal(ca) && now.valid(c) })
}
