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

// metrics are always counted, and served only if an address is configured. No label value comes from a client.
type metrics struct{ set *vm.Set }

// The label values that are not problem codes.
const (
	resultOK    = "ok"
	reasonLimit = "limit" // too many connections of unauthenticated clients
)

func newMetrics() *metrics {
	m := &metrics{vm.NewSet()}
	// rate() misses the first increase of a series that starts with 1.
	m.requests(resultOK, 0)
	info := fmt.Sprintf(`gmsa_account_provider_build_info{version=%q,goversion=%q}`, version.String(),
		runtime.Version())
	m.set.NewGauge(info, func() float64 { return 1 })
	return m
}

func (m *metrics) requests(code string, n int) {
	m.set.GetOrCreateCounter(fmt.Sprintf(`gmsa_account_provider_requests_total{code=%q}`, code)).Add(n)
}

func (m *metrics) staleResponse() {
	m.set.GetOrCreateCounter(`gmsa_account_provider_stale_responses_total`).Inc()
}

func (m *metrics) apiRequest(result string) {
	m.set.GetOrCreateCounter(fmt.Sprintf(`gmsa_account_provider_api_requests_total{result=%q}`, result)).Inc()
}

func (m *metrics) rejectedConnection(reason string) {
	m.set.GetOrCreateCounter(fmt.Sprintf(`gmsa_account_provider_rejected_connections_total{reason=%q}`, reason)).Inc()
}

// addGauges adds the gauges whose values are read with each scrape.
func (m *metrics) addGauges(s *secretCache, expiry func() time.Time) {
	m.set.NewGauge(`gmsa_account_provider_cache_age_seconds`, func() float64 {
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
