package store

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	format       = 3 // of the file
	oldestFormat = 1 // that is read, and written anew
	boundFormat  = 3 // the first whose data keys open in no file that says it has another

	recordVersion = 1 // the first byte of every record
	idSize        = 16
	keySize       = 32
	headerSize    = 1 + 4 + 8 // version, generation, sequence
	nonceSize     = 12        // follows

	firstGeneration = 1
	maxSequence     = 1 << 62 // which nobody reaches
)

// errSeal says no more than AEADs do: changed, moved, or under another key.
var errSeal = errors.New("its seal is broken")

// keyring holds the keys that the master key gives for one store.
type keyring struct {
	id    []byte
	wrap  cipher.AEAD
	seals cipher.AEAD // of the set hashes
	// The others are in memory. An AEAD keeps what it makes of its key on the heap.
	memory *keyMemory
	index  []byte
	mac    []byte
	set    []byte
	check  []byte
}

// dataKey seals the records of one bucket.
type dataKey struct {
	generation uint32
	aead       cipher.AEAD
}

func newID() []byte {
	id := make([]byte, idSize)
	rand.Read(id)
	return id
}

// extract is HKDF-Extract (RFC 5869, section 2.2). hkdf.Extract leaves the master key in
// its hash, on the heap; here something else is written over it.
func extract(master, salt []byte) []byte {
	h := hmac.New(sha256.New, salt)
	h.Write(master)
	key := h.Sum(nil)
	h.Reset()
	h.Write(make([]byte, sha256.BlockSize-1))
	h.Sum(nil)
	return key
}

func newKeyring(master, id []byte) (*keyring, error) {
	k := &keyring{id: id, memory: newKeyMemory(4 * keySize)}
	extracted := extract(master, id)
	defer clear(extracted)
	derive := func(purpose string) ([]byte, error) {
		key, err := hkdf.Expand(sha256.New, extracted, "sessionctl store "+purpose, keySize)
		if err != nil {
			return nil, fmt.Errorf("derive the %s key: %w", purpose, err)
		}
		return key, nil
	}
	for i, d := range []struct {
		purpose string
		key     *[]byte
	}{{"index", &k.index}, {"mac", &k.mac}, {"set", &k.set}, {"check", &k.check}} {
		key, err := derive(d.purpose)
		if err != nil {
			return nil, err
		}
		*d.key = k.memory.bytes[i*keySize:][:keySize:keySize]
		copy(*d.key, key)
		clear(key)
	}
	for _, d := range []struct {
		purpose string
		aead    *cipher.AEAD
	}{{"wrap", &k.wrap}, {"set seal", &k.seals}} {
		key, err := derive(d.purpose)
		if err == nil {
			*d.aead, err = newAEAD(key)
		}
		if err != nil {
			return nil, err
		}
	}
	return k, nil
}

// header returns that of an empty store of a format.
func (k *keyring) header(format byte) header {
	return header{format, k.id, k.sum(k.check, []byte{format}, k.id), k.sealSets(nil, 0)}
}

// newAEAD returns AES-256-GCM. The key is cleared.
func newAEAD(key []byte) (cipher.AEAD, error) {
	defer clear(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// sum returns the HMAC-SHA256 of the fields, each after its length.
func (k *keyring) sum(key []byte, fields ...[]byte) []byte {
	h := hmac.New(sha256.New, key)
	data := delimited(fields...)
	defer clear(data) // MAC is given secrets
	h.Write(data)
	return h.Sum(nil)
}

// fits tells whether the store with this header has the same master key.
func (k *keyring) fits(h header) bool { return hmac.Equal(k.header(h.format).check, h.check) }

func (k *keyring) recordKey(bucket, name string) []byte {
	return k.sum(k.index, []byte(bucket), []byte(name))
}

// delimited returns the fields, each after its length: no other fields give
// the same bytes.
func delimited(fields ...[]byte) []byte {
	n := 0
	for _, f := range fields {
		n += 4 + len(f)
	}
	return appendDelimited(make([]byte, 0, n), fields...)
}

func appendDelimited(b []byte, fields ...[]byte) []byte {
	for _, f := range fields {
		b = binary.BigEndian.AppendUint32(b, uint32(len(f)))
		b = append(b, f...)
	}
	return b
}

// newDataKey makes a data key of a bucket, and its sealed form.
func (k *keyring) newDataKey(bucket string, generation uint32) (dataKey, []byte, error) {
	key := make([]byte, keySize)
	rand.Read(key)
	wrapped := binary.BigEndian.AppendUint32(nil, generation)
	wrapped = k.wrap.Seal(wrapped, nil, key, k.place(format, bucket, wrapped))
	aead, err := newAEAD(key)
	return dataKey{generation, aead}, wrapped, err
}

// place returns the associated data of a sealed data key.
func (k *keyring) place(format byte, bucket string, generation []byte) []byte {
	if format < boundFormat {
		format = recordVersion
	}
	return delimited([]byte{format}, k.id, []byte(bucket), generation)
}

// unwrap opens the sealed form of a bucket's data key in a file of a format.
func (k *keyring) unwrap(format byte, bucket string, wrapped []byte) (dataKey, error) {
	if len(wrapped) != 4+keySize+k.wrap.Overhead() {
		return dataKey{}, errors.New("wrong length")
	}
	generation, sealed := wrapped[:4], wrapped[4:]
	key, err := k.wrap.Open(nil, nil, sealed, k.place(format, bucket, generation))
	if err != nil {
		return dataKey{}, errSeal
	}
	aead, err := newAEAD(key)
	return dataKey{binary.BigEndian.Uint32(generation), aead}, err
}

// seal returns the stored form of a record.
func (k *keyring) seal(d dataKey, bucket string, key []byte, name string, sequence uint64, record []byte) []byte {
	plain := make([]byte, 0, 4+len(name)+len(record))
	plain = binary.BigEndian.AppendUint32(plain, uint32(len(name)))
	plain = append(plain, name...)
	plain = append(plain, record...)
	defer clear(plain)

	raw := make([]byte, 0, headerSize+len(plain)+d.aead.Overhead())
	raw = append(raw, recordVersion)
	raw = binary.BigEndian.AppendUint32(raw, d.generation)
	raw = binary.BigEndian.AppendUint64(raw, sequence)
	return d.aead.Seal(raw, nil, plain, k.binding(raw, bucket, key))
}

// open reads the stored form of a record. The record is not nil.
func (k *keyring) open(d dataKey, bucket string, key, raw []byte) (name string, record []byte, sequence uint64, err error) {
	switch {
	case len(raw) < headerSize+d.aead.Overhead():
		return "", nil, 0, errors.New("it is too short")
	case raw[0] != recordVersion:
		return "", nil, 0, fmt.Errorf("it has version %d", raw[0])
	case binary.BigEndian.Uint32(raw[1:]) != d.generation:
		return "", nil, 0, errors.New("its generation is not that of the bucket's key")
	}
	head, sealed := raw[:headerSize], raw[headerSize:]
	plain, err := d.aead.Open(nil, nil, sealed, k.binding(head, bucket, key))
	if err != nil {
		return "", nil, 0, errSeal
	}
	name, record, err = splitName(plain)
	return name, record, binary.BigEndian.Uint64(head[5:]), err
}

// binding returns the associated data of a record: its header and its place.
func (k *keyring) binding(header []byte, bucket string, key []byte) []byte {
	return delimited(header[:1], k.id, []byte(bucket), key, header[1:5], header[5:headerSize])
}

// splitName takes an opened record apart: name length, name, record.
func splitName(plain []byte) (name string, record []byte, err error) {
	if len(plain) < 4 {
		return "", nil, errors.New("its name is cut off")
	}
	n, rest := binary.BigEndian.Uint32(plain), plain[4:]
	if uint64(n) > uint64(len(rest)) {
		return "", nil, errors.New("its name is cut off")
	}
	return string(rest[:n]), rest[n:], nil
}
