package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"github.com/sessionctl/sessionctl/api"
)

// The tree of the package comment.
var (
	bucketMeta    = []byte("meta")
	bucketKeys    = []byte("keys")
	bucketRecords = []byte("records")

	metaFormat = []byte("format")
	metaID     = []byte("id")
	metaCheck  = []byte("check")
	metaSets   = []byte("sets")
	metaStale  = []byte("stale")
	metaFile   = []byte("file")
	metaTime   = []byte("time")
)

var (
	errClosed    = errors.New("it is closed")
	errStructure = errors.New("a part of it is missing")
)

// header is what tells one store from another.
type header struct {
	format byte
	id     []byte
	check  []byte
	sets   []byte // sealed; only in what is to be written
}

// file is an open and locked bbolt file.
//
// bbolt panics on pages that make no sense, and a file that was cut short
// faults in its memory map. Both become StoreDamaged here. Such a panic can
// leave bbolt's locks taken, so the file is not touched again after one.
type file struct {
	path string
	fd   *os.File
	db   *bbolt.DB
	log  *slog.Logger

	// committed is the number of the last transaction that is known to be in the file, and
	// id is what tells it from other files of the store.
	committed atomic.Int64
	id        []byte

	rewrote time.Time // when it took another one's place; zero: it is the first

	// settled says that the last transaction in the file is known to be on the disk; the
	// writer's. See settle.
	settled bool

	// reads lets one read in at a time: nobody is then waiting for a lock of
	// bbolt's when a read panics. A read takes microseconds.
	reads sync.Mutex

	writers    atomic.Int32  // updates that have not ended
	broken     chan struct{} // closed after the first panic, or when a part was missing
	brokenOnce sync.Once
	brokenErr  *api.Error    // read only once broken is closed
	tended     chan struct{} // closed when the store has tried to heal it, see heal
}

func newFile(path string, fd *os.File, log *slog.Logger) *file {
	return &file{path: path, fd: fd, log: log, broken: make(chan struct{}), tended: make(chan struct{})}
}

// createFile makes a store that holds nothing but its header. It is complete
// and synced before it gets its name; if the name is taken by then, that file
// stands.
func createFile(path string, h header) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return failed(path, err)
	}
	defer os.Remove(tmp.Name())
	f, err := fillFile(path, tmp, h, time.Time{}, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	err = tmp.Sync()
	if err == nil { // still locked, so that nobody takes it for what a dead process has left
		err = os.Link(tmp.Name(), path)
	}
	if _, there := os.Lstat(path); there == nil && (errors.Is(err, fs.ErrExist) || errors.Is(err, fs.ErrNotExist)) {
		err = nil // somebody was quicker, and has even tidied up before this was locked
	}
	if err = errors.Join(err, f.close()); err != nil {
		return failed(path, err)
	}
	return nil
}

// fillFile makes a store of an empty file that is to get the name path: its header, and
// a bucket of records for each sealed data key, and when it has taken the place of another.
// It is locked, but what is written to it is not synced. An error closes it.
func fillFile(path string, empty *os.File, h header, rewrote time.Time, wrapped map[string][]byte, log *slog.Logger) (*file, error) {
	f := newFile(path, empty, log)
	f.settled = true // it is synced as a whole
	err := guard(func() (err error) {
		f.db, err = bbolt.Open(empty.Name(), 0o600, &bbolt.Options{
			OpenFile: func(string, int, fs.FileMode) (*os.File, error) { return empty, nil }, NoSync: true,
			Timeout: time.Second, // nobody else has it locked, unless he means harm
		})
		if err != nil {
			return err
		}
		return f.recognise()
	})
	if err != nil {
		empty.Close() // if bbolt has not
		return nil, failed(path, err)
	}
	err = f.update(func(t txn) (bool, error) {
		meta, err := t.tx.CreateBucket(bucketMeta)
		for _, name := range [][]byte{bucketKeys, bucketRecords} {
			if err == nil {
				_, err = t.tx.CreateBucket(name)
			}
		}
		if err == nil {
			f.id = newID()
			err = errors.Join(meta.Put(metaFormat, []byte{h.format}), meta.Put(metaID, h.id), meta.Put(metaFile, f.id), meta.Put(metaCheck, h.check), meta.Put(metaSets, h.sets))
		}
		if err == nil && !rewrote.IsZero() {
			err = meta.Put(metaTime, binary.BigEndian.AppendUint64(nil, uint64(rewrote.Unix())))
		}
		for bucket, sealed := range wrapped {
			err = errors.Join(err, t.addBucket(bucket, sealed))
		}
		return true, err
	})
	if err != nil {
		return nil, errors.Join(err, f.close())
	}
	f.rewrote = rewrote
	return f, nil
}

// errRenamed is for a file that has lost its name while its lock was waited for: whoever
// had it has written it anew.
var errRenamed = errors.New("another file has its name now")

// openFile opens an existing store and locks it.
func openFile(path string, lockTimeout time.Duration, probe func(*os.File) error, log *slog.Logger) (*file, error) {
	for end := time.Now().Add(lockTimeout); ; {
		f, err := tryFile(path, max(time.Until(end), lockPause), probe, log)
		if !errors.Is(err, errRenamed) {
			return f, err
		}
		if !time.Now().Before(end) {
			return nil, locked(path)
		}
	}
}

func tryFile(path string, lockTimeout time.Duration, probe func(*os.File) error, log *slog.Logger) (*file, error) {
	f := newFile(path, nil, log)
	if probe != nil {
		if err := probeFile(path, lockTimeout, probe); err != nil {
			return nil, err
		}
	}
	err := guard(func() (err error) {
		f.db, err = bbolt.Open(path, 0o600, &bbolt.Options{
			Timeout: lockTimeout,
			OpenFile: func(string, int, fs.FileMode) (*os.File, error) {
				f.fd, err = openOwn(path, os.O_RDWR)
				if err != nil {
					return nil, failed(path, err)
				}
				if info, err := f.fd.Stat(); err == nil && info.Size() == 0 {
					f.fd.Close() // bbolt would take it for a new one
					return nil, damaged(path, errors.New("it is empty"))
				}
				return f.fd, nil
			},
		})
		if err != nil {
			return err
		}
		return f.recognise()
	})
	if err == nil {
		var named bool
		if named, err = isNamed(f.fd, path); err == nil && named {
			return f, nil
		}
		f.close()
		if err != nil {
			return nil, failed(path, err)
		}
		return nil, errRenamed
	}
	if known, ok := errors.AsType[*api.Error](err); ok {
		return nil, known
	}
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, locked(path)
	}
	if _, ok := errors.AsType[*panicError](err); ok {
		f.release()
	} else if _, ok := errors.AsType[syscall.Errno](err); ok {
		return nil, failed(path, err)
	}
	return nil, damaged(path, err)
}

// recognise takes note of what tells the file from one that is written over it.
func (f *file) recognise() error {
	return f.db.View(func(tx *bbolt.Tx) error {
		f.committed.Store(int64(tx.ID()))
		f.id = txn{tx}.file()
		f.rewrote = txn{tx}.time()
		return nil
	})
}

// probeFile has a store looked at before bbolt maps it: some damage ends the process
// that does.
func probeFile(path string, lockTimeout time.Duration, probe func(*os.File) error) error {
	fd, err := openOwn(path, os.O_RDWR)
	if err != nil {
		return failed(path, err)
	}
	defer fd.Close()
	for end := time.Now().Add(lockTimeout); ; <-time.After(lockPause) {
		err := unix.Flock(int(fd.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !time.Now().Before(end) {
			return locked(path)
		}
	}
	if named, err := isNamed(fd, path); err != nil {
		return failed(path, err)
	} else if !named {
		return errRenamed
	}
	if err := probe(fd); err != nil {
		return damaged(path, err)
	}
	return nil
}

// lockPause is how long is waited before a lock is tried again.
const lockPause = 50 * time.Millisecond

// locked is the error for a store that another process has.
func locked(path string) *api.Error {
	e := &api.Error{Code: api.StoreLocked,
		Detail: fmt.Sprintf("store %s is in use by another process", path),
		Remedy: "use the agent that runs already, or find it with: fuser -v " + path}
	if pid, who := lockHolder(path); pid != 0 {
		e.Detail = fmt.Sprintf("store %s is in use by %s", path, who)
		e.Remedy = fmt.Sprintf("use the agent that runs already, or stop it: kill %d", pid)
	}
	return e
}

// panicError is a panic of bbolt, or a fault in the memory map.
type panicError struct{ value any }

func (e *panicError) Error() string {
	if _, fault := e.value.(runtime.Error); fault {
		return "it was cut off, or its pages make no sense"
	}
	return fmt.Sprint(e.value)
}

// raw returns the panic in an error, for the log.
func raw(err error) any {
	if p, ok := errors.AsType[*panicError](err); ok {
		return p.value
	}
	return err
}

// guard calls fn and turns its panics and memory faults into a *panicError.
func guard(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if v := recover(); v != nil {
			err = &panicError{v}
		}
	}()
	return fn()
}

// release gives up the lock and the file after a panic. The memory map, which
// only bbolt could undo, stays; it alone would keep the lock. The descriptor of a
// writer that was left behind stays its own, or it could write to another file that
// gets the number; the collector closes it.
func (f *file) release() error {
	err := syscall.Flock(int(f.fd.Fd()), syscall.LOCK_UN)
	if f.writers.Load() > 0 {
		return err
	}
	return errors.Join(err, f.fd.Close())
}

func (f *file) close() error {
	f.reads.Lock()
	defer f.reads.Unlock()
	var err error
	if f.isBroken() {
		err = f.release()
	} else {
		err = guard(f.db.Close)
	}
	if err != nil {
		return failed(f.path, err)
	}
	return nil
}

// damage is the error of every call after a panic.
func (f *file) damage() error {
	<-f.broken
	return f.brokenErr
}

// result gives an error its code.
func (f *file) result(err error) error {
	if _, ok := errors.AsType[*panicError](err); ok || errors.Is(err, errStructure) {
		f.brokenOnce.Do(func() {
			f.brokenErr = damaged(f.path, err)
			f.log.Error("the store is damaged", "store", f.path, "error", err, "raw", fmt.Sprintf("%.200v", raw(err)))
			close(f.broken)
		})
		return f.damage()
	}
	if known, ok := errors.AsType[*api.Error](err); ok {
		return known
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, bolterrors.ErrDatabaseNotOpen):
		return failed(f.path, errClosed)
	}
	return failed(f.path, err)
}

// isBroken tells whether the file is not to be touched any more.
func (f *file) isBroken() bool {
	select {
	case <-f.broken:
		return true
	default:
		return false
	}
}

// isNamed tells whether a file is the one that the path leads to. It asks for nothing but
// that: who asks for a file's times makes its next write dearer (Linux 6.13 and later, see
// "multigrain timestamps" in its documentation).
func isNamed(f *os.File, path string) (bool, error) {
	var at, own unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_INO, &at)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return false, nil
	}
	if err == nil {
		err = unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_INO, &own)
	}
	return at.Ino == own.Ino && at.Dev_major == own.Dev_major && at.Dev_minor == own.Dev_minor, err
}

// errOverwritten is for a file whose last transaction is not the one that was committed
// last, nor the next one.
var errOverwritten = errors.New("something else was written over it while it was in use")

// view calls fn in a read transaction. What fn gets from it ends with it.
func (f *file) view(fn func(txn) error) error {
	f.reads.Lock()
	defer f.reads.Unlock()
	if f.isBroken() {
		return f.damage()
	}
	return f.result(guard(func() error {
		before := f.committed.Load()
		return f.db.View(func(tx *bbolt.Tx) error {
			if id := int64(tx.ID()); id < before || id > f.committed.Load()+1 {
				panic(errOverwritten)
			}
			return fn(txn{tx})
		})
	}))
}

// check has the file's own id compared, which view does not for each read.
func (f *file) check() error {
	return f.view(func(t txn) error {
		if !bytes.Equal(t.file(), f.id) {
			panic(errOverwritten)
		}
		return nil
	})
}

var errUnchanged = errors.New("nothing to commit")

// update calls fn in a write transaction, which is committed and synced if fn
// says that it changed something. A read that panics may have left a lock taken that
// bbolt's writer waits for in vain: so it has a goroutine of its own, which is then left
// behind, and fn with it if it was not called yet.
func (f *file) update(fn func(txn) (changed bool, err error)) error {
	if f.isBroken() {
		return f.damage()
	}
	var running sync.Mutex
	left := false
	done := make(chan error, 1)
	f.writers.Add(1)
	go f.write(done, func(t txn) (bool, error) {
		running.Lock()
		defer running.Unlock()
		if left {
			return false, nil
		}
		return fn(t)
	})
	var err error
	select {
	case err = <-done:
	case <-f.broken:
		running.Lock()
		defer running.Unlock()
		left = true
		return f.damage()
	}
	if errors.Is(err, errUnchanged) {
		return nil
	}
	return f.result(err)
}

// write is the goroutine of an update.
func (f *file) write(done chan<- error, fn func(txn) (changed bool, err error)) {
	err := guard(func() error {
		if err := f.settle(); err != nil {
			return err
		}
		return f.db.Update(func(tx *bbolt.Tx) error {
			id := int64(tx.ID())
			if id != f.committed.Load()+1 || !bytes.Equal(txn{tx}.file(), f.id) {
				panic(errOverwritten)
			}
			changed, err := fn(txn{tx})
			if err == nil && !changed {
				return errUnchanged
			}
			if err == nil {
				f.settled = f.db.NoSync
				tx.OnCommit(func() {
					f.settled = true
					f.committed.Store(id)
				})
			}
			return err
		})
	})
	f.writers.Add(-1)
	done <- err
}

// settle writes the transaction that the file shows as its last one to the disk, if that
// is not known to be there: its sync has failed, or whoever wrote it has died before it.
// The disk may still have the one before it, whose pages the next one is free to write
// over. A failed sync has marked pages as written that are not, so they are written again.
func (f *file) settle() error {
	if f.settled {
		return nil
	}
	metas := make([]byte, 2*f.db.Info().PageSize)
	if _, err := f.fd.ReadAt(metas, 0); err == io.EOF {
		panic(io.ErrUnexpectedEOF) // it was cut off
	} else if err != nil {
		return err
	}
	if _, err := f.fd.WriteAt(metas, 0); err != nil {
		return err
	}
	if err := unix.Fdatasync(int(f.fd.Fd())); err != nil {
		return err
	}
	f.settled = true
	return nil
}

// txn is a transaction that knows the tree.
type txn struct{ tx *bbolt.Tx }

func (t txn) root(name []byte) (*bbolt.Bucket, error) {
	if b := t.tx.Bucket(name); b != nil {
		return b, nil
	}
	return nil, fmt.Errorf("bucket %s: %w", name, errStructure)
}

func (t txn) header() (header, error) {
	meta, err := t.root(bucketMeta)
	if err != nil {
		return header{}, err
	}
	version, id, check := meta.Get(metaFormat), meta.Get(metaID), meta.Get(metaCheck)
	if len(version) != 1 || len(id) != idSize || len(check) == 0 {
		return header{}, fmt.Errorf("header: %w", errStructure)
	}
	return header{format: version[0], id: bytes.Clone(id), check: bytes.Clone(check)}, nil
}

// file returns what tells the file from others of the store, one of which may have been
// written over it. Nil is before its first transaction.
func (t txn) file() []byte {
	if meta := t.tx.Bucket(bucketMeta); meta != nil {
		return bytes.Clone(meta.Get(metaFile))
	}
	return nil
}

// time returns when the file took the place of another, zero if it did not.
func (t txn) time() time.Time {
	if meta := t.tx.Bucket(bucketMeta); meta != nil {
		if b := meta.Get(metaTime); len(b) == 8 {
			return time.Unix(int64(binary.BigEndian.Uint64(b)), 0)
		}
	}
	return time.Time{}
}

// sequence returns the last sequence given out.
func (t txn) sequence() uint64 {
	if meta := t.tx.Bucket(bucketMeta); meta != nil {
		return meta.Sequence()
	}
	return 0
}

func (t txn) setSequence(last uint64) error {
	meta, err := t.root(bucketMeta)
	if err != nil {
		return err
	}
	return meta.SetSequence(last)
}

func (t txn) nextSequence() (uint64, error) {
	meta, err := t.root(bucketMeta)
	if err != nil {
		return 0, err
	}
	return meta.NextSequence()
}

// sets returns a copy of the sealed set hashes, nil if there are none.
func (t txn) sets() []byte {
	if meta := t.tx.Bucket(bucketMeta); meta != nil {
		return bytes.Clone(meta.Get(metaSets))
	}
	return nil
}

func (t txn) putSets(sealed []byte) error {
	meta, err := t.root(bucketMeta)
	if err != nil {
		return err
	}
	return meta.Put(metaSets, sealed)
}

// stale tells whether the file holds something of records that were removed.
func (t txn) stale() bool {
	meta := t.tx.Bucket(bucketMeta)
	return meta != nil && meta.Get(metaStale) != nil
}

func (t txn) putStale() error {
	meta, err := t.root(bucketMeta)
	if err != nil {
		return err
	}
	return meta.Put(metaStale, []byte{1})
}

// buckets returns the names of the buckets of records.
func (t txn) buckets() (names []string, err error) {
	records, err := t.root(bucketRecords)
	if err != nil {
		return nil, err
	}
	return names, records.ForEachBucket(func(name []byte) error {
		names = append(names, string(name))
		return nil
	})
}

// wrappedKeys returns the sealed data keys by bucket.
func (t txn) wrappedKeys() (map[string][]byte, error) {
	keys, err := t.root(bucketKeys)
	if err != nil {
		return nil, err
	}
	m := make(map[string][]byte)
	return m, keys.ForEach(func(k, v []byte) error {
		m[string(k)] = bytes.Clone(v)
		return nil
	})
}

// addBucket makes a bucket of records with its sealed data key.
func (t txn) addBucket(bucket string, wrapped []byte) error {
	keys, err := t.root(bucketKeys)
	if err != nil {
		return err
	}
	records, err := t.root(bucketRecords)
	if err != nil {
		return err
	}
	if _, err := records.CreateBucketIfNotExists([]byte(bucket)); err != nil {
		return err
	}
	return keys.Put([]byte(bucket), wrapped)
}

// bucket returns a bucket of records, nil if it does not exist.
func (t txn) bucket(name string) (*bbolt.Bucket, error) {
	records, err := t.root(bucketRecords)
	if err != nil {
		return nil, err
	}
	return records.Bucket([]byte(name)), nil
}

// record returns a stored record, nil if there is none.
func (t txn) record(bucket string, key []byte) ([]byte, error) {
	b, err := t.bucket(bucket)
	if b == nil {
		return nil, err
	}
	return b.Get(key), nil
}

// entry is a stored record with its key.
type entry struct{ key, value []byte }

// records returns copies of up to limit records whose keys follow after.
func (t txn) records(bucket string, after []byte, limit int) ([]entry, error) {
	var entries []entry
	return entries, t.each(bucket, after, limit, func(k, v []byte) {
		entries = append(entries, entry{bytes.Clone(k), bytes.Clone(v)})
	})
}

// each calls fn for up to limit records whose keys follow after.
func (t txn) each(bucket string, after []byte, limit int, fn func(key, value []byte)) error {
	b, err := t.bucket(bucket)
	if b == nil {
		return err
	}
	c := b.Cursor()
	k, v := c.Seek(after)
	if after != nil && bytes.Equal(k, after) {
		k, v = c.Next()
	}
	for n := 0; k != nil && n < limit; k, v = c.Next() {
		fn(k, v)
		n++
	}
	return nil
}

// put stores a record in a bucket that exists.
func (t txn) put(bucket string, key, value []byte) error {
	b, err := t.bucket(bucket)
	if err != nil {
		return err
	}
	if b == nil {
		return fmt.Errorf("bucket %s: %w", bucket, errStructure)
	}
	return b.Put(key, value)
}

// remove removes a record that exists.
func (t txn) remove(bucket string, key []byte) error {
	b, err := t.bucket(bucket)
	if b == nil {
		return err
	}
	return b.Delete(key)
}
