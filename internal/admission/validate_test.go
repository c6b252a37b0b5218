package admission

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestADenialExplainsHowToGrantThePermission(t *testing.T) {
	a := newAPIServer(t)
	h := NewHandler(config(t, a))
	for where, spec := range map[string]object{
		"the pod's securityContext":   {"securityContext": windows("web02", spec2)},
		"container web":               {"containers": []any{ctr("web", windows("web02", spec2))}},
		"init container first":        {"initContainers": []any{ctr("first", windows("web02", spec2))}},
		"ephemeral container debug-1": {"ephemeralContainers": []any{ctr("debug-1", windows("web02", spec2))}},
	} {
		spec["serviceAccountName"] = "web"
		wantDenied(t, call(t, h, "/validate", create, "", newPod(spec), nil), 403,
			where+": ServiceAccount shop/web cannot use GMSACredentialSpec web02: it needs the verb use on "+
				"gmsacredentialspecs.windows.k8s.io (decided by the test). To grant it: echo '{",
			`"resourceNames":["web02"]`,
			`"verbs":["use"]`,
			`"subjects":[{"kind":"ServiceAccount","name":"web","namespace":"shop"}]`,
			"}' | kubectl apply -f -")
	}
}

func TestAPermissionBelongsToOneServiceAccount(t *testing.T) {
	a := newAPIServer(t)
	h := NewHandler(config(t, a))
	for account, allowed := range map[string]bool{"web": true, "default": true, "": true, "other": false} {
		pod := newPod(object{"serviceAccountName": account, "securityContext": windows("web01", spec1)})
		answer := call(t, h, "/validate", create, "", pod, nil)
		if answer.Allowed != allowed {
			t.Errorf("%q: allowed %t, want %t", account, answer.Allowed, allowed)
		}
	}
	// The user sets the pod's namespace field. The API server sets the request's.
	pod := newPod(object{"securityContext": windows("web01", spec1)})
	var review object
	if err := json.Unmarshal(reviewOf(create, "", pod, nil), &review); err != nil {
		t.Fatal(err)
	}
	review["request"].(object)["namespace"] = "elsewhere"
	body, err := json.Marshal(review)
	if err != nil {
		t.Fatal(err)
	}
	wantDenied(t, answerOf(t, send(h, "/validate", body)), 403, "ServiceAccount elsewhere/default")
}

func TestAnInlineSpecMustEqualTheObject(t *testing.T) {
	a := newAPIServer(t)
	a.specs["n"] = `{"a":{"b":1,"c":[1,2]},"d":"x","e":9007199254740993}`
	a.canUse["shop/default/n"] = true
	h := NewHandler(config(t, a))
	const differs, notJSON = "differs from", "is not valid JSON"
	for inline, want := range map[string]string{
		`{"a":{"b":1,"c":[1,2]},"d":"x","e":9007199254740993}`:                           "",
		"\t{\"e\" : 9007199254740993,\n\"d\":\"\\u0078\",\"a\":{\"c\":[1,2],\"b\":1} } ": "",
		`{"a":{"b":1,"c":[2,1]},"d":"x","e":9007199254740993}`:                           differs,
		`{"a":{"b":1,"c":[1,2]},"d":"X","e":9007199254740993}`:                           differs,
		`{"a":{"b":1,"c":[1,2]},"D":"x","e":9007199254740993}`:                           differs,
		`{"a":{"b":1,"c":[1,2]},"d":"x"}`:                                                differs,
		`{"a":{"b":1,"c":[1,2]},"d":"x","e":9007199254740993,"f":null}`:                  differs,
		`{"a":{"b":"1","c":[1,2]},"d":"x","e":9007199254740993}`:                         differs,
		// As a float64 it would be the same.
		`{"a":{"b":1,"c":[1,2]},"d":"x","e":9007199254740992}`: differs,
		`{}`:                       differs,
		`null`:                     differs,
		`[]`:                       differs,
		`"{}"`:                     differs,
		`{`:                        notJSON,
		`not JSON`:                 notJSON,
		"\ufeff{}":                 notJSON,
		`{"a":1}{"a":{}}`:          notJSON,
		strings.Repeat("[", 1<<20): notJSON,
		strings.Repeat("[", 20000) + strings.Repeat("]", 20000):         notJSON, // deeper than encoding/json allows
		strings.Repeat("[", 9000) + "1" + strings.Repeat("]", 9000):     differs,
		strings.Repeat(`{"a":`, 9000) + "1" + strings.Repeat("}", 9000): differs,
	} {
		pod := newPod(object{"containers": []any{ctr("web", windows("n", inline))}})
		answer := call(t, h, "/validate", create, "", pod, nil)
		if want == "" {
			wantAllowed(t, answer)
		} else {
			wantDenied(t, answer, 403, "container web: gmsaCredentialSpec "+want, "GMSACredentialSpec n")
		}
	}
}

// Attack: some MiB of JSON that need many times as much memory when decoded.
func TestAttackJSONWithManyTokens(t *testing.T) {
	many := []byte("[" + strings.Repeat("0,", 1<<20) + "0]")
	if _, tokens, err := exactJSON([]byte(`{"a":[1,{"b":null}]}`), 100); err != nil || tokens != 10 {
		t.Errorf("%d tokens, %v", tokens, err)
	}
	allocs := testing.AllocsPerRun(1, func() {
		if err := sameSpec(string(many), []byte(spec1)); err != errDiffers {
			t.Error(err)
		}
	})
	if allocs > 2000 {
		t.Errorf("%.0f allocations", allocs)
	}
}

// Attack: of two duplicate keys, the webhook could compare one and Windows read the other.
func TestAttackDuplicateKeys(t *testing.T) {
	a := newAPIServer(t)
	a.specs["n"] = `{"a":{"b":1},"l":[{"x":1}]}`
	a.canUse["shop/default/n"] = true
	h := NewHandler(config(t, a))
	for _, inline := range []string{
		`{"a":{"b":2},"a":{"b":1},"l":[{"x":1}]}`,
		`{"a":{"b":1},"a":{"b":2},"l":[{"x":1}]}`,
		`{"a":{"b":1,"b":1},"l":[{"x":1}]}`,
		`{"a":{"b":1},"l":[{"x":2,"x":1}]}`,
		`{"a":{"b":1},"l":[{"\u0078":2,"x":1}]}`,
	} {
		pod := newPod(object{"containers": []any{ctr("web", windows("n", inline))}})
		answer := call(t, h, "/validate", create, "", pod, nil)
		wantDenied(t, answer, 403, "container web: gmsaCredentialSpec contains the key ", "twice")
	}
}

// Attack: Go replaces all invalid Unicode characters with the same one, but Windows does not.
func TestAttackInvalidCharacters(t *testing.T) {
	a := newAPIServer(t)
	a.specs["n"] = "{\"a\":\"\ufffd\"}"
	a.canUse["shop/default/n"] = true
	h := NewHandler(config(t, a))
	for _, inline := range []string{`{"a":"\ud800"}`, `{"a":"\udc00\ud800"}`} {
		pod := newPod(object{"containers": []any{ctr("web", windows("n", inline))}})
		answer := call(t, h, "/validate", create, "", pod, nil)
		wantDenied(t, answer, 403, "contains an invalid Unicode character")
	}
	_, answer := admit(t, h, create, "", newPod(object{"containers": []any{ctr("web", windows("n", ""))}}), nil)
	wantAllowed(t, answer)
}

// Attack: an inline credential spec without a name, or with another one's name. SIG Windows' webhook ignores init
// containers.
func TestAttackInlineSpecInAnInitContainer(t *testing.T) {
	a := newAPIServer(t)
	h := NewHandler(config(t, a))
	for where, spec := range map[string]object{
		"the pod's securityContext": {"securityContext": windows("", spec1)},
		"init container x":          {"initContainers": []any{ctr("x", windows("", spec1))}},
		"container web": {
			"containers":      []any{ctr("web", windows("", spec1))},
			"securityContext": windows("web01", spec1),
		},
		"ephemeral container y": {"ephemeralContainers": []any{ctr("y", windows("", spec1))}},
	} {
		_, answer := admit(t, h, create, "", newPod(spec), nil)
		wantDenied(t, answer, 403, where+": gmsaCredentialSpec is set without gmsaCredentialSpecName")
	}
	// A permitted name does not permit another inline credential spec.
	pod := newPod(object{"initContainers": []any{ctr("x", windows("web02", spec1))}})
	_, answer := admit(t, h, create, "", pod, nil)
	wantDenied(t, answer, 403, "init container x: gmsaCredentialSpec differs from the GMSACredentialSpec")
}

// Attack: kubectl debug adds a container to an existing pod.
func TestAttackInlineSpecInAnEphemeralContainer(t *testing.T) {
	a := newAPIServer(t)
	h := NewHandler(config(t, a))
	old := newPod(object{"serviceAccountName": "web", "securityContext": windows("web01", spec1)})
	debug := func(security object) object {
		return newPod(object{
			"serviceAccountName":  "web",
			"securityContext":     windows("web01", spec1),
			"ephemeralContainers": []any{ctr("debug", security)},
		})
	}
	for text, security := range map[string]object{
		"gmsaCredentialSpec is set without gmsaCredentialSpecName":               windows("", spec2),
		"ServiceAccount shop/web cannot use GMSACredentialSpec web02":            windows("web02", spec2),
		"gmsaCredentialSpec differs from the GMSACredentialSpec; remove it, and": windows("web01", spec2),
	} {
		_, answer := admit(t, h, update, ephemeralContainers, debug(security), old)
		wantDenied(t, answer, 403, "ephemeral container debug: "+text)
	}
	_, answer := admit(t, h, update, ephemeralContainers, debug(windows("web01", "")), old)
	wantAllowed(t, answer)
	_, answer = admit(t, h, update, ephemeralContainers, debug(nil), old)
	wantAllowed(t, answer)
}

// Attack: a pod is created with a permitted gMSA, and changed later.
func TestAttackNameChangedByAnUpdate(t *testing.T) {
	a := newAPIServer(t)
	h := NewHandler(config(t, a))
	both := func(pod, container object) object {
		spec := object{
			"containers":          []any{ctr("web", container)},
			"ephemeralContainers": []any{ctr("debug", windows("web01", spec1))},
		}
		if pod != nil {
			spec["securityContext"] = pod
		}
		return newPod(spec)
	}
	old := both(windows("web01", spec1), nil)
	without := both(windows("web01", spec1), nil)
	delete(without["spec"].(object), "ephemeralContainers")
	const pod = "the pod's securityContext: "
	for name, c := range map[string]struct {
		now  object
		want string
	}{
		"name": {
			both(windows("web02", spec1), nil),
			pod + `gmsaCredentialSpecName cannot change from "web01" to "web02"`,
		},
		"inline":       {both(windows("web01", spec2), nil), pod + "gmsaCredentialSpec cannot change"},
		"white space":  {both(windows("web01", " "+spec1), nil), pod + "gmsaCredentialSpec cannot change"},
		"both":         {both(windows("web02", spec2), nil), pod + "gmsaCredentialSpecName cannot change"},
		"both removed": {both(nil, nil), pod + `gmsaCredentialSpecName cannot change from "web01" to ""`},
		"both added": {
			both(windows("web01", spec1), windows("web01", spec1)),
			`container web: gmsaCredentialSpecName cannot change from "" to "web01"`,
		},
		"container removed": {without, "ephemeral container debug: a container that uses a gMSA cannot be removed"},
	} {
		for _, subResource := range []string{"", ephemeralContainers} {
			answer := call(t, h, "/validate", update, subResource, c.now, old)
			if answer.Allowed {
				t.Errorf("%s of pods/%s changed", name, subResource)
				continue
			}
			wantDenied(t, answer, 403, c.want)
		}
	}
	if len(a.Requests("")) > 0 {
		t.Errorf("requests %q", a.Requests(""))
	}
	old["metadata"].(object)["labels"] = object{"a": "b"}
	wantAllowed(t, call(t, h, "/validate", update, "", both(windows("web01", spec1), nil), old))
}

// Attack: after its creation, the pod gets another ServiceAccount. The API server denies this too.
func TestAttackServiceAccountChangedByAnUpdate(t *testing.T) {
	h := NewHandler(config(t, newAPIServer(t)))
	pod := func(account string) object {
		return newPod(object{"serviceAccountName": account, "securityContext": windows("web01", spec1)})
	}
	wantDenied(t, call(t, h, "/validate", update, "", pod("other"), pod("web")), 403, "cannot change from web to other")
	wantAllowed(t, call(t, h, "/validate", update, "", pod("default"), pod("")))
	// Pods without a gMSA are not the webhook's concern.
	wantAllowed(t, call(t, h, "/validate", update, "", newPod(object{"serviceAccountName": "other"}), newPod(nil)))
	old := newPod(object{"ephemeralContainers": []any{ctr("debug", nil)}})
	wantAllowed(t, call(t, h, "/validate", update, "", newPod(nil), old))
}

// Also happens without an attack.
func TestAttackCredentialSpecChangedBetweenMutateAndValidate(t *testing.T) {
	a := newAPIServer(t)
	h := NewHandler(config(t, a))
	pod := newPod(object{"securityContext": windows("web01", "")})
	pod = patched(t, pod, call(t, h, "/mutate", create, "", pod, nil))
	a.set(func() { a.specs["web01"] = spec2 })
	wantDenied(t, call(t, h, "/validate", create, "", pod, nil), 403,
		"differs from the GMSACredentialSpec", "if that object changed just now, create the pod again")
	a.set(func() { delete(a.specs, "web01") })
	wantDenied(t, call(t, h, "/validate", create, "", pod, nil), 404, "GMSACredentialSpec web01 does not exist")
}

// Attack: a user without the use permission finds out a credential spec by trial and error.
func TestAttackInlineSpecGuessed(t *testing.T) {
	h := NewHandler(config(t, newAPIServer(t)))
	var messages []string
	for _, inline := range []string{spec1, `{}`} {
		pod := newPod(object{"serviceAccountName": "other", "securityContext": windows("web01", inline)})
		answer := call(t, h, "/validate", create, "", pod, nil)
		wantDenied(t, answer, 403)
		messages = append(messages, answer.Status.Message)
	}
	if messages[0] != messages[1] {
		t.Errorf("different messages: %q", messages)
	}
}

func TestAReferenceThatIsNotPopulatedIsDenied(t *testing.T) {
	h := NewHandler(config(t, newAPIServer(t)))
	pod := newPod(object{
		"securityContext": windows("web01", spec1),
		"containers":      []any{ctr("web", windows("web01", ""))},
	})
	answer := call(t, h, "/validate", create, "", pod, nil)
	wantDenied(t, answer, 403, "container web: GMSACredentialSpec web01 was not populated")
	// A pod that is older than the webhook can be updated.
	wantAllowed(t, call(t, h, "/validate", update, "", pod, pod))
}

func TestAPodWithoutAGMSANeedsNoRequest(t *testing.T) {
	a := newAPIServer(t)
	h := NewHandler(config(t, a))
	a.Fail(500, "")
	hostProcess := object{"windowsOptions": object{"hostProcess": true}}
	pod, answer := admit(t, h, create, "", newPod(object{"containers": []any{ctr("web", hostProcess)}}), nil)
	wantAllowed(t, answer)
	_, answer = admit(t, h, update, "", pod, pod)
	wantAllowed(t, answer)
	if len(a.Requests("")) > 0 {
		t.Errorf("requests %q", a.Requests(""))
	}
}

func TestADryRunGetsTheSameAnswer(t *testing.T) {
	h := NewHandler(config(t, newAPIServer(t)))
	for _, account := range []string{"default", "other"} {
		pod := newPod(object{"serviceAccountName": account, "securityContext": windows("web01", spec1)})
		body := reviewOf(create, "", pod, nil)
		real := send(h, "/validate", body)
		dry := send(h, "/validate", []byte(strings.Replace(string(body), `"dryRun":false`, `"dryRun":true`, 1)))
		if diff := cmp.Diff(answerOf(t, real), answerOf(t, dry)); diff != "" {
			t.Error(diff)
		}
	}
}

func TestAFailureOfTheAPIServerIsTemporary(t *testing.T) {
	a := newAPIServer(t)
	c := config(t, a)
	h := NewHandler(c)
	a.canUse = nil
	pod := newPod(object{"securityContext": windows("web01", spec1)})
	a.Fail(504, "")
	wantDenied(t, call(t, h, "/validate", create, "", pod, nil), 503,
		"the pod's securityContext: could not read GMSACredentialSpec web01; try again")
	a.Fail(504, "POST /apis/authorization.k8s.io/")
	wantDenied(t, call(t, h, "/validate", create, "", pod, nil), 503, "the pod's securityContext: "+
		"could not check whether ServiceAccount shop/default can use GMSACredentialSpec web01; try again")
	var b strings.Builder
	c.Metrics.Write(&b)
	if want := fmt.Sprintf("%s 2\n", requestsTotal("validate", resultFailed)); !strings.Contains(b.String(), want) {
		t.Errorf("%s lacks %s", b.String(), want)
	}
}

// kubectl debug reads the name in the details of a status with the reason NotFound, and crashed without details.
func TestAStatusIsComplete(t *testing.T) {
	h := NewHandler(config(t, newAPIServer(t)))
	for _, c := range []struct {
		path string
		pod  object
		want string
	}{
		{
			"/mutate", newPod(object{"securityContext": windows("web9", "")}),
			`"status":"Failure","code":404,"reason":"NotFound","message":"the pod's securityContext: ` +
				`GMSACredentialSpec web9 does not exist; list the existing ones with kubectl get ` +
				`gmsacredentialspecs, or create it with gmsactl credspec create",` +
				`"details":{"name":"web9","group":"windows.k8s.io","kind":"gmsacredentialspecs"}}`,
		},
		{
			"/validate", newPod(object{"securityContext": windows("web02", "{}")}),
			`"details":{"name":"web-1","kind":"pods"}}`,
		},
	} {
		w := send(h, c.path, reviewOf(create, "", c.pod, nil))
		if !strings.Contains(w.Body.String(), c.want) {
			t.Errorf("%s: %s\nwant %s", c.path, w.Body, c.want)
		}
	}
	// A controller's pod has no name yet.
	pod := newPod(object{"securityContext": windows("web02", "{}")})
	pod["metadata"] = object{"generateName": "web-"}
	if d := call(t, h, "/validate", create, "", pod, nil).Status.Details; d.Name != "web-" {
		t.Errorf("details %+v", d)
	}
}
