package uninstall

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/escape"
	"github.com/ccgrkc/ccgrkc/internal/escape/hostile"
)

// Attack: a container writes its termination message, and users who can create pods and nodes choose their names. helm
// prints the hook's log when the hook fails.
func TestNoPodControlsTheTerminal(t *testing.T) {
	value := hostile.All("win-1")
	text, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	pod := fmt.Sprintf(`{"metadata": {"name": %[1]s}, "spec": {"nodeName": %[1]s},
			"status": {"initContainerStatuses": [
				{"state": {"terminated": {"exitCode": 1, "reason": %[1]s, "message": %[1]s}}}]}}`, text)
	unbound := fmt.Sprintf(`{"metadata": {"name": %s}}`, text)
	pods := map[string][]string{cleaner.Selector: {pod, unbound}, web.Selector: {pod}}
	refused := func(_, _ string) (int, string) { return http.StatusForbidden, value }
	failed := func(_, _ string) (int, string) { return http.StatusInternalServerError, value }
	for name, test := range map[string]struct {
		cluster *cluster
		lines   int // of the error
	}{
		"pods":      {&cluster{set: allReady, pods: pods}, 4},
		"a refusal": {&cluster{status: refused}, 1},
		"a failure": {&cluster{status: failed}, 1},
	} {
		w, progress := watch(t, test.cluster)
		stopErr := w.Stop(t.Context(), web, 5*time.Millisecond)
		waitErr := w.Wait(t.Context(), cleaner, web, 5*time.Millisecond, 0)
		if waitErr == nil {
			t.Fatalf("%s: no error", name)
		}
		var printed strings.Builder // as main prints them
		escape.Fprintf(&printed, "uninstall-hook: %v\n", waitErr)
		if n := strings.Count(printed.String(), "\n"); n != test.lines {
			t.Errorf("%s: %d lines, want %d:\n%s", name, n, test.lines, printed.String())
		}
		if stopErr != nil {
			escape.Fprintf(&printed, "uninstall-hook: %v\n", stopErr)
		}
		if err := hostile.Check(printed.String()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := hostile.Check(progress.String()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
