package api

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"":                       "",
		"naïve – 日本 100 %":       "naïve – 日本 100 %",
		"a\x1b[2Jb\u009bc\x7f":   "a?[2Jb?c?",
		"a\nb\r\tc\x00":          "a?b??c?",
		"\u2028\u2029":           "??",
		"\u202eevil\u2066\u200f": "?evil??",
		"\u061c\u200e":           "??",
		"\xff\xc3(":              "??(",
	} {
		if got := Clean(in); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}

func FuzzClean(f *testing.F) {
	f.Add("a\x1b[2J\u202e\xff")
	f.Fuzz(func(t *testing.T, s string) {
		c := Clean(s)
		if !utf8.ValidString(c) || strings.ContainsFunc(c, unicode.IsControl) || strings.ContainsFunc(c, func(r rune) bool { return unicode.Is(unicode.Bidi_Control, r) }) || Clean(c) != c {
			t.Errorf("%q became %q", s, c)
		}
		if utf8.RuneCountInString(c) != utf8.RuneCountInString(s) {
			t.Errorf("%q became %q: of another length", s, c)
		}
	})
}
