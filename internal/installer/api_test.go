//go:build !windows

package installer

import (
	"fmt"
	"testing"

	"github.com/ccgrkc/ccgrkc/internal/apitest"
)

func TestReportAndExitCodesAreStable(t *testing.T) {
	codes := fmt.Sprintf("exit codes: %d installed, %d failed, %d not installed, %d drift\n",
		ExitInstalled, ExitFailed, ExitNotInstalled, ExitDrift)
	states := fmt.Sprintf("states: %s, %s; rows: %s, %s, %s\n", Installed, NotInstalled, OK, Drift, Missing)
	apitest.Compare(t, codes, states, apitest.Fields(Report{}))
}
