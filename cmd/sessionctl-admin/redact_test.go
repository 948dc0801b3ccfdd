package main

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"math/rand/v2"
	"net/url"
	"strings"
	"testing"
)

const redactedCookie = `JSESSIONID=CANARY-0123456789/+; short=ab; q="CANARY quoted é"`

// redacted passes text through in parts that end where cut says.
func redacted(t *testing.T, text string, cut func(rest int) int) string {
	t.Helper()
	var out bytes.Buffer
	r := newRedactor(redactedCookie, &out)
	for len(text) > 0 {
		n := cut(len(text))
		if err := r.write([]byte(text[:n]), false); err != nil {
			t.Fatal(err)
		}
		text = text[n:]
	}
	if err := r.write(nil, true); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func whole(rest int) int { return rest }
func single(int) int     { return 1 }

func TestRedactor(t *testing.T) {
	b64 := base64.StdEncoding.EncodeToString
	value := "CANARY-0123456789/+"
	for text, want := range map[string]string{
		"":                                   "",
		"nothing":                            "nothing",
		"\x00\xff binary \x80":               "\x00\xff binary \x80",
		redactedCookie:                       marker,
		"Cookie: " + redactedCookie + "\r\n": "Cookie: " + marker + "\r\n",
		value:                                marker,
		value + value:                        marker + marker,
		"CANARY-01" + value + "x":            "CANARY-01" + marker + "x",
		"JSESSIONID=" + value + "; other":    "JSESSIONID=" + marker + "; other",
		"CANARY-012345":                      "CANARY-012345", // a beginning only
		url.QueryEscape(value):               marker,
		strings.ToLower(url.QueryEscape("/+")) + lowerHex(url.PathEscape(value)): "%2f%2b" + marker,
		"CANARY+quoted+%C3%A9":     marker,
		"CANARY%20quoted%20%c3%a9": marker,
		b64([]byte(value)):         marker,
		// As programs wrap and quote it.
		wrap(b64([]byte(value)), 7):       marker,
		"a " + wrap(value, 3) + "\n":      "a " + marker + "\n",
		"CANARY-0123456789/%2B":           marker, // Python's quote
		`CANARY-0123456789\/+`:            marker,
		hex.EncodeToString([]byte(value)): marker,
	} {
		for name, cut := range map[string]func(int) int{"whole": whole, "single": single} {
			if got := redacted(t, text, cut); got != want {
				t.Errorf("%s: %q became %q, want %q", name, text, got, want)
			}
		}
	}
	// In base64 of a longer text, at each place it can have there.
	for before := range 6 {
		text := b64([]byte(strings.Repeat("b", before) + value + "after it"))
		got := redacted(t, text, single)
		if !strings.Contains(got, marker) || len(got) > len(text)-len(value)+len(marker) {
			t.Errorf("after %d bytes: %q became %q", before, text, got)
		}
	}
}

// However the stream is cut, the same comes out, and what cannot be part of a
// secret comes out at once.
func TestRedactorParts(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	pieces := []string{redactedCookie, "CANARY-0123456789/+", "CANARY", "JSESSIONID=CANARY-0123456789/+; sh", "text", "\n", "\x00", "C", "J"}
	for range 2000 {
		var text strings.Builder
		for range 1 + random.IntN(8) {
			text.WriteString(pieces[random.IntN(len(pieces))])
		}
		want := redacted(t, text.String(), whole)
		got := redacted(t, text.String(), func(rest int) int { return 1 + random.IntN(rest) })
		if got != want || strings.Contains(got, "CANARY-0123456789/+") {
			t.Fatalf("%q: %q in parts, %q whole", text.String(), got, want)
		}
	}
	var out bytes.Buffer
	r := newRedactor(redactedCookie, &out)
	if err := r.write([]byte("Password: "), false); err != nil || out.String() != "Password: " {
		t.Errorf("a prompt waits: %q %v", out.String(), err)
	}
}

func FuzzRedactor(f *testing.F) {
	f.Add("JSESSIONID=CANARY-1", "x=JSESSIONID=CANARY-1 CANARY-1", uint8(3))
	f.Add("a=CANARY-12345", "CANARY-12345", uint8(1))
	f.Fuzz(func(t *testing.T, cookie, text string, step uint8) {
		var out bytes.Buffer
		r := newRedactor(cookie, &out)
		forms := r.forms
		for part := range bytesIn(text, int(step)+1) {
			if err := r.write([]byte(part), false); err != nil {
				t.Fatal(err)
			}
			if len(forms) > 0 && len(r.held) >= 2*len(forms[0]) {
				t.Fatalf("%d bytes are held", len(r.held))
			}
		}
		if err := r.write(nil, true); err != nil {
			t.Fatal(err)
		}
		for part := range strings.SplitSeq(out.String(), marker) {
			for _, form := range forms {
				if strings.Contains(part, string(form)) {
					t.Fatalf("%q is in %q", form, part)
				}
			}
		}
	})
}

func bytesIn(s string, n int) func(func(string) bool) {
	return func(yield func(string) bool) {
		for len(s) > 0 {
			k := min(n, len(s))
			if !yield(s[:k]) {
				return
			}
			s = s[k:]
		}
	}
}

func BenchmarkRedactor(b *testing.B) {
	text := []byte(strings.Repeat("an ordinary line of output, of the usual length, C and J\n", 1150))
	b.SetBytes(int64(len(text)))
	r := newRedactor(redactedCookie, discard{})
	for b.Loop() {
		if err := r.write(text, false); err != nil {
			b.Fatal(err)
		}
	}
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }

// wrap breaks a text into lines.
func wrap(s string, width int) string {
	var lines []string
	for ; len(s) > width; s = s[width:] {
		lines = append(lines, s[:width])
	}
	return strings.Join(append(lines, s), "\n")
}
