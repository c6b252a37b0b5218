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

// Nodes are looked at from within while the other kinds are read: go test -race sees whether they get in each other's way. The
// API server is a fake, since the program that the lab runs is built without the race detector. It has nodes, and refuses the rest.
func TestNodesAreLookedAtFromWithinWhileTheRestIsRead(t *testing.T) {
	t.Parallel()
	list := corev1.NodeList{TypeMeta: metav1.TypeMeta{Kind: "NodeList", APIVersion: "v1"}, Items: []corev1.Node{node("win-1", nil), node("win-2", nil)}}
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
			answer = metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Code: http.StatusForbidden, Reason: metav1.StatusReasonForbidden}
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
	o, err := Collect(t.Context(), cluster, "gmsactl", Scope{Inside: true, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if len(o.NodeResults) != 2 {
		t.Fatalf("%+v", o)
	}
	for _, result := range o.NodeResults {
		for _, s := range result.Steps {
			if s.Name == verify.StepInstaller && s.Right != inventory.Right("list", "daemonsets.apps", "") {
				t.Errorf("node %s: %+v", result.Node, s)
			}
		}
	}
}
