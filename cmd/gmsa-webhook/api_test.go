package main

import (
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/admission"
	"github.com/ccgrkc/ccgrkc/internal/apitest"
)

func TestTheInterfaceIsStable(t *testing.T) {
	metrics := admission.NewMetrics(time.Now)
	handler := admission.NewHandler(admission.Config{Metrics: metrics, Log: slog.New(slog.DiscardHandler)})
	for _, path := range []string{"/mutate", "/validate"} {
		// Any request creates the series of the duration.
		handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("POST", path, strings.NewReader("")))
	}
	var exposition strings.Builder
	metrics.Write(&exposition)
	apitest.Compare(t, apitest.Commands(command()), apitest.Metrics(exposition.String()),
		"exit codes: 0 success, 1 failure\n")
}
