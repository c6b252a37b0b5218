// Package kubeclient is a typed client for the few kinds that gmsactl reads and writes. Its calls look like those of
// k8s.io/client-go/kubernetes, which supports all kinds but doubles the size of the program.
package kubeclient

import (
	"context"
	"encoding/json"
	"net/http"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/rest"
)

// scheme contains the kinds of this client.
var scheme = runtime.NewScheme()

// ParameterCodec encodes options as URL parameters.
var ParameterCodec = runtime.NewParameterCodec(scheme)

var codecs = serializer.NewCodecFactory(scheme)

func init() {
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, appsv1.AddToScheme, authorizationv1.AddToScheme, admissionv1.AddToScheme,
		discoveryv1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			panic(err) // two kinds have the same name; no input causes this
		}
	}
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"}) // Status, which all groups return
}

// Client is a client for one cluster. All API groups share its connections.
type Client struct{ core, apps, authorization, admission, discovery rest.Interface }

// New creates a client. It sends no request.
func New(config *rest.Config) (*Client, error) {
	transport, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, err
	}
	var c Client
	for _, g := range []struct {
		client  *rest.Interface
		path    string
		version schema.GroupVersion
	}{
		{&c.core, "/api", corev1.SchemeGroupVersion},
		{&c.apps, "/apis", appsv1.SchemeGroupVersion},
		{&c.authorization, "/apis", authorizationv1.SchemeGroupVersion},
		{&c.admission, "/apis", admissionv1.SchemeGroupVersion},
		{&c.discovery, "/apis", discoveryv1.SchemeGroupVersion},
	} {
		if *g.client, err = group(config, transport, g.path, g.version); err != nil {
			return nil, err
		}
	}
	return &c, nil
}

func group(config *rest.Config, transport *http.Client, path string, version schema.GroupVersion) (rest.Interface,
	error) {
	config = rest.CopyConfig(config)
	config.APIPath = path
	config.GroupVersion = &version
	config.NegotiatedSerializer = codecs.WithoutConversion()
	if config.UserAgent == "" {
		config.UserAgent = rest.DefaultKubernetesUserAgent()
	}
	return rest.RESTClientForConfigAndClient(config, transport)
}

// The API groups.
type (
	Core          struct{ client rest.Interface }
	Apps          struct{ client rest.Interface }
	Authorization struct{ client rest.Interface }
	Admission     struct{ client rest.Interface }
	Endpoints     struct{ client rest.Interface }
	Server        struct{ client rest.Interface }
)

func (c *Client) CoreV1() Core                       { return Core{c.core} }
func (c *Client) AppsV1() Apps                       { return Apps{c.apps} }
func (c *Client) AuthorizationV1() Authorization     { return Authorization{c.authorization} }
func (c *Client) AdmissionregistrationV1() Admission { return Admission{c.admission} }
func (c *Client) DiscoveryV1() Endpoints             { return Endpoints{c.discovery} }

// Discovery returns the client for information about the API server.
func (c *Client) Discovery() Server { return Server{c.core} }

// ServerVersion returns the version of the API server.
func (g Server) ServerVersion(ctx context.Context) (*version.Info, error) {
	body, err := g.client.Get().AbsPath("/version").Do(ctx).Raw()
	if err != nil {
		return nil, err
	}
	var v version.Info
	return &v, json.Unmarshal(body, &v)
}

func (g Endpoints) EndpointSlices(namespace string) Resource[discoveryv1.EndpointSlice, discoveryv1.EndpointSliceList] {
	return Resource[discoveryv1.EndpointSlice, discoveryv1.EndpointSliceList]{g.client, "endpointslices", namespace}
}

// RESTClient serves subresources without an object, such as a pod's exec.
func (g Core) RESTClient() rest.Interface { return g.client }

func (g Core) Secrets(namespace string) Resource[corev1.Secret, corev1.SecretList] {
	return Resource[corev1.Secret, corev1.SecretList]{g.client, "secrets", namespace}
}

func (g Core) Pods(namespace string) Resource[corev1.Pod, corev1.PodList] {
	return Resource[corev1.Pod, corev1.PodList]{g.client, "pods", namespace}
}

func (g Core) Events(namespace string) Resource[corev1.Event, corev1.EventList] {
	return Resource[corev1.Event, corev1.EventList]{g.client, "events", namespace}
}

func (g Core) Namespaces() Resource[corev1.Namespace, corev1.NamespaceList] {
	return Resource[corev1.Namespace, corev1.NamespaceList]{g.client, "namespaces", ""}
}

func (g Core) Nodes() Resource[corev1.Node, corev1.NodeList] {
	return Resource[corev1.Node, corev1.NodeList]{g.client, "nodes", ""}
}

func (g Core) Services(namespace string) Resource[corev1.Service, corev1.ServiceList] {
	return Resource[corev1.Service, corev1.ServiceList]{g.client, "services", namespace}
}

func (g Apps) Deployments(namespace string) Resource[appsv1.Deployment, appsv1.DeploymentList] {
	return Resource[appsv1.Deployment, appsv1.DeploymentList]{g.client, "deployments", namespace}
}

func (g Apps) DaemonSets(namespace string) Resource[appsv1.DaemonSet, appsv1.DaemonSetList] {
	return Resource[appsv1.DaemonSet, appsv1.DaemonSetList]{g.client, "daemonsets", namespace}
}

func (g Authorization) SubjectAccessReviews() Resource[authorizationv1.SubjectAccessReview, metav1.List] {
	return Resource[authorizationv1.SubjectAccessReview, metav1.List]{g.client, "subjectaccessreviews", ""}
}

func (g Admission) ValidatingWebhookConfigurations() Resource[admissionv1.ValidatingWebhookConfiguration,
	admissionv1.ValidatingWebhookConfigurationList] {
	return Resource[admissionv1.ValidatingWebhookConfiguration,
		admissionv1.ValidatingWebhookConfigurationList]{g.client, "validatingwebhookconfigurations", ""}
}

func (g Admission) MutatingWebhookConfigurations() Resource[admissionv1.MutatingWebhookConfiguration,
	admissionv1.MutatingWebhookConfigurationList] {
	return Resource[admissionv1.MutatingWebhookConfiguration, admissionv1.MutatingWebhookConfigurationList]{g.client,
		"mutatingwebhookconfigurations", ""}
}

// Resource accesses the objects T of one kind, with their list type L, in one namespace or, if namespace is "", in the
// whole cluster. Errors are the API server's.
type Resource[T, L any] struct {
	client    rest.Interface
	resource  string
	namespace string
}

// Get reads an object.
func (r Resource[T, L]) Get(ctx context.Context, name string, o metav1.GetOptions) (*T, error) {
	out := new(T)
	return out, r.on(r.client.Get()).Name(name).VersionedParams(&o, ParameterCodec).Do(ctx).Into(object(out))
}

// List reads objects.
func (r Resource[T, L]) List(ctx context.Context, o metav1.ListOptions) (*L, error) {
	out := new(L)
	return out, r.on(r.client.Get()).VersionedParams(&o, ParameterCodec).Do(ctx).Into(object(out))
}

// Create creates an object.
func (r Resource[T, L]) Create(ctx context.Context, in *T, o metav1.CreateOptions) (*T, error) {
	out := new(T)
	return out, r.on(r.client.Post()).VersionedParams(&o, ParameterCodec).Body(object(in)).Do(ctx).Into(object(out))
}

// Update replaces an object.
func (r Resource[T, L]) Update(ctx context.Context, in *T, o metav1.UpdateOptions) (*T, error) {
	out := new(T)
	name := any(in).(metav1.Object).GetName()
	return out, r.on(r.client.Put()).Name(name).VersionedParams(&o,
		ParameterCodec).Body(object(in)).Do(ctx).Into(object(out))
}

func (r Resource[T, L]) on(q *rest.Request) *rest.Request {
	return q.NamespaceIfScoped(r.namespace, r.namespace != "").Resource(r.resource)
}

func object(v any) runtime.Object { return v.(runtime.Object) }
