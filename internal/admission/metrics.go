package admission

import (
	"fmt"
	"io"
	"math"
	"runtime"
	"time"

	vm "github.com/VictoriaMetrics/metrics"

	"github.com/ccgrkc/ccgrkc/internal/version"
)

// Metrics are the webhook's. None has a label that comes from outside.
type Metrics struct{ set *vm.Set }

// NewMetrics returns metrics in which expiry tells when the serving certificate ends; the zero time means that there is none.
func NewMetrics(expiry func() time.Time) *Metrics {
	m := &Metrics{vm.NewSet()}
	// A series that first appears when it is 1 hides its first increase from rate().
	for _, path := range []string{"mutate", "validate"} {
		for _, result := range []string{resultAllowed, resultDenied, resultFailed, resultInvalid, resultBusy} {
			m.set.NewCounter(reviews(path, result))
		}
	}
	for _, kind := range []string{"input", "release", "secret"} {
		m.set.NewCounter(warnings(kind))
	}
	m.set.NewCounter(unansweredQuestions)
	m.set.NewGauge(fmt.Sprintf(`gmsa_webhook_build_info{version=%q,goversion=%q}`, version.String(), runtime.Version()), func() float64 { return 1 })
	m.set.NewGauge(`gmsa_webhook_certificate_expiry_timestamp_seconds`, func() float64 {
		t := expiry()
		if t.IsZero() {
			return math.NaN()
		}
		return float64(t.Unix())
	})
	return m
}

// Results of a review: the pod's; an answer that the API server owes us; a request that was no review of a pod; too many at once.
const (
	resultAllowed = "allowed"
	resultDenied  = "denied"
	resultFailed  = "failed"
	resultInvalid = "invalid"
	resultBusy    = "busy"
)

func reviews(path, result string) string {
	return fmt.Sprintf(`gmsa_webhook_reviews_total{path=%q,result=%q}`, path, result)
}

const unansweredQuestions = `gmsa_webhook_unanswered_account_questions_total`

func warnings(kind string) string { return fmt.Sprintf(`gmsa_webhook_warnings_total{kind=%q}`, kind) }

func (m *Metrics) reviewed(path, result string, took time.Duration) {
	m.set.GetOrCreateCounter(reviews(path, result)).Inc()
	m.set.GetOrCreateSummary(fmt.Sprintf(`gmsa_webhook_review_duration_seconds{path=%q}`, path)).Update(took.Seconds())
}

func (m *Metrics) warned(kind string) { m.set.GetOrCreateCounter(warnings(kind)).Inc() }

func (m *Metrics) unanswered() { m.set.GetOrCreateCounter(unansweredQuestions).Inc() }

// Write writes them in the text format of Prometheus.
func (m *Metrics) Write(w io.Writer) { m.set.WritePrometheus(w) }
