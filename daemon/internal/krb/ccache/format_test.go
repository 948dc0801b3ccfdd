package ccache

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"
)

var (
	alice = Principal{NameType: 1, Realm: "CCACHE.TEST", Components: []string{"alice"}}
	bob   = Principal{NameType: 1, Realm: "CCACHE.TEST", Components: []string{"bob"}}
)

// sample is a cache of the client with a TGT and a service ticket.
func sample(client Principal) *Cache {
	at := func(s int64) time.Time { return time.Unix(s, 0).UTC() }
	return &Cache{Principal: client, Credentials: []Credential{
		{
			Client: client, Server: Principal{NameType: 2, Realm: client.Realm, Components: []string{"krbtgt", client.Realm}},
			KeyType: 18, Key: []byte("CANARY-key-of-the-tgt-0123456789"),
			AuthTime: at(1700000000), StartTime: at(1700000001), EndTime: at(1700036000), RenewTill: at(1700600000),
			Flags: 0x40e10000, Ticket: []byte("CANARY-ticket"),
		},
		{
			Client: client, Server: Principal{NameType: 3, Realm: client.Realm, Components: []string{"HTTP", "www.example"}},
			KeyType: -133, Key: []byte("CANARY-key-of-http"),
			AuthTime: at(1700000000), EndTime: at(math.MaxUint32),
			Flags: 0x00a10000, Ticket: []byte("CANARY-http"),
		},
	}}
}

// layout writes the format as its description says, apart from the code under
// test: every version, and the entries that Encode never writes.
type layout struct {
	b       []byte
	version int
}

func (l *layout) order() interface {
	binary.AppendByteOrder
	binary.ByteOrder
} {
	if l.version < 3 {
		return binary.NativeEndian
	}
	return binary.BigEndian
}

func (l *layout) u16(n int) *layout   { l.b = l.order().AppendUint16(l.b, uint16(n)); return l }
func (l *layout) u32(n int64) *layout { l.b = l.order().AppendUint32(l.b, uint32(n)); return l }
func (l *layout) data(s string) *layout {
	l.u32(int64(len(s)))
	l.b = append(l.b, s...)
	return l
}

func (l *layout) principal(p Principal) *layout {
	if l.version == 1 {
		l.u32(int64(len(p.Components) + 1))
	} else {
		l.u32(int64(p.NameType)).u32(int64(len(p.Components)))
	}
	l.data(p.Realm)
	for _, c := range p.Components {
		l.data(c)
	}
	return l
}

func (l *layout) credential(c Credential, toSessionKey byte, addresses, authData []string) *layout {
	l.principal(c.Client).principal(c.Server).u16(int(c.KeyType))
	if l.version == 3 {
		l.u16(int(c.KeyType))
	}
	l.data(string(c.Key))
	for _, t := range []time.Time{c.AuthTime, c.StartTime, c.EndTime, c.RenewTill} {
		if t.IsZero() {
			l.u32(0)
		} else {
			l.u32(t.Unix())
		}
	}
	l.b = append(l.b, toSessionKey)
	l.u32(int64(c.Flags))
	for _, list := range [][]string{addresses, authData} {
		l.u32(int64(len(list)))
		for _, s := range list {
			l.u16(2).data(s)
		}
	}
	return l.data(string(c.Ticket)).data("second ticket"[:13*int(toSessionKey)])
}

func newLayout(version int, c *Cache) *layout {
	l := &layout{b: []byte{5, byte(version)}, version: version}
	if version == 4 {
		l.u16(0)
	}
	return l.principal(c.Principal)
}

func file(version int, c *Cache) []byte {
	l := newLayout(version, c)
	for _, cred := range c.Credentials {
		l.credential(cred, 0, nil, nil)
	}
	return l.b
}

func encode(t testing.TB, c *Cache) []byte {
	t.Helper()
	b, err := c.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func parse(t *testing.T, b []byte) *Cache {
	t.Helper()
	c, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestVersions(t *testing.T) {
	for version := 1; version <= 4; version++ {
		want := sample(alice)
		if version == 1 { // has no name types
			want.Principal.NameType = 0
			for i := range want.Credentials {
				want.Credentials[i].Client.NameType, want.Credentials[i].Server.NameType = 0, 0
			}
		}
		if got := parse(t, file(version, sample(alice))); !reflect.DeepEqual(got, want) {
			t.Errorf("version %d: %+v", version, got)
		}
	}
	if !bytes.Equal(encode(t, sample(alice)), file(4, sample(alice))) {
		t.Error("Encode does not write version 4")
	}
	for _, b := range [][]byte{nil, {5}, {5, 0}, {5, 5}, {4, 4}, []byte("#!/bin/sh"), file(4, sample(alice))[1:]} {
		if c, err := Parse(b); err == nil {
			t.Errorf("%q gave %+v", b, c)
		}
	}
}

func TestHeader(t *testing.T) {
	body := file(4, sample(alice))[4:]
	for _, test := range []struct {
		header string
		offset time.Duration
	}{
		{"", 0},
		{"\x00\x01\x00\x08\x00\x00\x02\x58\x00\x00\x00\x07", 10*time.Minute + 7*time.Microsecond},
		{"\x00\x01\x00\x08\xff\xff\xff\xff\xff\xff\xff\xff", -time.Second - time.Microsecond},
		{"\x77\x77\x00\x03abc" + "\x00\x01\x00\x08\x00\x00\x00\x01\x00\x00\x00\x00" + "\x00\x02\x00\x00", time.Second},
		{"\x00\x01\x00\x02ab", 0}, // of another length: unknown
		{"\x00\x01\x00\x08\x7f\xff\xff\xff\x7f\xff\xff\xff", 0},
	} {
		b := append([]byte{5, 4, 0, byte(len(test.header))}, test.header...)
		c := parse(t, append(b, body...))
		if c.Offset != test.offset || len(c.Credentials) != 2 {
			t.Errorf("%x: offset %s, %d credentials", test.header, c.Offset, len(c.Credentials))
		}
		if again := parse(t, encode(t, c)); again.Offset != test.offset {
			t.Errorf("%s became %s", test.offset, again.Offset)
		}
	}
	// Fields that end after the header does.
	for _, header := range []string{"\x00", "\x00\x01\x00", "\x00\x01\x00\x09\x00\x00\x00\x00\x00\x00\x00\x00"} {
		b := append([]byte{5, 4, 0, byte(len(header))}, header...)
		if c, err := Parse(append(b, body...)); err == nil {
			t.Errorf("%x gave %+v", header, c)
		}
	}
}

func TestLeftOut(t *testing.T) {
	c := sample(alice)
	tgt, http := c.Credentials[0], c.Credentials[1]
	config := Credential{Client: alice, Server: Principal{Realm: "X-CACHECONF:", Components: []string{"krb5_ccache_conf_data", "pa_type"}}, Ticket: []byte("2")}
	past := config // as Heimdal writes it, with an end
	past.EndTime = tgt.EndTime
	forgotten := past
	forgotten.Server.Realm = "X-RMED-CONF:"
	removed := http
	removed.AuthTime, removed.EndTime = time.Unix(math.MaxUint32, 0), time.Time{}
	b := newLayout(4, c).
		credential(config, 0, nil, nil).
		credential(past, 0, nil, nil).
		credential(forgotten, 0, nil, nil).
		credential(tgt, 0, []string{"\x7f\x00\x00\x01", "\x00"}, []string{"data"}).
		credential(removed, 0, nil, nil).
		credential(http, 1, nil, nil). // user-to-user
		credential(http, 0, nil, nil).b
	if got := parse(t, b); !reflect.DeepEqual(got, sample(alice)) {
		t.Errorf("%+v", got)
	}
}

func TestEncodeRefuses(t *testing.T) {
	for name, change := range map[string]func(*Cache){
		"no end":      func(c *Cache) { c.Credentials[0].EndTime = time.Time{} },
		"before 1970": func(c *Cache) { c.Credentials[0].AuthTime = time.Unix(-1, 0) },
		"in 1970":     func(c *Cache) { c.Credentials[0].AuthTime = time.Unix(0, 0) },
		"after 2106":  func(c *Cache) { c.Credentials[0].RenewTill = time.Unix(1<<32, 0) },
		"enctype":     func(c *Cache) { c.Credentials[1].KeyType = 1 << 15 },
		"offset":      func(c *Cache) { c.Offset = math.MaxInt64 },
	} {
		c := sample(alice)
		change(c)
		b, err := c.Encode()
		if err == nil {
			t.Errorf("%s: %x", name, b)
		} else if strings.Contains(err.Error(), "CANARY") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// random makes a cache out of everything that Encode has to cope with.
func random(r *rand.Rand) *Cache {
	data := func() []byte {
		b := make([]byte, r.IntN(40))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	principal := func() Principal {
		p := Principal{NameType: int32(r.Uint32()), Realm: string(data())}
		for range r.IntN(4) {
			p.Components = append(p.Components, string(data()))
		}
		return p
	}
	at := func() time.Time { return time.Unix(1+r.Int64N(math.MaxUint32), 0).UTC() }
	c := &Cache{Principal: principal()}
	if r.IntN(2) == 0 {
		c.Offset = time.Duration(int32(r.Uint32()))*time.Second + time.Duration(r.IntN(1_000_000))*time.Microsecond
	}
	for range r.IntN(5) {
		cred := Credential{Client: principal(), Server: principal(), KeyType: int32(int16(r.Uint32())), Key: data(),
			EndTime: at(), Flags: r.Uint32(), Ticket: data()}
		for _, t := range []*time.Time{&cred.AuthTime, &cred.StartTime, &cred.RenewTill} {
			if r.IntN(3) > 0 {
				*t = at()
			}
		}
		c.Credentials = append(c.Credentials, cred)
	}
	return c
}

func TestEncodeParseEncode(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 2000 {
		c := random(r)
		b := encode(t, c)
		got := parse(t, b)
		if !reflect.DeepEqual(got, c) {
			t.Fatalf("%d: %#v became %#v", i, c, got)
		}
		if !bytes.Equal(encode(t, got), b) {
			t.Fatalf("%d: the second encoding differs", i)
		}
	}
}

// damage checks that Parse takes every truncation of b and many byte flips, and
// little memory: an error, or a cache that can be written.
func damage(t *testing.T, b []byte) {
	t.Helper()
	whole := parse(t, b)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	var total uint64
	check := func(what string, b []byte) *Cache {
		t.Helper()
		c, err := Parse(b)
		total += uint64(len(b))
		switch {
		case err != nil && strings.Contains(err.Error(), "CANARY"):
			t.Errorf("%s: %v", what, err)
		case err == nil:
			encode(t, c)
		}
		return c
	}
	for n := range len(b) {
		c := check(fmt.Sprintf("cut after %d bytes", n), b[:n])
		if c == nil {
			continue
		}
		// Whatever is complete stands.
		if i := len(c.Credentials); !reflect.DeepEqual(c.Principal, whole.Principal) || i > len(whole.Credentials) || i > 0 && !reflect.DeepEqual(c.Credentials, whole.Credentials[:i]) {
			t.Errorf("cut after %d bytes: %+v", n, c)
		}
	}
	r := rand.New(rand.NewPCG(3, 4))
	for i := range 1000 {
		flipped := bytes.Clone(b)
		for range 1 + r.IntN(4) {
			flipped[r.IntN(len(b))] = byte(r.Uint32())
		}
		check(fmt.Sprintf("flip %d", i), flipped)
	}
	// The worst byte everywhere: lengths and counts of 4 billion.
	for i := range b {
		flipped := bytes.Clone(b)
		flipped[i] = 0xff
		check(fmt.Sprintf("0xff at %d", i), flipped)
	}
	runtime.ReadMemStats(&after)
	// All of it together: the copies made here, Parse and Encode.
	if n := after.TotalAlloc - before.TotalAlloc; n > 20*total {
		t.Errorf("%d bytes took %d bytes of memory", total, n)
	}
}

func TestDamaged(t *testing.T) {
	for version := 1; version <= 4; version++ {
		damage(t, file(version, sample(alice)))
	}
}

// TestSmallestEntries has the most memory that bytes can ask for: nothing but
// the smallest credentials, and nothing but empty components.
func TestSmallestEntries(t *testing.T) {
	l := newLayout(4, &Cache{})
	for len(l.b) < 1<<20 {
		l.credential(Credential{EndTime: time.Unix(1, 0)}, 0, nil, nil)
	}
	components := newLayout(4, &Cache{Principal: Principal{Components: make([]string, 1<<18)}}).b
	for _, b := range [][]byte{l.b, components} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		parse(t, b)
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > uint64(20*len(b)) {
			t.Errorf("%d bytes took %d bytes of memory", len(b), n)
		}
	}
}

func TestNeverPrinted(t *testing.T) {
	c := sample(alice)
	var log bytes.Buffer
	for _, h := range []slog.Handler{slog.NewTextHandler(&log, nil), slog.NewJSONHandler(&log, nil)} {
		slog.New(h).Info("x", "c", c, "cred", c.Credentials[0], "p", &c.Credentials[0], "all", c.Credentials)
	}
	j, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	out := log.String() + string(j)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		for _, v := range []any{c, *c, c.Credentials, c.Credentials[0], &c.Credentials[0], []*Credential{&c.Credentials[0]}, map[string]Credential{"": c.Credentials[0]}} {
			out += fmt.Sprintf(verb, v)
		}
	}
	for _, secret := range [][]byte{c.Credentials[0].Key, c.Credentials[0].Ticket, c.Credentials[1].Key, c.Credentials[1].Ticket, []byte("CANARY")} {
		for _, form := range []string{string(secret), fmt.Sprintf("%x", secret), fmt.Sprintf("%X", secret), fmt.Sprint(secret)[1:], fmt.Sprintf("%#v", secret),
			base64.StdEncoding.EncodeToString(secret)} {
			if strings.Contains(out, strings.TrimRight(form, "]")) {
				t.Fatalf("printed as %s", form)
			}
		}
	}
	if !strings.Contains(out, "HTTP/www.example@CCACHE.TEST") {
		t.Error("nothing is printed at all")
	}
}

func FuzzParse(f *testing.F) {
	for version := 1; version <= 4; version++ {
		f.Add(file(version, sample(alice)))
	}
	c := sample(alice)
	c.Offset = -time.Hour
	f.Add(encode(f, c))
	f.Add(newLayout(4, c).credential(c.Credentials[0], 1, []string{"a"}, []string{"b", ""}).b)
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Parse(b)
		if err != nil {
			return
		}
		again := encode(t, c)
		got, err := Parse(again)
		if err != nil || !bytes.Equal(encode(t, got), again) {
			t.Errorf("%+v became %+v, %v", c, got, err)
		}
	})
}
