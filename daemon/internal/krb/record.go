package krb

import (
	"encoding/binary"
	"errors"
	"time"

	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"
)

// ticket is a ticket with what its client needs to use it. It is immutable.
type ticket struct {
	client Principal
	server Principal
	sealed messages.Ticket     // for the service's eyes
	key    types.EncryptionKey // session key
	auth   time.Time           // when the client proved itself
	end    time.Time
	renew  time.Time // zero: not renewable
}

// A record of a ticket is, in this order and nothing more:
//
//	version   1 byte, recordVersion
//	client    realm, number of components (1 byte), components
//	server    likewise
//	key       enctype (4 bytes), value
//	times     authentication, end, renew-till (0: none): seconds since 1970, 8 bytes each
//	ticket    DER of the Ticket (RFC 4120, 5.3)
//
// Strings are their length (2 bytes) and bytes; numbers are big-endian.
const recordVersion = 1

// encode returns the record of a ticket.
func (t *ticket) encode() ([]byte, error) {
	der, err := t.sealed.Marshal()
	if err != nil {
		return nil, err
	}
	b := []byte{recordVersion}
	var long bool
	str := func(s string) {
		long = long || len(s) > 1<<16-1
		b = binary.BigEndian.AppendUint16(b, uint16(len(s)))
		b = append(b, s...)
	}
	for _, p := range []Principal{t.client, t.server} {
		long = long || len(p.Components) > 1<<8-1
		str(p.Realm)
		b = append(b, byte(len(p.Components)))
		for _, c := range p.Components {
			str(c)
		}
	}
	b = binary.BigEndian.AppendUint32(b, uint32(t.key.KeyType))
	str(string(t.key.KeyValue))
	for _, at := range []time.Time{t.auth, t.end, t.renew} {
		var seconds int64
		if !at.IsZero() {
			seconds = at.Unix()
		}
		b = binary.BigEndian.AppendUint64(b, uint64(seconds))
	}
	str(string(der))
	if long {
		return nil, errors.New("a field is too long for a record")
	}
	return b, nil
}

// decodeTicket reads a record. It trusts nothing in it.
func decodeTicket(b []byte) (*ticket, error) {
	bad := false
	take := func(n int) []byte {
		if bad = bad || n > len(b); bad {
			return make([]byte, min(n, 8))
		}
		head := b[:n]
		b = b[n:]
		return head
	}
	str := func() []byte { return take(int(binary.BigEndian.Uint16(take(2)))) }
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
		return nil, errors.New("ticket record of another version")
	}
	t := &ticket{client: principal(), server: principal()}
	t.key.KeyType = int32(binary.BigEndian.Uint32(take(4)))
	t.key.KeyValue = append([]byte(nil), str()...)
	t.auth, t.end, t.renew = at(), at(), at()
	der := str()
	if bad || len(b) > 0 {
		return nil, errors.New("ticket record of a wrong length")
	}
	et, ok := enctypeOf(t.key.KeyType)
	if !ok || len(t.key.KeyValue) != et.keySize {
		return nil, errors.New("ticket record with a wrong key")
	}
	if err := safely(func() error { return t.sealed.Unmarshal(der) }); err != nil || len(t.sealed.SName.NameString) == 0 {
		return nil, errors.New("ticket record with a malformed ticket")
	}
	return t, nil
}

// leastLeft is how long a ticket must still live to be used.
const leastLeft = time.Minute

// usable tells whether a ticket lives long enough to be used. A TGT is
// replaced earlier, so that the tickets made from it are worth having: 5
// minutes before its end, or a tenth of its life if that is shorter.
func (t *ticket) usable(now time.Time) bool {
	least := leastLeft
	if t.isTGT() {
		least = min(5*time.Minute, t.end.Sub(t.auth)/10)
	}
	return t.end.Sub(now) > least
}

func (t *ticket) isTGT() bool {
	return len(t.server.Components) == 2 && t.server.Components[0] == "krbtgt"
}
