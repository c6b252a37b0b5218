// Package winsec checks whether files on a Windows host are trusted, and creates directories that only certain accounts
// can change. It works with handles, so that a checked file cannot be replaced before its use.
//
// It is not a general wrapper for Windows security. It contains one rule of trust (SYSTEM, Administrators,
// TrustedInstaller and the process's own user, unless services share it), three directory descriptors, and a function
// that enables a privilege for one call.
package winsec
