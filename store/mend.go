package store

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sessionctl/sessionctl/api"
)

// maxAside is how many damaged files are kept.
const maxAside = 3

// Mend is Open for an agent that has to serve, and goes on to serve. A store that is
// damaged, now or later, is put aside, as PATH.bad-TIME, of which the last three are
// kept, and in its place comes a new one with all records that can be saved from it.
// Calls wait for that. A file that is found removed or replaced by another is written
// anew, and what has its place is put aside. Status tells.
//
// What was removed a moment before the damage may be back, as old versions of records
// may: who needs a record to be the last one cannot have that of a damaged file.
func Mend(path string, o Options) (*Store, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s, err := open(path, o)
	warning := ""
	if api.CodeOf(err) == api.StoreDamaged {
		if warning, err = mend(filepath.Clean(path), o, err); err == nil {
			o.Probe = nil // who has just written it knows
			s, err = open(path, o)
		}
	}
	if err != nil {
		return nil, err
	}
	s.heals = true
	if warning != "" {
		s.warn(warning)
	}
	go s.write()
	return s, nil
}

// mend puts a new store in the place of the damaged one, and says so.
func mend(path string, o Options, damage error) (warning string, err error) {
	bad, err := openOwn(path, os.O_RDWR)
	if err != nil {
		return "", failed(path, err)
	}
	defer bad.Close()
	if unix.Flock(int(bad.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return "", locked(path)
	}
	if named, err := isNamed(bad, path); err != nil || !named { // another agent was quicker
		return "", errors.Join(locked(path), err)
	}
	info, err := bad.Stat()
	if err != nil {
		return "", failed(path, err)
	}
	master, _, err := o.Key.load(false)
	if err != nil {
		return "", err
	}
	defer master.free()
	keys, saved, err := salvageWith(bad, info.Size(), master.bytes)
	switch {
	case errors.Is(err, errOtherKey):
		return "", &api.Error{Code: api.StoreKeyMissing, Err: err,
			Detail: fmt.Sprintf("store %s is damaged, and %v, of %s", path, err, o.Key.Source()),
			Remedy: "bring back the key that the store was made with, or " + moveAside(path)}
	case err != nil:
		return "", failed(path, err)
	}
	next, warning, err := replaceDamaged(path, bad, damage, keys, saved, 0, o.Log)
	if err != nil {
		return "", err
	}
	if err = errors.Join(next.close(), syncDir(filepath.Dir(path))); err != nil {
		return "", failed(path, err)
	}
	return warning, nil
}

// replaceDamaged puts a new store with the saved records, which it clears, in the place
// of the damaged one, which is put aside. No sequence up to last is given out again. The
// new file's name is not synced.
func replaceDamaged(path string, bad *os.File, damage error, k *keyring, saved []salvaged, last uint64, log *slog.Logger) (next rewritten, warning string, err error) {
	defer func() {
		for _, r := range saved {
			clear(r.record)
		}
	}()
	next, aside, err := replaceFile(path, bad, true, func(empty *os.File) (rewritten, error) {
		return fillSaved(path, empty, k, saved, last, log)
	})
	if err != nil {
		return rewritten{}, "", err
	}
	kept := "it was put aside as " + aside
	if aside == "" {
		kept = "it had no name any more"
	}
	why := api.AsError(damage).Err
	return next, fmt.Sprintf("store %s was damaged (%s): %s, and %d records were saved from it; what is missing is made anew, but a refused password may be tried once more",
		path, strings.TrimSpace(api.Clean(fmt.Sprint(why))), kept, len(saved)), nil
}

// putInPlace gives a file the name path. What has that name now is kept, under the name
// aside, unless it is own, and own is not damaged.
func putInPlace(name, path string, own *os.File, damaged bool) (aside string, err error) {
	there, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", os.Rename(name, path)
	case err != nil:
		return "", err
	}
	mine, err := own.Stat()
	if err != nil {
		return "", err
	}
	if same := os.SameFile(there, mine); same && !damaged {
		return "", os.Rename(name, path)
	} else if !same && there.Mode().IsRegular() && isLocked(path) {
		return "", locked(path)
	}
	if aside, err = asideName(path, time.Now().UTC()); err != nil {
		return "", err
	}
	// It has both names for a moment, so that there is a store at any time.
	move, back := os.Link, func() error { return os.Remove(aside) }
	if there.IsDir() {
		move, back = os.Rename, func() error { return os.Rename(aside, path) }
	}
	if err := move(path, aside); err != nil {
		return "", err
	}
	if err := os.Rename(name, path); err != nil {
		return "", errors.Join(err, back())
	}
	forgetAside(path, aside)
	return aside, nil
}

// isLocked tells whether a process has a lock on the file.
func isLocked(path string) bool {
	f, _, err := openRegular(path, os.O_RDONLY)
	if err != nil { // then nobody knows
		return true
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil
}

// salvageWith finds the records that open with a master key, and the keys of the store
// that they were of; those of a new one, if there is nothing.
func salvageWith(f *os.File, size int64, master []byte) (*keyring, []salvaged, error) {
	k, err := keyringOf(f, master)
	if err != nil {
		return nil, nil, err
	}
	if k == nil {
		k, err = newKeyring(master, newID())
		return k, nil, err
	}
	saved, _ := salvage(f, size, k) // an error says that there may be more
	return k, saved, nil
}

// errOtherKey is for a master key that opens nothing of a file.
var errOtherKey = errors.New("nothing in it opens with this master key")

// wrappedSize is the size of a sealed data key.
const wrappedSize = 4 + 12 + keySize + 16

// keyringOf returns the keys by which sealed data keys in a file open, whatever the file
// says of itself: its id may have lost a bit. It is nil if there is no data key, and
// errOtherKey if there is and none opens.
func keyringOf(f *os.File, master []byte) (*keyring, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	ids := salvageID(f, info.Size())
	best, sealed, err := keyringAmong(ids, f, info.Size(), master)
	if best != nil || sealed == 0 || err != nil || len(ids) == 0 {
		return best, err
	}
	var near [][]byte
	for bit := range 8 * idSize {
		other := bytes.Clone(ids[0])
		other[bit/8] ^= 1 << (bit % 8)
		near = append(near, other)
	}
	best, _, err = keyringAmong(near, f, info.Size(), master)
	if best == nil && err == nil {
		err = errOtherKey
	}
	return best, err
}

// maxSealed bounds the data keys that are tried. A store has as many as buckets, and
// older versions of them.
const maxSealed = 1024

// keyringAmong returns the keys of the id for which most data keys in a file open, nil if
// none does, and how many there are.
func keyringAmong(ids [][]byte, f *os.File, size int64, master []byte) (best *keyring, sealed int, err error) {
	var rings []*keyring
	for _, id := range ids {
		k, err := newKeyring(master, id)
		if err != nil {
			return nil, 0, err
		}
		rings = append(rings, k)
	}
	opened := make([]int, len(rings))
	seen := make(map[string]bool) // each is there many times
	_ = scanElements(f, size, func(name, value []byte) {
		// A record can be as long, but its key is not.
		if len(value) != wrappedSize || len(name) == sha256.Size || len(seen) >= maxSealed || seen[string(value)] {
			return
		}
		seen[string(value)] = true
		for i, k := range rings {
			if _, err := k.unwrapAny(string(name), value); err == nil {
				opened[i]++
			}
		}
	})
	for i, n := range opened {
		if n > 0 && n == slices.Max(opened) {
			return rings[i], len(seen), nil
		}
	}
	return nil, len(seen), nil
}

// fillSaved makes a store of an empty file, with saved records, which has given out last
// or the last of theirs. It is locked, and not synced.
func fillSaved(path string, empty *os.File, k *keyring, saved []salvaged, last uint64, log *slog.Logger) (next rewritten, err error) {
	next = rewritten{keys: make(map[string]dataKey), stored: sets{}, last: last}
	wrapped := make(map[string][]byte)
	generation := uint32(time.Now().Unix()) // none of those before, whatever they were
	for _, r := range saved {
		next.last = max(next.last, r.sequence)
		if wrapped[r.bucket] != nil {
			continue
		}
		if next.keys[r.bucket], wrapped[r.bucket], err = k.newDataKey(r.bucket, generation); err != nil {
			return rewritten{}, failed(path, errors.Join(err, empty.Close()))
		}
	}
	if next.file, err = fillFile(path, empty, k.header(format), time.Now(), wrapped, log); err != nil {
		return rewritten{}, err
	}
	for step := range slices.Chunk(saved, rewriteStep) {
		if err == nil {
			err = next.update(func(t txn) (bool, error) {
				for _, r := range step {
					sealed := k.seal(next.keys[r.bucket], r.bucket, r.key, r.name, r.sequence, r.record)
					if err := t.put(r.bucket, r.key, sealed); err != nil {
						return false, err
					}
					next.stored.put(k, r.bucket, r.key, sealed)
				}
				return true, nil
			})
		}
	}
	if err == nil {
		err = next.seal(k)
	}
	if err != nil {
		return rewritten{}, errors.Join(err, next.close())
	}
	return next, nil
}

// asideName returns a name for a damaged file that is free.
func asideName(path string, now time.Time) (string, error) {
	name := path + ".bad-" + now.Format("20060102T150405Z")
	for i := range 100 {
		free := name
		if i > 0 {
			free = fmt.Sprintf("%s-%d", name, i)
		}
		if _, err := os.Lstat(free); errors.Is(err, os.ErrNotExist) {
			return free, nil
		}
	}
	return "", errors.New("too many damaged files are kept beside it")
}

// asidePattern is of the names that asideName gives.
var asidePattern = regexp.MustCompile(`\.bad-\d{8}T\d{6}Z(-\d+)?$`)

// forgetAside removes all but the last damaged files: this one, and those that were put
// aside last, which is when they got their names.
func forgetAside(path, last string) {
	names, err := filepath.Glob(globQuoted(path) + ".bad-*")
	if err != nil {
		return
	}
	when := make(map[string]int64)
	for _, name := range names {
		var st unix.Stat_t
		if name != last && asidePattern.MatchString(name) && unix.Lstat(name, &st) == nil {
			when[name] = st.Ctim.Nano()
		}
	}
	others := slices.SortedFunc(maps.Keys(when), func(a, b string) int { return cmp.Compare(when[a], when[b]) })
	for _, name := range others[:max(0, len(others)-(maxAside-1))] {
		os.Remove(name)
	}
}
