package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/soak"
	"github.com/ccgrkc/ccgrkc/lab/internal/alone"
	"github.com/ccgrkc/ccgrkc/lab/internal/child"
)

// runner runs jobs and prints their results.
type runner struct {
	test          string
	verbose, soak bool

	bin string // directory of the compiled test programs

	commands sync.Mutex // held while a job that is not a suite runs

	mu      sync.Mutex
	running map[string]time.Time // start times
	alone   map[*job][]string    // tests that run after all others
	results []result
}

type result struct {
	name      string
	took, cpu time.Duration
	output    []byte
	err       error
}

// run runs the first command and all jobs, even if a job fails. A suite starts only after the first command has exited.
// The other jobs come first in the list and do not wait for that command.
func (r *runner) run(ctx context.Context, first string, jobs []*job) (err error) {
	if r.bin, err = os.MkdirTemp("", "lab-test-"); err != nil {
		return err
	}
	defer os.RemoveAll(r.bin)
	r.running, r.alone = map[string]time.Time{}, map[*job][]string{}
	began, done := time.Now(), make(chan struct{})
	defer close(done)
	go r.progress(done)

	// A slot is one concurrent test.
	slots, freed := concurrent, sync.NewCond(&r.mu)
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, j := range jobs {
		if j.command == "" && first != "" {
			prepare := exec.CommandContext(ctx, "sh", "-c", first)
			prepare.Stdout, prepare.Stderr = os.Stdout, os.Stderr
			if err := prepare.Run(); err != nil {
				return fmt.Errorf("%s: %w", first, err)
			}
			first = ""
		}
		// One build at a time: the linker uses all cores.
		buildErr := r.build(ctx, j)
		r.mu.Lock()
		for slots < j.parallel {
			freed.Wait()
		}
		slots -= j.parallel
		r.mu.Unlock()
		wg.Go(func() {
			r.runJob(ctx, j, buildErr, nil)
			r.mu.Lock()
			slots += j.parallel
			r.mu.Unlock()
			freed.Broadcast()
		})
	}
	wg.Wait()
	for _, j := range jobs {
		if len(r.alone[j]) > 0 {
			r.runJob(ctx, j, nil, r.alone[j])
		}
	}
	return r.summary(time.Since(began))
}

func (r *runner) program(j *job) string {
	return filepath.Join(r.bin, strings.ReplaceAll(j.name, "/", "-"))
}

// build compiles a suite's test program. The flags are those of the control plane, so that shared packages are compiled
// once: see buildFlags in package tools.
func (r *runner) build(ctx context.Context, j *job) error {
	if j.command != "" {
		return nil
	}
	cmd := exec.CommandContext(ctx, "go", "test", "-c", "-trimpath", "-gcflags=all=-dwarf=false", "-ldflags=-s -w", "-o", r.program(j), "./"+j.name)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building the tests: %w\n%s", err, out)
	}
	return nil
}

// runJob runs a job, waits until it exits, and prints its result. If err is set, the job's build failed, and the job
// does not run. If only is set, runJob runs only these tests of the suite.
func (r *runner) runJob(ctx context.Context, j *job, err error, only []string) {
	if j.command != "" { // one at a time, because each command uses all cores
		r.commands.Lock()
		defer r.commands.Unlock()
	}
	began := time.Now()
	name := j.name
	if only != nil {
		name += " (alone)"
	}
	r.mu.Lock()
	r.running[name] = began
	r.mu.Unlock()
	result := result{name: name}
	if err == nil {
		var cmd *exec.Cmd
		if j.command != "" {
			cmd = exec.Command("sh", "-c", j.command)
		} else {
			cmd = r.suite(j, only)
		}
		result.output, result.cpu, err = r.start(ctx, cmd, j)
	}
	result.took, result.err = time.Since(began), err

	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.running, name)
	r.results = append(r.results, result)
	fmt.Println(result)
	if r.verbose || err != nil {
		os.Stdout.Write(result.output)
	}
}

func (r *runner) suite(j *job, only []string) *exec.Cmd {
	cmd := exec.Command(r.program(j), "-test.v=test2json", "-test.paniconexit0", fmt.Sprintf("-test.parallel=%d", j.parallel))
	cmd.Dir = j.name
	cmd.Env = append(os.Environ(), "CCGRKC_LAB=1")
	if r.soak {
		cmd.Env = append(cmd.Env, soak.Variable+"=1")
	} else {
		cmd.Args = append(cmd.Args, "-test.timeout=25m")
	}
	if only == nil {
		cmd.Env = append(cmd.Env, alone.Beside+"=1")
		cmd.Args = append(cmd.Args, "-test.run="+r.test)
	} else {
		cmd.Args = append(cmd.Args, "-test.run=^("+strings.Join(only, "|")+")$")
	}
	return cmd
}

// start runs a process and returns its output. For a suite, it returns only the output of failed tests, unless verbose is
// set. The process is killed if this process exits.
func (r *runner) start(ctx context.Context, cmd *exec.Cmd, j *job) (output []byte, cpu time.Duration, _ error) {
	out, in, err := os.Pipe()
	if err != nil {
		return nil, 0, err
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = in, in
	process, err := child.Start(cmd, syscall.SIGKILL)
	in.Close()
	if err != nil {
		return nil, 0, err
	}
	stop := context.AfterFunc(ctx, func() { _ = syscall.Kill(-process.PID(), syscall.SIGKILL) })
	defer stop()
	go func() {
		<-process.Done
		// A Wine process can still hold the write end of the pipe.
		_ = out.SetReadDeadline(time.Now().Add(5 * time.Second))
	}()
	if j.command != "" {
		output, err = io.ReadAll(out)
	} else {
		output, err = r.events(out, j)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = nil
	}
	<-process.Done
	state := cmd.ProcessState
	return output, state.UserTime() + state.SystemTime(), cmp.Or(context.Cause(ctx), process.Err, err)
}

// events reads the output of a test program. It returns the output of the failed tests, and adds the tests that call
// labtest.Alone to r.alone. Any other skipped test is an error, because the lab provides everything that the tests
// need.
func (r *runner) events(out io.Reader, j *job) ([]byte, error) {
	convert := exec.Command("go", "tool", "test2json", "-t")
	convert.Stdin = struct{ io.Reader }{out} // hides the *os.File: otherwise the deadline would not apply
	converted, err := convert.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := convert.Start(); err != nil {
		return nil, err
	}
	var failed bytes.Buffer
	outputs := map[string]*bytes.Buffer{}
	var skipped []string
	events := json.NewDecoder(bufio.NewReader(converted))
	for {
		var e struct {
			Action, Test, Output string
			Elapsed              float64
		}
		if err := events.Decode(&e); err != nil {
			break // the end of the output; process.Err reports a failure
		}
		text := outputs[e.Test]
		if text == nil {
			text = &bytes.Buffer{}
			outputs[e.Test] = text
		}
		later := e.Action == "skip" && strings.Contains(text.String(), alone.Later)
		switch {
		case e.Action == "output":
			text.WriteString(e.Output)
			continue
		case e.Test == "" || e.Action != "fail" && e.Action != "pass" && e.Action != "skip":
			continue
		case later:
			r.mu.Lock()
			r.alone[j] = append(r.alone[j], e.Test)
			r.mu.Unlock()
		case e.Action == "skip":
			skipped = append(skipped, e.Test)
		}
		if !later && (e.Action != "pass" || r.verbose) {
			failed.Write(text.Bytes())
		}
		delete(outputs, e.Test)
	}
	// The remaining output is from the program itself, and from tests that a panic or the timeout interrupted.
	for _, name := range slices.Sorted(maps.Keys(outputs)) {
		failed.Write(outputs[name].Bytes())
	}
	if err := convert.Wait(); err != nil {
		return failed.Bytes(), err
	}
	if len(skipped) > 0 {
		return failed.Bytes(), fmt.Errorf("skipped: %s", strings.Join(skipped, ", "))
	}
	return failed.Bytes(), nil
}

func (r result) String() string {
	verdict := "ok    "
	if r.err != nil {
		verdict = "failed"
	}
	return fmt.Sprintf("%s %-24s %4.0f s, %4.0f s of CPU", verdict, r.name, r.took.Seconds(), r.cpu.Seconds())
}

// progress prints the running jobs. On a terminal, it updates one line every second. Otherwise it prints a line every
// minute.
func (r *runner) progress(done <-chan struct{}) {
	info, err := os.Stderr.Stat()
	terminal := err == nil && info.Mode()&os.ModeCharDevice != 0
	every, end := time.Minute, "\n"
	if terminal {
		every, end = time.Second, "\r"
	}
	for {
		select {
		case <-done:
			return
		case <-time.After(every):
		}
		r.mu.Lock()
		var names []string
		for name, since := range r.running {
			names = append(names, fmt.Sprintf("%s %.0f s", name, time.Since(since).Seconds()))
		}
		slices.Sort(names)
		if terminal {
			fmt.Fprint(os.Stderr, "\x1b[K")
		}
		fmt.Fprint(os.Stderr, "running: ", strings.Join(names, ", "), end)
		r.mu.Unlock()
	}
}

// summary prints the output of the failed jobs again, and a table of all results.
func (r *runner) summary(took time.Duration) error {
	var failed []string
	for _, result := range r.results {
		if result.err == nil {
			continue
		}
		failed = append(failed, result.name)
		fmt.Printf("\n%s: %v\n%s", result.name, result.err, result.output)
	}
	slices.SortStableFunc(r.results, func(a, b result) int { return cmp.Compare(b.took, a.took) })
	fmt.Println()
	for _, result := range r.results {
		fmt.Println(result)
	}
	fmt.Printf("%d suites in %.0f s\n", len(r.results), took.Seconds())
	if len(failed) > 0 {
		return fmt.Errorf("failed: %s", strings.Join(failed, ", "))
	}
	return nil
}
