package crashloop

import (
	"context"
	"testing"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/soak"
	"github.com/ccgrkc/ccgrkc/lab/env/cluster"
	"github.com/ccgrkc/ccgrkc/lab/labtest"
)

// Attack: a crash loop of the API server revokes every account, denies every pod and fails an uninstallation.
func TestACrashLoopOfTheAPIServerGivesNoFalseVerdict(t *testing.T) {
	labtest.Alone(t)
	start, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	c, err := cluster.Start(start, t.TempDir())
	labtest.Must(t, err)
	t.Cleanup(c.Stop)
	r, err := Run(t.Context(), c, max(20, soak.N(200)))
	labtest.Must(t, err)
	t.Log(r)
	if len(r.False) > 0 || r.Calls == 0 || r.Admissions == 0 || r.Uninstall == 0 || r.Refused == 0 {
		t.Errorf("false verdicts, or no use: %s", r)
	}
}
