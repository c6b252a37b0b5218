// Package soak sets how often a test repeats what can fail rarely, such as a race or the effect of a kill.
package soak

import "os"

// Variable is the environment variable that selects all repetitions, if it is 1.
const Variable = "CCGRKC_SOAK"

// N returns full if Variable is set, otherwise a fiftieth of it, at least 1.
func N(full int) int {
	if os.Getenv(Variable) == "1" {
		return full
	}
	return max(1, full/50)
}
