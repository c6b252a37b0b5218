// Command lab-test runs the lab's tests. Suites run in parallel. The suites that take longest start first. The number
// of concurrent tests depends on the number of CPU cores. The result of a suite is printed when the suite exits. A test
// that calls labtest.Alone runs after all others. Other commands, such as the linters, can run in parallel with the
// suites, because the suites use little CPU.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

func main() {
	var beside []*job
	suite := flag.String("suite", "", "run only the suites with this `name`, such as webhook or env/kubelet")
	test := flag.String("run", "", "run only the tests that match this regular `expression`, in every module")
	first := flag.String("first", "", "`command` to run before the first suite; the -beside commands do not wait for it")
	repeat := flag.Bool("soak", false, "run only the suites that repeat tests, with the full number of repetitions")
	verbose := flag.Bool("v", false, "print the output of all tests, not only of failed ones")
	flag.Func("beside", "`name=command` to run in parallel with the suites; can be repeated", func(s string) error {
		name, command, ok := strings.Cut(s, "=")
		if !ok {
			return errors.New("must have the form name=command")
		}
		beside = append(beside, &job{name: name, command: command})
		return nil
	})
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	jobs, err := findSuites(*suite, *test, *repeat)
	if err == nil {
		r := &runner{test: *test, verbose: *verbose, soak: *repeat}
		err = r.run(ctx, *first, append(beside, jobs...))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab-test:", err)
		os.Exit(1)
	}
}
