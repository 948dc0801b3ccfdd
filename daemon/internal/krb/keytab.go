package krb

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
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
}

// enctypes are those of RFC 3962 and RFC 8009, in the order of MIT's default
// permitted_enctypes.
var enctypes = []enctype{
	{etypeID.AES256_CTS_HMAC_SHA1_96, "aes256-cts-hmac-sha1-96", 32},
	{etypeID.AES128_CTS_HMAC_SHA1_96, "aes128-cts-hmac-sha1-96", 16},
	{etypeID.AES256_CTS_HMAC_SHA384_192, "aes256-cts-hmac-sha384-192", 32},
	{etypeID.AES128_CTS_HMAC_SHA256_128, "aes128-cts-hmac-sha256-128", 16},
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
	return strings.Join(names, ", ")
}

// keys are a principal's long-term keys of one version, in the order of
// enctypes.
type keys struct {
	kvno int
	keys []types.EncryptionKey
}

// find returns the key of an encryption type.
func (k keys) find(etype int32) (types.EncryptionKey, bool) {
	i := slices.IndexFunc(k.keys, func(key types.EncryptionKey) bool { return key.KeyType == etype })
	if i < 0 {
		return types.EncryptionKey{}, false
	}
	return k.keys[i], true
}

func (k keys) etypes() []int32 {
	ids := make([]int32, len(k.keys))
	for i, key := range k.keys {
		ids[i] = key.KeyType
	}
	return ids
}

// secrets is each of the keys in one piece.
func (k keys) secrets() [][]byte {
	all := make([][]byte, len(k.keys))
	for i, key := range k.keys {
		all[i] = secretOf(key)
	}
	return all
}

// secretOf is a key in one piece. The version is not part of it: the same key
// is the same secret.
func secretOf(key types.EncryptionKey) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(key.KeyType)), key.KeyValue...)
}

// fingerprint tells one material from another without telling the keys.
func (k keys) fingerprint() string {
	h := sha256.New()
	h.Write([]byte("sessionctl keytab fingerprint\x00"))
	for _, s := range k.secrets() {
		h.Write(s)
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// CheckKeytab tells whether the keytab file at path holds a key that a login
// of p could use. The error is an *api.Error of code KeytabUnreadable or
// EtypeUnsupported.
func CheckKeytab(path string, p Principal) error {
	_, err := readKeytab(path, p)
	return err
}

// readKeytab returns the keys of p's highest version in a keytab file.
func readKeytab(path string, p Principal) (keys, error) {
	data, err := readRegular(path, maxKeytabSize)
	if err != nil {
		return keys{}, &api.Error{Code: api.KeytabUnreadable, Detail: "keytab: " + err.Error(), Err: err,
			Remedy: "make " + path + " a keytab file that the agent's user may read"}
	}
	return parseKeytab(data, path, p)
}

// parseKeytab does the same for the file's bytes
// (https://web.mit.edu/kerberos/krb5-latest/doc/formats/keytab_file_format.html).
func parseKeytab(data []byte, path string, p Principal) (keys, error) {
	unreadable := func(what, remedy string) (keys, error) {
		return keys{}, &api.Error{Code: api.KeytabUnreadable, Detail: "keytab " + path + " " + what, Remedy: remedy}
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
	newest := make(map[int32]version) // of kvno, by enctype
	var kvno uint32
	var found []int32
	var others []string
	for _, e := range kt.Entries {
		owner := Principal{Components: e.Principal.Components, Realm: e.Principal.Realm}
		if !owner.equal(p) {
			if name := owner.String(); !slices.Contains(others, name) && len(others) < 5 {
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
		if !ok {
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
		return unreadable("has no key of "+p.String()+"; it has keys of "+strings.Join(others, ", "),
			"correct the principal or the keytab; klist -k "+path+" lists it")
	case len(newest) == 0:
		return keys{}, &api.Error{Code: api.EtypeUnsupported,
			Detail: fmt.Sprintf("keytab %s has only keys of %s for %s, version %d; the agent speaks %s",
				path, enctypeNames(found), p, kvno, enctypeNames(allEtypes())),
			Remedy: "give the principal an AES key and make a new keytab"}
	}
	k := keys{kvno: int(kvno)}
	for _, et := range enctypes {
		if v, ok := newest[et.id]; ok {
			k.keys = append(k.keys, v.key)
		}
	}
	return k, nil
}

func allEtypes() []int32 {
	ids := make([]int32, len(enctypes))
	for i, e := range enctypes {
		ids[i] = e.id
	}
	return ids
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
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s is larger than %d KiB", name, limit>>10)
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
	return fmt.Sprintf("%q", s[:min(len(s), limit)])
}
