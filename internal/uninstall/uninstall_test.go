package uninstall

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/kube/kubetest"
)

// cluster is a fake API server whose pods can change between requests. lab/suites test the charts' hooks with a real
// one.
type cluster struct {
	mu      sync.Mutex
	deleted []string
	set     string                                  // the DaemonSet that cleans up, as JSON; empty: does not exist
	pods    map[string][]string                     // label selector -> pods, as JSON
	before  func(c *cluster, request string)        // called before each response
	status  func(method, path string) (int, string) // 0: normal response
}

func (c *cluster) serve(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.before != nil {
		c.before(c, r.Method+" "+r.URL.Path)
	}
	if c.status != nil {
		if code, message := c.status(r.Method, r.URL.Path); code != 0 {
			kubetest.Status(w, code, "", "", message)
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
		kubetest.Status(w, http.StatusNotFound, "", "", "not found")
	default:
		fmt.Fprint(w, c.set)
	}
}

func watch(t *testing.T, c *cluster) (*Watcher, *strings.Builder) {
	t.Helper()
	var progress strings.Builder
	client := kubetest.NewServer(t, c.serve).Client(t, "test")
	return &Watcher{API: client, Progress: &progress, Every: time.Millisecond}, &progress
}

var (
	web     = DaemonSet{"gmsa", "web", "component=provider"}
	cleaner = DaemonSet{"gmsa", "web-uninstall", "component=uninstall"}
)

const (
	allReady = `{"metadata": {"generation": 1},
		"status": {"observedGeneration": 1, "desiredNumberScheduled": 2, "numberReady": 2}}`
	ready1 = `{"metadata": {"name": "a"}, "spec": {"nodeName": "win-1"},
		"status": {"conditions": [{"type": "Ready", "status": "True"}]}}`
	ready2 = `{"metadata": {"name": "b"}, "spec": {"nodeName": "win-2"},
		"status": {"conditions": [{"type": "Ready", "status": "True"}]}}`
	running = `{"metadata": {"name": "p"}, "spec": {"nodeName": "win-2"}}`
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
	c.before = func(c *cluster, request string) {
		if strings.HasSuffix(request, "/pods") {
			if lists++; lists == 5 {
				c.pods = nil
			}
		}
	}
	w, progress := watch(t, c)
	if err := w.Stop(t.Context(), web, time.Minute); err != nil {
		t.Fatal(err)
	}
	want := "/apis/apps/v1/namespaces/gmsa/daemonsets/web?propagationPolicy=Background"
	if len(c.deleted) != 1 || c.deleted[0] != want {
		t.Errorf("deleted %q, want %q", c.deleted, want)
	}
	for _, text := range []string{"not now", "win-2", "all pods of DaemonSet gmsa/web have stopped"} {
		if !strings.Contains(progress.String(), text) {
			t.Errorf("the output lacks %q:\n%s", text, progress)
		}
	}
}

func TestStopReportsLateNodesWithoutAnError(t *testing.T) {
	w, progress := watch(t, &cluster{pods: map[string][]string{web.Selector: {running}}})
	if err := w.Stop(t.Context(), web, 20*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(progress.String(), "pods of DaemonSet gmsa/web are still running after 20ms on: win-2;") {
		t.Errorf("output:\n%s", progress)
	}
}

func TestWaitSucceedsWhenAllNodesAreClean(t *testing.T) {
	for name, c := range map[string]*cluster{
		"two nodes":        {set: allReady, pods: map[string][]string{cleaner.Selector: {ready1, ready2}}},
		"no Windows nodes": {set: `{"metadata": {"generation": 1}, "status": {"observedGeneration": 1}}`},
	} {
		w, progress := watch(t, c)
		err := w.Wait(t.Context(), cleaner, web, time.Minute, time.Hour)
		if err != nil || !strings.Contains(progress.String(), "all nodes are clean") {
			t.Errorf("%s: %v\n%s", name, err, progress)
		}
	}
}

// A pod of the stopped DaemonSet can install something just before it stops.
func TestWaitSettlesAfterALatePod(t *testing.T) {
	c := &cluster{set: allReady, pods: map[string][]string{cleaner.Selector: {ready1, ready2}, web.Selector: {running}}}
	requests := 0
	c.before = func(c *cluster, _ string) {
		if requests++; requests == 9 {
			delete(c.pods, web.Selector)
		}
	}
	w, _ := watch(t, c)
	const settle = 100 * time.Millisecond
	start := time.Now()
	if err := w.Wait(t.Context(), cleaner, web, time.Minute, settle); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took < settle {
		t.Errorf("Wait returned after %s", took)
	}
}

func TestWaitReportsNodesAndReasons(t *testing.T) {
	const oneReady = `{"metadata": {"generation": 1},
		"status": {"observedGeneration": 1, "desiredNumberScheduled": 2, "numberReady": 1}}`
	const unbound = `{"metadata": {"name": "b"}, "spec": {"affinity": {"nodeAffinity": {
		"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
			{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["win-3"]}]}]}}}}}`
	const controller = "kube-controller-manager"
	pod := func(status string) string {
		return `{"metadata": {"name": "b"}, "spec": {"nodeName": "win-2"}, "status": ` + status + `}`
	}
	long := strings.Repeat("x", 1000) + "the end"
	for _, test := range []struct {
		name, set string
		pods      []string
		want      []string
	}{
		{
			"a node that is down",
			oneReady,
			[]string{ready1, pod(`{}`)},
			[]string{"win-2 (pod b has not started; check that the node is running)", "kubectl delete node"},
		},
		{"a pod that is not bound", oneReady, []string{ready1, unbound}, []string{"win-3 (pod b has not started"}},
		{
			"a clean-up that fails",
			oneReady,
			[]string{ready1, pod(`{"initContainerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}},
				"lastState": {"terminated": {"exitCode": 1, "reason": "Error", "message": "C:\\x is\nin use"}}}]}`)},
			[]string{`win-2 (pod b: Error C:\x is in use)`},
		},
		{
			"a long message",
			oneReady,
			[]string{ready1, pod(`{"initContainerStatuses": [{"state":
				{"terminated": {"exitCode": 1, "reason": "Error", "message": "` + long + `"}}}]}`)},
			[]string{"xthe end"},
		},
		{
			"an image that cannot be pulled",
			oneReady,
			[]string{ready1, pod(`{"initContainerStatuses": [{"state":
				{"waiting": {"reason": "ImagePullBackOff", "message": "no such tag"}}}]}`)},
			[]string{"ImagePullBackOff no such tag"},
		},
		{"a deleted pod", allReady, []string{ready1}, []string{controller}},
		{"a missing pod", oneReady, []string{ready1}, []string{controller}},
		{
			"an unobserved generation",
			`{"metadata": {"generation": 2}, "status": {"observedGeneration": 1}}`,
			nil,
			[]string{controller},
		},
		{"no DaemonSet", "", nil, []string{"gmsa/web-uninstall", "run helm uninstall again"}},
	} {
		w, _ := watch(t, &cluster{set: test.set, pods: map[string][]string{cleaner.Selector: test.pods}})
		err := w.Wait(t.Context(), cleaner, web, 20*time.Millisecond, 0)
		for _, text := range test.want {
			if err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("%s: %v\nwant %q", test.name, err, text)
			}
		}
		if err != nil && (strings.Contains(err.Error(), "win-1") || len(err.Error()) > 900) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

func TestWaitReportsNodesWithARunningPod(t *testing.T) {
	pods := map[string][]string{cleaner.Selector: {ready1, ready2}, web.Selector: {running}}
	w, _ := watch(t, &cluster{set: allReady, pods: pods})
	err := w.Wait(t.Context(), cleaner, web, 20*time.Millisecond, 0)
	if err == nil || !strings.Contains(err.Error(), "win-2 (pod p is still running)") {
		t.Errorf("%v", err)
	}
}

func TestAForbiddenRequestIsNotRetried(t *testing.T) {
	c := &cluster{status: func(_, _ string) (int, string) { return http.StatusForbidden, "pods is forbidden" }}
	w, _ := watch(t, c)
	for what, err := range map[string]error{
		"stop": w.Stop(t.Context(), web, time.Hour),
		"wait": w.Wait(t.Context(), cleaner, web, time.Hour, 0),
	} {
		for _, text := range []string{"pods is forbidden", "RoleBinding"} {
			if err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("%s: %v\nwant %q", what, err, text)
			}
		}
	}
}

func TestWaitReportsTheLastErrorAtItsTimeLimit(t *testing.T) {
	c := &cluster{status: func(_, _ string) (int, string) { return http.StatusInternalServerError, "etcd is down" }}
	w, _ := watch(t, c)
	err := w.Wait(t.Context(), cleaner, web, 20*time.Millisecond, 0)
	if err == nil || !strings.Contains(err.Error(), "etcd is down") {
		t.Errorf("%v", err)
	}
}

// Attack: while an API server starts, it refuses what it will allow. The hook waits instead of failing with the remedy
// for a missing permission, or of taking the DaemonSet for deleted.
func TestARefusalOfAStartingAPIServerIsRetried(t *testing.T) {
	for _, code := range []int{http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound} {
		c := &cluster{set: allReady, pods: map[string][]string{cleaner.Selector: {ready1, ready2}}}
		refusals := 0
		c.status = func(_, _ string) (int, string) {
			if refusals++; refusals%2 == 1 && refusals < 20 {
				return code, "starting"
			}
			return 0, ""
		}
		var progress strings.Builder
		api := kubetest.NewServer(t, c.serve)
		api.Readyz(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
		w := &Watcher{API: api.Client(t, "test"), Progress: &progress, Every: time.Millisecond}
		if err := w.Stop(t.Context(), web, time.Minute); err != nil || len(c.deleted) != 1 {
			t.Errorf("stop, status %d: %v, deleted %q\n%s", code, err, c.deleted, &progress)
		}
		if err := w.Wait(t.Context(), cleaner, web, time.Minute, 0); err != nil {
			t.Errorf("wait, status %d: %v\n%s", code, err, &progress)
		}
		if refusals < 20 {
			t.Errorf("status %d: %d requests", code, refusals)
		}
	}
}

// A slow API server delays the end by lastCheck at most, and Helm's own limit is a minute longer.
func TestWaitEndsSoonAfterItsTimeLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{set: allReady, pods: map[string][]string{cleaner.Selector: {ready1}}}
		api := kubetest.NewMemoryServer(t, func(w http.ResponseWriter, r *http.Request) {
			select {
			case <-time.After(9 * time.Second):
				c.serve(w, r)
			case <-r.Context().Done():
			}
		})
		w := &Watcher{API: api.Client(t, "test"), Progress: io.Discard, Every: time.Second}
		began := time.Now()
		if err := w.Wait(t.Context(), cleaner, web, 30*time.Second, 0); err == nil {
			t.Error("the nodes are clean")
		}
		if took := time.Since(began); took < 30*time.Second || took > 30*time.Second+lastCheck {
			t.Errorf("took %s", took)
		}
	})
}

// The text of an error contains the port of the connection, which is new in each attempt.
func TestARepeatedErrorIsReportedOnce(t *testing.T) {
	api := kubetest.NewServer(t, nil)
	api.Config.Handler = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	var progress strings.Builder
	client := api.NewClient(t, "test")
	client.DialWith(func(ctx context.Context, _, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err == nil {
			_ = conn.(*net.TCPConn).SetLinger(0)
			conn.Close() // a later read fails with the addresses in the text
		}
		return conn, err
	})
	w := &Watcher{API: client, Progress: &progress, Every: time.Millisecond}
	if _, err := w.until(t.Context(), 200*time.Millisecond, func(ctx context.Context) (bool, string, error) {
		_, err := w.pods(ctx, web)
		return false, "", err
	}); err == nil {
		t.Fatal("no error")
	}
	if n := strings.Count(progress.String(), "retrying"); n != 1 {
		t.Errorf("reported %d times:\n%s", n, &progress)
	}
}
