package verify

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ccgrkc/ccgrkc/internal/credential"
	"github.com/ccgrkc/ccgrkc/internal/credspec"
	"github.com/ccgrkc/ccgrkc/internal/dccheck"
	"github.com/ccgrkc/ccgrkc/internal/directory"
)

func TestAStepIsNotReachedWhereWhatItNeedsIsBroken(t *testing.T) {
	t.Parallel()
	var w walk
	taken := []string{}
	take := func(name string, s Step, needs ...string) {
		w.take(name, needs, func() Step { taken = append(taken, name); return s })
	}
	take("good", ok(""))
	take("broken", failed("c", "d", "r"))
	take("unseen", Step{State: NotLookedAt})
	take("doubtful", warning("c", "d", "r"), "good")
	take("after good", ok(""), "good", "doubtful")
	take("after broken", ok(""), "good", "broken")
	take("after unseen", ok(""), "unseen")
	take("after both", ok(""), "unseen", "broken")
	take("after that", ok(""), "after broken")
	take("after that unseen", ok(""), "after unseen")
	var states []State
	for _, s := range w.steps {
		states = append(states, s.State)
	}
	want := []State{OK, Failed, NotLookedAt, Warning, OK, NotReached, NotLookedAt, NotReached, NotReached, NotLookedAt}
	if !slices.Equal(states, want) {
		t.Errorf("%q", states)
	}
	if !slices.Equal(taken, []string{"good", "broken", "unseen", "doubtful", "after good"}) {
		t.Errorf("taken: %q", taken)
	}
	if b := Broken(w.steps); b == nil || b.Name != "broken" {
		t.Errorf("%+v", b)
	}
	if s := w.step("after both"); s.Detail != "needs: broken" {
		t.Errorf("%+v", s)
	}
}

// The node's clock is read at some moment of a call that may take seconds. No difference is claimed that need not be there.
func TestClocksAreComparedAsFarAsTheyCanBe(t *testing.T) {
	t.Parallel()
	asked := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	got := asked.Add(10 * time.Second)
	for name, c := range map[string]struct {
		ahead time.Duration // the domain controller's clock, of this machine's
		node  time.Time
		want  time.Duration
	}{
		"at the beginning":                {0, asked, 0},
		"at the end":                      {0, got, 0},
		"ahead":                           {0, got.Add(3 * time.Minute), 3 * time.Minute},
		"behind":                          {0, asked.Add(-6 * time.Minute), -6 * time.Minute},
		"this machine alone is wrong":     {time.Hour, asked.Add(time.Hour + 5*time.Second), 0},
		"the node goes with this machine": {time.Hour, asked.Add(5 * time.Second), -time.Hour + 5*time.Second},
	} {
		if skew := Skew(clock{ahead: c.ahead}, asked, got, c.node); skew != c.want {
			t.Errorf("%s: %v, want %v", name, skew, c.want)
		}
	}
}

func TestTheLimitsOfAClock(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	for apart, want := range map[time.Duration]State{
		0: OK, 2 * time.Minute: OK, 121 * time.Second: Warning, -121 * time.Second: Warning, 5 * time.Minute: Warning,
		301 * time.Second: Failed, -301 * time.Second: Failed, 30 * 24 * time.Hour: Failed,
	} {
		c := nodeCheck{asked: now, got: now, reach: &dccheck.Report{Time: now.Add(apart).Format("2006-01-02T15:04:05.000Z07:00")}}
		if s := c.compareClocks(); s.State != NotLookedAt {
			t.Errorf("without a domain controller: %+v", s)
		}
		c.clock = &clock{server: "dc1"}
		if s := c.compareClocks(); s.State != want {
			t.Errorf("%v: %+v", apart, s)
		}
	}
	c := nodeCheck{reach: &dccheck.Report{Time: "noon"}, NodeOptions: NodeOptions{clock: &clock{}}}
	if s := c.compareClocks(); s.State != NotLookedAt {
		t.Errorf("%+v", s)
	}
}

func TestPortsThatAreClosed(t *testing.T) {
	t.Parallel()
	server := func(closed ...string) dccheck.Server {
		s := dccheck.Server{Host: "dc", Ports: map[string]dccheck.Port{}}
		for _, p := range dccheck.Ports {
			s.Ports[fmt.Sprint(p)] = dccheck.Port{State: dccheck.Open}
		}
		for _, p := range closed {
			s.Ports[p] = dccheck.Port{State: dccheck.Filtered}
		}
		return s
	}
	for name, c := range map[string]struct {
		servers []dccheck.Server
		want    State
		says    string
	}{
		"all open":               {[]dccheck.Server{server()}, OK, ""},
		"9389":                   {[]dccheck.Server{server("9389")}, Warning, "Active Directory Web Services"},
		"636":                    {[]dccheck.Server{server("636")}, Warning, "LDAPS"},
		"Kerberos":               {[]dccheck.Server{server("88")}, Failed, "88 is filtered"},
		"LDAP, not LDAPS":        {[]dccheck.Server{server("389")}, Warning, "389"},
		"both LDAPs":             {[]dccheck.Server{server("389", "636")}, Failed, "389"},
		"one of two controllers": {[]dccheck.Server{server("88", "389"), server()}, Warning, "another domain controller answers"},
		"no address":             {[]dccheck.Server{{Host: "gone", Error: "x"}, server()}, OK, ""},
	} {
		n := nodeCheck{reach: &dccheck.Report{Servers: c.servers}}
		if s := n.ports(); s.State != c.want || !strings.Contains(s.Detail, c.says) {
			t.Errorf("%s: %+v", name, s)
		}
	}
}

// A credential spec comes from anywhere, and what gmsactl prints is copied into a shell.
func TestANameInACredentialSpecIsNoCommand(t *testing.T) {
	t.Parallel()
	domain := credspec.Domain{SID: "S-1-5-21-1-2-3", GUID: "244818ae-87ac-4fcd-92ec-e79e5252348a", DNSName: "corp.example.com", NetBIOSName: "CORP", ForestDNSName: "example.com"}
	for name, c := range map[string]struct{ gmsa, domain, create, nltest, enable string }{
		"a good name":            {"web01", "corp.example.com", "gmsactl credspec create --gmsa web01 --account n/web", "nltest /dsgetdc:corp.example.com", "Enable-ADAccount web01$"},
		"a name with a command":  {"$(reboot)", "$(reboot)", "--gmsa '$(reboot)' --account", "", "Enable-ADAccount <gmsa>$"},
		"quotes and a semicolon": {"a';reboot;'", "a';reboot", "", "", "Enable-ADAccount <gmsa>$"},
		"a name that cannot be":  {"a;reboot", "a&reboot", "", "", "Enable-ADAccount <gmsa>$"},
		"a line of its own":      {"a\nreboot", "a\nreboot", "", "", "Enable-ADAccount <gmsa>$"},
		"quotes and a command":   {"a'`reboot`'", "`reboot`", `--gmsa 'a'\''` + "`reboot`" + `'\''' --account`, "", "Enable-ADAccount <gmsa>$"},
	} {
		spec := credspec.New(domain, c.gmsa, "n:web-creds")
		spec.DomainJoinConfig.Sid = "S-1-5-21-4-5-6"
		v := &verify{Options: Options{Program: "gmsactl"}, result: &Result{GMSA: c.gmsa}, spec: &spec, ref: credential.Reference{Namespace: "n", Secret: "web-creds"}}
		s := v.matches(domain)
		if s.State != Failed || !strings.Contains(s.Detail, "DomainJoinConfig.Sid is") || !strings.Contains(s.Remedy, c.create) || c.create == "" && strings.Contains(s.Remedy, "create") {
			t.Errorf("%s: %+v", name, s)
		}
		if s := v.fromDirectory(&directory.Error{Cause: directory.GMSADisabled}); !strings.Contains(s.Remedy, c.enable) {
			t.Errorf("%s: %+v", name, s)
		}
		if got := seeDNS(c.domain); !strings.Contains(got, c.nltest) || c.nltest == "" && strings.Contains(got, "nltest") {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// What keeps this machine from the domain is not what is wrong with the way.
func TestWhatLiesBetweenIsNotABrokenLink(t *testing.T) {
	t.Parallel()
	for cause, want := range map[*directory.Cause]State{
		directory.DCUnreachable: NotLookedAt, directory.Timeout: NotLookedAt, directory.CertificateNotTrusted: NotLookedAt, directory.ClockSkew: NotLookedAt,
		directory.WrongPassword: Failed, directory.NoReadPermission: Failed, directory.GMSADisabled: Failed, directory.DNSNotFound: NotLookedAt, directory.WrongDomain: NotLookedAt,
		directory.AnswerInvalid: NotLookedAt, directory.Unexpected: NotLookedAt,
	} {
		s := fromDirectory(fmt.Errorf("wrapped: %w", &directory.Error{Cause: cause}))
		if s.State != want || s.Cause != cause.Name || s.Remedy == "" {
			t.Errorf("%s: %+v", cause.Name, s)
		}
	}
	if s := fromDirectory(fmt.Errorf("interrupted: %w", context.Canceled)); s.State != NotLookedAt || s.Cause != "" {
		t.Errorf("%+v", s)
	}
	if s := fromDirectory(errors.New("something else")); s.State != NotLookedAt || s.Cause != "unexpected" {
		t.Errorf("%+v", s)
	}
}

func TestWhyAPodWaits(t *testing.T) {
	t.Parallel()
	waiting := func(reason, message string) corev1.ContainerStatus {
		return corev1.ContainerStatus{State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}}
	}
	for want, status := range map[string]corev1.PodStatus{
		"ErrImagePull: no such image …": {ContainerStatuses: []corev1.ContainerStatus{waiting("PodInitializing", ""), waiting("ErrImagePull", "no such image\nand more")}},
		"ContainerCreating":             {ContainerStatuses: []corev1.ContainerStatus{waiting("ContainerCreating", "")}},
		"Unschedulable: no node":        {Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: "Unschedulable", Message: "no node"}}},
		"exit code 2: gone": {InitContainerStatuses: []corev1.ContainerStatus{{State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 2, Message: "gone"}}}},
			ContainerStatuses: []corev1.ContainerStatus{waiting("PodInitializing", "")}},
		"Running": {Phase: corev1.PodRunning},
	} {
		if got := Waiting(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "x"}, Status: status}); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestTheCommandThatInstallsARelease(t *testing.T) {
	t.Parallel()
	if got := InstallCommand(credential.Reference{Namespace: "n", Secret: "web-creds"}); got != "helm install web ./charts/rancher-gmsa-account-provider --namespace n --wait" {
		t.Error(got)
	}
	if got := InstallCommand(credential.Reference{Namespace: "n", Secret: "web"}); got != "helm install web ./charts/rancher-gmsa-account-provider --namespace n --wait --set credentials.secretName=web" {
		t.Error(got)
	}
}

// docs/troubleshooting.md has every cause of this package.
func TestEveryCauseIsDocumented(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("step.go")
	if err != nil {
		t.Fatal(err)
	}
	causes := regexp.MustCompile(`\t[cC]ause\w+ += "([a-z-]+)"`).FindAllStringSubmatch(string(source), -1)
	if len(causes) < 20 {
		t.Fatalf("only %d causes were found", len(causes))
	}
	for _, c := range causes {
		if !strings.Contains(string(page), "`"+c[1]+"`") {
			t.Errorf("docs/troubleshooting.md has no %s", c[1])
		}
	}
}
