package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/sessionctl/sessionctl/api"
)

// In a child that probes, descriptor 3 is the file. It opens no store, so it ends before
// TestMain.
func init() {
	if os.Getenv(childVariable) != "probe" {
		return
	}
	if err := Probe(os.NewFile(3, "store")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// probeLimit is far more than a probe takes on a busy machine.
const probeLimit = 30 * time.Second

// atOnce lets a child with the race detector end without waiting a second.
const atOnce = "GORACE=atexit_sleep_ms=0"

// probe calls Probe in a child.
func probe(t testing.TB, f *os.File) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), probeLimit)
	defer cancel()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, exe)
	cmd.Env = append(os.Environ(), childVariable+"=probe", atOnce)
	cmd.ExtraFiles = []*os.File{f}
	cmd.Stderr = &bytes.Buffer{}
	err = childErr(cmd, cmd.Run())
	if ctx.Err() != nil {
		t.Fatal("the probe does not end")
	}
	return err
}

// lockedFile opens a file and locks it.
func lockedFile(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	return f
}

// A good file passes, and whoever has locked it has it locked after that.
func TestProbeKeepsLock(t *testing.T) {
	w := newWreck(t)
	f := lockedFile(t, w.path)
	if err := probe(t, f); err != nil {
		t.Errorf("a good file: %v", err)
	}
	_, err := Open(w.path, Options{Key: keyBeside(w.path), LockTimeout: time.Millisecond})
	wantError(t, err, api.StoreLocked, w.path)
	f.Close()
	if file, err := os.ReadFile(w.path); err != nil || !bytes.Equal(file, w.file) {
		t.Errorf("the file was changed, or %v", err)
	}
	mustOpen(t, w.path)
}

// A file that somebody else has locked is not looked at: whoever opens it next is told.
func TestProbeLocked(t *testing.T) {
	path := newPath(t)
	mustClose(t, mustOpen(t, path))
	if err := os.Truncate(path, int64(5*os.Getpagesize()/2)); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	other := lockedFile(t, path)
	if err := probe(t, f); err != nil {
		t.Errorf("locked: %v", err)
	}
	other.Close()
	if err := probe(t, f); err == nil {
		t.Error("the damaged file passes when nobody has it locked")
	}
}

// What is no store, or has lost a part, does not pass.
func TestProbeStructure(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(t *testing.T, path string)
		want string
	}{
		"nothing": {func(t *testing.T, path string) {
			if err := os.Truncate(path, 0); err != nil {
				t.Fatal(err)
			}
		}, "it is empty"},
		"a text": {func(t *testing.T, path string) {
			if err := os.WriteFile(path, bytes.Repeat([]byte("text\n"), 4000), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "invalid database"},
		"without meta": {func(t *testing.T, path string) {
			edit(t, path, func(tx *bbolt.Tx) error { return tx.DeleteBucket(bucketMeta) })
		}, "meta: a part of it is missing"},
		"without id": {func(t *testing.T, path string) {
			edit(t, path, func(tx *bbolt.Tx) error { return tx.Bucket(bucketMeta).Delete(metaID) })
		}, "header: a part of it is missing"},
		"without keys": {func(t *testing.T, path string) {
			edit(t, path, func(tx *bbolt.Tx) error { return tx.DeleteBucket(bucketKeys) })
		}, "keys: a part of it is missing"},
		"without records": {func(t *testing.T, path string) {
			edit(t, path, func(tx *bbolt.Tx) error { return tx.DeleteBucket(bucketRecords) })
		}, "records: a part of it is missing"},
	} {
		t.Run(name, func(t *testing.T) {
			path := newPath(t)
			mustClose(t, mustOpen(t, path))
			c.do(t, path)
			if err := probe(t, lockedFile(t, path)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want: %s", err, c.want)
			}
		})
	}
}

// The flags of a page, and what a field of 32 bits can say at most.
const (
	branchPage = 1
	leafPage   = 2
	all32      = 1<<32 - 1
)

// newPage returns a page that says how many elements it has, with their fields, four of
// each.
func newPage(flags, count uint16, fields ...uint32) []byte {
	page := binary.NativeEndian.AppendUint16(make([]byte, 8), flags)
	page = append(binary.NativeEndian.AppendUint16(page, count), make([]byte, 4)...)
	for _, f := range fields {
		page = binary.NativeEndian.AppendUint32(page, f)
	}
	return page
}

// leafWith returns a leaf with one element: a value, with no key.
func leafWith(flags uint32, value []byte) []byte {
	return append(newPage(leafPage, 1, flags, leafAlign, 0, uint32(len(value))), value...)
}

// bucketValue returns the value of a bucket: the number of its first page, and the page
// that stands in it if that is 0.
func bucketValue(first uint64, page []byte) []byte {
	return slices.Concat(binary.NativeEndian.AppendUint64(nil, first), make([]byte, 8), page)
}

// TestElementsFit: an element that ends with its page fits. None does that goes a byte
// beyond, or so far that 32 bits do not hold where to.
func TestElementsFit(t *testing.T) {
	rest := make([]byte, 32) // with one element the page has 64 bytes then
	leaf := func(fields ...uint32) []byte { return append(newPage(leafPage, 1, fields...), rest...) }
	branch := func(fields ...uint32) []byte { return append(newPage(branchPage, 1, fields...), rest...) }
	inline := func(page []byte) []byte { return leafWith(leafBucket, bucketValue(0, page)) }
	none := make([]uint32, 4)
	whole, long := leaf(0, 16, 4, 28), leaf(0, 16, 4, 29)
	for name, c := range map[string]struct {
		page []byte
		want bool
	}{
		"nothing":                   {nil, false},
		"less than a head":          {newPage(leafPage, 0)[:15], false},
		"no elements":               {newPage(leafPage, 0), true},
		"nothing but elements":      {newPage(leafPage, 2, slices.Concat(none, none)...), true},
		"one more than there are":   {newPage(leafPage, 3, slices.Concat(none, none)...), false},
		"all that there can be":     {newPage(leafPage, 1<<16-1, slices.Concat(none, none)...), false},
		"a leaf's one cut off":      {newPage(leafPage, 2, slices.Concat(none, none)...)[:47], false},
		"a branch's one cut off":    {newPage(branchPage, 2, slices.Concat(none, none)...)[:47], false},
		"leaf":                      {whole, true},
		"its distance":              {leaf(0, 17, 4, 28), false},
		"its key":                   {leaf(0, 16, 5, 28), false},
		"its value":                 {long, false},
		"all of its distance":       {leaf(0, all32, 0, 0), false},
		"all of its key":            {leaf(0, 0, all32, 0), false},
		"all of its value":          {leaf(0, 0, 0, all32), false},
		"its distance and key":      {leaf(0, all32-15, 16, 0), false},
		"its distance and value":    {leaf(0, all32-15, 0, 16), false},
		"its key and value":         {leaf(0, 16, all32-15, 16), false},
		"all of all":                {leaf(all32, all32, all32, all32), false},
		"its second one":            {append(newPage(leafPage, 2, 0, 0, 0, 0, 0, 16, 16, 16), rest...), true},
		"its second one's value":    {append(newPage(leafPage, 2, 0, 0, 0, 0, 0, 16, 16, 17), rest...), false},
		"branch":                    {branch(16, 32, all32, all32), true},
		"branch's distance":         {branch(17, 32, 0, 0), false},
		"branch's key":              {branch(16, 33, 0, 0), false},
		"all of branch's distance":  {branch(all32-15, 16, 0, 0), false},
		"all of branch's key":       {branch(16, all32-15, 0, 0), false},
		"branch's second one":       {append(newPage(branchPage, 2, 0, 0, 0, 0, 16, 32, 0, 0), rest...), true},
		"branch's second one's key": {append(newPage(branchPage, 2, 0, 0, 0, 0, 16, 33, 0, 0), rest...), false},
		"bucket":                    {leafWith(leafBucket, bucketValue(7, nil)), true},
		"bucket's other pages":      {leafWith(leafBucket, bucketValue(1<<63, long)), true},
		"less than a bucket":        {leafWith(leafBucket, bucketValue(7, nil)[:15]), false},
		"a bucket of nothing":       {leafWith(leafBucket, nil), false},
		"inline":                    {inline(whole), true},
		"inline nothing":            {inline(nil), false},
		"inline less than a head":   {inline(whole[:15]), false},
		"inline count":              {inline(newPage(leafPage, 1)), false},
		"inline distance":           {inline(leaf(0, 17, 4, 28)), false},
		"inline key":                {inline(leaf(0, 16, 5, 28)), false},
		"inline value":              {inline(long), false},
		"inline value, in the leaf": {append(inline(long), rest...), false},
		"inline branch":             {inline(branch(16, 33, 0, 0)), false},
		"a record like a bucket":    {leafWith(0, bucketValue(0, long)), true},
	} {
		t.Run(name, func(t *testing.T) {
			if got := elementsFit(c.page); got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

// take takes from a page what bbolt does, and panics where the page ends before that.
func take(page []byte) {
	page = slices.Clip(page)
	flags, count, elements := binary.NativeEndian.Uint16(page[8:]), binary.NativeEndian.Uint16(page[10:]), page[leafAlign:]
	for range count {
		field := func(i int) uint32 { return binary.NativeEndian.Uint32(elements[:leafAlign][4*i:]) }
		if flags&branchPage != 0 {
			_ = elements[:leafAlign][leafAlign:]
			_ = elements[field(0):][:field(1)]
		} else {
			value := slices.Clip(elements[field(1):][field(2):][:field(3)])
			if field(0)&leafBucket != 0 && binary.NativeEndian.Uint64(value[:leafAlign]) == 0 {
				take(value[leafAlign:])
			}
		}
		elements = elements[leafAlign:]
	}
}

// FuzzElementsFit: the elements of a page fit if all that they claim is there.
func FuzzElementsFit(f *testing.F) {
	path := newPath(f)
	s := mustOpen(f, path)
	mustSwap(f, s.Bucket("sessions"), "CANARY-name", 0, []byte("CANARY-record"))
	mustClose(f, s)
	file, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	for page := range slices.Chunk(file, pageSize) {
		f.Add(page)
	}
	f.Add(leafWith(leafBucket, bucketValue(0, leafWith(0, []byte("value")))))
	f.Add(append(newPage(branchPage, 2, 32, 3, 7, 0, 16, 3, 8, 0), "abcdef"...))
	f.Fuzz(func(t *testing.T, page []byte) {
		all := true
		func() {
			defer func() { all = recover() == nil }()
			take(page)
		}()
		if got := elementsFit(page); got != all {
			t.Errorf("got %v, want %v", got, all)
		}
	})
}

// lastPages returns where in a closed store's file the last page of each type begins. A
// leaf of several pages is a "large leaf", and what stands in a leaf for a bucket "inline".
func lastPages(t *testing.T, path string) map[string]int {
	t.Helper()
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(path, 0, &bbolt.Options{ReadOnly: true, PreLoadFreelist: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	pages := make(map[string]int)
	err = db.View(func(tx *bbolt.Tx) error {
		for id := 0; ; id++ {
			page, err := tx.Page(id)
			if page == nil {
				return err
			}
			at, kind := id*db.Info().PageSize, page.Type
			if kind == "leaf" {
				for i := range page.Count {
					element := at + leafAlign*(1+i)
					e, _ := readElement(file[element:])
					value := element + int(e.pos) + e.key
					if e.flags&leafBucket != 0 && binary.NativeEndian.Uint64(file[value:]) == 0 {
						pages["inline"] = value + leafAlign
					}
				}
				if page.OverflowCount > 0 {
					kind = "large leaf"
				}
			}
			pages[kind] = at
			if kind != "free" {
				id += page.OverflowCount
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return pages
}

// TestProbeElements: an element that is not within its page is found, and not by reading
// it: what is behind the file is memory of the process, or nothing. What a free page says
// means nothing.
func TestProbeElements(t *testing.T) {
	w := newWreck(t)
	s := mustOpen(t, w.path)
	mustSwap(t, s.Bucket("sessions"), "CANARY-large", 0, make([]byte, 5*os.Getpagesize()))
	w.close(t, s)
	pages := lastPages(t, w.path)
	const first = leafAlign // is where the first element begins
	const beyond = "elements of page "
	beyondFile := uint32(len(w.file) + 2<<20)
	nextPage := uint32(os.Getpagesize())
	for name, c := range map[string]struct {
		kind string
		at   int    // in the page
		say  uint32 // instead of what stands there
		want string // "": it passes
	}{
		"as it is":                    {"leaf", 12, 0, ""},
		"value beyond the file":       {"leaf", first + 12, beyondFile, beyond},
		"key beyond the file":         {"leaf", first + 8, beyondFile, beyond},
		"distance beyond the file":    {"leaf", first + 4, beyondFile, beyond},
		"value in the next page":      {"leaf", first + 12, nextPage, beyond},
		"branch beyond the file":      {"branch", first, beyondFile, beyond},
		"branch's key":                {"branch", first + 4, beyondFile, beyond},
		"branch's key, the next page": {"branch", first + 4, nextPage, beyond},
		"large value":                 {"large leaf", first + 12, beyondFile, beyond},
		"inline value":                {"inline", first + 12, beyondFile, beyond},
		"inline value, in the leaf":   {"inline", first + 12, nextPage / 2, beyond},
		"leaf's count":                {"leaf", 8, leafPage | 1000<<16, beyond},
		"branch's count":              {"branch", 8, branchPage | 1000<<16, beyond},
		"inline count":                {"inline", 8, leafPage | 1000<<16, beyond},
		"pages beyond the file":       {"leaf", 12, 1 << 20, "goes beyond the file"},
		"pages of the free list":      {"freelist", 12, 1 << 20, "goes beyond the file"},
		"elements of a free page":     {"free", first + 12, beyondFile, ""},
		"pages of a free page":        {"free", 12, 1 << 20, ""},
	} {
		t.Run(name, func(t *testing.T) {
			page := pages[c.kind]
			if page == 0 {
				t.Fatalf("the store has no such page: %v", pages)
			}
			file := bytes.Clone(w.file)
			binary.NativeEndian.PutUint32(file[page+c.at:], c.say)
			if err := os.WriteFile(w.path, file, 0o600); err != nil {
				t.Fatal(err)
			}
			err := probe(t, lockedFile(t, w.path))
			switch {
			case c.want == "" && err != nil:
				t.Errorf("got %v, want nothing", err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("got %v, want: %s", err, c.want)
			}
		})
	}
}

// TestProbeDamage: a file that passes kills no process that uses it; one that does not
// is told by an error or by the child's death.
func TestProbeDamage(t *testing.T) {
	w := newWreck(t)
	for class, damage := range damages {
		t.Run(class, func(t *testing.T) {
			r := rand.New(rand.NewPCG(6, uint64(len(class))))
			good, bad, dead := 0, 0, 0
			for range damagedFiles(500, 20) {
				file, what := damage.do(r, bytes.Clone(w.file))
				if err := os.WriteFile(w.path, file, 0o600); err != nil {
					t.Fatal(err)
				}
				f := lockedFile(t, w.path)
				err := probe(t, f)
				f.Close()
				exit, died := errors.AsType[*exec.ExitError](err)
				switch {
				case died && exit.ExitCode() != 1:
					dead++
				case err != nil:
					bad++
				default:
					good++
					cmd := newChild(t, "put", w.path, "CANARY-after")
					cmd.Env = append(cmd.Env, atOnce)
					err := childErr(cmd, cmd.Run())
					if exit, died := errors.AsType[*exec.ExitError](err); died && exit.ExitCode() != 1 {
						t.Errorf("%s: the probe passes it, and a process dies of it: %v", what, err)
					}
				}
			}
			if (class == "one page zeroed" || class == "cut off") && bad+dead == 0 {
				t.Error("no file is found to be bad")
			}
			t.Logf("%d passed, %d errors, %d deaths", good, bad, dead)
		})
	}
}
