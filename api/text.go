package api

import (
	"strings"
	"unicode/utf8"
)

// Clean makes foreign text fit for a line on a terminal: control characters
// (C0, DEL, C1), line and paragraph separators, bidirectional controls and
// what is not UTF-8 become question marks.
func Clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r < ' ', 0x7f <= r && r < 0xa0, r == utf8.RuneError,
			r == 0x2028, r == 0x2029,
			r == 0x061c, r == 0x200e, r == 0x200f, 0x202a <= r && r <= 0x202e, 0x2066 <= r && r <= 0x2069:
			return '?'
		}
		return r
	}, s)
}
