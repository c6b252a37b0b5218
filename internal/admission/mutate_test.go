package admission

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestContentsAreCopiedToEveryPlaceThatNamesThem(t *testing.T) {
	a := newAPIServer(t)
	h := NewHandler(config(t, a))
	pod, answer := admit(t, h, create, "", newPod(object{
		"securityContext":     windows("web01", ""),
		"initContainers":      []any{ctr("first", nil), ctr("init", windows("web02", ""))},
		"containers":          []any{ctr("web", windows("web02", "")), ctr("own", windows("web01", spec1)), ctr("plain", object{"windowsOptions": object{"runAsUserName": "x"}})},
		"ephemeralContainers": []any{ctr("debug", windows("web01", ""))},
	}), nil)
	wantAllowed(t, answer)
	for _, c := range []struct {
		list string
		i    int
		want string
	}{
		{"", 0, spec1}, {"initContainers", 0, ""}, {"initContainers", 1, spec2}, {"containers", 0, spec2}, {"containers", 1, spec1},
		{"containers", 2, ""}, {"ephemeralContainers", 0, spec1},
	} {
		if got := contentsAt(pod, c.list, c.i); got != c.want {
			t.Errorf("%s %d: %q, want %q", c.list, c.i, got, c.want)
		}
	}
	// Each is read once for mutate and once for validate, however many places name it.
	if n := a.requests("GET /apis/windows.k8s.io"); n != 4 {
		t.Errorf("GMSACredentialSpecs were read %d times, want 4", n)
	}
	if n := a.requests("POST /apis/authorization.k8s.io"); n != 2 {
		t.Errorf("rights were asked for %d times, want 2", n)
	}
}

func TestAnEmptyTextIsNoContents(t *testing.T) {
	h := NewHandler(config(t, newAPIServer(t)))
	pod := newPod(nil)
	pod["spec"].(object)["securityContext"] = object{"windowsOptions": object{"gmsaCredentialSpecName": "web01", "gmsaCredentialSpec": ""}}
	pod, answer := admit(t, h, create, "", pod, nil)
	wantAllowed(t, answer)
	if contentsAt(pod, "", 0) != spec1 {
		t.Errorf("%v", pod)
	}
}

func TestContentsOfTheUserAreLeftToValidation(t *testing.T) {
	a := newAPIServer(t)
	answer := ask(t, NewHandler(config(t, a)), "/mutate", create, "", newPod(object{"securityContext": windows("web01", `{"other":1}`)}), nil)
	wantAllowed(t, answer)
	if len(answer.Patch) > 0 || len(a.asked) > 0 {
		t.Errorf("patch %s, asked %q", answer.Patch, a.asked)
	}
}

func TestOnlyNewEphemeralContainersAreFilledInLater(t *testing.T) {
	h := NewHandler(config(t, newAPIServer(t)))
	// It was there before the webhook was, and has no contents.
	old := newPod(object{"securityContext": windows("web01", ""), "ephemeralContainers": []any{ctr("before", windows("web01", ""))}})
	now := newPod(object{"securityContext": windows("web01", ""), "ephemeralContainers": []any{ctr("before", windows("web01", "")), ctr("debug", windows("web02", ""))}})
	pod, answer := admit(t, h, update, ephemeralContainers, now, old)
	wantAllowed(t, answer)
	if contentsAt(pod, "", 0) != "" || contentsAt(pod, "ephemeralContainers", 0) != "" || contentsAt(pod, "ephemeralContainers", 1) != spec2 {
		t.Errorf("%v", pod)
	}
}

func TestWhatCannotBeReadIsToldByName(t *testing.T) {
	for _, c := range []struct {
		name, spec string
		change     func(*apiServer)
		code       int
		says       []string
	}{
		{"no such object", "web9", nil, 404, []string{"container web: there is no GMSACredentialSpec web9;", "kubectl get gmsacredentialspecs"}},
		{"no such kind", "web01", func(a *apiServer) { a.specs = nil }, 404, []string{"container web: there is no GMSACredentialSpec web01", "no CustomResourceDefinition gmsacredentialspecs.windows.k8s.io", "crd.install"}},
		{"no contents", "empty", nil, 403, []string{"container web: GMSACredentialSpec empty has no credspec"}},
		{"contents are a text", "text", func(a *apiServer) { a.specs["text"] = `"{}"` }, 403, []string{"has no credspec"}},
		{"API server fails", "web01", func(a *apiServer) { a.code = 500 }, 503, []string{"container web: GMSACredentialSpec web01 could not be read, try again: API server: status 500"}},
		{"API server is busy", "web01", func(a *apiServer) { a.code = 429 }, 503, []string{"try again"}},
		{"own rights are gone", "web01", func(a *apiServer) { a.code = 403 }, 500, []string{"the webhook's own rights are missing"}},
		{"API server is away", "web01", func(a *apiServer) { a.Server.Close() }, 503, []string{"GMSACredentialSpec web01 could not be read, try again: "}},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := newAPIServer(t)
			h := NewHandler(config(t, a))
			if c.change != nil {
				c.change(a)
			}
			for path, pod := range map[string]object{
				"/mutate":   newPod(object{"containers": []any{ctr("web", windows(c.spec, ""))}}),
				"/validate": newPod(object{"containers": []any{ctr("web", windows(c.spec, spec1))}}),
			} {
				answer := ask(t, h, path, create, "", pod, nil)
				wantDenied(t, answer, c.code, c.says...)
				if retry := answer.Status.Details != nil; retry != (c.code == http.StatusServiceUnavailable) {
					t.Errorf("%s: clients are told to try again: %t", path, retry)
				}
			}
		})
	}
}

// The API server's memory answers, and what it does not know yet is asked of etcd.
func TestAGMSACredentialSpecIsReadFromTheAPIServersMemoryFirst(t *testing.T) {
	a := newAPIServer(t)
	a.unseen = map[string]bool{"web02": true}
	h := NewHandler(config(t, a))
	const path = "GET /apis/windows.k8s.io/v1/gmsacredentialspecs/"
	for name, asks := range map[string][]string{
		"web01": {path + "web01?resourceVersion=0"},
		"web02": {path + "web02?resourceVersion=0", path + "web02"},
	} {
		a.asked = nil
		wantAllowed(t, ask(t, h, "/mutate", create, "", newPod(object{"securityContext": windows(name, "")}), nil))
		if diff := cmp.Diff(asks, a.asked); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestOnePatchDoesNotGrowBeyondWhatManyAtOnceMayTake(t *testing.T) {
	a := newAPIServer(t)
	a.specs["large"] = `{"x":"` + strings.Repeat("x", 60<<10) + `"}`
	h := NewHandler(config(t, a))
	var containers []any
	for i := range 100 {
		containers = append(containers, ctr(fmt.Sprint("c", i), windows("large", "")))
	}
	wantDenied(t, ask(t, h, "/mutate", create, "", newPod(object{"containers": containers}), nil), 403, "container c4: ", "more than 256 KiB", "name it once in the pod's securityContext")
	answer := ask(t, h, "/mutate", create, "", newPod(object{"containers": containers[:4]}), nil)
	wantAllowed(t, answer)
}

func TestOnePodHasNotThousandsOfPlaces(t *testing.T) {
	a := newAPIServer(t)
	a.specs["s"] = "{}"
	a.may = nil
	h := NewHandler(config(t, a))
	for _, contents := range []string{"", "{}"} {
		var containers []any
		for i := range 257 {
			containers = append(containers, ctr(fmt.Sprint("c", i), windows("s", contents)))
		}
		path := map[string]string{"": "/mutate", "{}": "/validate"}[contents]
		wantDenied(t, ask(t, h, path, create, "", newPod(object{"containers": containers}), nil), 403, "in 257 places, and may in 256", "once in the pod's securityContext")
		_, answer := admit(t, h, create, "", newPod(object{"containers": containers[:256]}), nil)
		wantAllowed(t, answer)
	}
	// A container without a word of it is none.
	var plain []any
	for i := range 400 {
		plain = append(plain, ctr(fmt.Sprint("c", i), nil))
	}
	_, answer := admit(t, h, create, "", newPod(object{"securityContext": windows("s", ""), "containers": plain}), nil)
	wantAllowed(t, answer)
}

// The API server asks to mutate before it looks at the names itself.
func TestANameThatNoObjectCanHaveIsNotAskedFor(t *testing.T) {
	a := newAPIServer(t)
	h := NewHandler(config(t, a))
	for _, name := range []string{"Web01", "a/b", "..", "../../secrets", "a b", "-a", "a.-b", "ä", "a\nb", "a?b=c", strings.Repeat("a", 254), strings.Repeat("a", 1<<20)} {
		for path, contents := range map[string]string{"/mutate": "", "/validate": spec1} {
			answer := ask(t, h, path, create, "", newPod(object{"containers": []any{ctr("web", windows(name, contents))}}), nil)
			wantDenied(t, answer, 422, "container web: gmsaCredentialSpecName ", "is no name that a GMSACredentialSpec can have")
			if !answer.Allowed && len(answer.Status.Message) > 1000 {
				t.Errorf("%d bytes say so", len(answer.Status.Message))
			}
		}
	}
	if len(a.asked) > 0 {
		t.Errorf("asked %q", a.asked)
	}
}

func TestOnePodDoesNotMakeThousandsOfQuestions(t *testing.T) {
	a := newAPIServer(t)
	h := NewHandler(config(t, a))
	var containers []any
	for i := range 65 {
		name := fmt.Sprint("spec", i)
		a.specs[name] = spec2
		containers = append(containers, ctr(fmt.Sprint("c", i), windows(name, "")))
	}
	pod := newPod(object{"containers": containers})
	wantDenied(t, ask(t, h, "/mutate", create, "", pod, nil), 403, "names 65 different GMSACredentialSpecs")
	if len(a.asked) > 0 {
		t.Errorf("asked %d times", len(a.asked))
	}
	a.may = nil
	_, answer := admit(t, h, create, "", newPod(object{"containers": containers[:64]}), nil)
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
		answer := ask(t, h, "/mutate", operation, map[string]string{update: ephemeralContainers}[operation], pod, old)
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
		"contents by the user": newPod(object{"securityContext": windows("web01", spec1)}),
		"in a container":       with(nil),
		"with a subdomain":     with(object{"subdomain": "web"}),
		"as an FQDN":           with(object{"setHostnameAsFQDN": true}),
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
		t.Errorf("a name of the user's own became %q", got)
	}
	if got := hostname(off, create, with(nil), nil); got != "" {
		t.Errorf("switched off: %q", got)
	}
	if got := hostname(h, update, with(nil), with(nil)); got != "" {
		t.Errorf("of a pod that exists: %q", got)
	}
}

func TestAPatchKeepsEveryCharacterOfTheContents(t *testing.T) {
	a := newAPIServer(t)
	a.specs["odd"] = `{"a":"<&>\u0041\"\\ü😀","n":1.0,"e":1e2,"z":-0}`
	h := NewHandler(config(t, a))
	a.may = nil
	pod, answer := admit(t, h, create, "", newPod(object{"securityContext": windows("odd", "")}), nil)
	wantAllowed(t, answer)
	// The test's API server writes a space behind commas; numbers and escapes stay as they are.
	if got := contentsAt(pod, "", 0); got != a.specs["odd"] || !json.Valid([]byte(got)) {
		t.Errorf("%s", got)
	}
}
