package plugin

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/escape"
	"github.com/ccgrkc/ccgrkc/internal/plugin/cause"
)

// Event is an entry of the table of causes with the two inserts of its message.
type Event struct {
	Cause  *cause.Cause
	Input  string // %1: the plugin input, quoted, in ASCII
	Detail string // %2
}

const (
	maxInput  = 200  // characters of a plugin input in an event
	maxDetail = 1000 // characters of a detail; ReportEvent accepts 31,839 in total
)

// Report writes an event, unless the same one was written within the last minute. It waits for reportTimeout.
func (p *Plugin) Report(c *cause.Cause, input, detail string) {
	if p.config.Report == nil {
		return
	}
	ok, omitted := p.limit.allow(c, input, time.Now())
	if !ok {
		return
	}
	if omitted > 0 {
		detail += fmt.Sprintf(" (%d events of the same kind were omitted before it)", omitted)
	}
	e := Event{Cause: c, Input: quoteInput(input), Detail: printable(detail)}
	ctx, cancel := context.WithTimeout(context.Background(), reportTimeout)
	defer cancel()
	// Without the event log there is no place for the error.
	_, _ = within(ctx, p.reports, func() (struct{}, error) { p.config.Report(e); return struct{}{}, nil },
		func(struct{}) {})
}

// quoteInput makes any plugin input safe for an event.
func quoteInput(input string) string {
	runes := []rune(input[:min(len(input), 4*(maxInput+1))])
	cut := ""
	if len(runes) > maxInput {
		runes, cut = runes[:maxInput], " (truncated)"
	}
	return withoutPercent(strconv.QuoteToASCII(string(runes))) + cut
}

// printable makes a detail, which can quote data from the network, safe for one line of an event.
func printable(s string) string {
	text, more := escape.Limited(s, maxDetail)
	if more {
		text += " (truncated)"
	}
	return withoutPercent(text)
}

// withoutPercent writes percent signs as \x25: ReportEvent's documentation forbids %n in an insert, because Event
// Viewer expands it, and %%n refers to another file.
func withoutPercent(s string) string { return strings.ReplaceAll(s, "%", `\x25`) }

// limiter allows one event a minute for each cause and input, so that a pod in a crash loop does not fill the log.
// The zero value is ready for use.
type limiter struct {
	mu   sync.Mutex
	seen map[event]*written
}

type event struct {
	cause *cause.Cause
	input string
}

type written struct {
	at      time.Time
	omitted int
}

const (
	interval = time.Minute
	// maxSeen limits the memory for inputs. Beyond it, all inputs of a cause count as one.
	maxSeen = 256
)

// allow reports whether to write the event, and how many of the same kind were omitted since the last one.
func (l *limiter) allow(c *cause.Cause, input string, now time.Time) (ok bool, omitted int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := event{c, input[:min(len(input), 4*maxInput)]}
	if l.seen == nil {
		l.seen = map[event]*written{}
	}
	if l.seen[key] == nil && len(l.seen) >= maxSeen {
		for k, p := range l.seen {
			if now.Sub(p.at) >= interval {
				delete(l.seen, k)
			}
		}
		if len(l.seen) >= maxSeen {
			key.input = ""
		}
	}
	p := l.seen[key]
	if p == nil {
		l.seen[key] = &written{at: now}
		return true, 0
	}
	if now.Sub(p.at) < interval {
		p.omitted++
		return false, 0
	}
	omitted = p.omitted
	*p = written{at: now}
	return true, omitted
}
