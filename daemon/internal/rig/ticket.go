package rig

import (
	"encoding/binary"
	"strings"
	"time"

	"github.com/jcmturner/gofork/encoding/asn1"
	"github.com/jcmturner/gokrb5/v8/iana/adtype"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"
)

// Ticket is what a ticket says (RFC 4120, 5.3), also inside, where only the KDC
// and the service look.
type Ticket struct {
	Client, Server string // with realms, such as svc@A.TEST and HTTP/app.example@B.TEST
	KeyType        int32  // enctype that it is sealed with
	SessionKeyType int32
	Flags          uint32   // flag 0 is the highest bit
	Transited      []string // realms between the client's and the server's, in their order
	AuthTime       time.Time
	StartTime      time.Time
	EndTime        time.Time
	RenewTill      time.Time // zero: not renewable
	PAC            int       // bytes, 0: none
}

// ticketOf shows a ticket whose encrypted part is known.
func ticketOf(t messages.Ticket, part messages.EncTicketPart) Ticket {
	shown := Ticket{
		Client:         part.CName.PrincipalNameString() + "@" + part.CRealm,
		Server:         t.SName.PrincipalNameString() + "@" + t.Realm,
		KeyType:        t.EncPart.EType,
		SessionKeyType: part.Key.KeyType,
		AuthTime:       part.AuthTime,
		StartTime:      part.StartTime,
		EndTime:        part.EndTime,
		RenewTill:      part.RenewTill,
		PAC:            pacSize(part.AuthorizationData),
	}
	if len(part.Flags.Bytes) >= 4 {
		shown.Flags = binary.BigEndian.Uint32(part.Flags.Bytes)
	}
	if len(part.Transited.Contents) > 0 {
		shown.Transited = strings.Split(string(part.Transited.Contents), ",")
	}
	return shown
}

// pac makes authorization data with so many bytes in the place of AD's PAC
// (MS-KILE 3.3.5.6.3.1).
func pac(size int) (types.AuthorizationData, error) {
	if size == 0 {
		return nil, nil
	}
	inner, err := asn1.Marshal(types.AuthorizationData{{ADType: adtype.ADWin2KPAC, ADData: make([]byte, size)}})
	if err != nil {
		return nil, err
	}
	return types.AuthorizationData{{ADType: adtype.ADIfRelevant, ADData: inner}}, nil
}

// pacSize returns the size of the PAC in authorization data, in bytes, or 0.
func pacSize(data types.AuthorizationData) int {
	for _, outer := range data {
		var inner types.AuthorizationData
		if outer.ADType != adtype.ADIfRelevant || inner.Unmarshal(outer.ADData) != nil {
			continue
		}
		for _, entry := range inner {
			if entry.ADType == adtype.ADWin2KPAC {
				return len(entry.ADData)
			}
		}
	}
	return 0
}
