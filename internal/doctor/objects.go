package doctor

import (
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/credspec"
	"github.com/ccgrkc/ccgrkc/internal/inventory"
	"github.com/ccgrkc/ccgrkc/internal/verify"
)

// Objects is what was read, and nothing secret. Lists that were not read are absent from Read.
type Objects struct {
	Scope   string
	Program string // how the user calls gmsactl
	Now     time.Time
	Read    map[string]bool
	// ReleasesIn names the namespaces whose releases were read where all could not be.
	ReleasesIn map[string]bool
	NoCRD      bool // the cluster does not know GMSACredentialSpecs

	Releases     []inventory.Release
	Nodes        []corev1.Node  // Windows nodes
	Pods         []corev1.Pod   // pods of the releases
	Users        []corev1.Pod   // pods that are to take on a gMSA
	Events       []corev1.Event // of Users that do not run, of DaemonSets of the releases, and refusals that speak of a gMSA
	Secrets      []Secret
	Certificates []Certificate
	Specs        []Spec
	Webhooks     []Webhook
	Uses         []Use
	NodeResults  []verify.NodeResult
	Unseen       []inventory.Unseen
}

// What Read may name.
const (
	ReadReleases = "releases"
	ReadNodes    = "nodes"
	ReadPods     = "pods of releases"
	ReadUsers    = "pods with a gMSA"
	ReadSpecs    = "credential specs"
	ReadWebhooks = "webhooks"
)

// Secret is what is told of a Secret: never a value, and not its length.
type Secret struct {
	Reference credential.Reference `json:"-"`
	Name      string               `json:"name"` // namespace/name
	Exists    bool                 `json:"exists"`
	Problem   string               `json:"problem,omitempty"`
	Warnings  []string             `json:"warnings,omitempty"`
}

// Certificate is a certificate of a provider's that is in a Secret.
type Certificate struct {
	Secret    string    `json:"secret"`  // namespace/name
	Release   string    `json:"release"` // namespace/release
	Side      string    `json:"side"`    // server or client
	Exists    bool      `json:"exists"`
	Problem   string    `json:"problem,omitempty"`
	NotBefore time.Time `json:"notBefore,omitzero"`
	NotAfter  time.Time `json:"notAfter,omitzero"`
}

// Spec is a GMSACredentialSpec. Nothing in it is secret.
type Spec struct {
	Name     string            `json:"name"`
	Content  json.RawMessage   `json:"content"`
	Document credspec.Document `json:"-"`
}

// Webhook is one webhook of a configuration that is about gMSAs.
type Webhook struct {
	Configuration string    `json:"configuration"` // kind and name
	Resource      string    `json:"resource"`      // as kubectl takes it
	Name          string    `json:"name"`
	Mutating      bool      `json:"mutating"`
	Service       string    `json:"service,omitempty"` // namespace/name
	Fails         bool      `json:"failsClosed"`       // failurePolicy Fail
	CAProblem     string    `json:"caProblem,omitempty"`
	CABegins      time.Time `json:"caBegins,omitzero"` // of the one that ends last
	CAExpires     time.Time `json:"caExpires,omitzero"`
	// Secret is the one with the certificate that it serves, namespace/name; empty: not known or not looked at.
	Secret  string    `json:"secret,omitempty"`
	Begins  time.Time `json:"begins,omitzero"` // that certificate
	Expires time.Time `json:"expires,omitzero"`
	Problem string    `json:"problem,omitempty"` // why the API server will refuse that certificate
	// Endpoints is how many ready ones the Service has; nil: not looked at.
	Endpoints *int `json:"endpoints,omitempty"`
	// Replicas is how many pods the Deployment behind the Service is to have; nil: not looked at.
	Replicas *int `json:"replicas,omitempty"`
}

// Use is whether a ServiceAccount may use a GMSACredentialSpec.
type Use struct {
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount"`
	CredentialSpec string `json:"credentialSpec"`
	Allowed        bool   `json:"allowed"`
}

// sawReleases tells whether the releases of a namespace are all known.
func (o *Objects) sawReleases(namespace string) bool {
	return o.Read[ReadReleases] || o.ReleasesIn[namespace]
}

func (o *Objects) looked() []string {
	looked := []string{}
	for _, l := range []struct {
		what string
		n    int
		show bool
	}{
		{"releases of the charts", len(o.Releases), o.Read[ReadReleases] || len(o.ReleasesIn) > 0},
		{"Windows nodes", len(o.Nodes), o.Read[ReadNodes]},
		{"pods of the releases", len(o.Pods), o.Read[ReadPods]},
		{"pods with a gMSA", len(o.Users), o.Read[ReadUsers]},
		{"credential specs", len(o.Specs), o.Read[ReadSpecs]},
		{"Secrets of accounts", len(o.Secrets), len(o.Secrets) > 0},
		{"certificates", len(o.Certificates), len(o.Certificates) > 0},
		{"webhooks for gMSAs", len(o.Webhooks), o.Read[ReadWebhooks]},
		{"rights to use a credential spec", len(o.Uses), len(o.Uses) > 0},
		{"nodes from within", len(o.NodeResults), len(o.NodeResults) > 0},
	} {
		if l.show {
			looked = append(looked, fmt.Sprintf("%s: %d", l.what, l.n))
		}
	}
	return looked
}

// userSpec is what one container, or the pod itself, has of a gMSA.
type userSpec struct {
	where    string // the pod, or container app
	name     string // gmsaCredentialSpecName
	contents string // gmsaCredentialSpec
}

// userSpecs lists what a pod and its containers name.
func userSpecs(pod *corev1.Pod) []userSpec {
	var list []userSpec
	add := func(where string, w *corev1.WindowsSecurityContextOptions) {
		if w == nil || w.GMSACredentialSpecName == nil && w.GMSACredentialSpec == nil {
			return
		}
		u := userSpec{where: where}
		if w.GMSACredentialSpecName != nil {
			u.name = *w.GMSACredentialSpecName
		}
		if w.GMSACredentialSpec != nil {
			u.contents = *w.GMSACredentialSpec
		}
		list = append(list, u)
	}
	if s := pod.Spec.SecurityContext; s != nil {
		add("the pod", s.WindowsOptions)
	}
	for _, containers := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for _, c := range containers {
			if c.SecurityContext != nil {
				add("container "+c.Name, c.SecurityContext.WindowsOptions)
			}
		}
	}
	for _, c := range pod.Spec.EphemeralContainers {
		if c.SecurityContext != nil {
			add("container "+c.Name, c.SecurityContext.WindowsOptions)
		}
	}
	return list
}

func serviceAccount(pod *corev1.Pod) string {
	if pod.Spec.ServiceAccountName == "" {
		return "default"
	}
	return pod.Spec.ServiceAccountName
}
