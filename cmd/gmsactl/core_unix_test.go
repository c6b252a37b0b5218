//go:build unix

package main

import (
	"syscall"
	"testing"
)

func TestCoreDumpsAreDisabled(t *testing.T) {
	disableCoreDumps()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_CORE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Cur != 0 || limit.Max != 0 {
		t.Errorf("the limits of a core dump are %d and %d bytes, want 0", limit.Cur, limit.Max)
	}
}
