package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/ccgrkc/ccgrkc/lab/env/cluster"
	"github.com/ccgrkc/ccgrkc/lab/env/crashloop"
)

// verdicts prints how many refusals of starting API servers the product takes for verdicts: see package crashloop.
func verdicts(ctx context.Context, dir string) error {
	const restarts = 20
	fmt.Fprintf(os.Stderr, "killing and starting an API server %d times; this takes about 4 minutes ...\n", restarts)
	dir = filepath.Join(dir, "crashloop")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	c, err := cluster.Start(ctx, dir)
	if err != nil {
		return err
	}
	defer c.Stop()
	r, err := crashloop.Run(ctx, c, restarts)
	if err != nil {
		return err
	}
	value(fmt.Sprintf("false verdicts in %d starts of an API server", restarts), fmt.Sprint(len(r.False)), "0")
	fmt.Printf("\n%s\n", r)
	return nil
}
