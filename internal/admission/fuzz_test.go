package admission

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ccgrkc/ccgrkc/internal/credential"
)

// memory is a Cluster with two GMSACredentialSpecs that every ServiceAccount can use. It records the permission checks.
// The fuzz target needs it because the timing of a network looks like new coverage.
type memory struct {
	mu      sync.Mutex
	checked map[string]bool // namespace/serviceAccount/spec
}

func (*memory) CredentialSpec(_ context.Context, name string) ([]byte, error) {
	if s, ok := inMemory[name]; ok {
		return []byte(s), nil
	}
	return nil, errors.New("not found")
}

func (m *memory) CanUse(_ context.Context, namespace, serviceAccount, name string) (bool, string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.checked[namespace+"/"+serviceAccount+"/"+name] = true
	return true, "", nil
}

func (*memory) Account(_ context.Context, ref credential.Reference) (AccountState, error) {
	return AccountState(len(ref.Secret) % 4), nil
}

// inMemory has short values, because the fuzzer shortens its inputs byte by byte.
var inMemory = map[string]string{
	"a": `{"b":[1]}`,
	"p": withPlugin(pluginClass, `"n:s"`),
}

// No input causes a panic. For each gMSA of an allowed pod, the permission was checked, and the inline credential spec
// equals the GMSACredentialSpec. lab/suites/webhook uses the real API server.
func FuzzReview(f *testing.F) {
	const frame = `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u",` +
		`"kind":{"version":"v1","kind":"Pod"},"resource":{"version":"v1","resource":"pods"},"namespace":"n",`
	a := `{"securityContext":{"windowsOptions":{"gmsaCredentialSpecName":"a","gmsaCredentialSpec":"{\"b\":[1]}"}}}`
	named := strings.Replace(a, `,"gmsaCredentialSpec":"{\"b\":[1]}"`, "", 1)
	smuggled := strings.Replace(a, `"gmsaCredentialSpecName":"a",`, "", 1)
	plugin := strings.Replace(named, `"a"`, `"p"`, 1)
	for _, request := range []string{
		`"operation":"CREATE","object":{"spec":` + a + `}}}`,
		`"operation":"CREATE","object":{"spec":` + named + `}}}`,
		`"operation":"CREATE","object":{"spec":{"containers":[` + a + `],"serviceAccountName":"x"}}}}`,
		`"operation":"CREATE","object":{"spec":{"initContainers":[` + smuggled + `]}}}}`,
		`"operation":"CREATE","object":{"spec":{"ephemeralContainers":[` + plugin + `],"hostNetwork":true}}}}`,
		`"operation":"CREATE","object":{"spec":{"containers":[{}]}}}}`,
		`"operation":"UPDATE","object":{"spec":` + a + `},"oldObject":{"spec":` + a + `}}}`,
		`"operation":"UPDATE","subResource":"ephemeralcontainers",` +
			`"object":{"spec":{"ephemeralContainers":[` + named + `]}},"oldObject":{}}}`,
	} {
		f.Add([]byte(frame + request))
	}
	f.Add([]byte(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":null}`))
	f.Add([]byte(`{}`))
	m := &memory{}
	c := config(f, nil)
	c.Cluster, c.RandomHostname = m, true
	h := &handler{Config: c}
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := readReview(body)
		if err != nil {
			return
		}
		for path, decide := range map[string]decideFunc{"mutate": h.mutate, "validate": h.validate} {
			m.checked = map[string]bool{}
			answer := decide(t.Context(), r)
			answer.encode()
			if answer.Allowed == (answer.Status != nil) || (answer.Patch != nil) != (answer.PatchType != "") ||
				path == "validate" && answer.Patch != nil {
				t.Errorf("%s: %+v", path, answer)
			}
			if path == "validate" && answer.Allowed {
				verifyAllowed(t, m, body)
			}
		}
	})
}

// verifyAllowed finds the gMSA fields independently of the package.
func verifyAllowed(t *testing.T, m *memory, body []byte) {
	v, _, err := exactJSON(body, math.MaxInt)
	if err != nil {
		return // a duplicate key
	}
	root, ok := lowerKeys(v)
	if !ok {
		return
	}
	request := root.(object)["request"].(object)
	if request["operation"] != create {
		return
	}
	spec, _ := request["object"].(object)["spec"].(object)
	account, _ := spec["serviceaccountname"].(string)
	if account == "" {
		account = "default"
	}
	holders := []any{spec}
	for _, list := range []string{"containers", "initcontainers", "ephemeralcontainers"} {
		l, _ := spec[list].([]any)
		holders = append(holders, l...)
	}
	for _, holder := range holders {
		h, _ := holder.(object)
		security, _ := h["securitycontext"].(object)
		options, _ := security["windowsoptions"].(object)
		name, _ := options["gmsacredentialspecname"].(string)
		inline, _ := options["gmsacredentialspec"].(string)
		if name == "" && inline == "" {
			continue
		}
		if use := request["namespace"].(string) + "/" + account + "/" + name; !m.checked[use] {
			t.Errorf("allowed without a permission check of %s; checked: %v", use, m.checked)
		}
		var got, want any
		if json.Unmarshal([]byte(inline), &got) != nil || json.Unmarshal([]byte(inMemory[name]), &want) != nil ||
			!cmp.Equal(got, want) {
			t.Errorf("allowed with inline credential spec %q, which differs from %q", inline, name)
		}
	}
}

// lowerKeys makes all keys lower case, because encoding/json ignores case. It returns false for duplicate keys, which
// the API server never sends.
func lowerKeys(v any) (any, bool) {
	switch v := v.(type) {
	case map[string]any:
		m := object{}
		for k, inner := range v {
			// encoding/json also folds these two letters that are not ASCII.
			k = strings.ToLower(strings.NewReplacer("\u017f", "s", "\u212a", "k").Replace(k))
			f, ok := lowerKeys(inner)
			if _, twice := m[k]; twice || !ok {
				return nil, false
			}
			m[k] = f
		}
		return m, true
	case []any:
		for i := range v {
			f, ok := lowerKeys(v[i])
			if !ok {
				return nil, false
			}
			v[i] = f
		}
	}
	return v, true
}

// One mutate and one validate request for a typical pod.
func BenchmarkAdmission(b *testing.B) {
	b.Run("alone", func(b *testing.B) {
		c := config(b, nil)
		c.Cluster = &memory{checked: map[string]bool{}}
		benchmark(b, NewHandler(c), "p", inMemory["p"])
	})
	b.Run("with requests to an API server", func(b *testing.B) {
		benchmark(b, NewHandler(config(b, newAPIServer(b))), "web01", spec1)
	})
}

func benchmark(b *testing.B, h http.Handler, name, inline string) {
	named := reviewOf(create, "", newPod(object{"securityContext": windows(name, "")}), nil)
	populated := reviewOf(create, "", newPod(object{"securityContext": windows(name, inline)}), nil)
	b.ReportAllocs()
	for b.Loop() {
		for path, body := range map[string][]byte{"/mutate": named, "/validate": populated} {
			w := send(h, path, body)
			if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), `"allowed":true`) {
				b.Fatalf("%s: %d %s", path, w.Code, w.Body)
			}
		}
	}
}

// The keys are in another order, so both sides are decoded.
func BenchmarkSameSpec(b *testing.B) {
	reordered := strings.Replace(spec1, `"CmsPlugins":["ActiveDirectory"],`, "", 1)
	reordered = strings.Replace(reordered, "{", `{"CmsPlugins":["ActiveDirectory"],`, 1)
	b.ReportAllocs()
	for b.Loop() {
		if err := sameSpec(reordered, []byte(spec1)); err != nil {
			b.Fatal(err)
		}
	}
}
