package lifecycle

import (
	"testing"
	"time"

	"github.com/ccgrkc/ccgrkc/lab/env/cluster"
	"github.com/ccgrkc/ccgrkc/lab/env/tools"
	"github.com/ccgrkc/ccgrkc/lab/labtest"
)

// For five minutes, a node and the API server cannot reach each other. Calls succeed with stale credentials.
// Afterwards, a changed password has an effect.
func TestCallsSucceedOnANodeCutOffForFiveMinutes(t *testing.T) {
	t.Parallel()
	c := start(t, "win-1")
	installBoth(t, c)
	n := c.Node("win-1")
	n.CutOff()
	cutOff := time.Now()
	labtest.Must(t, c.PutSecret(t.Context(), namespace, "web-creds", "changed"))
	for calls := 0; time.Since(cutOff) < 5*time.Minute; calls++ {
		a, err := n.Stage.Fetch(t.Context(), input)
		if err != nil || a.HResult != "" {
			t.Fatalf("call %d, %s after the cut: %+v, %v", calls, time.Since(cutOff).Round(time.Second), a, err)
		}
		time.Sleep(10 * time.Second)
	}
	n.Reconnect()
	waitForPassword(t, n, input, "changed")
	labtest.Must(t, cluster.Eventually(t.Context(), time.Minute, func() error {
		_, err := c.Run(t.Context(), tools.Kubectl, "wait", "node/win-1", "--for=condition=Ready", "--timeout=1s")
		return err
	}))
}
