package main

import (
	"strings"
	"testing"
	"time"

	"github.com/ccgrkc/ccgrkc/internal/selfcheck"
	"github.com/ccgrkc/ccgrkc/internal/selfcheck/record"
)

func TestTheProbeReportsTheLastSelfCheck(t *testing.T) {
	env := map[string]string{"CONTAINER_SANDBOX_MOUNT_POINT": t.TempDir(), "POD_UID": "a"}
	getenv := func(name string) string { return env[name] }
	probe := func(args ...string) (int, string) {
		var out strings.Builder
		code := run(args, getenv, &out, &out)
		return code, out.String()
	}
	want := func(wantCode int, text string, args ...string) {
		t.Helper()
		if code, out := probe(args...); code != wantCode || !strings.Contains(out, text) {
			t.Errorf("%q: exit code %d, want %d with %q:\n%s", args, code, wantCode, text, out)
		}
	}
	want(1, "no self-check has finished yet")
	results, err := record.New(getenv, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	write := func(state selfcheck.State, detail string) {
		if err := results.Record(state, detail); err != nil {
			t.Fatal(err)
		}
	}
	write(selfcheck.OK, "")
	want(0, "ok")
	write(selfcheck.Other, "the provider of pod b responded")
	want(1, "pod b")
	want(0, "other", "--accept-other")
	write(selfcheck.Failed, "no endpoint is published")
	want(1, "no endpoint is published")
	want(1, "no endpoint is published", "--accept-other")
	write(selfcheck.Failed, "a\nb\x1b[31m")
	want(1, `a\nb\u001b[31m`)
	want(1, "exit codes", "--help")
	want(1, "not defined", "--unknown")
	want(1, `unexpected argument "extra"`, "extra")
	env = nil
	want(1, "CONTAINER_SANDBOX_MOUNT_POINT")
}
