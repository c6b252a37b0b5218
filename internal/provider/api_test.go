package provider

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/apitest"
	"github.com/ccgrkc/ccgrkc/internal/credential"
)

func TestMetricsAndJSONFieldsAreStable(t *testing.T) {
	m := newMetrics()
	m.staleResponse()
	m.rejectedConnection(reasonLimit)
	m.apiRequest(resultOK)
	for _, code := range credential.ProblemCodes {
		m.requests(string(code), 1)
		m.apiRequest(string(code))
	}
	m.addGauges(&secretCache{ctx: context.Background()}, time.Now)
	var metrics bytes.Buffer
	m.write(&metrics)
	apitest.Compare(t, apitest.Metrics(metrics.String()), apitest.Fields(Health{}),
		apitest.Fields(credential.Problem{}))
}
