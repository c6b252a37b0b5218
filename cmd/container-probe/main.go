// Command container-probe is the probe of the HostProcess containers: it reports the result of the last self-check of
// the program in its container. It is small, because a probe counts against the container's memory limit.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/escape"
	"github.com/ccgrkc/ccgrkc/internal/selfcheck"
)

func main() { os.Exit(run(os.Args[1:], os.Getenv, os.Stdout, os.Stderr)) }

// run returns the exit code: 0 means that the program in this container works.
func run(args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("container-probe", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		escape.Fprintf(stderr, "Reports the result of the last self-check of the program in this container.\n\n"+
			"usage: container-probe [--accept-other]\n\n")
		flags.PrintDefaults()
		escape.Fprintf(stderr, "\nexit codes: 0 the program works, 1 it does not, or its last self-check is too old\n")
	}
	other := flags.Bool("accept-other", false, "also succeed if the program of another pod answers in place of this "+
		"one, as in a rolling update")
	if flags.Parse(args) != nil {
		return 1
	}
	fail := func(err error) int {
		escape.Fprintf(stderr, "container-probe: %v\n", err)
		return 1
	}
	if flags.NArg() > 0 {
		return fail(fmt.Errorf("unexpected argument %q", flags.Arg(0)))
	}
	path := selfcheck.Path(getenv)
	if path == "" {
		return fail(fmt.Errorf("CONTAINER_SANDBOX_MOUNT_POINT is not set: run this program in a HostProcess container"))
	}
	result, err := selfcheck.Read(path)
	if err != nil {
		return fail(err)
	}
	now := time.Now()
	if err := result.Err(now, *other); err != nil {
		return fail(err)
	}
	escape.Fprintf(stdout, "%s, %s ago\n", result.State, now.Round(0).Sub(result.Time).Round(time.Millisecond))
	return 0
}
