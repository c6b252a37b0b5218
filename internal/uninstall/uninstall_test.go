package uninstall

import (
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/kube"
)

// cluster stands in for the API server where it must misbehave, and for nodes that change from one question to the next. What
// a real one does with the charts' hooks is tested in the lab.
type cluster struct {
	mu      sync.Mutex
	deleted []string
	set     string                                  // the cleaning DaemonSet, JSON; empty: there is none
	pods    map[string][]string                     // label selector -> pods, JSON
	before  func(c *cluster, asked string)          // called before each answer
	status  func(method, path string) (int, string) // 0: an ordinary answer
}

func (c *cluster) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.before != nil {
		c.before(c, r.Method+" "+r.URL.Path)
	}
	if c.status != nil {
		if code, message := c.status(r.Method, r.URL.Path); code != 0 {
			w.WriteHeader(code)
			_ = json.NewEncoder(w).Encode(map[string]string{"kind": "Status", "message": message})
			return
		}
	}
	switch {
	case r.Method == http.MethodDelete:
		c.deleted = append(c.deleted, r.URL.Path+"?"+r.URL.RawQuery)
		fmt.Fprint(w, `{}`)
	case strings.HasSuffix(r.URL.Path, "/pods"):
		fmt.Fprintf(w, `{"items": [%s]}`, strings.Join(c.pods[r.URL.Query().Get("labelSelector")], ","))
	case c.set == "":
		w.WriteHeader(http.StatusNotFound)
	default:
		fmt.Fprint(w, c.set)
	}
}

func watch(t *testing.T, c *cluster) (*Watcher, *strings.Builder) {
	t.Helper()
	server := httptest.NewTLSServer(c)
	t.Cleanup(server.Close)
	dir := t.TempDir()
	api := kube.Server{URL: server.URL, TokenFile: filepath.Join(dir, "token"), CAFile: filepath.Join(dir, "ca.crt")}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := errors.Join(os.WriteFile(api.TokenFile, []byte("token"), 0o600), os.WriteFile(api.CAFile, ca, 0o600)); err != nil {
		t.Fatal(err)
	}
	client, err := kube.NewClient(api, "test")
	if err != nil {
		t.Fatal(err)
	}
	var progress strings.Builder
	return &Watcher{API: client, Progress: &progress, Every: time.Millisecond}, &progress
}

var (
	web     = DaemonSet{"gmsa", "web", "component=provider"}
	cleaner = DaemonSet{"gmsa", "web-uninstall", "component=uninstall"}
)

const (
	allReady = `{"metadata": {"generation": 1}, "status": {"observedGeneration": 1, "desiredNumberScheduled": 2, "numberReady": 2}}`
	ready1   = `{"metadata": {"name": "a"}, "spec": {"nodeName": "win-1"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}`
	ready2   = `{"metadata": {"name": "b"}, "spec": {"nodeName": "win-2"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}`
	running  = `{"metadata": {"name": "p"}, "spec": {"nodeName": "win-2"}}`
)

func TestStopDeletesOneDaemonSetAndWaitsForItsPods(t *testing.T) {
	c := &cluster{pods: map[string][]string{web.Selector: {running}}}
	tries := 0
	c.status = func(method, _ string) (int, string) {
		if method == http.MethodDelete {
			if tries++; tries < 3 {
				return http.StatusServiceUnavailable, "not now"
			}
		}
		return 0, ""
	}
	lists := 0
	c.before = func(c *cluster, asked string) {
		if strings.HasSuffix(asked, "/pods") {
			if lists++; lists == 5 {
				c.pods = nil
			}
		}
	}
	w, progress := watch(t, c)
	if err := w.Stop(t.Context(), web, time.Minute); err != nil {
		t.Fatal(err)
	}
	if want := "/apis/apps/v1/namespaces/gmsa/daemonsets/web?propagationPolicy=Background"; len(c.deleted) != 1 || c.deleted[0] != want {
		t.Errorf("deleted %q, want %q", c.deleted, want)
	}
	for _, said := range []string{"not now", "win-2", "no pod of DaemonSet gmsa/web is left"} {
		if !strings.Contains(progress.String(), said) {
			t.Errorf("nothing said %q:\n%s", said, progress)
		}
	}
}

func TestStopPassesNodesThatDoNotFollow(t *testing.T) {
	w, progress := watch(t, &cluster{pods: map[string][]string{web.Selector: {running}}})
	if err := w.Stop(t.Context(), web, 20*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(progress.String(), "not ended the pods of DaemonSet gmsa/web: win-2") {
		t.Errorf("it said:\n%s", progress)
	}
}

func TestWaitIsContentWhenEveryNodeIsClean(t *testing.T) {
	for name, c := range map[string]*cluster{
		"two nodes":        {set: allReady, pods: map[string][]string{cleaner.Selector: {ready1, ready2}}},
		"no Windows nodes": {set: `{"metadata": {"generation": 1}, "status": {"observedGeneration": 1}}`},
	} {
		w, progress := watch(t, c)
		if err := w.Wait(t.Context(), cleaner, web, time.Minute, time.Hour); err != nil || !strings.Contains(progress.String(), "every node is clean") {
			t.Errorf("%s: %v\n%s", name, err, progress)
		}
	}
}

// A pod of the stopped DaemonSet that ends late may have put something back at its very end.
func TestWaitLetsALateEndSettle(t *testing.T) {
	c := &cluster{set: allReady, pods: map[string][]string{cleaner.Selector: {ready1, ready2}, web.Selector: {running}}}
	asked := 0
	c.before = func(c *cluster, _ string) {
		if asked++; asked == 9 {
			delete(c.pods, web.Selector)
		}
	}
	w, _ := watch(t, c)
	const settle = 200 * time.Millisecond
	began := time.Now()
	if err := w.Wait(t.Context(), cleaner, web, time.Minute, settle); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < settle {
		t.Errorf("it returned after %s", took)
	}
}

func TestWaitNamesTheNodeAndTheReason(t *testing.T) {
	const fewer = `{"metadata": {"generation": 1}, "status": {"observedGeneration": 1, "desiredNumberScheduled": 2, "numberReady": 1}}`
	pod := func(status string) string {
		return `{"metadata": {"name": "b"}, "spec": {"nodeName": "win-2"}, "status": ` + status + `}`
	}
	long := strings.Repeat("x", 1000) + "the end"
	for _, test := range []struct {
		name, set string
		pods      []string
		says      []string
	}{
		{"a node that is down", fewer, []string{ready1, pod(`{}`)}, []string{"win-2 (pod b was not started; is the node down?)", "kubectl delete node"}},
		{"a pod that is not bound", fewer, []string{ready1, `{"metadata": {"name": "b"}, "spec": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
			{"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["win-3"]}]}]}}}}}`}, []string{"win-3 (pod b was not started"}},
		{"a clean-up that fails", fewer, []string{ready1, pod(`{"initContainerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}},
			"lastState": {"terminated": {"exitCode": 1, "reason": "Error", "message": "C:\\x is\nin use"}}}]}`)}, []string{`win-2 (pod b: Error C:\x is in use)`}},
		{"a long message", fewer, []string{ready1, pod(`{"initContainerStatuses": [{"state": {"terminated": {"exitCode": 1, "reason": "Error", "message": "` + long + `"}}}]}`)}, []string{"xthe end"}},
		{"an image that is not pulled", fewer, []string{ready1, pod(`{"initContainerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such tag"}}}]}`)}, []string{"ImagePullBackOff no such tag"}},
		{"a pod that has gone since", allReady, []string{ready1}, []string{"kube-controller-manager"}},
		{"no pod made", fewer, []string{ready1}, []string{"kube-controller-manager"}},
		{"nothing observed", `{"metadata": {"generation": 2}, "status": {"observedGeneration": 1}}`, nil, []string{"kube-controller-manager"}},
		{"no cleaner", "", nil, []string{"gmsa/web-uninstall", "run helm uninstall again"}},
	} {
		w, _ := watch(t, &cluster{set: test.set, pods: map[string][]string{cleaner.Selector: test.pods}})
		err := w.Wait(t.Context(), cleaner, web, 20*time.Millisecond, 0)
		for _, says := range test.says {
			if err == nil || !strings.Contains(err.Error(), says) {
				t.Errorf("%s: %v\nwant %q", test.name, err, says)
			}
		}
		if err != nil && (strings.Contains(err.Error(), "win-1") || len(err.Error()) > 900) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

func TestWaitNamesTheNodeWhereThePodHasNotEnded(t *testing.T) {
	w, _ := watch(t, &cluster{set: allReady, pods: map[string][]string{cleaner.Selector: {ready1, ready2}, web.Selector: {running}}})
	err := w.Wait(t.Context(), cleaner, web, 20*time.Millisecond, 0)
	if err == nil || !strings.Contains(err.Error(), "win-2 (pod p has not ended)") {
		t.Errorf("%v", err)
	}
}

func TestAForbiddenRequestEndsAtOnce(t *testing.T) {
	c := &cluster{status: func(_, _ string) (int, string) { return http.StatusForbidden, "pods is forbidden" }}
	w, _ := watch(t, c)
	for what, err := range map[string]error{
		"stop": w.Stop(t.Context(), web, time.Hour),
		"wait": w.Wait(t.Context(), cleaner, web, time.Hour, 0),
	} {
		if err == nil || !strings.Contains(err.Error(), "pods is forbidden") || !strings.Contains(err.Error(), "RoleBinding") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestAnAPIServerThatStaysAwayIsNamed(t *testing.T) {
	c := &cluster{status: func(_, _ string) (int, string) { return http.StatusInternalServerError, "etcd is away" }}
	w, _ := watch(t, c)
	if err := w.Wait(t.Context(), cleaner, web, 20*time.Millisecond, 0); err == nil || !strings.Contains(err.Error(), "etcd is away") {
		t.Errorf("%v", err)
	}
}
