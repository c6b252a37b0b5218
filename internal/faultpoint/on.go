//go:build faultpoints

package faultpoint

import (
	"fmt"
	"os"
)

// Reached blocks forever if CCGRKC_STOP_AT is the name of the point, after a line on standard error. With
// CCGRKC_STOP_AT=list, it prints every point and never blocks.
func Reached(point string) {
	switch os.Getenv("CCGRKC_STOP_AT") {
	case point:
		fmt.Fprintf(os.Stderr, "faultpoint: stopped at %s\n", point)
		select {}
	case "list":
		fmt.Fprintf(os.Stderr, "faultpoint: passed %s\n", point)
	}
}
