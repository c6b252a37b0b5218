// Command lab-prepare makes what the lab's tests, demo and bench need once and then keep: the control plane's program and
// the template of a Wine node. Tests would make them too, but silently.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/ccgrkc/ccgrkc/lab/controlplane"
	"github.com/ccgrkc/ccgrkc/lab/wine"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if _, err := wine.Template(ctx, os.Stderr); err != nil {
		fail(err)
	}
	if _, err := controlplane.Build(ctx, os.Stderr); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "lab-prepare:", err)
	os.Exit(1)
}
