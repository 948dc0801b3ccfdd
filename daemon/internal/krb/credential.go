package krb

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/types"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/krb/ccache"
)

// Credential is what a login consumes: a principal, and one of Keytab, Cache and
// Password, which proves it.
type Credential struct {
	// Principal names who logs in. Its name may be in another case than the keytab
	// has.
	Principal Principal
	// Keytab is the path of a keytab file, read again for each login.
	Keytab string
	// Cache names a ticket cache as $KRB5CCNAME does, such as
	// "FILE:/run/user/1000/krb5cc"; read again for each login.
	Cache string
	// Password returns the principal's password, for each login.
	Password func() (string, error)
	// NoPAC asks for tickets without a PAC (MS-KILE, 2.2.3), which for members of
	// many groups is larger than what web servers take.
	NoPAC bool
	// RC4 lets arcfour-hmac be used (RFC 4757), which is broken.
	RC4 bool
}

// source is where TGTs of a principal come from, as it is at the moment: the
// keys of a keytab, a password, or the TGT of a ticket cache.
type source struct {
	config   *Config // by which its tickets are asked for, as it was then
	cred     Credential
	client   Principal
	keys     []types.EncryptionKey // in the order of enctypes
	kvno     int                   // of keys
	password string
	cached   *ticket
	noPAC    bool
	rc4      bool
	etypes   []int32 // to ask for a TGT with, the best first
}

// source reads a credential, for exchanges by a configuration.
func (e *Engine) source(ctx context.Context, config *Config, cred Credential) (source, error) {
	s := source{cred: cred, client: cred.Principal}
	var err error
	if cred.Keytab != "" {
		if s, err = readKeytab(cred.Keytab, cred.Principal, cred.RC4); err != nil {
			return source{}, err
		}
	}
	s.config, s.cred, s.noPAC, s.rc4, s.etypes = config, cred, cred.NoPAC, cred.RC4, etypes(config, "tkt", cred.RC4)
	switch {
	case cred.Keytab != "":
		offered := make([]int32, len(s.keys))
		for i, k := range s.keys {
			offered[i] = k.KeyType
		}
		// The keytab's first, for they decide which key the KDC takes; the others
		// may be the session key's (MIT does likewise).
		permitted := s.etypes
		s.etypes = slices.DeleteFunc(slices.Clone(permitted), func(id int32) bool { return !slices.Contains(offered, id) })
		if len(s.etypes) == 0 {
			return source{}, &api.Error{Code: api.EtypeUnsupported,
				Detail: fmt.Sprintf("keytab %s has %s for %s, which the enctypes in krb5.conf rule out", cred.Keytab, enctypeNames(offered), s.client),
				Remedy: "mend permitted_enctypes in krb5.conf, or make a new keytab"}
		}
		s.keys = slices.DeleteFunc(s.keys, func(k types.EncryptionKey) bool { return !slices.Contains(permitted, k.KeyType) })
		for _, id := range permitted {
			if !slices.Contains(s.etypes, id) {
				s.etypes = append(s.etypes, id)
			}
		}
	case cred.Cache != "":
		if err := e.readCache(ctx, cred.Cache, &s); err != nil {
			return source{}, err
		}
	default:
		if s.password, err = cred.Password(); err != nil {
			return source{}, err
		}
	}
	return s, nil
}

// etypes returns the encryption types to ask for in a request of that kind, "tkt"
// or "tgs": those of ours that krb5.conf has, in its order.
func etypes(config *Config, request string, rc4 bool) []int32 {
	ours := make([]int32, 0, len(enctypes))
	for _, et := range enctypes {
		if !et.weak || rc4 {
			ours = append(ours, et.id)
		}
	}
	configured := config.Enctypes(request)
	if configured == nil {
		return ours
	}
	var both []int32
	for _, id := range configured {
		if slices.Contains(ours, id) && !slices.Contains(both, id) {
			both = append(both, id)
		}
	}
	return both
}

// errNoSuchKey says that a source has no key of an encryption type.
var errNoSuchKey = errors.New("no key of that encryption type")

// What a KDC, or who plays one, can make the agent compute from a password is
// bounded: below by the default of RFC 3962, section 4, so that nobody makes the
// password cheap to guess; above by 30 times that of RFC 8009, section 4.
const (
	minIterations = 4096
	maxIterations = 1 << 20
)

// key returns the long-term key of an encryption type. Salt and parameters are
// what the KDC says of a password's key (RFC 4120, 5.2.7.5); an empty salt is the
// default one.
func (s source) key(etype int32, salt string, params []byte) (types.EncryptionKey, error) {
	if s.password == "" {
		i := slices.IndexFunc(s.keys, func(k types.EncryptionKey) bool { return k.KeyType == etype })
		if i < 0 {
			return types.EncryptionKey{}, errNoSuchKey
		}
		return s.keys[i], nil
	}
	if !slices.Contains(s.etypes, etype) {
		return types.EncryptionKey{}, errNoSuchKey
	}
	et, err := crypto.GetEtype(etype)
	if err != nil {
		return types.EncryptionKey{}, errNoSuchKey
	}
	if salt == "" {
		salt = s.client.Realm + strings.Join(s.client.Components, "")
	}
	s2k := et.GetDefaultStringToKeyParams()
	if known, _ := enctypeOf(etype); len(params) > 0 && !known.weak {
		if len(params) != 4 {
			return types.EncryptionKey{}, errors.New("it says unknown things of how the password's key is made")
		}
		if n := binary.BigEndian.Uint32(params); n < minIterations || n > maxIterations {
			return types.EncryptionKey{}, fmt.Errorf("it wants the password's key made with %d iterations", n)
		}
		s2k = hex.EncodeToString(params)
	}
	value, err := et.StringToKey(s.password, salt, s2k)
	if err != nil {
		return types.EncryptionKey{}, errors.New("no key can be made from the password")
	}
	return types.EncryptionKey{KeyType: etype, KeyValue: value}, nil
}

// what names the source's secret in messages.
func (s source) what() string {
	if s.password != "" {
		return "the password of " + s.client.String()
	}
	return fmt.Sprintf("the keytab's key of %s, version %d", s.client, s.kvno)
}

// remedy is what helps when the secret is refused.
func (s source) remedy() string {
	if s.password != "" {
		return "correct the password; the old one will not be tried again"
	}
	return "make a new keytab; the old one will not be tried again"
}

// secrets is all that may be tried at the KDC, each in one piece.
func (s source) secrets() [][]byte {
	if s.password != "" {
		return [][]byte{s.secret(types.EncryptionKey{})}
	}
	all := make([][]byte, len(s.keys))
	for i, key := range s.keys {
		all[i] = s.secret(key)
	}
	return all
}

// secret is what a key's attempt is remembered by. A key's version is not part
// of it, the same key is the same secret; and a password is one secret, whatever
// keys are made from it.
func (s source) secret(key types.EncryptionKey) []byte {
	if s.password != "" {
		return append([]byte("password\x00"), s.password...)
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(key.KeyType)), key.KeyValue...)
}

// fingerprint tells tickets from each other that were made in different ways,
// without telling secrets.
func (s source) fingerprint() string {
	h := sha256.New()
	fmt.Fprintf(h, "sessionctl source %t %t\x00", s.noPAC, s.rc4)
	if s.cached != nil {
		h.Write(s.cached.key.KeyValue)
	}
	for _, secret := range s.secrets() {
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(secret))))
		h.Write(secret)
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// readCache takes the TGT out of a ticket cache that lives longest.
func (e *Engine) readCache(ctx context.Context, name string, s *source) error {
	c, err := ccache.Load(ctx, name, ccache.Principal{Realm: s.client.Realm, Components: s.client.Components})
	if err != nil {
		return err
	}
	for _, cred := range c.Credentials {
		t, err := ticketOfCache(cred, c.Offset)
		if err == nil && t.client.EqualFold(s.client) && t.server.equal(ticketGranting(s.client.Realm)) && (s.cached == nil || t.end.After(s.cached.end)) {
			s.cached = t
		}
	}
	remedy := "log in there anew: kinit -c " + name + " " + s.client.String()
	if s.cached == nil {
		return &api.Error{Code: api.NoTicket, Detail: "the ticket cache " + name + " holds no TGT of " + s.client.String(), Remedy: remedy}
	}
	s.client = s.cached.client
	if s.cached.left(e.now()) > leastLeft {
		return nil
	}
	if t := e.cached(s.tgtKey()); t != nil && t.usable(e.now()) {
		return nil // it was renewed in time
	}
	return &api.Error{Code: api.NoTicket, Remedy: remedy,
		Detail: fmt.Sprintf("the TGT of %s in the ticket cache %s has ended, at %s", s.client, name, s.cached.end.UTC().Format(time.RFC3339))}
}

// tgtKey names the source's TGT.
func (s source) tgtKey() ticketKey {
	return ticketKey{s.client.String(), s.fingerprint(), ticketGranting(s.client.Realm).String()}
}
