package ccache

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"
)

// The FILE format
// (https://web.mit.edu/kerberos/krb5-latest/doc/formats/ccache_file_format.html).
const (
	magic        = 5
	version      = 4 // what Encode writes
	tagDeltaTime = 1
	// Entries of these realms are no tickets: they hold the configuration of a
	// cache, or have held it until it was removed.
	confRealm    = "X-CACHECONF:"
	removedRealm = "X-RMED-CONF:"
)

// reader reads the parts of the format. Past the end everything is zero, and
// short is set.
type reader struct {
	b       []byte
	version byte
	order   binary.ByteOrder
	short   bool
}

func newReader(b []byte) *reader {
	return &reader{b: b, version: version, order: binary.BigEndian}
}

func (r *reader) take(n uint32) []byte {
	if r.short = r.short || uint64(n) > uint64(len(r.b)); r.short {
		return nil
	}
	head := r.b[:n]
	r.b = r.b[n:]
	return head
}

func (r *reader) u8() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) u16() uint16 {
	if b := r.take(2); b != nil {
		return r.order.Uint16(b)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if b := r.take(4); b != nil {
		return r.order.Uint32(b)
	}
	return 0
}

func (r *reader) data() []byte { return r.take(r.u32()) }

// count reads the number of elements that follow, of at least size bytes each.
// More than there is room for are none at all, so that no damaged number costs
// time or memory.
func (r *reader) count(size int) uint32 {
	n := r.u32()
	if uint64(n) > uint64(len(r.b)/size) {
		r.short = true
		return 0
	}
	return n
}

func (r *reader) time() time.Time {
	// Unsigned, as in MIT since 1.16: good until 2106.
	if s := r.u32(); s != 0 {
		return time.Unix(int64(s), 0).UTC()
	}
	return time.Time{}
}

func (r *reader) principal() Principal {
	var p Principal
	if r.version > 1 {
		p.NameType = int32(r.u32())
	}
	n := r.count(4)
	if r.version == 1 { // counts the realm as well
		if n == 0 {
			r.short = true
			return p
		}
		n--
	}
	p.Realm = string(r.data())
	if n > 0 {
		p.Components = make([]string, n)
	}
	for i := range p.Components {
		p.Components[i] = string(r.data())
	}
	return p
}

// offset reads the payload of a DeltaTime tag: seconds and microseconds, less
// than a second of them. If there are more, it knows nothing.
func (r *reader) offset() time.Duration {
	seconds := time.Duration(int32(r.u32())) * time.Second
	rest := time.Duration(int32(r.u32())) * time.Microsecond
	if rest.Abs() >= time.Second {
		return 0
	}
	return seconds + rest
}

// credential reads an entry, and tells whether it is a ticket that still stands.
func (r *reader) credential() (Credential, bool) {
	c := Credential{Client: r.principal(), Server: r.principal()}
	c.KeyType = int32(int16(r.u16())) // enctypes may be negative
	if r.version == 3 {
		r.u16() // the enctype once more
	}
	c.Key = bytes.Clone(r.data())
	c.AuthTime, c.StartTime, c.EndTime, c.RenewTill = r.time(), r.time(), r.time(), r.time()
	toSessionKey := r.u8() != 0 // user-to-user (RFC 4120, 3.7): of no use to an ordinary AP-REQ
	c.Flags = r.u32()
	for range 2 { // addresses, authorization data
		for range r.count(6) {
			r.u16()
			r.data()
		}
	}
	c.Ticket = bytes.Clone(r.data())
	r.data() // second ticket
	if r.short {
		return Credential{}, false
	}
	// Removed entries stay in a file with an end time of 0.
	return c, !toSessionKey && !c.EndTime.IsZero() && c.Server.Realm != confRealm && c.Server.Realm != removedRealm
}

// Parse reads a cache in the FILE format, version 1 to 4. Versions 1 and 2 are
// in the byte order of the machine that wrote them, and read in that of this
// one. It trusts nothing in b, and takes memory in proportion to its length.
// Like MIT's reader it leaves out an incomplete last entry, because others add
// entries while we read. The error says nothing of what is in b.
func Parse(b []byte) (*Cache, error) {
	if len(b) < 2 || b[0] != magic || b[1] < 1 || b[1] > version {
		return nil, errors.New("not a ticket cache of version 1 to 4")
	}
	r := newReader(b[2:])
	if r.version = b[1]; r.version < 3 {
		r.order = binary.NativeEndian
	}
	c := &Cache{}
	if r.version == 4 {
		header := newReader(r.take(uint32(r.u16())))
		for !header.short && len(header.b) > 0 {
			tag := header.u16()
			field := header.take(uint32(header.u16()))
			if tag == tagDeltaTime && len(field) == 8 {
				c.Offset = newReader(field).offset()
			}
		}
		r.short = r.short || header.short
	}
	if c.Principal = r.principal(); r.short {
		return nil, errors.New("a ticket cache that ends before its principal does")
	}
	for !r.short && len(r.b) > 0 {
		if cred, ok := r.credential(); ok {
			c.Credentials = append(c.Credentials, cred)
		}
	}
	return c, nil
}

// Encode writes the cache in the FILE format, version 4. The same cache is the
// same bytes. Parts of seconds of times, and of microseconds of the offset, are
// cut off. The error is about a value that the format has no room for.
func (c *Cache) Encode() ([]byte, error) {
	w := &writer{b: []byte{magic, version}}
	if c.Offset == 0 {
		w.u16(0)
	} else {
		seconds := c.Offset / time.Second
		if seconds != time.Duration(int32(seconds)) {
			return nil, fmt.Errorf("a clock offset of %s does not fit a ticket cache", c.Offset)
		}
		w.u16(12)
		w.u16(tagDeltaTime)
		w.u16(8)
		w.u32(uint32(seconds))
		w.u32(uint32((c.Offset % time.Second) / time.Microsecond))
	}
	w.principal(c.Principal)
	for i := range c.Credentials {
		cred := &c.Credentials[i]
		if cred.EndTime.IsZero() || cred.KeyType != int32(int16(cred.KeyType)) {
			return nil, fmt.Errorf("%s, enctype %d, does not fit a ticket cache", cred, cred.KeyType)
		}
		w.principal(cred.Client)
		w.principal(cred.Server)
		w.u16(uint16(cred.KeyType))
		w.data(cred.Key)
		for _, t := range []time.Time{cred.AuthTime, cred.StartTime, cred.EndTime, cred.RenewTill} {
			if s := t.Unix(); t.IsZero() {
				w.u32(0)
			} else if s > 0 && s <= math.MaxUint32 {
				w.u32(uint32(s))
			} else {
				return nil, fmt.Errorf("time %s does not fit a ticket cache", t.UTC().Format(time.RFC3339))
			}
		}
		w.b = append(w.b, 0) // not to a session key
		w.u32(cred.Flags)
		w.u32(0) // addresses
		w.u32(0) // authorization data
		w.data(cred.Ticket)
		w.data(nil) // second ticket
	}
	return w.b, nil
}

// writer writes the parts of the format in version 4.
type writer struct{ b []byte }

func (w *writer) u16(n uint16) { w.b = binary.BigEndian.AppendUint16(w.b, n) }
func (w *writer) u32(n uint32) { w.b = binary.BigEndian.AppendUint32(w.b, n) }

func (w *writer) data(b []byte) {
	w.u32(uint32(len(b)))
	w.b = append(w.b, b...)
}

func (w *writer) principal(p Principal) {
	w.u32(uint32(p.NameType))
	w.u32(uint32(len(p.Components)))
	w.data([]byte(p.Realm))
	for _, c := range p.Components {
		w.data([]byte(c))
	}
}
