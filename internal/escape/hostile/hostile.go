// Package hostile contains values that attack the terminal or the log of a program that prints them, for tests of every
// program that prints.
package hostile

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"
)

// forged is the line that a value tries to add to the output.
const forged = "FORGED"

// Values are the attacks, by name. Each of them contains name, a prefix by which a test finds it in the output.
func Values(name string) map[string]string {
	values := map[string]string{"invalid UTF-8 (8-bit CSI)": name + "\x9b31m", "invalid UTF-8 (cut)": name + "\xe2\x80"}
	for what, text := range map[string]string{
		"line feed":                  "\n",
		"carriage return":            "\r",
		"carriage return, line feed": "\r\n",
		"vertical tab":               "\v",
		"form feed":                  "\f",
		"next line (C1)":             "\u0085",
		"line separator":             "\u2028",
		"paragraph separator":        "\u2029",
		"green line":                 "\n\x1b[32m",
		"cursor up, clear line":      "\x1b[1A\x1b[2K",
		"clear screen (8-bit CSI)":   "\u009b2J",
		"window title":               "\x1b]0;title\x07",
		"window title (C1)":          "\u009d0;title\u009c",
		"backspaces":                 "\b\b\b\b",
		"NUL":                        "\x00",
		"delete":                     "\x7f",
		"tab":                        "\t",
		"right-to-left override":     "\u202e",
		"embedding":                  "\u202a\u202b\u202c\u202d",
		"isolates":                   "\u2066\u2067\u2068\u2069",
		"marks":                      "\u200e\u200f\u061c",
		"zero width":                 "\u200b\u200c\u200d\u2060\ufeff",
		"soft hyphen":                "\u00ad",
		"no-break space":             "\u00a0",
		"Hangul filler":              "\u3164",
		"variation selector":         "\ufe0f\U000e0100",
		"tags":                       "\U000e0001\U000e0041",
	} {
		values[what] = name + text + forged
	}
	return values
}

// All returns all values as one. An argument of a program cannot contain NUL, so this value does not.
func All(name string) string {
	values := Values(name)
	var all strings.Builder
	for _, what := range slices.Sorted(maps.Keys(values)) {
		all.WriteString(strings.ReplaceAll(values[what], "\x00", ""))
	}
	return all.String()
}

// ranges are the characters that no output contains. The list is separate from the rule of package escape.
var ranges = [][2]rune{
	{0, '\n' - 1}, {'\n' + 1, 0x1f}, {0x7f, 0xa0}, {0xad, 0xad}, {0x61c, 0x61c}, {0x200b, 0x200f}, {0x2028, 0x202e},
	{0x2060, 0x206f}, {0x3164, 0x3164}, {0xfe00, 0xfe0f}, {0xfeff, 0xfeff}, {0xe0000, 0xe0fff},
}

// Check returns what is wrong with the output of a program, or nil.
func Check(output string) error {
	if !utf8.ValidString(output) {
		return fmt.Errorf("the output is not UTF-8: %q", output)
	}
	for _, r := range output {
		for _, bad := range ranges {
			if bad[0] <= r && r <= bad[1] {
				return fmt.Errorf("the output contains %U: %q", r, output)
			}
		}
	}
	for line := range strings.Lines(output) {
		if strings.HasPrefix(strings.TrimSpace(line), forged) {
			return fmt.Errorf("a value added a line to the output: %q", output)
		}
	}
	return nil
}
