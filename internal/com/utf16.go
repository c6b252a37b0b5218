package com

import (
	"unicode/utf16"
	"unicode/utf8"
)

// utf16Length returns the number of code units that encodeUTF16 writes.
func utf16Length(text []byte) int {
	n := 0
	for len(text) > 0 {
		r, size := utf8.DecodeRune(text)
		n += utf16.RuneLen(r)
		text = text[size:]
	}
	return n
}

// encodeUTF16 writes UTF-8 text as UTF-16 into units, whose length is utf16Length, without another copy. Invalid UTF-8
// becomes U+FFFD; valid credentials contain none.
func encodeUTF16(units []uint16, text []byte) {
	for i := 0; len(text) > 0; {
		r, size := utf8.DecodeRune(text)
		text = text[size:]
		if utf16.RuneLen(r) == 1 {
			units[i] = uint16(r)
			i++
			continue
		}
		high, low := utf16.EncodeRune(r)
		units[i], units[i+1] = uint16(high), uint16(low)
		i += 2
	}
}
