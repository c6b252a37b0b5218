// Package shell formats command lines that users copy. Names in them can come from an untrusted file or cluster. Such a
// name must not become a command.
package shell

import "strings"

const (
	letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	// Characters without a special meaning in a POSIX shell, at any position of a word.
	unquoted = letters + "-_=./,:@"
)

// Command returns a command line. It quotes the words for a POSIX shell where necessary.
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

// IsPlain reports whether a word needs no quotes in any shell. PowerShell and cmd.exe quote differently from POSIX
// shells. A plain word starts with a letter or digit and continues with the characters of DNS names and account names.
func IsPlain(word string) bool {
	return word != "" && strings.Contains(letters, word[:1]) && strings.Trim(word, letters+"-_.") == ""
}
