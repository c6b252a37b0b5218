package cli

// exitCodeOfDirectory returns the code of an error of package directory.
func exitCodeOfDirectory(error) int { return exitWrong }
