package main

// disableCoreDumps does nothing: Go prevents dumps by Windows Error Reporting unless GOTRACEBACK=wer is set.
func disableCoreDumps() {}
