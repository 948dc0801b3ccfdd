package store

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/sessionctl/sessionctl/api"
)

// maxCredential bounds what is read of a credential. systemd's own bound is 1 MiB, but
// not all of that can be locked in memory.
const maxCredential = 4 << 10

// Key says where the master key of a store comes from. Its zero value is no
// source.
type Key struct {
	credential bool
	passphrase *passphrase // dir and name are then of its salt
	dir, name  string
}

// KeyFile is a file of 32 random bytes that belongs to the agent's user and is
// accessible to nobody else. It is made when the store is; beside an existing
// store it must exist.
func KeyFile(path string) Key {
	return Key{dir: filepath.Dir(path), name: filepath.Base(path)}
}

// KeyCredential is a credential that the service manager hands over
// (systemd.exec(5), LoadCredentialEncrypted=): the file name in dir, which is
// $CREDENTIALS_DIRECTORY. It has at least 32 bytes, all of which count.
func KeyCredential(dir, name string) Key {
	return Key{credential: true, dir: dir, name: name}
}

// Source names the source for people: "credential master", "key file /…".
func (k Key) Source() string {
	switch {
	case k.credential:
		return "credential " + k.name
	case k.passphrase != nil:
		return "passphrase with the salt in " + k.path()
	case k.name != "":
		return "key file " + k.path()
	}
	return ""
}

func (k Key) path() string { return filepath.Join(k.dir, k.name) }

// load reads the master key. A missing key file is made if fresh, that is if
// there is no store yet.
func (k Key) load(fresh bool) (master *keyMemory, made bool, err error) {
	switch {
	case k == Key{}:
		return nil, false, &api.Error{Code: api.StoreKeyMissing, Detail: "no source of the store's master key is set"}
	case k.credential && k.dir == "":
		return nil, false, k.missing(errors.New("no credentials directory is set"))
	case k.credential && k.name != filepath.Base(k.name):
		return nil, false, k.missing(errors.New("a credential's name is not a path"))
	case k.credential:
		master, err = readCredential(k.path())
		return master, false, k.missing(err)
	}
	size := keySize
	if k.passphrase != nil {
		size = saltSize
	}
	if fresh {
		if made, err = makeKey(k.path(), size); err != nil {
			e := failed(k.path(), err)
			e.Detail = fmt.Sprintf("no %s could be made: %v", k.Source(), err)
			return nil, false, e
		}
	}
	master, err = readKey(k.path(), size)
	if err == nil && k.passphrase != nil {
		master, err = k.passphrase.stretch(master.bytes)
		made = false // a salt is no secret
	}
	return master, made, k.missing(err)
}

// missing is the error for a key that cannot be had.
func (k Key) missing(err error) error {
	if err == nil {
		return nil
	}
	e := &api.Error{Code: api.StoreKeyMissing, Err: err,
		Detail: fmt.Sprintf("no master key from %s: %v", k.Source(), err)}
	u, ok := errors.AsType[*unsafeError](err)
	known, said := errors.AsType[*api.Error](err)
	switch {
	case said: // by who reads the passphrase
		return known
	case ok:
		e.Remedy = u.remedy
	case k.credential:
		e.Remedy = "hand it over with LoadCredentialEncrypted= or LoadCredential= in the unit (systemd-creds encrypt --name=" + k.name + " makes one)"
	case errors.Is(err, fs.ErrNotExist) && k.passphrase != nil:
		e.Remedy = "bring the file of the salt back, without which no passphrase opens the store, or start sessiond without --passphrase if the store was made so; else move the store aside"
	case errors.Is(err, fs.ErrNotExist) && exists(strings.TrimSuffix(k.path(), filepath.Ext(k.path()))+".salt"):
		e.Remedy = "this store was made with a passphrase: sessiond --passphrase"
	case errors.Is(err, fs.ErrNotExist):
		e.Remedy = "bring the key file back, or start sessiond as it was before, if a unit gave it the credential; without its key the store is lost: move it aside and start sessiond again, sessions are made anew"
	case errors.Is(err, errKeySize):
		e.Remedy = "bring back the file that the store was made with; without it the store is lost: move both aside and start sessiond again, sessions are made anew"
	default:
		e.Remedy = nextStep(k.path(), err)
	}
	return e
}

// unfit is the error for a key that is not that of the store at path.
func (k Key) unfit(path string) error {
	if k.passphrase != nil {
		return &api.Error{Code: api.StoreKeyMissing,
			Detail: fmt.Sprintf("the passphrase is not that of store %s, or %s is not its salt", path, k.path()),
			Remedy: "start sessiond --passphrase again with the right one; without it the store is lost: " + moveAside(path)}
	}
	return &api.Error{Code: api.StoreKeyMissing,
		Detail: fmt.Sprintf("the key in %s does not fit store %s", k.Source(), path),
		Remedy: "bring back the key that the store was made with, or " + moveAside(path)}
}

// makeKey makes a file of random bytes, complete and synced before it gets its name. One
// that exists stands.
func makeKey(path string, size int) (made bool, err error) {
	dir := filepath.Dir(path)
	if err := ensureDir(dir); err != nil {
		return false, err
	}
	if err := syncParents(dir); err != nil {
		return false, err
	}
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		if made, err = writeKey(path, size); err != nil {
			return false, err
		}
	}
	// Also for a file that somebody else has just made: the store must not
	// outlive its key.
	return made, syncDir(dir)
}

func writeKey(path string, size int) (made bool, err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return false, err
	}
	defer os.Remove(tmp.Name())
	key := make([]byte, size)
	rand.Read(key)
	defer clear(key)
	_, err = tmp.Write(key)
	if err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return false, err
	}
	err = os.Link(tmp.Name(), path)
	if _, there := os.Lstat(path); err != nil && there == nil {
		return false, nil // somebody was quicker, and may have tidied up already
	}
	return err == nil, err
}

// errKeySize is for a file that holds no key.
var errKeySize = errors.New("wrong size")

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func readKey(path string, size int) (*keyMemory, error) {
	f, err := openOwn(path, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	key, err := readAtMost(f, size)
	if err == nil && len(key.bytes) != size {
		err = fmt.Errorf("%w: it has %d bytes, not %d", errKeySize, len(key.bytes), size)
	}
	return key, err
}

// readCredential leaves owner and mode to the service manager, which may use
// an access control list.
func readCredential(path string) (*keyMemory, error) {
	f, _, err := openRegular(path, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	key, err := readAtMost(f, maxCredential)
	if err == nil && len(key.bytes) < keySize {
		err = fmt.Errorf("it has %d bytes; at least %d are needed", len(key.bytes), keySize)
	}
	return key, err
}

// readAtMost reads a file that must not have more than limit bytes, past Go's heap.
func readAtMost(f *os.File, limit int) (*keyMemory, error) {
	m := newKeyMemory(limit + 1)
	n, err := io.ReadFull(f, m.bytes)
	switch {
	case err == nil:
		m.free()
		return nil, fmt.Errorf("%w: it has more than %d bytes", errKeySize, limit)
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		m.bytes = m.bytes[:n]
		return m, nil
	}
	return nil, err
}

// sum is of the file that the key comes from, or its salt's; zero of a credential, which
// nobody can remove. It says whether that is still the same, and nothing of the key.
func (k Key) sum() (sum [sha256.Size]byte, err error) {
	if k.credential {
		return sum, nil
	}
	size := keySize
	if k.passphrase != nil {
		size = saltSize
	}
	m, err := readKey(k.path(), size)
	if err != nil {
		return sum, err
	}
	defer m.free()
	return sha256.Sum256(m.bytes), nil
}
