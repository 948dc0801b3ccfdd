// Package ccache reads ticket caches, in files, directories, kernel keyrings and
// the KCM daemon, and writes the bytes of one. What the tickets are good for, and
// asking a KDC for others, does not belong here; nor does gokrb5, whose reader of
// caches runs out of memory on a damaged one.
package ccache

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// Cache is a ticket cache without the entries that hold configuration, removed
// tickets or user-to-user tickets.
type Cache struct {
	Principal   Principal // whose cache it is
	Credentials []Credential
	Offset      time.Duration // the KDC's clock minus ours, as the writer saw it
}

// Credential is a ticket with what its client needs to use it. However it is
// formatted, it shows neither key nor ticket.
type Credential struct {
	Client, Server Principal
	KeyType        int32 // enctype of the session key (RFC 3961, 8)
	Key            []byte
	// Times in whole seconds, UTC; the zero time for none. A credential always
	// has an EndTime.
	AuthTime, StartTime, EndTime, RenewTill time.Time
	Flags                                   uint32 // ticket flags, bit 31 is flag 0 (RFC 4120, 5.3)
	Ticket                                  []byte // DER of the Ticket (RFC 4120, 5.3)
}

// String names the client, the server and the end of the ticket.
func (c Credential) String() string {
	return fmt.Sprintf("ticket of %s for %s until %s", c.Client, c.Server, c.EndTime.UTC().Format(time.RFC3339))
}

// Format implements fmt.Formatter: whatever the verb, it is String.
func (c Credential) Format(f fmt.State, _ rune) { io.WriteString(f, c.String()) }

// MarshalText keeps key and ticket out of JSON and of logs.
func (c Credential) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// Principal is the name of a client or a service (RFC 4120, 6.2).
type Principal struct {
	NameType   int32
	Realm      string
	Components []string
}

var escaper = strings.NewReplacer(`\`, `\\`, `/`, `\/`, `@`, `\@`,
	"\n", `\n`, "\t", `\t`, "\b", `\b`, "\x00", `\0`)

// String returns the principal as krb5_unparse_name does.
func (p Principal) String() string {
	parts := make([]string, len(p.Components))
	for i, c := range p.Components {
		parts[i] = escaper.Replace(c)
	}
	return strings.Join(parts, "/") + "@" + escaper.Replace(p.Realm)
}

// fits reports whether p and q differ in nothing but the case of letters.
func (p Principal) fits(q Principal) bool {
	return strings.EqualFold(p.Realm, q.Realm) && slices.EqualFunc(p.Components, q.Components, strings.EqualFold)
}

// equal leaves the name types alone: a name has one meaning in a realm, whatever
// its type (RFC 4120, 6.2).
func (p Principal) equal(q Principal) bool {
	return p.Realm == q.Realm && slices.Equal(p.Components, q.Components)
}
