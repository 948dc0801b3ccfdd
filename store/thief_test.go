package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/bbolt"

	"github.com/sessionctl/sessionctl/api"
)

// windowSize is how many bytes of a ciphertext tell it from chance.
const windowSize = 16

// windows are parts of that size of what must not be found any more.
type windows map[[windowSize]byte]bool

func (w windows) add(b []byte) {
	for i := 0; i+windowSize <= len(b); i++ {
		w[[windowSize]byte(b[i:])] = true
	}
}

// in counts the places of b where one of them stands.
func (w windows) in(b []byte) (n int) {
	for i := 0; i+windowSize <= len(b); i++ {
		if w[[windowSize]byte(b[i:])] {
			n++
		}
	}
	return n
}

// TestPurgedFile: once records were removed, and the file was written anew, nothing in
// its directory tells of them: no name, user or cookie, nor a part of any ciphertext that
// there has ever been, nor where they were.
func TestPurgedFile(t *testing.T) {
	const sites, rounds = 200, 4
	for name, purge := range map[string]func(t *testing.T, s *Store){
		"by itself":  func(t *testing.T, s *Store) { pass(purgeQuiet); synctest.Wait() },
		"at the end": func(t *testing.T, s *Store) { mustClose(t, s) },
		"asked for": func(t *testing.T, s *Store) {
			if err := s.Rekey(t.Context()); err != nil {
				t.Fatal(err)
			}
		},
		"at the next start, after a crash": func(t *testing.T, s *Store) {
			path := s.path
			crashed, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			mustClose(t, s)
			if err := os.WriteFile(path, crashed, 0o600); err != nil {
				t.Fatal(err)
			}
			s = mustOpen(t, path)
			pass(purgeQuiet)
			synctest.Wait()
			mustClose(t, s)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				path := newPath(t)
				s := mustOpen(t, path)
				buckets := []string{"sessions", "tickets", "passwords"}
				old, gone := windows{}, windows{}
				seen := map[string]bool{}
				look := func() {
					for _, raw := range sealed(t, s) {
						if !seen[string(raw)] {
							seen[string(raw)] = true
							old.add(raw[headerSize:])
						}
					}
				}
				var numbers []int
				for i := range sites {
					numbers = append(numbers, i)
				}
				var mu sync.Mutex
				revisions := map[[2]string]uint64{}
				each := func(record func(i int) []byte) {
					for chunk := range slices.Chunk(numbers, 50) { // so many at a time
						var writes sync.WaitGroup
						for _, i := range chunk {
							for _, bucket := range buckets {
								writes.Go(func() {
									p := [2]string{bucket, thiefName(i)}
									mu.Lock()
									was := revisions[p]
									mu.Unlock()
									r, err := s.Bucket(bucket).Swap(t.Context(), p[1], was, record(i))
									if err != nil {
										t.Error(err)
									}
									mu.Lock()
									revisions[p] = r
									mu.Unlock()
								})
							}
						}
						writes.Wait()
						look() // the next ones use the pages of those before
					}
				}
				for round := range rounds {
					each(func(i int) []byte {
						return fmt.Appendf(nil, `{"user":"CANARY-user-%d","cookie":"CANARY-cookie-%d-%d","pad":%q}`, i, i, round, strings.Repeat("p", i*7%600))
					})
				}
				stays := [2]string{"sessions", thiefName(sites)} // a session that nobody ends
				lives := mustSwap(t, s.Bucket(stays[0]), stays[1], 0, []byte("CANARY-cookie-that-lives"))
				look()
				for place := range sealed(t, s) {
					if _, key, _ := strings.Cut(place, "/"); key != string(s.keys.recordKey(stays[0], stays[1])) {
						gone.add([]byte(key))
					}
				}
				each(func(int) []byte { return nil })
				// What is looked for can be found: bbolt forgets nothing by itself.
				before, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if old.in(before) < 1000 || gone.in(before) < 1000 {
					t.Fatalf("the removed records have left %d parts of their ciphertexts and %d of their keys, even before the purge", old.in(before), gone.in(before))
				}
				size := len(before)

				purge(t, s)
				master, err := os.ReadFile(filepath.Join(filepath.Dir(path), "master.key"))
				if err != nil {
					t.Fatal(err)
				}
				err = filepath.WalkDir(filepath.Dir(path), func(file string, d fs.DirEntry, err error) error {
					if err != nil || d.IsDir() {
						return err
					}
					raw, err := os.ReadFile(file)
					base := filepath.Base(file)
					for _, word := range []string{"CANARY", "corp.example", "user", "cookie"} {
						if n := bytes.Count(raw, []byte(word)); n > 0 || strings.Contains(base, word) {
							t.Errorf("%s is %d times in %s", word, n, base)
						}
					}
					if n, m := old.in(raw), gone.in(raw); n > 0 || m > 0 {
						t.Errorf("%s has %d parts of old ciphertexts, and %d of the keys of removed records", base, n, m)
					}
					if base != "master.key" && bytes.Contains(raw, master) {
						t.Errorf("the master key is in %s", base)
					}
					if base == filepath.Base(path) && len(raw) >= size {
						t.Errorf("%d bytes for one record, %d before", len(raw), size)
					}
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
				mustClose(t, s)
				wantNoTemporary(t, path)
				s = mustOpen(t, path)
				wantRecord(t, s.Bucket(stays[0]), stays[1], "CANARY-cookie-that-lives", lives)
				if st := s.Status(); st.Records != 1 || st.Warning != "" {
					t.Errorf("%+v", st)
				}
				mustClose(t, s)
			})
		})
	}
}

func thiefName(i int) string {
	return fmt.Sprintf("https://CANARY-host-%d.corp.example/jira CANARY-user-%d", i, i)
}

// contents is what stands in the file of a store, without any key to it.
type contents struct {
	records  map[slot]string // sealed
	keys     map[string]string
	meta     map[string]string
	sequence uint64
}

// slot is where a record is.
type slot struct{ bucket, key string }

func (c *contents) clone() *contents {
	return &contents{maps.Clone(c.records), maps.Clone(c.keys), maps.Clone(c.meta), c.sequence}
}

// equal compares all but what says nothing of the records: which file it is, and of when.
func (c *contents) equal(o *contents) bool {
	ours, theirs := maps.Clone(c.meta), maps.Clone(o.meta)
	for _, name := range [][]byte{metaFile, metaTime, metaStale} {
		delete(ours, string(name))
		delete(theirs, string(name))
	}
	return maps.Equal(c.records, o.records) && maps.Equal(c.keys, o.keys) && maps.Equal(ours, theirs) && c.sequence == o.sequence
}

// complete reports whether there is something in all parts.
func (c *contents) complete() bool {
	for _, bucket := range thiefBuckets {
		if c.keys[bucket] == "" || len(c.places(bucket)) == 0 {
			return false
		}
	}
	for _, raw := range c.records {
		if len(raw) < headerSize {
			return false
		}
	}
	return c.meta[string(metaSets)] != "" && c.sequence > 0
}

// places returns the places of a bucket's records, of all buckets if that is "".
func (c *contents) places(bucket string) (all []slot) {
	for p := range c.records {
		if bucket == "" || p.bucket == bucket {
			all = append(all, p)
		}
	}
	slices.SortFunc(all, func(a, b slot) int { return strings.Compare(a.bucket+a.key, b.bucket+b.key) })
	return all
}

// access opens a file behind the back of the store.
func access(t testing.TB, path string, fn func(tx *bbolt.Tx) error) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Update(fn), db.Close()); err != nil {
		t.Fatal(err)
	}
}

// contentsOf reads a file that is in path's directory for as long as that takes.
func contentsOf(t testing.TB, path string, file []byte) *contents {
	t.Helper()
	c := &contents{map[slot]string{}, map[string]string{}, map[string]string{}, 0}
	copied := path + ".read"
	if err := os.WriteFile(copied, file, 0o600); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(copied)
	access(t, copied, func(tx *bbolt.Tx) error {
		all := func(b *bbolt.Bucket, into map[string]string) error {
			return b.ForEach(func(k, v []byte) error { into[string(k)] = string(v); return nil })
		}
		c.sequence = tx.Bucket(bucketMeta).Sequence()
		err := errors.Join(all(tx.Bucket(bucketMeta), c.meta), all(tx.Bucket(bucketKeys), c.keys))
		records := tx.Bucket(bucketRecords)
		return errors.Join(err, records.ForEachBucket(func(name []byte) error {
			return records.Bucket(name).ForEach(func(k, v []byte) error {
				c.records[slot{string(name), string(k)}] = string(v)
				return nil
			})
		}))
	})
	return c
}

// writeTo makes a file that has other contents have these.
func (c *contents) writeTo(t testing.TB, path string, was *contents) {
	t.Helper()
	change := func(b *bbolt.Bucket, key, old, now string, there bool) error {
		switch {
		case !there:
			return b.Delete([]byte(key))
		case old != now:
			return b.Put([]byte(key), []byte(now))
		}
		return nil
	}
	access(t, path, func(tx *bbolt.Tx) error {
		var errs []error
		for _, m := range []struct {
			name     []byte
			was, now map[string]string
		}{{bucketMeta, was.meta, c.meta}, {bucketKeys, was.keys, c.keys}} {
			both := maps.Clone(m.was)
			maps.Copy(both, m.now)
			for key := range both {
				now, there := m.now[key]
				errs = append(errs, change(tx.Bucket(m.name), key, m.was[key], now, there))
			}
		}
		both := maps.Clone(was.records)
		maps.Copy(both, c.records)
		for p := range both {
			b, err := tx.Bucket(bucketRecords).CreateBucketIfNotExists([]byte(p.bucket))
			if err != nil {
				return err
			}
			now, there := c.records[p]
			errs = append(errs, change(b, p.key, was.records[p], now, there))
		}
		errs = append(errs, tx.Bucket(bucketMeta).SetSequence(c.sequence))
		return errors.Join(errs...)
	})
}

// thief has a store's file of several moments, those of other stores, and what the store
// is to say of each record.
type thief struct {
	t    testing.TB
	path string
	// states are the moments, the last one is now; the data keys of the first ones are
	// older. foreign is another store with the same master key, stranger one with
	// another. fork is what became of the last but one when it was used on its own.
	files                   [][]byte
	states                  []*contents
	foreign, stranger, fork *contents
	older                   map[string]string                  // the header that format 1 had
	now                     map[[2]string]wreckRecord          // bucket, name
	written                 map[[2]string]map[wreckRecord]bool // all that ever was, in the fork too
	rand                    *rand.Rand
}

var thiefBuckets = []string{"latches", "sessions", "tickets"}

const thiefRecords = 8 // in each

func newThief(t *testing.T, seed uint64) *thief {
	th := &thief{t: t, now: map[[2]string]wreckRecord{}, written: map[[2]string]map[wreckRecord]bool{}, rand: rand.New(rand.NewPCG(seed, 8))}
	th.path = newPath(t)
	stranger := newPath(t)
	synctest.Test(t, func(t *testing.T) { // in which nothing is purged but when the test says so
		s := mustOpen(t, th.path)
		n := 0
		write := func(s *Store, bucket string, i int, put bool) {
			p := [2]string{bucket, thiefName(i)}
			was := th.now[p]
			if !put {
				if was.revision != 0 {
					mustSwap(t, s.Bucket(bucket), p[1], was.revision, nil)
				}
				delete(th.now, p)
				return
			}
			n++
			record := fmt.Sprintf("CANARY-record-%d-of-%d-%s", n, i, strings.Repeat("x", th.rand.IntN(100)))
			r := mustSwap(t, s.Bucket(bucket), p[1], was.revision, []byte(record))
			th.now[p] = wreckRecord{record, r}
			if th.written[p] == nil {
				th.written[p] = map[wreckRecord]bool{}
			}
			th.written[p][th.now[p]] = true
		}
		keep := func() {
			file, err := os.ReadFile(th.path)
			if err != nil {
				t.Fatal(err)
			}
			th.files, th.states = append(th.files, file), append(th.states, contentsOf(t, th.path, file))
		}
		each := func(s *Store, do func(bucket string, i int)) {
			for i := range thiefRecords {
				for _, bucket := range thiefBuckets {
					do(bucket, i)
				}
			}
		}
		some := func(s *Store) { // puts most of them anew, and removes others
			each(s, func(bucket string, i int) {
				if k := th.rand.IntN(6); k < 5 {
					write(s, bucket, i, k > 0)
				}
			})
		}
		each(s, func(bucket string, i int) { write(s, bucket, i, true) })
		keep()
		some(s)
		keep()
		if err := s.Rekey(t.Context()); err != nil {
			t.Fatal(err)
		}
		keep()
		some(s)
		each(s, func(bucket string, i int) {
			if i < thiefRecords/2 { // so that there is something to fork from
				write(s, bucket, i, true)
			}
		})
		keep()
		// The same records are written on both sides, one after the other.
		forked := maps.Clone(th.now)
		branch := func(s *Store) {
			for i := range thiefRecords / 2 {
				write(s, "sessions", i, true)
				write(s, "latches", i, true)
			}
		}
		branch(s)
		write(s, "tickets", thiefRecords, true)
		keep()
		h := s.keys.header(1)
		th.older = map[string]string{string(metaFormat): string([]byte{h.format}), string(metaCheck): string(h.check)}
		mustClose(t, s)

		now := th.now
		if err := os.WriteFile(th.path, th.files[3], 0o600); err != nil {
			t.Fatal(err)
		}
		th.now = forked
		s = mustOpen(t, th.path)
		branch(s)
		th.fork = th.contents(t, th.path)
		mustClose(t, s)
		th.now = now

		for _, other := range []struct {
			path string
			key  Key
			into **contents
		}{
			{filepath.Join(filepath.Dir(th.path), "other.db"), keyBeside(th.path), &th.foreign},
			{stranger, keyBeside(stranger), &th.stranger},
		} {
			s, err := Open(other.path, Options{Key: other.key})
			if err != nil {
				t.Fatal(err)
			}
			each(s, func(bucket string, i int) {
				mustSwap(t, s.Bucket(bucket), thiefName(i), 0, []byte("CANARY-foreign"))
			})
			*other.into = th.contents(t, other.path)
			mustClose(t, s)
		}
	})
	return th
}

func (th *thief) contents(t testing.TB, path string) *contents {
	t.Helper()
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return contentsOf(t, path, file)
}

func pick[T any](th *thief, from []T) T { return from[th.rand.IntN(len(from))] }

// today is the state that is robbed.
func (th *thief) today() *contents { return th.states[len(th.states)-1] }

// before returns an older state.
func (th *thief) before() *contents { return pick(th, th.states[:len(th.states)-1]) }

// flip changes one bit.
func (th *thief) flip(s string) string {
	b := []byte(s)
	b[th.rand.IntN(len(b))] ^= 1 << th.rand.IntN(8)
	return string(b)
}

// known returns a place of the bucket where there is, was, or could be a record.
func (th *thief) known(bucket string) slot {
	return pick(th, pick(th, []*contents{th.today(), th.before(), th.fork}).places(bucket))
}

// generation is that of the data key with which a record was sealed.
func generation(raw string) uint32 { return binary.BigEndian.Uint32([]byte(raw[1:])) }

// thiefMoves are what is done to the contents of a closed store.
var thiefMoves = map[string]func(th *thief, c *contents){
	"to another key": func(th *thief, c *contents) {
		bucket := pick(th, thiefBuckets)
		from := pick(th, c.places(bucket))
		c.records[th.known(bucket)] = c.records[from]
		if th.rand.IntN(2) == 0 {
			delete(c.records, from)
		}
	},
	"two change places": func(th *thief, c *contents) {
		a, b := pick(th, c.places("")), pick(th, c.places(""))
		c.records[a], c.records[b] = c.records[b], c.records[a]
	},
	"to another bucket": func(th *thief, c *contents) {
		from, bucket := pick(th, c.places("")), pick(th, thiefBuckets)
		to := slot{bucket, from.key}
		if th.rand.IntN(2) == 0 {
			to = th.known(bucket)
		}
		c.records[to] = c.records[from]
	},
	"from another store": func(th *thief, c *contents) {
		from := pick(th, []*contents{th.foreign, th.stranger})
		p := pick(th, from.places(""))
		to := th.known(p.bucket)
		if th.rand.IntN(4) == 0 {
			to = p
		}
		c.records[to] = from.records[p]
		switch th.rand.IntN(4) {
		case 0:
			c.keys[p.bucket] = from.keys[p.bucket]
		case 1:
			c.meta[string(metaSets)] = from.meta[string(metaSets)]
		}
	},
	"from another generation": func(th *thief, c *contents) {
		from := pick(th, th.states[:2])
		p := pick(th, from.places(""))
		c.records[p] = from.records[p]
		if th.rand.IntN(2) == 0 {
			c.keys[p.bucket] = from.keys[p.bucket]
		}
	},
	"an older version": func(th *thief, c *contents) {
		from := pick(th, th.states[2:len(th.states)-1]) // under the same data key
		p := pick(th, from.places(""))
		c.records[p] = from.records[p] // it may have been removed since
	},
	"of a fork": func(th *thief, c *contents) {
		p := pick(th, th.fork.places(""))
		c.records[p] = th.fork.records[p]
	},
	"removed": func(th *thief, c *contents) {
		for range 1 + th.rand.IntN(3) {
			delete(c.records, pick(th, c.places("")))
		}
	},
	"a bit of a record": func(th *thief, c *contents) {
		p := pick(th, c.places(""))
		c.records[p] = th.flip(c.records[p])
	},
	"a bit of a key": func(th *thief, c *contents) {
		p := pick(th, c.places(""))
		c.records[slot{p.bucket, th.flip(p.key)}] = c.records[p]
		delete(c.records, p)
	},
	"another length": func(th *thief, c *contents) {
		p := pick(th, c.places(""))
		if raw := c.records[p]; th.rand.IntN(2) == 0 {
			c.records[p] = raw[:th.rand.IntN(len(raw))]
		} else {
			c.records[p] = raw + raw[:1+th.rand.IntN(len(raw))]
		}
	},
	"another generation's number": func(th *thief, c *contents) {
		p := pick(th, c.places(""))
		raw := []byte(c.records[p])
		binary.BigEndian.PutUint32(raw[1:], generation(c.records[p])+1+th.rand.Uint32N(10))
		c.records[p] = string(raw)
	},
	"another sequence": func(th *thief, c *contents) {
		p := pick(th, c.places(""))
		raw := []byte(c.records[p])
		binary.BigEndian.PutUint64(raw[5:], th.rand.Uint64N(c.sequence+10))
		c.records[p] = string(raw)
	},
	"the counter set back":  func(th *thief, c *contents) { c.sequence = th.rand.Uint64N(c.sequence) },
	"the counter set ahead": func(th *thief, c *contents) { c.sequence += 1 + th.rand.Uint64N(1<<th.rand.IntN(63)) },
	"the hashes": func(th *thief, c *contents) {
		switch sets := c.meta[string(metaSets)]; th.rand.IntN(3) {
		case 0:
			delete(c.meta, string(metaSets))
		case 1:
			c.meta[string(metaSets)] = th.flip(sets)
		case 2:
			c.meta[string(metaSets)] = sets[:th.rand.IntN(len(sets))]
		}
	},
	"older hashes": func(th *thief, c *contents) {
		c.meta[string(metaSets)] = pick(th, append(slices.Clone(th.states[:len(th.states)-1]), th.fork, th.foreign)).meta[string(metaSets)]
	},
	"a bucket rolled back": func(th *thief, c *contents) {
		th.rollBack(c, pick(th, append(slices.Clone(th.states[:len(th.states)-1]), th.fork)), th.rand.IntN(2) == 0, pick(th, thiefBuckets))
	},
	"a bucket rolled back, with the hashes": func(th *thief, c *contents) {
		from := th.before()
		th.rollBack(c, from, true, pick(th, thiefBuckets))
		c.meta[string(metaSets)] = from.meta[string(metaSets)]
		if th.rand.IntN(2) == 0 {
			c.sequence = from.sequence
		}
	},
	"all buckets rolled back, but not the hashes": func(th *thief, c *contents) {
		from := th.before()
		th.rollBack(c, from, true, thiefBuckets...)
		if th.rand.IntN(2) == 0 {
			c.sequence = from.sequence
		}
	},
	"all rolled back, but not the counter": func(th *thief, c *contents) {
		from := th.before()
		th.rollBack(c, from, true, thiefBuckets...)
		c.meta[string(metaSets)] = from.meta[string(metaSets)]
	},
	"all rolled back, but one record": func(th *thief, c *contents) {
		today, from := c.clone(), th.before()
		*c = *from.clone()
		p := pick(th, today.places(""))
		c.records[p] = today.records[p]
	},
	"another data key": func(th *thief, c *contents) {
		bucket := pick(th, thiefBuckets)
		switch th.rand.IntN(5) {
		case 0:
			c.keys[bucket] = th.flip(c.keys[bucket])
		case 1:
			c.keys[bucket] = c.keys[pick(th, thiefBuckets)]
		case 2:
			c.keys[bucket] = pick(th, []*contents{th.foreign, th.stranger}).keys[bucket]
		case 3:
			c.keys[bucket] = th.states[0].keys[bucket]
		case 4:
			delete(c.keys, bucket)
		}
	},
	"a bucket has another name": func(th *thief, c *contents) {
		from, to := pick(th, thiefBuckets), pick(th, append(slices.Clone(thiefBuckets), "others"))
		for _, p := range c.places(from) {
			c.records[slot{to, p.key}] = c.records[p]
			delete(c.records, p)
		}
		if th.rand.IntN(2) == 0 {
			c.keys[to] = c.keys[from]
		}
	},
	"a bucket is removed": func(th *thief, c *contents) {
		bucket := pick(th, thiefBuckets)
		for _, p := range c.places(bucket) {
			delete(c.records, p)
		}
		if th.rand.IntN(2) == 0 {
			delete(c.keys, bucket)
		}
	},
	"a bit of the header": func(th *thief, c *contents) {
		name := string(pick(th, [][]byte{metaFormat, metaID, metaCheck}))
		c.meta[name] = th.flip(c.meta[name])
	},
	"an older format's header": func(th *thief, c *contents) { // from before an upgrade
		maps.Copy(c.meta, th.older)
		delete(c.meta, string(metaSets))
		delete(c.records, pick(th, c.places("")))
	},
	"another store's header": func(th *thief, c *contents) {
		from := pick(th, []*contents{th.foreign, th.stranger})
		for _, name := range pick(th, [][][]byte{{metaID}, {metaCheck}, {metaID, metaCheck}}) {
			c.meta[string(name)] = from.meta[string(name)]
		}
	},
}

// rollBack gives buckets the records that they had, and, if so, their data keys.
func (th *thief) rollBack(c, to *contents, keys bool, buckets ...string) {
	for _, bucket := range buckets {
		for _, p := range c.places(bucket) {
			delete(c.records, p)
		}
		for _, p := range to.places(bucket) {
			c.records[p] = to.records[p]
		}
		if keys {
			c.keys[bucket] = to.keys[bucket]
		}
	}
}

// How it came out that somebody was there.
const (
	byRecord  = "a record does not open"
	byWarning = "a warning"
	atStart   = "the store does not open"
)

// judge opens the robbed store and returns how it noticed, or what is wrong with it.
func (th *thief) judge() (noticed string, wrong error) {
	o := Options{Key: keyBeside(th.path)}
	s, err := Open(th.path, o)
	if err != nil {
		noticed = atStart
		switch api.CodeOf(err) {
		case api.StoreKeyMissing, api.VersionSkew:
			return noticed, nil
		case api.StoreDamaged: // what is saved of it must be right as well
			if s, err = Mend(th.path, o); api.CodeOf(err) == api.StoreKeyMissing {
				return noticed, nil
			}
		}
		if err != nil {
			return "", err
		}
	}
	defer func() { wrong = errors.Join(wrong, s.Close()) }()
	status := s.Status()
	if status.Warning != "" && noticed == "" {
		noticed = byWarning
	}
	// An older version of the record may be there, but not without a word. A record that
	// was never that of this name may not.
	check := func(p [2]string, record []byte, revision uint64) error {
		got := wreckRecord{string(record), revision}
		if got == th.now[p] {
			return nil
		}
		if record != nil && !th.written[p][got] {
			return fmt.Errorf("%q has the record %.40q of revision %d, which was never written", p, record, revision)
		}
		if status.Warning == "" {
			return fmt.Errorf("%q has the record %.40q of revision %d, and there is no warning", p, record, revision)
		}
		return nil
	}
	for _, bucket := range append(slices.Clone(thiefBuckets), "others") {
		b := s.Bucket(bucket)
		for i := range thiefRecords + 2 {
			p := [2]string{bucket, thiefName(i)}
			record, revision, err := b.Load(p[1])
			switch {
			case err == nil:
				wrong = errors.Join(wrong, check(p, record, revision))
			case api.CodeOf(err) == api.StoreDamaged:
				noticed = byRecord
			default:
				wrong = errors.Join(wrong, err)
			}
		}
		err := b.Range(func(name string, record []byte, revision uint64) bool {
			wrong = errors.Join(wrong, check([2]string{bucket, name}, record, revision))
			return true
		})
		switch {
		case err != nil && api.CodeOf(err) != api.StoreDamaged:
			wrong = errors.Join(wrong, err)
		case err != nil && noticed == "":
			noticed = byRecord
		}
	}
	return noticed, errors.Join(wrong, status.Err)
}

// put brings the file of the robbed store to the disk.
func (th *thief) put(file []byte) {
	th.t.Helper()
	aside, err := filepath.Glob(th.path + ".bad-*")
	for _, name := range aside {
		err = errors.Join(err, os.Remove(name))
	}
	if err = errors.Join(err, os.WriteFile(th.path, file, 0o600)); err != nil {
		th.t.Fatal(err)
	}
}

// TestThiefMoves: whoever can write the file, but has no key, can move its parts about,
// put back what was there before, and bring parts of other stores. All of that is
// noticed, and no record is ever taken for another. What is not noticed is the older
// file as a whole.
func TestThiefMoves(t *testing.T) {
	moves := 300
	if torture {
		moves = 10_000
	}
	seed := rand.Uint64()
	th := newThief(t, seed)
	today := th.files[len(th.files)-1]
	counts := map[string]map[string]int{}
	fail := 0
	kinds := slices.Sorted(maps.Keys(thiefMoves))
	for n := 0; n < moves; {
		kind := kinds[n%len(kinds)]
		what := kind
		robbed := th.today().clone()
		thiefMoves[kind](th, robbed)
		whole := func(state *contents) bool { return state.equal(robbed) }
		if !slices.ContainsFunc(th.states, whole) && robbed.complete() && th.rand.IntN(20) == 0 { // and another one
			also := pick(th, kinds)
			thiefMoves[also](th, robbed)
			what += "; " + also
		}
		if slices.ContainsFunc(th.states, whole) {
			continue // nothing was moved, or everything
		}
		n++
		th.put(today)
		robbed.writeTo(t, th.path, th.today())
		noticed, wrong := th.judge()
		if counts[kind] == nil {
			counts[kind] = map[string]int{}
		}
		counts[kind][noticed]++
		if noticed == "" || wrong != nil {
			t.Errorf("seed %d, move %d (%s): noticed %q, %v", seed, n, what, noticed, wrong)
			if fail++; fail > 20 {
				t.FailNow()
			}
		}
	}
	t.Logf("%d moves, seed %d", moves, seed)
	for _, kind := range kinds {
		t.Logf("%-46s %v", kind, counts[kind])
	}

	// The file of another day, all of it, is the store of another day.
	for i, file := range th.files[:len(th.files)-1] {
		th.put(file)
		s := mustOpen(t, th.path)
		st := s.Status()
		if st.Warning != "" || st.Err != nil || st.Records != len(th.states[i].records) {
			t.Errorf("the whole file of moment %d: %+v", i, st)
		}
		mustClose(t, s)
		if noticed, wrong := th.judge(); noticed != "" || wrong == nil {
			t.Errorf("the whole file of moment %d is noticed: %s, %v", i, noticed, wrong)
		}
	}
}
