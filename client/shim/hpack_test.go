package shim

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http2/hpack"
)

// decodeWith decodes a header block with golang.org/x/net's HPACK.
func decodeWith(b []byte) (fields []header, err error) {
	d := hpack.NewDecoder(0, func(f hpack.HeaderField) { fields = append(fields, header{f.Name, f.Value}) })
	if _, err := d.Write(b); err != nil {
		return nil, err
	}
	return fields, d.Close()
}

func decodeOwn(b []byte) (fields []header, err error) {
	err = decodeHeaders(b, func(name, value string) { fields = append(fields, header{name, value}) })
	return fields, err
}

// Every byte in a Huffman string, and every entry of the static table.
func TestHuffmanAndStaticTable(t *testing.T) {
	for b := range 256 {
		value := strings.Repeat(string([]byte{byte(b)}), 1+b%9)
		coded := hpack.AppendHuffmanString(nil, value)
		if got, err := newHuffmanCode().decode(coded); err != nil || got != value {
			t.Errorf("byte %#x: %q, %v", b, got, err)
		}
	}
	for i := range byte(61) {
		in := []byte{0x80 | (i + 1)}
		want, err := decodeWith(in)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := decodeOwn(in); err != nil || !slices.Equal(got, want) {
			t.Errorf("index %d: %q, %v, want %q", i+1, got, err, want)
		}
	}
}

func TestAppendHeader(t *testing.T) {
	var b []byte
	var want []header
	for _, n := range []int{0, 1, 126, 127, 128, 254, 255, 256, 300, 20000} {
		h := header{"x-" + strings.Repeat("n", n), strings.Repeat("v", n)}
		b = appendHeader(b, h.name, h.value)
		want = append(want, h)
	}
	if got, err := decodeWith(b); err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
}

// FuzzHeaders holds the decoder against another one: both refuse, or both see
// the same fields.
func FuzzHeaders(f *testing.F) {
	f.Add(block(":status", "200", "content-type", "application/grpc", "x-odd", "\x00\xff{}"))
	f.Add(block("grpc-status", "5", "grpc-message", "caf%C3%A9", "grpc-status-details-bin", "CAUSBWhlbGxv"))
	f.Add([]byte("\x20\x88\x5f\x10application/grpc\x40\x01a\x01b\x10\x01c\x01d\x7f\x80\x01\x01x"))
	for _, odd := range []string{
		"\x00\x81\x1f\x00",                                             // Huffman, padded as it must be
		"\x00\x81\x18\x00",                                             // padded with zeroes
		"\x00\x82\x1f\xff\x00",                                         // padded with more than seven bits
		"\x00\x81\xff\x00",                                             // nothing but padding
		"\x00\x84\xff\xff\xff\xff\x00",                                 // EOS
		"\x80", "\xbe", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", // indexes that are none
		"\x21", "\x3f\x80\x00", // table sizes
		"\x00\x01a", "\x00\x7f\xff\xff\xff\xff\x07", "\x00", "\x7f", // cut short
	} {
		f.Add([]byte(odd))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := decodeOwn(b)
		want, wantErr := decodeWith(bytes.Clone(b))
		if (err == nil) != (wantErr == nil) || err == nil && !slices.Equal(got, want) {
			t.Errorf("%q, %v\nwant %q, %v", got, err, want, wantErr)
		}
	})
}
