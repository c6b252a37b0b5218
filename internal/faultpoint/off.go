//go:build !faultpoints

package faultpoint

// Reached does nothing without the tag faultpoints. Releases are built without it.
func Reached(string) {}
