// Command lab-prepare builds what the lab's tests, demo and benchmarks share, and shows the progress: the programs of
// package tools, the template of a Wine node, and the standard Active Directory domains. Tests build what is missing
// without output.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/ccgrkc/ccgrkc/lab/env/ad"
	"github.com/ccgrkc/ccgrkc/lab/env/controlplane"
	"github.com/ccgrkc/ccgrkc/lab/env/tools"
	"github.com/ccgrkc/ccgrkc/lab/env/wine"
)

func main() {
	demo := flag.Bool("demo", false, "only what the demo needs")
	flag.Parse()
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
	needed := tools.All
	if *demo {
		needed = []tools.Tool{tools.Helm4, tools.Kubectl, tools.ControlPlane}
	}
	for _, tool := range needed {
		program, err := tools.Path(ctx, tool, os.Stderr)
		if err == nil && tool == tools.ControlPlane {
			_, err = controlplane.Snapshot(ctx, program, os.Stderr)
		}
		if err != nil {
			fail(err)
		}
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "lab-prepare:", err)
	os.Exit(1)
}
