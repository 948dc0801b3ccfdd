package store

import (
	"errors"
	"path/filepath"
	"runtime/debug"

	"golang.org/x/crypto/argon2"
)

// What a guess costs: Argon2id (RFC 9106) over 64 MiB, which is its section 4's second
// recommendation. Other figures give other keys, so they are part of the format.
const (
	saltSize       = 16        // bytes
	stretchPasses  = 3         // over the memory
	stretchMemory  = 64 * 1024 // KiB
	stretchThreads = 4
)

// passphrase is a source of keys that a person knows.
type passphrase struct {
	read func() ([]byte, error)
}

// KeyPassphrase is a passphrase, which read returns, stretched by Argon2id with the 16
// random bytes of a salt. The salt is no secret, but the key is lost with it. Its file is
// made and checked as that of KeyFile is, and must exist beside an existing store.
//
// read may be called more than once; what it returns is cleared. An *api.Error of its is
// Open's.
func KeyPassphrase(saltFile string, read func() ([]byte, error)) Key {
	return Key{passphrase: &passphrase{read}, dir: filepath.Dir(saltFile), name: filepath.Base(saltFile)}
}

// stretch returns the master key.
func (p *passphrase) stretch(salt []byte) (*keyMemory, error) {
	said, err := p.read()
	defer clear(said)
	switch {
	case err != nil:
		return nil, err
	case len(said) == 0:
		return nil, errors.New("it is empty")
	}
	// The memory has all that is needed to go on from there; the kernel gets it back, and
	// forgets it.
	defer debug.FreeOSMemory()
	key := argon2.IDKey(said, salt, stretchPasses, stretchMemory, stretchThreads, keySize)
	defer clear(key)
	m := newKeyMemory(len(key))
	copy(m.bytes, key)
	return m, nil
}
