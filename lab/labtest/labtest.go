// Package labtest gives tests the lab: a real control plane, a Wine node. It is not the lab itself, see controlplane and
// wine.
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

// Require skips the test where nobody asked for the lab. Where CCGRKC_LAB is set, the lab's tests run and a lab that
// cannot start fails them.
func Require(t testing.TB) {
	t.Helper()
	if os.Getenv("CCGRKC_LAB") == "" {
		t.Skip("needs the lab: run make test, or set CCGRKC_LAB=1 after make deps")
	}
}

// ControlPlane starts a control plane of the test's own and stops it at the test's end.
func ControlPlane(t testing.TB) *controlplane.ControlPlane {
	t.Helper()
	Require(t)
	// Building takes minutes when the build cache is empty; starting takes seconds.
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	cp, err := controlplane.Start(ctx, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cp.Stop)
	return cp
}

// Node starts a Wine node of the test's own and stops it at the test's end.
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
