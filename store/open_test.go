package store

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/bbolt"

	"github.com/sessionctl/sessionctl/api"
)

// foreignFile returns a file that belongs to another user.
func foreignFile(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		return "/etc/passwd"
	}
	path := filepath.Join(t.TempDir(), "foreign")
	if err := errors.Join(os.WriteFile(path, make([]byte, keySize), 0o600), os.Chown(path, 65534, -1)); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestWrongKey(t *testing.T) {
	path := newPath(t)
	s := mustOpen(t, path)
	r := mustSwap(t, s.Bucket("sessions"), "a", 0, []byte("x"))
	mustClose(t, s)
	other := filepath.Join(filepath.Dir(path), "other.key")
	if err := os.WriteFile(other, bytes.Repeat([]byte{1}, keySize), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(path, Options{Key: KeyFile(other)})
	wantError(t, err, api.StoreKeyMissing, "the key in key file "+other+" does not fit store "+path, "mv "+path)
	// The refusal lets go of the file, and changes nothing in it.
	wantRecord(t, mustOpen(t, path).Bucket("sessions"), "a", "x", r)
}

func TestMissingKey(t *testing.T) {
	path := newPath(t)
	mustClose(t, mustOpen(t, path))
	key := filepath.Join(filepath.Dir(path), "master.key")
	if err := os.Rename(key, key+".away"); err != nil {
		t.Fatal(err)
	}
	_, err := Open(path, Options{Key: KeyFile(key)})
	wantError(t, err, api.StoreKeyMissing, key, "bring the key file back")
	if _, err := os.Lstat(key); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("beside an existing store a key was made: %v", err)
	}
	_, err = Open(path, Options{})
	wantError(t, err, api.StoreKeyMissing, "no source")
}

func TestKeyFile(t *testing.T) {
	path := newPath(t)
	mustClose(t, mustOpen(t, path))
	key := filepath.Join(filepath.Dir(path), "master.key")
	info, err := os.Lstat(key)
	if err != nil || info.Mode() != 0o600 || info.Size() != 32 {
		t.Fatalf("key file %v, %v", info, err)
	}
	good, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		spoil func() error
		words []string
	}{
		"group may read":  {func() error { return os.Chmod(key, 0o640) }, []string{"mode 0640", "chmod 0600 " + key}},
		"all may read":    {func() error { return os.Chmod(key, 0o604) }, []string{"mode 0604"}},
		"too short":       {func() error { return os.Truncate(key, 31) }, []string{"31 bytes"}},
		"empty":           {func() error { return os.Truncate(key, 0) }, []string{"0 bytes"}},
		"too long":        {func() error { return os.Truncate(key, 33) }, []string{"more than 32 bytes"}},
		"a link":          {func() error { return errors.Join(os.Rename(key, key+".1"), os.Symlink(key+".1", key)) }, []string{"symbolic link"}},
		"a directory":     {func() error { return errors.Join(os.Remove(key), os.Mkdir(key, 0o700)) }, []string{"not a regular file"}},
		"a pipe":          {func() error { return errors.Join(os.Remove(key), syscall.Mkfifo(key, 0o600)) }, []string{"not a regular file"}},
		"not there":       {func() error { return os.Remove(key) }, []string{"no such file"}},
		"a dangling link": {func() error { return errors.Join(os.Remove(key), os.Symlink("nowhere", key)) }, []string{"symbolic link"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if err := test.spoil(); err != nil {
				t.Fatal(err)
			}
			_, err := Open(path, Options{Key: KeyFile(key)})
			wantError(t, err, api.StoreKeyMissing, append(test.words, "key file "+key)...)
		})
		if err := errors.Join(os.RemoveAll(key), os.WriteFile(key, good, 0o600), os.Chmod(key, 0o600)); err != nil {
			t.Fatal(err)
		}
		mustClose(t, mustOpen(t, path))
	}
}

func TestKeyCredential(t *testing.T) {
	dir := t.TempDir()
	secret := []byte("CANARY-credential-of-more-than-thirty-two-bytes")
	write := func(name string, b []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o440); err != nil {
			t.Fatal(err)
		}
	}
	write("master", secret)
	write("same-start", secret[:32])
	write("short", secret[:31])
	path := newPath(t)
	s, err := Open(path, Options{Key: KeyCredential(dir, "master")})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Status().KeySource; got != "credential master" {
		t.Errorf("source %q", got)
	}
	r := mustSwap(t, s.Bucket("sessions"), "a", 0, []byte("x"))
	mustClose(t, s)
	if s, err = Open(path, Options{Key: KeyCredential(dir, "master")}); err != nil {
		t.Fatal(err)
	}
	wantRecord(t, s.Bucket("sessions"), "a", "x", r)
	mustClose(t, s)
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
		t.Errorf("with a credential something else than the store was made: %v", entries)
	}
	for _, test := range []struct {
		dir, name string
		word      string
	}{
		{dir, "same-start", "does not fit"}, // all bytes count
		{dir, "short", "31 bytes"},
		{dir, "none", "LoadCredentialEncrypted="},
		{dir, "../" + filepath.Base(dir) + "/master", "not a path"},
		{dir, "", "not a path"},
		{"", "master", "no credentials directory"},
	} {
		_, err := Open(path, Options{Key: KeyCredential(test.dir, test.name)})
		wantError(t, err, api.StoreKeyMissing, test.word)
		if strings.Contains(fmt.Sprintf("%+v", api.AsError(err)), "CANARY") {
			t.Errorf("the credential is in %v", err)
		}
	}
}

func TestFileChecks(t *testing.T) {
	tests := map[string]struct {
		spoil func(path string) error
		code  api.Code
		words []string
	}{
		"group may read": {func(p string) error { return os.Chmod(p, 0o640) }, api.StoreUnsafe, []string{"mode 0640", "chmod 0600"}},
		"a link":         {func(p string) error { return errors.Join(os.Rename(p, p+".1"), os.Symlink(p+".1", p)) }, api.StoreUnsafe, []string{"symbolic link"}},
		"a pipe":         {func(p string) error { return errors.Join(os.Remove(p), syscall.Mkfifo(p, 0o600)) }, api.StoreUnsafe, []string{"not a regular file"}},
		"empty":          {func(p string) error { return os.Truncate(p, 0) }, api.StoreDamaged, []string{"empty", "mv "}},
		"text":           {func(p string) error { return os.WriteFile(p, bytes.Repeat([]byte("text "), 9999), 0o600) }, api.StoreDamaged, []string{"left as it is", "mv "}},
		"open directory": {func(p string) error { return os.Chmod(filepath.Dir(p), 0o777) }, api.StoreUnsafe, []string{"can be written by others (mode 0777)", "--store FILE"}},
		"sticky one":     {func(p string) error { return os.Chmod(filepath.Dir(p), 0o777|fs.ModeSticky) }, api.StoreUnsafe, []string{"can be written by others"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			path := newPath(t)
			mustClose(t, mustOpen(t, path))
			if err := test.spoil(path); err != nil {
				t.Fatal(err)
			}
			before, _ := os.Lstat(path)
			_, err := Open(path, Options{Key: keyBeside(path)})
			wantError(t, err, test.code, append(test.words, path)...)
			if after, err := os.Lstat(path); err != nil || after.Size() != before.Size() || after.ModTime() != before.ModTime() {
				t.Errorf("the file was touched: %v, %v", after, err)
			}
		})
	}
	t.Run("directory is a file", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Open(filepath.Join(file, "store.db"), Options{Key: keyBeside(newPath(t))})
		wantError(t, err, api.StoreUnsafe, file)
	})
	t.Run("another user's", func(t *testing.T) {
		path := foreignFile(t)
		_, err := openOwn(path, os.O_RDONLY)
		wantError(t, failed("store.db", err), api.StoreUnsafe, path+" belongs to uid", "chown")
		_, err = Open(newPath(t), Options{Key: KeyFile(path)})
		wantError(t, err, api.StoreKeyMissing, path)
	})
	t.Run("directories are made", func(t *testing.T) {
		top := t.TempDir()
		path := filepath.Join(top, "a", "b", "store.db")
		mustClose(t, mustOpen(t, path))
		for _, dir := range []string{filepath.Join(top, "a"), filepath.Join(top, "a", "b")} {
			if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
				t.Errorf("%s: %v, %v", dir, info, err)
			}
		}
	})
}

// A header or a data key that was tampered with does not let the store open.
func TestHeader(t *testing.T) {
	meta := func(tx *bbolt.Tx) *bbolt.Bucket { return tx.Bucket(bucketMeta) }
	tests := map[string]struct {
		edit  func(tx *bbolt.Tx) error
		code  api.Code
		words []string
	}{
		"no format":     {func(tx *bbolt.Tx) error { return meta(tx).Delete(metaFormat) }, api.StoreDamaged, []string{"header"}},
		"another id":    {func(tx *bbolt.Tx) error { return meta(tx).Put(metaID, make([]byte, idSize)) }, api.StoreDamaged, []string{"header"}},
		"short id":      {func(tx *bbolt.Tx) error { return meta(tx).Put(metaID, []byte{1}) }, api.StoreDamaged, []string{"header"}},
		"another check": {func(tx *bbolt.Tx) error { return meta(tx).Put(metaCheck, make([]byte, 32)) }, api.StoreDamaged, []string{"header"}},
		"no meta":       {func(tx *bbolt.Tx) error { return tx.DeleteBucket(bucketMeta) }, api.StoreDamaged, []string{"meta"}},
		"no keys":       {func(tx *bbolt.Tx) error { return tx.DeleteBucket(bucketKeys) }, api.StoreDamaged, []string{"keys"}},
		"keys changed places": {func(tx *bbolt.Tx) error {
			keys := tx.Bucket(bucketKeys)
			a, b := bytes.Clone(keys.Get([]byte("sessions"))), bytes.Clone(keys.Get([]byte("tickets")))
			return errors.Join(keys.Put([]byte("sessions"), b), keys.Put([]byte("tickets"), a))
		}, api.StoreDamaged, []string{"data key"}},
		"another generation": {func(tx *bbolt.Tx) error {
			w := bytes.Clone(tx.Bucket(bucketKeys).Get([]byte("tickets")))
			w[3]++
			return tx.Bucket(bucketKeys).Put([]byte("tickets"), w)
		}, api.StoreDamaged, []string{"data key", "tickets"}},
		"short key": {func(tx *bbolt.Tx) error { return tx.Bucket(bucketKeys).Put([]byte("tickets"), nil) }, api.StoreDamaged, []string{"data key", "tickets"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			path := newPath(t)
			s := mustOpen(t, path)
			mustSwap(t, s.Bucket("sessions"), "a", 0, []byte("x"))
			mustSwap(t, s.Bucket("tickets"), "a", 0, []byte("x"))
			mustClose(t, s)
			edit(t, path, test.edit)
			_, err := Open(path, Options{Key: keyBeside(path)})
			wantError(t, err, test.code, append(test.words, path)...)
		})
	}
	t.Run("no records", func(t *testing.T) {
		path := newPath(t)
		mustClose(t, mustOpen(t, path))
		edit(t, path, func(tx *bbolt.Tx) error { return tx.DeleteBucket(bucketRecords) })
		s := mustOpen(t, path)
		_, _, err := s.Bucket("sessions").Load("a")
		wantError(t, err, api.StoreDamaged, "records", "mv "+path)
		_, err = s.Bucket("sessions").Swap(t.Context(), "a", 0, []byte("x"))
		wantError(t, err, api.StoreDamaged, "records")
	})
}

func TestSecondOpener(t *testing.T) {
	path := newPath(t)
	cmd := newChild(t, "hold", path, "")
	stdin, stdout := startPiped(t, cmd)
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "open\n" {
		t.Fatalf("the child says %q, %v", line, err)
	}
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) { // the wait takes no time of ours
		start := time.Now()
		_, err := Open(path, Options{Key: keyBeside(path)})
		wantError(t, err, api.StoreLocked,
			fmt.Sprintf("store %s is in use by %s (pid %d)", path, strings.TrimSpace(string(comm)), cmd.Process.Pid),
			fmt.Sprintf("kill %d", cmd.Process.Pid))
		if d := time.Since(start); d < 500*time.Millisecond || d > 1100*time.Millisecond {
			t.Errorf("the default wait took %v", d)
		}
	})
	stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(childErr(cmd, err))
	}
	s := mustOpen(t, path)
	// The same holds for two stores of one process.
	_, err = Open(path, Options{Key: keyBeside(path), LockTimeout: time.Millisecond})
	wantError(t, err, api.StoreLocked, fmt.Sprintf("(pid %d)", os.Getpid()))
	mustClose(t, s)
}

// Whoever comes first makes the key and the store; nobody's record is lost.
func TestCreationRace(t *testing.T) {
	const openers = 8
	check := func(t *testing.T, path string) {
		t.Helper()
		s := mustOpen(t, path)
		for i := range openers {
			name := fmt.Sprint("opener ", i)
			if got, _, err := s.Bucket("sessions").Load(name); string(got) != name {
				t.Errorf("%s: %q, %v", name, got, err)
			}
		}
		if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 2 {
			t.Errorf("beside store and key there is something: %v, %v", entries, err)
		}
	}
	t.Run("goroutines", func(t *testing.T) {
		path := newPath(t)
		var wg sync.WaitGroup
		for i := range openers {
			wg.Go(func() {
				s, err := Open(path, Options{Key: keyBeside(path), LockTimeout: time.Minute})
				if err != nil {
					t.Error(err)
					return
				}
				name := fmt.Sprint("opener ", i)
				_, err = s.Bucket("sessions").Swap(t.Context(), name, 0, []byte(name))
				if err := errors.Join(err, s.Close()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		check(t, path)
	})
	t.Run("processes", func(t *testing.T) {
		path := newPath(t)
		var wg sync.WaitGroup
		for i := range openers {
			cmd := newChild(t, "put", path, fmt.Sprint("opener ", i))
			wg.Go(func() {
				if err := cmd.Run(); err != nil {
					t.Error(childErr(cmd, err))
				}
			})
		}
		wg.Wait()
		check(t, path)
	})
	// The one who finds the name taken leaves the file as it is.
	t.Run("too late", func(t *testing.T) {
		path := newPath(t)
		s := mustOpen(t, path)
		r := mustSwap(t, s.Bucket("sessions"), "a", 0, []byte("x"))
		if err := create(path, make([]byte, keySize)); err != nil {
			t.Error(err)
		}
		if made, err := writeKey(filepath.Join(filepath.Dir(path), "master.key"), keySize); made || err != nil {
			t.Errorf("a key file was replaced: %v", err)
		}
		mustClose(t, s)
		wantRecord(t, mustOpen(t, path).Bucket("sessions"), "a", "x", r)
	})
}

// A file that is cut short while it is in use does not end the process,
// whether a reader or the writer comes upon it.
func TestTruncatedInUse(t *testing.T) {
	load := func(s *Store) error { _, _, err := s.Bucket("sessions").Load("1"); return err }
	swap := func(s *Store) error {
		_, err := s.Bucket("sessions").Swap(t.Context(), "new", 0, []byte("x"))
		return err
	}
	loads := func(s *Store) error {
		errs := make(chan error, 32)
		for range cap(errs) {
			go func() { errs <- load(s) }()
		}
		for range cap(errs) - 1 {
			wantError(t, <-errs, api.StoreDamaged, s.file.path)
		}
		return <-errs
	}
	for name, first := range map[string]func(*Store) error{"load": load, "swap": swap, "many loads": loads} {
		t.Run(name, func(t *testing.T) {
			path := newPath(t)
			var log logBuffer
			s, err := Open(path, Options{Key: keyBeside(path), Log: log.logger()})
			if err != nil {
				t.Fatal(err)
			}
			for i := range 100 {
				mustSwap(t, s.Bucket("sessions"), fmt.Sprint(i), 0, bytes.Repeat([]byte{'x'}, 3000))
			}
			if err := os.Truncate(path, 1); err != nil {
				t.Fatal(err)
			}
			wantError(t, first(s), api.StoreDamaged, path, "mv ")
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() { wantError(t, load(s), api.StoreDamaged, path) })
				wg.Go(func() { wantError(t, swap(s), api.StoreDamaged, path) })
			}
			wg.Wait()
			wantError(t, s.Status().Err, api.StoreDamaged)
			if n := strings.Count(log.String(), "is damaged"); n != 1 {
				t.Errorf("the log tells of it %d times: %s", n, &log)
			}
			mustClose(t, s)
			_, err = Open(path, Options{Key: keyBeside(path), LockTimeout: time.Millisecond})
			wantError(t, err, api.StoreDamaged) // and not locked
		})
	}
}

// The writer does not wait for a lock that a read has left when it came upon damage.
func TestDamageEndsWaiting(t *testing.T) {
	s, err := open(newPath(t), Options{Key: keyBeside(newPath(t))})
	if err != nil {
		t.Fatal(err)
	}
	read, err := s.file.db.Begin(false) // keeps the memory map where it is
	if err != nil {
		t.Fatal(err)
	}
	entered, updated := make(chan struct{}), make(chan error)
	go func() {
		updated <- s.file.update(func(t txn) (bool, error) {
			close(entered)
			return true, t.addBucket("large", make([]byte, 1<<20)) // for which that is too small
		})
	}()
	<-entered
	err = s.file.result(&panicError{"CANARY-page"})
	wantError(t, <-updated, api.StoreDamaged, "CANARY-page")
	wantError(t, err, api.StoreDamaged)
	if err := read.Rollback(); err != nil {
		t.Error(err)
	}
	go s.write()
	mustClose(t, s)
}

// Damaged files give errors, never an end of the process, and stay as they
// are when they do not open.
func TestDamagedFiles(t *testing.T) {
	path := newPath(t)
	s := mustOpen(t, path)
	for i := range 60 {
		mustSwap(t, s.Bucket("sessions"), fmt.Sprint(i), 0, bytes.Repeat([]byte{'x'}, 500))
	}
	mustClose(t, s)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	page := os.Getpagesize()
	type damage struct {
		name string
		file []byte
	}
	var cases []damage
	for at := 512; at < len(good); at += page / 2 {
		cases = append(cases, damage{fmt.Sprint("cut at ", at), good[:at]})
	}
	for at := 0; at < len(good); at += page {
		zeroed := bytes.Clone(good)
		clear(zeroed[at:min(at+page, len(good))])
		cases = append(cases, damage{fmt.Sprint("page zeroed at ", at), zeroed})
		ones := bytes.Clone(good)
		copy(ones[at+8:], bytes.Repeat([]byte{0xff}, 4)) // flags and count
		cases = append(cases, damage{fmt.Sprint("page header at ", at), ones})
	}
	outcomes := map[api.Code]int{}
	bad := filepath.Join(filepath.Dir(path), "damaged.db")
	for _, c := range cases {
		if err := os.WriteFile(bad, c.file, 0o600); err != nil {
			t.Fatal(err)
		}
		note := func(err error) {
			code := api.CodeOf(err)
			outcomes[code]++
			if err != nil && code != api.StoreDamaged && code != api.StoreFailed {
				t.Errorf("%s: %v", c.name, err)
			}
		}
		s, err := Open(bad, Options{Key: keyBeside(bad)})
		note(err)
		if err != nil {
			if after, err := os.ReadFile(bad); err != nil || !bytes.Equal(after, c.file) {
				t.Errorf("%s: the file was changed, %v", c.name, err)
			}
			_, again := Open(bad, Options{Key: keyBeside(bad), LockTimeout: time.Millisecond})
			if api.CodeOf(again) != api.CodeOf(err) {
				t.Errorf("%s: first %v, then %v", c.name, err, again)
			}
			os.Remove(bad)
			continue
		}
		b := s.Bucket("sessions")
		note(b.Range(func(name string, record []byte, _ uint64) bool {
			if len(record) != 500 {
				t.Errorf("%s: record %s has %d bytes", c.name, name, len(record))
			}
			return true
		}))
		_, err = b.Swap(t.Context(), "new", 0, []byte("x"))
		note(err)
		s.Close()
		os.Remove(bad)
	}
	if outcomes[""] == 0 || outcomes[api.StoreDamaged] < len(cases)/2 {
		t.Errorf("%d files: %v", len(cases), outcomes)
	}
	t.Logf("%d files: %v", len(cases), outcomes)
}

func TestFlockHolder(t *testing.T) {
	const locks = `1: POSIX  ADVISORY  WRITE 11 fe:00:100 0 EOF
2: FLOCK  ADVISORY  WRITE 22 fe:01:100 0 EOF
3: FLOCK  ADVISORY  WRITE 33 fe:00:101 0 EOF
4: FLOCK  ADVISORY  WRITE 44 fe:00:100 0 EOF
4: -> FLOCK  ADVISORY  WRITE 55 fe:00:100 0 EOF
5: FLOCK  ADVISORY  WRITE -1 fe:00:102 0 EOF
6: FLOCK
`
	for _, test := range []struct {
		dev, ino uint64
		pid      int
	}{
		{0xfe00, 100, 44}, {0xfe01, 100, 22}, {0xfe00, 101, 33}, {0xfe00, 102, 0}, {0xfe00, 103, 0}, {0, 100, 0},
	} {
		if pid := flockHolder([]byte(locks), test.dev, test.ino); pid != test.pid {
			t.Errorf("%x:%d: pid %d, want %d", test.dev, test.ino, pid, test.pid)
		}
	}
}

func FuzzFlockHolder(f *testing.F) {
	f.Add([]byte("1: FLOCK  ADVISORY  WRITE 4242 fe:00:1835010 0 EOF\n"), uint64(0xfe00), uint64(1835010))
	f.Add([]byte("1: -> FLOCK  ADVISORY  WRITE 4242 fe:00:1835010 0 EOF\n\n2: FLOCK"), uint64(0), uint64(0))
	f.Fuzz(func(t *testing.T, locks []byte, dev, ino uint64) {
		pid := flockHolder(locks, dev, ino)
		if pid < 0 || pid > 0 && !bytes.Contains(locks, []byte("FLOCK")) {
			t.Errorf("pid %d from %q", pid, locks)
		}
	})
}
