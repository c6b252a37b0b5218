// Package faultpoint marks the critical points of a change, so that a test can stop a real process there and kill it.
// Only a build with the tag faultpoints stops.
package faultpoint
