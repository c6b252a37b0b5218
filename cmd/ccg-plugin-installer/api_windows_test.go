package main

import (
	_ "embed"
	"testing"

	"github.com/ccgrkc/ccgrkc/internal/apitest"
)

// Embedded, because the test program runs on another machine than it is built on.
//
//go:embed testdata/api.golden
var golden string

func TestCommandsAndFlagsAreStable(t *testing.T) {
	if got := apitest.Commands(command()); got != golden {
		t.Errorf("the interface differs from testdata/api.golden; if that is intended, correct the file.\ngot:\n%s",
			got)
	}
}
