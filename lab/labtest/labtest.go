// Package labtest provides the lab to tests: set-up with clean-up, and shared helpers. Packages controlplane and wine
// implement the lab.
package labtest

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/ccgrkc/ccgrkc/lab/env/controlplane"
	"github.com/ccgrkc/ccgrkc/lab/env/wine"
)

// Require skips the test unless CCGRKC_LAB is set. If it is set, a lab that cannot start fails the test.
func Require(t testing.TB) {
	t.Helper()
	if os.Getenv("CCGRKC_LAB") == "" {
		t.Skip("needs the lab: run make test, or set CCGRKC_LAB=1 after make deps")
	}
}

// ControlPlane starts a control plane for this test.
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
