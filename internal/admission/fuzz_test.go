package admission

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
)

// Whatever comes, nothing panics, and a pod that is allowed has no gMSA whose right to be used was not asked for, nor contents
// other than its GMSACredentialSpec's. The API server is played here, for speed; the real one is in lab/admission.
func FuzzReview(f *testing.F) {
	full := newPod(object{
		"securityContext": windows("web01", spec1), "initContainers": []any{ctr("init", windows("web02", spec2))},
		"containers": []any{ctr("web", windows("web01", spec1)), ctr("plain", nil)}, "ephemeralContainers": []any{ctr("debug", windows("web01", "{}"))},
	})
	f.Add(reviewOf(create, "", full, nil))
	f.Add(reviewOf(create, "", newPod(object{"containers": []any{ctr("web", windows("web01", ""))}}), nil))
	f.Add(reviewOf(create, "", newPod(object{"initContainers": []any{ctr("x", windows("", spec1))}}), nil))
	f.Add(reviewOf(update, "", full, full))
	f.Add(reviewOf(update, ephemeralContainers, full, newPod(nil)))
	f.Add([]byte(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":null}`))
	f.Add([]byte(`{}`))
	a := newAPIServer(f)
	a.may = nil
	h := NewHandler(config(f, a))
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, path := range []string{"/mutate", "/validate"} {
			a.set(func() { a.asked, a.rights = nil, map[string]bool{} })
			w := send(h, path, body)
			if w.Code != http.StatusOK {
				if w.Code < 400 || w.Code > 499 {
					t.Errorf("%s: HTTP status %d: %s", path, w.Code, w.Body)
				}
				continue
			}
			var out review
			if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil || out.Response == nil || out.Response.UID == "" || out.Response.Allowed == (out.Response.Status != nil) {
				t.Errorf("%s: %v: %s", path, err, w.Body)
				continue
			}
			if path == "/validate" && out.Response.Allowed {
				checked(t, a, body)
			}
		}
	})
}

// checked walks the pod by another way than the package does.
func checked(t *testing.T, a *apiServer, body []byte) {
	if !isPlain(body) {
		return // the API server writes no such thing
	}
	var in struct {
		Request struct {
			Operation, Namespace string
			Object               object
		}
	}
	if err := json.Unmarshal(body, &in); err != nil || in.Request.Operation != create {
		return
	}
	spec, _ := in.Request.Object["spec"].(object)
	account, _ := spec["serviceAccountName"].(string)
	if account == "" {
		account = "default"
	}
	holders := []any{spec}
	for _, list := range []string{"containers", "initContainers", "ephemeralContainers"} {
		l, _ := spec[list].([]any)
		holders = append(holders, l...)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, holder := range holders {
		h, _ := holder.(object)
		security, _ := h["securityContext"].(object)
		options, _ := security["windowsOptions"].(object)
		name, _ := options["gmsaCredentialSpecName"].(string)
		contents, _ := options["gmsaCredentialSpec"].(string)
		if name == "" && contents == "" {
			continue
		}
		if !a.rights[in.Request.Namespace+"/"+account+"/"+name] {
			t.Errorf("allowed, but nobody asked whether %s/%s may use %q; asked: %v", in.Request.Namespace, account, name, a.rights)
		}
		var is, want any
		if json.Unmarshal([]byte(contents), &is) != nil || json.Unmarshal([]byte(a.specs[name]), &want) != nil {
			t.Errorf("allowed with contents %q of %q", contents, name)
			continue
		}
		isText, _ := json.Marshal(is)
		wantText, _ := json.Marshal(want)
		if string(isText) != string(wantText) {
			t.Errorf("allowed with contents %q, which are not those of %q", contents, name)
		}
	}
}

// isPlain tells whether no key stands twice in one place, also not in another case.
func isPlain(body []byte) bool {
	v, err := exactJSON(body)
	return err == nil && plainKeys(v)
}

func plainKeys(v any) bool {
	switch v := v.(type) {
	case map[string]any:
		seen := map[string]bool{}
		for k, inner := range v {
			// Go's JSON folds these two letters as well: U+017F and U+212A.
			k = strings.NewReplacer("ſ", "s", "\u212a", "k").Replace(strings.ToLower(k))
			if seen[k] || !plainKeys(inner) || strings.ToLower(k) != k {
				return false
			}
			seen[k] = true
		}
	case []any:
		for _, inner := range v {
			if !plainKeys(inner) {
				return false
			}
		}
	}
	return true
}

// One mutate and one validate of a usual pod, with the requests to an API server that answers at once.
func BenchmarkAdmission(b *testing.B) {
	h := NewHandler(config(b, newAPIServer(b)))
	named := reviewOf(create, "", newPod(object{"securityContext": windows("web01", "")}), nil)
	filled := reviewOf(create, "", newPod(object{"securityContext": windows("web01", spec1)}), nil)
	b.ReportAllocs()
	for b.Loop() {
		for path, body := range map[string][]byte{"/mutate": named, "/validate": filled} {
			if w := send(h, path, body); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), `"allowed":true`) {
				b.Fatalf("%s: %d %s", path, w.Code, w.Body)
			}
		}
	}
}

// The same contents in another order, which are parsed.
func BenchmarkSameContents(b *testing.B) {
	reordered := strings.Replace(spec1, `"CmsPlugins":["ActiveDirectory"],`, "", 1)
	reordered = strings.Replace(reordered, "{", `{"CmsPlugins":["ActiveDirectory"],`, 1)
	b.ReportAllocs()
	for b.Loop() {
		if err := sameContents(reordered, []byte(spec1)); err != nil {
			b.Fatal(err)
		}
	}
}
