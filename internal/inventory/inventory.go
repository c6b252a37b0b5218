// Package inventory reads and writes the objects in a cluster that belong to gMSAs: releases of this product's charts,
// credential specs and the Secrets of impersonation accounts. It does not judge what it reads. If a permission is
// missing, it reports which one.
package inventory

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/kubeclient"
)

// Cluster holds the clients for one cluster.
type Cluster struct {
	Kube    *kubeclient.Client
	Dynamic dynamic.Interface
	Config  *rest.Config // for exec
}

// New creates the clients for a configuration. It sends no request.
func New(config *rest.Config) (*Cluster, error) {
	config = rest.CopyConfig(config)
	// The default of 5 requests a second suits controllers, which run permanently.
	config.QPS, config.Burst = 100, 200
	client, err := kubeclient.New(config)
	if err != nil {
		return nil, err
	}
	dyn, err := dynamic.NewForConfig(config)
	return &Cluster{Kube: client, Dynamic: dyn, Config: config}, err
}

// Skipped is an object that could not be checked.
type Skipped struct {
	What string `json:"what"` // such as Secret gmsa-system/web-creds
	Why  string `json:"why"`  // the error
	// Permission is the missing permission, if that is the reason: get secrets/web-creds in namespace gmsa-system.
	Permission string `json:"permission,omitempty"`
}

func (u Skipped) String() string {
	if u.Permission != "" {
		return u.What + ": requires permission: " + u.Permission
	}
	return u.What + ": " + u.Why
}

// Permission describes the permission that a request requires. resource can contain a group and a name:
// daemonsets.apps, secrets/web-creds.
func Permission(verb, resource, namespace string) string {
	if namespace == "" {
		return verb + " " + resource + " in the whole cluster"
	}
	return verb + " " + resource + " in namespace " + namespace
}

// NewSkipped returns a Skipped for an error of the API server.
func NewSkipped(what string, err error, permission string) Skipped {
	u := Skipped{What: what, Why: err.Error()}
	if apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) {
		u.Permission = permission
	}
	return u
}

// The names and labels of the charts' objects.
const (
	PartOfLabel    = "app.kubernetes.io/part-of=ccgrkc"
	InstallerChart = "rancher-gmsa-plugin-installer"
	ProviderChart  = "rancher-gmsa-account-provider"
	WebhookChart   = "rancher-gmsa-webhook"

	labelName      = "app.kubernetes.io/name"
	labelInstance  = "app.kubernetes.io/instance"
	labelComponent = "app.kubernetes.io/component"
	labelVersion   = "app.kubernetes.io/version"

	InstallerComponent = "installer"
	ProviderComponent  = "provider"
	installerContainer = "installer"
	providerContainer  = "provider"
)

// InstallerCommand installs the plugin installer.
const InstallerCommand = "helm install " + InstallerChart + " ./charts/" + InstallerChart +
	" --namespace cattle-windows-gmsa-system --create-namespace --wait"

// Release is a release of one of the charts, read from its DaemonSet.
type Release struct {
	Chart     string
	Namespace string
	Name      string
	Version   string
	Secret    string // the name of the credentials Secret; only for a provider
	RunAs     string // the plugin identity that the release expects
	DaemonSet appsv1.DaemonSet
}

// String returns <namespace>/<release>.
func (r Release) String() string { return r.Namespace + "/" + r.Name }

// Reference returns the plugin input for a provider's release.
func (r Release) Reference() credential.Reference {
	return credential.Reference{Namespace: r.Namespace, Secret: r.Secret}
}

// CertificateSecrets returns the names of the Secrets with a provider's certificates, by side (server or client). The
// map is empty if the provider issues its own certificates.
func (r Release) CertificateSecrets() map[string]string {
	secrets := map[string]string{}
	for _, v := range r.DaemonSet.Spec.Template.Spec.Volumes {
		if v.Secret != nil && (v.Name == "server" || v.Name == "client") {
			secrets[v.Name] = v.Secret.SecretName
		}
	}
	return secrets
}

// Container returns the name of the container that runs the release's program.
func (r Release) Container() string {
	if r.Chart == InstallerChart {
		return installerContainer
	}
	return providerContainer
}

// ReleaseOf reads a DaemonSet of the charts. ok is false for any other DaemonSet, such as the uninstall hook's.
func ReleaseOf(d appsv1.DaemonSet) (r Release, ok bool) {
	r = Release{
		Chart:     d.Labels[labelName],
		Namespace: d.Namespace,
		Name:      d.Labels[labelInstance],
		Version:   d.Labels[labelVersion],
		DaemonSet: d,
	}
	switch {
	case r.Chart == InstallerChart && d.Labels[labelComponent] == InstallerComponent:
		r.RunAs = argument(d, installerContainer, "--run-as=")
	case r.Chart == ProviderChart && d.Labels[labelComponent] == ProviderComponent:
		r.Secret = argument(d, providerContainer, "--secret=")
		r.RunAs = argument(d, providerContainer, "--plugin-identity=")
	default:
		return Release{}, false
	}
	return r, true
}

func argument(d appsv1.DaemonSet, container, prefix string) string {
	for _, c := range d.Spec.Template.Spec.Containers {
		if c.Name != container {
			continue
		}
		for _, arg := range slices.Concat(c.Command, c.Args) {
			if value, ok := strings.CutPrefix(arg, prefix); ok {
				return value
			}
		}
	}
	return ""
}

// Releases returns the releases of both charts in a namespace or, if namespace is "", in all.
func (c *Cluster) Releases(ctx context.Context, namespace string) ([]Release, error) {
	list, err := c.Kube.AppsV1().DaemonSets(namespace).List(ctx, metav1.ListOptions{LabelSelector: PartOfLabel})
	if err != nil {
		return nil, err
	}
	var releases []Release
	for _, d := range list.Items {
		if r, ok := ReleaseOf(d); ok {
			releases = append(releases, r)
		}
	}
	slices.SortFunc(releases, func(a, b Release) int {
		return cmp.Or(strings.Compare(a.Chart, b.Chart), strings.Compare(a.String(), b.String()))
	})
	return releases, nil
}

// Of selects the releases of one chart.
func Of(releases []Release, chart string) []Release {
	var of []Release
	for _, r := range releases {
		if r.Chart == chart {
			of = append(of, r)
		}
	}
	return of
}

// CredentialSpecs is the resource of GMSACredentialSpecs. It is cluster-scoped.
var CredentialSpecs = schema.GroupVersionResource{Group: "windows.k8s.io", Version: "v1",
	Resource: "gmsacredentialspecs"}

// CredentialSpecResource is the resource's name in RBAC rules.
const CredentialSpecResource = "gmsacredentialspecs.windows.k8s.io"

// ErrNoCredentialSpecs reports that the cluster does not have the resource.
var ErrNoCredentialSpecs = errors.New("the CustomResourceDefinition " + CredentialSpecResource +
	" is not installed in this cluster")

// CredentialSpec returns a GMSACredentialSpec as JSON.
func (c *Cluster) CredentialSpec(ctx context.Context, name string) ([]byte, error) {
	u, err := c.Dynamic.Resource(CredentialSpecs).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, unknownResource(err)
	}
	return u.MarshalJSON()
}

// CredentialSpecs returns all GMSACredentialSpecs as JSON, by name.
func (c *Cluster) CredentialSpecs(ctx context.Context) (map[string][]byte, error) {
	list, err := c.Dynamic.Resource(CredentialSpecs).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, unknownResource(err)
	}
	specs := map[string][]byte{}
	for _, u := range list.Items {
		content, err := u.MarshalJSON()
		if err != nil {
			return nil, err
		}
		specs[u.GetName()] = content
	}
	return specs, nil
}

// unknownResource detects a missing resource. The API server returns 404 both for a missing resource and for a missing
// object; only for an object does it contain a name.
func unknownResource(err error) error {
	var status apierrors.APIStatus
	if meta.IsNoMatchError(err) {
		return ErrNoCredentialSpecs
	}
	if errors.As(err, &status) && apierrors.IsNotFound(err) {
		if details := status.Status().Details; details == nil || details.Name == "" {
			return ErrNoCredentialSpecs
		}
	}
	return err
}

// Secret reads the credentials of an impersonation account, and warnings about them. For a Secret without valid
// credentials the error is an *InvalidSecret. The caller wipes the password.
func (c *Cluster) Secret(ctx context.Context, ref credential.Reference) (credential.Credential, []string, error) {
	s, err := c.Kube.CoreV1().Secrets(ref.Namespace).Get(ctx, ref.Secret, metav1.GetOptions{})
	if err != nil {
		return credential.Credential{}, nil, err
	}
	defer Wipe(s)
	cred, warnings, err := credential.FromSecret(s.Data)
	if err != nil {
		return cred, warnings, &InvalidSecret{Reference: ref, Err: err}
	}
	return cred, warnings, nil
}

// InvalidSecret reports a Secret without valid credentials. It contains no value of the Secret.
type InvalidSecret struct {
	Reference credential.Reference
	Err       error
}

func (e *InvalidSecret) Error() string {
	return fmt.Sprintf("Secret %s/%s: %v", e.Reference.Namespace, e.Reference.Secret, e.Err)
}

func (e *InvalidSecret) Unwrap() error { return e.Err }

// Wipe overwrites the data of a Secret.
func Wipe(s *corev1.Secret) {
	for _, v := range s.Data {
		clear(v)
	}
}

// CertificateOf returns tls.crt and ca.crt of a Secret. It wipes the private key.
func (c *Cluster) CertificateOf(ctx context.Context, namespace, name string) (certificate, ca []byte, _ error) {
	s, err := c.Kube.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, nil, err
	}
	certificate, ca = slices.Clone(s.Data[corev1.TLSCertKey]), slices.Clone(s.Data["ca.crt"])
	Wipe(s)
	return certificate, ca, nil
}

// PodOn returns the release's pods on a node: one that runs, and one that does not. Either can be nil.
func (c *Cluster) PodOn(ctx context.Context, r Release, node string) (running, waiting *corev1.Pod, _ error) {
	selector, err := metav1.LabelSelectorAsSelector(r.DaemonSet.Spec.Selector)
	if err != nil {
		return nil, nil, err
	}
	options := metav1.ListOptions{LabelSelector: selector.String(), FieldSelector: "spec.nodeName=" + node}
	pods, err := c.Kube.CoreV1().Pods(r.Namespace).List(ctx, options)
	if err != nil {
		return nil, nil, err
	}
	for i := range pods.Items {
		pod := &pods.Items[i]
		switch {
		case pod.DeletionTimestamp != nil:
		case pod.Status.Phase == corev1.PodRunning && containerRuns(pod, r.Container()):
			// During a rolling update two pods can run. The ready one is active.
			if running == nil || Ready(pod) {
				running = pod
			}
		default:
			waiting = pod
		}
	}
	return running, waiting, nil
}

func containerRuns(pod *corev1.Pod, container string) bool {
	for _, s := range pod.Status.ContainerStatuses {
		if s.Name == container {
			return s.State.Running != nil
		}
	}
	return false
}

// Ready reports whether a pod is ready.
func Ready(pod *corev1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// IsWindows reports whether a node runs Windows.
func IsWindows(n *corev1.Node) bool {
	return n.Labels[corev1.LabelOSStable] == "windows" || n.Status.NodeInfo.OperatingSystem == "windows"
}
