package store

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"maps"
	"math/bits"
	"slices"
	"strings"
)

// setHash stands for the set of a bucket's records: the sum, modulo 2^256, of a keyed
// hash of each one's place, generation, sequence and nonce, and their number (Clarke and
// others, "Incremental Multiset Hash Functions", 2003: MSet-Add-Hash). A record comes
// and goes by one addition. What is sealed with the nonce its own seal says; the sequence
// does not tell, as a file that was put back goes on with those that it has given out.
type setHash struct {
	sum   [4]uint64
	count uint64
}

// element is what one record adds.
type element [4]uint64

// element returns that of a stored record.
func (k *keyring) element(bucket string, key, raw []byte) element {
	return k.newHasher().element(bucket, key, raw)
}

// hasher makes the elements of many records, and leaves no garbage for each.
type hasher struct {
	mac  hash.Hash
	data []byte
}

func (k *keyring) newHasher() *hasher { return &hasher{mac: hmac.New(sha256.New, k.set)} }

func (h *hasher) element(bucket string, key, raw []byte) (e element) {
	h.data = appendDelimited(h.data[:0], []byte(bucket), key, raw[:min(len(raw), headerSize+nonceSize)])
	h.mac.Reset()
	h.mac.Write(h.data)
	h.data = h.mac.Sum(h.data[:0])
	for i := range e {
		e[i] = binary.BigEndian.Uint64(h.data[8*i:])
	}
	return e
}

func (h *setHash) add(e element) {
	var carry uint64
	for i := len(h.sum) - 1; i >= 0; i-- {
		h.sum[i], carry = bits.Add64(h.sum[i], e[i], carry)
	}
	h.count++
}

func (h *setHash) remove(e element) {
	var borrow uint64
	for i := len(h.sum) - 1; i >= 0; i-- {
		h.sum[i], borrow = bits.Sub64(h.sum[i], e[i], borrow)
	}
	h.count--
}

// sets are the set hashes of all buckets that have records.
type sets map[string]setHash

// records returns how many there are in all.
func (s sets) records() (n uint64) {
	for _, h := range s {
		n += h.count
	}
	return n
}

// put adds a stored record of a bucket, or takes it out.
func (s sets) put(k *keyring, bucket string, key, raw []byte) {
	s.change(k, bucket, key, raw, (*setHash).add)
}
func (s sets) remove(k *keyring, bucket string, key, raw []byte) {
	s.change(k, bucket, key, raw, (*setHash).remove)
}

func (s sets) change(k *keyring, bucket string, key, raw []byte, do func(*setHash, element)) {
	h := s[bucket]
	do(&h, k.element(bucket, key, raw))
	if s[bucket] = h; h.count == 0 {
		delete(s, bucket)
	}
}

// setSize is the size of a set hash as it is sealed, without the bucket's name.
const setSize = 4 + 8 + 32

// sealSets returns the stored form of set hashes in a store that has given out last.
func (k *keyring) sealSets(s sets, last uint64) []byte {
	plain := binary.BigEndian.AppendUint64(nil, last)
	for _, bucket := range slices.Sorted(maps.Keys(s)) {
		plain = binary.BigEndian.AppendUint32(plain, uint32(len(bucket)))
		plain = append(plain, bucket...)
		plain = binary.BigEndian.AppendUint64(plain, s[bucket].count)
		for _, part := range s[bucket].sum {
			plain = binary.BigEndian.AppendUint64(plain, part)
		}
	}
	return k.seals.Seal(nil, nil, plain, delimited([]byte{recordVersion}, k.id))
}

// openSets reads that.
func (k *keyring) openSets(sealed []byte) (s sets, last uint64, err error) {
	if len(sealed) < k.seals.Overhead() {
		return nil, 0, errors.New("they are missing")
	}
	plain, err := k.seals.Open(nil, nil, sealed, delimited([]byte{recordVersion}, k.id))
	if err != nil || len(plain) < 8 {
		return nil, 0, errSeal
	}
	s, last, plain = sets{}, binary.BigEndian.Uint64(plain), plain[8:]
	for len(plain) >= setSize {
		n := uint64(binary.BigEndian.Uint32(plain))
		if n > uint64(len(plain)-setSize) {
			break
		}
		bucket, rest := string(plain[4:4+n]), plain[4+n:]
		h := setHash{count: binary.BigEndian.Uint64(rest)}
		for i := range h.sum {
			h.sum[i] = binary.BigEndian.Uint64(rest[8+8*i:])
		}
		s[bucket], plain = h, rest[setSize-4:]
	}
	if len(plain) > 0 {
		return nil, 0, errors.New("they are malformed")
	}
	return s, last, nil
}

// verify compares the records with their set hashes. That needs no record opened. What
// differs is said, and the hashes are from now on those of what is there: each record
// is still one that the store has written, though maybe not the last one.
func (s *Store) verify() {
	defer func() { s.verified = true }()
	var warning string
	var stored, sealed = sets{}, []byte(nil)
	var last uint64
	var stale bool
	var buckets []string
	by := s.keys.newHasher()
	err := s.file.view(func(t txn) (err error) {
		sealed, last, stale = t.sets(), t.sequence(), t.stale()
		buckets, err = t.buckets()
		return err
	})
	for _, bucket := range buckets {
		var after []byte
		for err == nil {
			n := 0
			err = s.file.view(func(t txn) error {
				return t.each(bucket, after, verifyStep, func(key, raw []byte) {
					h := stored[bucket]
					h.add(by.element(bucket, key, raw))
					stored[bucket] = h
					after = append(after[:0], key...)
					n++
				})
			})
			if n < verifyStep {
				break
			}
		}
	}
	s.sets, s.last = stored, last
	if stale {
		s.stale.remove()
	}
	if err != nil { // which every call will say
		return
	}
	was, then, err := s.keys.openSets(sealed)
	switch {
	case err != nil:
		warning = fmt.Sprintf("store %s: the hashes of its records cannot be read: %v", s.path, err)
	case then != last:
		warning = fmt.Sprintf("store %s: its counter was set", s.path)
	default:
		var changed []string
		all := maps.Clone(was)
		maps.Copy(all, stored)
		for _, bucket := range slices.Sorted(maps.Keys(all)) {
			if was[bucket] != stored[bucket] {
				changed = append(changed, bucket)
			}
		}
		if changed == nil {
			return
		}
		warning = fmt.Sprintf("store %s: records of %s are not those that were written last", s.path, strings.Join(changed, ", "))
	}
	s.stale.remove() // what is there, and nothing else, goes into a new file
	warning += ": somebody else has changed the file, or it is damaged; old sessions are proven before they are served, but a refused password may be tried once more"
	s.warn(warning)
}

// verifyStep is how many records are looked at in one transaction.
const verifyStep = 256
