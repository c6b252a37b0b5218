package admission

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestEveryReferenceIsPopulated(t *testing.T) {
	a := newAPIServer(t)
	h := NewHandler(config(t, a))
	pod, answer := admit(t, h, create, "", newPod(object{
		"securityContext": windows("web01", ""),
		"initContainers":  []any{ctr("first", nil), ctr("init", windows("web02", ""))},
		"containers": []any{
			ctr("web", windows("web02", "")),
			ctr("own", windows("web01", spec1)),
			ctr("plain", object{"windowsOptions": object{"runAsUserName": "x"}}),
		},
		"ephemeralContainers": []any{ctr("debug", windows("web01", ""))},
	}), nil)
	wantAllowed(t, answer)
	for _, c := range []struct {
		list string
		i    int
		want string
	}{
		{"", 0, spec1},
		{"initContainers", 0, ""},
		{"initContainers", 1, spec2},
		{"containers", 0, spec2},
		{"containers", 1, spec1},
		{"containers", 2, ""},
		{"ephemeralContainers", 0, spec1},
	} {
		if got := inlineAt(pod, c.list, c.i); got != c.want {
			t.Errorf("%s %d: %q, want %q", c.list, c.i, got, c.want)
		}
	}
	// mutate and validate read each GMSACredentialSpec once.
	if n := len(a.Requests("GET /apis/windows.k8s.io")); n != 4 {
		t.Errorf("GMSACredentialSpecs were read %d times, want 4", n)
	}
	if n := len(a.Requests("POST /apis/authorization.k8s.io")); n != 2 {
		t.Errorf("%d permission checks, want 2", n)
	}
}

func TestAnEmptyInlineSpecIsPopulated(t *testing.T) {
	h := NewHandler(config(t, newAPIServer(t)))
	pod := newPod(nil)
	options := object{"gmsaCredentialSpecName": "web01", "gmsaCredentialSpec": ""}
	pod["spec"].(object)["securityContext"] = object{"windowsOptions": options}
	pod, answer := admit(t, h, create, "", pod, nil)
	wantAllowed(t, answer)
	if inlineAt(pod, "", 0) != spec1 {
		t.Errorf("%v", pod)
	}
}

func TestAnExistingInlineSpecIsNotChanged(t *testing.T) {
	a := newAPIServer(t)
	pod := newPod(object{"securityContext": windows("web01", `{"other":1}`)})
	answer := call(t, NewHandler(config(t, a)), "/mutate", create, "", pod, nil)
	wantAllowed(t, answer)
	if len(answer.Patch) > 0 || len(a.Requests("")) > 0 {
		t.Errorf("patch %s, requests %q", answer.Patch, a.Requests(""))
	}
}

func TestAnUpdatePopulatesOnlyNewContainers(t *testing.T) {
	h := NewHandler(config(t, newAPIServer(t)))
	// This pod is older than the webhook and was never populated.
	before, debug := ctr("before", windows("web01", "")), ctr("debug", windows("web02", ""))
	old := newPod(object{"securityContext": windows("web01", ""), "ephemeralContainers": []any{before}})
	now := newPod(object{"securityContext": windows("web01", ""), "ephemeralContainers": []any{before, debug}})
	pod, answer := admit(t, h, update, ephemeralContainers, now, old)
	wantAllowed(t, answer)
	for i, want := range []string{"", spec2} {
		if inlineAt(pod, "", 0) != "" || inlineAt(pod, "ephemeralContainers", i) != want {
			t.Errorf("%v", pod)
		}
	}
}

func TestUnreadableSpecsAreReported(t *testing.T) {
	fail := func(code int) func(*apiServer) { return func(a *apiServer) { a.Fail(code, "") } }
	for _, c := range []struct {
		name, spec string
		change     func(*apiServer)
		code       int
		want       []string
	}{
		{
			"no object", "web9", nil, 404,
			[]string{"container web: GMSACredentialSpec web9 does not exist;", "kubectl get gmsacredentialspecs"},
		},
		{
			"no CRD", "web01", func(a *apiServer) { a.specs = nil }, 404,
			[]string{
				"container web: GMSACredentialSpec web01 does not exist",
				"no CustomResourceDefinition gmsacredentialspecs.windows.k8s.io",
				"crd.install",
			},
		},
		{"no credspec", "empty", nil, 403, []string{"container web: GMSACredentialSpec empty has no field credspec"}},
		{
			"credspec is a string", "text", func(a *apiServer) { a.specs["text"] = `"{}"` }, 403,
			[]string{"has no field credspec"},
		},
		{
			"API server fails", "web01", fail(500), 503,
			[]string{"container web: could not read GMSACredentialSpec web01; try again: API server: status 500"},
		},
		{"API server is busy", "web01", fail(429), 503, []string{"try again"}},
		{"no permission", "web01", fail(403), 500, []string{"the webhook lacks a permission"}},
		{
			"API server is down", "web01", func(a *apiServer) { a.Close() }, 503,
			[]string{"could not read GMSACredentialSpec web01; try again: "},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := newAPIServer(t)
			h := NewHandler(config(t, a))
			if c.change != nil {
				c.change(a)
			}
			for path, inline := range map[string]string{"/mutate": "", "/validate": spec1} {
				pod := newPod(object{"containers": []any{ctr("web", windows(c.spec, inline))}})
				answer := call(t, h, path, create, "", pod, nil)
				wantDenied(t, answer, c.code, c.want...)
				retry := answer.Status.Details.RetryAfterSeconds > 0
				if retry != (c.code == http.StatusServiceUnavailable) {
					t.Errorf("%s: clients retry: %t", path, retry)
				}
			}
		})
	}
}

// A GMSACredentialSpec that is not in the API server's cache yet is read from etcd.
func TestSpecsAreReadFromTheAPIServersCacheFirst(t *testing.T) {
	a := newAPIServer(t)
	a.uncached = map[string]bool{"web02": true}
	h := NewHandler(config(t, a))
	const path = "GET " + specsPath
	for name, want := range map[string][]string{
		"web01": {path + "web01?resourceVersion=0"},
		"web02": {path + "web02?resourceVersion=0", path + "web02"},
	} {
		a.Reset()
		wantAllowed(t, call(t, h, "/mutate", create, "", newPod(object{"securityContext": windows(name, "")}), nil))
		if diff := cmp.Diff(want, a.Requests("")); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestAPatchHasASizeLimit(t *testing.T) {
	a := newAPIServer(t)
	a.specs["large"] = `{"x":"` + strings.Repeat("x", 60<<10) + `"}`
	h := NewHandler(config(t, a))
	var containers []any
	for i := range 100 {
		containers = append(containers, ctr(fmt.Sprint("c", i), windows("large", "")))
	}
	answer := call(t, h, "/mutate", create, "", newPod(object{"containers": containers}), nil)
	wantDenied(t, answer, 403, "container c4: ", "more than 256 KiB", "reference it once in the pod's securityContext")
	answer = call(t, h, "/mutate", create, "", newPod(object{"containers": containers[:4]}), nil)
	wantAllowed(t, answer)
}

func TestTheNumberOfReferencesIsLimited(t *testing.T) {
	a := newAPIServer(t)
	a.specs["s"] = "{}"
	a.canUse = nil
	h := NewHandler(config(t, a))
	for path, inline := range map[string]string{"/mutate": "", "/validate": "{}"} {
		var containers []any
		for i := range 257 {
			containers = append(containers, ctr(fmt.Sprint("c", i), windows("s", inline)))
		}
		answer := call(t, h, path, create, "", newPod(object{"containers": containers}), nil)
		wantDenied(t, answer, 403, "in 257 places; the maximum is 256", "once in the pod's securityContext")
		_, answer = admit(t, h, create, "", newPod(object{"containers": containers[:256]}), nil)
		wantAllowed(t, answer)
	}
	// Containers without gMSA fields do not count.
	var plain []any
	for i := range 400 {
		plain = append(plain, ctr(fmt.Sprint("c", i), nil))
	}
	_, answer := admit(t, h, create, "", newPod(object{"securityContext": windows("s", ""), "containers": plain}), nil)
	wantAllowed(t, answer)
}

// Attack: every name of a pod is invented, and a controller creates the pod again and again.
func TestAPodWithInventedNamesCostsTwoRequestsASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newMemoryAPIServer(t)
		h := NewHandler(config(t, a))
		pod := func(inline string) object {
			var containers []any
			for i := range 8 {
				containers = append(containers, ctr(fmt.Sprint("c", i), windows(fmt.Sprint("invented", i), inline)))
			}
			return newPod(object{"containers": containers})
		}
		const path = "GET " + specsPath
		for _, want := range [][]string{{path + "invented0?resourceVersion=0", path + "invented0"}, nil, nil} {
			a.Reset()
			wantDenied(t, call(t, h, "/mutate", create, "", pod(""), nil), 404, "GMSACredentialSpec invented0 does not")
			if diff := cmp.Diff(want, a.Requests("")); diff != "" {
				t.Errorf("requests (-want +got)\n%s", diff)
			}
		}
		a.Reset()
		wantDenied(t, call(t, h, "/validate", create, "", pod("{}"), nil), 404, "GMSACredentialSpec invented0 does not")
		if n := len(a.Requests("")); n != 1 { // of the permission
			t.Errorf("requests of validate: %q", a.Requests(""))
		}
		// A new object is found after a second.
		a.set(func() { a.specs["invented0"] = spec2 })
		time.Sleep(missingTTL)
		wantDenied(t, call(t, h, "/mutate", create, "", pod(""), nil), 404, "GMSACredentialSpec invented1 does not")
	})
}

func TestAMissingDefinitionIsReported(t *testing.T) {
	a := newAPIServer(t)
	a.specs = nil
	h := NewHandler(config(t, a))
	pod := newPod(object{"securityContext": windows("web01", "")})
	for range 2 {
		answer := call(t, h, "/mutate", create, "", pod, nil)
		wantDenied(t, answer, 404, "no CustomResourceDefinition gmsacredentialspecs.windows.k8s.io")
	}
}

// Attack: invented names fill the memory.
func TestTheNumberOfRememberedNamesIsLimited(t *testing.T) {
	c := newRecent[int, string](time.Second, 2)
	now := time.Now()
	c.now = func() time.Time { return now }
	for i := range 4 {
		c.put(i, "x")
	}
	if _, ok := c.get(1); !ok || len(c.values) != 2 {
		t.Errorf("the second is remembered: %t; %d values, want 2", ok, len(c.values))
	}
	now = now.Add(time.Second)
	if _, ok := c.get(1); ok {
		t.Error("remembered for more than a second")
	}
	c.put(5, "y")
	if v, ok := c.get(5); !ok || v != "y" || len(c.values) != 1 {
		t.Errorf("after the others expired: %q, %t; %d values, want 1", v, ok, len(c.values))
	}
}

// The API server calls mutating webhooks before it validates the names itself.
func TestInvalidSpecNamesCauseNoRequest(t *testing.T) {
	a := newAPIServer(t)
	h := NewHandler(config(t, a))
	for _, name := range []string{
		"Web01", "a/b", "..", "../../secrets", "a b", "-a", "a.-b", "ä", "a\nb", "a?b=c",
		strings.Repeat("a", 254), strings.Repeat("a", 1<<20),
	} {
		for path, inline := range map[string]string{"/mutate": "", "/validate": spec1} {
			pod := newPod(object{"containers": []any{ctr("web", windows(name, inline))}})
			answer := call(t, h, path, create, "", pod, nil)
			wantDenied(t, answer, 422, "container web: gmsaCredentialSpecName ", "is not a valid name")
			if !answer.Allowed && len(answer.Status.Message) > 1000 {
				t.Errorf("the message has %d bytes", len(answer.Status.Message))
			}
		}
	}
	if len(a.Requests("")) > 0 {
		t.Errorf("requests %q", a.Requests(""))
	}
}

func TestTheNumberOfSpecsIsLimited(t *testing.T) {
	a := newAPIServer(t)
	h := NewHandler(config(t, a))
	var containers []any
	for i := range 9 {
		name := fmt.Sprint("spec", i)
		a.specs[name] = spec2
		containers = append(containers, ctr(fmt.Sprint("c", i), windows(name, "")))
	}
	pod := newPod(object{"containers": containers})
	const text = "references 9 different GMSACredentialSpecs; the maximum is 8"
	wantDenied(t, call(t, h, "/mutate", create, "", pod, nil), 403, text)
	for _, c := range containers {
		options := c.(object)["securityContext"].(object)["windowsOptions"].(object)
		options["gmsaCredentialSpec"] = spec2
	}
	wantDenied(t, call(t, h, "/validate", create, "", pod, nil), 403, text)
	if len(a.Requests("")) > 0 {
		t.Errorf("requests %q", a.Requests(""))
	}
	a.canUse = nil
	eight := newPod(object{"securityContext": windows("spec0", ""), "containers": containers[:8]})
	_, answer := admit(t, h, create, "", eight, nil)
	wantAllowed(t, answer)
}

func TestRandomHostname(t *testing.T) {
	a := newAPIServer(t)
	off := NewHandler(config(t, a))
	c := config(t, a)
	c.RandomHostname = true
	h := NewHandler(c)
	valid := regexp.MustCompile(`^gmsa-[a-z0-9]{10}$`)
	hostname := func(h http.Handler, operation string, pod object, old any) string {
		t.Helper()
		answer := call(t, h, "/mutate", operation, map[string]string{update: ephemeralContainers}[operation], pod, old)
		wantAllowed(t, answer)
		name, _ := patched(t, pod, answer)["spec"].(object)["hostname"].(string)
		return name
	}
	with := func(spec object) object {
		full := object{"containers": []any{ctr("web", windows("web01", ""))}}
		for k, v := range spec {
			full[k] = v
		}
		return newPod(full)
	}
	for name, pod := range map[string]object{
		"inline by the user": newPod(object{"securityContext": windows("web01", spec1)}),
		"in a container":     with(nil),
		"with a subdomain":   with(object{"subdomain": "web"}),
		"as an FQDN":         with(object{"setHostnameAsFQDN": true}),
	} {
		first, second := hostname(h, create, pod, nil), hostname(h, create, pod, nil)
		if !valid.MatchString(first) || first == second {
			t.Errorf("%s: %q, then %q", name, first, second)
		}
	}
	for name, pod := range map[string]object{
		"without a gMSA":          newPod(nil),
		"in the host's network":   with(object{"hostNetwork": true}),
		"with a hostnameOverride": with(object{"hostnameOverride": "mine"}),
	} {
		if got := hostname(h, create, pod, nil); got != "" {
			t.Errorf("%s: %q", name, got)
		}
	}
	if got := hostname(h, create, with(object{"hostname": "mine"}), nil); got != "mine" {
		t.Errorf("the user's host name became %q", got)
	}
	if got := hostname(off, create, with(nil), nil); got != "" {
		t.Errorf("disabled: %q", got)
	}
	if got := hostname(h, update, with(nil), with(nil)); got != "" {
		t.Errorf("existing pod: %q", got)
	}
}

func TestAPatchKeepsEveryCharacter(t *testing.T) {
	a := newAPIServer(t)
	a.specs["odd"] = `{"a":"<&>\u0041\"\\ü😀","n":1.0,"e":1e2,"z":-0}`
	h := NewHandler(config(t, a))
	a.canUse = nil
	pod, answer := admit(t, h, create, "", newPod(object{"securityContext": windows("odd", "")}), nil)
	wantAllowed(t, answer)
	// The fake API server adds a space after commas. Numbers and escapes are unchanged.
	if got := inlineAt(pod, "", 0); got != a.specs["odd"] || !json.Valid([]byte(got)) {
		t.Errorf("%s", got)
	}
}
