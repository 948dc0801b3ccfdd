package ccache

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"reflect"
	"testing"
	"time"
)

// payloads are the principal and the credentials of a cache in the format that
// KCM sends.
func payloads(c *Cache) (principal []byte, credentials [][]byte) {
	principal = (&layout{version: 4}).principal(c.Principal).b
	for _, cred := range c.Credentials {
		credentials = append(credentials, (&layout{version: 4}).credential(cred, 0, nil, nil).b)
	}
	return principal, credentials
}

func reply(status int32, result ...[]byte) []byte {
	body := binary.BigEndian.AppendUint32(nil, uint32(status))
	for _, r := range result {
		body = append(body, r...)
	}
	return join(binary.BigEndian.AppendUint32(nil, uint32(len(body))), make([]byte, 4), body)
}

func join(all ...[]byte) []byte { return bytes.Join(all, nil) }

// played is a connection to a daemon whose replies were written beforehand.
type played struct {
	io.Reader
	requests bytes.Buffer
}

func (p *played) Write(b []byte) (int, error) { return p.requests.Write(b) }

// play loads the default cache from replies.
func play(replies ...[]byte) (*Cache, error) {
	k := &kcm{conn: &played{Reader: bytes.NewReader(join(replies...))}, left: maxSize}
	return k.load(&search{client: alice}, "")
}

func TestKCMReplies(t *testing.T) {
	principal, credentials := payloads(sample(alice))
	others, _ := payloads(sample(bob))
	uuid := func(n byte) []byte { return bytes.Repeat([]byte{n}, 16) }
	offset := func(n int32) []byte { return reply(0, binary.BigEndian.AppendUint32(nil, uint32(n))) }
	first := reply(0, []byte("1000\x00"))
	refusal := reply(krb5FCCNoFile)
	alices := [][]byte{reply(0, principal), offset(-600), reply(0, uuid(1), uuid(2)), reply(0, credentials[0]), reply(0, credentials[1])}

	good := func(name string, want time.Duration, credentials int, replies ...[]byte) {
		t.Helper()
		c, err := play(replies...)
		if err != nil || c == nil || c.Offset != want || len(c.Credentials) != credentials {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
	good("the default cache", -10*time.Minute, 2, append([][]byte{first}, alices...)...)
	good("another cache", -10*time.Minute, 2, append([][]byte{first, reply(0, others), reply(0, uuid(8), uuid(9)),
		reply(0, []byte("1000\x00")) /* itself again */, reply(0, []byte("1000:1\x00"))}, alices...)...)
	good("no default cache, one that goes, and another", -10*time.Minute, 2, append([][]byte{first, refusal, reply(0, uuid(7), uuid(8), uuid(9)),
		refusal, reply(0, []byte("1000:1\x00")), reply(0) /* Heimdal: no principal */, reply(0, []byte("1000:2\x00"))}, alices...)...)
	good("a ticket that goes", 0, 1, first, alices[0], refusal, alices[2], refusal, alices[4])
	for _, n := range []int32{1<<31 - 1, -1 << 31, 1953717430} { // sssd's and Heimdal's for none
		good("an offset that is none", 0, 0, first, alices[0], offset(n), reply(0))
	}
	for name, replies := range map[string][][]byte{
		"nobody's":            {first, refusal, refusal},
		"others' and no more": {first, reply(0, others), reply(0)},
	} {
		if c, err := play(replies...); c != nil || err != nil {
			t.Errorf("%s: %v, %v", name, c, err)
		}
	}

	huge := reply(0)
	huge[0] = 0x7f
	for name, replies := range map[string][][]byte{
		"silence":                     {},
		"no status":                   {{0, 0, 0, 4, 0, 0, 0, 0}},
		"too short for a status":      {{0, 0, 0, 1, 0, 0, 0, 0, 0}},
		"larger than allowed":         {huge},
		"an error of the transport":   {{0, 0, 0, 0, 0, 0, 0, 1}},
		"an endless name":             {reply(0, []byte("1000"))},
		"a malformed principal":       {first, reply(0, principal[:9])},
		"a list of half a UUID":       {first, alices[0], alices[1], reply(0, uuid(1)[:8])},
		"a malformed list of caches":  {first, refusal, reply(0, uuid(1)[:8])},
		"a malformed name of a cache": {first, refusal, reply(0, uuid(1)), reply(0)},
		"a malformed credential":      {first, alices[0], alices[1], alices[2], reply(0, credentials[0][:50])},
		"an end before the tickets":   {first, alices[0], alices[1], alices[2]},
	} {
		if c, err := play(replies...); err == nil {
			t.Errorf("%s: %v", name, c)
		}
	}

	// Many small replies are not more than one large one.
	small := [][]byte{first, alices[0], alices[1], reply(0, bytes.Repeat(uuid(1), 5))}
	large := sample(alice)
	large.Credentials[0].Ticket = make([]byte, maxSize/4)
	_, credentials = payloads(large)
	for range 5 {
		small = append(small, reply(0, credentials[0]))
	}
	if c, err := play(small...); err == nil {
		t.Errorf("%d large tickets", len(c.Credentials))
	}
}

// TestKCMRequests holds what is sent against the protocol's description.
func TestKCMRequests(t *testing.T) {
	principal, credentials := payloads(sample(alice))
	id := []byte("0123456789abcdef")
	p := &played{Reader: bytes.NewReader(join(reply(0, principal), reply(0, make([]byte, 4)), reply(0, id), reply(0, credentials[0])))}
	if _, err := (&kcm{conn: p, left: maxSize}).load(&search{client: alice}, "n"); err != nil {
		t.Fatal(err)
	}
	want := "\x00\x00\x00\x06\x02\x00\x00\x08n\x00" +
		"\x00\x00\x00\x06\x02\x00\x00\x16n\x00" +
		"\x00\x00\x00\x06\x02\x00\x00\x09n\x00" +
		"\x00\x00\x00\x16\x02\x00\x00\x0an\x000123456789abcdef"
	if got := p.requests.String(); got != want {
		t.Errorf("%q", got)
	}
}

// TestKCMSilent is about a daemon that accepts and never answers.
func TestKCMSilent(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "kcm")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := load(ctx, "KCM:", alice, socket)
		done <- err
	}()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	request := make([]byte, 8)
	if _, err := io.ReadFull(conn, request); err != nil || !reflect.DeepEqual(request, []byte{0, 0, 0, 4, 2, 0, 0, kcmGetDefaultCache}) {
		t.Errorf("%x, %v", request, err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func FuzzKCM(f *testing.F) {
	principal, credentials := payloads(sample(alice))
	f.Add(join(reply(0, []byte("n\x00")), reply(0, principal), reply(0, make([]byte, 4)), reply(0, make([]byte, 16)), reply(0, credentials[0])))
	f.Add(join(reply(0, []byte("n\x00")), reply(krb5FCCNoFile), reply(0, make([]byte, 16)), reply(0, []byte("m\x00")), reply(0, principal)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := play(b); err == nil && c != nil {
			encode(t, c)
		}
	})
}
