// Package logging creates a program's logger from its flags. Only cmd imports it; packages get a *slog.Logger.
package logging

import (
	"fmt"
	"io"
	"log/slog"

	"github.com/spf13/pflag"

	"github.com/ccgrkc/ccgrkc/internal/escape"
)

// Flags are --log-level and --log-format.
type Flags struct{ level, format string }

// Add defines the flags.
func (f *Flags) Add(flags *pflag.FlagSet) {
	flags.StringVar(&f.level, "log-level", "info", "minimum level: debug, info, warn or error")
	flags.StringVar(&f.format, "log-format", "text", "format of the log on standard error: text or json")
}

// Logger returns a logger that writes to w. It escapes all values: see package escape.
func (f *Flags) Logger(w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(f.level)); err != nil {
		return nil, fmt.Errorf("--log-level %q: must be debug, info, warn or error", f.level)
	}
	w = escape.LogWriter(w)
	options := &slog.HandlerOptions{Level: level}
	switch f.format {
	case "text":
		return slog.New(slog.NewTextHandler(w, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, options)), nil
	default:
		return nil, fmt.Errorf("--log-format %q: must be text or json", f.format)
	}
}
