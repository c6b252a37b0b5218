package logging

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/ccgrkc/ccgrkc/internal/escape/hostile"
)

// Attack: an API server, a Secret or a client chooses a text that a provider, a webhook or an installer logs.
func TestNoValueInALogControlsTheTerminal(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		for what, value := range hostile.Values("web") {
			var flags Flags
			set := pflag.NewFlagSet("", pflag.ContinueOnError)
			flags.Add(set)
			if err := set.Parse([]string{"--log-format", format}); err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			log, err := flags.Logger(&out)
			if err != nil {
				t.Fatal(err)
			}
			log.With(value, value).WithGroup(value).Warn(value, "err", errors.New(value), value, []string{value},
				"object", struct{ S string }{value})
			slog.NewLogLogger(log.Handler(), slog.LevelInfo).Print(value)
			log.Log(context.Background(), slog.LevelDebug, "not logged")
			if err := hostile.Check(out.String()); err != nil {
				t.Errorf("%s, %s: %v", format, what, err)
			}
			if n := strings.Count(out.String(), "\n"); n != 2 {
				t.Errorf("%s, %s: %d lines, want 2: %q", format, what, n, out.String())
			}
			for line := range strings.Lines(out.String()) {
				if format == "json" && !json.Valid([]byte(line)) {
					t.Errorf("%s: not JSON: %s", what, line)
				}
			}
		}
	}
}
