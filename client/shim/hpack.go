package shim

import "strconv"

// staticTable is HPACK's static table (RFC 7541, appendix A); index 0 is not
// used.
var staticTable = [62][2]string{
	{},
	{":authority", ""},
	{":method", "GET"}, {":method", "POST"},
	{":path", "/"}, {":path", "/index.html"},
	{":scheme", "http"}, {":scheme", "https"},
	{":status", "200"}, {":status", "204"}, {":status", "206"}, {":status", "304"},
	{":status", "400"}, {":status", "404"}, {":status", "500"},
	{"accept-charset", ""}, {"accept-encoding", "gzip, deflate"}, {"accept-language", ""},
	{"accept-ranges", ""}, {"accept", ""}, {"access-control-allow-origin", ""},
	{"age", ""}, {"allow", ""}, {"authorization", ""}, {"cache-control", ""},
	{"content-disposition", ""}, {"content-encoding", ""}, {"content-language", ""},
	{"content-length", ""}, {"content-location", ""}, {"content-range", ""},
	{"content-type", ""}, {"cookie", ""}, {"date", ""}, {"etag", ""}, {"expect", ""},
	{"expires", ""}, {"from", ""}, {"host", ""}, {"if-match", ""},
	{"if-modified-since", ""}, {"if-none-match", ""}, {"if-range", ""},
	{"if-unmodified-since", ""}, {"last-modified", ""}, {"link", ""}, {"location", ""},
	{"max-forwards", ""}, {"proxy-authenticate", ""}, {"proxy-authorization", ""},
	{"range", ""}, {"referer", ""}, {"refresh", ""}, {"retry-after", ""}, {"server", ""},
	{"set-cookie", ""}, {"strict-transport-security", ""}, {"transfer-encoding", ""},
	{"user-agent", ""}, {"vary", ""}, {"via", ""}, {"www-authenticate", ""},
}

// huffmanLengths holds the length in bits of each byte's code (RFC 7541,
// appendix B). The code is canonical, so the lengths determine it.
var huffmanLengths = [256]uint8{
	13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
	28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
	6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
	5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
	13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
	7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
	15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
	6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
	20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
	24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
	22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
	21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
	26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
	19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
	20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
	26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
}

// maxHuffman is the longest code. The last code of that length is EOS.
const maxHuffman = 30

// huffmanCode is the canonical code, made when the first string needs it.
type huffmanCode struct {
	count  [maxHuffman + 1]int // how many bytes have a code of each length
	symbol [256]byte           // the bytes in the order of their codes
}

func newHuffmanCode() *huffmanCode {
	h := new(huffmanCode)
	n := 0
	for length := range uint8(maxHuffman + 1) {
		for b, l := range huffmanLengths {
			if l == length {
				h.symbol[n] = byte(b)
				h.count[length]++
				n++
			}
		}
	}
	return h
}

// decode decodes a string (RFC 7541, section 5.2).
func (h *huffmanCode) decode(in []byte) (string, error) {
	bad := malformedError("a bad Huffman code in a header")
	out := make([]byte, 0, len(in)*8/5)
	// code is what was read of the current symbol, first the lowest code of
	// that length, index the position of that code's byte.
	code, first, index, length, ones := 0, 0, 0, 0, true
	for _, b := range in {
		for bit := 7; bit >= 0; bit-- {
			code |= int(b) >> bit & 1
			ones = ones && b>>bit&1 == 1
			if length++; length > maxHuffman {
				return "", bad
			}
			n := h.count[length]
			if code-first < n {
				out = append(out, h.symbol[index+code-first])
				code, first, index, length, ones = 0, 0, 0, 0, true
				continue
			}
			code, first, index = code<<1, (first+n)<<1, index+n
		}
	}
	// The rest is padding: less than a byte, the beginning of EOS.
	if length > 7 || !ones {
		return "", bad
	}
	return string(out), nil
}

// decodeHeaders decodes a header block. The shim has announced a dynamic table
// of size 0, so every field stands for itself.
func decodeHeaders(block []byte, field func(name, value string)) error {
	d := headerDecoder{rest: block}
	for len(d.rest) > 0 {
		switch b := d.rest[0]; {
		case b&0x80 != 0: // indexed field
			entry, err := d.entry(7)
			if err != nil {
				return err
			}
			field(entry[0], entry[1])
		case b&0xe0 == 0x20: // dynamic table size update
			if size, err := d.integer(5); err != nil {
				return err
			} else if size != 0 {
				return malformedError("a header table larger than allowed")
			}
		default: // literal: with indexing, without, never
			bits := 4
			if b&0x40 != 0 {
				bits = 6
			}
			var name string
			if b&(1<<bits-1) != 0 {
				entry, err := d.entry(bits)
				if err != nil {
					return err
				}
				name = entry[0]
			} else {
				d.rest = d.rest[1:]
				var err error
				if name, err = d.text(); err != nil {
					return err
				}
			}
			value, err := d.text()
			if err != nil {
				return err
			}
			field(name, value)
		}
	}
	return nil
}

type headerDecoder struct {
	rest    []byte
	huffman *huffmanCode
}

var errHeaderCut = malformedError("a header block cut short")

// integer reads an integer whose first byte has so many bits of it (RFC 7541,
// section 5.1).
func (d *headerDecoder) integer(bits int) (uint64, error) {
	if len(d.rest) == 0 {
		return 0, errHeaderCut
	}
	mask := byte(1<<bits - 1)
	n := uint64(d.rest[0] & mask)
	d.rest = d.rest[1:]
	if n < uint64(mask) {
		return n, nil
	}
	for shift := 0; shift < 63; shift += 7 {
		if len(d.rest) == 0 {
			return 0, errHeaderCut
		}
		b := d.rest[0]
		d.rest = d.rest[1:]
		n += uint64(b&0x7f) << shift
		if b&0x80 == 0 {
			return n, nil
		}
	}
	return 0, malformedError("a number too large in a header")
}

// entry reads an index and returns its entry of the static table.
func (d *headerDecoder) entry(bits int) (*[2]string, error) {
	i, err := d.integer(bits)
	if err != nil {
		return nil, err
	}
	if i == 0 || i >= uint64(len(staticTable)) {
		return nil, malformedError("header index " + strconv.FormatUint(i, 10))
	}
	return &staticTable[i], nil
}

// text reads a string literal.
func (d *headerDecoder) text() (string, error) {
	coded := len(d.rest) > 0 && d.rest[0]&0x80 != 0
	n, err := d.integer(7)
	if err != nil {
		return "", err
	}
	if n > uint64(len(d.rest)) {
		return "", errHeaderCut
	}
	raw := d.rest[:n]
	d.rest = d.rest[n:]
	if !coded {
		return string(raw), nil
	}
	if d.huffman == nil {
		d.huffman = newHuffmanCode()
	}
	return d.huffman.decode(raw)
}

// appendHeader appends a field as a literal without indexing, with a literal
// name (RFC 7541, section 6.2.2).
func appendHeader(b []byte, name, value string) []byte {
	return appendText(appendText(append(b, 0), name), value)
}

func appendText(b []byte, s string) []byte {
	n := len(s)
	if n < 0x7f {
		return append(append(b, byte(n)), s...)
	}
	b = append(b, 0x7f)
	for n -= 0x7f; n >= 0x80; n >>= 7 {
		b = append(b, byte(n)|0x80)
	}
	return append(append(b, byte(n)), s...)
}
