// Package labtest contains helpers for tests that use the lab. They start parts of the lab and stop them when the test
// ends. Packages controlplane and wine implement these parts.
package labtest

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/ccgrkc/ccgrkc/lab/env/controlplane"
	"github.com/ccgrkc/ccgrkc/lab/env/wine"
	"github.com/ccgrkc/ccgrkc/lab/internal/alone"
)

// Require skips the test unless CCGRKC_LAB is set. If it is set and the lab cannot start, the test fails.
func Require(t testing.TB) {
	t.Helper()
	if os.Getenv("CCGRKC_LAB") == "" {
		t.Skip("needs the lab: run make test, or set CCGRKC_LAB=1 after make deps")
	}
}

// Must fails the test if err is not nil.
func Must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Eventually waits until holds returns true. After the timeout it fails the test with the message "waiting until" and
// what.
func Eventually(t testing.TB, timeout time.Duration, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(timeout); !holds(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("timeout after %s waiting until %s", timeout, what)
		}
	}
}

// Alone makes lab-test run the calling test after all others. Use it for a test that needs the whole machine, such as a
// test of latency under load. It comes first in a test. Tests that then call t.Parallel run at the same time as each
// other, after those that do not.
func Alone(t testing.TB) {
	t.Helper()
	Require(t)
	if os.Getenv(alone.Beside) != "" {
		t.Skip(alone.Later)
	}
}

// ControlPlane starts a control plane for this test, and stops it when the test ends.
func ControlPlane(t testing.TB) *controlplane.ControlPlane {
	t.Helper()
	Require(t)
	// The start takes seconds; a build with an empty build cache takes minutes.
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	cp, err := controlplane.Start(ctx, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cp.Stop)
	return cp
}

// Node starts a Wine node for this test.
func Node(t testing.TB, options ...wine.Option) *wine.Node {
	t.Helper()
	Require(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	node, err := wine.New(ctx, filepath.Join(t.TempDir(), "node"), options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(node.Stop)
	return node
}
