package rig

import (
	"slices"
	"strings"

	"github.com/jcmturner/gokrb5/v8/iana/flags"
	"github.com/jcmturner/gokrb5/v8/iana/nametype"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"
)

// Trust makes two realms trust each other: each has the keys of krbtgt/OTHER@SELF
// and krbtgt/SELF@OTHER (RFC 4120, 1.2). Trusting again makes new keys.
func (k *KDC) Trust(other *KDC) {
	k.trust(other)
	other.trust(k)
}

// trust makes the key with which k seals tickets for other's TGS.
func (k *KDC) trust(other *KDC) {
	name := "krbtgt/" + other.realm
	k.add(name, "", krbtgtEtypes)
	k.mu.Lock()
	shared := *k.account(name)
	k.mu.Unlock()
	other.mu.Lock()
	defer other.mu.Unlock()
	other.trusted[k.realm] = &shared
}

// Refer says that a host is in another realm. Who asks the TGS for a service on
// it, with the option canonicalize and a name of type SRV_HST or SRV_INST, gets
// a TGT of that realm, or of the next one on the way there (RFC 6806, 8). Others
// get S_PRINCIPAL_UNKNOWN, as of MIT krb5 1.20.
func (k *KDC) Refer(host, realm string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.hosts[strings.ToLower(host)] = realm
}

// Route says that the way to a realm without direct trust leads through next,
// which is trusted. Who asks for a TGT of the realm with the option canonicalize
// gets one of next (RFC 4120, 3.3.1). Others get S_PRINCIPAL_UNKNOWN.
func (k *KDC) Route(realm, next string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.routes[realm] = next
}

// Alias makes the KDC answer for one server's name with a ticket for another
// (RFC 6806, 8): for krbtgt and another realm this is a referral. The other
// name need not be in the database.
func (k *KDC) Alias(name, other string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.aliases[name] = other
}

// alias returns the account that a name was given by Alias, or nil. It must be
// called with the lock held.
func (k *KDC) alias(name string) *account {
	other, ok := k.aliases[name]
	if !ok {
		return nil
	}
	return &account{name: strings.Split(other, "/"), kvno: 1, keys: []types.EncryptionKey{newKey(AES256SHA1)}}
}

// server returns the account that a ticket is made for on a TGS-REQ, and the
// name that the ticket has; nil if there is none. It must be called with the lock
// held.
func (k *KDC) server(body messages.KDCReqBody) (*account, []string) {
	name := body.SName.NameString
	if a := k.alias(body.SName.PrincipalNameString()); a != nil {
		return a, a.name
	}
	if a := k.find(body.SName.PrincipalNameString()); a != nil {
		return a, name
	}
	if len(name) != 2 || !types.IsFlagSet(&body.KDCOptions, flags.Canonicalize) {
		return nil, nil
	}
	var realm string
	switch {
	case name[0] == "krbtgt":
		realm = name[1]
	case body.SName.NameType == nametype.KRB_NT_SRV_HST || body.SName.NameType == nametype.KRB_NT_SRV_INST:
		realm = k.hosts[strings.ToLower(name[1])]
	}
	if realm == k.realm {
		return nil, nil
	}
	for _, next := range []string{realm, k.routes[realm]} {
		if a := k.principals["krbtgt/"+next]; a != nil {
			return a, a.name
		}
	}
	return nil, nil
}

// ticketKey returns the account whose key seals TGTs of an issuing realm for
// this one, or nil. It must be called with the lock held.
func (k *KDC) ticketKey(tgt messages.Ticket) *account {
	switch {
	case !slices.Equal(tgt.SName.NameString, []string{"krbtgt", k.realm}):
		return nil
	case tgt.Realm == k.realm:
		return k.account("krbtgt/" + k.realm)
	}
	return k.trusted[tgt.Realm]
}

// domainX500Compress is the type of the transited field (RFC 4120, 3.3.3.2).
const domainX500Compress = 1

// transited adds the realm that issued a TGT to those that the client has come
// through: neither its own nor the server's is one of them (RFC 4120, 3.3.3.2).
// Names are not compressed.
func (k *KDC) transited(tgt messages.Ticket) messages.TransitedEncoding {
	through := slices.Clone(tgt.DecryptedEncPart.Transited.Contents)
	if tgt.Realm != k.realm && tgt.Realm != tgt.DecryptedEncPart.CRealm {
		if len(through) > 0 {
			through = append(through, ',')
		}
		through = append(through, tgt.Realm...)
	}
	return messages.TransitedEncoding{TRType: domainX500Compress, Contents: through}
}
