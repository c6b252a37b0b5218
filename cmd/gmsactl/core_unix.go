//go:build unix

package main

import "syscall"

// noCore keeps a password that is in memory out of a core dump, which the kernel would write to a file or hand to a program
// (core_pattern) if this one crashed with GOTRACEBACK=crash.
func noCore() { _ = syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}) }
