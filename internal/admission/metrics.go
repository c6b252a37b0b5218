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

// Metrics are the webhook's metrics. No label value comes from a request.
type Metrics struct{ set *vm.Set }

// NewMetrics returns the metrics. expiry returns the expiry of the serving certificate, or the zero time without one.
func NewMetrics(expiry func() time.Time) *Metrics {
	m := &Metrics{vm.NewSet()}
	// All counters start at 0: rate() does not see the first increase of a series that starts at 1.
	for _, path := range []string{"mutate", "validate"} {
		for _, result := range []string{resultAllowed, resultDenied, resultFailed, resultInvalid, resultBusy} {
			m.set.NewCounter(requestsTotal(path, result))
		}
	}
	for _, reason := range []string{warnPluginInput, warnRelease, warnSecret} {
		m.set.NewCounter(warningsTotal(reason))
	}
	m.set.NewCounter(accountCheckErrorsTotal)
	build := fmt.Sprintf(`gmsa_webhook_build_info{version=%q,goversion=%q}`, version.String(), runtime.Version())
	m.set.NewGauge(build, func() float64 { return 1 })
	m.set.NewGauge(`gmsa_webhook_certificate_expiry_timestamp_seconds`, func() float64 {
		t := expiry()
		if t.IsZero() {
			return math.NaN()
		}
		return float64(t.Unix())
	})
	return m
}

// Results of an admission request.
const (
	resultAllowed = "allowed"
	resultDenied  = "denied"
	resultFailed  = "failed"  // the API server did not answer the webhook
	resultInvalid = "invalid" // not an admission request for a pod
	resultBusy    = "busy"    // too many concurrent requests
)

const accountCheckErrorsTotal = `gmsa_webhook_account_check_errors_total`

func requestsTotal(path, result string) string {
	return fmt.Sprintf(`gmsa_webhook_admission_requests_total{path=%q,result=%q}`, path, result)
}

func warningsTotal(reason string) string {
	return fmt.Sprintf(`gmsa_webhook_admission_warnings_total{reason=%q}`, reason)
}

func (m *Metrics) observe(path, result string, took time.Duration) {
	m.set.GetOrCreateCounter(requestsTotal(path, result)).Inc()
	duration := fmt.Sprintf(`gmsa_webhook_admission_request_duration_seconds{path=%q}`, path)
	m.set.GetOrCreateSummary(duration).Update(took.Seconds())
}

func (m *Metrics) warned(reason string) { m.set.GetOrCreateCounter(warningsTotal(reason)).Inc() }

func (m *Metrics) accountCheckFailed() { m.set.GetOrCreateCounter(accountCheckErrorsTotal).Inc() }

// Write writes the metrics in the Prometheus text format.
func (m *Metrics) Write(w io.Writer) { m.set.WritePrometheus(w) }
