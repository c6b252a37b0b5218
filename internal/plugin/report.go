package plugin

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/ccgrkc/ccgrkc/internal/plugin/cause"
)

// Event is what Config.Report gets: an entry of the table and the two inserts of its message.
type Event struct {
	Cause  *cause.Cause
	Input  string // %1: the plugin input, quoted, in ASCII
	Detail string // %2
}

const (
	maxInput  = 200  // characters of a plugin input in an event
	maxDetail = 1000 // characters of a detail; ReportEvent takes 31,839 in all
)

// Report makes an event, unless the same one was made within the last minute.
func (p *Plugin) Report(c *cause.Cause, input, detail string) {
	if p.config.Report == nil {
		return
	}
	ok, omitted := p.limit.allow(c, input, time.Now())
	if !ok {
		return
	}
	if omitted > 0 {
		detail += fmt.Sprintf(" (%d events like this one were left out before it)", omitted)
	}
	p.config.Report(Event{Cause: c, Input: quoteInput(input), Detail: printable(detail)})
}

// quoteInput makes a plugin input fit for an event, whatever it holds.
func quoteInput(input string) string {
	runes := []rune(input[:min(len(input), 4*(maxInput+1))])
	cut := ""
	if len(runes) > maxInput {
		runes, cut = runes[:maxInput], " (cut)"
	}
	return harmless(strconv.QuoteToASCII(string(runes))) + cut
}

// printable makes a detail, which may quote what came over the network, fit for one line of an event.
func printable(s string) string {
	var b strings.Builder
	n := 0
	for _, r := range s {
		if n++; n > maxDetail {
			b.WriteString(" (cut)")
			break
		}
		if unicode.IsPrint(r) {
			b.WriteRune(r)
			continue
		}
		q := strconv.QuoteRuneToASCII(r)
		b.WriteString(q[1 : len(q)-1])
	}
	return harmless(b.String())
}

// harmless writes percent signs as \x25: ReportEvent's documentation forbids %n in an insert, because Event Viewer expands
// it, and %%n would be looked up in another file.
func harmless(s string) string { return strings.ReplaceAll(s, "%", `\x25`) }

// limiter lets one event a minute pass for each cause and input, so that a pod in a crash loop does not fill the log.
// The zero value is ready for use.
type limiter struct {
	mu   sync.Mutex
	seen map[event]*passed
}

type event struct {
	cause *cause.Cause
	input string
}

type passed struct {
	at      time.Time
	omitted int
}

const (
	quiet = time.Minute
	// maxSeen bounds what strangers' inputs can occupy. Past it all inputs of a cause count as one.
	maxSeen = 256
)

// allow tells whether to write the event, and how many like it were left out since the last.
func (l *limiter) allow(c *cause.Cause, input string, now time.Time) (ok bool, omitted int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := event{c, input[:min(len(input), 4*maxInput)]}
	if l.seen == nil {
		l.seen = map[event]*passed{}
	}
	if l.seen[key] == nil && len(l.seen) >= maxSeen {
		for k, p := range l.seen {
			if now.Sub(p.at) >= quiet {
				delete(l.seen, k)
			}
		}
		if len(l.seen) >= maxSeen {
			key.input = ""
		}
	}
	p := l.seen[key]
	if p == nil {
		l.seen[key] = &passed{at: now}
		return true, 0
	}
	if now.Sub(p.at) < quiet {
		p.omitted++
		return false, 0
	}
	omitted = p.omitted
	*p = passed{at: now}
	return true, omitted
}
