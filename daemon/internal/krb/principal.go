package krb

import (
	"slices"
	"strings"

	"github.com/jcmturner/gokrb5/v8/types"

	"github.com/sessionctl/sessionctl/api"
)

// Principal is the name of a Kerberos client or service (RFC 4120, 6.2).
type Principal struct {
	Components []string // name, or service and host
	Realm      string
}

// ParsePrincipal reads a principal as krb5_parse_name does: components split
// by "/", then "@" and the realm; a backslash takes the next character
// literally, except \n, \t, \b and \0, which stand for newline, tab, backspace
// and NUL. Without a realm it takes defaultRealm. Empty parts are refused, with
// an *api.Error of code ConfigInvalid.
func ParsePrincipal(s, defaultRealm string) (Principal, error) {
	bad := func(why string) (Principal, error) {
		return Principal{}, &api.Error{Code: api.ConfigInvalid,
			Detail: "principal " + quote(s) + " " + why,
			Remedy: `write it as name@REALM or service/host@REALM`}
	}
	var p Principal
	var part strings.Builder
	inRealm := false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\':
			i++
			if i == len(s) {
				return bad("ends in a backslash")
			}
			part.WriteByte(unescape(s[i]))
		case (c == '/' || c == '@') && inRealm:
			return bad("has a second separator in its realm")
		case c == '/' || c == '@':
			p.Components = append(p.Components, part.String())
			part.Reset()
			inRealm = c == '@'
		default:
			part.WriteByte(c)
		}
	}
	if inRealm {
		p.Realm = part.String()
	} else {
		p.Components = append(p.Components, part.String())
		p.Realm = defaultRealm
	}
	if slices.Contains(p.Components, "") {
		return bad("has an empty part")
	}
	if inRealm && p.Realm == "" {
		return bad("has no realm after its @")
	}
	if p.Realm == "" {
		return bad("has no realm, and there is no default_realm")
	}
	return p, nil
}

func unescape(c byte) byte {
	switch c {
	case 'n':
		return '\n'
	case 't':
		return '\t'
	case 'b':
		return '\b'
	case '0':
		return 0
	}
	return c
}

var escaper = strings.NewReplacer(`\`, `\\`, `/`, `\/`, `@`, `\@`,
	"\n", `\n`, "\t", `\t`, "\b", `\b`, "\x00", `\0`)

// String returns the principal with its realm, escaped so that ParsePrincipal
// reads it back.
func (p Principal) String() string {
	parts := make([]string, len(p.Components))
	for i, c := range p.Components {
		parts[i] = escaper.Replace(c)
	}
	return strings.Join(parts, "/") + "@" + escaper.Replace(p.Realm)
}

func (p Principal) equal(q Principal) bool {
	return p.Realm == q.Realm && slices.Equal(p.Components, q.Components)
}

// EqualFold reports whether p and q differ in nothing but the case of letters.
// Names do not have any in Active Directory, where the KDC answers with its own.
func (p Principal) EqualFold(q Principal) bool {
	return strings.EqualFold(p.Realm, q.Realm) && slices.EqualFunc(p.Components, q.Components, strings.EqualFold)
}

func (p Principal) name(nameType int32) types.PrincipalName {
	return types.PrincipalName{NameType: nameType, NameString: p.Components}
}

func principalOf(name types.PrincipalName, realm string) Principal {
	return Principal{Components: name.NameString, Realm: realm}
}

// ticketGranting returns the ticket-granting service of a realm (RFC 4120, 7.3).
func ticketGranting(realm string) Principal { return ticketGrantingAt(realm, realm) }

// ticketGrantingAt returns the ticket-granting service of a realm as another
// realm knows it.
func ticketGrantingAt(realm, other string) Principal {
	return Principal{Components: []string{"krbtgt", realm}, Realm: other}
}

// Principal reads a principal (see ParsePrincipal) as krb5.conf has it: without
// a realm it is of the default one. Realms are told apart by case, but those of
// Active Directory are DNS names that people write in any: so one that krb5.conf
// does not know is taken for its upper case.
func (c *Config) Principal(s string) (Principal, error) {
	p, err := ParsePrincipal(s, c.DefaultRealm())
	if err == nil && !c.HasRealm(p.Realm) && p.Realm != c.DefaultRealm() {
		p.Realm = strings.ToUpper(p.Realm)
	}
	return p, err
}

// CheckSPN returns what keeps a text from naming a service: service/host, with or
// without @REALM. The error is an *api.Error of code ConfigInvalid.
func CheckSPN(spn string) error {
	_, err := service(new(Config), spn)
	return err
}
