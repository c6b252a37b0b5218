// Package crashloop kills and starts an API server repeatedly, while providers, a webhook and an uninstall hook use it.
// With many RoleBindings, an API server that starts refuses every request until its RBAC caches are filled. None of the
// three may take this for a verdict.
package crashloop

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/ccgrkc/ccgrkc/internal/admission"
	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/endpoint"
	"github.com/ccgrkc/ccgrkc/internal/kube"
	"github.com/ccgrkc/ccgrkc/internal/plugin"
	"github.com/ccgrkc/ccgrkc/internal/provider"
	"github.com/ccgrkc/ccgrkc/internal/uninstall"
	"github.com/ccgrkc/ccgrkc/lab/env/cluster"
	"github.com/ccgrkc/ccgrkc/lab/env/controlplane"
	"github.com/ccgrkc/ccgrkc/lab/env/winnode"
)

const (
	// RoleBindings is the number of RoleBindings in the cluster. With these, an API server refuses requests for up to
	// 100 ms of its start.
	RoleBindings = 3000

	providers = 40 // of one account, each with an endpoint of its own, as on so many nodes
	namespace = "gmsa-system"
	apps      = "shop" // namespace of the pods
)

var (
	account = controlplane.Account{Namespace: namespace, Release: "web", Secret: "web-creds"}
	webhook = controlplane.Account{Namespace: namespace, Release: "webhook"} // only the ServiceAccount's name is used
	hook    = controlplane.Account{Namespace: namespace, Release: "uninstall"}
)

// Report is the result of Run.
type Report struct {
	Restarts                     int
	Calls, Admissions, Uninstall int      // requests of plugins, reviews, and checks of the uninstall hook
	Unavailable                  int      // reviews that were answered with "try again"
	Refused                      int      // 401, 403 and 404 of the API server during its starts, from its audit log
	False                        []string // false verdicts: a call, a review or an uninstallation that was refused
}

func (r *Report) String() string {
	s := fmt.Sprintf("%d restarts with %d RoleBindings, %d calls, %d admissions (%d to be tried again), %d checks of "+
		"the uninstall hook; %d refusals by starting API servers; %d false verdicts",
		r.Restarts, RoleBindings, r.Calls, r.Admissions, r.Unavailable, r.Uninstall, r.Refused, len(r.False))
	for _, f := range r.False[:min(len(r.False), 10)] {
		s += "\n  " + f
	}
	return s
}

// run is one Run.
type run struct {
	c   *cluster.Cluster
	dir string

	mu     sync.Mutex
	report Report
}

// Run kills and starts the API server of c as often as restarts. c must have no nodes, and no objects of the product.
func Run(ctx context.Context, c *cluster.Cluster, restarts int) (*Report, error) {
	dir, err := os.MkdirTemp(c.Dir, "crashloop-")
	if err != nil {
		return nil, err
	}
	r := &run{c: c, dir: dir}
	if err := r.create(ctx); err != nil {
		return nil, err
	}
	using, stop := context.WithCancel(ctx)
	defer stop()
	var users sync.WaitGroup
	defer users.Wait()
	defer stop()
	for _, begin := range []func(context.Context, *sync.WaitGroup) error{r.callProviders, r.admitPods, r.uninstall} {
		if err := begin(using, &users); err != nil {
			return nil, err
		}
	}
	for range restarts {
		c.ControlPlane.Kill()
		if err := c.ControlPlane.Restart(ctx); err != nil {
			return nil, err
		}
		r.mu.Lock()
		r.report.Restarts++
		r.mu.Unlock()
		time.Sleep(time.Second) // the next kill also hits copies that have become fresh again
	}
	stop()
	users.Wait()
	if r.report.Refused, err = r.refusals(); err != nil {
		return nil, err
	}
	return &r.report, nil
}

// count counts one use, and a false verdict if there is one.
func (r *run) count(n *int, what string, verdict error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	*n++
	if verdict != nil {
		r.report.False = append(r.report.False, fmt.Sprintf("restart %d: %s: %v", r.report.Restarts+1, what, verdict))
	}
}

// create creates all objects.
func (r *run) create(ctx context.Context) error {
	cp := r.c.ControlPlane
	client := cp.Client()
	if err := errors.Join(
		cp.CreateNamespace(ctx, namespace),
		cp.CreateNamespace(ctx, apps),
		r.c.InstallCRD(ctx)); err != nil {
		return err
	}
	spec, err := json.Marshal(winnode.CredentialSpec(namespace + ":" + account.Secret))
	if err != nil {
		return err
	}
	daemonSet := &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Name: "cleaner"},
		Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "cleaner"}},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "cleaner"}},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "none"}}},
			},
		},
	}
	_, err = client.AppsV1().DaemonSets(namespace).Create(ctx, daemonSet, metav1.CreateOptions{})
	return errors.Join(err,
		cp.CreateAccount(ctx, account),
		cp.PutSecret(ctx, account, map[string][]byte{
			"domainName": []byte("corp.example.com"),
			"username":   []byte("web"),
			"password":   []byte("secret"),
		}),
		r.c.PutCredentialSpec(ctx, "web", spec),
		r.c.GrantUse(ctx, "web", apps, "default"),
		r.allow(ctx, webhook, "ClusterRole",
			rbacv1.PolicyRule{APIGroups: []string{"windows.k8s.io"}, Resources: []string{"gmsacredentialspecs"},
				Verbs: []string{"get"}},
			rbacv1.PolicyRule{APIGroups: []string{"authorization.k8s.io"}, Resources: []string{"subjectaccessreviews"},
				Verbs: []string{"create"}}),
		r.allow(ctx, hook, "Role",
			rbacv1.PolicyRule{APIGroups: []string{"apps"}, Resources: []string{"daemonsets"},
				Verbs: []string{"get", "delete"}},
			rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"list"}}),
		fill(ctx, client))
}

// allow creates a ServiceAccount with these permissions.
func (r *run) allow(ctx context.Context, a controlplane.Account, kind string, rules ...rbacv1.PolicyRule) error {
	client := r.c.ControlPlane.Client()
	meta := metav1.ObjectMeta{Namespace: a.Namespace, Name: a.Release}
	subjects := []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: a.Namespace, Name: a.Release}}
	ref := rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: kind, Name: a.Release}
	account := &corev1.ServiceAccount{ObjectMeta: meta}
	_, err := client.CoreV1().ServiceAccounts(a.Namespace).Create(ctx, account, metav1.CreateOptions{})
	rbac := client.RbacV1()
	if kind == "Role" {
		role := &rbacv1.Role{ObjectMeta: meta, Rules: rules}
		binding := &rbacv1.RoleBinding{ObjectMeta: meta, Subjects: subjects, RoleRef: ref}
		_, roleErr := rbac.Roles(a.Namespace).Create(ctx, role, metav1.CreateOptions{})
		_, bindErr := rbac.RoleBindings(a.Namespace).Create(ctx, binding, metav1.CreateOptions{})
		return errors.Join(err, roleErr, bindErr)
	}
	meta.Namespace = ""
	role := &rbacv1.ClusterRole{ObjectMeta: meta, Rules: rules}
	binding := &rbacv1.ClusterRoleBinding{ObjectMeta: meta, Subjects: subjects, RoleRef: ref}
	_, roleErr := rbac.ClusterRoles().Create(ctx, role, metav1.CreateOptions{})
	_, bindErr := rbac.ClusterRoleBindings().Create(ctx, binding, metav1.CreateOptions{})
	return errors.Join(err, roleErr, bindErr)
}

// fill creates RoleBindings for nobody.
func fill(ctx context.Context, client kubernetes.Interface) error {
	var next atomic.Int64
	errs := make(chan error)
	const workers = 16
	for range workers {
		go func() {
			for {
				i := next.Add(1)
				if i > RoleBindings {
					errs <- nil
					return
				}
				binding := &rbacv1.RoleBinding{
					ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("filler-", i)},
					RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "none"},
					Subjects: []rbacv1.Subject{{
						Kind:      rbacv1.ServiceAccountKind,
						Namespace: apps,
						Name:      fmt.Sprint("nobody-", i),
					}},
				}
				_, err := client.RbacV1().RoleBindings(apps).Create(ctx, binding, metav1.CreateOptions{})
				if err != nil {
					errs <- err
					return
				}
			}
		}()
	}
	var all error
	for range workers {
		all = errors.Join(all, <-errs)
	}
	return all
}

// access returns the configuration of a ServiceAccount's pod.
func (r *run) access(ctx context.Context, a controlplane.Account) (kube.Server, error) {
	dir := filepath.Join(r.dir, "token-"+a.Release)
	err := r.c.ControlPlane.WriteServiceAccountFiles(ctx, a, dir, 12*time.Hour)
	return kube.Server{
		URL:       r.c.ControlPlane.Server,
		TokenFile: filepath.Join(dir, "token"),
		CAFile:    filepath.Join(dir, "ca.crt"),
	}, err
}

// callProviders starts providers, and calls each several times a second. Every call must succeed.
func (r *run) callProviders(ctx context.Context, users *sync.WaitGroup) error {
	api, err := r.access(ctx, account)
	if err != nil {
		return err
	}
	ref := credential.Reference{Namespace: account.Namespace, Secret: account.Secret}
	log, err := os.Create(filepath.Join(r.dir, "providers.log"))
	if err != nil {
		return err
	}
	for i := range providers {
		root := filepath.Join(r.dir, fmt.Sprint("host-", i))
		users.Go(func() {
			err := provider.Run(ctx, provider.Config{
				Account:      ref,
				API:          api,
				Publisher:    endpoint.Publisher{Root: root},
				Certificates: provider.Embedded{Lifetime: provider.DefaultLifetime},
				MaxStale:     provider.DefaultMaxStale,
				Instance:     fmt.Sprint(i),
				Log:          slog.New(slog.NewTextHandler(log, nil)).With("provider", i),
			})
			if err != nil {
				r.count(new(int), "provider", err)
			}
		})
		p := plugin.New(plugin.Config{Root: root})
		if _, err := p.Get(ctx, ref.String()); err != nil { // waits until it is there
			return err
		}
		users.Go(func() {
			every(ctx, 200*time.Millisecond, func() {
				c, err := p.Get(context.WithoutCancel(ctx), ref.String())
				c.Password.Wipe()
				if ctx.Err() != nil {
					return // the provider stops as well
				}
				r.count(&r.report.Calls, "call", err)
			})
		})
	}
	return nil
}

// admitPods sends admission requests for a pod that can use its GMSACredentialSpec. It must not be denied, except with
// "try again".
func (r *run) admitPods(ctx context.Context, users *sync.WaitGroup) error {
	api, err := r.access(ctx, webhook)
	if err != nil {
		return err
	}
	client, err := kube.NewClient(api, "gmsa-webhook")
	if err != nil {
		return err
	}
	client.KeepIdle(16)
	handler := admission.NewHandler(admission.Config{
		Cluster: admission.NewCluster(client),
		Metrics: admission.NewMetrics(func() time.Time { return time.Time{} }),
		Log:     slog.New(slog.DiscardHandler),
	})
	const pod = `{"metadata":{"name":"web","namespace":"` + apps + `"},"spec":{"serviceAccountName":"default",
		"containers":[{"name":"c","image":"x"}],
		"securityContext":{"windowsOptions":{"gmsaCredentialSpecName":"web"%s}}}}`
	review := func(path, inline string) *admissionResponse {
		body := fmt.Sprintf(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"1",
			"kind":{"group":"","version":"v1","kind":"Pod"},"resource":{"group":"","version":"v1","resource":"pods"},
			"namespace":"`+apps+`","operation":"CREATE","object":`+pod+`}}`, inline)
		req := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
		req.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, req)
		var answer struct{ Response admissionResponse }
		if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
			answer.Response.Status.Message = w.Body.String()
		}
		return &answer.Response
	}
	populated := review("/mutate", "")
	if !populated.Allowed {
		return fmt.Errorf("mutate: %s", populated.Status.Message)
	}
	var patch []struct{ Value string }
	if err := json.Unmarshal(populated.Patch, &patch); err != nil || len(patch) != 1 {
		return fmt.Errorf("mutate: patch %s: %w", populated.Patch, err)
	}
	inline, err := json.Marshal(patch[0].Value)
	if err != nil {
		return err
	}
	for range 4 {
		for path, inline := range map[string]string{
			"/mutate":   "",
			"/validate": `,"gmsaCredentialSpec":` + string(inline),
		} {
			users.Go(func() {
				every(ctx, 5*time.Millisecond, func() {
					answer := review(path, inline)
					switch {
					case answer.Allowed:
						r.count(&r.report.Admissions, path, nil)
					case answer.Status.Code == http.StatusServiceUnavailable:
						r.count(&r.report.Admissions, path, nil)
						r.count(&r.report.Unavailable, path, nil)
					default:
						r.count(&r.report.Admissions, path, errors.New(answer.Status.Message))
					}
				})
			})
		}
	}
	return nil
}

type admissionResponse struct {
	Allowed bool
	Patch   []byte
	Status  struct {
		Code    int
		Message string
	}
}

// uninstall runs the uninstall hook again and again. It must not fail.
func (r *run) uninstall(ctx context.Context, users *sync.WaitGroup) error {
	api, err := r.access(ctx, hook)
	if err != nil {
		return err
	}
	client, err := kube.NewClient(api, "uninstall-hook")
	if err != nil {
		return err
	}
	cleaner := uninstall.DaemonSet{Namespace: namespace, Name: "cleaner", Selector: "app=cleaner"}
	stopped := uninstall.DaemonSet{Namespace: namespace, Name: "stopped", Selector: "app=stopped"}
	for range 4 {
		users.Go(func() {
			w := &uninstall.Watcher{API: client, Progress: io.Discard, Every: 10 * time.Millisecond}
			every(ctx, 10*time.Millisecond, func() {
				err := w.Stop(ctx, stopped, 5*time.Minute)
				if err == nil {
					err = w.Wait(ctx, cleaner, stopped, 5*time.Minute, 0)
				}
				if ctx.Err() == nil {
					r.count(&r.report.Uninstall, "uninstall", err)
				}
			})
		})
	}
	return nil
}

// every calls f with a pause after each call, until ctx ends.
func every(ctx context.Context, pause time.Duration, f func()) {
	for ctx.Err() == nil {
		f()
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// refusals counts the refusals in the audit log. All requests ask for what is allowed, or delete the DaemonSet that
// does not exist.
func (r *run) refusals() (n int, _ error) {
	f, err := os.Open(r.c.ControlPlane.AuditLog())
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if !bytes.Contains(lines.Bytes(), []byte(":"+namespace+":")) {
			continue
		}
		var event struct {
			Stage          string
			Verb           string
			ResponseStatus struct{ Code int }
		}
		if err := json.Unmarshal(lines.Bytes(), &event); err != nil {
			continue // the last line before a kill
		}
		code := event.ResponseStatus.Code
		if event.Stage == "ResponseComplete" &&
			(code == 401 || code == 403 || code == 404 && event.Verb != "delete") {
			n++
		}
	}
	return n, lines.Err()
}
