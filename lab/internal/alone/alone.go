// Package alone is what lab-test and labtest.Alone agree on.
package alone

const (
	// Beside is the environment variable that lab-test sets while several suites run.
	Beside = "CCGRKC_LAB_BESIDE"
	// Later is the reason of a skipped test that lab-test runs when all others have ended.
	Later = "runs alone, after all others"
)
