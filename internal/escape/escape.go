// Package escape prints text from outside: names from the API server, texts from Active Directory, the registry, files
// and programs on nodes. Such a value cannot control a terminal, forge a line or hide a part of itself.
//
// Programs print with Fprintf and WriteJSON, and log to a LogWriter. Fprintf escapes the values and not the finished
// text: a line break in a format string is a line break, and one in a value is \n.
package escape

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Text is text whose values are escaped. Fprintf prints it as it is. Apart from constants, only this package makes it.
type Text string

// Value returns s on one line. It replaces each character that is not visible in itself with an escape such as \n,
// \u001b or \U000e0001: control characters (C0, DEL, C1), line and paragraph separators, bidirectional controls,
// zero-width characters, and every space except U+0020. A byte that is not UTF-8 becomes \x and two hexadecimal digits.
// Value does not change backslashes, so it does not change its own result.
func Value(s string) string {
	if isPlain(s) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case r > 0xffff && !isVisible(r):
			fmt.Fprintf(&b, `\U%08x`, r)
		default:
			writeRune(&b, r)
		}
		s = s[n:]
	}
	return b.String()
}

// Limited returns the first n characters of s like Value, and whether s has more.
func Limited(s string, n int) (text string, more bool) {
	runes := []rune(s[:min(len(s), utf8.UTFMax*(n+1))])
	if len(runes) <= n {
		return Value(s), false
	}
	return Value(string(runes[:n])), true
}

// JSON escapes a line of JSON without changing its meaning. A byte that is not UTF-8 becomes the replacement character,
// as in package json.
func JSON(line string) string {
	var b strings.Builder
	for _, r := range line {
		if r > 0xffff && !isVisible(r) {
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(&b, `\u%04x\u%04x`, high, low)
		} else {
			writeRune(&b, r)
		}
	}
	return b.String()
}

// Lines applies escape, which is Value or JSON, to each line of a document.
func Lines(document string, escape func(string) string) string {
	var b strings.Builder
	for line := range strings.Lines(document) {
		content, hasBreak := strings.CutSuffix(line, "\n")
		b.WriteString(escape(content))
		if hasBreak {
			b.WriteByte('\n')
		}
	}
	return b.String()
}

func isPlain(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !isVisible(r) })
}

// isVisible reports whether a character shows what it is. unicode.IsPrint excludes control, format, private and
// unassigned characters and all spaces except U+0020. Some marks and letters that it includes have no width.
func isVisible(r rune) bool {
	return unicode.IsPrint(r) && !unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector)
}

// writeRune writes a character of the Basic Multilingual Plane, or a visible one.
func writeRune(b *strings.Builder, r rune) {
	switch {
	case isVisible(r):
		b.WriteRune(r)
	case r == '\n':
		b.WriteString(`\n`)
	case r == '\r':
		b.WriteString(`\r`)
	case r == '\t':
		b.WriteString(`\t`)
	default:
		fmt.Fprintf(b, `\u%04x`, r)
	}
}

// Fprintf is fmt.Fprintf with escaped arguments. It does not escape a Text, the text of an error from Errorf, and an
// int, which can be the width of another argument.
func Fprintf(w io.Writer, format string, args ...any) {
	if false {
		_, _ = fmt.Fprintf(w, format, args...) // enables the check of go vet
	}
	_, _ = fmt.Fprintf(w, format, escapeAll(args)...)
}

// Sprintf is fmt.Sprintf with escaped arguments, as in Fprintf.
func Sprintf(format string, args ...any) Text {
	if false {
		_ = fmt.Sprintf(format, args...) // enables the check of go vet
	}
	return Text(fmt.Sprintf(format, escapeAll(args)...))
}

func escapeAll(args []any) []any {
	escaped := make([]any, len(args))
	for i, arg := range args {
		switch v := arg.(type) {
		case nil, Text, int:
			escaped[i] = v
		case textError:
			escaped[i] = v.EscapedText()
		default:
			escaped[i] = argument{v}
		}
	}
	return escaped
}

// argument escapes a value when it is formatted.
type argument struct{ value any }

// Format formats the value without its width and adds the width after the escapes.
func (a argument) Format(state fmt.State, verb rune) {
	format := "%"
	for _, flag := range "+# " {
		if state.Flag(int(flag)) {
			format += string(flag)
		}
	}
	if precision, ok := state.Precision(); ok {
		format += fmt.Sprintf(".%d", precision)
	}
	text := Value(fmt.Sprintf(format+string(verb), a.value))
	width, _ := state.Width()
	padding := strings.Repeat(" ", max(0, width-utf8.RuneCountInString(text)))
	if state.Flag('-') {
		text += padding
	} else {
		text = padding + text
	}
	_, _ = io.WriteString(state, text)
}

// textError is an error whose values are escaped.
type textError interface {
	error
	EscapedText() Text
}

// Errorf is fmt.Errorf with escaped arguments, as in Fprintf. Fprintf prints the line breaks in its format.
func Errorf(format string, args ...any) error {
	if false {
		_ = fmt.Errorf(format, args...) // enables the check of go vet
	}
	escaped := escapeAll(args)
	for i, arg := range args {
		if err, ok := arg.(error); ok { // for %w
			escaped[i] = wrapped{err}
		}
	}
	return escapedError{fmt.Errorf(format, escaped...)}
}

type escapedError struct{ error }

func (e escapedError) EscapedText() Text { return Text(e.Error()) }
func (e escapedError) Unwrap() error     { return e.error }

// wrapped is an error in the text of another one.
type wrapped struct{ err error }

func (w wrapped) Error() string { return string(Error(w.err)) }
func (w wrapped) Unwrap() error { return w.err }

// Error returns the text of an error. The text has several lines only if err is from Errorf, or has a method
// EscapedText() Text.
func Error(err error) Text {
	if e, ok := err.(textError); ok {
		return e.EscapedText()
	}
	return Text(Value(err.Error()))
}

// WriteJSON writes v as an escaped JSON document.
func WriteJSON(w io.Writer, v any, indent string) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", indent)
	if err := e.Encode(v); err != nil {
		return err
	}
	_, err := io.WriteString(w, Lines(b.String(), JSON))
	return err
}

// LogWriter returns a writer for a logger that writes each record, with a line break at its end, in one call. It
// escapes everything else in the record. A record in JSON remains one.
func LogWriter(w io.Writer) io.Writer { return logWriter{w} }

type logWriter struct{ w io.Writer }

func (l logWriter) Write(record []byte) (int, error) {
	if _, err := io.WriteString(l.w, JSON(strings.TrimSuffix(string(record), "\n"))+"\n"); err != nil {
		return 0, err
	}
	return len(record), nil
}
