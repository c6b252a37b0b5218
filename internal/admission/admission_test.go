package admission

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/kube"
)

// apiServer stands in for the API server, so that a test can have it fail and count what it is asked. The real one is asked in lab/suites/webhook.
type apiServer struct {
	*httptest.Server

	mu       sync.Mutex
	specs    map[string]string // credspec by name, as JSON
	may      map[string]bool   // namespace/serviceAccount/spec; everyone may everything if it is nil
	releases map[string]bool   // namespace:secret
	secrets  map[string]bool   // namespace:secret
	code     int               // if it is not 0, every answer ...
	only     string            // ... to requests that begin so
	hang     time.Duration     // before answering for an account
	slow     time.Duration     // before answering for a GMSACredentialSpec
	unseen   map[string]bool   // names of GMSACredentialSpecs that are not in memory yet
	asked    []string          // requests, in their order
	rights   map[string]bool   // namespace/serviceAccount/spec that a SubjectAccessReview asked for
}

func newAPIServer(t testing.TB) *apiServer {
	t.Helper()
	a := &apiServer{
		specs:    map[string]string{"web01": spec1, "web02": spec2, "empty": ""},
		may:      map[string]bool{"shop/default/web01": true, "shop/default/web02": true, "shop/web/web01": true, "shop/default/empty": true},
		releases: map[string]bool{"gmsa-system:web-creds": true},
		secrets:  map[string]bool{"gmsa-system:web-creds": true},
		rights:   map[string]bool{},
	}
	a.Server = httptest.NewTLSServer(a)
	t.Cleanup(a.Close)
	return a
}

const (
	spec1 = `{"ActiveDirectoryConfig":{"GroupManagedServiceAccounts":[{"Name":"web01","Scope":"CORP"}],"HostAccountConfig":{"PluginGUID":"{E4781092-F116-4B79-B55E-28EB6A224E26}","PluginInput":"gmsa-system:web-creds","PortableCcgVersion":"1"}},"CmsPlugins":["ActiveDirectory"],"x-unknown":[1,{"a":null}]}`
	spec2 = `{"ActiveDirectoryConfig":{"GroupManagedServiceAccounts":[{"Name":"web02","Scope":"CORP"}]},"CmsPlugins":["ActiveDirectory"]}`
)

func (a *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	a.asked = append(a.asked, r.Method+" "+r.URL.RequestURI())
	code, hang, slow := a.code, a.hang, a.slow
	fails := code != 0 && strings.HasPrefix(r.Method+" "+r.URL.Path, a.only)
	a.mu.Unlock()
	if fails {
		a.refuse(w, code, "", "", "as the test has it")
		return
	}
	switch path := r.URL.Path; {
	case strings.HasPrefix(path, "/apis/windows.k8s.io/v1/gmsacredentialspecs/") && r.Method == http.MethodGet:
		time.Sleep(slow)
		a.credentialSpec(w, strings.TrimPrefix(path, "/apis/windows.k8s.io/v1/gmsacredentialspecs/"), r.URL.Query().Get("resourceVersion") == "0")
	case path == "/apis/authorization.k8s.io/v1/subjectaccessreviews" && r.Method == http.MethodPost:
		a.accessReview(w, r)
	case strings.HasSuffix(path, "/token") && r.Method == http.MethodPost:
		a.token(w, r, hang)
	default:
		http.NotFound(w, r)
	}
}

func (a *apiServer) credentialSpec(w http.ResponseWriter, name string, fromMemory bool) {
	a.mu.Lock()
	spec, ok := a.specs[name]
	ok = ok && !(fromMemory && a.unseen[name])
	installed := a.specs != nil
	a.mu.Unlock()
	switch {
	case !installed:
		http.Error(w, "404 page not found", http.StatusNotFound)
	case !ok:
		a.refuse(w, http.StatusNotFound, "gmsacredentialspecs", name, fmt.Sprintf("gmsacredentialspecs.windows.k8s.io %q not found", name))
	case spec == "":
		fmt.Fprintf(w, `{"apiVersion":"windows.k8s.io/v1","kind":"GMSACredentialSpec","metadata":{"name":%q}}`, name)
	default:
		// Not compact, and with a key in another case beside it.
		fmt.Fprintf(w, `{"apiVersion":"windows.k8s.io/v1","kind":"GMSACredentialSpec","metadata":{"name":%q}, "credspec" :  %s, "CredSpec": {}}`, name, strings.ReplaceAll(spec, `,"`, `, "`))
	}
}

func (a *apiServer) accessReview(w http.ResponseWriter, r *http.Request) {
	var ask struct {
		Spec struct {
			User               string
			Groups             []string
			ResourceAttributes struct{ Namespace, Verb, Group, Resource, Name string }
		}
	}
	if err := json.NewDecoder(r.Body).Decode(&ask); err != nil {
		a.refuse(w, http.StatusBadRequest, "", "", err.Error())
		return
	}
	at := ask.Spec.ResourceAttributes
	account := strings.TrimPrefix(ask.Spec.User, "system:serviceaccount:"+at.Namespace+":")
	groups := []string{"system:serviceaccounts", "system:serviceaccounts:" + at.Namespace, "system:authenticated"}
	right := at.Namespace + "/" + account + "/" + at.Name
	a.mu.Lock()
	a.rights[right] = true
	allowed := at.Verb == "use" && at.Group == "windows.k8s.io" && at.Resource == "gmsacredentialspecs" && slices.Equal(ask.Spec.Groups, groups) && (a.may == nil || a.may[right])
	a.mu.Unlock()
	fmt.Fprintf(w, `{"status":{"allowed":%t,"reason":"the test says so"}}`, allowed)
}

// token answers in the order in which the real one looks: pkg/registry/core/serviceaccount/storage/token.go.
func (a *apiServer) token(w http.ResponseWriter, r *http.Request, hang time.Duration) {
	parts := strings.Split(r.URL.Path, "/") // "" api v1 namespaces NS serviceaccounts NAME token
	namespace, marker := parts[4], parts[6]
	var ask struct {
		Spec struct {
			BoundObjectRef struct{ Kind, Name, UID string }
		}
	}
	if err := json.NewDecoder(r.Body).Decode(&ask); err != nil || ask.Spec.BoundObjectRef.UID == "" || ask.Spec.BoundObjectRef.Kind != "Secret" || r.URL.Query().Get("dryRun") != "All" {
		a.refuse(w, http.StatusBadRequest, "", "", "this asks for a token")
		return
	}
	select {
	case <-time.After(hang):
	case <-r.Context().Done(): // which is seen only once the body is read
	}
	secret := ask.Spec.BoundObjectRef.Name
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case !a.releases[namespace+":"+strings.TrimPrefix(marker, "gmsa-secret-")]:
		a.refuse(w, http.StatusForbidden, "serviceaccounts", marker, "forbidden")
	case !a.secrets[namespace+":"+secret]:
		a.refuse(w, http.StatusNotFound, "secrets", secret, fmt.Sprintf("secrets %q not found", secret))
	default:
		a.refuse(w, http.StatusConflict, "Secret", secret, "the UID does not match")
	}
}

func (a *apiServer) refuse(w http.ResponseWriter, code int, kind, name, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","code":%d,"message":%q,"details":{"kind":%q,"name":%q}}`, code, message, kind, name)
}

// requests returns how often something was asked that begins so.
func (a *apiServer) requests(prefix string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := 0
	for _, r := range a.asked {
		if strings.HasPrefix(r, prefix) {
			n++
		}
	}
	return n
}

func (a *apiServer) set(change func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change()
}

// client asks this API server as the product does.
func (a *apiServer) client(t testing.TB) *kube.Client {
	t.Helper()
	dir := t.TempDir()
	server := kube.Server{URL: a.URL, TokenFile: filepath.Join(dir, "token"), CAFile: filepath.Join(dir, "ca.crt")}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Certificate().Raw})
	for file, content := range map[string][]byte{server.TokenFile: []byte("token"), server.CAFile: ca} {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	client, err := kube.NewClient(server, "test")
	if err != nil {
		t.Fatal(err)
	}
	client.KeepIdle(64)
	return client
}

// config has no Cluster if there is no API server.
func config(t testing.TB, a *apiServer) Config {
	c := Config{
		Metrics: NewMetrics(func() time.Time { return time.Time{} }),
		Log:     slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	if a != nil {
		c.Cluster = NewCluster(a.client(t))
	}
	return c
}

// object is a pod's JSON in the making.
type object = map[string]any

func windows(name, contents string) object {
	o := object{}
	if name != "" {
		o["gmsaCredentialSpecName"] = name
	}
	if contents != "" {
		o["gmsaCredentialSpec"] = contents
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

// newPod has one container, web, unless spec says otherwise.
func newPod(spec object) object {
	full := object{"serviceAccountName": "default", "containers": []any{ctr("web", nil)}}
	for k, v := range spec {
		full[k] = v
	}
	return object{"apiVersion": "v1", "kind": "Pod", "metadata": object{"name": "web-1", "namespace": "shop"}, "spec": full}
}

func reviewOf(operation, subResource string, pod, old any) []byte {
	r := object{
		"uid": "u-1", "operation": operation, "namespace": "shop", "name": "web-1",
		"kind":     object{"group": "", "version": "v1", "kind": "Pod"},
		"resource": object{"group": "", "version": "v1", "resource": "pods"},
		"object":   pod, "oldObject": old, "dryRun": false,
		"userInfo": object{"username": "alice"}, "options": object{"kind": "CreateOptions"},
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
	r := httptest.NewRequest(http.MethodPost, path+"?timeout=5s", bytes.NewReader(body))
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
		t.Fatalf("the API server would not take this: %s", w.Body)
	}
	return v.Response
}

func ask(t testing.TB, h http.Handler, path, operation, subResource string, pod, old any) *response {
	t.Helper()
	return answerOf(t, send(h, path, reviewOf(operation, subResource, pod, old)))
}

// admit does as the API server: what mutate patches, validate sees.
func admit(t testing.TB, h http.Handler, operation, subResource string, pod, old object) (object, *response) {
	t.Helper()
	answer := ask(t, h, "/mutate", operation, subResource, pod, old)
	if !answer.Allowed {
		return pod, answer
	}
	pod = patched(t, pod, answer)
	return pod, ask(t, h, "/validate", operation, subResource, pod, old)
}

// patched applies the one operation that patches have here, add to a map (RFC 6902).
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

// contentsAt reads gmsaCredentialSpec at a list and an index of a pod's spec, and the pod's own with "".
func contentsAt(pod object, list string, i int) string {
	at := pod["spec"].(object)
	if list != "" {
		at = at[list].([]any)[i].(object)
	}
	security, _ := at["securityContext"].(object)
	options, _ := security["windowsOptions"].(object)
	contents, _ := options["gmsaCredentialSpec"].(string)
	return contents
}

func wantAllowed(t testing.TB, answer *response) {
	t.Helper()
	if !answer.Allowed {
		t.Errorf("denied: %d %s", answer.Status.Code, answer.Status.Message)
	}
}

func wantDenied(t testing.TB, answer *response, code int, says ...string) {
	t.Helper()
	if answer.Allowed {
		t.Errorf("allowed; want %d, %q", code, says)
		return
	}
	if answer.Status.Code != code || answer.Status.Reason == "" {
		t.Errorf("denied with %d %q; want %d", answer.Status.Code, answer.Status.Reason, code)
	}
	for _, text := range says {
		if !strings.Contains(answer.Status.Message, text) {
			t.Errorf("%q does not say %q", answer.Status.Message, text)
		}
	}
}
