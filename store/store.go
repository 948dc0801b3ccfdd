// Package store keeps the agent's records on disk, encrypted: sessions,
// tickets, latches. It knows buckets, names and bytes. What a record means,
// when it ends and who may read it is its owner's business and must not come
// in here; nor must gRPC or any other package of ours but api.
//
// # File
//
// One bbolt file. Numbers are big endian, sizes in bytes.
//
//	meta                  its bbolt sequence is the last revision given out
//	├── format            1: version of all that is drawn here, now 3
//	├── id                16: random, the store's own
//	├── check             32: HMAC-SHA256(check key, format | id)
//	├── file              16: random, of this file, as the store is written anew now and then
//	├── time              8: when it was written anew, in seconds since 1970; none: it is the first
//	├── stale             1: it holds something of records that were removed
//	└── sets              nonce 12 | sealed set hashes | tag 16
//	keys
//	└── <bucket>          generation 4 | nonce 12 | sealed data key 32 | tag 16
//	records
//	└── <bucket>          sessions, tickets, latches, …
//	    └── <record key>  version 1 | generation 4 | sequence 8 | nonce 12 | ciphertext | tag 16
//
// The master key (see Key) gives, by HKDF-SHA256 (RFC 5869) salted with the
// store's id, the wrapping, index, set, check and MAC keys. Each bucket has a random
// data key, sealed under the wrapping key; its generation is 1 until a rekey
// gives it another. Sealing is AES-256-GCM with a random nonce, which bounds a
// data key to 2^32 records in its life.
//
// A record key is HMAC-SHA256(index key, bucket | name). The plaintext is
// name length 4 | name | record, so that names of hosts and users stand only
// inside the ciphertext. The associated data are format, store id, bucket,
// record key, generation and sequence, each after its length: a record opens
// nowhere but where it was put, and only while the store has given out its
// sequence.
//
// bbolt leaves what was removed or overwritten in pages that it uses again some day. So
// a while after a removal, and when somebody asks for it, the file is written anew, with
// new data keys and the same revisions, and gets the old one's name (see Store.Rekey).
//
// Whoever can read the file learns the names of the buckets, how many records
// there are, how long they are and in which order they were written. Who can
// write it can put back an older file, and nothing here notices that. Whoever
// removes a record, or puts an older version of one back under its key, is noticed
// at the next start: each transaction seals a hash of the set of each bucket's
// records with it (see setHash).
//
// Format 1 had no set hashes, in format 2 they knew no nonces, and the seal of a data key
// knew its file's format in neither. A store of an older format is written anew when it is
// opened.
package store

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sessionctl/sessionctl/api"
)

// ErrConflict is returned by Swap when the record is not at the expected
// revision: somebody else changed it. Load it again.
var ErrConflict = errors.New("the stored record has another revision")

// Options say how a store is opened.
type Options struct {
	// Key is where the master key comes from.
	Key Key
	// LockTimeout is how long Open waits for another process to let go of the
	// file; 0 means a second.
	LockTimeout time.Duration
	// Probe looks at the file of a store before that is used, and has to leave it as it
	// is: in another process, which Probe may end (see ProbeFile). nil: it is not looked
	// at.
	Probe func(*os.File) error
	// Log is told of what needs no error; nil means nobody is.
	Log *slog.Logger
}

// Store is an open store. Its methods may be called by many goroutines.
type Store struct {
	path   string
	keys   *keyring
	key    Key
	keySum [sha256.Size]byte // of its file, or its salt's
	log    *slog.Logger
	heals  bool // what is wrong with the file is mended, see heal

	// mu is held for reading while the file is read, and what was read is opened: a
	// rewrite puts another file with other keys in its place.
	mu       sync.RWMutex
	file     *file
	dataKeys map[string]dataKey // by bucket
	warnings []string           // what was found, or done to it; the last ones
	trouble  error              // of the last write; nil: it has worked
	unpurged error              // of the last purge, or rekey

	healed   chan struct{}
	swaps    chan *swap
	rewrites chan chan error
	looks    chan chan look
	closing  chan struct{} // closed by Close: no more writes are taken
	stopped  chan struct{} // closed by the writer when it has ended
	close    func() error
	// Of the writer:
	stale    staleness
	sets     sets
	last     uint64           // the last sequence given out
	verified bool             // the records were compared with their set hashes, which are sets since
	unsynced bool             // the file's name is not known to be on the disk
	unhealed error            // why healing has failed
	retry    <-chan time.Time // when healing is tried again; nil: it has not failed
}

// Open opens the store at path or creates it. A missing directory is made with
// mode 0700; an existing one must belong to root or the agent's user and not
// be writable by anybody else, and the file must belong to the agent's user
// and not be accessible to anybody else.
//
// Errors have the codes StoreLocked (naming the process that has it, where the
// kernel tells), StoreKeyMissing (no master key, or not this store's),
// StoreDamaged (the file is left as it is) and StoreFailed. A file that turns out
// to be damaged later is not touched any more: all calls fail then, with StoreDamaged.
func Open(path string, o Options) (*Store, error) {
	s, err := open(path, o)
	if err != nil {
		return nil, err
	}
	go s.write()
	return s, nil
}

// open is Open without the writer.
func open(path string, o Options) (*Store, error) {
	path = filepath.Clean(path)
	if o.LockTimeout == 0 {
		o.LockTimeout = time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	dir := filepath.Dir(path)
	if err := ensureDir(dir); err != nil {
		return nil, failed(path, err)
	}
	_, err := os.Lstat(path)
	fresh := errors.Is(err, fs.ErrNotExist)
	if err != nil && !fresh {
		return nil, failed(path, err)
	}
	if fresh {
		if err := syncParents(dir); err != nil {
			return nil, failed(path, err)
		}
	}
	master, made, err := o.Key.load(fresh)
	if err != nil {
		return nil, err
	}
	defer master.free()
	if made {
		o.Log.Warn("made a new master key: who can read it and the store can read the sessions", "key", o.Key.Source(), "store", path)
	}
	if fresh {
		if err := create(path, master.bytes); err != nil {
			return nil, err
		}
		o.Probe = nil // it has just been made
	}
	f, err := openFile(path, o.LockTimeout, o.Probe, o.Log)
	if err != nil {
		return nil, err
	}
	removeLeftovers(path)
	if !o.Key.credential {
		removeLeftovers(o.Key.path())
	}
	// The name of a new store must be on the disk before anything in it is
	// promised to be. Whoever made it may have died before seeing to that.
	if err := syncDir(dir); err != nil {
		return nil, errors.Join(failed(path, err), f.close())
	}
	sum, err := o.Key.sum()
	if err != nil {
		return nil, errors.Join(o.Key.missing(err), f.close())
	}
	s := &Store{
		path:     path,
		file:     f,
		key:      o.Key,
		keySum:   sum,
		log:      o.Log,
		healed:   make(chan struct{}, 1),
		sets:     sets{},
		swaps:    make(chan *swap),
		rewrites: make(chan chan error),
		looks:    make(chan chan look),
		closing:  make(chan struct{}),
		stopped:  make(chan struct{}),
	}
	s.close = sync.OnceValue(s.shut)
	if err := s.unlock(master.bytes); err != nil {
		return nil, errors.Join(err, s.file.close())
	}
	return s, nil
}

// create makes an empty store at path, unless somebody else is quicker.
func create(path string, master []byte) error {
	id := newID()
	k, err := newKeyring(master, id)
	if err != nil {
		return failed(path, err)
	}
	return createFile(path, k.header(format))
}

// unlock checks that the master key is the store's, and unwraps the data keys.
func (s *Store) unlock(master []byte) error {
	var h header
	var wrapped map[string][]byte
	err := s.file.view(func(t txn) (err error) {
		if h, err = t.header(); err != nil {
			return err
		}
		if t.sequence() > maxSequence {
			return damaged(s.path, errors.New("its counter makes no sense"))
		}
		wrapped, err = t.wrappedKeys()
		return err
	})
	if err != nil {
		return err
	}
	if s.keys, err = newKeyring(master, h.id); err != nil {
		return failed(s.path, err)
	}
	fits := s.keys.fits(h)
	if !fits {
		if k, err := keyringOf(s.file.fd, master); err == nil && k != nil { // it is the header that is wrong
			return damaged(s.path, errors.New("its header makes no sense"))
		}
	}
	if h.format < oldestFormat || h.format > format {
		return &api.Error{Code: api.VersionSkew,
			Detail: fmt.Sprintf("store %s has format %d; this version reads formats %d to %d", s.path, h.format, oldestFormat, format),
			Remedy: "start the version of sessiond that wrote it, or " + moveAside(s.path)}
	}
	if !fits {
		return s.key.unfit(s.path)
	}
	s.dataKeys = make(map[string]dataKey, len(wrapped))
	for bucket, w := range wrapped {
		d, err := s.keys.unwrap(h.format, bucket, w)
		if err != nil {
			return damaged(s.path, fmt.Errorf("data key of bucket %q: %w", bucket, err))
		}
		s.dataKeys[bucket] = d
	}
	if h.format < format { // whose set hashes, if any, were others
		_, err := s.rewrite()
		s.verified = err == nil
		return err
	}
	return nil
}

// Close ends the store: writes that were taken are finished, the file is let
// go. A second Close returns what the first did. Afterwards every call that
// needs the file fails with StoreFailed.
func (s *Store) Close() error { return s.close() }

func (s *Store) shut() error {
	close(s.closing)
	<-s.stopped
	return s.file.close()
}

// read calls do with the file and its data keys in place. Where the file is found to be
// damaged meanwhile, do is called once more when that was healed.
func (s *Store) read(do func(*file) error) error {
	f, err := s.readOnce(do)
	if err == nil || !f.isBroken() || !s.heals {
		return err
	}
	select {
	case <-f.tended:
	case <-s.stopped:
	}
	_, err = s.readOnce(do)
	return err
}

func (s *Store) readOnce(do func(*file) error) (*file, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.file, do(s.file)
}

// Status tells about a store.
type Status struct {
	Path        string
	KeySource   string // Key.Source
	Format      int
	SizeBytes   int64
	Records     int       // in all buckets
	RewriteTime time.Time // when the file was written anew last, which compacts it; zero: never
	Warning     string    // what a person should know, a line each; "": nothing
	Err         error     // why the file cannot be read, nil if it can
	Trouble     error     // why the last write, or purge, has failed; nil if it has not
}

// look is what the writer sees when it makes sure that the file is in its place.
type look struct {
	records uint64
	err     error
}

// statusPatience is how long Status waits for a write to end.
const statusPatience = time.Second

// Status returns the state of the store, after a look at the file. If a write does not
// come back from the disk, it does not wait for that, and says so.
func (s *Store) Status() Status {
	st := Status{Path: s.path, KeySource: s.key.Source(), Format: format}
	looked, late := make(chan look, 1), time.After(statusPatience)
	asked := s.looks
	for waiting := true; waiting; {
		select {
		case asked <- looked:
			asked = nil
			continue
		case l := <-looked:
			st.Records, st.Err = int(l.records), l.err
		case <-s.stopped:
		case <-late:
			st.Err = failed(s.path, errors.New("a write has not come back from the disk for a while"))
		}
		waiting = false
	}
	err := s.read(func(f *file) error {
		return f.view(func(t txn) error {
			info, err := f.fd.Stat()
			if err != nil {
				return err
			}
			st.SizeBytes = info.Size()
			_, err = t.header()
			return err
		})
	})
	s.mu.RLock()
	defer s.mu.RUnlock()
	st.Err, st.Trouble = cmp.Or(st.Err, err), cmp.Or(s.trouble, s.unpurged)
	st.Warning, st.RewriteTime = strings.Join(s.warnings, "\n"), s.file.rewrote
	return st
}

// maxWarnings is how many warnings are kept, the last ones.
const maxWarnings = 5

// warn says what was found, or done to the file.
func (s *Store) warn(warning string) {
	s.log.Error(warning)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.warnings = append(s.warnings, warning)
	s.warnings = s.warnings[max(0, len(s.warnings)-maxWarnings):]
}

// note keeps the outcome of a write, or purge, for Status.
func (s *Store) note(of *error, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*of = err
}

// MAC returns the HMAC-SHA256 of data under a key that is derived from the
// master key and the store's id. It stands for a secret where a record must
// recognise one without holding anything that could be searched for it.
// Purpose and parts are separated: MAC("a", "bc") and MAC("ab", "c") differ.
func (s *Store) MAC(purpose string, data ...[]byte) []byte {
	return s.keys.sum(s.keys.mac, append([][]byte{[]byte(purpose)}, data...)...)
}

// Bucket is a named set of records. The name is not a secret.
type Bucket struct {
	s    *Store
	name string
}

// Bucket returns the bucket of that name. It comes to be with its first record.
func (s *Store) Bucket(name string) *Bucket { return &Bucket{s, name} }

// Load returns the record of that name and its revision; nil, 0, nil when
// there is none. A record that does not open is an error of code StoreDamaged;
// the others are not touched by that, and Swap with revision 0 replaces it.
func (b *Bucket) Load(name string) (record []byte, revision uint64, err error) {
	key := b.s.keys.recordKey(b.name, name)
	err = b.s.read(func(f *file) error {
		var raw []byte
		var last uint64
		err := f.view(func(t txn) error {
			v, err := t.record(b.name, key)
			raw, last = bytes.Clone(v), t.sequence()
			return err
		})
		if err != nil || raw == nil {
			return err
		}
		stored, opened, sequence, err := b.s.openRecord(b.name, key, raw, last)
		if err == nil && stored != name {
			err = errors.New("it has another name")
		}
		if err != nil {
			return cmp.Or(f.check(), error(b.damagedRecords(1, err)))
		}
		record, revision = opened, sequence
		return nil
	})
	return record, revision, err
}

// rangeStep is how many records Range reads in one transaction. A long one
// would keep the writer from reusing pages.
const rangeStep = 32

// Range calls fn for each record until fn returns false, in no particular
// order. fn may call the store; a record that is swapped meanwhile may be seen
// before or after. Records that do not open are left out, and counted in the
// error of code StoreDamaged that Range returns unless fn stopped it.
func (b *Bucket) Range(fn func(name string, record []byte, revision uint64) bool) error {
	var bad int
	var cause error
	var after []byte
	for {
		step, read, err := b.step(after)
		if err != nil {
			return err
		}
		for _, e := range step {
			if e.err != nil {
				bad++
				cause = e.err
			} else if !fn(e.name, e.record, e.revision) {
				return nil
			}
			after = e.key
		}
		if read < rangeStep {
			break
		}
	}
	if bad > 0 {
		return b.damagedRecords(bad, cause)
	}
	return nil
}

// opened is a record with its key, or why it does not open.
type opened struct {
	key      []byte
	name     string
	record   []byte
	revision uint64
	err      error
}

// step returns the next records of a bucket after a key, and how many there were.
func (b *Bucket) step(after []byte) (records []opened, read int, err error) {
	err = b.s.read(func(f *file) error {
		records = nil
		var step []entry
		var last uint64
		err := f.view(func(t txn) (err error) {
			step, err = t.records(b.name, after, rangeStep)
			last = t.sequence()
			return err
		})
		for _, e := range step {
			o := opened{key: e.key}
			o.name, o.record, o.revision, o.err = b.s.openRecord(b.name, e.key, e.value, last)
			records = append(records, o)
			if o.err != nil && err == nil {
				err = f.check()
			}
		}
		read = len(step)
		return err
	})
	return records, read, err
}

// openRecord opens a stored record. The caller holds the lock, or is the writer. last is the last sequence that the store
// has given out: a record with a later one was brought in from elsewhere.
func (s *Store) openRecord(bucket string, key, raw []byte, last uint64) (name string, record []byte, sequence uint64, err error) {
	d, ok := s.dataKeys[bucket]
	if !ok {
		return "", nil, 0, errors.New("its bucket has no data key")
	}
	name, record, sequence, err = s.keys.open(d, bucket, key, raw)
	if err == nil && sequence > last {
		return "", nil, 0, errors.New("its sequence was not given out yet")
	}
	return name, record, sequence, err
}

func (b *Bucket) damagedRecords(n int, err error) error {
	what := "a record"
	if n > 1 {
		what = fmt.Sprintf("%d records", n)
	}
	return &api.Error{Code: api.StoreDamaged, Err: err,
		Detail: fmt.Sprintf("%s of bucket %s in store %s cannot be opened: %v", what, b.name, b.s.path, err),
		Remedy: "a new login replaces the record; if this comes back, check the disk and who can write the file"}
}

// damaged is the error for a file that does not make sense.
func damaged(path string, err error) *api.Error {
	return &api.Error{Code: api.StoreDamaged, Err: err,
		Detail: fmt.Sprintf("store %s is damaged and was left as it is: %v", path, err),
		Remedy: moveAside(path)}
}

// failed is the error for a file that cannot be read or written, or that must
// not be.
func failed(path string, err error) *api.Error {
	e := &api.Error{Code: api.StoreFailed, Err: err,
		Detail: fmt.Sprintf("store %s: %v", path, err)}
	u, ok := errors.AsType[*unsafeError](err)
	switch {
	case ok:
		e.Code, e.Remedy = api.StoreUnsafe, u.remedy
	case errors.Is(err, fs.ErrPermission):
		e.Code, e.Remedy = api.StoreUnsafe, "start sessiond as the user that the store belongs to"
	default:
		e.Remedy = nextStep(path, err)
	}
	return e
}

// nextStep is the remedy for what the kernel says of a file; "" if it has said nothing.
func nextStep(path string, err error) string {
	no, ok := errors.AsType[syscall.Errno](err)
	for _, hidden := range []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG, syscall.EROFS, syscall.EIO} {
		if !ok && strings.HasSuffix(err.Error(), hidden.Error()) { // by bbolt, when a file has to grow
			no, ok = hidden, true
		}
	}
	switch dir := filepath.Dir(path); {
	case !ok:
		return ""
	case no == syscall.ENOSPC, no == syscall.EDQUOT:
		return "make room on the disk: df " + dir
	case no == syscall.EFBIG:
		return "start sessiond with a larger limit of file sizes: ulimit -f unlimited, or LimitFSIZE=infinity in its unit"
	case no == syscall.EMFILE, no == syscall.ENFILE:
		return "start sessiond with a larger limit of open files: ulimit -n, or LimitNOFILE= in its unit"
	case no == syscall.EROFS:
		return "have the file system written to again: findmnt -T " + dir
	default:
		return "look at the disk and its file system: findmnt -T " + dir + "; dmesg"
	}
}

func moveAside(path string) string {
	aside := path + ".old"
	for i := 2; ; i++ { // not over another one
		if _, err := os.Lstat(aside); err != nil {
			break
		}
		aside = fmt.Sprint(path, ".old", i)
	}
	return "move it aside (mv " + path + " " + aside + ") and start sessiond again: sessions are made anew, latches are forgotten"
}
