package main

// noCore has nothing to do: Go sees to it that Windows Error Reporting writes no dump, unless GOTRACEBACK=wer asks for one.
func noCore() {}
