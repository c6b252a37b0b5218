// Package winsec decides whom a Windows host's files are trusted from, and makes directories that only the right
// accounts can change. It works on handles, so that what was checked is what is used.
//
// It is not a general wrapper for Windows security: it knows one rule of trust (SYSTEM, Administrators, TrustedInstaller
// and the process's own user, unless services share it), three directory descriptors, and how to hold a privilege for the
// length of one function.
package winsec
