package servingcert

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/kube"
)

// configuration is what is read of a MutatingWebhookConfiguration or a ValidatingWebhookConfiguration.
type configuration struct {
	resource string // mutatingwebhookconfigurations ...
	Metadata struct {
		Name            string `json:"name"`
		UID             string `json:"uid"`
		ResourceVersion string `json:"resourceVersion"`
		Generation      int64  `json:"generation"` // counts changes of the webhooks, and of nothing else
	} `json:"metadata"`
	Webhooks []struct {
		Name         string `json:"name"`
		ClientConfig struct {
			CABundle []byte `json:"caBundle"`
		} `json:"clientConfig"`
	} `json:"webhooks"`
}

func (c *configuration) String() string { return c.resource + "/" + c.Metadata.Name }

// version tells apart any two contents that a configuration's webhooks ever had.
func (c *configuration) version() string {
	return fmt.Sprint(c.Metadata.UID, "/", c.Metadata.Generation)
}

func (k *Keeper) configurationURL(resource, name string) string {
	return k.config.API.URL(nil, "apis", "admissionregistration.k8s.io", "v1", resource, name)
}

// readConfigurations reads the two as they are now.
func (k *Keeper) readConfigurations(ctx context.Context) ([]*configuration, error) {
	var both []*configuration
	for _, of := range [][2]string{{"mutatingwebhookconfigurations", k.config.Mutating}, {"validatingwebhookconfigurations", k.config.Validating}} {
		c := &configuration{resource: of[0]}
		if err := k.get(ctx, k.configurationURL(of[0], of[1]), c); err != nil {
			return nil, fmt.Errorf("%s/%s: %w%s", of[0], of[1], err, remedy(err, "get"))
		}
		if len(c.Webhooks) == 0 {
			return nil, fmt.Errorf("%s has no webhooks; helm upgrade writes it again", c)
		}
		both = append(both, c)
	}
	return both, nil
}

// inject writes ca as the caBundle of every webhook of c, unless it is. It writes over nothing that came after c was read,
// and reads c again by its own answer.
func (k *Keeper) inject(ctx context.Context, c *configuration, ca []byte) error {
	// The version is tested and not only each webhook's name: a keeper that was held up between reading the Secret and writing
	// here would otherwise take a CA away that another one has added meanwhile.
	patch := kube.JSONPatch{{Op: "test", Path: "/metadata/resourceVersion", Value: c.Metadata.ResourceVersion}}
	for i, w := range c.Webhooks {
		if !bytes.Equal(w.ClientConfig.CABundle, ca) {
			patch = append(patch, kube.JSONPatchOperation{Op: "add", Path: fmt.Sprintf("/webhooks/%d/clientConfig/caBundle", i), Value: ca})
		}
	}
	if len(patch) == 1 {
		return nil
	}
	now := configuration{resource: c.resource}
	if err := k.call(ctx, http.MethodPatch, k.configurationURL(c.resource, c.Metadata.Name), patch, &now); err != nil {
		if code := kube.Code(err); code == http.StatusUnprocessableEntity || code == http.StatusConflict {
			return fmt.Errorf("%s: %w: %w", c, errOvertaken, err)
		}
		return fmt.Errorf("%s: %w%s", c, err, remedy(err, "patch"))
	}
	*c = now
	k.config.Log.Info("CA bundle written", "configuration", c.String())
	return nil
}

// errOvertaken is that somebody wrote an object after it was read.
var errOvertaken = errors.New("it has changed meanwhile")

func remedy(err error, verb string) string {
	switch kube.Code(err) {
	case http.StatusForbidden:
		return "; the webhook's ServiceAccount needs the verb " + verb + " for it, which its chart grants"
	case http.StatusNotFound:
		return "; helm upgrade makes it again"
	}
	return ""
}

// trusts tells whether an API server that goes by these configurations takes p for the webhook.
func (k *Keeper) trusts(seen []*configuration, p *pair, now time.Time) error {
	for _, c := range seen {
		for _, w := range c.Webhooks {
			if _, err := p.verify(certificates(w.ClientConfig.CABundle), k.config.DNSName, now); err != nil {
				return fmt.Errorf("the caBundle of webhook %s in %s does not fit the certificate: %w", w.Name, c, err)
			}
		}
	}
	return nil
}
