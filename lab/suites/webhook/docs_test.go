package webhook

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ccgrkc/ccgrkc/lab/env/cluster"
	"github.com/ccgrkc/ccgrkc/lab/labtest"
)

// Runs every command of docs/webhook.md in its order. A compromised CA is replaced, and the chart is
// uninstalled.
func TestTheCommandsOfTheWebhookPage(t *testing.T) {
	t.Parallel()
	l := own(t)
	content, err := os.ReadFile(filepath.Join(filepath.Dir(cluster.Chart("")), "docs", "webhook.md"))
	must(t, err)
	run := func(section string) {
		t.Helper()
		cmd, err := l.Shell(t.Context(), "set -x\n"+labtest.ShellBlocks(section))
		must(t, err)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	bundle := func() string {
		t.Helper()
		c, err := l.client.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(t.Context(), cluster.Webhook, metav1.GetOptions{})
		must(t, err)
		return string(c.Webhooks[0].ClientConfig.CABundle)
	}
	before, replace, ok := strings.Cut(string(content), "### Replace a compromised CA")
	replace, after, ok2 := strings.Cut(replace, "\n## When it is unavailable")
	if !ok || !ok2 {
		t.Fatal("this test does not match the sections of the page")
	}
	run(before)
	old := bundle()
	run(replace)
	if now := bundle(); old == "" || strings.Contains(now, old) {
		t.Errorf("the old CA is still trusted: %q in %q", old, now)
	}
	run(after)
	if _, err := l.client.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(t.Context(), cluster.Webhook, metav1.GetOptions{}); err == nil {
		t.Error("the webhook is still installed")
	}
}
