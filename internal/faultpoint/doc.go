// Package faultpoint marks the moments of a change at which a killed process would leave the most behind, so that a
// test can stop a real process exactly there and kill it. Only a build with the tag faultpoints can stop.
package faultpoint
