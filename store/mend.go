package store

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sessionctl/sessionctl/api"
)

// maxAside is how many damaged files are kept.
const maxAside = 3

// Mend is Open for an agent that has to serve: a store that is damaged is put aside, as
// PATH.bad-TIME, of which the last three are kept, and in its place comes a new one with
// all records that can be saved from it. Status tells.
//
// What was removed a moment before the damage may be back, as old versions of records
// may: who needs a record to be the last one cannot have that of a damaged file.
func Mend(path string, o Options) (*Store, error) {
	s, err := Open(path, o)
	if api.CodeOf(err) != api.StoreDamaged {
		return s, err
	}
	warning, merr := mend(filepath.Clean(path), o, err)
	if merr != nil {
		return nil, merr
	}
	if o.Log != nil {
		o.Log.Error(warning)
	}
	if s, err = Open(path, o); err == nil {
		s.mended = warning
	}
	return s, err
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
	info, err := bad.Stat()
	if err != nil {
		return "", failed(path, err)
	}
	master, _, err := o.Key.load(false)
	if err != nil {
		return "", err
	}
	defer clear(master)
	keys, saved, err := salvageWith(bad, info.Size(), master)
	switch {
	case errors.Is(err, errOtherKey):
		return "", &api.Error{Code: api.StoreKeyMissing, Err: err,
			Detail: fmt.Sprintf("store %s is damaged, and %v, of %s", path, err, o.Key.Source()),
			Remedy: "bring back the key that the store was made with, or " + moveAside(path)}
	case err != nil:
		return "", failed(path, err)
	}
	defer func() {
		for _, r := range saved {
			clear(r.record)
		}
	}()
	aside, err := asideName(path, time.Now().UTC())
	if err != nil {
		return "", failed(path, err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return "", failed(path, err)
	}
	name := tmp.Name()
	defer os.Remove(name)
	next, err := fillSaved(path, tmp, keys, saved)
	if err != nil {
		return "", err
	}
	// The damaged file has both names for a moment, so that there is a store at any time.
	err = errors.Join(next.fd.Sync(), os.Link(path, aside))
	if err == nil {
		err = os.Rename(name, path)
	}
	if err = errors.Join(err, next.close(), syncDir(filepath.Dir(path))); err != nil {
		return "", failed(path, err)
	}
	forgetAside(path)
	why := api.AsError(damage).Err
	return fmt.Sprintf("store %s was damaged (%s): it was put aside as %s, and %d records were saved from it; what is missing is made anew, but a refused password may be tried once more",
		path, strings.TrimSpace(api.Clean(fmt.Sprint(why))), aside, len(saved)), nil
}

// salvageWith finds the records that open with a master key, and the keys of the store
// that they were of; those of a new one, if there is nothing.
func salvageWith(f *os.File, size int64, master []byte) (*keyring, []salvaged, error) {
	var best *keyring
	var saved []salvaged
	for _, id := range salvageID(f, size) {
		k, err := newKeyring(master, id)
		if err != nil {
			return nil, nil, err
		}
		records, _ := salvage(f, size, k) // an error says that there may be more
		if len(records) > len(saved) || best == nil {
			best, saved = k, records
		}
	}
	if len(saved) > 0 {
		return best, saved, nil
	}
	// Where there are sealed data keys, and not one of them opens, it is the master key
	// that is wrong, and not only the file.
	sealed := 0
	if err := scanElements(f, size, func(_, value []byte) {
		if len(value) == wrappedSize {
			sealed++
		}
	}); err == nil && sealed > 0 {
		if opened := best != nil && opens(f, size, best); !opened {
			return nil, nil, errOtherKey
		}
	}
	k, err := newKeyring(master, newID())
	return k, nil, err
}

// errOtherKey is for a master key that opens nothing of a file.
var errOtherKey = errors.New("nothing in it opens with this master key")

// wrappedSize is the size of a sealed data key.
const wrappedSize = 4 + 12 + keySize + 16

// opens reports whether a data key of a damaged file opens.
func opens(f *os.File, size int64, k *keyring) (found bool) {
	_ = scanElements(f, size, func(name, value []byte) {
		if !found && len(value) == wrappedSize {
			_, err := k.unwrap(string(name), value)
			found = err == nil
		}
	})
	return found
}

// fillSaved makes a store of an empty file, with saved records. It is locked, and not
// synced.
func fillSaved(path string, empty *os.File, k *keyring, saved []salvaged) (*file, error) {
	data, wrapped := make(map[string]dataKey), make(map[string][]byte)
	generation := uint32(time.Now().Unix()) // none of those before, whatever they were
	var last uint64
	for _, r := range saved {
		last = max(last, r.sequence)
		if wrapped[r.bucket] != nil {
			continue
		}
		var err error
		if data[r.bucket], wrapped[r.bucket], err = k.newDataKey(r.bucket, generation); err != nil {
			return nil, failed(path, err)
		}
	}
	next, err := fillFile(path, empty, k.header(format), wrapped, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	all := sets{}
	for step := range slices.Chunk(saved, rewriteStep) {
		err = errors.Join(err, next.update(func(t txn) (bool, error) {
			for _, r := range step {
				sealed := k.seal(data[r.bucket], r.bucket, r.key, r.name, r.sequence, r.record)
				if err := t.put(r.bucket, r.key, sealed); err != nil {
					return false, err
				}
				all.put(k, r.bucket, r.key, sealed)
			}
			return true, errors.Join(t.setSequence(last), t.putSets(k.sealSets(all, last)))
		}))
	}
	if err != nil {
		return nil, errors.Join(err, next.close())
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

// forgetAside removes all but the last damaged files.
func forgetAside(path string) {
	names, err := filepath.Glob(globQuoted(path) + ".bad-*")
	if err != nil {
		return
	}
	slices.Sort(names) // by time
	for _, name := range names[:max(0, len(names)-maxAside)] {
		os.Remove(name)
	}
}
