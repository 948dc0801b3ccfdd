package rig

import (
	"errors"
	"path/filepath"
	"strings"
	"time"
)

// Realm is a realm with one KDC at a host:port. Every KDC of this package is one.
type Realm interface {
	Realm() string
	Addr() string
}

// Krb5Conf is a krb5.conf for clients of several realms. The hosts of a realm are
// those whose domain is the realm's name in lower case, such as web.rig.test and
// rig.test for RIG.TEST; localhost belongs to the default realm.
type Krb5Conf struct {
	// Realms are known with their KDCs. The first is the default realm.
	Realms []Realm
	// Referrals leaves out which hosts belong to which realm: clients have to ask
	// the KDC of their own realm (RFC 6806, 8).
	Referrals bool
	// UDP lets clients use it for small messages. Otherwise they use TCP only.
	UDP bool

	skew time.Duration // how far clocks may be apart; 0 for MIT's default
}

// WriteFile writes the file at path, with a ticket cache krb5cc beside it as the
// default one.
func (c Krb5Conf) WriteFile(path string) error {
	if len(c.Realms) == 0 {
		return errors.New("a krb5.conf without realms")
	}
	type realm struct{ Name, Addr, Domain string }
	var realms []realm
	for _, r := range c.Realms {
		realms = append(realms, realm{Name: r.Realm(), Addr: r.Addr(), Domain: strings.ToLower(r.Realm())})
	}
	data := map[string]any{
		"Default": realms[0].Name, "Realms": realms, "Dir": filepath.Dir(path),
		"UDP": c.UDP, "Referrals": c.Referrals, "Skew": int(c.skew / time.Second),
	}
	return writeTemplate(path, "krb5.conf", data)
}
