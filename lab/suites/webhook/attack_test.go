package webhook

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ccgrkc/ccgrkc/lab/env/cluster"
)

// Attack: a user with the permission for one gMSA adds another one's inline credential spec, without a name or with the
// permitted name.
func TestAttackForeignInlineSpec(t *testing.T) {
	t.Parallel()
	l := shared(t)
	ns := l.namespace("smuggle")
	l.spec("smuggle-own", input, ns, "default")
	victim := string(l.spec("smuggle-victim", input, ns))
	victim = strings.ReplaceAll(victim, "web01", "victim")
	pod := l.pod(ns, "p", "smuggle-own")
	image := pod.Spec.Containers[0].Image
	for name, s := range map[string]*corev1.SecurityContext{"without a name": windowsWith("", victim), "with another name": windowsWith("smuggle-own", victim), "by name": windows("smuggle-victim")} {
		t.Run("in an init container "+name, func(t *testing.T) {
			p := pod.DeepCopy()
			p.Spec.InitContainers = []corev1.Container{{Name: "x", Image: image, SecurityContext: s}}
			refused(t, l.dryRun(p), 403, "init container x")
		})
	}
	_, err := l.create(pod)
	must(t, err)
	for name, s := range map[string]*corev1.SecurityContext{"without a name": windowsWith("", victim), "with another name": windowsWith("smuggle-own", victim), "by name": windows("smuggle-victim")} {
		t.Run("by kubectl debug "+name, func(t *testing.T) {
			_, err := l.debug(ns, "p", "y", s)
			refused(t, err, 403, "ephemeral container y")
		})
	}
	// A new pod cannot have ephemeral containers.
	p := pod.DeepCopy()
	p.Name = "q"
	p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "z", Image: image, SecurityContext: windows("smuggle-victim")}}}
	if _, err := l.create(p); err == nil {
		t.Error("a pod was created with an ephemeral container")
	}
}

// Attack: a pod is created with a ServiceAccount that has the permission, and then gets one without, or the reverse.
func TestAttackServiceAccountChanged(t *testing.T) {
	t.Parallel()
	l := shared(t)
	ns := l.namespace("swap")
	l.spec("swap", input, ns, "default")
	_, err := l.client.CoreV1().ServiceAccounts(ns).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "poor"}}, metav1.CreateOptions{})
	must(t, err)
	plain := l.pod(ns, "plain", "")
	plain.Spec.SecurityContext, plain.Spec.ServiceAccountName = nil, "poor"
	for _, pod := range []*corev1.Pod{l.pod(ns, "rich", "swap"), plain} {
		_, err := l.create(pod)
		must(t, err)
	}
	for pod, account := range map[string]string{"rich": "poor", "plain": "default"} {
		got, err := l.client.CoreV1().Pods(ns).Get(t.Context(), pod, metav1.GetOptions{})
		must(t, err)
		got.Spec.ServiceAccountName = account
		if _, err := l.client.CoreV1().Pods(ns).Update(t.Context(), got, metav1.UpdateOptions{}); err == nil {
			t.Errorf("pod %s now has the ServiceAccount %s", pod, account)
		}
		got.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "x", Image: l.AppImage(), SecurityContext: windows("swap")}}}
		after, err := l.client.CoreV1().Pods(ns).UpdateEphemeralContainers(t.Context(), pod, got, metav1.UpdateOptions{})
		if err == nil && after.Spec.ServiceAccountName == account {
			t.Errorf("pod %s got the ServiceAccount %s through its ephemeral containers", pod, account)
		}
	}
	// The pod's ServiceAccount needs the permission, not the user who debugs the pod.
	_, err = l.debug(ns, "plain", "y", windows("swap"))
	refused(t, err, 403, "ephemeral container y", "ServiceAccount "+ns+"/poor")
}

// The GMSACredentialSpec changes between mutate and validate: another mutating webhook changes it.
func TestAttackCredentialSpecChangedBetweenMutateAndValidate(t *testing.T) {
	t.Parallel()
	l := shared(t)
	ns := l.namespace("race", "race=yes")
	l.spec("race", input, ns, "default")
	old, err := json.Marshal(map[string]any{"CmsPlugins": []string{"changed"}})
	must(t, err)
	var called sync.Map
	l.another("race", func(pod *corev1.Pod) (patch string, err error) {
		w := pod.Spec.SecurityContext.WindowsOptions
		called.Store("yes", w != nil && w.GMSACredentialSpec != nil && strings.Contains(*w.GMSACredentialSpec, "ActiveDirectoryConfig"))
		return "", l.PutCredentialSpec(context.Background(), "race", old)
	})
	contents, err := json.Marshal(json.RawMessage(l.mustSpec("race")))
	must(t, err)
	l.eventually(20*time.Second, func() error {
		if err := l.PutCredentialSpec(t.Context(), "race", contents); err != nil {
			return err
		}
		called.Delete("yes")
		err := l.dryRun(l.pod(ns, "p", "race"))
		if seen, ok := called.Load("yes"); !ok || seen != true {
			return fmt.Errorf("the other webhook was not called after the pod was populated (%v, %v); the pod: %v", seen, ok, err)
		}
		if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "differs from the GMSACredentialSpec") {
			t.Errorf("a pod whose inline credential spec differs from the object: %v", err)
		}
		return nil
	})
}

// Another webhook adds a container with a gMSA after ours. If ours was called before, it is called again. A pod that
// had no gMSA before is denied.
func TestAnotherWebhookAddsAGMSA(t *testing.T) {
	t.Parallel()
	l := shared(t)
	ns := l.namespace("given", "given=yes")
	contents := l.spec("given", input, ns, "default")
	l.another("given", func(*corev1.Pod) (string, error) {
		return `[{"op":"add","path":"/spec/containers/-","value":{"name":"added","image":"none.example.com/none","securityContext":{"windowsOptions":{"gmsaCredentialSpecName":"given"}}}}]`, nil
	})
	l.eventually(20*time.Second, func() error {
		pod, err := l.admitted(l.pod(ns, "p", "given"))
		if err != nil {
			return err
		}
		if len(pod.Spec.Containers) != 2 {
			return errors.New("the other webhook is not called yet")
		}
		same(t, "the added container", pod.Spec.Containers[1].SecurityContext.WindowsOptions.GMSACredentialSpec, contents)
		return nil
	})
	plain := l.pod(ns, "plain", "")
	plain.Spec.SecurityContext = nil
	refused(t, l.dryRun(plain), 403, "container added", "was not populated")
}

// another installs a mutating webhook that the API server calls after ours, for pods in namespaces with this label. f
// gets the pod and returns a JSON patch or "".
func (l *lab) another(label string, f func(*corev1.Pod) (patch string, err error)) {
	l.t.Helper()
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var review admissionv1.AdmissionReview
		var pod corev1.Pod
		var patch string
		err := json.NewDecoder(r.Body).Decode(&review)
		if err == nil {
			err = json.Unmarshal(review.Request.Object.Raw, &pod)
		}
		if err == nil {
			patch, err = f(&pod)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		review.Response = &admissionv1.AdmissionResponse{UID: review.Request.UID, Allowed: true}
		if patch != "" {
			kind := admissionv1.PatchTypeJSONPatch
			review.Response.Patch, review.Response.PatchType = []byte(patch), &kind
		}
		review.Request = nil
		_ = json.NewEncoder(w).Encode(review)
	}))
	l.t.Cleanup(server.Close)
	none, fail, url := admissionregistrationv1.SideEffectClassNone, admissionregistrationv1.Fail, server.URL
	configurations := l.client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	// The API server calls webhooks in the order of their configurations' names.
	name := "zz-" + label
	_, err := configurations.Create(l.t.Context(), &admissionregistrationv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Webhooks: []admissionregistrationv1.MutatingWebhook{{
			Name: label + ".example.com", AdmissionReviewVersions: []string{"v1"}, SideEffects: &none, FailurePolicy: &fail,
			ClientConfig:      admissionregistrationv1.WebhookClientConfig{URL: &url, CABundle: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})},
			NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{label: "yes"}},
			Rules: []admissionregistrationv1.RuleWithOperations{{Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
				Rule: admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}}}},
		}},
	}, metav1.CreateOptions{})
	must(l.t, err)
	l.t.Cleanup(func() {
		_ = configurations.Delete(context.Background(), name, metav1.DeleteOptions{}) // the cluster is deleted anyway
	})
}

// mustSpec returns the credential spec of a GMSACredentialSpec.
func (l *lab) mustSpec(name string) []byte {
	l.t.Helper()
	var object struct{ Credspec json.RawMessage }
	must(l.t, json.Unmarshal([]byte(l.mustKubectl("get", "gmsacredentialspec", name, "-o", "json")), &object))
	return object.Credspec
}

// unauthenticatedClient is a client other than the API server, connected to a replica.
type unauthenticatedClient struct {
	http.Client
	url string
}

func (l *lab) connect(certificates ...tls.Certificate) *unauthenticatedClient {
	l.t.Helper()
	replicas, err := l.replicas()
	must(l.t, err)
	if len(replicas) == 0 {
		l.t.Fatal("no replica")
	}
	configuration, err := l.client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(l.t.Context(), cluster.Webhook, metav1.GetOptions{})
	must(l.t, err)
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(configuration.Webhooks[0].ClientConfig.CABundle) {
		l.t.Fatal("the configuration has no CA")
	}
	transport := &http.Transport{MaxConnsPerHost: 200, TLSClientConfig: &tls.Config{
		RootCAs: roots, ServerName: cluster.Webhook + "." + system + ".svc", Certificates: certificates,
	}}
	l.t.Cleanup(transport.CloseIdleConnections)
	return &unauthenticatedClient{http.Client{Transport: transport, Timeout: 20 * time.Second}, "https://" + net.JoinHostPort(replicas[0].Status.PodIP, "9443")}
}

func (s *unauthenticatedClient) post(path, contentType string, body []byte) (int, string, error) {
	answer, err := s.Post(s.url+path, contentType, bytes.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	return answer.StatusCode, string(text), err
}

// isClosed reports whether the replica closed the connection before the request was sent.
func isClosed(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func reviewOf(t *testing.T, pod *corev1.Pod) []byte {
	t.Helper()
	object, err := json.Marshal(pod)
	must(t, err)
	body, err := json.Marshal(admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"},
		Request: &admissionv1.AdmissionRequest{
			UID: types.UID("11111111-2222-3333-4444-555555555555"), Kind: metav1.GroupVersionKind{Version: "v1", Kind: "Pod"},
			Resource: metav1.GroupVersionResource{Version: "v1", Resource: "pods"}, Namespace: pod.Namespace, Operation: admissionv1.Create,
			Object: runtime.RawExtension{Raw: object},
		},
	})
	must(t, err)
	return body
}

// Attack: a client in the cluster network connects to a replica. It can read GMSACredentialSpecs, which are not secret,
// but nothing else, and cannot block the API server.
func TestAttackAnUnauthenticatedClientConnects(t *testing.T) {
	t.Parallel()
	l := shared(t)
	ns := l.namespace("unauthenticated")
	l.spec("unauthenticated", input, ns)
	s := l.connect()
	good := reviewOf(t, l.pod(ns, "p", "unauthenticated"))
	for _, test := range []struct {
		name, path, contentType, body string
		code                          int
	}{
		{"another path", "/secrets", "application/json", string(good), 404},
		{"another type", "/mutate", "text/plain", string(good), 415},
		{"no type", "/mutate", "", string(good), 415},
		{"not JSON", "/validate", "application/json", "pod", 400},
		{"empty", "/validate", "application/json", "", 400},
		{"no request", "/validate", "application/json", `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}`, 400},
		{"another version", "/validate", "application/json", strings.Replace(string(good), "admission.k8s.io/v1", "admission.k8s.io/v1beta1", 1), 400},
		{"another kind", "/mutate", "application/json", strings.Replace(string(good), `"AdmissionReview"`, `"Secret"`, 1), 400},
		{"another resource", "/mutate", "application/json", strings.Replace(string(good), `"resource":"pods"`, `"resource":"secrets"`, 1), 400},
		{"not a pod", "/validate", "application/json", strings.Replace(string(good), `"spec":{`, `"spec":[],"x":{`, 1), 400},
		{"9 MiB", "/mutate", "application/json", string(good) + strings.Repeat(" ", 9<<20), 413},
	} {
		code, text, err := s.post(test.path, test.contentType, []byte(test.body))
		if isClosed(err) && test.code == 413 {
			continue
		}
		if err != nil || code != test.code {
			t.Errorf("%s: %d %q, %v; want %d", test.name, code, text, err, test.code)
		}
	}
	if answer, err := s.Get(s.url + "/mutate"); err != nil || answer.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("GET: %v, %v", answer, err)
	} else {
		answer.Body.Close()
	}

	// Responses to valid requests.
	code, text, err := s.post("/mutate", "application/json", good)
	must(t, err)
	var review admissionv1.AdmissionReview
	must(t, json.Unmarshal([]byte(text), &review))
	if code != 200 || !review.Response.Allowed || !strings.Contains(string(review.Response.Patch), "/spec/securityContext/windowsOptions/gmsaCredentialSpec") {
		t.Errorf("mutate: %d %s", code, text)
	}
	guess := l.pod(ns, "p", "unauthenticated")
	guess.Spec.SecurityContext = &corev1.PodSecurityContext{WindowsOptions: windowsWith("unauthenticated", "{}").WindowsOptions}
	if _, text, err = s.post("/validate", "application/json", reviewOf(t, guess)); err != nil || !strings.Contains(text, `"allowed":false`) || strings.Contains(text, "web01") {
		t.Errorf("validate: %s, %v", text, err)
	}
	for _, secret := range []string{"cmVhZGVy", "PRIVATE KEY", "secret-not-found", "Bearer"} {
		if strings.Contains(text, secret) {
			t.Errorf("the response contains %q: %s", secret, text)
		}
	}

	// 200 concurrent requests of 1 MiB, while the API server's requests succeed.
	large := l.pod(ns, "p", "unauthenticated")
	large.Annotations = map[string]string{"large": strings.Repeat("x", 1<<20)}
	body := reviewOf(t, large)
	l.put("unauthenticated-others", l.mustSpec("unauthenticated"), ns, "default")
	end := l.load(5, l.pod(ns, "load", "unauthenticated-others"))
	const closed = -1
	codes := map[int]int{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	start := time.Now()
	for range 200 {
		wg.Go(func() {
			code, _, err := s.post("/mutate", "application/json", body)
			mu.Lock()
			defer mu.Unlock()
			if isClosed(err) {
				code = closed
			} else if err != nil {
				t.Error(err)
			}
			codes[code]++
		})
	}
	wg.Wait()
	others := end()
	t.Logf("200 requests of 1 MiB in %s: %v; the API server's: %s", time.Since(start).Round(time.Millisecond), codes, others)
	// A request without a slot gets 503 before its body is read. A client that still sends the body can see a closed
	// connection instead. A body that arrives too slowly gets 408.
	if codes[200] == 0 || codes[200]+codes[503]+codes[408]+codes[closed] != 200 {
		t.Errorf("status codes %v", codes)
	}
	if len(others.lost) > 0 {
		t.Errorf("the API server's requests: %s", others)
	}
	l.noRestarts()
}

// With required client certificates, only the API server can connect.
func TestOnlyTheAPIServerCanConnect(t *testing.T) {
	t.Parallel()
	l := own(t)
	must(t, l.ControlPlane.CreateNamespace(t.Context(), system))
	ca, key := authority(t)
	l.mustKubectl("create", "configmap", "clients", "--namespace", system, "--from-literal=ca.crt="+string(ca))
	l.install("--set", "apiServer.clientCAConfigMap=clients", "--set", "apiServer.clientName=kube-apiserver")
	ns := l.namespace("asks")
	l.spec("asks", input, ns)
	good := reviewOf(t, l.pod(ns, "p", "asks"))
	for name, certificates := range map[string][]tls.Certificate{
		"none": nil, "another name": {clientCertificate(t, ca, key, "somebody")}, "another CA": {foreignCertificate(t)},
	} {
		if code, text, err := l.connect(certificates...).post("/mutate", "application/json", good); err == nil && code != http.StatusForbidden {
			t.Errorf("client certificate: %s; %d %s", name, code, text)
		}
	}
	if code, text, err := l.connect(clientCertificate(t, ca, key, "kube-apiserver")).post("/mutate", "application/json", good); err != nil || code != 200 {
		t.Errorf("with the API server's name: %d %s, %v", code, text, err)
	}
	// The lab's API server has no client certificate for webhooks.
	if err := l.dryRun(l.pod(ns, "p", "asks")); !apierrors.IsInternalError(err) {
		t.Errorf("a pod from an API server without a client certificate: %v", err)
	}
	l.install("--set", "apiServer.clientCAConfigMap=", "--set", "apiServer.clientName=")
	l.eventually(20*time.Second, func() error {
		if err := l.dryRun(l.pod(ns, "p", "asks")); !apierrors.IsForbidden(err) {
			return fmt.Errorf("without required client certificates: %v", err)
		}
		return nil
	})
}

func authority(t *testing.T) (caPEM []byte, key *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	must(t, err)
	template := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: "test " + serial.String()}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	must(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), key
}

func issue(t *testing.T, caPEM []byte, caKey *ecdsa.PrivateKey, template *x509.Certificate) (certPEM, keyPEM []byte) {
	t.Helper()
	block, _ := pem.Decode(caPEM)
	ca, err := x509.ParseCertificate(block.Bytes)
	must(t, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, ca, &key.PublicKey, caKey)
	must(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}

func clientCertificate(t *testing.T, ca []byte, key *ecdsa.PrivateKey, name string) tls.Certificate {
	t.Helper()
	certPEM, keyPEM := issue(t, ca, key, &x509.Certificate{Subject: pkix.Name{CommonName: name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	must(t, err)
	return pair
}

func foreignCertificate(t *testing.T) tls.Certificate {
	t.Helper()
	ca, key := authority(t)
	return clientCertificate(t, ca, key, "kube-apiserver")
}
