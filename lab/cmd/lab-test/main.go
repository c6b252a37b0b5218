// Command lab-test runs the lab's tests. Suites run side by side, the longest first, within a number of tests for the
// machine; each suite's result is printed when it ends. A test that calls labtest.Alone runs after all others. Other
// commands, such as the linters, can run beside the suites, which mostly wait.
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
	suite := flag.String("suite", "", "run only the suites of this `name`, such as webhook or env/kubelet")
	test := flag.String("run", "", "run only the tests that match this regular `expression`, in every module")
	first := flag.String("first", "", "`command` that ends before the first suite begins; the -beside ones begin at once")
	repeat := flag.Bool("soak", false, "run the suites that have repetitions, with all of them")
	verbose := flag.Bool("v", false, "print the output of all tests, not only of failed ones")
	flag.Func("beside", "`name=command` to run beside the suites; can be repeated", func(s string) error {
		name, command, ok := strings.Cut(s, "=")
		if !ok {
			return errors.New("the form is name=command")
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
