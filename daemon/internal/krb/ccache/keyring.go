package ccache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// How MIT's libkrb5 keeps caches in the kernel's keyrings (keyrings(7)): below an
// anchor is a keyring for the collection; in it, a keyring for each cache, and
// the name of the primary one. A cache has one key for each credential, one for
// its principal and one for the clock offset, all as in version 4 of the FILE
// format.
const (
	collectionPrefix     = "_krb_"
	persistentCollection = "_krb"
	primaryKey           = "krb_ccache:primary"
	principalKey         = "__krb5_princ__"
	offsetKey            = "__krb5_time_offsets__"
	primaryVersion       = 1
)

// keyring looks in the kernel's keyrings.
func (s *search) keyring(residual string) (*Cache, error) {
	// Most keys can only be read by who possesses them: by a thread that reaches
	// them from its own keyrings. So what is found is linked to this thread's,
	// which no other thread has, and which is empty again at the end.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer unix.KeyctlInt(unix.KEYCTL_CLEAR, unix.KEY_SPEC_THREAD_KEYRING, 0, 0, 0)

	anchor, rest, found := strings.Cut(residual, ":")
	if !found {
		anchor, rest = "legacy", residual
	}
	name, subsidiary, _ := strings.Cut(rest, ":")
	k := &keyrings{left: maxSize}
	collection, err := k.collection(anchor, name)
	if err != nil {
		return nil, err
	}
	var caches []int
	if subsidiary != "" {
		id, err := unix.KeyctlSearch(collection, "keyring", subsidiary, 0)
		if err != nil {
			return nil, keyError("find the cache "+subsidiary, err)
		}
		caches = []int{id}
	} else if caches, err = k.caches(collection); err != nil {
		return nil, err
	}
	for _, id := range caches {
		c, err := k.cache(s, id)
		if c != nil || err != nil {
			return c, err
		}
	}
	return nil, nil
}

// keyError says what the kernel did not do. Containers often forbid keyctl(2).
func keyError(what string, err error) error {
	switch {
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EPERM):
		return elsewhere("the kernel's keyrings are out of the agent's reach: " + err.Error())
	case gone(err):
		// systemd's KeyringMode= hides the session keyring, a user namespace
		// (PrivateUsers=) the others.
		return elsewhere(what + ": it is not there, or out of the agent's sight")
	}
	return fmt.Errorf("%s: %w", what, err)
}

// gone reports whether a key is not there, any more or for us.
func gone(err error) bool {
	return slices.ContainsFunc([]error{unix.ENOKEY, unix.EKEYEXPIRED, unix.EKEYREVOKED, unix.EACCES},
		func(target error) bool { return errors.Is(err, target) })
}

// keyrings reads keys.
type keyrings struct{ left int } // bytes that keys may still have

// collection finds the keyring of a collection, and makes this thread possess it.
func (k *keyrings) collection(anchor, name string) (int, error) {
	ring := 0
	collection := collectionPrefix + name
	switch anchor {
	case "session", "legacy":
		ring = unix.KEY_SPEC_SESSION_KEYRING
	case "user":
		ring = unix.KEY_SPEC_USER_KEYRING
	case "persistent":
		uid := os.Geteuid()
		if name != "" {
			n, err := strconv.ParseUint(name, 10, 31)
			if err != nil {
				return 0, fmt.Errorf("%.40q is not a uid", name)
			}
			uid = int(n)
		}
		var err error
		ring, err = unix.KeyctlInt(unix.KEYCTL_GET_PERSISTENT, uid, unix.KEY_SPEC_THREAD_KEYRING, 0, 0)
		if errors.Is(err, unix.EOPNOTSUPP) && uid == os.Geteuid() {
			// A kernel without them: MIT then takes the user's keyring.
			ring, err = unix.KEY_SPEC_USER_KEYRING, nil
		}
		if err != nil {
			return 0, keyError("find the persistent keyring of uid "+strconv.Itoa(uid), err)
		}
		collection = persistentCollection
	case "process", "thread":
		return 0, elsewhere("the " + anchor + " keyring is seen by the process that made it alone")
	default:
		return 0, elsewhere(fmt.Sprintf("there is no keyring called %.40q", anchor))
	}
	id, err := unix.KeyctlSearch(ring, "keyring", collection, unix.KEY_SPEC_THREAD_KEYRING)
	if err != nil {
		return 0, keyError("find the collection in the "+anchor+" keyring", err)
	}
	return id, nil
}

// caches lists the keyrings of a collection, the primary one first.
func (k *keyrings) caches(collection int) ([]int, error) {
	ids, err := k.list(collection)
	if err != nil {
		return nil, err
	}
	var caches []int
	for _, id := range ids {
		if kind, _ := describe(id); kind == "keyring" {
			caches = append(caches, id)
		}
	}
	b, err := k.find(collection, primaryKey)
	if err != nil && !gone(err) {
		return nil, err
	}
	r := newReader(b)
	if v, name := r.u32(), string(r.data()); v == primaryVersion && name != "" && !strings.Contains(name, "\x00") {
		if id, err := unix.KeyctlSearch(collection, "keyring", name, 0); err == nil {
			if i := slices.Index(caches, id); i >= 0 {
				caches = slices.Insert(slices.Delete(caches, i, i+1), 0, id)
			}
		}
	}
	return caches, nil
}

// cache reads one cache, nil if it is another principal's or nobody's.
func (k *keyrings) cache(s *search, id int) (*Cache, error) {
	b, err := k.find(id, principalKey)
	if gone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	r := newReader(b)
	c := &Cache{Principal: r.principal()}
	if r.short {
		return nil, errors.New("the key of the cache's principal is malformed")
	}
	if !s.match(c.Principal) {
		return nil, nil
	}
	keys, err := k.list(id)
	if err != nil {
		return nil, err
	}
	for _, key := range keys {
		_, name := describe(key)
		if name == principalKey {
			continue
		}
		b, err := k.read(key)
		if gone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		r := newReader(b)
		if name == offsetKey {
			c.Offset = r.offset()
			continue
		}
		cred, ok := r.credential()
		clear(b)
		if r.short {
			return nil, errors.New("the key of a ticket is malformed")
		}
		if ok {
			c.Credentials = append(c.Credentials, cred)
		}
	}
	return c, nil
}

// describe returns the type and the name of a key, or nothing if it is gone.
func describe(id int) (kind, name string) {
	// TYPE;UID;GID;PERMISSIONS;NAME
	about, err := unix.KeyctlString(unix.KEYCTL_DESCRIBE, id)
	if parts := strings.SplitN(about, ";", 5); err == nil && len(parts) == 5 {
		return parts[0], parts[4]
	}
	return "", ""
}

// find reads the key of this name in a keyring.
func (k *keyrings) find(ring int, name string) ([]byte, error) {
	id, err := unix.KeyctlSearch(ring, "user", name, 0)
	if err != nil {
		return nil, fmt.Errorf("find the key %s: %w", name, err)
	}
	return k.read(id)
}

// list returns what a keyring holds.
func (k *keyrings) list(ring int) ([]int, error) {
	b, err := k.read(ring)
	if err != nil {
		return nil, err
	}
	var ids []int
	for serial := range slices.Chunk(b[:len(b)/4*4], 4) {
		ids = append(ids, int(int32(binary.NativeEndian.Uint32(serial))))
	}
	return ids, nil
}

// read returns the payload of a key, or of a keyring the serial numbers in it.
func (k *keyrings) read(id int) ([]byte, error) {
	// The kernel says how large it is, and writes only what fits.
	for b := make([]byte, 4096); ; {
		n, err := unix.KeyctlBuffer(unix.KEYCTL_READ, id, b, 0)
		if err != nil {
			return nil, fmt.Errorf("read key %d: %w", id, err)
		}
		if n > k.left {
			return nil, fmt.Errorf("the cache is larger than %d KiB", maxSize>>10)
		}
		if n <= len(b) {
			k.left -= n
			return b[:n], nil
		}
		b = make([]byte, n)
	}
}
