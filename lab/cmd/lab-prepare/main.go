// Command lab-prepare builds what the lab's tests, demo and benchmarks share, and shows the progress: the programs of
// package tools, the template of a Wine node, and the standard Active Directory domains. Tests build what is missing
// without output.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/ccgrkc/ccgrkc/lab/env/ad"
	"github.com/ccgrkc/ccgrkc/lab/env/tools"
	"github.com/ccgrkc/ccgrkc/lab/env/wine"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if _, err := wine.Template(ctx, os.Stderr); err != nil {
		fail(err)
	}
	for _, domain := range []ad.Options{ad.Corp, ad.Other} {
		if _, err := ad.Template(ctx, domain, os.Stderr); err != nil {
			fail(err)
		}
	}
	for _, tool := range tools.All {
		if _, err := tools.Path(ctx, tool, os.Stderr); err != nil {
			fail(err)
		}
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "lab-prepare:", err)
	os.Exit(1)
}
