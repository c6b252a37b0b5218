//go:build unix

package main

import "syscall"

// disableCoreDumps prevents a core dump, which could contain a password. With GOTRACEBACK=crash, the kernel would write
// one to a file or pass it to a program (core_pattern).
func disableCoreDumps() { _ = syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}) }
