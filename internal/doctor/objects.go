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

// Objects are the objects that Collect read. They contain no secrets.
type Objects struct {
	Scope   string
	Program string // how the user calls gmsactl
	Now     time.Time
	Read    map[string]bool // the lists that were read completely
	// ReleasesIn contains the namespaces whose releases were read, if not all namespaces could be read.
	ReleasesIn map[string]bool
	NoCRD      bool // the CustomResourceDefinition of GMSACredentialSpecs is not installed

	Releases     []inventory.Release
	Nodes        []corev1.Node  // Windows nodes
	Pods         []corev1.Pod   // pods of the releases
	GMSAPods     []corev1.Pod   // pods that use a gMSA
	Events       []corev1.Event // of GMSAPods that do not run, of the releases' DaemonSets, and of denied pods
	Secrets      []Secret
	Certificates []Certificate
	Specs        []Spec
	Webhooks     []Webhook
	Uses         []Use
	NodeResults  []verify.NodeResult
	Skipped      []inventory.Skipped
}

// The keys of Read.
const (
	ReadReleases = "releases"
	ReadNodes    = "nodes"
	ReadPods     = "pods of releases"
	ReadGMSAPods = "pods that use a gMSA"
	ReadSpecs    = "credential specs"
	ReadWebhooks = "webhooks"
)

// Secret describes a credentials Secret. It contains no values and no lengths.
type Secret struct {
	Reference credential.Reference `json:"-"`
	Name      string               `json:"name"` // namespace/name
	Exists    bool                 `json:"exists"`
	Problem   string               `json:"problem,omitempty"`
	Warnings  []string             `json:"warnings,omitempty"`
}

// Certificate is a provider's certificate in a Secret.
type Certificate struct {
	Secret    string    `json:"secret"`  // namespace/name
	Release   string    `json:"release"` // namespace/release
	Side      string    `json:"side"`    // server or client
	Exists    bool      `json:"exists"`
	Problem   string    `json:"problem,omitempty"`
	NotBefore time.Time `json:"notBefore,omitzero"`
	NotAfter  time.Time `json:"notAfter,omitzero"`
}

// Spec is a GMSACredentialSpec. It contains no secrets.
type Spec struct {
	Name     string            `json:"name"`
	Content  json.RawMessage   `json:"content"`
	Document credspec.Document `json:"-"`
}

// Webhook is a webhook for gMSAs from a webhook configuration.
type Webhook struct {
	Configuration string    `json:"configuration"` // kind and name
	Resource      string    `json:"resource"`      // kubectl's name of the kind
	Name          string    `json:"name"`
	Mutating      bool      `json:"mutating"`
	Service       string    `json:"service,omitempty"` // namespace/name
	Fails         bool      `json:"failsClosed"`       // failurePolicy Fail
	CAProblem     string    `json:"caProblem,omitempty"`
	CABegins      time.Time `json:"caBegins,omitzero"` // of the CA certificate that expires last
	CAExpires     time.Time `json:"caExpires,omitzero"`
	// Secret contains the serving certificate: namespace/name. It is empty if the Secret is unknown or was not read.
	Secret  string    `json:"secret,omitempty"`
	Begins  time.Time `json:"begins,omitzero"` // of the serving certificate
	Expires time.Time `json:"expires,omitzero"`
	Problem string    `json:"problem,omitempty"` // why the API server does not accept the serving certificate
	// Endpoints is the number of the Service's ready endpoints. It is nil if they were not read.
	Endpoints *int `json:"endpoints,omitempty"`
	// Replicas is the desired number of pods of the Deployment behind the Service. It is nil if it was not read.
	Replicas *int `json:"replicas,omitempty"`
}

// Use reports whether a ServiceAccount has the use permission for a GMSACredentialSpec.
type Use struct {
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount"`
	CredentialSpec string `json:"credentialSpec"`
	Allowed        bool   `json:"allowed"`
}

// knowsReleases reports whether all releases of a namespace were read.
func (o *Objects) knowsReleases(namespace string) bool {
	return o.Read[ReadReleases] || o.ReleasesIn[namespace]
}

func (o *Objects) checked() []string {
	looked := []string{}
	for _, l := range []struct {
		what string
		n    int
		show bool
	}{
		{"releases of the charts", len(o.Releases), o.Read[ReadReleases] || len(o.ReleasesIn) > 0},
		{"Windows nodes", len(o.Nodes), o.Read[ReadNodes]},
		{"pods of the releases", len(o.Pods), o.Read[ReadPods]},
		{"pods that use a gMSA", len(o.GMSAPods), o.Read[ReadGMSAPods]},
		{"credential specs", len(o.Specs), o.Read[ReadSpecs]},
		{"credentials Secrets", len(o.Secrets), len(o.Secrets) > 0},
		{"certificates", len(o.Certificates), len(o.Certificates) > 0},
		{"webhooks for gMSAs", len(o.Webhooks), o.Read[ReadWebhooks]},
		{"use permissions", len(o.Uses), len(o.Uses) > 0},
		{"nodes checked with exec", len(o.NodeResults), len(o.NodeResults) > 0},
	} {
		if l.show {
			looked = append(looked, fmt.Sprintf("%s: %d", l.what, l.n))
		}
	}
	return looked
}

// gmsaRef is a reference to a credential spec in a pod or container.
type gmsaRef struct {
	where  string // such as "the pod" or "container app"
	name   string // gmsaCredentialSpecName
	inline string // gmsaCredentialSpec
}

// gmsaRefs returns the references in a pod and its containers.
func gmsaRefs(pod *corev1.Pod) []gmsaRef {
	var list []gmsaRef
	add := func(where string, w *corev1.WindowsSecurityContextOptions) {
		if w == nil || w.GMSACredentialSpecName == nil && w.GMSACredentialSpec == nil {
			return
		}
		u := gmsaRef{where: where}
		if w.GMSACredentialSpecName != nil {
			u.name = *w.GMSACredentialSpecName
		}
		if w.GMSACredentialSpec != nil {
			u.inline = *w.GMSACredentialSpec
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
