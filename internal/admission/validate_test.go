package admission

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestADenialSaysWhoWhereWhatAndHowToGrantIt(t *testing.T) {
	a := newAPIServer(t)
	h := NewHandler(config(t, a))
	for where, spec := range map[string]object{
		"the pod's securityContext":   {"securityContext": windows("web02", spec2)},
		"container web":               {"containers": []any{ctr("web", windows("web02", spec2))}},
		"init container first":        {"initContainers": []any{ctr("first", windows("web02", spec2))}},
		"ephemeral container debug-1": {"ephemeralContainers": []any{ctr("debug-1", windows("web02", spec2))}},
	} {
		spec["serviceAccountName"] = "web"
		wantDenied(t, ask(t, h, "/validate", create, "", newPod(spec), nil), 403,
			where+": ServiceAccount shop/web may not use GMSACredentialSpec web02: it lacks the verb use on gmsacredentialspecs.windows.k8s.io (the test says so). To grant it: echo '{",
			`"resourceNames":["web02"]`, `"verbs":["use"]`, `"subjects":[{"kind":"ServiceAccount","name":"web","namespace":"shop"}]`, "}' | kubectl apply -f -")
	}
}

func TestARightOfOneServiceAccountIsNotAnothers(t *testing.T) {
	a := newAPIServer(t)
	h := NewHandler(config(t, a))
	for account, allowed := range map[string]bool{"web": true, "default": true, "": true, "other": false} {
		pod := newPod(object{"serviceAccountName": account, "securityContext": windows("web01", spec1)})
		answer := ask(t, h, "/validate", create, "", pod, nil)
		if answer.Allowed != allowed {
			t.Errorf("%q: allowed %t, want %t", account, answer.Allowed, allowed)
		}
	}
	// The pod's own namespace field is the user's; the request's is the API server's.
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

func TestContentsAreEqualOrRefused(t *testing.T) {
	a := newAPIServer(t)
	a.specs["n"] = `{"a":{"b":1,"c":[1,2]},"d":"x","e":9007199254740993}`
	a.may["shop/default/n"] = true
	h := NewHandler(config(t, a))
	for contents, says := range map[string]string{
		`{"a":{"b":1,"c":[1,2]},"d":"x","e":9007199254740993}`:                           "",
		"\t{\"e\" : 9007199254740993,\n\"d\":\"\\u0078\",\"a\":{\"c\":[1,2],\"b\":1} } ": "",
		`{"a":{"b":1,"c":[2,1]},"d":"x","e":9007199254740993}`:                           "is not what",
		`{"a":{"b":1,"c":[1,2]},"d":"X","e":9007199254740993}`:                           "is not what",
		`{"a":{"b":1,"c":[1,2]},"D":"x","e":9007199254740993}`:                           "is not what",
		`{"a":{"b":1,"c":[1,2]},"d":"x"}`:                                                "is not what",
		`{"a":{"b":1,"c":[1,2]},"d":"x","e":9007199254740993,"f":null}`:                  "is not what",
		`{"a":{"b":"1","c":[1,2]},"d":"x","e":9007199254740993}`:                         "is not what",
		// As a float64 it would be the same.
		`{"a":{"b":1,"c":[1,2]},"d":"x","e":9007199254740992}`: "is not what",
		`{}`:                       "is not what",
		`null`:                     "is not what",
		`[]`:                       "is not what",
		`"{}"`:                     "is not what",
		`{`:                        "is not JSON",
		`not JSON`:                 "is not JSON",
		"\ufeff{}":                 "is not JSON",
		`{"a":1}{"a":{}}`:          "is not JSON",
		strings.Repeat("[", 1<<20): "is not JSON",
		strings.Repeat("[", 20000) + strings.Repeat("]", 20000):         "is not JSON", // deeper than a parser must go
		strings.Repeat("[", 9000) + "1" + strings.Repeat("]", 9000):     "is not what",
		strings.Repeat(`{"a":`, 9000) + "1" + strings.Repeat("}", 9000): "is not what",
	} {
		answer := ask(t, h, "/validate", create, "", newPod(object{"containers": []any{ctr("web", windows("n", contents))}}), nil)
		if says == "" {
			wantAllowed(t, answer)
		} else {
			wantDenied(t, answer, 403, "container web: gmsaCredentialSpec "+says, "GMSACredentialSpec n")
		}
	}
}

// Attack: a text of some MiB that becomes many times of that in memory.
func TestAttackContentsOfManyTokensAreNotHeld(t *testing.T) {
	many := []byte("[" + strings.Repeat("0,", 1<<20) + "0]")
	if _, tokens, err := exactJSON([]byte(`{"a":[1,{"b":null}]}`), 100); err != nil || tokens != 10 {
		t.Errorf("%d tokens, %v", tokens, err)
	}
	held := testing.AllocsPerRun(1, func() {
		if err := sameContents(string(many), []byte(spec1)); err != errDiffers {
			t.Error(err)
		}
	})
	if held > 2000 {
		t.Errorf("%.0f allocations for what is not the same", held)
	}
}

// Attack: of two keys of the same name the webhook might compare the one and Windows read the other.
func TestAttackDuplicateKeys(t *testing.T) {
	a := newAPIServer(t)
	a.specs["n"] = `{"a":{"b":1},"l":[{"x":1}]}`
	a.may["shop/default/n"] = true
	h := NewHandler(config(t, a))
	for _, contents := range []string{
		`{"a":{"b":2},"a":{"b":1},"l":[{"x":1}]}`,
		`{"a":{"b":1},"a":{"b":2},"l":[{"x":1}]}`,
		`{"a":{"b":1,"b":1},"l":[{"x":1}]}`,
		`{"a":{"b":1},"l":[{"x":2,"x":1}]}`,
		`{"a":{"b":1},"l":[{"\u0078":2,"x":1}]}`,
	} {
		answer := ask(t, h, "/validate", create, "", newPod(object{"containers": []any{ctr("web", windows("n", contents))}}), nil)
		wantDenied(t, answer, 403, "container web: gmsaCredentialSpec has the key ", "twice")
	}
}

// Attack: what is no character in Unicode becomes the same one here, and something else on Windows.
func TestAttackBrokenCharacters(t *testing.T) {
	a := newAPIServer(t)
	a.specs["n"] = "{\"a\":\"\ufffd\"}"
	a.may["shop/default/n"] = true
	h := NewHandler(config(t, a))
	for _, contents := range []string{`{"a":"\ud800"}`, `{"a":"\udc00\ud800"}`} {
		answer := ask(t, h, "/validate", create, "", newPod(object{"containers": []any{ctr("web", windows("n", contents))}}), nil)
		wantDenied(t, answer, 403, "holds a character that is none in Unicode")
	}
	_, answer := admit(t, h, create, "", newPod(object{"containers": []any{ctr("web", windows("n", ""))}}), nil)
	wantAllowed(t, answer)
}

// Attack: SIG-Windows' webhook looks at the pod and its containers only.
func TestAttackContentsSmuggledInAnInitContainer(t *testing.T) {
	a := newAPIServer(t)
	h := NewHandler(config(t, a))
	for where, spec := range map[string]object{
		"the pod's securityContext": {"securityContext": windows("", spec1)},
		"init container x":          {"initContainers": []any{ctr("x", windows("", spec1))}},
		"container web":             {"containers": []any{ctr("web", windows("", spec1))}, "securityContext": windows("web01", spec1)},
		"ephemeral container y":     {"ephemeralContainers": []any{ctr("y", windows("", spec1))}},
	} {
		_, answer := admit(t, h, create, "", newPod(spec), nil)
		wantDenied(t, answer, 403, where+": gmsaCredentialSpec is set without gmsaCredentialSpecName")
	}
	// A name that the ServiceAccount may use does not cover the contents of another.
	_, answer := admit(t, h, create, "", newPod(object{"initContainers": []any{ctr("x", windows("web02", spec1))}}), nil)
	wantDenied(t, answer, 403, "init container x: gmsaCredentialSpec is not what the GMSACredentialSpec says")
}

// Attack: kubectl debug adds a container to a pod that was admitted long ago.
func TestAttackContentsSmuggledInAnEphemeralContainer(t *testing.T) {
	a := newAPIServer(t)
	h := NewHandler(config(t, a))
	old := newPod(object{"serviceAccountName": "web", "securityContext": windows("web01", spec1)})
	debug := func(security object) object {
		return newPod(object{"serviceAccountName": "web", "securityContext": windows("web01", spec1), "ephemeralContainers": []any{ctr("debug", security)}})
	}
	for says, security := range map[string]object{
		"ephemeral container debug: gmsaCredentialSpec is set without gmsaCredentialSpecName":             windows("", spec2),
		"ephemeral container debug: ServiceAccount shop/web may not use GMSACredentialSpec web02":         windows("web02", spec2),
		"ephemeral container debug: gmsaCredentialSpec is not what the GMSACredentialSpec says; leave it": windows("web01", spec2),
	} {
		_, answer := admit(t, h, update, ephemeralContainers, debug(security), old)
		wantDenied(t, answer, 403, says)
	}
	_, answer := admit(t, h, update, ephemeralContainers, debug(windows("web01", "")), old)
	wantAllowed(t, answer)
	_, answer = admit(t, h, update, ephemeralContainers, debug(nil), old)
	wantAllowed(t, answer)
}

// Attack: a pod is admitted with what its creator may use, then changed.
func TestAttackNameSwappedOnUpdate(t *testing.T) {
	a := newAPIServer(t)
	h := NewHandler(config(t, a))
	both := func(pod, container object) object {
		spec := object{"containers": []any{ctr("web", container)}, "ephemeralContainers": []any{ctr("debug", windows("web01", spec1))}}
		if pod != nil {
			spec["securityContext"] = pod
		}
		return newPod(spec)
	}
	old := both(windows("web01", spec1), nil)
	without := both(windows("web01", spec1), nil)
	delete(without["spec"].(object), "ephemeralContainers")
	for name, c := range map[string]struct {
		now  object
		says string
	}{
		"name":              {both(windows("web02", spec1), nil), `the pod's securityContext: gmsaCredentialSpecName does not change from "web01" to "web02"`},
		"contents":          {both(windows("web01", spec2), nil), "the pod's securityContext: gmsaCredentialSpec does not change"},
		"key order":         {both(windows("web01", " "+spec1), nil), "the pod's securityContext: gmsaCredentialSpec does not change"},
		"both":              {both(windows("web02", spec2), nil), "the pod's securityContext: gmsaCredentialSpecName does not change"},
		"both gone":         {both(nil, nil), `the pod's securityContext: gmsaCredentialSpecName does not change from "web01" to ""`},
		"one more":          {both(windows("web01", spec1), windows("web01", spec1)), `container web: gmsaCredentialSpecName does not change from "" to "web01"`},
		"container removed": {without, "ephemeral container debug: it has a gMSA and does not go from its pod"},
	} {
		for _, subResource := range []string{"", ephemeralContainers} {
			answer := ask(t, h, "/validate", update, subResource, c.now, old)
			if answer.Allowed {
				t.Errorf("%s of pods/%s changed", name, subResource)
				continue
			}
			wantDenied(t, answer, 403, c.says)
		}
	}
	if len(a.asked) > 0 {
		t.Errorf("the API server was asked: %q", a.asked)
	}
	old["metadata"].(object)["labels"] = object{"a": "b"}
	wantAllowed(t, ask(t, h, "/validate", update, "", both(windows("web01", spec1), nil), old))
}

// Attack: the ServiceAccount that may is there for admission only. The API server refuses it too.
func TestAttackServiceAccountSwappedAfterAdmission(t *testing.T) {
	h := NewHandler(config(t, newAPIServer(t)))
	pod := func(account string) object {
		return newPod(object{"serviceAccountName": account, "securityContext": windows("web01", spec1)})
	}
	wantDenied(t, ask(t, h, "/validate", update, "", pod("other"), pod("web")), 403, "does not change from web to other")
	wantAllowed(t, ask(t, h, "/validate", update, "", pod("default"), pod("")))
	// What has no gMSA is the API server's own affair.
	wantAllowed(t, ask(t, h, "/validate", update, "", newPod(object{"serviceAccountName": "other"}), newPod(nil)))
	wantAllowed(t, ask(t, h, "/validate", update, "", newPod(nil), newPod(object{"ephemeralContainers": []any{ctr("debug", nil)}})))
}

// Attack, or bad luck: what mutate copied is not what the administrator wants any more.
func TestAttackCredentialSpecChangedBetweenMutateAndValidate(t *testing.T) {
	a := newAPIServer(t)
	h := NewHandler(config(t, a))
	pod := newPod(object{"securityContext": windows("web01", "")})
	pod = patched(t, pod, ask(t, h, "/mutate", create, "", pod, nil))
	a.set(func() { a.specs["web01"] = spec2 })
	wantDenied(t, ask(t, h, "/validate", create, "", pod, nil), 403, "is not what the GMSACredentialSpec says", "if that was changed just now, create the pod again")
	a.set(func() { delete(a.specs, "web01") })
	wantDenied(t, ask(t, h, "/validate", create, "", pod, nil), 404, "there is no GMSACredentialSpec web01")
}

// Attack: who may not use a GMSACredentialSpec tries contents until they fit.
func TestAttackContentsGuessed(t *testing.T) {
	h := NewHandler(config(t, newAPIServer(t)))
	var said []string
	for _, contents := range []string{spec1, `{}`} {
		answer := ask(t, h, "/validate", create, "", newPod(object{"serviceAccountName": "other", "securityContext": windows("web01", contents)}), nil)
		wantDenied(t, answer, 403)
		said = append(said, answer.Status.Message)
	}
	if said[0] != said[1] {
		t.Errorf("right and wrong contents are told apart: %q", said)
	}
}

func TestANameThatNobodyFilledInIsRefused(t *testing.T) {
	h := NewHandler(config(t, newAPIServer(t)))
	pod := newPod(object{"securityContext": windows("web01", spec1), "containers": []any{ctr("web", windows("web01", ""))}})
	wantDenied(t, ask(t, h, "/validate", create, "", pod, nil), 403, "container web: the contents of GMSACredentialSpec web01 were not filled in")
	// One that is older than the webhook is left alone.
	wantAllowed(t, ask(t, h, "/validate", update, "", pod, pod))
}

func TestAPodWithoutAGMSAIsAllowedUnasked(t *testing.T) {
	a := newAPIServer(t)
	h := NewHandler(config(t, a))
	a.code = 500
	pod, answer := admit(t, h, create, "", newPod(object{"containers": []any{ctr("web", object{"windowsOptions": object{"hostProcess": true}})}}), nil)
	wantAllowed(t, answer)
	_, answer = admit(t, h, update, "", pod, pod)
	wantAllowed(t, answer)
	if len(a.asked) > 0 {
		t.Errorf("the API server was asked: %q", a.asked)
	}
}

func TestADryRunIsAnsweredTheSame(t *testing.T) {
	h := NewHandler(config(t, newAPIServer(t)))
	for _, account := range []string{"default", "other"} {
		body := reviewOf(create, "", newPod(object{"serviceAccountName": account, "securityContext": windows("web01", spec1)}), nil)
		real := send(h, "/validate", body)
		dry := send(h, "/validate", []byte(strings.Replace(string(body), `"dryRun":false`, `"dryRun":true`, 1)))
		if diff := cmp.Diff(answerOf(t, real), answerOf(t, dry)); diff != "" {
			t.Error(diff)
		}
	}
}

func TestTheAPIServersFailureIsNoVerdict(t *testing.T) {
	a := newAPIServer(t)
	c := config(t, a)
	h := NewHandler(c)
	a.may = nil
	pod := newPod(object{"securityContext": windows("web01", spec1)})
	a.code = 504
	wantDenied(t, ask(t, h, "/validate", create, "", pod, nil), 503, "the pod's securityContext: GMSACredentialSpec web01 could not be read, try again")
	a.set(func() { a.only = "POST /apis/authorization.k8s.io/" })
	wantDenied(t, ask(t, h, "/validate", create, "", pod, nil), 503, "the pod's securityContext: whether ServiceAccount shop/default may use GMSACredentialSpec web01 could not be asked, try again")
	var b strings.Builder
	c.Metrics.Write(&b)
	if want := fmt.Sprintf("%s 2\n", reviews("validate", resultFailed)); !strings.Contains(b.String(), want) {
		t.Errorf("%s lacks %s", b.String(), want)
	}
}
