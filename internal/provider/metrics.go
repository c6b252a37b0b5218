package provider

import (
	"fmt"
	"io"
	"math"
	"runtime"
	"time"

	vm "github.com/VictoriaMetrics/metrics"

	"github.com/ccgrkc/ccgrkc/internal/version"
)

// metrics are counted always and shown only if an address is given. None has a label that comes from outside.
type metrics struct{ set *vm.Set }

func newMetrics() *metrics {
	m := &metrics{vm.NewSet()}
	// A series that first appears when it is 1 hides its first increase from rate().
	m.called("ok", 0)
	m.set.NewGauge(fmt.Sprintf(`gmsa_account_provider_build_info{version=%q,goversion=%q}`, version.String(), runtime.Version()), func() float64 { return 1 })
	return m
}

func (m *metrics) called(code string, n int) {
	m.set.GetOrCreateCounter(fmt.Sprintf(`gmsa_account_provider_calls_total{code=%q}`, code)).Add(n)
}

func (m *metrics) stale() {
	m.set.GetOrCreateCounter(`gmsa_account_provider_stale_answers_total`).Inc()
}

func (m *metrics) fetched(result string) {
	m.set.GetOrCreateCounter(fmt.Sprintf(`gmsa_account_provider_api_fetches_total{result=%q}`, result)).Inc()
}

func (m *metrics) refused(reason string) {
	m.set.GetOrCreateCounter(fmt.Sprintf(`gmsa_account_provider_refused_connections_total{reason=%q}`, reason)).Inc()
}

// watch adds the gauges that are read when they are asked for.
func (m *metrics) watch(s *source, expiry func() time.Time) {
	m.set.NewGauge(`gmsa_account_provider_copy_age_seconds`, func() float64 {
		age, have, _ := s.state()
		if !have {
			return math.NaN()
		}
		return age.Seconds()
	})
	m.set.NewGauge(`gmsa_account_provider_certificate_expiry_timestamp_seconds`, func() float64 {
		return float64(expiry().Unix())
	})
}

func (m *metrics) write(w io.Writer) { m.set.WritePrometheus(w) }
