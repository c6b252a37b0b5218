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
	const format = `{"ActiveDirectoryConfig":{"HostAccountConfig":{"PluginGUID":%s,"PluginInput":%s}}}`
	return fmt.Sprintf(format, guid, input)
}

const pluginClass = `"{E4781092-F116-4B79-B55E-28EB6A224E26}"`

func TestAGMSAThatCannotWorkIsReportedOrDenied(t *testing.T) {
	long, bare := strings.Repeat("s", 253), strings.NewReplacer("{", "", "}", "").Replace(pluginClass)
	for name, c := range map[string]struct {
		spec string
		want string // "": no warning
	}{
		"works": {withPlugin(pluginClass, `"gmsa-system:web-creds"`), ""},
		"no release": {
			withPlugin(pluginClass, `"gmsa-system:other"`),
			"container web: GMSACredentialSpec s: no release of rancher-gmsa-account-provider provides " +
				"gmsa-system:other; install or upgrade it, or set its values webhook.serviceAccount and " +
				"webhook.namespace",
		},
		"no Secret": {
			withPlugin(pluginClass, `"gmsa-system:served"`),
			"container web: GMSACredentialSpec s: Secret gmsa-system/served is missing",
		},
		"no colon": {
			withPlugin(pluginClass, `"web-creds"`),
			"container web: GMSACredentialSpec s: PluginInput is invalid, so its pods get no gMSA: " +
				noColon(t, "web-creds"),
		},
		"control characters":       {withPlugin(pluginClass, `"a\n\u0007:b"`), `plugin input "a\n\a:b": namespace:`},
		"no input":                 {withPlugin(pluginClass, `null`), noColon(t, "")},
		"input is a number":        {withPlugin(pluginClass, `1`), noColon(t, "")},
		"GUID in lower case":       {withPlugin(strings.ToLower(pluginClass), `"x"`), noColon(t, "x")},
		"GUID without braces":      {withPlugin(bare, `"x"`), noColon(t, "x")},
		"another plugin":           {withPlugin(`"{CCC2A336-D7F3-4818-A213-272B7924213E}"`, `"x"`), ""},
		"GUID is a list":           {withPlugin(`[]`, `"x"`), ""},
		"host is in the domain":    {spec2, ""},
		"a name without a marker":  {withPlugin(pluginClass, `"gmsa-system:`+long+`"`), ""},
		"a name that is too long":  {withPlugin(pluginClass, `"gmsa-system:`+long+`s"`), "maximum is 253"},
		"much longer than allowed": {withPlugin(pluginClass, `"`+strings.Repeat("x", 40000)+`"`), "plugin input has 40000 bytes, the maximum is 317"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPIServer(t)
			a.canUse = nil
			a.specs["s"] = c.spec
			a.releases["gmsa-system:served"] = true
			pod := newPod(object{"containers": []any{ctr("web", windows("s", "")), ctr("too", windows("s", ""))}})
			cfg := config(t, a)
			_, answer := admit(t, NewHandler(cfg), create, "", pod, nil)
			wantAllowed(t, answer)
			if c.want == "" {
				if len(answer.Warnings) > 0 {
					t.Errorf("%q", answer.Warnings)
				}
			} else if len(answer.Warnings) != 1 || !strings.Contains(answer.Warnings[0], c.want) {
				t.Errorf("%q, want one warning with %q", answer.Warnings, c.want)
			}
			for _, w := range answer.Warnings {
				// The API server drops others: k8s.io/apimachinery/pkg/util/net, NewWarningHeader.
				if strings.ContainsFunc(w, unicode.IsControl) || !utf8.ValidString(w) {
					t.Errorf("invalid warning: %q", w)
				}
			}
			cfg.PluginInput = Deny
			_, answer = admit(t, NewHandler(cfg), create, "", pod, nil)
			if c.want == "" {
				wantAllowed(t, answer)
			} else {
				wantDenied(t, answer, 403, c.want)
			}
		})
	}
}

// noColon is the error for a plugin input without a colon.
func noColon(t *testing.T, input string) string {
	t.Helper()
	_, err := credential.ParseReference(input)
	if err == nil || !strings.Contains(err.Error(), "colon") {
		t.Fatal(err)
	}
	return err.Error()
}

// The API server truncates each warning to 256 characters if all warnings of a response have more than 4096.
func TestWarningsWithNamesOfUsualLengthAreShort(t *testing.T) {
	a := newAPIServer(t)
	const namespace, name = "cattle-windows-gmsa-system", "a-name-of-thirty-characters-00"
	a.canUse, a.releases, a.secrets = nil, map[string]bool{namespace + ":second-creds": true}, nil
	h := NewHandler(config(t, a))
	for _, input := range []string{":first-creds", ":second-creds", "/third-creds"} {
		a.specs[name] = withPlugin(pluginClass, `"`+namespace+input+`"`)
		_, answer := admit(t, h, create, "", newPod(object{"containers": []any{ctr("web", windows(name, ""))}}), nil)
		if len(answer.Warnings) != 1 || utf8.RuneCountInString(answer.Warnings[0]) > 256 {
			t.Errorf("%d: %q", utf8.RuneCountInString(answer.Warnings[0]), answer.Warnings)
		}
	}
}

func TestAFailedAccountCheckDeniesNoPod(t *testing.T) {
	t.Parallel()
	a := newAPIServer(t)
	a.hang = time.Minute
	c := config(t, a)
	c.PluginInput = Deny
	h := newHandler(c)
	h.accountTimeout = 100 * time.Millisecond
	start := time.Now()
	_, answer := admit(t, h.routes(), create, "", newPod(object{"securityContext": windows("web01", "")}), nil)
	wantAllowed(t, answer)
	if took := time.Since(start); took > 3*time.Second { // the API server waits for five
		t.Errorf("the request took %s", took)
	}
	var b strings.Builder
	c.Metrics.Write(&b)
	if !strings.Contains(b.String(), "gmsa_webhook_account_check_errors_total 1\n") {
		t.Error(b.String())
	}
}

// Only AccountReady is cached, and only for readyTTL.
func TestAReadyAccountIsCached(t *testing.T) {
	a := newAPIServer(t)
	c := NewCluster(a.Client(t, "test")).(*cluster)
	now := time.Now()
	c.ready.now = func() time.Time { return now }
	requests := 0
	want := func(secret string, state AccountState, more int) {
		t.Helper()
		got, err := c.Account(t.Context(), credential.Reference{Namespace: "gmsa-system", Secret: secret})
		if err != nil || got != state {
			t.Errorf("%s: %v, %v; want %v", secret, got, err, state)
		}
		requests += more
		if n := len(a.Requests("POST /api/v1/")); n != requests {
			t.Errorf("%s: %d requests, want %d", secret, n, requests)
		}
	}
	want("web-creds", AccountReady, 1)
	want("web-creds", AccountReady, 0)
	now = now.Add(readyTTL - time.Second)
	a.secrets = nil
	want("web-creds", AccountReady, 0)
	now = now.Add(time.Second)
	want("web-creds", SecretMissing, 1)
	a.secrets = map[string]bool{"gmsa-system:web-creds": true}
	want("web-creds", AccountReady, 1) // other states are not cached
	want("late", ReleaseMissing, 1)
	a.releases["gmsa-system:late"], a.secrets["gmsa-system:late"] = true, true
	want("late", AccountReady, 1)

	for i := range 2 * maxRecent {
		secret := fmt.Sprint("s", i)
		a.releases["gmsa-system:"+secret], a.secrets["gmsa-system:"+secret] = true, true
		want(secret, AccountReady, 1)
	}
	if n := len(c.ready.values); n != maxRecent {
		t.Errorf("%d accounts are cached, want %d", n, maxRecent)
	}
	now = now.Add(readyTTL)
	want("web-creds", AccountReady, 1)
	want("web-creds", AccountReady, 0) // expired entries made room
}

func TestAnExistingPodGetsNoWarning(t *testing.T) {
	a := newAPIServer(t)
	a.releases = nil
	pod := newPod(object{"securityContext": windows("web01", spec1)})
	answer := call(t, NewHandler(config(t, a)), "/validate", update, "", pod, pod)
	wantAllowed(t, answer)
	if len(answer.Warnings) > 0 || len(a.Requests("")) > 0 {
		t.Errorf("%q, requests %q", answer.Warnings, a.Requests(""))
	}
}
