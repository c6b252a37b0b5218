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

// memory is a cluster of two GMSACredentialSpecs that everybody may use, and that writes down who asked for it. A fuzz target
// needs one without a network, whose timing would pass for new coverage.
type memory struct {
	mu     sync.Mutex
	rights map[string]bool
}

func (*memory) CredentialSpec(_ context.Context, name string) ([]byte, error) {
	if s, ok := inMemory[name]; ok {
		return []byte(s), nil
	}
	return nil, errors.New("there is none")
}

func (m *memory) MayUse(_ context.Context, namespace, serviceAccount, name string) (bool, string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rights[namespace+"/"+serviceAccount+"/"+name] = true
	return true, "", nil
}

func (*memory) Account(_ context.Context, ref credential.Reference) (Account, error) {
	return Account(len(ref.Secret) % 4), nil
}

// inMemory is short, for the fuzzer makes each input as short as it can, byte by byte.
var inMemory = map[string]string{
	"a": `{"b":[1]}`,
	"p": `{"ActiveDirectoryConfig":{"HostAccountConfig":{"PluginGUID":"{E4781092-F116-4B79-B55E-28EB6A224E26}","PluginInput":"n:s"}}}`,
}

// Whatever comes, nothing panics, and a pod that is allowed has no gMSA whose right to be used was not asked for, nor contents
// other than its GMSACredentialSpec's. The real API server is asked in lab/suites/webhook.
func FuzzReview(f *testing.F) {
	const frame = `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u","kind":{"version":"v1","kind":"Pod"},"resource":{"version":"v1","resource":"pods"},"namespace":"n",`
	a := `{"securityContext":{"windowsOptions":{"gmsaCredentialSpecName":"a","gmsaCredentialSpec":"{\"b\":[1]}"}}}`
	named := strings.Replace(a, `,"gmsaCredentialSpec":"{\"b\":[1]}"`, "", 1)
	smuggled := strings.Replace(a, `"gmsaCredentialSpecName":"a",`, "", 1)
	for _, request := range []string{
		`"operation":"CREATE","object":{"spec":` + a + `}}}`,
		`"operation":"CREATE","object":{"spec":` + named + `}}}`,
		`"operation":"CREATE","object":{"spec":{"containers":[` + a + `],"serviceAccountName":"x"}}}}`,
		`"operation":"CREATE","object":{"spec":{"initContainers":[` + smuggled + `]}}}}`,
		`"operation":"CREATE","object":{"spec":{"ephemeralContainers":[` + strings.Replace(named, `"a"`, `"p"`, 1) + `],"hostNetwork":true}}}}`,
		`"operation":"CREATE","object":{"spec":{"containers":[{}]}}}}`,
		`"operation":"UPDATE","object":{"spec":` + a + `},"oldObject":{"spec":` + a + `}}}`,
		`"operation":"UPDATE","subResource":"ephemeralcontainers","object":{"spec":{"ephemeralContainers":[` + named + `]}},"oldObject":{}}}`,
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
		for path, decide := range map[string]func(context.Context, *request) *response{"mutate": h.mutate, "validate": h.validate} {
			m.rights = map[string]bool{}
			answer := decide(t.Context(), r)
			answer.encode()
			if answer.Allowed == (answer.Status != nil) || (answer.Patch != nil) != (answer.PatchType != "") || path == "validate" && answer.Patch != nil {
				t.Errorf("%s: %+v", path, answer)
			}
			if path == "validate" && answer.Allowed {
				checked(t, m, body)
			}
		}
	})
}

// checked walks the pod by another way than the package does.
func checked(t *testing.T, m *memory, body []byte) {
	v, _, err := exactJSON(body, math.MaxInt)
	if err != nil {
		return // a key stands twice
	}
	root, ok := folded(v)
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
		contents, _ := options["gmsacredentialspec"].(string)
		if name == "" && contents == "" {
			continue
		}
		if right := request["namespace"].(string) + "/" + account + "/" + name; !m.rights[right] {
			t.Errorf("allowed, but nobody asked for the right %s; asked: %v", right, m.rights)
		}
		var is, want any
		if json.Unmarshal([]byte(contents), &is) != nil || json.Unmarshal([]byte(inMemory[name]), &want) != nil || !cmp.Equal(is, want) {
			t.Errorf("allowed with contents %q, which are not those of %q", contents, name)
		}
	}
}

// folded makes all keys lower case, as Go's JSON does not tell them apart; it reports false if a key stands twice then. The API
// server, which sends what it has read, writes no such thing.
func folded(v any) (any, bool) {
	switch v := v.(type) {
	case map[string]any:
		m := object{}
		for k, inner := range v {
			// Two letters besides ASCII's are folded: U+017F and U+212A.
			k = strings.ToLower(strings.NewReplacer("\u017f", "s", "\u212a", "k").Replace(k))
			f, ok := folded(inner)
			if _, twice := m[k]; twice || !ok {
				return nil, false
			}
			m[k] = f
		}
		return m, true
	case []any:
		for i := range v {
			f, ok := folded(v[i])
			if !ok {
				return nil, false
			}
			v[i] = f
		}
	}
	return v, true
}

// One mutate and one validate of a usual pod.
func BenchmarkAdmission(b *testing.B) {
	b.Run("alone", func(b *testing.B) {
		c := config(b, nil)
		c.Cluster = &memory{rights: map[string]bool{}}
		benchmark(b, NewHandler(c), "p", inMemory["p"])
	})
	b.Run("with requests to an API server that answers at once", func(b *testing.B) {
		benchmark(b, NewHandler(config(b, newAPIServer(b))), "web01", spec1)
	})
}

func benchmark(b *testing.B, h http.Handler, name, contents string) {
	named := reviewOf(create, "", newPod(object{"securityContext": windows(name, "")}), nil)
	filled := reviewOf(create, "", newPod(object{"securityContext": windows(name, contents)}), nil)
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
