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

func TestACheckDoesNotRunIfOneItNeedsFailed(t *testing.T) {
	t.Parallel()
	var c checklist
	ran := []string{}
	check := func(name string, s Step, needs ...string) {
		c.check(name, needs, func() Step { ran = append(ran, name); return s })
	}
	check("ok", ok(""))
	check("failed", failed("c", "d", "r"))
	check("skipped", Step{State: Skipped})
	check("warning", warning("c", "d", "r"), "ok")
	check("after ok", ok(""), "ok", "warning")
	check("after failed", ok(""), "ok", "failed")
	check("after skipped", ok(""), "skipped")
	check("after both", ok(""), "skipped", "failed")
	check("after not run", ok(""), "after failed")
	check("after two skipped", ok(""), "after skipped")
	var states []State
	for _, s := range c.steps {
		states = append(states, s.State)
	}
	want := []State{OK, Failed, Skipped, Warning, OK, NotRun, Skipped, NotRun, NotRun, Skipped}
	if !slices.Equal(states, want) {
		t.Errorf("%q", states)
	}
	if !slices.Equal(ran, []string{"ok", "failed", "skipped", "warning", "after ok"}) {
		t.Errorf("these checks ran: %q", ran)
	}
	if s := FirstFailed(c.steps); s == nil || s.Name != "failed" {
		t.Errorf("%+v", s)
	}
	if s := c.step("after both"); s.Detail != "needs: failed" {
		t.Errorf("%+v", s)
	}
}

// The call that reads the node's clock can take seconds. Skew must not report a difference that is due to its duration.
func TestSkewIsTheSmallestPossibleDifference(t *testing.T) {
	t.Parallel()
	sent := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	received := sent.Add(10 * time.Second)
	for name, c := range map[string]struct {
		ahead time.Duration // the domain controller's clock, relative to this machine's
		node  time.Time
		want  time.Duration
	}{
		"at the start":                    {0, sent, 0},
		"at the end":                      {0, received, 0},
		"ahead":                           {0, received.Add(3 * time.Minute), 3 * time.Minute},
		"behind":                          {0, sent.Add(-6 * time.Minute), -6 * time.Minute},
		"only this machine is wrong":      {time.Hour, sent.Add(time.Hour + 5*time.Second), 0},
		"node and this machine are wrong": {time.Hour, sent.Add(5 * time.Second), -time.Hour + 5*time.Second},
	} {
		if skew := Skew(clock{ahead: c.ahead}, sent, received, c.node); skew != c.want {
			t.Errorf("%s: %v, want %v", name, skew, c.want)
		}
	}
}

func TestLimitsOfClockSkew(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	for apart, want := range map[time.Duration]State{
		0: OK, 2 * time.Minute: OK, 121 * time.Second: Warning, -121 * time.Second: Warning, 5 * time.Minute: Warning,
		301 * time.Second: Failed, -301 * time.Second: Failed, 30 * 24 * time.Hour: Failed,
	} {
		nodeTime := now.Add(apart).Format("2006-01-02T15:04:05.000Z07:00")
		c := nodeCheck{sent: now, received: now, report: &dccheck.Report{Time: nodeTime}}
		if s := c.compareClocks(); s.State != Skipped {
			t.Errorf("without a domain controller: %+v", s)
		}
		c.clock = &clock{server: "dc1"}
		if s := c.compareClocks(); s.State != want {
			t.Errorf("%v: %+v", apart, s)
		}
	}
	c := nodeCheck{report: &dccheck.Report{Time: "noon"}, NodeOptions: NodeOptions{clock: &clock{}}}
	if s := c.compareClocks(); s.State != Skipped {
		t.Errorf("%+v", s)
	}
}

func TestClosedPortsFailOrWarn(t *testing.T) {
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
		servers  []dccheck.Server
		want     State
		contains string
	}{
		"all open":        {[]dccheck.Server{server()}, OK, ""},
		"9389":            {[]dccheck.Server{server("9389")}, Warning, "Active Directory Web Services"},
		"636":             {[]dccheck.Server{server("636")}, Warning, "LDAPS"},
		"Kerberos":        {[]dccheck.Server{server("88")}, Failed, "88 is filtered"},
		"LDAP, not LDAPS": {[]dccheck.Server{server("389")}, Warning, "389"},
		"both LDAPs":      {[]dccheck.Server{server("389", "636")}, Failed, "389"},
		"one of two controllers": {[]dccheck.Server{server("88", "389"), server()}, Warning,
			"another domain controller answers"},
		"no address": {[]dccheck.Server{{Host: "gone", Error: "x"}, server()}, OK, ""},
	} {
		n := nodeCheck{report: &dccheck.Report{Servers: c.servers}}
		if s := n.ports(); s.State != c.want || !strings.Contains(s.Detail, c.contains) {
			t.Errorf("%s: %+v", name, s)
		}
	}
}

// A credential spec can come from an untrusted source, and users copy the commands that gmsactl prints.
func TestANameInACredentialSpecDoesNotBecomeACommand(t *testing.T) {
	t.Parallel()
	domain := credspec.Domain{
		SID:           "S-1-5-21-1-2-3",
		GUID:          "244818ae-87ac-4fcd-92ec-e79e5252348a",
		DNSName:       "corp.example.com",
		NetBIOSName:   "CORP",
		ForestDNSName: "example.com",
	}
	for name, c := range map[string]struct{ gmsa, domain, create, nltest, enable string }{
		"a valid name": {"web01", "corp.example.com", "gmsactl credspec create --gmsa web01 --account n/web",
			"nltest /dsgetdc:corp.example.com", "Enable-ADAccount web01$"},
		"a name with a command": {"$(reboot)", "$(reboot)", "--gmsa '$(reboot)' --account", "",
			"Enable-ADAccount <gmsa>$"},
		"quotes and a semicolon": {"a';reboot;'", "a';reboot", "", "", "Enable-ADAccount <gmsa>$"},
		"an invalid name":        {"a;reboot", "a&reboot", "", "", "Enable-ADAccount <gmsa>$"},
		"a second line":          {"a\nreboot", "a\nreboot", "", "", "Enable-ADAccount <gmsa>$"},
		"quotes and a command": {"a'`reboot`'", "`reboot`", `--gmsa 'a'\''` + "`reboot`" + `'\''' --account`, "",
			"Enable-ADAccount <gmsa>$"},
	} {
		spec := credspec.New(domain, c.gmsa, "n:web-creds")
		spec.DomainJoinConfig.Sid = "S-1-5-21-4-5-6"
		v := &verify{
			Options: Options{Program: "gmsactl"},
			result:  &Result{GMSA: c.gmsa},
			spec:    &spec,
			ref:     credential.Reference{Namespace: "n", Secret: "web-creds"},
		}
		s := v.matchDomain(domain)
		if s.State != Failed || !strings.Contains(s.Detail, "DomainJoinConfig.Sid is") ||
			!strings.Contains(s.Remedy, c.create) ||
			c.create == "" && strings.Contains(s.Remedy, "create") {
			t.Errorf("%s: %+v", name, s)
		}
		if s := v.directoryStep(&directory.Error{Cause: directory.GMSADisabled}); !strings.Contains(s.Remedy,
			c.enable) {
			t.Errorf("%s: %+v", name, s)
		}
		if got := dnsRemedy(c.domain); !strings.Contains(got, c.nltest) ||
			c.nltest == "" && strings.Contains(got, "nltest") {
			t.Errorf("%s: %s", name, got)
		}
	}
}

func TestInconclusiveCausesSkipACheck(t *testing.T) {
	t.Parallel()
	for cause, want := range map[*directory.Cause]State{
		directory.DCUnreachable:         Skipped,
		directory.Timeout:               Skipped,
		directory.CertificateNotTrusted: Skipped,
		directory.ClockSkew:             Skipped,
		directory.WrongPassword:         Failed,
		directory.NoReadPermission:      Failed,
		directory.GMSADisabled:          Failed,
		directory.DNSNotFound:           Skipped,
		directory.WrongDomain:           Skipped,
		directory.AnswerInvalid:         Skipped,
		directory.Unexpected:            Skipped,
	} {
		s := directoryStep(fmt.Errorf("wrapped: %w", &directory.Error{Cause: cause}))
		if s.State != want || s.Cause != cause.Name || s.Remedy == "" {
			t.Errorf("%s: %+v", cause.Name, s)
		}
	}
	if s := directoryStep(fmt.Errorf("interrupted: %w", context.Canceled)); s.State != Skipped || s.Cause != "" {
		t.Errorf("%+v", s)
	}
	if s := directoryStep(errors.New("something else")); s.State != Skipped || s.Cause != "unexpected" {
		t.Errorf("%+v", s)
	}
}

func TestWaitingReasonComesFromThePodStatus(t *testing.T) {
	t.Parallel()
	waiting := func(reason, message string) corev1.ContainerStatus {
		state := corev1.ContainerStateWaiting{Reason: reason, Message: message}
		return corev1.ContainerStatus{State: corev1.ContainerState{Waiting: &state}}
	}
	for want, status := range map[string]corev1.PodStatus{
		"ErrImagePull: no such image …": {ContainerStatuses: []corev1.ContainerStatus{waiting("PodInitializing", ""),
			waiting("ErrImagePull", "no such image\nand more")}},
		"ContainerCreating": {ContainerStatuses: []corev1.ContainerStatus{waiting("ContainerCreating",
			"")}},
		"Unschedulable: no node": {Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled,
			Status: corev1.ConditionFalse, Reason: "Unschedulable", Message: "no node"}}},
		"exit code 2: gone": {InitContainerStatuses: []corev1.ContainerStatus{{State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 2, Message: "gone"}}}},
			ContainerStatuses: []corev1.ContainerStatus{waiting("PodInitializing", "")}},
		"Running": {Phase: corev1.PodRunning},
	} {
		if got := WaitingReason(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "x"}, Status: status}); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestInstallCommandSetsOnlyACustomSecretName(t *testing.T) {
	t.Parallel()
	for secret, want := range map[string]string{
		"web-creds": "helm install web ./charts/rancher-gmsa-account-provider --namespace n --wait",
		"web":       "helm install web ./charts/rancher-gmsa-account-provider --namespace n --wait --set credentials.secretName=web",
	} {
		if got := InstallCommand(credential.Reference{Namespace: "n", Secret: secret}); got != want {
			t.Error(got)
		}
	}
}

func TestEveryCauseOfVerifyIsDocumented(t *testing.T) {
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
		t.Fatalf("found only %d causes", len(causes))
	}
	for _, c := range causes {
		if !strings.Contains(string(page), "`"+c[1]+"`") {
			t.Errorf("docs/troubleshooting.md does not contain %s", c[1])
		}
	}
}
