package store

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/sessionctl/sessionctl/api"
)

// healPause is how long is waited until healing is tried again.
const healPause = 2 * time.Second

// Healed tells, after a damaged file was replaced, that records may be gone, or others
// back: who knows better writes them again.
func (s *Store) Healed() <-chan struct{} { return s.healed }

// inPlace sees to it that what the writer is about to write will be found at the next
// start: in a file that makes sense, with the store's name.
func (s *Store) inPlace() error {
	if s.file.isBroken() && !s.heal() {
		return s.file.damage()
	}
	named, err := isNamed(s.file.fd, s.path)
	if err != nil {
		return failed(s.path, err)
	}
	if !named {
		if err := s.reclaim(); err != nil {
			return err
		}
	}
	return s.syncName()
}

// damage returns what is ready when the file is damaged, and can be tried to be healed.
func (s *Store) damage() <-chan struct{} {
	if !s.heals || s.retry != nil {
		return nil
	}
	return s.file.broken
}

// heal puts a new file in the place of one that has turned out to be damaged, and
// reports whether it has.
func (s *Store) heal() bool {
	if s.damage() == nil {
		return false
	}
	bad := s.file
	err := s.replace(bad)
	if err != nil {
		if s.unhealed == nil || s.unhealed.Error() != err.Error() {
			s.log.Warn("the damaged store could not be mended yet, which is tried again", "store", s.path, "error", err)
		}
		s.retry = time.After(healPause)
	}
	s.unhealed = err
	select {
	case <-bad.tended:
	default:
		close(bad.tended)
	}
	return s.file != bad
}

func (s *Store) replace(bad *file) error {
	info, err := bad.fd.Stat()
	if err != nil {
		return failed(s.path, err)
	}
	if err := s.keyed(); err != nil {
		return err
	}
	saved, _ := salvage(bad.fd, info.Size(), s.keys) // an error says that there may be more
	next, warning, err := replaceDamaged(s.path, bad.fd, bad.damage(), s.keys, saved, s.last, s.log)
	if err != nil {
		return err
	}
	s.warn(warning)
	select {
	case s.healed <- struct{}{}:
	default: // nobody has asked since the last time
	}
	if err := s.use(next); err != nil { // but it is in use
		s.log.Warn("the mended store is not on the disk yet", "store", s.path, "error", err)
	}
	return nil
}

// reclaim writes the store anew under its name, which the file does not have any more.
func (s *Store) reclaim() error {
	if !s.heals {
		return failed(s.path, errors.New("it was removed, or replaced, while it was in use"))
	}
	if err := s.keyed(); err != nil {
		return err
	}
	aside, err := s.rewrite()
	if err != nil {
		return err
	}
	what := "removed"
	if aside != "" {
		what = "replaced by another, which was put aside as " + aside + ","
	}
	s.warn(fmt.Sprintf("store %s was %s while it was in use: it was written anew, with all of its %d records", s.path, what, s.sets.records()))
	return nil
}

// keyed sees to it that a new file can be put into the store's directory, and could be
// opened there at the next start.
func (s *Store) keyed() error {
	sum, err := s.key.sum()
	gone := errors.Is(err, fs.ErrNotExist)
	if err != nil && !gone {
		return s.key.missing(err)
	}
	if gone || sum != s.keySum {
		what := "is gone with it"
		if !gone {
			what = "is another one now"
		}
		return &api.Error{Code: api.StoreKeyMissing, Err: err,
			Detail: fmt.Sprintf("store %s was removed or damaged while it was in use, and the %s %s", s.path, s.key.Source(), what),
			Remedy: "bring that file back; without it the agent's next start makes a new key and a new store"}
	}
	dir := filepath.Dir(s.path)
	if err := ensureDir(dir); err != nil {
		return failed(s.path, err)
	}
	if err := syncParents(dir); err != nil {
		return failed(s.path, err)
	}
	return nil
}
