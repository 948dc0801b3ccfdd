package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
)

// probeStack bounds what a page that leads to itself can take.
const probeStack = 16 << 20

// Probe tells whether the file of a store makes sense to bbolt: all of its pages are
// where they should be, and everything in its buckets can be reached. What the records
// say their seals tell.
//
// It is for a process of its own, which ends after it: a bad file is an error, or the
// death of the process, or takes longer than a good one ever does, as bbolt follows
// damaged pages to anywhere. Whoever gave f to that process must have an exclusive
// flock(2) on it, and keeps it: bbolt locks what it opens, which changes the lock of all
// who share f, and closing it would end that.
func Probe(f *os.File) error {
	debug.SetMaxStack(probeStack)
	info, err := f.Stat()
	switch {
	case err != nil:
		return err
	case info.Size() == 0: // which bbolt would take for a new one
		return errors.New("it is empty")
	}
	db, err := bbolt.Open(f.Name(), 0, &bbolt.Options{
		ReadOnly: true, PreLoadFreelist: true, Timeout: time.Second / 10, // nobody else has it locked
		OpenFile: func(string, int, fs.FileMode) (*os.File, error) { return f, nil },
	})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil // somebody has come in between, which who opens it next is told
	}
	if err != nil {
		return err
	}
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return nil // as above
	}
	return db.View(func(tx *bbolt.Tx) error {
		if info.Size() < tx.Size() {
			return fmt.Errorf("it is cut off: %d of %d bytes are left", info.Size(), tx.Size())
		}
		if err := checkPages(f, tx); err != nil {
			return err
		}
		for err := range tx.Check(bbolt.WithKVStringer(unprinted{})) {
			return err // the first tells; the process ends with the rest
		}
		t := txn{tx}
		if _, err := t.header(); err != nil {
			return err
		}
		for _, name := range [][]byte{bucketKeys, bucketRecords} {
			if _, err := t.root(name); err != nil {
				return err
			}
		}
		sum := crc32.NewIEEE() // of no use but to have read all
		return tx.ForEach(func(_ []byte, b *bbolt.Bucket) error { return readAll(b, sum) })
	})
}

// checkPages goes from page to page, each of which is free or says how many follow that
// belong to it, and looks whether its elements are within them. bbolt's own check takes
// memory for as many as a page says, and does not look at that: what an element has
// beyond the file is the process's own memory, unless it is nobody's.
func checkPages(f *os.File, tx *bbolt.Tx) error {
	size := tx.DB().Info().PageSize
	for id := 0; ; {
		page, err := tx.Page(id)
		switch {
		case err != nil:
			return err
		case page == nil: // after the last one
			return nil
		case page.Type != "free":
			id += page.OverflowCount
			if last, err := tx.Page(id); last == nil {
				return errors.Join(fmt.Errorf("page %d goes beyond the file", page.ID), err)
			}
			if page.Type == "leaf" || page.Type == "branch" {
				whole := make([]byte, (1+page.OverflowCount)*size)
				if _, err := f.ReadAt(whole, int64(page.ID)*int64(size)); err != nil {
					return err
				}
				if !elementsFit(whole) {
					return fmt.Errorf("elements of page %d go beyond it", page.ID)
				}
			}
		}
		id++
	}
}

// elementsFit tells whether all elements of a leaf or branch page are within it, those of
// the buckets that stand in it too. Behind its number, of 8 bytes, a page has its flags
// and the number of its elements, of 2 each; for the elements see leafElement: a branch's
// have the distance and the size of the key, and a page's number.
func elementsFit(page []byte) bool {
	const branch = 1
	if len(page) < leafAlign {
		return false
	}
	flags, count := binary.NativeEndian.Uint16(page[8:]), int(binary.NativeEndian.Uint16(page[10:]))
	for i := range count {
		at := leafAlign * (1 + i)
		if at+leafAlign > len(page) {
			return false
		}
		field := func(i int) uint64 { return uint64(binary.NativeEndian.Uint32(page[at+4*i:])) }
		if flags&branch != 0 {
			if uint64(at)+field(0)+field(1) > uint64(len(page)) {
				return false
			}
			continue
		}
		end := uint64(at) + field(1) + field(2) + field(3)
		if end > uint64(len(page)) {
			return false
		}
		value := page[end-field(3) : end]
		if field(0)&leafBucket == 0 {
			continue
		}
		if len(value) < leafAlign {
			return false
		}
		if binary.NativeEndian.Uint64(value) == 0 && !elementsFit(value[leafAlign:]) {
			return false
		}
	}
	return true
}

// unprinted keeps keys out of what bbolt says about them: they may claim any size.
type unprinted struct{}

func (unprinted) KeyToString([]byte) string   { return "key" }
func (unprinted) ValueToString([]byte) string { return "value" }

// readAll writes everything below a bucket to w.
func readAll(b *bbolt.Bucket, w io.Writer) error {
	return b.ForEach(func(key, value []byte) error {
		if value == nil {
			return readAll(b.Bucket(key), w)
		}
		_, err := w.Write(value)
		return err
	})
}
