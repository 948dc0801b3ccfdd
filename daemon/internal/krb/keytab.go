package krb

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/jcmturner/gokrb5/v8/iana/etypeID"
	"github.com/jcmturner/gokrb5/v8/keytab"
	"github.com/jcmturner/gokrb5/v8/types"

	"github.com/sessionctl/sessionctl/api"
)

// maxKeytabSize is the largest keytab file that is read, in bytes.
const maxKeytabSize = 1 << 20

// enctype is an encryption type that the agent speaks.
type enctype struct {
	id      int32
	name    string // as in the RFC
	keySize int    // bytes
	weak    bool   // used only when asked for
}

// enctypes are those of RFC 3962, RFC 8009 and RFC 4757, in the order of MIT's
// default permitted_enctypes.
var enctypes = []enctype{
	{etypeID.AES256_CTS_HMAC_SHA1_96, "aes256-cts-hmac-sha1-96", 32, false},
	{etypeID.AES128_CTS_HMAC_SHA1_96, "aes128-cts-hmac-sha1-96", 16, false},
	{etypeID.AES256_CTS_HMAC_SHA384_192, "aes256-cts-hmac-sha384-192", 32, false},
	{etypeID.AES128_CTS_HMAC_SHA256_128, "aes128-cts-hmac-sha256-128", 16, false},
	{etypeID.RC4_HMAC, "arcfour-hmac", 16, true},
}

func enctypeOf(id int32) (enctype, bool) {
	i := slices.IndexFunc(enctypes, func(e enctype) bool { return e.id == id })
	if i < 0 {
		return enctype{}, false
	}
	return enctypes[i], true
}

// enctypeNames names encryption types for people.
func enctypeNames(ids []int32) string {
	names := make([]string, len(ids))
	for i, id := range ids {
		if e, ok := enctypeOf(id); ok {
			names[i] = e.name
		} else {
			names[i] = fmt.Sprintf("enctype %d", id)
		}
	}
	return several(names)
}

// readKeytab returns the keys of p's highest version in a keytab file, in the
// order of enctypes, and the principal as the file spells it: if p is not in it,
// one whose name differs in nothing but case, as they do in Active Directory.
// The error is an *api.Error of code KeytabUnreadable or EtypeUnsupported.
func readKeytab(path string, p Principal, rc4 bool) (source, error) {
	data, err := readRegular(path, maxKeytabSize)
	if err != nil {
		return source{}, &api.Error{Code: api.KeytabUnreadable, Detail: "keytab: " + err.Error(), Err: err,
			Remedy: "make " + path + " a keytab file that the agent's user may read"}
	}
	return parseKeytab(data, path, p, rc4)
}

// parseKeytab does the same for the file's bytes
// (https://web.mit.edu/kerberos/krb5-latest/doc/formats/keytab_file_format.html).
func parseKeytab(data []byte, path string, p Principal, rc4 bool) (source, error) {
	unreadable := func(what, remedy string) (source, error) {
		return source{}, &api.Error{Code: api.KeytabUnreadable, Detail: "keytab " + path + " " + what, Remedy: remedy}
	}
	kt := keytab.New()
	// gokrb5's errors quote the file's bytes, so their text goes nowhere.
	if err := safely(func() error { return kt.Unmarshal(data) }); err != nil {
		return unreadable("is malformed", "make a new one: ktadd in kadmin, or ktpass on a domain controller")
	}

	type version struct {
		made time.Time
		key  types.EncryptionKey
	}
	owners := make([]Principal, len(kt.Entries))
	for i, e := range kt.Entries {
		owners[i] = Principal{Components: e.Principal.Components, Realm: e.Principal.Realm}
	}
	if !slices.ContainsFunc(owners, p.equal) {
		var alike []Principal
		for _, o := range owners {
			if len(alike) < 2 && o.EqualFold(p) && !slices.ContainsFunc(alike, o.equal) {
				alike = append(alike, o)
			}
		}
		if len(alike) == 1 {
			p = alike[0]
		}
	}
	newest := make(map[int32]version) // of kvno, by enctype
	var kvno uint32
	var found []int32
	var others []string // quoted
	for i, e := range kt.Entries {
		owner := owners[i]
		if !owner.equal(p) {
			if name := quote(owner.String()); len(others) <= maxNames && !slices.Contains(others, name) {
				others = append(others, name)
			}
			continue
		}
		if e.KVNO > kvno {
			// Older versions are refused by the KDC, and each refusal counts
			// towards a lock-out.
			kvno, found = e.KVNO, nil
			clear(newest)
		}
		if e.KVNO < kvno {
			continue
		}
		if !slices.Contains(found, e.Key.KeyType) {
			found = append(found, e.Key.KeyType)
		}
		et, ok := enctypeOf(e.Key.KeyType)
		if !ok || et.weak && !rc4 {
			continue
		}
		if len(e.Key.KeyValue) != et.keySize {
			return unreadable(fmt.Sprintf("has a %s key of %d bytes", et.name, len(e.Key.KeyValue)), "make a new one")
		}
		if v, ok := newest[et.id]; !ok || !e.Timestamp.Before(v.made) {
			newest[et.id] = version{e.Timestamp, e.Key}
		}
	}
	switch {
	case len(found) == 0 && len(others) == 0:
		return unreadable("holds no keys", "add the principal's: ktadd in kadmin, or ktpass on a domain controller")
	case len(found) == 0:
		return unreadable("has no key of "+p.String()+"; it has keys of "+several(others),
			"correct the principal or the keytab; klist -k "+path+" lists it")
	case len(newest) == 0:
		remedy := "give the principal an AES key and make a new keytab"
		if slices.Contains(found, etypeID.RC4_HMAC) {
			remedy += "; if that cannot be, rc4 = true lets the agent use arcfour-hmac, which is broken"
		}
		return source{}, &api.Error{Code: api.EtypeUnsupported, Remedy: remedy,
			Detail: fmt.Sprintf("keytab %s has only keys of %s for %s, version %d", path, enctypeNames(found), p, kvno)}
	}
	s := source{client: p, kvno: int(kvno)}
	for _, et := range enctypes {
		if v, ok := newest[et.id]; ok {
			s.keys = append(s.keys, v.key)
		}
	}
	return s, nil
}

// readRegular reads a regular file of at most limit bytes. It follows links,
// and never waits for a pipe or a device.
func readRegular(name string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", shown(name))
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s is larger than %d KiB", shown(name), limit>>10)
	}
	return data, err
}

// safely turns a panic of a gokrb5 decoder into an error. Its text says
// nothing of the bytes that caused it.
func safely(decode func() error) (err error) {
	defer func() {
		if recover() != nil {
			err = errors.New("the decoder gave up")
		}
	}()
	return decode()
}

// quote shows foreign text in a message: printable, and not for long.
func quote(s string) string {
	const limit = 200
	if len(s) > limit {
		return fmt.Sprintf("%q…", s[:limit])
	}
	return fmt.Sprintf("%q", s)
}

// shown is quote without the marks, if nothing in s needs them: for the names of
// files and realms.
func shown(s string) string {
	if q := quote(s); q != `"`+s+`"` || strings.ContainsAny(s, " ,") {
		return q
	}
	return s
}

// maxNames is how many names of a list a message has.
const maxNames = 5

// several names what is in a list, in a message.
func several(names []string) string {
	if len(names) > maxNames {
		return strings.Join(names[:maxNames], ", ") + " and others"
	}
	return strings.Join(names, ", ")
}
