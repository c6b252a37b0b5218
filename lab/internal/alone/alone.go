// Package alone contains the constants that lab-test and labtest.Alone share.
package alone

const (
	// Beside is the environment variable that lab-test sets for suites that run in parallel with others.
	Beside = "CCGRKC_LAB_BESIDE"
	// Later is the skip reason of a test that calls labtest.Alone. lab-test runs this test after all others have
	// finished.
	Later = "runs alone, after all others"
)
