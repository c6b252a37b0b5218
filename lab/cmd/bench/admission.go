package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ccgrkc/ccgrkc/internal/connlimit/connlimittest"
	"github.com/ccgrkc/ccgrkc/lab/env/cluster"
	"github.com/ccgrkc/ccgrkc/lab/env/winnode"
	"github.com/ccgrkc/ccgrkc/lab/internal/child"
)

// admission prints the time that the webhook adds to the creation of a pod: one request to /mutate and one to
// /validate. The replica is a process next to the API server, because pods of the lab reach the API server only through
// the lab's kubelet. The baseline is the requests that a webhook without a cache sends to the API server.
func admission(ctx context.Context, dir string) error {
	dir = filepath.Join(dir, "admission")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	c, err := cluster.Start(ctx, dir)
	if err != nil {
		return err
	}
	defer c.Stop()
	if _, err := c.AddLinux(ctx, "linux-1"); err != nil {
		return err
	}
	const namespace = "gmsa-system"
	for chart, name := range map[string]string{cluster.Webhook: cluster.Webhook, cluster.Provider: "web"} {
		release := cluster.Release{Cluster: c, Chart: chart, Namespace: namespace, Name: name}
		if _, err := release.Install(ctx); err != nil {
			return err
		}
	}
	contents, err := json.Marshal(winnode.CredentialSpec(namespace + ":web-creds"))
	if err != nil {
		return err
	}
	if err := errors.Join(
		c.PutSecret(ctx, namespace, "web-creds", "secret"),
		c.PutCredentialSpec(ctx, "web01", contents),
		c.GrantUse(ctx, "web01", "default", "default"),
	); err != nil {
		return err
	}
	replica, err := startReplica(ctx, c, namespace, dir)
	if err != nil {
		return err
	}
	defer stop(replica.process)
	pod, err := typicalPod(ctx, c)
	if err != nil {
		return err
	}
	mutate, validate, err := reviewsOf(ctx, replica, pod)
	if err != nil {
		return err
	}
	reviews := func() error {
		_, err := replica.send(ctx, "/mutate", mutate)
		if err == nil {
			_, err = replica.send(ctx, "/validate", validate)
		}
		return err
	}
	client := c.ControlPlane.Client()
	baseline := func() error {
		get := func() error {
			const path = "/apis/windows.k8s.io/v1/gmsacredentialspecs/web01"
			return client.CoreV1().RESTClient().Get().AbsPath(path).Do(ctx).Error()
		}
		sar := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
			User:   "system:serviceaccount:default:default",
			Groups: []string{"system:serviceaccounts"},
			ResourceAttributes: &authorizationv1.ResourceAttributes{
				Namespace: "default",
				Verb:      "use",
				Group:     "windows.k8s.io",
				Resource:  "gmsacredentialspecs",
				Name:      "web01",
			},
		}}
		if err := errors.Join(get(), get()); err != nil {
			return err
		}
		accessReviews := client.AuthorizationV1().SubjectAccessReviews()
		if _, err := accessReviews.Create(ctx, sar, metav1.CreateOptions{}); err != nil {
			return err
		}
		// The API server always rejects this request: see docs/security.md.
		token := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
			BoundObjectRef: &authenticationv1.BoundObjectReference{
				APIVersion: "v1",
				Kind:       "Secret",
				Name:       "web-creds",
				UID:        "none",
			},
		}}
		accounts := client.CoreV1().ServiceAccounts(namespace)
		_, _ = accounts.CreateToken(ctx, "gmsa-secret-web-creds", token, metav1.CreateOptions{})
		return nil
	}
	for _, clients := range []int{1, 8} {
		times := map[string][]time.Duration{}
		for round := range rounds {
			for name, call := range map[string]func() error{"baseline": baseline, "reviews": reviews} {
				t, err := measure(ctx, clients, call)
				if err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				if round > 0 {
					times[name] = append(times[name], t...)
				}
			}
		}
		what := fmt.Sprintf("webhook: /mutate and /validate, %d client(s), ", clients)
		p50, p99 := "", ""
		if clients == 1 {
			p50, p99 = "3 ms", "15 ms"
		}
		latency(what+"p50", median(times["reviews"]), median(times["baseline"]), p50)
		latency(what+"p99", percentile(times["reviews"], 99), percentile(times["baseline"], 99), p99)
	}
	if err := tenants(ctx, c, replica, mutate, validate); err != nil {
		return err
	}
	time.Sleep(10 * time.Second)
	memory := fmt.Sprintf("%.1f MiB", rss(replica.process.PID()))
	value("webhook, idle after these requests, resident memory", memory, "30 MiB")
	const held = 1000 // after a complete TLS handshake
	return attack("webhook", replica.process, func() error {
		defer replica.client.CloseIdleConnections()
		return reviews()
	},
		connlimittest.Target{Address: replica.health, Kind: connlimittest.Header, Connections: hostileConnections},
		connlimittest.Target{
			Address:     replica.address,
			Kind:        connlimittest.ClientHello,
			Connections: hostileConnections - 2*held,
		},
		connlimittest.Target{Address: replica.address, Kind: connlimittest.HeldTLS, Connections: held},
		connlimittest.Target{Address: replica.address, Kind: connlimittest.BusyTLS, Connections: held},
	)
}

// tenants prints how long a pod of one tenant takes while 60 clients of another tenant create pods with eight invented
// names. The baseline is the same load of pods that use a gMSA. mutate and validate are the requests for a pod of the
// namespace default.
func tenants(ctx context.Context, c *cluster.Cluster, r *replica, mutate, validate []byte) error {
	const attackers, measured = 60, 100
	if err := errors.Join(
		c.ControlPlane.CreateNamespace(ctx, "tenant"),
		c.GrantUse(ctx, "web01", "tenant", "default"),
	); err != nil {
		return err
	}
	inTenant := func(review []byte) []byte {
		return bytes.ReplaceAll(review, []byte(`"namespace":"default"`), []byte(`"namespace":"tenant"`))
	}
	create := func(mutate, validate []byte) error {
		_, err := r.send(ctx, "/mutate", mutate)
		if err == nil {
			_, err = r.send(ctx, "/validate", validate)
		}
		return err
	}
	plainMutate, plainValidate := inTenant(mutate), inTenant(validate)
	if err := cluster.Eventually(ctx, 20*time.Second, func() error {
		return create(plainMutate, plainValidate)
	}); err != nil {
		return err
	}
	var invented atomic.Int64
	loads := map[string]func() error{
		"plain": func() error { return create(plainMutate, plainValidate) },
		"invented": func() error {
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "tenant", Name: "app"}}
			for i := range 8 {
				name := fmt.Sprintf("invented-%d-%d", invented.Add(1), i)
				windows := &corev1.WindowsSecurityContextOptions{GMSACredentialSpecName: &name}
				pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{
					Name:            fmt.Sprint("c", i),
					SecurityContext: &corev1.SecurityContext{WindowsOptions: windows},
				})
			}
			body, err := review(pod)
			if err != nil {
				return err
			}
			answer, err := r.post(ctx, "/mutate", body)
			if err == nil && !bytes.Contains(answer, []byte(`"allowed":false`)) {
				err = fmt.Errorf("a pod with invented names: %s", answer)
			}
			return err
		},
	}
	times := map[string][]time.Duration{}
	for round := range 5 {
		for name, load := range loads {
			stop := make(chan struct{})
			errs := make([]error, attackers)
			var wg sync.WaitGroup
			for i := range attackers {
				wg.Go(func() {
					for errs[i] == nil {
						select {
						case <-stop:
							return
						default:
							errs[i] = load()
						}
					}
				})
			}
			time.Sleep(time.Second) // until all clients are connected
			var failed error
			for range measured {
				began := time.Now()
				if failed = errors.Join(ctx.Err(), create(mutate, validate)); failed != nil {
					break
				}
				if round > 0 { // the first warms up
					times[name] = append(times[name], time.Since(began))
				}
			}
			close(stop)
			wg.Wait()
			if err := errors.Join(append(errs, failed)...); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	what := fmt.Sprintf("a tenant's pod under %d clients of another one, p50", attackers)
	ratio(what, median(times["invented"]), median(times["plain"]), 4)
	return nil
}

// replica is a webhook process and a client for it.
type replica struct {
	process         *child.Process
	address, health string
	client          *http.Client
}

// startReplica starts a replica with the ServiceAccount and the certificate of the installed release.
func startReplica(ctx context.Context, c *cluster.Cluster, namespace, dir string) (*replica, error) {
	core := c.ControlPlane.Client().CoreV1()
	request := &authenticationv1.TokenRequest{}
	token, err := core.ServiceAccounts(namespace).CreateToken(ctx, cluster.Webhook, request, metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	account := filepath.Join(dir, "replica/var/run/secrets/kubernetes.io/serviceaccount")
	if err := errors.Join(
		os.MkdirAll(account, 0o700),
		os.WriteFile(filepath.Join(account, "token"), []byte(token.Status.Token), 0o600),
		os.WriteFile(filepath.Join(account, "ca.crt"), c.ControlPlane.CA, 0o600),
	); err != nil {
		return nil, err
	}
	server, err := url.Parse(c.ControlPlane.Server)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(filepath.Join(winnode.Dist(), "gmsa-webhook"), "run",
		"--namespace", namespace, "--service", cluster.Webhook,
		"--mutating-configuration", cluster.Webhook, "--validating-configuration", cluster.Webhook,
		"--listen", "127.0.0.1:0", "--health-listen", "127.0.0.1:0", "--shutdown-delay", "0s", "--log-format", "json")
	cmd.Env = []string{
		"KUBERNETES_SERVICE_HOST=" + server.Hostname(),
		"KUBERNETES_SERVICE_PORT=" + server.Port(),
		"CONTAINER_SANDBOX_MOUNT_POINT=" + filepath.Join(dir, "replica"),
	}
	log, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	process, err := child.Start(cmd, syscall.SIGKILL)
	if err != nil {
		return nil, err
	}
	var at struct{ Admission, Health string }
	lines := bufio.NewScanner(log)
	for at.Health == "" && lines.Scan() {
		_ = json.Unmarshal(lines.Bytes(), &at) // other lines have neither field
	}
	if at.Health == "" {
		stop(process)
		return nil, fmt.Errorf("gmsa-webhook exited during start: %w", process.Err)
	}
	go func() { _, _ = io.Copy(io.Discard, log) }()
	if err := cluster.Eventually(ctx, time.Minute, func() error {
		resp, err := http.Get("http://" + at.Health + "/readyz")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	}); err != nil {
		stop(process)
		return nil, err
	}
	configurations := c.ControlPlane.Client().AdmissionregistrationV1().MutatingWebhookConfigurations()
	configuration, err := configurations.Get(ctx, cluster.Webhook, metav1.GetOptions{})
	if err != nil {
		stop(process)
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(configuration.Webhooks[0].ClientConfig.CABundle)
	return &replica{process, at.Admission, at.Health, &http.Client{Transport: &http.Transport{
		TLSClientConfig:     &tls.Config{RootCAs: roots, ServerName: cluster.Webhook + "." + namespace + ".svc"},
		MaxIdleConnsPerHost: 100,
	}}}, nil
}

// typicalPod is a pod as the API server sends it, with defaults and without an inline credential spec.
func typicalPod(ctx context.Context, c *cluster.Cluster) (*corev1.Pod, error) {
	name := "web01"
	windows := &corev1.WindowsSecurityContextOptions{GMSACredentialSpecName: &name}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "app"},
		Spec: corev1.PodSpec{
			NodeSelector:    map[string]string{"kubernetes.io/os": "windows"},
			SecurityContext: &corev1.PodSecurityContext{WindowsOptions: windows},
			Containers:      []corev1.Container{{Name: "app", Image: c.AppImage()}},
		},
	}
	dryRun := metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}
	pod, err := c.ControlPlane.Client().CoreV1().Pods("default").Create(ctx, pod, dryRun)
	if err != nil {
		return nil, err
	}
	pod.Spec.SecurityContext.WindowsOptions.GMSACredentialSpec = nil
	return pod, nil
}

// reviewsOf are the two admission requests for a pod: the pod as the user created it, and the pod after the mutation.
func reviewsOf(ctx context.Context, r *replica, pod *corev1.Pod) (mutate, validate []byte, _ error) {
	mutate, err := review(pod)
	if err != nil {
		return nil, nil, err
	}
	answer, err := r.send(ctx, "/mutate", mutate)
	if err != nil {
		return nil, nil, err
	}
	var mutated admissionv1.AdmissionReview
	if err := json.Unmarshal(answer, &mutated); err != nil {
		return nil, nil, err
	}
	var patch []struct{ Value string }
	if err := json.Unmarshal(mutated.Response.Patch, &patch); err != nil || len(patch) != 1 {
		return nil, nil, fmt.Errorf("the patch is %s", mutated.Response.Patch)
	}
	pod = pod.DeepCopy()
	pod.Spec.SecurityContext.WindowsOptions.GMSACredentialSpec = &patch[0].Value
	validate, err = review(pod)
	return mutate, validate, err
}

func review(pod *corev1.Pod) ([]byte, error) {
	object, err := json.Marshal(pod)
	if err != nil {
		return nil, err
	}
	return json.Marshal(admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"},
		Request: &admissionv1.AdmissionRequest{
			UID:       types.UID("bench"),
			Kind:      metav1.GroupVersionKind{Version: "v1", Kind: "Pod"},
			Resource:  metav1.GroupVersionResource{Version: "v1", Resource: "pods"},
			Namespace: pod.Namespace,
			Name:      pod.Name,
			Operation: admissionv1.Create,
			Object:    runtime.RawExtension{Raw: object},
		},
	})
}

// send sends an admission request. The response must allow the pod and contain no warnings.
func (r *replica) send(ctx context.Context, path string, body []byte) ([]byte, error) {
	answer, err := r.post(ctx, path, body)
	if err != nil {
		return nil, err
	}
	if !bytes.Contains(answer, []byte(`"allowed":true`)) || bytes.Contains(answer, []byte(`"warnings"`)) {
		return nil, fmt.Errorf("%s: %s", path, answer)
	}
	return answer, nil
}

func (r *replica) post(ctx context.Context, path string, body []byte) ([]byte, error) {
	url := "https://" + r.address + path + "?timeout=5s"
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s: %s", path, resp.Status, answer)
	}
	return answer, nil
}

func percentile(d []time.Duration, p int) time.Duration {
	slices.Sort(d)
	return d[len(d)*p/100]
}

// latency prints a time and its baseline. The bound is for the time itself, not for the ratio.
func latency(name string, measured, baseline time.Duration, bound string) {
	r := float64(measured) / float64(baseline)
	fmt.Printf("%-58s %12s %12s %8.2f %8s\n", name, ms(measured), ms(baseline), r, bound)
}
