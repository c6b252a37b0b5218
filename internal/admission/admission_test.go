package admission

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/kube/kubetest"
)

// apiServer is a fake with a few objects. lab/suites/webhook uses the real one.
type apiServer struct {
	*kubetest.Server

	mu       sync.Mutex
	specs    map[string]string // credspec by name, as JSON; nil: no CRD
	canUse   map[string]bool   // namespace/serviceAccount/spec; nil: every permission
	releases map[string]bool   // namespace:secret
	secrets  map[string]bool   // namespace:secret
	hang     time.Duration     // before the response to a TokenRequest
	slow     time.Duration     // before the response with a GMSACredentialSpec
	uncached map[string]bool   // names of GMSACredentialSpecs that are not in the API server's cache yet
}

func newAPIServer(t testing.TB) *apiServer {
	t.Helper()
	a := withObjects()
	a.Server = kubetest.NewServer(t, a.serve)
	return a
}

// newMemoryAPIServer is for tests in a testing/synctest bubble.
func newMemoryAPIServer(t testing.TB) *apiServer {
	t.Helper()
	a := withObjects()
	a.Server = kubetest.NewMemoryServer(t, a.serve)
	return a
}

func withObjects() *apiServer {
	return &apiServer{
		specs: map[string]string{"web01": spec1, "web02": spec2, "empty": ""},
		canUse: map[string]bool{
			"shop/default/web01": true,
			"shop/default/web02": true,
			"shop/web/web01":     true,
			"shop/default/empty": true,
		},
		releases: map[string]bool{"gmsa-system:web-creds": true},
		secrets:  map[string]bool{"gmsa-system:web-creds": true},
	}
}

const (
	spec1 = `{"ActiveDirectoryConfig":{"GroupManagedServiceAccounts":[{"Name":"web01","Scope":"CORP"}],` +
		`"HostAccountConfig":{"PluginGUID":"{E4781092-F116-4B79-B55E-28EB6A224E26}",` +
		`"PluginInput":"gmsa-system:web-creds","PortableCcgVersion":"1"}},` +
		`"CmsPlugins":["ActiveDirectory"],"x-unknown":[1,{"a":null}]}`
	spec2 = `{"ActiveDirectoryConfig":{"GroupManagedServiceAccounts":[{"Name":"web02","Scope":"CORP"}]},` +
		`"CmsPlugins":["ActiveDirectory"]}`
)

const specsPath = "/apis/windows.k8s.io/v1/gmsacredentialspecs/"

func (a *apiServer) serve(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	hang, slow := a.hang, a.slow
	a.mu.Unlock()
	switch path := r.URL.Path; {
	case strings.HasPrefix(path, specsPath) && r.Method == http.MethodGet:
		time.Sleep(slow)
		a.credentialSpec(w, strings.TrimPrefix(path, specsPath), r.URL.Query().Get("resourceVersion") == "0")
	case path == "/apis/authorization.k8s.io/v1/subjectaccessreviews" && r.Method == http.MethodPost:
		a.accessReview(w, r)
	case strings.HasSuffix(path, "/token") && r.Method == http.MethodPost:
		a.token(w, r, hang)
	default:
		http.NotFound(w, r)
	}
}

func (a *apiServer) credentialSpec(w http.ResponseWriter, name string, fromCache bool) {
	a.mu.Lock()
	spec, ok := a.specs[name]
	ok = ok && !(fromCache && a.uncached[name])
	installed := a.specs != nil
	a.mu.Unlock()
	const head = `{"apiVersion":"windows.k8s.io/v1","kind":"GMSACredentialSpec","metadata":{"name":%q}`
	switch {
	case !installed:
		http.Error(w, "404 page not found", http.StatusNotFound)
	case !ok:
		message := fmt.Sprintf("gmsacredentialspecs.windows.k8s.io %q not found", name)
		kubetest.Status(w, http.StatusNotFound, "gmsacredentialspecs", name, message)
	case spec == "":
		fmt.Fprintf(w, head+`}`, name)
	default:
		// Not compact, and with the same key in another case.
		fmt.Fprintf(w, head+`, "credspec" :  %s, "CredSpec": {}}`, name, strings.ReplaceAll(spec, `,"`, `, "`))
	}
}

func (a *apiServer) accessReview(w http.ResponseWriter, r *http.Request) {
	var review struct {
		Spec struct {
			User               string
			Groups             []string
			ResourceAttributes struct{ Namespace, Verb, Group, Resource, Name string }
		}
	}
	if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
		kubetest.Status(w, http.StatusBadRequest, "", "", err.Error())
		return
	}
	at := review.Spec.ResourceAttributes
	account := strings.TrimPrefix(review.Spec.User, "system:serviceaccount:"+at.Namespace+":")
	groups := []string{"system:serviceaccounts", "system:serviceaccounts:" + at.Namespace, "system:authenticated"}
	a.mu.Lock()
	allowed := at.Verb == "use" && at.Group == "windows.k8s.io" && at.Resource == "gmsacredentialspecs" &&
		slices.Equal(review.Spec.Groups, groups) && (a.canUse == nil || a.canUse[at.Namespace+"/"+account+"/"+at.Name])
	a.mu.Unlock()
	fmt.Fprintf(w, `{"status":{"allowed":%t,"reason":"decided by the test"}}`, allowed)
}

// token checks in the order of the API server: pkg/registry/core/serviceaccount/storage/token.go.
func (a *apiServer) token(w http.ResponseWriter, r *http.Request, hang time.Duration) {
	parts := strings.Split(r.URL.Path, "/") // "" api v1 namespaces NS serviceaccounts NAME token
	namespace, marker := parts[4], parts[6]
	var request struct {
		Spec struct {
			Audiences      []string
			BoundObjectRef struct{ Kind, Name, UID string }
		}
	}
	err := json.NewDecoder(r.Body).Decode(&request)
	bound := request.Spec.BoundObjectRef
	if err != nil || bound.UID == "" || bound.Kind != "Secret" || r.URL.Query().Get("dryRun") != "All" ||
		!slices.Equal(request.Spec.Audiences, []string{"gmsa-secret-probe"}) {
		kubetest.Status(w, http.StatusBadRequest, "", "", "this request could issue a token")
		return
	}
	select {
	case <-time.After(hang):
	case <-r.Context().Done(): // works only after the body is read
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case !a.releases[namespace+":"+strings.TrimPrefix(marker, "gmsa-secret-")]:
		kubetest.Status(w, http.StatusForbidden, "serviceaccounts", marker, "forbidden")
	case !a.secrets[namespace+":"+bound.Name]:
		kubetest.Status(w, http.StatusNotFound, "secrets", bound.Name, fmt.Sprintf("secrets %q not found", bound.Name))
	default:
		kubetest.Status(w, http.StatusConflict, "Secret", bound.Name, "the UID does not match")
	}
}

func (a *apiServer) set(change func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change()
}

// The first summary of the metrics library starts a goroutine that never ends. It must not start in a testing/synctest
// bubble, which waits for all goroutines.
func init() { NewMetrics(func() time.Time { return time.Time{} }).observe("mutate", resultAllowed, 0) }

// config returns a configuration without a Cluster if a is nil.
func config(t testing.TB, a *apiServer) Config {
	c := Config{
		Metrics: NewMetrics(func() time.Time { return time.Time{} }),
		Log:     slog.New(slog.DiscardHandler),
	}
	if a != nil {
		client := a.Client(t, "test")
		client.KeepIdle(64)
		c.Cluster = NewCluster(client)
	}
	return c
}

type object = map[string]any

func windows(name, inline string) object {
	o := object{}
	if name != "" {
		o["gmsaCredentialSpecName"] = name
	}
	if inline != "" {
		o["gmsaCredentialSpec"] = inline
	}
	return object{"windowsOptions": o}
}

func ctr(name string, security object) object {
	c := object{"name": name, "image": "x"}
	if security != nil {
		c["securityContext"] = security
	}
	return c
}

// newPod returns a pod. Its only container is web unless spec contains others.
func newPod(spec object) object {
	full := object{"serviceAccountName": "default", "containers": []any{ctr("web", nil)}}
	for k, v := range spec {
		full[k] = v
	}
	return object{
		"apiVersion": "v1",
		"kind":       "Pod",
		"metadata":   object{"name": "web-1", "namespace": "shop"},
		"spec":       full,
	}
}

func reviewOf(operation, subResource string, pod, old any) []byte {
	r := object{
		"uid":       "u-1",
		"operation": operation,
		"namespace": "shop",
		"name":      "web-1",
		"kind":      object{"group": "", "version": "v1", "kind": "Pod"},
		"resource":  object{"group": "", "version": "v1", "resource": "pods"},
		"object":    pod,
		"oldObject": old,
		"dryRun":    false,
		"userInfo":  object{"username": "alice"},
		"options":   object{"kind": "CreateOptions"},
	}
	if subResource != "" {
		r["subResource"] = subResource
	}
	data, err := json.Marshal(object{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": r})
	if err != nil {
		panic(err)
	}
	return data
}

func send(h http.Handler, path string, body []byte) *httptest.ResponseRecorder {
	return sendWithTimeout(h, path, "5s", body)
}

func sendWithTimeout(h http.Handler, path, timeout string, body []byte) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, path+"?timeout="+timeout, bytes.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func answerOf(t testing.TB, w *httptest.ResponseRecorder) *response {
	t.Helper()
	var v review
	if err := json.Unmarshal(w.Body.Bytes(), &v); err != nil || w.Code != http.StatusOK || v.Response == nil {
		t.Fatalf("HTTP status %d, %v: %s", w.Code, err, w.Body)
	}
	if v.APIVersion != reviewVersion || v.Kind != reviewKind || v.Response.UID != "u-1" {
		t.Fatalf("the API server would reject this: %s", w.Body)
	}
	return v.Response
}

func call(t testing.TB, h http.Handler, path, operation, subResource string, pod, old any) *response {
	t.Helper()
	return answerOf(t, send(h, path, reviewOf(operation, subResource, pod, old)))
}

// admit works like the API server: validate gets the pod that mutate patched.
func admit(t testing.TB, h http.Handler, operation, subResource string, pod, old object) (object, *response) {
	t.Helper()
	answer := call(t, h, "/mutate", operation, subResource, pod, old)
	if !answer.Allowed {
		return pod, answer
	}
	pod = patched(t, pod, answer)
	return pod, call(t, h, "/validate", operation, subResource, pod, old)
}

// patched applies the only operation of these patches, add to a map (RFC 6902).
func patched(t testing.TB, pod object, answer *response) object {
	t.Helper()
	var copied object
	data, err := json.Marshal(pod)
	if err == nil {
		err = json.Unmarshal(data, &copied)
	}
	if err != nil {
		t.Fatal(err)
	}
	if (len(answer.Patch) > 0) != (answer.PatchType == "JSONPatch") {
		t.Fatalf("patchType %q of patch %q", answer.PatchType, answer.Patch)
	}
	if len(answer.Patch) == 0 {
		return copied
	}
	var patch []struct{ Op, Path, Value string }
	if err := json.Unmarshal(answer.Patch, &patch); err != nil {
		t.Fatal(err)
	}
	for _, p := range patch {
		var at any = copied
		keys := strings.Split(p.Path, "/")[1:]
		for _, key := range keys[:len(keys)-1] {
			switch v := at.(type) {
			case object:
				at = v[key]
			case []any:
				i, err := strconv.Atoi(key)
				if err != nil || i >= len(v) {
					t.Fatalf("no element %s of %s", key, p.Path)
				}
				at = v[i]
			}
		}
		m, ok := at.(object)
		if p.Op != "add" || !ok {
			t.Fatalf("cannot %s %s", p.Op, p.Path)
		}
		m[keys[len(keys)-1]] = p.Value
	}
	return copied
}

// inlineAt returns gmsaCredentialSpec of an element of a container list, or with list "" of the pod.
func inlineAt(pod object, list string, i int) string {
	at := pod["spec"].(object)
	if list != "" {
		at = at[list].([]any)[i].(object)
	}
	security, _ := at["securityContext"].(object)
	options, _ := security["windowsOptions"].(object)
	inline, _ := options["gmsaCredentialSpec"].(string)
	return inline
}

func wantAllowed(t testing.TB, answer *response) {
	t.Helper()
	if !answer.Allowed {
		t.Errorf("denied: %d %s", answer.Status.Code, answer.Status.Message)
	}
}

func wantDenied(t testing.TB, answer *response, code int, texts ...string) {
	t.Helper()
	if answer.Allowed {
		t.Errorf("allowed; want %d, %q", code, texts)
		return
	}
	if answer.Status.Code != code || answer.Status.Reason == "" {
		t.Errorf("denied with %d %q; want %d", answer.Status.Code, answer.Status.Reason, code)
	}
	d := answer.Status.Details
	if answer.Status.Status != "Failure" || d == nil || d.Name == "" || d.Kind == "" {
		t.Errorf("the status is incomplete: %+v, details %+v", answer.Status, d)
	}
	for _, text := range texts {
		if !strings.Contains(answer.Status.Message, text) {
			t.Errorf("%q lacks %q", answer.Status.Message, text)
		}
	}
}
