package store

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// unsafeError is a file or directory that others may have had their hands on.
type unsafeError struct{ what, remedy string }

func (e *unsafeError) Error() string { return e.what }

// ensureDir makes a directory with mode 0700 unless it exists, and makes sure
// that nobody but root and this user can put a file into it.
func ensureDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil && !errors.Is(err, syscall.ENOTDIR) { // as is said below
		return err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	uid := info.Sys().(*syscall.Stat_t).Uid
	switch {
	case !info.IsDir():
		return &unsafeError{dir + " is not a directory",
			"keep it in a directory of your own, mode 0700: sessiond --store FILE"}
	case uid != 0 && int(uid) != os.Geteuid():
		return &unsafeError{fmt.Sprintf("directory %s belongs to uid %d", dir, uid),
			"keep it in a directory of your own, mode 0700: sessiond --store FILE"}
	case info.Mode().Perm()&0o022 != 0:
		return &unsafeError{fmt.Sprintf("directory %s can be written by others (mode %04o)", dir, info.Mode().Perm()),
			"keep it in a directory of your own, mode 0700: sessiond --store FILE"}
	}
	return nil
}

// syncParents writes the names that lead to a directory to the disk, as far up as this
// user can have made them. Whoever made them may have died before seeing to that.
func syncParents(dir string) error {
	for parent := filepath.Dir(dir); unix.Access(parent, unix.W_OK) == nil; parent = filepath.Dir(parent) {
		if err := syncDir(parent); err != nil || parent == filepath.Dir(parent) {
			return err
		}
	}
	return nil
}

// syncDir writes the names in a directory to the disk.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// openRegular opens a regular file, following no link in its last component
// and waiting for no peer of a pipe.
func openRegular(path string, flag int) (*os.File, fs.FileInfo, error) {
	f, err := os.OpenFile(path, flag|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ELOOP) {
		return nil, nil, &unsafeError{path + " is a symbolic link", "name the file itself"}
	}
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &unsafeError{path + " is not a regular file", "name a file"}
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, info, nil
}

// openOwn is openRegular for a file that must be this user's and closed to
// everybody else.
func openOwn(path string, flag int) (*os.File, error) {
	f, info, err := openRegular(path, flag)
	if err != nil {
		return nil, err
	}
	uid := info.Sys().(*syscall.Stat_t).Uid
	switch {
	case int(uid) != os.Geteuid():
		err = &unsafeError{fmt.Sprintf("%s belongs to uid %d, not to uid %d", path, uid, os.Geteuid()),
			fmt.Sprintf("start sessiond as uid %d, or give the file to its user with chown", uid)}
	case info.Mode().Perm()&0o077 != 0:
		err = &unsafeError{fmt.Sprintf("%s is open to others (mode %04o)", path, info.Mode().Perm()),
			"chmod 0600 " + path + "; if somebody may have read it, move the key and the store aside"}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// removeLeftovers removes what an agent that died has left of a file that was to get the
// name path: it holds records, or a key. Nobody has a lock on it. Another agent may be
// about to make its first store, and finds then that there is one.
func removeLeftovers(path string) {
	names, err := filepath.Glob(filepath.Join(globQuoted(filepath.Dir(path)), "."+globQuoted(filepath.Base(path))+".*"))
	if err != nil {
		return
	}
	for _, name := range names {
		// os.CreateTemp puts a number there; everything else is somebody's.
		if _, err := strconv.ParseUint(strings.TrimPrefix(filepath.Ext(name), "."), 10, 64); err != nil {
			continue
		}
		f, err := openOwn(name, os.O_RDWR)
		if err != nil {
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			os.Remove(name)
		}
		f.Close()
	}
}

// globQuoted quotes what a pattern of filepath.Glob would not take literally.
func globQuoted(name string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(name)
}

// lockHolder looks up which process has an flock(2) on a file: its pid, 0 if
// that cannot be told, and a text that names it. /proc/locks is missing in a
// unit with ProcSubset=pid, and shows btrfs under another device number.
func lockHolder(path string) (pid int, who string) {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return 0, ""
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return 0, ""
	}
	pid = flockHolder(locks, uint64(st.Dev), st.Ino)
	if pid == 0 {
		return 0, ""
	}
	comm, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
	if err != nil {
		return pid, fmt.Sprintf("pid %d", pid)
	}
	// A process chooses its own name.
	name := strings.Trim(strconv.QuoteToASCII(string(bytes.TrimSpace(comm))), `"`)
	return pid, fmt.Sprintf("%s (pid %d)", name, pid)
}

// flockHolder finds the holder of a flock in the text of /proc/locks, with
// lines (proc_locks(5)) like
//
//	1: FLOCK  ADVISORY  WRITE 4242 fe:00:1835010 0 EOF
//
// where a process that waits has "->" before FLOCK. It returns 0 if there is none.
func flockHolder(locks []byte, dev, ino uint64) (pid int) {
	for line := range strings.Lines(string(locks)) {
		f := strings.Fields(line)
		if len(f) < 6 || f[1] != "FLOCK" {
			continue
		}
		id := strings.Split(f[5], ":")
		if len(id) != 3 {
			continue
		}
		major, err1 := strconv.ParseUint(id[0], 16, 32)
		minor, err2 := strconv.ParseUint(id[1], 16, 32)
		inode, err3 := strconv.ParseUint(id[2], 10, 64)
		pid, err4 := strconv.Atoi(f[4])
		if errors.Join(err1, err2, err3, err4) != nil || pid <= 0 {
			continue
		}
		if unix.Mkdev(uint32(major), uint32(minor)) == dev && inode == ino {
			return pid
		}
	}
	return 0
}
