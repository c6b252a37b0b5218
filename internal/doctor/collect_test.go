package doctor

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/rest"

	"github.com/ccgrkc/ccgrkc/internal/inventory"
	"github.com/ccgrkc/ccgrkc/internal/verify"
)

// Collect runs programs on nodes while it reads the other kinds. go test -race detects data races between the two. The
// API server is a fake, because the lab runs a program without the race detector. It returns nodes and denies
// everything else.
func TestCollectChecksNodesWhileItReadsOtherKinds(t *testing.T) {
	t.Parallel()
	list := corev1.NodeList{TypeMeta: metav1.TypeMeta{Kind: "NodeList", APIVersion: "v1"},
		Items: []corev1.Node{node("win-1", nil), node("win-2", nil)}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		var answer any
		switch r.URL.Path {
		case "/version":
			answer = version.Info{Major: "1"}
		case "/api/v1/nodes":
			answer = list
		default:
			w.WriteHeader(http.StatusForbidden)
			answer = metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
				Status: metav1.StatusFailure, Code: http.StatusForbidden, Reason: metav1.StatusReasonForbidden}
		}
		if err := json.NewEncoder(w).Encode(answer); err != nil {
			t.Error(err)
		}
	}))
	defer server.Close()
	cluster, err := inventory.New(&rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	o, err := Collect(t.Context(), cluster, "gmsactl", Scope{CheckNodes: true, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if len(o.NodeResults) != 2 {
		t.Fatalf("%+v", o)
	}
	for _, result := range o.NodeResults {
		for _, s := range result.Steps {
			if s.Name == verify.StepInstaller && s.Permission != inventory.Permission("list", "daemonsets.apps", "") {
				t.Errorf("node %s: %+v", result.Node, s)
			}
		}
	}
}
