package main

import (
	"bytes"
	"cmp"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// job is a suite or another command. A suite consists of the tests of one package of the lab.
type job struct {
	name    string
	command string // shell command; empty for a suite
	// parallel is the maximum number of concurrent tests of a suite.
	parallel int
}

// concurrent is the number of tests that run at the same time. One suite uses all of it: with several suites beside each
// other, programs wait for the processor for longer than the tests allow.
const concurrent = 4

// known are the suites that take longest, in the order in which they start.
var known = []job{
	{name: "suites/lifecycle", parallel: concurrent},
	{name: "suites/e2e", parallel: concurrent},
	{name: "suites/webhook", parallel: concurrent},
	{name: "suites/charts", parallel: concurrent},
	{name: "env/kubelet", parallel: concurrent},
	{name: "suites/gmsactl", parallel: concurrent},
}

var testFunction = regexp.MustCompile(`(?m)^func (Test[A-Z]\w*)\(t \*testing\.T\)`)

// findSuites returns the suites that have the name suite, with or without its folder, and a test that matches the
// regular expression test. An empty string matches everything. The working directory must be the lab's. With test and
// without suite, findSuites also returns the packages of the other modules that have a matching test. With repeat, it
// returns only packages that use package soak.
func findSuites(suite, test string, repeat bool) ([]*job, error) {
	matches, err := regexp.Compile(test)
	if err != nil {
		return nil, err
	}
	top := "."
	if test != "" && suite == "" {
		top = ".."
	}
	packages := map[string]bool{}
	err = filepath.WalkDir(top, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		content, err := os.ReadFile(path)
		if repeat && !bytes.Contains(content, []byte("soak.")) {
			return err
		}
		for _, f := range testFunction.FindAllSubmatch(content, -1) {
			if matches.Match(f[1]) {
				packages[filepath.Dir(path)] = true
			}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	var jobs []*job
	for dir := range packages {
		name, inLab := dir, top == "."
		if !inLab {
			name, inLab = strings.CutPrefix(strings.TrimPrefix(dir, "../"), "lab/")
		}
		switch {
		case !inLab:
			jobs = append(jobs, &job{name: name, command: fmt.Sprintf("cd %q && go test -count=1 -run %q .", dir, test)})
		case suite == "" || name == suite || strings.HasSuffix(name, "/"+suite):
			j := job{name: name, parallel: concurrent}
			if i := rank(name); i < len(known) {
				j = known[i]
			}
			jobs = append(jobs, &j)
		}
	}
	if len(jobs) == 0 {
		return nil, fmt.Errorf("no suite %q has a test that matches %q", suite, test)
	}
	slices.SortFunc(jobs, func(a, b *job) int {
		return cmp.Or(cmp.Compare(rank(a.name), rank(b.name)), cmp.Compare(a.name, b.name))
	})
	return jobs, nil
}

// rank is the index of a suite in known, or len(known) if it is not listed.
func rank(name string) int {
	i := slices.IndexFunc(known, func(j job) bool { return j.name == name })
	if i < 0 {
		return len(known)
	}
	return i
}
