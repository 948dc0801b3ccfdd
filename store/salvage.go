package store

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
)

// salvaged is a record that was found in a damaged file. Its sequence is in its seal.
type salvaged struct {
	bucket   string
	key      []byte
	name     string
	record   []byte
	sequence uint64
}

// salvage returns the records of a damaged file whose seals open, the newest version of
// each, in the order of their sequences. It believes nothing in the file but seals, and
// needs no tree: a version whose page is free, but not used again yet, is found too. So
// where the newest version is lost an older one stands in for it, and a removed record
// may be back until the file that it was removed from is written anew.
//
// An error says why there may be more than was found: a part of the file cannot be
// read, or claims of its elements go beyond all reason. The records are good all the same.
func salvage(f io.ReaderAt, size int64, k *keyring) (records []salvaged, err error) {
	type place struct{ bucket, key string }
	type generation struct {
		bucket string
		dataKey
	}
	var keys []generation
	wrapped := make(map[string]bool) // each is there many times
	err = scanElements(f, size, func(name, value []byte) {
		if wrapped[string(value)] {
			return
		}
		if d, err := k.unwrapAny(string(name), value); err == nil {
			keys = append(keys, generation{string(name), d})
			wrapped[string(value)] = true
		}
	})
	found := make(map[place]salvaged)
	err = cmp.Or(err, scanElements(f, size, func(key, raw []byte) {
		if len(key) != sha256.Size || len(raw) < headerSize {
			return
		}
		for _, g := range keys {
			if g.generation != binary.BigEndian.Uint32(raw[1:]) {
				continue
			}
			p := place{g.bucket, string(key)}
			old, have := found[p]
			if have && binary.BigEndian.Uint64(raw[5:]) <= old.sequence {
				continue
			}
			name, record, sequence, err := k.open(g.dataKey, g.bucket, key, raw)
			if err != nil {
				continue
			}
			clear(old.record)
			found[p] = salvaged{g.bucket, bytes.Clone(key), name, record, sequence}
			return
		}
	}))
	records = slices.SortedFunc(maps.Values(found), func(a, b salvaged) int { return cmp.Compare(a.sequence, b.sequence) })
	return records, err
}

// unwrapAny is unwrap where nothing tells the format.
func (k *keyring) unwrapAny(bucket string, wrapped []byte) (dataKey, error) {
	d, err := k.unwrap(format, bucket, wrapped)
	if err != nil {
		d, err = k.unwrap(oldestFormat, bucket, wrapped)
	}
	return d, err
}

// maxIDs bounds the candidates of salvageID. There is one, unless damage makes others.
const maxIDs = 16

// salvageID returns what may be the id of the store in a damaged file, the likeliest
// first: the one that is there most often.
func salvageID(f io.ReaderAt, size int64) (ids [][]byte) {
	times := make(map[string]int)
	scanElements(f, size, func(name, value []byte) { // what cannot be read holds no id
		if bytes.Equal(name, metaID) && len(value) == idSize && (len(times) < maxIDs || times[string(value)] > 0) {
			times[string(value)]++
		}
	})
	for _, id := range slices.SortedFunc(maps.Keys(times), func(a, b string) int {
		return cmp.Or(cmp.Compare(times[b], times[a]), cmp.Compare(a, b))
	}) {
		ids = append(ids, []byte(id))
	}
	return ids
}

// A leaf page of bbolt has, behind a header of 16 bytes, a table of elements of four
// 32-bit numbers in the byte order of the machine: flags, the distance of the key from
// the element, the sizes of the key and of the value, which follows the key. So an
// element tells by itself where its key and its value are, and whatever stands at a
// multiple of 16 may be one. A bucket's element has a flag. Its value is a header of 16
// bytes, which begins with the number of the bucket's first page, and where that is 0 a
// leaf page follows it, with no bucket in it.
const (
	leafAlign   = 16
	leafBucket  = 1
	pageSize    = 4 << 10
	inlineLimit = 16 << 10 // of a bucket's value: a quarter of the largest page
	keyLimit    = 255
	valueLimit  = 16 << 20

	// A file that makes sense claims each of its bytes a few times at most, with the
	// elements that free pages still hold.
	scanLimit  = 1 << 30
	claimLimit = 32
)

var errClaims = errors.New("its elements claim many times its size")

// scanElements calls fn with the key and the value of everything in a file that could be
// an element of a leaf, also inside a bucket that stands in one. fn must keep neither. What
// cannot be read is passed over, and is the error. It takes time that grows with the
// size, and memory for one value.
func scanElements(f io.ReaderAt, size int64, fn func(key, value []byte)) error {
	var unread error
	if size > scanLimit {
		size, unread = scanLimit, fmt.Errorf("only its first %d GiB are looked at", scanLimit>>30)
	}
	claims := claimLimit * size
	c := &chunked{ReaderAt: f, chunk: make([]byte, 0, chunkSize)}
	var page, zeros [pageSize]byte
	var buf []byte
	for at := int64(0); at < size; at += pageSize {
		n, err := c.next(page[:min(pageSize, size-at)], at)
		if err != nil && err != io.EOF {
			unread = cmp.Or(unread, err)
		}
		if n == 0 && err == io.EOF { // it is shorter than that
			break
		}
		if page == zeros {
			continue
		}
		for i := 0; i+leafAlign <= n; i += leafAlign {
			e, ok := readElement(page[i:])
			if !ok || at+int64(i)+e.end() > size {
				continue
			}
			if claims -= int64(e.key + e.value); claims < 0 {
				return errClaims
			}
			buf = slices.Grow(buf[:0], e.key+e.value)[:e.key+e.value]
			if n, err := c.ReadAt(buf, at+int64(i)+e.pos); n < len(buf) {
				unread = cmp.Or(unread, err)
				continue
			}
			key, value := buf[:e.key], buf[e.key:]
			fn(key, value)
			if e.flags&leafBucket == 0 || e.value > inlineLimit || e.value < leafAlign || binary.NativeEndian.Uint64(value) != 0 {
				continue
			}
			inline := value[leafAlign:]
			for i := 0; i+leafAlign <= len(inline); i += leafAlign {
				e, ok := readElement(inline[i:])
				if !ok || int64(i)+e.end() > int64(len(inline)) {
					continue
				}
				if claims -= int64(e.key + e.value); claims < 0 {
					return errClaims
				}
				b := inline[int64(i)+e.pos:]
				fn(b[:e.key], b[e.key:e.key+e.value])
			}
		}
	}
	return unread
}

// chunked is read from front to back, and reads large pieces for that. What is asked for
// elsewhere it reads alone.
type chunked struct {
	io.ReaderAt
	at    int64
	chunk []byte
}

const chunkSize = 1 << 20

// next reads what follows.
func (c *chunked) next(p []byte, at int64) (int, error) {
	if at+int64(len(p)) > c.at+int64(len(c.chunk)) {
		n, err := c.ReaderAt.ReadAt(c.chunk[:chunkSize], at)
		if c.at, c.chunk = at, c.chunk[:n]; n < len(p) && err != io.EOF { // what cannot be read
			c.chunk = c.chunk[:0]
			return c.ReaderAt.ReadAt(p, at)
		}
	}
	n := copy(p, c.chunk[at-c.at:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (c *chunked) ReadAt(p []byte, at int64) (int, error) {
	if at >= c.at && at+int64(len(p)) <= c.at+int64(len(c.chunk)) {
		return copy(p, c.chunk[at-c.at:]), nil
	}
	return c.ReaderAt.ReadAt(p, at)
}

// leafElement is an element of a leaf page, with sizes in bytes.
type leafElement struct {
	flags      uint32
	pos        int64
	key, value int
}

// end returns where the value ends, from where the element begins.
func (e leafElement) end() int64 { return e.pos + int64(e.key+e.value) }

// readElement reads the element that b begins with, and tells whether it could be one of
// a store's.
func readElement(b []byte) (e leafElement, ok bool) {
	field := func(i int) uint32 { return binary.NativeEndian.Uint32(b[4*i:]) }
	key, value := field(2), field(3)
	if key == 0 || key > keyLimit || value == 0 || value > valueLimit {
		return leafElement{}, false
	}
	e = leafElement{field(0), int64(field(1)), int(key), int(value)}
	return e, e.pos >= leafAlign
}
