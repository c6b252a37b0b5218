package admission

import (
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/ccgrkc/ccgrkc/internal/credential"
)

func withPlugin(guid, input string) string {
	return fmt.Sprintf(`{"ActiveDirectoryConfig":{"HostAccountConfig":{"PluginGUID":%s,"PluginInput":%s}}}`, guid, input)
}

func TestAGMSAThatCannotWorkIsToldOrRefused(t *testing.T) {
	const ours = `"{E4781092-F116-4B79-B55E-28EB6A224E26}"`
	long := strings.Repeat("s", 253)
	for name, c := range map[string]struct {
		spec string
		says string // "": nothing
	}{
		"works":                    {withPlugin(ours, `"gmsa-system:web-creds"`), ""},
		"no such release":          {withPlugin(ours, `"gmsa-system:other"`), "container web: no release of rancher-gmsa-account-provider serves gmsa-system:other (GMSACredentialSpec s): install it, upgrade one older than the webhook, or set webhook.serviceAccount, webhook.namespace"},
		"no such Secret":           {withPlugin(ours, `"gmsa-system:served"`), "container web: Secret served is missing in namespace gmsa-system"},
		"no colon":                 {withPlugin(ours, `"web-creds"`), `container web: GMSACredentialSpec s has a wrong PluginInput, so that its pods get no gMSA: plugin input "web-creds" has no colon; the form is <namespace>:<secret>`},
		"control characters":       {withPlugin(ours, `"a\n\u0007:b"`), `plugin input "a\n\a:b": namespace:`},
		"no input":                 {withPlugin(ours, `null`), "has no colon"},
		"input is a number":        {withPlugin(ours, `1`), "has no colon"},
		"GUID in lower case":       {withPlugin(strings.ToLower(ours), `"x"`), "has no colon"},
		"GUID without braces":      {withPlugin(strings.Trim(ours, `{}"`), `"x"`), ""}, // no JSON: replaced below
		"another plugin":           {withPlugin(`"{CCC2A336-D7F3-4818-A213-272B7924213E}"`, `"x"`), ""},
		"GUID is a list":           {withPlugin(`[]`, `"x"`), ""},
		"host is in the domain":    {spec2, ""},
		"a name without a marker":  {withPlugin(ours, `"gmsa-system:`+long+`"`), ""},
		"a name that is too long":  {withPlugin(ours, `"gmsa-system:`+long+`s"`), "maximum is 253"},
		"much longer than allowed": {withPlugin(ours, `"`+strings.Repeat("x", 40000)+`"`), "plugin input of 40000 bytes is longer"},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "GUID without braces" {
				c.spec, c.says = withPlugin(`"`+strings.Trim(ours, `{}"`)+`"`, `"x"`), "has no colon"
			}
			a := newAPIServer(t)
			a.may = nil
			a.specs["s"] = c.spec
			a.releases["gmsa-system:served"] = true
			pod := newPod(object{"containers": []any{ctr("web", windows("s", "")), ctr("too", windows("s", ""))}})
			cfg := config(t, a)
			_, answer := admit(t, NewHandler(cfg), create, "", pod, nil)
			wantAllowed(t, answer)
			if c.says == "" {
				if len(answer.Warnings) > 0 {
					t.Errorf("%q", answer.Warnings)
				}
			} else if len(answer.Warnings) != 1 || !strings.Contains(answer.Warnings[0], c.says) {
				t.Errorf("%q, want one that says %q", answer.Warnings, c.says)
			}
			for _, w := range answer.Warnings {
				// Else the API server drops it: k8s.io/apimachinery/pkg/util/net, NewWarningHeader.
				if strings.ContainsFunc(w, unicode.IsControl) || !utf8.ValidString(w) {
					t.Errorf("no warning: %q", w)
				}
			}
			cfg.PluginInput = Deny
			_, answer = admit(t, NewHandler(cfg), create, "", pod, nil)
			if c.says == "" {
				wantAllowed(t, answer)
			} else {
				wantDenied(t, answer, 403, c.says)
			}
		})
	}
}

// The API server cuts warnings to 256 characters each, if all of an answer together have more than 4096.
func TestWarningsOfNamesOfUsualLengthAreShort(t *testing.T) {
	a := newAPIServer(t)
	a.may, a.releases, a.secrets = nil, map[string]bool{"cattle-windows-gmsa-system:second-creds": true}, nil
	const ours, name = `"{E4781092-F116-4B79-B55E-28EB6A224E26}"`, "a-name-of-thirty-characters-00"
	h := NewHandler(config(t, a))
	for _, input := range []string{`"cattle-windows-gmsa-system:first-creds"`, `"cattle-windows-gmsa-system:second-creds"`, `"cattle-windows-gmsa-system/third-creds"`} {
		a.specs[name] = withPlugin(ours, input)
		_, answer := admit(t, h, create, "", newPod(object{"containers": []any{ctr("web", windows(name, ""))}}), nil)
		if len(answer.Warnings) != 1 || utf8.RuneCountInString(answer.Warnings[0]) > 256 {
			t.Errorf("%d: %q", utf8.RuneCountInString(answer.Warnings[0]), answer.Warnings)
		}
	}
}

func TestAQuestionWithoutAnAnswerRefusesNobody(t *testing.T) {
	t.Parallel()
	a := newAPIServer(t)
	a.hang = time.Minute
	c := config(t, a)
	c.PluginInput = Deny
	start := time.Now()
	_, answer := admit(t, NewHandler(c), create, "", newPod(object{"securityContext": windows("web01", "")}), nil)
	wantAllowed(t, answer)
	if took := time.Since(start); took > 3*time.Second { // it waits for one; the API server would for five
		t.Errorf("it took %s", took)
	}
	var b strings.Builder
	c.Metrics.Write(&b)
	if !strings.Contains(b.String(), "gmsa_webhook_unanswered_account_questions_total 1\n") {
		t.Error(b.String())
	}
}

// Only that all is there is remembered, and only for a while.
func TestAnAccountThatIsThereIsNotAskedForEachTime(t *testing.T) {
	a := newAPIServer(t)
	c := NewCluster(a.client(t)).(*cluster)
	now := time.Now()
	c.now = func() time.Time { return now }
	asked := 0
	want := func(secret string, account Account, asks int) {
		t.Helper()
		is, err := c.Account(t.Context(), credential.Reference{Namespace: "gmsa-system", Secret: secret})
		if err != nil || is != account {
			t.Errorf("%s: %v, %v; want %v", secret, is, err, account)
		}
		if asked += asks; a.requests("POST /api/v1/") != asked {
			t.Errorf("%s: %d questions, want %d", secret, a.requests("POST /api/v1/"), asked)
		}
	}
	want("web-creds", AccountThere, 1)
	want("web-creds", AccountThere, 0)
	now = now.Add(thereFor - time.Second)
	a.secrets = nil
	want("web-creds", AccountThere, 0)
	now = now.Add(time.Second)
	want("web-creds", SecretMissing, 1)
	a.secrets = map[string]bool{"gmsa-system:web-creds": true}
	want("web-creds", AccountThere, 1) // at once
	want("late", AccountUnserved, 1)
	a.releases["gmsa-system:late"], a.secrets["gmsa-system:late"] = true, true
	want("late", AccountThere, 1)

	for i := range 2 * maxThere {
		secret := fmt.Sprint("s", i)
		a.releases["gmsa-system:"+secret], a.secrets["gmsa-system:"+secret] = true, true
		want(secret, AccountThere, 1)
	}
	if n := len(c.there); n != maxThere {
		t.Errorf("%d are remembered, %d at most", n, maxThere)
	}
	now = now.Add(thereFor)
	want("web-creds", AccountThere, 1)
	want("web-creds", AccountThere, 0) // there is room again
}

func TestAPodThatExistsIsNotWarnedAboutAgain(t *testing.T) {
	a := newAPIServer(t)
	a.releases = nil
	pod := newPod(object{"securityContext": windows("web01", spec1)})
	answer := ask(t, NewHandler(config(t, a)), "/validate", update, "", pod, pod)
	wantAllowed(t, answer)
	if len(answer.Warnings) > 0 || len(a.asked) > 0 {
		t.Errorf("%q, asked %q", answer.Warnings, a.asked)
	}
}
