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
	"github.com/ccgrkc/ccgrkc/internal/mtls"
	"github.com/ccgrkc/ccgrkc/internal/verify"
)

// ScopeCluster is the scope of a report about the whole cluster.
const ScopeCluster = "cluster"

// Scope selects the objects to check.
type Scope struct {
	Pod        string        // only this pod of Namespace, and the objects that it requires
	Node       string        // only this node; its checks run programs on the node
	Namespace  string        // only pods of this namespace; "" means all
	Fallback   string        // the namespace to check if listing in all namespaces is denied
	CheckNodes bool          // run programs on all Windows nodes
	Timeout    time.Duration // of one program on a node
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

// Collect reads the objects for the rules. It records objects that it has no permission to read. It returns an error if
// the API server does not answer, or if the pod or node of the scope does not exist.
func Collect(ctx context.Context, cluster *inventory.Cluster, program string, scope Scope) (*Objects, error) {
	o := &Objects{
		Scope:      scope.String(),
		Program:    program,
		Now:        time.Now(),
		Read:       map[string]bool{},
		ReleasesIn: map[string]bool{},
	}
	c := &collector{Cluster: cluster, scope: scope, o: o}
	// Without an API server there is no report.
	if _, err := cluster.Kube.Discovery().ServerVersion(ctx); err != nil && !apierrors.IsForbidden(err) &&
		!apierrors.IsUnauthorized(err) {
		return nil, fmt.Errorf("the API server %s does not answer: %w", cluster.Config.Host, err)
	}
	if err := c.readScope(ctx); err != nil {
		return nil, err
	}
	c.all(ctx, c.releases, c.specs, c.webhooks)
	c.filterReleases()
	c.all(ctx, c.pods, c.secrets, c.certificates, c.uses, c.events, c.deniedPods, c.checkNodes)
	slices.SortFunc(c.o.Skipped, func(a, b inventory.Skipped) int { return strings.Compare(a.What, b.What) })
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

func (c *collector) skip(what string, err error, permission string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if u := inventory.NewSkipped(what, err, permission); !slices.Contains(c.o.Skipped, u) {
		c.o.Skipped = append(c.o.Skipped, u)
	}
}

// update changes the objects. Several goroutines call it.
func (c *collector) update(f func(o *Objects)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(c.o)
}

// wasRead reports whether a list was read completely. Other goroutines can still be reading their lists.
func (c *collector) wasRead(kind string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.o.Read[kind]
}

// readScope reads the pods and nodes of the scope. They determine which other objects to read.
func (c *collector) readScope(ctx context.Context) error {
	if c.scope.Pod != "" {
		pod, err := c.Kube.CoreV1().Pods(c.scope.Namespace).Get(ctx, c.scope.Pod, metav1.GetOptions{})
		if err != nil {
			return err
		}
		c.update(func(o *Objects) { o.GMSAPods = []corev1.Pod{*pod}; o.Read[ReadGMSAPods] = true })
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
	c.gmsaPods(ctx)
	return nil
}

func (c *collector) node(ctx context.Context, name string) error {
	n, err := c.Kube.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		c.skip("node "+name, err, inventory.Permission("get", "nodes/"+name, ""))
		if apierrors.IsNotFound(err) {
			return err
		}
		return nil
	}
	c.update(func(o *Objects) { o.Nodes = []corev1.Node{*n}; o.Read[ReadNodes] = true })
	return nil
}

func (c *collector) nodes(ctx context.Context) {
	list, err := c.Kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{LabelSelector: corev1.LabelOSStable + "=windows"})
	if err != nil {
		c.skip("Windows nodes", err, inventory.Permission("list", "nodes", ""))
		return
	}
	c.update(func(o *Objects) { o.Nodes = list.Items; o.Read[ReadNodes] = true })
}

// gmsaPods reads the pods that use a gMSA.
func (c *collector) gmsaPods(ctx context.Context) {
	options := metav1.ListOptions{Limit: 500}
	if c.scope.Node != "" {
		options.FieldSelector = "spec.nodeName=" + c.scope.Node
	}
	namespace := c.scope.Namespace
	users, err := c.gmsaPodsIn(ctx, namespace, options)
	if err != nil && namespace == "" && apierrors.IsForbidden(err) {
		c.skip("pods of all namespaces", err, inventory.Permission("list", "pods", ""))
		namespace = c.scope.Fallback
		users, err = c.gmsaPodsIn(ctx, namespace, options)
	}
	if err != nil {
		c.skip("pods", err, inventory.Permission("list", "pods", namespace))
		return
	}
	c.update(func(o *Objects) { o.GMSAPods = users; o.Read[ReadGMSAPods] = true })
}

func (c *collector) gmsaPodsIn(ctx context.Context, namespace string, options metav1.ListOptions) ([]corev1.Pod,
	error) {
	var users []corev1.Pod
	for {
		list, err := c.Kube.CoreV1().Pods(namespace).List(ctx, options)
		if err != nil {
			return nil, err
		}
		for i := range list.Items {
			if len(gmsaRefs(&list.Items[i])) > 0 {
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
		c.update(func(o *Objects) { o.Releases = all; o.Read[ReadReleases] = true })
		return
	}
	c.skip("releases of the charts", err, inventory.Permission("list", "daemonsets.apps", ""))
	if c.scope.Fallback == "" || !apierrors.IsForbidden(err) {
		return
	}
	if some, err := c.Releases(ctx, c.scope.Fallback); err == nil {
		c.update(func(o *Objects) { o.Releases = some; o.ReleasesIn[c.scope.Fallback] = true })
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
		c.update(func(o *Objects) { o.NoCRD = true; o.Read[ReadSpecs] = true })
		return
	case err != nil:
		c.skip("credential specs", err, inventory.Permission("list", inventory.CredentialSpecResource, ""))
		c.namedSpecs(ctx)
		return
	}
	for _, name := range slices.Sorted(maps.Keys(contents)) {
		c.addSpec(name, contents[name])
	}
	c.update(func(o *Objects) { o.Read[ReadSpecs] = true })
}

// namedSpecs reads the credential specs that pods reference.
func (c *collector) namedSpecs(ctx context.Context) {
	names := map[string]bool{}
	for i := range c.o.GMSAPods {
		for _, u := range gmsaRefs(&c.o.GMSAPods[i]) {
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
			c.skip("GMSACredentialSpec "+name, err,
				inventory.Permission("get", inventory.CredentialSpecResource+"/"+name, ""))
		}
	}
	c.update(func(o *Objects) { o.Read[ReadSpecs] = seen })
}

func (c *collector) addSpec(name string, content []byte) {
	content = withoutAnnotations(content)
	docs, err := credspec.Read(content)
	s := Spec{Name: name, Content: content}
	if err == nil && len(docs) == 1 {
		s.Document = docs[0]
	} else {
		s.Document.Problems = []credspec.Problem{{Text: "is not a valid credential spec"}}
	}
	c.update(func(o *Objects) { o.Specs = append(o.Specs, s) })
}

// isGMSA detects gMSA webhooks by their name. SIG Windows' webhook is always
// admission-webhook.windows-gmsa.sigs.k8s.io. The name of its configuration varies.
func isGMSA(name string) bool { return strings.Contains(strings.ToLower(name), "gmsa") }

// Annotations of the webhook configurations from the chart rancher-gmsa-webhook. One of them contains the name of the
// Secret with the serving certificate, or of the Secret with the CAs that sign it. The Secret is in the namespace of
// the webhook's Service.
const (
	CertificateSecretAnnotation = "ccgrkc.github.io/certificate-secret"
	CASecretAnnotation          = "ccgrkc.github.io/ca-secret"
)

func (c *collector) webhooks(ctx context.Context) {
	if c.scope.Node != "" {
		return
	}
	api := c.Kube.AdmissionregistrationV1()
	read := true
	var found []Webhook
	add := func(
		configuration metav1.ObjectMeta, name, resource string, mutating bool,
		client admissionv1.WebhookClientConfig, policy *admissionv1.FailurePolicyType,
	) {
		if !isGMSA(configuration.Name) && !isGMSA(name) {
			return
		}
		w := Webhook{
			Configuration: configuration.Name,
			Resource:      resource,
			Name:          name,
			Mutating:      mutating,
			Fails:         policy == nil || *policy == admissionv1.Fail,
		}
		w.CABegins, w.CAExpires, w.CAProblem = validity(client.CABundle)
		if s := client.Service; s != nil {
			w.Service = s.Namespace + "/" + s.Name
			w.Endpoints, w.Replicas = c.endpoints(ctx, s.Namespace, s.Name), c.replicas(ctx, s.Namespace, s.Name)
			host := s.Name + "." + s.Namespace + ".svc"
			if secret := configuration.Annotations[CertificateSecretAnnotation]; secret != "" && w.CAProblem == "" {
				c.readSecret(ctx, &w, s.Namespace, secret, func(chain, _ []byte) {
					w.checkServingCertificate(chain, client.CABundle, host, c.o.Now)
				})
			}
			if secret := configuration.Annotations[CASecretAnnotation]; secret != "" && w.CAProblem == "" {
				c.readSecret(ctx, &w, s.Namespace, secret, func(_, cas []byte) {
					w.checkCAs(cas, client.CABundle, c.o.Now)
				})
			}
		}
		found = append(found, w)
	}
	if list, err := api.MutatingWebhookConfigurations().List(ctx, metav1.ListOptions{}); err != nil {
		read = false
		c.skip("mutating webhooks", err, inventory.Permission("list",
			"mutatingwebhookconfigurations.admissionregistration.k8s.io", ""))
	} else {
		for _, configuration := range list.Items {
			for _, w := range configuration.Webhooks {
				add(configuration.ObjectMeta, w.Name, "mutatingwebhookconfigurations", true, w.ClientConfig,
					w.FailurePolicy)
			}
		}
	}
	if list, err := api.ValidatingWebhookConfigurations().List(ctx, metav1.ListOptions{}); err != nil {
		c.skip("validating webhooks", err, inventory.Permission("list",
			"validatingwebhookconfigurations.admissionregistration.k8s.io", ""))
	} else {
		for _, configuration := range list.Items {
			for _, w := range configuration.Webhooks {
				add(configuration.ObjectMeta, w.Name, "validatingwebhookconfigurations", false, w.ClientConfig,
					w.FailurePolicy)
			}
		}
	}
	c.update(func(o *Objects) { o.Webhooks = found; o.Read[ReadWebhooks] = read })
}

// readSecret reads the Secret with a webhook's serving certificate or CAs, and checks tls.crt and ca.crt.
func (c *collector) readSecret(ctx context.Context, w *Webhook, namespace, secret string,
	check func(chain, cas []byte)) {
	chain, cas, err := c.CertificateOf(ctx, namespace, secret)
	switch {
	case apierrors.IsNotFound(err):
		w.Secret = namespace + "/" + secret
		w.Problem = "the Secret " + w.Secret + " with its certificate does not exist"
		return
	case err != nil:
		c.skip("Secret "+namespace+"/"+secret, err, inventory.Permission("get", "secrets/"+secret, namespace))
		return
	}
	w.Secret = namespace + "/" + secret
	check(chain, cas)
}

// checkCAs checks that the CA bundle contains the CAs that can sign the serving certificate.
func (w *Webhook) checkCAs(cas, bundle []byte, now time.Time) {
	found := false
	for block, rest := pem.Decode(cas); block != nil; block, rest = pem.Decode(rest) {
		ca, err := x509.ParseCertificate(block.Bytes)
		if err != nil || now.After(ca.NotAfter) {
			continue
		}
		found = true
		if encoded := pem.EncodeToMemory(block); !bytes.Contains(bundle, encoded) {
			w.Problem = "the caBundle lacks a CA of the Secret " + w.Secret
		}
	}
	if !found {
		w.Problem = "the Secret " + w.Secret + " contains no valid CA in ca.crt"
	}
}

// checkServingCertificate checks a serving certificate against the CA bundle and the Service's host name.
func (w *Webhook) checkServingCertificate(chain, bundle []byte, host string, now time.Time) {
	block, rest := pem.Decode(bytes.TrimSpace(chain))
	if block == nil {
		w.Problem = "the Secret " + w.Secret + " contains no certificate in tls.crt"
		return
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		w.Problem = "the certificate in the Secret " + w.Secret + " cannot be read: " + err.Error()
		return
	}
	w.Begins, w.Expires = leaf.NotBefore, leaf.NotAfter
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle)
	intermediates.AppendCertsFromPEM(rest)
	options := x509.VerifyOptions{
		DNSName:       host,
		Roots:         roots,
		Intermediates: intermediates,
		CurrentTime:   now,
	}
	if _, err := leaf.Verify(options); err != nil {
		w.Problem = "the certificate in the Secret " + w.Secret + " does not match the caBundle: " + err.Error()
	}
}

// replicas returns the desired number of pods of the Deployment behind a Service. It returns nil if there is no
// Deployment or if it cannot be read.
func (c *collector) replicas(ctx context.Context, namespace, service string) *int {
	s, err := c.Kube.CoreV1().Services(namespace).Get(ctx, service, metav1.GetOptions{})
	if err != nil {
		if !apierrors.IsNotFound(err) {
			c.skip("Service "+namespace+"/"+service, err, inventory.Permission("get", "services/"+service, namespace))
		}
		return nil
	}
	list, err := c.Kube.AppsV1().Deployments(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		c.skip("the webhook's Deployment in namespace "+namespace, err,
			inventory.Permission("list", "deployments.apps", namespace))
		return nil
	}
	for _, d := range list.Items {
		if len(s.Spec.Selector) > 0 && labels.SelectorFromSet(s.Spec.Selector).Matches(
			labels.Set(d.Spec.Template.Labels)) {
			n := 1 // the API server's default
			if d.Spec.Replicas != nil {
				n = int(*d.Spec.Replicas)
			}
			return &n
		}
	}
	return nil
}

// validity returns the validity of the certificate in a CA bundle that expires last. An empty bundle means the API
// server's own CAs.
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
		return begins, last, "its caBundle contains no certificate"
	}
	return begins, last, ""
}

// endpoints counts a Service's ready endpoints. It returns nil if they cannot be read.
func (c *collector) endpoints(ctx context.Context, namespace, service string) *int {
	list, err := c.Kube.DiscoveryV1().EndpointSlices(namespace).List(ctx,
		metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + service})
	if err != nil {
		c.skip("endpoints of the webhook's Service "+namespace+"/"+service, err,
			inventory.Permission("list", "endpointslices.discovery.k8s.io", namespace))
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

// filterReleases keeps the installer's releases and those that the pod of the scope requires.
func (c *collector) filterReleases() {
	if c.scope.Pod == "" {
		return
	}
	wanted := c.o.releasesFor(&c.o.GMSAPods[0])
	var kept []inventory.Release
	for _, r := range c.o.Releases {
		if r.Chart == inventory.InstallerChart ||
			slices.ContainsFunc(wanted, func(w inventory.Release) bool { return w.String() == r.String() }) {
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
			c.skip("pods of the releases in namespace "+namespace, err, inventory.Permission("list", "pods", namespace))
			continue
		}
		found = append(found, list.Items...)
	}
	c.update(func(o *Objects) { o.Pods = found; o.Read[ReadPods] = read && len(namespaces) > 0 })
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
			c.skip("Secret "+s.Name, err, inventory.Permission("get", "secrets/"+ref.Secret, ref.Namespace))
			continue
		}
		c.update(func(o *Objects) { o.Secrets = append(o.Secrets, s) })
	}
	c.update(func(o *Objects) {
		slices.SortFunc(o.Secrets, func(a, b Secret) int { return strings.Compare(a.Name, b.Name) })
	})
}

func (c *collector) certificates(ctx context.Context) {
	for _, r := range inventory.Of(c.o.Releases, inventory.ProviderChart) {
		of := r.CertificateSecrets()
		for _, side := range slices.Sorted(maps.Keys(of)) {
			certificate := Certificate{Secret: r.Namespace + "/" + of[side], Release: r.String(), Side: side,
				Exists: true}
			chain, _, err := c.CertificateOf(ctx, r.Namespace, of[side])
			switch {
			case apierrors.IsNotFound(err):
				certificate.Exists = false
			case err != nil:
				c.skip("Secret "+certificate.Secret, err, inventory.Permission("get", "secrets/"+of[side], r.Namespace))
				continue
			default:
				certificate.read(chain, r.Reference())
			}
			c.update(func(o *Objects) { o.Certificates = append(o.Certificates, certificate) })
		}
	}
}

// read checks the leaf of a chain as the provider and the plugin do (package mtls).
func (c *Certificate) read(chain []byte, ref credential.Reference) {
	block, _ := pem.Decode(bytes.TrimSpace(chain))
	if block == nil {
		c.Problem = "tls.crt contains no certificate in PEM"
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
	if err := mtls.CheckName(leaf, ref); err != nil {
		c.Problem = err.Error()
	} else if len(leaf.ExtKeyUsage) != 1 || leaf.ExtKeyUsage[0] != use {
		c.Problem = fmt.Sprintf("its extended key usage is not exactly %q", c.Side+" auth")
	}
}

// uses checks the use permission of each pod's ServiceAccount.
func (c *collector) uses(ctx context.Context) {
	uses := map[Use]bool{}
	for i := range c.o.GMSAPods {
		pod := &c.o.GMSAPods[i]
		for _, u := range gmsaRefs(pod) {
			if u.name != "" {
				uses[Use{Namespace: pod.Namespace, ServiceAccount: serviceAccount(pod), CredentialSpec: u.name}] = true
			}
		}
	}
	for u := range uses {
		review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
			User:   "system:serviceaccount:" + u.Namespace + ":" + u.ServiceAccount,
			Groups: []string{"system:serviceaccounts", "system:serviceaccounts:" + u.Namespace, "system:authenticated"},
			ResourceAttributes: &authorizationv1.ResourceAttributes{
				Verb:      "use",
				Group:     "windows.k8s.io",
				Resource:  "gmsacredentialspecs",
				Name:      u.CredentialSpec,
				Namespace: u.Namespace,
			},
		}}
		answer, err := c.Kube.AuthorizationV1().SubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
		if err != nil {
			c.skip("use permissions of the pods' ServiceAccounts", err,
				inventory.Permission("create", "subjectaccessreviews.authorization.k8s.io", ""))
			return
		}
		u.Allowed = answer.Status.Allowed
		c.update(func(o *Objects) { o.Uses = append(o.Uses, u) })
	}
}

// maxEventPods limits the pods whose events are read. Hundreds of pods can have the same fault.
const maxEventPods = 50

// events reads the events of pods that do not run, and of the releases' DaemonSets.
func (c *collector) events(ctx context.Context) {
	read := func(kind, namespace, name string) {
		selector := fields.AndSelectors(
			fields.OneTermEqualSelector("involvedObject.kind", kind),
			fields.OneTermEqualSelector("involvedObject.name", name))
		list, err := c.Kube.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{FieldSelector: selector.String()})
		if err != nil {
			c.skip("events in namespace "+namespace, err, inventory.Permission("list", "events", namespace))
			return
		}
		c.update(func(o *Objects) { o.Events = append(o.Events, list.Items...) })
	}
	n := 0
	for i := range c.o.GMSAPods {
		pod := &c.o.GMSAPods[i]
		if pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed || inventory.Ready(pod) {
			continue
		}
		if n++; n > maxEventPods {
			break
		}
		read("Pod", pod.Namespace, pod.Name)
	}
	for _, r := range c.o.Releases {
		read("DaemonSet", r.Namespace, r.DaemonSet.Name)
	}
}

// deniedPods reads the events of controllers whose pods were denied because of a gMSA.
func (c *collector) deniedPods(ctx context.Context) {
	if c.scope.String() != ScopeCluster {
		return
	}
	options := metav1.ListOptions{FieldSelector: "reason=FailedCreate", Limit: 500}
	namespace := c.scope.Namespace
	list, err := c.Kube.CoreV1().Events(namespace).List(ctx, options)
	if err != nil && namespace == "" && apierrors.IsForbidden(err) {
		c.skip("events of all namespaces", err, inventory.Permission("list", "events", ""))
		namespace = c.scope.Fallback
		list, err = c.Kube.CoreV1().Events(namespace).List(ctx, options)
	}
	if err != nil {
		c.skip("events in namespace "+namespace, err, inventory.Permission("list", "events", namespace))
		return
	}
	for _, e := range list.Items {
		if isGMSA(e.Message) && e.InvolvedObject.Kind != "DaemonSet" {
			c.update(func(o *Objects) { o.Events = append(o.Events, e) })
		}
	}
}

// checkNodes runs programs on the nodes of the scope.
func (c *collector) checkNodes(ctx context.Context) {
	if c.scope.Node == "" && !c.scope.CheckNodes || !c.wasRead(ReadNodes) {
		return
	}
	installers := inventory.Of(c.o.Releases, inventory.InstallerChart)
	var skipped *inventory.Skipped
	if !c.wasRead(ReadReleases) {
		skipped = &inventory.Skipped{
			What:       "the plugin installer's DaemonSet",
			Why:        "forbidden",
			Permission: inventory.Permission("list", "daemonsets.apps", ""),
		}
	}
	results := verify.ForEachNode(c.o.Nodes, func(n *corev1.Node) verify.NodeResult {
		result := verify.NodeResult{Node: n.Name}
		providers := inventory.Of(c.o.Releases, inventory.ProviderChart)
		if len(providers) == 0 {
			result.Steps = verify.CheckNode(ctx, c.nodeOptions(n, installers, skipped, nil)).Steps
		}
		seen := map[string]bool{}
		for i := range providers {
			r := &providers[i]
			if inventory.OutsideSelector(r.DaemonSet.Spec.Template.Spec, n) != "" && i < len(providers)-1 {
				continue
			}
			for _, s := range verify.CheckNode(ctx, c.nodeOptions(n, installers, skipped, r)).Steps {
				// The checks of the node itself are the same for each release.
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
			if s.State == verify.Skipped && s.Permission != "" {
				c.update(func(o *Objects) {
					o.Skipped = append(o.Skipped, inventory.Skipped{
						What:       "node " + result.Node + ", " + s.Name,
						Why:        s.Detail,
						Permission: s.Permission,
					})
				})
			}
		}
	}
	c.update(func(o *Objects) { o.NodeResults = results })
}

func (c *collector) nodeOptions(
	n *corev1.Node, installers []inventory.Release, skipped *inventory.Skipped, provider *inventory.Release,
) verify.NodeOptions {
	o := verify.NodeOptions{
		Cluster:           c.Cluster,
		Program:           c.o.Program,
		Node:              n,
		Installers:        installers,
		InstallersSkipped: skipped,
		Provider:          provider,
		Timeout:           c.scope.Timeout,
	}
	if provider == nil {
		return o
	}
	// The domain comes from a credential spec for this account.
	for _, s := range c.o.Specs {
		if ref, ours := inputOf(s.Document.Spec); ours && ref == provider.Reference() {
			o.Domain = s.Document.Spec.DomainJoinConfig.DnsName
		}
	}
	return o
}
