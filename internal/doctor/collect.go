package doctor

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/credspec"
	"github.com/ccgrkc/ccgrkc/internal/inventory"
	"github.com/ccgrkc/ccgrkc/internal/verify"
)

// ScopeCluster is the scope of a report that is not of one pod or node.
const ScopeCluster = "cluster"

// Scope says what to look at.
type Scope struct {
	Pod       string // this pod of Namespace, and what it needs
	Node      string // this node, from within too
	Namespace string // pods with a gMSA of this namespace only; "": of all
	Fallback  string // namespace to look at where all may not be listed
	Inside    bool   // look at all Windows nodes from within
	Timeout   time.Duration
}

func (s Scope) String() string {
	switch {
	case s.Pod != "":
		return "pod " + s.Namespace + "/" + s.Pod
	case s.Node != "":
		return "node " + s.Node
	}
	return ScopeCluster
}

// Collect reads what the rules need. What may not be read is noted and left out. The error is that the API server does not
// answer, or that the pod or node of the scope does not exist.
func Collect(ctx context.Context, cluster *inventory.Cluster, program string, scope Scope) (*Objects, error) {
	c := &collector{Cluster: cluster, scope: scope, o: &Objects{Scope: scope.String(), Program: program, Now: time.Now(), Read: map[string]bool{}, ReleasesIn: map[string]bool{}}}
	// One question first: if nobody answers, there is no report.
	if _, err := cluster.Kube.Discovery().ServerVersion(ctx); err != nil && !apierrors.IsForbidden(err) && !apierrors.IsUnauthorized(err) {
		return nil, fmt.Errorf("the API server %s does not answer: %w", cluster.Config.Host, err)
	}
	if err := c.first(ctx); err != nil {
		return nil, err
	}
	c.all(ctx, c.releases, c.specs, c.webhooks)
	c.narrow()
	c.all(ctx, c.pods, c.secrets, c.certificates, c.uses, c.events, c.refused, c.inside)
	slices.SortFunc(c.o.Unseen, func(a, b inventory.Unseen) int { return strings.Compare(a.What, b.What) })
	return c.o, nil
}

type collector struct {
	*inventory.Cluster
	scope Scope

	mu sync.Mutex
	o  *Objects
}

func (c *collector) all(ctx context.Context, read ...func(context.Context)) {
	var wg sync.WaitGroup
	for _, f := range read {
		wg.Go(func() { f(ctx) })
	}
	wg.Wait()
}

func (c *collector) unseen(what string, err error, right string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if u := inventory.NotSeen(what, err, right); !slices.Contains(c.o.Unseen, u) {
		c.o.Unseen = append(c.o.Unseen, u)
	}
}

// put changes the objects; f may be called at once for several kinds.
func (c *collector) put(f func(o *Objects)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(c.o)
}

// wasRead tells whether all of a kind was read. Others may be reading theirs.
func (c *collector) wasRead(kind string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.o.Read[kind]
}

// first reads pods and nodes, by which the rest is narrowed.
func (c *collector) first(ctx context.Context) error {
	if c.scope.Pod != "" {
		pod, err := c.Kube.CoreV1().Pods(c.scope.Namespace).Get(ctx, c.scope.Pod, metav1.GetOptions{})
		if err != nil {
			return err
		}
		c.put(func(o *Objects) { o.Users = []corev1.Pod{*pod}; o.Read[ReadUsers] = true })
		if pod.Spec.NodeName != "" {
			c.node(ctx, pod.Spec.NodeName)
		}
		return nil
	}
	if c.scope.Node != "" {
		if err := c.node(ctx, c.scope.Node); err != nil {
			return err
		}
	} else {
		c.nodes(ctx)
	}
	c.users(ctx)
	return nil
}

func (c *collector) node(ctx context.Context, name string) error {
	n, err := c.Kube.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		c.unseen("node "+name, err, inventory.Right("get", "nodes/"+name, ""))
		if apierrors.IsNotFound(err) {
			return err
		}
		return nil
	}
	c.put(func(o *Objects) { o.Nodes = []corev1.Node{*n}; o.Read[ReadNodes] = true })
	return nil
}

func (c *collector) nodes(ctx context.Context) {
	list, err := c.Kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{LabelSelector: corev1.LabelOSStable + "=windows"})
	if err != nil {
		c.unseen("Windows nodes", err, inventory.Right("list", "nodes", ""))
		return
	}
	c.put(func(o *Objects) { o.Nodes = list.Items; o.Read[ReadNodes] = true })
}

// users reads the pods with a gMSA.
func (c *collector) users(ctx context.Context) {
	options := metav1.ListOptions{Limit: 500}
	if c.scope.Node != "" {
		options.FieldSelector = "spec.nodeName=" + c.scope.Node
	}
	namespace := c.scope.Namespace
	users, err := c.usersIn(ctx, namespace, options)
	if err != nil && namespace == "" && apierrors.IsForbidden(err) {
		c.unseen("pods of all namespaces", err, inventory.Right("list", "pods", ""))
		namespace = c.scope.Fallback
		users, err = c.usersIn(ctx, namespace, options)
	}
	if err != nil {
		c.unseen("pods", err, inventory.Right("list", "pods", namespace))
		return
	}
	c.put(func(o *Objects) { o.Users = users; o.Read[ReadUsers] = true })
}

func (c *collector) usersIn(ctx context.Context, namespace string, options metav1.ListOptions) ([]corev1.Pod, error) {
	var users []corev1.Pod
	for {
		list, err := c.Kube.CoreV1().Pods(namespace).List(ctx, options)
		if err != nil {
			return nil, err
		}
		for i := range list.Items {
			if len(userSpecs(&list.Items[i])) > 0 {
				users = append(users, list.Items[i])
			}
		}
		if options.Continue = list.Continue; options.Continue == "" {
			return users, nil
		}
	}
}

func (c *collector) releases(ctx context.Context) {
	all, err := c.Releases(ctx, "")
	if err == nil {
		c.put(func(o *Objects) { o.Releases = all; o.Read[ReadReleases] = true })
		return
	}
	c.unseen("releases of the charts", err, inventory.Right("list", "daemonsets.apps", ""))
	if c.scope.Fallback == "" || !apierrors.IsForbidden(err) {
		return
	}
	if some, err := c.Releases(ctx, c.scope.Fallback); err == nil {
		c.put(func(o *Objects) { o.Releases = some; o.ReleasesIn[c.scope.Fallback] = true })
	}
}

func (c *collector) specs(ctx context.Context) {
	if c.scope.Pod != "" {
		c.namedSpecs(ctx)
		return
	}
	contents, err := c.CredentialSpecs(ctx)
	switch {
	case errors.Is(err, inventory.ErrNoCredentialSpecs):
		c.put(func(o *Objects) { o.NoCRD = true; o.Read[ReadSpecs] = true })
		return
	case err != nil:
		c.unseen("credential specs", err, inventory.Right("list", inventory.CredentialSpecResource, ""))
		c.namedSpecs(ctx)
		return
	}
	for _, name := range slices.Sorted(maps.Keys(contents)) {
		c.addSpec(name, contents[name])
	}
	c.put(func(o *Objects) { o.Read[ReadSpecs] = true })
}

// namedSpecs reads the credential specs that pods name.
func (c *collector) namedSpecs(ctx context.Context) {
	names := map[string]bool{}
	for i := range c.o.Users {
		for _, u := range userSpecs(&c.o.Users[i]) {
			names[u.name] = u.name != ""
		}
	}
	seen := true
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if !names[name] {
			continue
		}
		content, err := c.CredentialSpec(ctx, name)
		switch {
		case err == nil:
			c.addSpec(name, content)
		case !apierrors.IsNotFound(err) && !errors.Is(err, inventory.ErrNoCredentialSpecs):
			seen = false
			c.unseen("GMSACredentialSpec "+name, err, inventory.Right("get", inventory.CredentialSpecResource+"/"+name, ""))
		}
	}
	c.put(func(o *Objects) { o.Read[ReadSpecs] = seen })
}

func (c *collector) addSpec(name string, content []byte) {
	content = withoutAnnotations(content)
	docs, err := credspec.Read(content)
	s := Spec{Name: name, Content: content}
	if err == nil && len(docs) == 1 {
		s.Document = docs[0]
	} else {
		s.Document.Problems = []credspec.Problem{{Text: "it cannot be read as a credential spec"}}
	}
	c.put(func(o *Objects) { o.Specs = append(o.Specs, s) })
}

// gMSA webhooks are known by their name: SIG-Windows' is admission-webhook.windows-gmsa.sigs.k8s.io, whatever the configuration
// is called.
func isGMSA(name string) bool { return strings.Contains(strings.ToLower(name), "gmsa") }

// CertificateSecretAnnotation is what the chart rancher-gmsa-webhook writes on its configurations: the name of the Secret, in
// the namespace of the webhook's Service, with the certificate that it serves.
const CertificateSecretAnnotation = "ccgrkc.github.io/certificate-secret"

func (c *collector) webhooks(ctx context.Context) {
	if c.scope.Node != "" {
		return
	}
	api := c.Kube.AdmissionregistrationV1()
	read := true
	var found []Webhook
	add := func(configuration metav1.ObjectMeta, name, resource string, mutating bool, client admissionv1.WebhookClientConfig, policy *admissionv1.FailurePolicyType) {
		if !isGMSA(configuration.Name) && !isGMSA(name) {
			return
		}
		w := Webhook{Configuration: configuration.Name, Resource: resource, Name: name, Mutating: mutating, Fails: policy == nil || *policy == admissionv1.Fail}
		w.CABegins, w.CAExpires, w.CAProblem = validity(client.CABundle)
		if s := client.Service; s != nil {
			w.Service = s.Namespace + "/" + s.Name
			w.Endpoints, w.Replicas = c.endpoints(ctx, s.Namespace, s.Name), c.replicas(ctx, s.Namespace, s.Name)
			if secret := configuration.Annotations[CertificateSecretAnnotation]; secret != "" && w.CAProblem == "" {
				c.served(ctx, &w, s.Namespace, secret, client.CABundle, s.Name+"."+s.Namespace+".svc")
			}
		}
		found = append(found, w)
	}
	if list, err := api.MutatingWebhookConfigurations().List(ctx, metav1.ListOptions{}); err != nil {
		read = false
		c.unseen("mutating webhooks", err, inventory.Right("list", "mutatingwebhookconfigurations.admissionregistration.k8s.io", ""))
	} else {
		for _, configuration := range list.Items {
			for _, w := range configuration.Webhooks {
				add(configuration.ObjectMeta, w.Name, "mutatingwebhookconfigurations", true, w.ClientConfig, w.FailurePolicy)
			}
		}
	}
	if list, err := api.ValidatingWebhookConfigurations().List(ctx, metav1.ListOptions{}); err != nil {
		c.unseen("validating webhooks", err, inventory.Right("list", "validatingwebhookconfigurations.admissionregistration.k8s.io", ""))
	} else {
		for _, configuration := range list.Items {
			for _, w := range configuration.Webhooks {
				add(configuration.ObjectMeta, w.Name, "validatingwebhookconfigurations", false, w.ClientConfig, w.FailurePolicy)
			}
		}
	}
	c.put(func(o *Objects) { o.Webhooks = found; o.Read[ReadWebhooks] = read })
}

// served compares the certificate that a webhook serves with what the API server is told to trust.
func (c *collector) served(ctx context.Context, w *Webhook, namespace, secret string, bundle []byte, host string) {
	chain, _, err := c.CertificateOf(ctx, namespace, secret)
	switch {
	case apierrors.IsNotFound(err):
		w.Secret, w.Problem = namespace+"/"+secret, "the Secret "+namespace+"/"+secret+" with its certificate does not exist"
		return
	case err != nil:
		c.unseen("Secret "+namespace+"/"+secret, err, inventory.Right("get", "secrets/"+secret, namespace))
		return
	}
	w.Secret = namespace + "/" + secret
	w.serves(chain, bundle, host, c.o.Now)
}

// serves reads the certificate that a webhook has in its Secret.
func (w *Webhook) serves(chain, bundle []byte, host string, now time.Time) {
	block, rest := pem.Decode(bytes.TrimSpace(chain))
	if block == nil {
		w.Problem = "the Secret " + w.Secret + " holds no certificate in tls.crt"
		return
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		w.Problem = "the certificate in the Secret " + w.Secret + " cannot be read: " + err.Error()
		return
	}
	w.Begins, w.Expires = leaf.NotBefore, leaf.NotAfter
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle)
	between.AppendCertsFromPEM(rest)
	if _, err := leaf.Verify(x509.VerifyOptions{DNSName: host, Roots: roots, Intermediates: between, CurrentTime: now}); err != nil {
		w.Problem = "the certificate in the Secret " + w.Secret + " does not pass with its caBundle: " + err.Error()
	}
}

// replicas is how many pods the Deployment behind a Service is to have; nil: there is none, or it may not be read.
func (c *collector) replicas(ctx context.Context, namespace, service string) *int {
	s, err := c.Kube.CoreV1().Services(namespace).Get(ctx, service, metav1.GetOptions{})
	if err != nil {
		if !apierrors.IsNotFound(err) {
			c.unseen("Service "+namespace+"/"+service, err, inventory.Right("get", "services/"+service, namespace))
		}
		return nil
	}
	list, err := c.Kube.AppsV1().Deployments(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		c.unseen("the webhook's Deployment in namespace "+namespace, err, inventory.Right("list", "deployments.apps", namespace))
		return nil
	}
	for _, d := range list.Items {
		if len(s.Spec.Selector) > 0 && labels.SelectorFromSet(s.Spec.Selector).Matches(labels.Set(d.Spec.Template.Labels)) {
			n := 1 // the API server's default
			if d.Spec.Replicas != nil {
				n = int(*d.Spec.Replicas)
			}
			return &n
		}
	}
	return nil
}

// validity is that of the certificate of a CA bundle that ends last. An empty bundle is the machine's own CAs.
func validity(bundle []byte) (begins, last time.Time, problem string) {
	if len(bundle) == 0 {
		return begins, last, ""
	}
	for rest := bundle; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if certificate, err := x509.ParseCertificate(block.Bytes); err == nil && certificate.NotAfter.After(last) {
			begins, last = certificate.NotBefore, certificate.NotAfter
		}
	}
	if last.IsZero() {
		return begins, last, "its caBundle holds no certificate"
	}
	return begins, last, ""
}

// endpoints counts a Service's ready endpoints; nil: they may not be read.
func (c *collector) endpoints(ctx context.Context, namespace, service string) *int {
	list, err := c.Kube.DiscoveryV1().EndpointSlices(namespace).List(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + service})
	if err != nil {
		c.unseen("endpoints of the webhook's Service "+namespace+"/"+service, err, inventory.Right("list", "endpointslices.discovery.k8s.io", namespace))
		return nil
	}
	n := 0
	for _, slice := range list.Items {
		for _, e := range slice.Endpoints {
			if e.Conditions.Ready == nil || *e.Conditions.Ready {
				n++
			}
		}
	}
	return &n
}

// narrow leaves, of the releases, those that concern the pod of the scope.
func (c *collector) narrow() {
	if c.scope.Pod == "" {
		return
	}
	wanted := c.o.inputs(&c.o.Users[0])
	var kept []inventory.Release
	for _, r := range c.o.Releases {
		if r.Chart == inventory.InstallerChart || slices.ContainsFunc(wanted, func(w inventory.Release) bool { return w.String() == r.String() }) {
			kept = append(kept, r)
		}
	}
	c.o.Releases = kept
}

func (c *collector) pods(ctx context.Context) {
	namespaces := map[string]bool{}
	for _, r := range c.o.Releases {
		namespaces[r.Namespace] = true
	}
	read := true
	var found []corev1.Pod
	for _, namespace := range slices.Sorted(maps.Keys(namespaces)) {
		list, err := c.Kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: inventory.PartOfLabel})
		if err != nil {
			read = false
			c.unseen("pods of the releases in namespace "+namespace, err, inventory.Right("list", "pods", namespace))
			continue
		}
		found = append(found, list.Items...)
	}
	c.put(func(o *Objects) { o.Pods = found; o.Read[ReadPods] = read && len(namespaces) > 0 })
}

func (c *collector) secrets(ctx context.Context) {
	references := map[credential.Reference]bool{}
	for _, r := range inventory.Of(c.o.Releases, inventory.ProviderChart) {
		references[r.Reference()] = true
	}
	for ref := range references {
		s := Secret{Reference: ref, Name: ref.Namespace + "/" + ref.Secret, Exists: true}
		cred, warnings, err := c.Secret(ctx, ref)
		cred.Password.Wipe()
		s.Warnings = warnings
		var invalid *inventory.InvalidSecret
		switch {
		case errors.As(err, &invalid):
			s.Problem = invalid.Err.Error()
		case apierrors.IsNotFound(err):
			s.Exists = false
		case err != nil:
			c.unseen("Secret "+s.Name, err, inventory.Right("get", "secrets/"+ref.Secret, ref.Namespace))
			continue
		}
		c.put(func(o *Objects) { o.Secrets = append(o.Secrets, s) })
	}
	c.put(func(o *Objects) {
		slices.SortFunc(o.Secrets, func(a, b Secret) int { return strings.Compare(a.Name, b.Name) })
	})
}

func (c *collector) certificates(ctx context.Context) {
	for _, r := range inventory.Of(c.o.Releases, inventory.ProviderChart) {
		of := r.CertificateSecrets()
		for _, side := range slices.Sorted(maps.Keys(of)) {
			certificate := Certificate{Secret: r.Namespace + "/" + of[side], Release: r.String(), Side: side, Exists: true}
			chain, _, err := c.CertificateOf(ctx, r.Namespace, of[side])
			switch {
			case apierrors.IsNotFound(err):
				certificate.Exists = false
			case err != nil:
				c.unseen("Secret "+certificate.Secret, err, inventory.Right("get", "secrets/"+of[side], r.Namespace))
				continue
			default:
				certificate.read(chain, r.Reference())
			}
			c.put(func(o *Objects) { o.Certificates = append(o.Certificates, certificate) })
		}
	}
}

// read looks at the leaf of a chain, as provider and plugin will (package mtls).
func (c *Certificate) read(chain []byte, ref credential.Reference) {
	block, _ := pem.Decode(bytes.TrimSpace(chain))
	if block == nil {
		c.Problem = "tls.crt holds no certificate in PEM"
		return
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		c.Problem = "tls.crt cannot be read: " + err.Error()
		return
	}
	c.NotBefore, c.NotAfter = leaf.NotBefore, leaf.NotAfter
	use := x509.ExtKeyUsageServerAuth
	if c.Side == "client" {
		use = x509.ExtKeyUsageClientAuth
	}
	switch {
	case !slices.Contains(leaf.DNSNames, ref.CertificateName()):
		c.Problem = fmt.Sprintf("it has not the DNS name %s", ref.CertificateName())
	case len(leaf.ExtKeyUsage) != 1 || leaf.ExtKeyUsage[0] != use:
		c.Problem = fmt.Sprintf("its extended key usage is not exactly %q", c.Side+" auth")
	}
}

// uses asks for each ServiceAccount of a pod whether it may use what the pod names.
func (c *collector) uses(ctx context.Context) {
	asked := map[Use]bool{}
	for i := range c.o.Users {
		pod := &c.o.Users[i]
		for _, u := range userSpecs(pod) {
			if u.name != "" {
				asked[Use{Namespace: pod.Namespace, ServiceAccount: serviceAccount(pod), CredentialSpec: u.name}] = true
			}
		}
	}
	for u := range asked {
		review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
			User:   "system:serviceaccount:" + u.Namespace + ":" + u.ServiceAccount,
			Groups: []string{"system:serviceaccounts", "system:serviceaccounts:" + u.Namespace, "system:authenticated"},
			ResourceAttributes: &authorizationv1.ResourceAttributes{
				Verb: "use", Group: "windows.k8s.io", Resource: "gmsacredentialspecs", Name: u.CredentialSpec, Namespace: u.Namespace,
			},
		}}
		answer, err := c.Kube.AuthorizationV1().SubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
		if err != nil {
			c.unseen("rights of the pods' ServiceAccounts to use their credential specs", err, inventory.Right("create", "subjectaccessreviews.authorization.k8s.io", ""))
			return
		}
		u.Allowed = answer.Status.Allowed
		c.put(func(o *Objects) { o.Uses = append(o.Uses, u) })
	}
}

// A cluster may have hundreds of pods with one fault. So many tell it.
const mostStuck = 50

// events reads the events of pods that do not run, and of the releases' DaemonSets.
func (c *collector) events(ctx context.Context) {
	read := func(kind, namespace, name string) {
		list, err := c.Kube.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{
			FieldSelector: fields.AndSelectors(fields.OneTermEqualSelector("involvedObject.kind", kind), fields.OneTermEqualSelector("involvedObject.name", name)).String(),
		})
		if err != nil {
			c.unseen("events in namespace "+namespace, err, inventory.Right("list", "events", namespace))
			return
		}
		c.put(func(o *Objects) { o.Events = append(o.Events, list.Items...) })
	}
	stuck := 0
	for i := range c.o.Users {
		pod := &c.o.Users[i]
		if pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed || inventory.Ready(pod) {
			continue
		}
		if stuck++; stuck > mostStuck {
			break
		}
		read("Pod", pod.Namespace, pod.Name)
	}
	for _, r := range c.o.Releases {
		read("DaemonSet", r.Namespace, r.DaemonSet.Name)
	}
}

// refused reads what controllers tell of pods that were refused on account of a gMSA.
func (c *collector) refused(ctx context.Context) {
	if c.scope.String() != ScopeCluster {
		return
	}
	options := metav1.ListOptions{FieldSelector: "reason=FailedCreate", Limit: 500}
	namespace := c.scope.Namespace
	list, err := c.Kube.CoreV1().Events(namespace).List(ctx, options)
	if err != nil && namespace == "" && apierrors.IsForbidden(err) {
		c.unseen("events of all namespaces", err, inventory.Right("list", "events", ""))
		namespace = c.scope.Fallback
		list, err = c.Kube.CoreV1().Events(namespace).List(ctx, options)
	}
	if err != nil {
		c.unseen("events in namespace "+namespace, err, inventory.Right("list", "events", namespace))
		return
	}
	for _, e := range list.Items {
		if isGMSA(e.Message) && e.InvolvedObject.Kind != "DaemonSet" {
			c.put(func(o *Objects) { o.Events = append(o.Events, e) })
		}
	}
}

// inside looks at nodes from within.
func (c *collector) inside(ctx context.Context) {
	if c.scope.Node == "" && !c.scope.Inside || !c.wasRead(ReadNodes) {
		return
	}
	installers := inventory.Of(c.o.Releases, inventory.InstallerChart)
	var unseen *inventory.Unseen
	if !c.wasRead(ReadReleases) {
		unseen = &inventory.Unseen{What: "the plugin installer's DaemonSet", Why: "forbidden", Right: inventory.Right("list", "daemonsets.apps", "")}
	}
	results := verify.Each(c.o.Nodes, func(n *corev1.Node) verify.NodeResult {
		result := verify.NodeResult{Node: n.Name}
		providers := inventory.Of(c.o.Releases, inventory.ProviderChart)
		if len(providers) == 0 {
			result.Steps = verify.CheckNode(ctx, c.nodeOptions(n, installers, unseen, nil)).Steps
		}
		seen := map[string]bool{}
		for i := range providers {
			r := &providers[i]
			if inventory.OutsideSelector(r.DaemonSet.Spec.Template.Spec, n) != "" && i < len(providers)-1 {
				continue
			}
			for _, s := range verify.CheckNode(ctx, c.nodeOptions(n, installers, unseen, r)).Steps {
				// What is of the node and not of a release is the same each time.
				if key := s.Name + s.Detail; !seen[key] {
					seen[key] = true
					result.Steps = append(result.Steps, s)
				}
			}
		}
		return result
	})
	for _, result := range results {
		for _, s := range result.Steps {
			if s.State == verify.NotLookedAt && s.Right != "" {
				c.put(func(o *Objects) {
					u := inventory.Unseen{What: "node " + result.Node + ", " + s.Name, Why: s.Detail, Right: s.Right}
					o.Unseen = append(o.Unseen, u)
				})
			}
		}
	}
	c.put(func(o *Objects) { o.NodeResults = results })
}

func (c *collector) nodeOptions(n *corev1.Node, installers []inventory.Release, unseen *inventory.Unseen, provider *inventory.Release) verify.NodeOptions {
	o := verify.NodeOptions{Cluster: c.Cluster, Program: c.o.Program, Node: n, Installers: installers, InstallersUnseen: unseen, Provider: provider, Timeout: c.scope.Timeout}
	if provider == nil {
		return o
	}
	// The domain is the one of a credential spec of this account.
	for _, s := range c.o.Specs {
		if ref, ours := inputOf(s.Document.Spec); ours && ref == provider.Reference() {
			o.Domain = s.Document.Spec.DomainJoinConfig.DnsName
		}
	}
	return o
}
