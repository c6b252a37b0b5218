package installer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/com"
	"github.com/ccgrkc/ccgrkc/internal/plugin/selftest"
)

// selfTestUntil activates the class, out of process as ccg.exe does, until the DLL that was installed answers. It has to be
// asked more than once: a surrogate that was running before the upgrade goes on answering from the last version, until
// its callers have let go of it. With no time to wait it asks once, and it does not wait where it is refused: the class's
// permissions are as they should be by now, so that an administrator who is not SYSTEM is refused every time.
func (c *Config) selfTestUntil(ctx context.Context, wait time.Duration) SelfTest {
	deadline := time.Now().Add(wait)
	for {
		answer, refused := c.selfTestOnce(ctx)
		if answer.Error == "" || refused || !time.Now().Before(deadline) {
			return answer
		}
		c.Log.Debug("the self-test has not passed yet", "error", answer.Error)
		select {
		case <-ctx.Done():
			return answer
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// activationLimit bounds one activation, which COM itself lets hang for minutes when a surrogate does not start.
const activationLimit = 30 * time.Second

// eAccessDenied is E_ACCESSDENIED ([MS-ERREF] 2.1.1), COM's refusal to start or to call a server.
const eAccessDenied com.HRESULT = 0x80070005

func (c *Config) selfTestOnce(ctx context.Context) (answer SelfTest, refused bool) {
	activate := c.activate
	if activate == nil {
		activate = activateByCOM
	}
	type outcome struct {
		report selftest.Report
		err    error
	}
	done := make(chan outcome, 1)
	go func() { // no COM call can be cancelled, it can only be left behind
		report, err := activate()
		done <- outcome{report, err}
	}()
	var got outcome
	select {
	case got = <-done:
	case <-ctx.Done():
		got.err = ctx.Err()
	case <-time.After(activationLimit):
		got.err = fmt.Errorf("no answer within %v", activationLimit)
	}
	answer.Report = got.report
	if got.err != nil {
		answer.Error = got.err.Error()
	} else if !strings.EqualFold(strings.TrimPrefix(answer.Module, `\\?\`), c.dllPath()) {
		answer.Error = fmt.Sprintf("the class was answered from %s, not from %s: a surrogate (process %d) that has another "+
			"version loaded is still running", answer.Module, c.dllPath(), answer.PID)
	}
	var hr com.HRESULT
	return answer, errors.As(got.err, &hr) && hr == eAccessDenied
}

func (s SelfTest) asError() error {
	if s.Error == "" {
		return nil
	}
	return errors.New("the class is registered but does not answer: " + s.Error + "; only SYSTEM and services may activate it, " +
		"so run the installer as SYSTEM; else look for source CCGRKC in the Application log")
}

func activateByCOM() (selftest.Report, error) {
	object, err := com.Activate(com.ClassID)
	if err != nil {
		return selftest.Report{}, err
	}
	defer object.Release()
	result, err := object.GetPasswordCredentials(selftest.Input)
	if err != nil {
		return selftest.Report{}, err
	}
	return selftest.Parse(result.DomainName)
}
