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

// selfTestUntil activates the class in another process, as ccg.exe does, until the installed DLL responds. After an
// upgrade, it must retry: a running surrogate responds with the previous version until its callers release it. With a
// wait of zero it tries once. It does not retry if access is denied: the class's permissions are correct by now, so
// every attempt of an administrator who is not SYSTEM fails.
func (c *Config) selfTestUntil(ctx context.Context, wait time.Duration) SelfTest {
	deadline := time.Now().Add(wait)
	for {
		result, denied := c.selfTestOnce(ctx)
		if result.Error == "" || denied || !time.Now().Before(deadline) {
			return result
		}
		c.Log.Debug("the self-test failed; retrying", "error", result.Error)
		select {
		case <-ctx.Done():
			return result
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// activationTimeout limits one activation. If a surrogate does not start, COM itself waits for minutes.
const activationTimeout = 30 * time.Second

// eAccessDenied is E_ACCESSDENIED ([MS-ERREF] 2.1.1), if the caller has no permission to activate the class.
const eAccessDenied com.HRESULT = 0x80070005

func (c *Config) selfTestOnce(ctx context.Context) (result SelfTest, denied bool) {
	activate := c.activate
	if activate == nil {
		activate = activateByCOM
	}
	type outcome struct {
		report selftest.Report
		err    error
	}
	done := make(chan outcome, 1)
	go func() { // a COM call cannot be canceled, only abandoned
		report, err := activate()
		done <- outcome{report, err}
	}()
	var got outcome
	select {
	case got = <-done:
	case <-ctx.Done():
		got.err = ctx.Err()
	case <-time.After(activationTimeout):
		got.err = fmt.Errorf("no response within %v", activationTimeout)
	}
	result.Report = got.report
	if got.err != nil {
		result.Error = got.err.Error()
	} else if !strings.EqualFold(strings.TrimPrefix(result.Module, `\\?\`), c.dllPath()) {
		result.Error = fmt.Sprintf("the response came from %s, not from %s: a surrogate (process %d) with another "+
			"version is still running",
			result.Module, c.dllPath(), result.PID)
	}
	var hr com.HRESULT
	return result, errors.As(got.err, &hr) && hr == eAccessDenied
}

func (s SelfTest) asError() error {
	if s.Error == "" {
		return nil
	}
	return errors.New("the class is registered but does not respond: " + s.Error + "; only SYSTEM and services can " +
		"activate it, so run the installer as SYSTEM; otherwise check the Application log, source CCGRKC")
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
