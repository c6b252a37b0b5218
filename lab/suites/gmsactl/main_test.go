// Package gmsactl tests the program gmsactl as it is built, on a real control plane and a real Active Directory.
package gmsactl

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/yaml"

	"github.com/ccgrkc/ccgrkc/lab/env/cluster"
	"github.com/ccgrkc/ccgrkc/lab/env/controlplane"
	"github.com/ccgrkc/ccgrkc/lab/env/winnode"
	"github.com/ccgrkc/ccgrkc/lab/labtest"
)

// The exit codes that docs/gmsactl.md promises.
const (
	good   = 0
	wrong  = 1
	usage  = 2
	unable = 3
)

// One control plane and one domain serve all tests. A test has a namespace of its own, and, where it changes an account, an
// account of its own.
var (
	shared   = &controlplane.ControlPlane{}
	sharedAD *domain
	started  sync.Once
	startErr error
	stop     []func()
)

func TestMain(m *testing.M) {
	code := m.Run()
	for _, f := range stop {
		f()
	}
	os.Exit(code)
}

func lab(t *testing.T) (*controlplane.ControlPlane, *domain) {
	t.Helper()
	labtest.Require(t)
	started.Do(func() {
		dir, err := os.MkdirTemp("", "gmsactl-test-")
		if err != nil {
			startErr = err
			return
		}
		stop = append(stop, func() { os.RemoveAll(dir) })
		// Building takes minutes when the build cache is empty; starting takes seconds.
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
		defer cancel()
		if shared, startErr = controlplane.Start(ctx, filepath.Join(dir, "cp")); startErr != nil {
			return
		}
		stop = append([]func(){shared.Stop}, stop...)
		if sharedAD, startErr = startDomain(ctx, filepath.Join(dir, "ad")); startErr != nil {
			return
		}
		stop = append([]func(){sharedAD.Stop}, stop...)
		startErr = installCRD(ctx, shared)
	})
	must(t, startErr)
	return shared, sharedAD
}

func installCRD(ctx context.Context, cp *controlplane.ControlPlane) error {
	content, err := cluster.CredentialSpecCRD(ctx)
	if err != nil {
		return err
	}
	client, err := dynamicClient(cp)
	if err != nil {
		return err
	}
	var crd unstructured.Unstructured
	if err := yaml.Unmarshal(content, &crd.Object); err != nil {
		return err
	}
	crds := client.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	if _, err := crds.Create(ctx, &crd, metav1.CreateOptions{}); err != nil {
		return err
	}
	for { // until the API server serves it
		_, err := client.Resource(specs).List(ctx, metav1.ListOptions{})
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the resource of GMSACredentialSpecs: %w", err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

var specs = schema.GroupVersionResource{Group: "windows.k8s.io", Version: "v1", Resource: "gmsacredentialspecs"}

func dynamicClient(cp *controlplane.ControlPlane) (*dynamic.DynamicClient, error) {
	config, err := clientcmd.BuildConfigFromFlags("", cp.Kubeconfig)
	if err != nil {
		return nil, err
	}
	return dynamic.NewForConfig(config)
}

// program is gmsactl as a test runs it.
type program struct {
	t          *testing.T
	kubeconfig string   // "": none
	home       string   // also the working directory
	prefix     []string // run by this command
	name       string   // "": gmsactl
}

func (d *domain) flags() []string { return []string{"--dc", d.DC, "--dns-server", d.Address} }

func newProgram(t *testing.T, kubeconfig string) *program {
	return &program{t: t, kubeconfig: kubeconfig, home: t.TempDir()}
}

// result is how a run ended.
type result struct {
	stdout, stderr string
	code           int
}

func (r result) String() string {
	return fmt.Sprintf("exit code %d\nstdout:\n%s\nstderr:\n%s", r.code, r.stdout, r.stderr)
}

func (p *program) command(args ...string) *exec.Cmd {
	p.t.Helper()
	path := filepath.Join(winnode.Dist(), "gmsactl")
	if p.name != "" {
		link := filepath.Join(p.home, p.name)
		if err := os.Symlink(path, link); err != nil && !errors.Is(err, os.ErrExist) {
			p.t.Fatal(err)
		}
		path = link
	}
	argv := append(append([]string{}, p.prefix...), append([]string{path}, args...)...)
	cmd := exec.CommandContext(p.t.Context(), argv[0], argv[1:]...)
	cmd.Dir = p.home
	cmd.Env = []string{"HOME=" + p.home, "PATH=/usr/bin:/bin:/usr/sbin", "KUBECONFIG=" + p.kubeconfig}
	return cmd
}

func (p *program) took(line []string) time.Duration {
	p.t.Helper()
	begin := time.Now()
	p.want(good, nil, line...)
	return time.Since(begin)
}

func (p *program) runWith(stdin string, args ...string) result {
	p.t.Helper()
	cmd := p.command(args...)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		p.t.Fatal(err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

func (p *program) run(args ...string) result {
	p.t.Helper()
	return p.runWith("", args...)
}

// want runs and fails the test unless the exit code and the words are there, in stdout and stderr together.
func (p *program) want(code int, words []string, args ...string) result {
	p.t.Helper()
	return p.wantWith("", code, words, args...)
}

func (p *program) wantWith(stdin string, code int, words []string, args ...string) result {
	p.t.Helper()
	r := p.runWith(stdin, args...)
	if r.code != code {
		p.t.Errorf("gmsactl %s: %v\nwant exit code %d", strings.Join(args, " "), r, code)
	}
	for _, w := range words {
		if !strings.Contains(r.stdout+r.stderr, w) {
			p.t.Errorf("gmsactl %s: %v\nwant it to say %q", strings.Join(args, " "), r, w)
		}
	}
	return r
}

// file writes a file into the program's directory and returns its name.
func (p *program) file(name, content string) string {
	p.t.Helper()
	must(p.t, os.WriteFile(filepath.Join(p.home, name), []byte(content), 0o600))
	return name
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func namespace(t *testing.T, cp *controlplane.ControlPlane) string {
	t.Helper()
	ns, err := cp.Client().CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "gmsa-"}}, metav1.CreateOptions{})
	must(t, err)
	return ns.Name
}

// release makes what a release of the chart looks like to gmsactl: its DaemonSet, without a pod.
func release(t *testing.T, cp *controlplane.ControlPlane, ns, name, secret string) {
	t.Helper()
	selector := map[string]string{
		"app.kubernetes.io/name": "rancher-gmsa-account-provider", "app.kubernetes.io/instance": name, "app.kubernetes.io/component": "provider",
	}
	labels := map[string]string{"app.kubernetes.io/part-of": "ccgrkc", "app.kubernetes.io/version": "0.0.0"}
	for k, v := range selector {
		labels[k] = v
	}
	_, err := cp.Client().AppsV1().DaemonSets(ns).Create(t.Context(), &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
		Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: selector},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec: corev1.PodSpec{Containers: []corev1.Container{{
					Name: "provider", Image: "none",
					Command: []string{"gmsa-account-provider.exe", "run", "--namespace=" + ns, "--secret=" + secret},
				}}},
			},
		},
	}, metav1.CreateOptions{})
	must(t, err)
}

func putSecret(t *testing.T, cp *controlplane.ControlPlane, ns, name, domainName, username, password string) {
	t.Helper()
	must(t, cp.PutSecret(t.Context(), controlplane.Account{Namespace: ns, Secret: name}, map[string][]byte{
		"domainName": []byte(domainName), "username": []byte(username), "password": []byte(password),
	}))
}

func getSecret(t *testing.T, cp *controlplane.ControlPlane, ns, name string) *corev1.Secret {
	t.Helper()
	s, err := cp.Client().CoreV1().Secrets(ns).Get(t.Context(), name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	must(t, err)
	return s
}

// kubeconfigOf is the kubeconfig of a ServiceAccount that may do what the rules say in its namespace, and nothing else.
func kubeconfigOf(t *testing.T, cp *controlplane.ControlPlane, ns string, rules ...rbacv1.PolicyRule) string {
	t.Helper()
	client, ctx := cp.Client(), t.Context()
	sa, err := client.CoreV1().ServiceAccounts(ns).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{GenerateName: "user-"}}, metav1.CreateOptions{})
	must(t, err)
	if len(rules) > 0 {
		meta := metav1.ObjectMeta{Name: sa.Name}
		_, err := client.RbacV1().Roles(ns).Create(ctx, &rbacv1.Role{ObjectMeta: meta, Rules: rules}, metav1.CreateOptions{})
		must(t, err)
		_, err = client.RbacV1().RoleBindings(ns).Create(ctx, &rbacv1.RoleBinding{
			ObjectMeta: meta,
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: sa.Name},
			Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: ns, Name: sa.Name}},
		}, metav1.CreateOptions{})
		must(t, err)
	}
	token, err := client.CoreV1().ServiceAccounts(ns).CreateToken(ctx, sa.Name, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	must(t, err)
	config := clientcmdapi.NewConfig()
	config.Clusters["lab"] = &clientcmdapi.Cluster{Server: cp.Server, CertificateAuthorityData: cp.CA}
	config.AuthInfos["user"] = &clientcmdapi.AuthInfo{Token: token.Status.Token}
	config.Contexts["lab"] = &clientcmdapi.Context{Cluster: "lab", AuthInfo: "user"}
	config.CurrentContext = "lab"
	path := filepath.Join(t.TempDir(), "kubeconfig")
	must(t, clientcmd.WriteToFile(*config, path))
	return path
}

func decode[T any](t *testing.T, r result) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(r.stdout), &v); err != nil {
		t.Fatalf("%v\n%v", err, r)
	}
	return v
}
