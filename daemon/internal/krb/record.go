package krb

import (
	"encoding/binary"
	"errors"
	"slices"
	"time"

	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"

	"github.com/sessionctl/sessionctl/daemon/internal/krb/ccache"
)

// ticket is a ticket with what its client needs to use it. It is immutable.
// Its times are the KDC's.
type ticket struct {
	client Principal
	server Principal           // as the KDC names it
	sealed []byte              // Ticket (RFC 4120, 5.3) in DER, for the service's eyes
	key    types.EncryptionKey // session key
	flags  uint32              // the first one is the highest bit (RFC 4120, 5.3)
	auth   time.Time           // when the client proved itself
	start  time.Time           // when it was issued
	end    time.Time
	renew  time.Time     // zero: not renewable
	offset time.Duration // of the KDC's clock from this machine's
	// place is where this machine's clock stood when the ticket was issued to it
	// (Engine.place); unknown of one from a record or a ticket cache.
	place  time.Duration
	placed bool
}

// Ticket flags (RFC 4120, 5.3).
const flagRenewable uint32 = 1 << (31 - 8)

// A record of a ticket is, in this order and nothing more:
//
//	version   1 byte, recordVersion
//	asked     what was asked for, as in ticketKey
//	client    realm, number of components (1 byte), components
//	server    likewise
//	key       enctype (4 bytes), value
//	flags     4 bytes
//	times     authentication, start, end, renew-till (0: none): seconds since 1970, 8 bytes each
//	offset    of the KDC's clock: nanoseconds, 8 bytes
//	ticket    DER of the Ticket (RFC 4120, 5.3)
//
// Strings are their length (4 bytes) and bytes; numbers are big-endian.
const recordVersion = 2

// encode returns the record of a ticket.
func (t *ticket) encode(asked string) ([]byte, error) {
	b := []byte{recordVersion}
	str := func(s string) {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	str(asked)
	for _, p := range []Principal{t.client, t.server} {
		if len(p.Components) > 1<<8-1 {
			return nil, errors.New("a name is too long for a record")
		}
		str(p.Realm)
		b = append(b, byte(len(p.Components)))
		for _, c := range p.Components {
			str(c)
		}
	}
	b = binary.BigEndian.AppendUint32(b, uint32(t.key.KeyType))
	str(string(t.key.KeyValue))
	b = binary.BigEndian.AppendUint32(b, t.flags)
	for _, at := range []time.Time{t.auth, t.start, t.end, t.renew} {
		var seconds int64
		if !at.IsZero() {
			seconds = at.Unix()
		}
		b = binary.BigEndian.AppendUint64(b, uint64(seconds))
	}
	b = binary.BigEndian.AppendUint64(b, uint64(t.offset))
	str(string(t.sealed))
	return b, nil
}

// decodeTicket reads a record. It trusts nothing in it.
func decodeTicket(b []byte) (t *ticket, asked string, err error) {
	bad := false
	take := func(n int) []byte {
		if bad = bad || n > len(b); bad {
			return make([]byte, min(n, 8))
		}
		head := b[:n]
		b = b[n:]
		return head
	}
	str := func() []byte { return take(int(binary.BigEndian.Uint32(take(4)))) }
	principal := func() (p Principal) {
		p.Realm = string(str())
		for range int(take(1)[0]) {
			p.Components = append(p.Components, string(str()))
		}
		return p
	}
	at := func() time.Time {
		if s := int64(binary.BigEndian.Uint64(take(8))); s != 0 {
			return time.Unix(s, 0).UTC()
		}
		return time.Time{}
	}
	if take(1)[0] != recordVersion {
		return nil, "", errors.New("ticket record of another version")
	}
	asked = string(str())
	t = &ticket{client: principal(), server: principal()}
	t.key.KeyType = int32(binary.BigEndian.Uint32(take(4)))
	t.key.KeyValue = append([]byte(nil), str()...)
	t.flags = binary.BigEndian.Uint32(take(4))
	t.auth, t.start, t.end, t.renew = at(), at(), at(), at()
	t.offset = time.Duration(binary.BigEndian.Uint64(take(8)))
	der := str()
	if bad || len(b) > 0 {
		return nil, "", errors.New("ticket record of a wrong length")
	}
	if err := t.seal(der); err != nil {
		return nil, "", err
	}
	return t, asked, nil
}

// seal completes a ticket with the DER of the KDC's Ticket.
func (t *ticket) seal(der []byte) error {
	var sealed messages.Ticket
	if et, ok := enctypeOf(t.key.KeyType); !ok || len(t.key.KeyValue) != et.keySize {
		return errors.New("ticket with a wrong key")
	}
	err := wellFormed(der)
	if err == nil {
		err = safely(func() error { return sealed.Unmarshal(der) })
	}
	if err != nil || len(sealed.SName.NameString) == 0 {
		return errors.New("malformed ticket")
	}
	t.sealed = slices.Clone(der)
	return nil
}

// ticketOfCache returns a ticket of a ticket cache.
func ticketOfCache(c ccache.Credential, offset time.Duration) (*ticket, error) {
	t := &ticket{
		client: Principal{c.Client.Components, c.Client.Realm}, server: Principal{c.Server.Components, c.Server.Realm},
		key: types.EncryptionKey{KeyType: c.KeyType, KeyValue: c.Key}, flags: c.Flags,
		auth: c.AuthTime, start: c.StartTime, end: c.EndTime, renew: c.RenewTill, offset: offset,
	}
	if t.start.IsZero() { // RFC 4120, 5.3
		t.start = t.auth
	}
	if err := t.seal(c.Ticket); err != nil {
		return nil, err
	}
	return t, nil
}

// forCache returns what a ticket cache holds of a ticket.
func (t *ticket) forCache() ccache.Credential {
	name := func(p Principal) ccache.Principal {
		return ccache.Principal{NameType: 1, Realm: p.Realm, Components: p.Components}
	}
	return ccache.Credential{
		Client: name(t.client), Server: name(t.server), KeyType: t.key.KeyType, Key: t.key.KeyValue, Flags: t.flags,
		AuthTime: t.auth, StartTime: t.start, EndTime: t.end, RenewTill: t.renew, Ticket: t.sealed,
	}
}

// leastLeft is how long a ticket must still live to be used.
const leastLeft = time.Minute

// left returns how long a ticket still lives.
func (t *ticket) left(now time.Time) time.Duration { return t.end.Sub(now.Add(t.offset)) }

// usable tells whether a ticket lives long enough to be used. A TGT is
// replaced earlier, so that the tickets made from it are worth having: 5
// minutes before its end, or a tenth of its life if that is shorter.
func (t *ticket) usable(now time.Time) bool {
	least := leastLeft
	if t.isTGT() {
		least = min(5*time.Minute, t.end.Sub(t.start)/10)
	}
	return t.left(now) > least
}

// due returns from when on, by this machine's clock, a TGT is to be replaced
// ahead of its end, so that an outage of the KDC in the last quarter of its life
// goes unnoticed.
func (t *ticket) due() time.Time {
	return t.start.Add(t.end.Sub(t.start) / 4 * 3).Add(-t.offset)
}

// renewable reports whether a TGT can be renewed beyond its end.
func (t *ticket) renewable() bool { return t.flags&flagRenewable != 0 && t.renew.After(t.end) }

func (t *ticket) isTGT() bool {
	return len(t.server.Components) == 2 && t.server.Components[0] == "krbtgt"
}
