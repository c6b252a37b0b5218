package main

import (
	"testing"

	"github.com/ccgrkc/ccgrkc/internal/apitest"
)

func TestTheInterfaceIsStable(t *testing.T) {
	apitest.Compare(t, apitest.Commands(command()), "exit codes: 0 success, 1 failure\n")
}
