// Package shell writes command lines for people to run. Names in them may come from a file or a cluster that somebody else
// wrote, and must not become a command of their own.
package shell

import "strings"

const (
	letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	// What a POSIX shell takes as it is, wherever it stands in a word.
	unquoted = letters + "-_=./,:@"
)

// Command puts a command line together so that a POSIX shell takes the words as they are.
func Command(words ...string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		if strings.Trim(w, unquoted) != "" || w == "" {
			w = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
		quoted[i] = w
	}
	return strings.Join(quoted, " ")
}

// IsPlain reports whether a word means itself in every shell, PowerShell and cmd.exe too, which quote otherwise than POSIX
// shells do: letters, digits and, after the first of them, the signs of DNS names and account names.
func IsPlain(word string) bool {
	return word != "" && strings.Contains(letters, word[:1]) && strings.Trim(word, letters+"-_.") == ""
}
