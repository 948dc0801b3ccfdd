package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"go.etcd.io/bbolt"
)

// damagedFiles returns how many files of a class a test tries.
func damagedFiles(long, short int) int {
	if torture {
		return long
	}
	return short
}

// wreck is a store's file that is going to be damaged, and what is in it.
type wreck struct {
	path    string // where the store is, closed
	file    []byte
	keys    *keyring
	newest  map[string]wreckRecord // by bucket and name
	written map[string]bool        // bucket, name, sequence and record of all versions
	// Where the first copy of a sealed data key, by bucket, and of the newest version of a
	// record, by bucket and name, ends in the file.
	keyEnds, recordEnds map[string]int
}

type wreckRecord struct {
	record   string
	revision uint64
}

const wreckRecords = 300

func wreckID(bucket, name string) string { return bucket + "/" + name }

func version(id, record string, sequence uint64) string {
	return fmt.Sprintf("%s %d %s", id, sequence, record)
}

// newWreck makes a store with records of 0.7 to 1.5 KiB in three buckets, some of which
// were overwritten.
func newWreck(t testing.TB) *wreck {
	t.Helper()
	w := &wreck{path: newPath(t), newest: make(map[string]wreckRecord), written: make(map[string]bool),
		keyEnds: make(map[string]int), recordEnds: make(map[string]int)}
	s := mustOpen(t, w.path)
	w.keys = s.keys
	var mu sync.Mutex
	var writes sync.WaitGroup
	for i := range wreckRecords {
		writes.Go(func() {
			bucket := []string{"sessions", "sessions", "sessions", "tickets", "latches"}[i%5]
			name := fmt.Sprintf("CANARY-name-%d", i)
			var revision uint64
			for n := range 1 + (i+1)%6/5 {
				record := fmt.Sprintf("CANARY-%d-%d-%s", i, n, strings.Repeat("x", 700+i*37%800))
				var err error
				if revision, err = s.Bucket(bucket).Swap(t.Context(), name, revision, []byte(record)); err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				w.newest[wreckID(bucket, name)] = wreckRecord{record, revision}
				w.written[version(wreckID(bucket, name), record, revision)] = true
				mu.Unlock()
			}
		})
	}
	writes.Wait()
	if t.Failed() {
		t.FailNow()
	}
	w.close(t, s)
	return w
}

// close closes the store and takes a copy of its file.
func (w *wreck) close(t testing.TB, s *Store) {
	t.Helper()
	keys, records := make(map[string][]byte), make(map[string][]byte)
	err := s.file.view(func(tx txn) (err error) {
		if keys, err = tx.wrappedKeys(); err != nil {
			return err
		}
		for id := range w.newest {
			bucket, name, _ := strings.Cut(id, "/")
			raw, err := tx.record(bucket, w.keys.recordKey(bucket, name))
			if err != nil {
				return err
			}
			records[id] = bytes.Clone(raw)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	mustClose(t, s)
	if w.file, err = os.ReadFile(w.path); err != nil {
		t.Fatal(err)
	}
	for bucket, sealed := range keys {
		w.keyEnds[bucket] = bytes.Index(w.file, sealed) + len(sealed)
	}
	for id, raw := range records {
		w.recordEnds[id] = bytes.Index(w.file, raw) + len(raw)
	}
}

// check returns the newest records among those that were salvaged. All must be some that
// were written, and each there only once.
func (w *wreck) check(t testing.TB, records []salvaged) map[string]bool {
	t.Helper()
	seen, newest := make(map[string]bool), make(map[string]bool)
	for _, r := range records {
		id := wreckID(r.bucket, r.name)
		if !w.written[version(id, string(r.record), r.sequence)] || seen[id] || !bytes.Equal(r.key, w.keys.recordKey(r.bucket, r.name)) {
			t.Fatalf("salvaged %s %d %.20q: never written, or twice there", id, r.sequence, r.record)
		}
		seen[id] = true
		if w.newest[id] == (wreckRecord{string(r.record), r.sequence}) {
			newest[id] = true
		}
	}
	return newest
}

func salvageBytes(file []byte, k *keyring) ([]salvaged, error) {
	return salvage(bytes.NewReader(file), int64(len(file)), k)
}

// damages are the ways in which a file is damaged. Each changes a copy of it, and says
// what it did; onePage: at most one page is touched.
var damages = map[string]struct {
	onePage bool
	do      func(r *rand.Rand, file []byte) ([]byte, string)
}{
	"one bit anywhere": {true, func(r *rand.Rand, file []byte) ([]byte, string) {
		return flipBit(file, r.IntN(len(file)), r.IntN(8))
	}},
	"one bit of the meta pages": {true, func(r *rand.Rand, file []byte) ([]byte, string) {
		return flipBit(file, r.IntN(2)*os.Getpagesize()+r.IntN(80), r.IntN(8))
	}},
	"one bit of a page's head": {true, func(r *rand.Rand, file []byte) ([]byte, string) {
		return flipBit(file, anyPage(r, file)+r.IntN(200), r.IntN(8))
	}},
	"one page zeroed": {true, func(r *rand.Rand, file []byte) ([]byte, string) {
		page := anyPage(r, file)
		clear(file[page : page+os.Getpagesize()])
		return file, fmt.Sprintf("page at %d", page)
	}},
	"one sector of garbage": {true, func(r *rand.Rand, file []byte) ([]byte, string) {
		at := r.IntN(len(file)/512) * 512
		for i := range file[at : at+512] {
			file[at+i] = byte(r.Uint32())
		}
		return file, fmt.Sprintf("sector at %d", at)
	}},
	"cut off": {false, func(r *rand.Rand, file []byte) ([]byte, string) {
		n := r.IntN(len(file))
		return file[:n], fmt.Sprintf("at %d", n)
	}},
}

func flipBit(file []byte, at, bit int) ([]byte, string) {
	file[at] ^= 1 << bit
	return file, fmt.Sprintf("bit %d of the byte at %d", bit, at)
}

// anyPage returns where a page that is not a meta page begins.
func anyPage(r *rand.Rand, file []byte) int {
	return (2 + r.IntN(len(file)/os.Getpagesize()-2)) * os.Getpagesize()
}

// TestSalvage damages a file in many ways: all but what the damage has touched is saved.
func TestSalvage(t *testing.T) {
	w := newWreck(t)
	records, err := salvageBytes(w.file, w.keys)
	if newest := w.check(t, records); len(newest) != wreckRecords || err != nil {
		t.Fatalf("of a whole file: %d records, %v", len(newest), err)
	}
	if !slices.IsSortedFunc(records, func(a, b salvaged) int { return int(a.sequence) - int(b.sequence) }) {
		t.Error("the records are not in the order of their sequences")
	}
	if ids := salvageID(bytes.NewReader(w.file), int64(len(w.file))); len(ids) != 1 || !bytes.Equal(ids[0], w.keys.id) {
		t.Errorf("ids of a whole file: %x, want %x", ids, w.keys.id)
	}
	for class, damage := range damages {
		t.Run(class, func(t *testing.T) {
			r := rand.New(rand.NewPCG(6, uint64(len(class))))
			least := wreckRecords
			for range damagedFiles(500, 60) {
				file, what := damage.do(r, bytes.Clone(w.file))
				records, err := salvageBytes(file, w.keys)
				if err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				newest := w.check(t, records)
				ids := salvageID(bytes.NewReader(file), int64(len(file)))
				if damage.onePage {
					least = min(least, len(newest))
					if !slices.ContainsFunc(ids, func(id []byte) bool { return bytes.Equal(id, w.keys.id) }) {
						t.Errorf("%s: the id is not found", what)
					}
					continue
				}
				for id, end := range w.recordEnds {
					bucket, _, _ := strings.Cut(id, "/")
					// A data key stands in a bucket that has to be whole.
					if end <= len(file) && w.keyEnds[bucket]+pageSize <= len(file) && !newest[id] {
						t.Errorf("%s: %s is left, and not found", what, id)
					}
				}
			}
			if least < wreckRecords*98/100 {
				t.Errorf("only %d of %d records saved in the worst case", least, wreckRecords)
			}
			if damage.onePage {
				t.Logf("at least %d of %d records saved", least, wreckRecords)
			}
		})
	}
}

// TestSalvageGenerations: of records under several generations of keys the newest wins,
// wherever it stands; records of other stores are none.
func TestSalvageGenerations(t *testing.T) {
	w := newWreck(t)
	before := w.file
	s := mustOpen(t, w.path)
	if err := s.Rekey(t.Context()); err != nil {
		t.Fatal(err)
	}
	n := 0
	for id, r := range w.newest {
		bucket, name, _ := strings.Cut(id, "/")
		if n++; n > 20 {
			break
		}
		revision := mustSwap(t, s.Bucket(bucket), name, r.revision, []byte("CANARY-later"))
		w.newest[id] = wreckRecord{"CANARY-later", revision}
		w.written[version(id, "CANARY-later", revision)] = true
	}
	w.close(t, s)
	other := newWreck(t)
	for name, file := range map[string][]byte{
		"the new file":    w.file,
		"the older first": slices.Concat(before, other.file, w.file),
		"the newer first": slices.Concat(w.file, other.file, before),
	} {
		records, err := salvageBytes(file, w.keys)
		if newest := w.check(t, records); len(newest) != wreckRecords || err != nil {
			t.Errorf("%s: %d records, %v", name, len(newest), err)
		}
	}
	records, err := salvageBytes(slices.Concat(before, before[:pageSize]), other.keys)
	if len(records) != 0 || err != nil {
		t.Errorf("with another store's keys: %d records, %v", len(records), err)
	}
}

// TestSalvageOverflow: records larger than a page, and some that stand in a bucket that
// has no page, are found.
func TestSalvageOverflow(t *testing.T) {
	path := newPath(t)
	s := mustOpen(t, path)
	want := map[string]string{"small": "CANARY-small"}
	mustSwap(t, s.Bucket("latches"), "small", 0, []byte("CANARY-small"))
	for i, size := range []int{4000, 5000, 70_000, 300_000} {
		name := fmt.Sprint("large ", i)
		want[name] = "CANARY-" + strings.Repeat("x", size)
		mustSwap(t, s.Bucket("sessions"), name, 0, []byte(want[name]))
	}
	mustClose(t, s)
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	records, err := salvageBytes(file, s.keys)
	for _, r := range records {
		if want[r.name] != string(r.record) {
			t.Errorf("%s: %.20q", r.name, r.record)
		}
		delete(want, r.name)
	}
	if len(want) > 0 || err != nil {
		t.Errorf("%d are missing, %v", len(want), err)
	}
}

// readerAt is a file that may be broken, and notes what is read of it.
type readerAt struct {
	io.ReaderAt
	bad     int64 // where a page begins that cannot be read; -1: none
	read    int64
	largest int
}

func (r *readerAt) ReadAt(p []byte, at int64) (int, error) {
	r.largest = max(r.largest, len(p))
	if r.bad >= 0 && at < r.bad+pageSize && at+int64(len(p)) > r.bad {
		return 0, syscall.EIO
	}
	n, err := r.ReaderAt.ReadAt(p, at)
	r.read += int64(n)
	return n, err
}

// A page that the disk does not give costs what stands on it, and is said.
func TestSalvageUnreadable(t *testing.T) {
	w := newWreck(t)
	for page := range int64(len(w.file)) / pageSize {
		f := &readerAt{ReaderAt: bytes.NewReader(w.file), bad: page * pageSize}
		records, err := salvage(f, int64(len(w.file)), w.keys)
		if newest := w.check(t, records); len(newest) < wreckRecords*98/100 {
			t.Errorf("page %d: %d records", page, len(newest))
		}
		if !errors.Is(err, syscall.EIO) {
			t.Errorf("page %d: error %v, want EIO", page, err)
		}
	}
}

// TestSalvageHostile: whatever a file claims, it costs little time and memory.
func TestSalvageHostile(t *testing.T) {
	w := newWreck(t)
	elements := func(size int, flags, pos, key, value uint32) []byte {
		b := make([]byte, size)
		for i := 0; i < size; i += leafAlign {
			for n, field := range []uint32{flags, pos, key, value} {
				binary.NativeEndian.PutUint32(b[i+4*n:], field)
			}
		}
		return b
	}
	// Each second 16 bytes claim the same ones, and the others look like a record's header.
	record := elements(1<<20, 0, 16, 32, 1<<18)
	for i := leafAlign; i < len(record); i += 2 * leafAlign {
		binary.BigEndian.PutUint32(record[i+1:], firstGeneration)
		record[i] = recordVersion
	}
	const all = 1<<32 - 1
	for name, c := range map[string]struct {
		file []byte
		size int64 // as it is said to be; 0: as it is
		want error
	}{
		"nothing":               {nil, 0, nil},
		"less than an element":  {make([]byte, 15), 0, nil},
		"elements without end":  {elements(1<<20, all, all, all, all), 0, nil},
		"keys without end":      {elements(1<<20, 0, 16, all, 1), 0, nil},
		"values without end":    {elements(1<<20, 0, 16, 32, all), 0, nil},
		"places without end":    {elements(1<<20, 0, all, 32, 64), 0, nil},
		"elements in elements":  {elements(1<<20, leafBucket, 0, 32, 64), 0, nil},
		"one for many":          {elements(1<<20, 0, 16, 32, 1<<18), 0, errClaims},
		"records for many":      {slices.Concat(w.file, record), 0, errClaims},
		"buckets for many":      {append(elements(1<<20, leafBucket, 16, 16, inlineLimit), make([]byte, 1<<16)...), 0, errClaims},
		"larger than it is":     {w.file, 1 << 40, errors.New("only its first 1 GiB are looked at")},
		"much larger than that": {w.file, 1<<63 - 1, errors.New("only its first 1 GiB are looked at")},
		"smaller than it is":    {w.file, 1 << 14, nil},
	} {
		t.Run(name, func(t *testing.T) {
			f := &readerAt{ReaderAt: bytes.NewReader(c.file), bad: -1}
			if c.size == 0 {
				c.size = int64(len(c.file))
			}
			records, err := salvage(f, c.size, w.keys)
			if fmt.Sprint(err) != fmt.Sprint(c.want) {
				t.Errorf("error %v, want %v", err, c.want)
			}
			w.check(t, records)
			if want := int64(2 * (claimLimit + 2) * (len(c.file) + pageSize)); f.read > want || f.largest > valueLimit+keyLimit {
				t.Errorf("%d bytes were read, at most %d at once; want %d at most", f.read, f.largest, want)
			}
		})
	}
	// Ids without number are not kept.
	var ids []byte
	for i := range 100 {
		e := elements(leafAlign, 0, leafAlign, uint32(len(metaID)), idSize)
		e = append(append(e, metaID...), bytes.Repeat([]byte{byte(i)}, idSize)...)
		ids = append(ids, append(e, make([]byte, leafAlign-len(e)%leafAlign)...)...)
	}
	if got := salvageID(bytes.NewReader(ids), int64(len(ids))); len(got) != maxIDs {
		t.Errorf("%d ids, want %d", len(got), maxIDs)
	}
}

// FuzzSalvage changes the pages of a small file: what is salvaged is something that was written.
func FuzzSalvage(f *testing.F) {
	k, err := newKeyring(bytes.Repeat([]byte{7}, keySize), bytes.Repeat([]byte{8}, idSize))
	if err != nil {
		f.Fatal(err)
	}
	path := newPath(f)
	if err := os.Mkdir(strings.TrimSuffix(path, "/store.db"), 0o700); err != nil {
		f.Fatal(err)
	}
	if err := createFile(path, k.header(format)); err != nil {
		f.Fatal(err)
	}
	d, wrapped, err := k.newDataKey("sessions", firstGeneration)
	if err != nil {
		f.Fatal(err)
	}
	edit(f, path, func(tx *bbolt.Tx) error {
		t := txn{tx}
		if err := t.addBucket("sessions", wrapped); err != nil {
			return err
		}
		for i := range 20 {
			name := fmt.Sprint("CANARY-", i)
			key := k.recordKey("sessions", name)
			record := bytes.Repeat([]byte{'x'}, 10*i)
			if err := t.put("sessions", key, k.seal(d, "sessions", key, name, uint64(i+1), record)); err != nil {
				return err
			}
		}
		return nil
	})
	file, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(file)
	for page := 0; page < len(file); page += pageSize {
		f.Add(file[page : page+pageSize])
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		records, _ := salvageBytes(file, k)
		for _, r := range records {
			var i int
			if n, err := fmt.Sscanf(r.name, "CANARY-%d", &i); n != 1 || err != nil || r.bucket != "sessions" ||
				r.sequence != uint64(i+1) || !bytes.Equal(r.record, bytes.Repeat([]byte{'x'}, 10*i)) {
				t.Errorf("salvaged %s/%s %d %.20q", r.bucket, r.name, r.sequence, r.record)
			}
		}
		for _, id := range salvageID(bytes.NewReader(file), int64(len(file))) {
			if len(id) != idSize {
				t.Errorf("id %x", id)
			}
		}
	})
}
