//go:build unix

package main

import (
	"syscall"
	"testing"
)

func TestNothingIsLeftInACoreDump(t *testing.T) {
	noCore()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_CORE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Cur != 0 || limit.Max != 0 {
		t.Errorf("a core dump may have %d bytes, %d at most", limit.Cur, limit.Max)
	}
}
