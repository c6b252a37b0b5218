//go:build faultpoints

package faultpoint

import (
	"fmt"
	"os"
)

// Reached announces on standard error that the process stands at the point, and stops there for good, if CCGRKC_STOP_AT
// names the point. With CCGRKC_STOP_AT=list it announces every point and stops at none.
func Reached(point string) {
	switch os.Getenv("CCGRKC_STOP_AT") {
	case point:
		fmt.Fprintf(os.Stderr, "faultpoint: stopped at %s\n", point)
		select {}
	case "list":
		fmt.Fprintf(os.Stderr, "faultpoint: passed %s\n", point)
	}
}
