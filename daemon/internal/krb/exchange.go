package krb

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jcmturner/gokrb5/v8/asn1tools"
	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/iana"
	"github.com/jcmturner/gokrb5/v8/iana/asnAppTag"
	"github.com/jcmturner/gokrb5/v8/iana/errorcode"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	"github.com/jcmturner/gokrb5/v8/iana/msgtype"
	"github.com/jcmturner/gokrb5/v8/iana/nametype"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"

	"github.com/sessionctl/sessionctl/api"
)

// maxSkew is how far clocks may differ (RFC 4120, 8.2).
const maxSkew = 5 * time.Minute

// nonce returns a new nonce, of the 31 bits that KDCs take.
func nonce() int {
	var b [4]byte
	rand.Read(b[:])
	return int(binary.BigEndian.Uint32(b[:]) >> 1)
}

// decode gives foreign bytes to one of gokrb5's decoders.
func decode(b []byte, unmarshal func([]byte) error) error {
	if err := wellFormed(b); err != nil {
		return err
	}
	return safely(func() error { return unmarshal(b) })
}

// apReq encodes an AP-REQ (RFC 4120, 5.5.1) with a new authenticator.
func (e *Engine) apReq(t *ticket, sum types.Checksum, mutual bool) (types.Authenticator, []byte, error) {
	var sequence [4]byte
	rand.Read(sequence[:])
	now := e.stamp(t.offset)
	auth := types.Authenticator{
		AVNO:      iana.PVNO,
		CRealm:    t.client.Realm,
		CName:     t.client.name(nametype.KRB_NT_PRINCIPAL),
		Cksum:     sum,
		Cusec:     now.Nanosecond() / 1000,
		CTime:     now,
		SeqNumber: int64(binary.BigEndian.Uint32(sequence[:]) >> 2), // old peers read it as signed
	}
	encoded, err := auth.Marshal()
	if err != nil {
		return auth, nil, fmt.Errorf("encode Authenticator: %w", err)
	}
	usage := uint32(keyusage.AP_REQ_AUTHENTICATOR)
	if t.isTGT() {
		usage = keyusage.TGS_REQ_PA_TGS_REQ_AP_REQ_AUTHENTICATOR
	}
	encrypted, err := crypto.GetEncryptedData(encoded, t.key, usage, noKVNO)
	if err != nil {
		return auth, nil, fmt.Errorf("encrypt Authenticator: %w", err)
	}
	authenticator, err := encrypted.Marshal()
	if err != nil {
		return auth, nil, fmt.Errorf("encode EncryptedData: %w", err)
	}
	var options uint32
	if mutual {
		options = apMutualRequired
	}
	// By hand: gokrb5's encoder would take as long as all the rest of a token.
	return auth, der(0x60|asnAppTag.APREQ, der(0x30,
		[]byte{0xa0, 3, 2, 1, iana.PVNO},
		[]byte{0xa1, 3, 2, 1, msgtype.KRB_AP_REQ},
		der(0xa2, der(3, []byte{0}, binary.BigEndian.AppendUint32(nil, options))),
		der(0xa3, t.sealed),
		der(0xa4, authenticator))), nil
}

// apMutualRequired is the option of RFC 4120, 5.5.1.
const apMutualRequired uint32 = 1 << (31 - 2)

// der is an element with a tag, whose content is the parts.
func der(tag byte, parts ...[]byte) []byte {
	n := 0
	for _, part := range parts {
		n += len(part)
	}
	b := append(make([]byte, 0, 6+n), tag)
	b = append(b, asn1tools.MarshalLengthBytes(n)...)
	for _, part := range parts {
		b = append(b, part...)
	}
	return b
}

// derInt is an INTEGER: two's complement in as few bytes as hold it.
func derInt(n int64) []byte {
	b := binary.BigEndian.AppendUint64(nil, uint64(n))
	for len(b) > 1 && (b[0] == 0 && b[1] < 0x80 || b[0] == 0xff && b[1] >= 0x80) {
		b = b[1:]
	}
	return der(2, b)
}

// errUndecipherable is returned for an encrypted part that the key does not
// open.
var errUndecipherable = errors.New("the encrypted part does not open")

// ticketFrom checks a KDC-REP against its request (RFC 4120, 3.1.5 and 3.3.4)
// and takes the ticket out of it.
func (e *Engine) ticketFrom(rep *messages.KDCRepFields, body messages.KDCReqBody, client Principal, etypes []int32, key types.EncryptionKey, usage uint32) (*ticket, error) {
	request := "TGS-REQ"
	if usage == keyusage.AS_REP_ENCPART {
		request = "AS-REQ"
	}
	var part messages.EncKDCRepPart
	var plain []byte
	err := safely(func() (err error) {
		plain, err = crypto.DecryptEncPart(rep.EncPart, key, usage)
		return err
	})
	if err != nil {
		return nil, errUndecipherable
	}
	if err := decode(plain, part.Unmarshal); err != nil {
		return nil, badReply(request, "its encrypted part is malformed")
	}
	t := &ticket{
		client: principalOf(rep.CName, rep.CRealm),
		server: principalOf(part.SName, part.SRealm),
		key:    part.Key,
		auth:   part.AuthTime,
		start:  part.StartTime,
		end:    part.EndTime,
		renew:  part.RenewTill,
	}
	if t.start.IsZero() { // RFC 4120, 5.3
		t.start = t.auth
	}
	if len(part.Flags.Bytes) >= 4 {
		t.flags = binary.BigEndian.Uint32(part.Flags.Bytes)
	}
	et, ok := enctypeOf(t.key.KeyType)
	switch {
	case part.Nonce != body.Nonce:
		return nil, badReply(request, "its nonce is another request's")
	case !t.client.EqualFold(client):
		return nil, badReply(request, "it is for "+t.client.String())
	case len(rep.Ticket.SName.NameString) == 0 || !t.server.equal(principalOf(rep.Ticket.SName, rep.Ticket.Realm)):
		return nil, badReply(request, "the names inside and outside of the ticket differ")
	case !ok || !slices.Contains(etypes, t.key.KeyType) || len(t.key.KeyValue) != et.keySize:
		return nil, badReply(request, "the session key is "+enctypeNames([]int32{t.key.KeyType}))
	}
	if t.sealed, err = rep.Ticket.Marshal(); err != nil {
		return nil, badReply(request, "its ticket is malformed")
	}
	return t, nil
}

func badReply(request, what string) error {
	return &api.Error{Code: api.KDCError, Detail: "the KDC's answer to an " + request + " is of no use: " + what,
		Remedy: "ask the realm's administrator"}
}

// skewed is the error for clocks that differ by offset.
func skewed(whose string, offset time.Duration) error {
	direction := "ahead of"
	if offset < 0 {
		direction, offset = "behind", -offset
	}
	return &api.Error{Code: api.ClockSkew,
		Detail: fmt.Sprintf("the clock of %s is %s %s this machine's", whose, offset.Round(time.Second), direction),
		Remedy: "set this machine's clock: timedatectl set-ntp true"}
}

// refusal is the error code of a KRB-ERROR.
type refusal int32

func (r refusal) Error() string { return fmt.Sprintf("KRB-ERROR %d", int32(r)) }

// describe names a KRB-ERROR with the peer's own text, if it sent one.
func describe(k *messages.KRBError) string {
	// "(24) KDC_ERR_PREAUTH_FAILED and a sentence"
	name := strings.Join(strings.Fields(errorcode.Lookup(k.ErrorCode))[:2], " ")
	if text := strings.TrimRight(k.EText, "\x00"); text != "" {
		name += ", " + quote(text)
	}
	return "KRB-ERROR " + name
}
