package store

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/sessionctl/sessionctl/api"
)

// Require is daemontest.Require, which rigs_test.go puts here.
var Require func(t *testing.T, names ...string)

// torture says whether the tests take their long forms.
var torture = os.Getenv("STORE_TORTURE") != ""

// TestCrashImages: whatever of the writes that were not synced reaches the disk when the
// power goes, the store opens, and all that was acknowledged is in it. A child makes a
// store and uses it under strace; its system calls are replayed in a model of a disk,
// and at each sync the test opens some of the files that a crash may leave.
func TestCrashImages(t *testing.T) {
	Require(t, "strace")
	target, perSync, every := 300, 3, 2
	if torture {
		target, perSync, every = 20_000, 20, 1
	}
	images, kinds := 0, map[string]int{}
	for seed := uint64(1); images < target; seed++ {
		c := crash{t: t, seed: seed, mode: "steps", plan: planSteps(seed, stepKinds), perSync: perSync, every: every, kinds: kinds}
		c.run()
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
		images += c.images
	}
	t.Logf("%d images, crashed during: %v", images, kinds)
	for _, kind := range slices.Concat([]string{kindOpen}, stepKinds) {
		if kinds[kind] == 0 {
			t.Errorf("no crash during %s", kind)
		}
	}
}

// What a child does in a step.
const (
	kindOpen   = "open" // before the first step
	kindPut    = "put"
	kindGroup  = "group" // puts and removals at the same time
	kindRemove = "remove"
	kindReopen = "reopen" // which purges what was removed
	kindRekey  = "rekey"
	kindMend   = "mend" // a start with a damaged file
	kindHeal   = "heal" // a put that comes upon one
	kindKill   = "kill" // a put, killed before its last sync, and done again by the next child
)

var (
	faultKinds = []string{kindPut, kindGroup, kindRemove, kindReopen, kindRekey}
	stepKinds  = slices.Concat(faultKinds, []string{kindMend, kindHeal, kindKill})
)

// step is done when the one before it is, its writes all at once.
type step struct {
	kind   string
	writes []write
}

// damages tells whether the store has a damaged file in the step.
func (s step) damages() bool { return s.kind == kindMend || s.kind == kindHeal }

// write puts a record, or removes it if it is nil.
type write struct {
	bucket, name string
	record       []byte
}

// planSteps returns the steps of these kinds that belong to a seed, the same in parent
// and child.
func planSteps(seed uint64, kinds []string) []step {
	r := rand.New(rand.NewPCG(seed, 0))
	type place struct{ bucket, name string }
	var places []place
	for i := range 24 {
		places = append(places, place{[]string{"sessions", "latches"}[i%2], fmt.Sprintf("CANARY-name-%d", i)})
	}
	alive := map[place]bool{}
	n := 0
	put := func(p place) write {
		n++
		alive[p] = true
		size := r.IntN(2500)
		if r.IntN(12) == 0 {
			size += 9000 // several pages
		}
		return write{p.bucket, p.name, append(fmt.Appendf(nil, "CANARY-record-%d ", n), bytes.Repeat([]byte{byte(n)}, size)...)}
	}
	remove := func(p place) write {
		delete(alive, p)
		return write{p.bucket, p.name, nil}
	}
	// Each once at the least, then as it comes.
	all := slices.Concat([]string{kindPut}, kinds)
	for often := slices.Concat([]string{kindPut, kindPut, kindGroup, kindRemove}, kinds); len(all) < 40; {
		all = append(all, often[r.IntN(len(often))])
	}
	// Each bucket has its data key from the first step on.
	plan := []step{{kindGroup, []write{put(places[0]), put(places[1])}}}
	for _, kind := range all {
		s := step{kind: kind}
		switch kind {
		case kindPut, kindHeal, kindKill:
			s.writes = []write{put(places[r.IntN(len(places))])}
		case kindGroup:
			for _, i := range r.Perm(len(places))[:2+r.IntN(7)] {
				if p := places[i]; alive[p] && r.IntN(3) == 0 {
					s.writes = append(s.writes, remove(p))
				} else {
					s.writes = append(s.writes, put(p))
				}
			}
		case kindRemove:
			at := slices.IndexFunc(places, func(p place) bool { return alive[p] })
			if at < 0 {
				continue
			}
			s.writes = []write{remove(places[at])}
		}
		plan = append(plan, s)
	}
	return plan
}

// childSteps does the steps of a seed, from one of them on, and says what is done: step,
// number of the write in it, its revision; without writes the generation of the data keys.
// It does what fails so many times.
func childSteps(path, args string, kinds []string, tries int) error {
	var seed uint64
	var from int
	if _, err := fmt.Sscan(args, &seed, &from); err != nil {
		return err
	}
	again := func(do func() error) (err error) {
		for range tries {
			if err = do(); err == nil {
				return nil
			}
			if code := api.CodeOf(err); code != api.StoreFailed && code != api.StoreKeyMissing && !errors.Is(err, ErrConflict) {
				return err
			}
		}
		return err
	}
	var s *Store
	open := func(damaged bool) error {
		return again(func() (err error) {
			if s, err = Mend(path, Options{Key: keyBeside(path)}); err != nil {
				return err
			}
			if w := s.Status().Warning; strings.Contains(w, "was damaged (") != damaged {
				return fmt.Errorf("warning %q", w)
			}
			return nil
		})
	}
	err := open(false)
	for i, st := range planSteps(seed, kinds) {
		if i < from {
			continue
		}
		revisions, errs := make([]uint64, len(st.writes)), make([]error, len(st.writes)+1)
		for j, w := range st.writes {
			if err == nil {
				_, revisions[j], err = s.Bucket(w.bucket).Load(w.name)
			}
		}
		if err != nil {
			return fmt.Errorf("before step %d, %s: %w", i, st.kind, err)
		}
		switch st.kind {
		case kindRekey:
			err = again(func() error { return s.Rekey(context.Background()) })
		case kindReopen:
			err = errors.Join(s.Close(), open(false))
		case kindMend:
			err = errors.Join(s.Close(), loseMetas(path), open(true))
		case kindHeal:
			err = loseMetas(path)
		}
		var all sync.WaitGroup
		for j, w := range st.writes {
			all.Go(func() {
				b := s.Bucket(w.bucket)
				before := revisions[j]
				errs[j] = again(func() (err error) {
					if revisions[j], err = b.Swap(context.Background(), w.name, before, w.record); errors.Is(err, ErrConflict) {
						_, before, _ = b.Load(w.name) // it was done, and has failed all the same
					}
					return err
				})
				if errs[j] == nil {
					fmt.Printf("%d %d %d\n", i, j, revisions[j])
				}
			})
		}
		all.Wait()
		if err := errors.Join(append(errs, err)...); err != nil {
			return fmt.Errorf("step %d, %s: %w", i, st.kind, err)
		}
		if len(st.writes) == 0 {
			fmt.Printf("%d 0 %d\n", i, oldestGeneration(s))
		}
		if st.kind == kindKill && i > from {
			return nil // somewhere in this step it was killed
		}
	}
	return errors.Join(err, s.Close())
}

// loseMetas clears both of bbolt's meta pages. That is on the disk at once, and whole: with
// one of them left, the file may well make sense, as it was a transaction ago.
func loseMetas(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_SYNC, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(make([]byte, 2*os.Getpagesize()), 0)
	return errors.Join(err, f.Close())
}

// oldestGeneration returns the lowest generation of the data keys, 0 without any.
func oldestGeneration(s *Store) (oldest uint32) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, d := range s.dataKeys {
		if oldest == 0 || d.generation < oldest {
			oldest = d.generation
		}
	}
	return oldest
}

// crash is the replay of the children that do a plan, each from where the one before it
// was killed.
type crash struct {
	t       *testing.T
	seed    uint64
	mode    string // of the children
	plan    []step
	inject  []string // what strace does to their system calls
	perSync int      // images at a sync
	every   int      // of so many syncs, one is looked at, and all after a kill

	images, syncs int
	dir           string         // of images
	kinds         map[string]int // images by the kind of the step that was cut off
	faults        map[string]int // injected, by system call

	from int // the step with which the child has begun
	// What the children have acknowledged: by step and write, what they printed.
	acks []map[int]uint64
}

func (c *crash) run() {
	t := c.t
	c.dir = t.TempDir()
	base := t.TempDir()
	path := filepath.Join(base, "state", "store.db")
	c.acks = make([]map[int]uint64, len(c.plan))
	for i := range c.acks {
		c.acks[i] = map[int]uint64{}
	}
	d := newDisk(base)
	for killed := true; killed; {
		c.from = c.current()
		if killed = c.replay(d, c.trace(path)); killed {
			// What it has written is as it was, but not on the disk.
			if err := os.RemoveAll(filepath.Dir(path)); err != nil {
				t.Fatal(err)
			}
			d.image(everything{}).write(t, base)
			clear(d.open)
		}
	}
	if done := c.current(); done < len(c.plan) {
		t.Fatalf("the children have done %d steps of %d", done, len(c.plan))
	}
	c.crashes(d)
	// The model is right: a disk that has got everything is as the real one.
	all := filepath.Join(t.TempDir(), "all")
	d.image(everything{}).write(t, all)
	if got, want := tree(t, all), tree(t, base); !maps.Equal(got, want) {
		t.Fatalf("the replay left %v, the child %v", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
	}
}

// replay applies the system calls of a child to the disk, and tells whether it was killed.
func (c *crash) replay(d *disk, calls []call) (killed bool) {
	for _, call := range calls {
		said, isSync, err := d.apply(call)
		if err != nil {
			c.t.Fatalf("%s: %v", call.name, err)
		}
		for line := range strings.Lines(said) {
			var step, i int
			var value uint64
			if _, err := fmt.Sscan(line, &step, &i, &value); err != nil {
				c.t.Fatalf("the child said %q: %v", line, err)
			}
			c.acks[step][i] = value
		}
		if !isSync {
			continue
		}
		if at := c.current(); at < len(c.plan) && c.plan[at].kind == kindKill && at > c.from && d.committing(call) {
			return true
		}
		if c.syncs++; c.syncs%c.every == 0 || c.again() {
			c.crashes(d)
		}
		d.sync(call)
	}
	return false
}

// tree returns the files below a directory with what is in them.
func tree(t *testing.T, base string) map[string]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(base, "state", "*"))
	hidden, err2 := filepath.Glob(filepath.Join(base, "state", ".*"))
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, name := range slices.Concat(files, hidden) {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all[filepath.Base(name)] = string(b)
	}
	return all
}

// current returns the first step that is not wholly acknowledged.
func (c *crash) current() int {
	for i, s := range c.plan {
		if len(c.acks[i]) < max(1, len(s.writes)) {
			return i
		}
	}
	return len(c.plan)
}

// again tells whether a child does now what the one before it was killed in.
func (c *crash) again() bool {
	at := c.current()
	return at == c.from && at < len(c.plan) && c.plan[at].kind == kindKill
}

// crashes opens images of a disk whose power goes now.
func (c *crash) crashes(d *disk) {
	kind, perSync := kindOpen, c.perSync
	if at := c.current(); at < len(c.plan) && (at > 0 || d.opened()) {
		kind = c.plan[at].kind
		switch {
		case c.again():
			perSync *= 4 // it is about few of all the writes
		case kind == kindKill:
			kind = kindPut // so far
		}
	}
	for i := range perSync + len(d.moves) {
		var fate fate
		switch {
		case i == 0:
			fate = everything{}
		case i == 1:
			fate = nothing{}
		case i >= perSync:
			fate = &without{left: i - perSync}
		default:
			r := rand.New(rand.NewPCG(c.seed, uint64(c.syncs)<<16|uint64(i)))
			fate = &chance{r: r, kept: []float64{0.2, 0.5, 0.8}[r.IntN(3)], inOrder: r.IntN(2) == 0}
		}
		c.images++
		c.kinds[kind]++
		base := filepath.Join(c.dir, "image")
		im := d.image(fate)
		im.write(c.t, base)
		if err := c.check(filepath.Join(base, "state", "store.db")); err != nil {
			again := filepath.Join(c.t.ArtifactDir(), fmt.Sprintf("seed-%d-sync-%d-image-%d", c.seed, c.syncs, i))
			im.write(c.t, again)
			c.t.Errorf("seed %d, sync %d, image %d (%s), cut off in %s: %v", c.seed, c.syncs, i, again, kind, err)
		}
		if err := os.RemoveAll(base); err != nil {
			c.t.Fatal(err)
		}
		if !d.dirty() {
			return // they are all the same
		}
	}
}

// check opens the store that a crash has left, looks at it, and uses it.
func (c *crash) check(path string) error {
	var log logBuffer
	begin, mended := Open, false
	if at := c.current(); at < len(c.plan) && c.plan[at].damages() {
		begin, mended = Mend, true
	}
	s, err := begin(path, Options{Key: keyBeside(path), Log: log.logger()})
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	err = c.checkOpen(s, mended)
	if err := errors.Join(err, s.Close()); err != nil {
		return fmt.Errorf("%w\n%s", err, log.String())
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".store.db.*"))
	if err == nil && left != nil {
		err = fmt.Errorf("left over: %v", left)
	}
	return err
}

// checkOpen looks at a store that was opened, or mended perhaps.
func (c *crash) checkOpen(s *Store, mended bool) error {
	st := s.Status()
	if mended && strings.Contains(st.Warning, "was damaged (") && !strings.Contains(st.Warning, "\n") {
		st.Warning = ""
	}
	if st.Err != nil || st.Warning != "" {
		return fmt.Errorf("status: error %v, warning %q", st.Err, st.Warning)
	}
	if err := s.file.view(func(t txn) error { return checkTree(t.tx) }); err != nil {
		return fmt.Errorf("tree: %w", err)
	}
	type state struct {
		record   string
		revision uint64 // 0: not known, for it was not acknowledged
		back     bool   // it was removed, and salvaged, whatever its revision was
	}
	want, past := map[string][]state{}, map[string][]state{} // by bucket and name
	var last, before, generation uint64                      // before: the last revision of the steps that are over
	current := c.current()
	for i, st := range c.plan[:min(current+1, len(c.plan))] {
		if st.damages() {
			for key, states := range want {
				if slices.ContainsFunc(states, func(w state) bool { return w.record == "" }) {
					want[key] = slices.Concat(states, past[key])
				}
			}
			generation = 0 // the new ones begin with the time, to the second
			if st.kind == kindMend || i == current {
				last = 0 // it is not known any more, if its record was removed
			}
		}
		before = last
		for j, w := range st.writes {
			key := w.bucket + "/" + w.name
			past[key] = append(past[key], state{string(w.record), 0, true})
			revision, acknowledged := c.acks[i][j]
			if acknowledged {
				want[key] = []state{{string(w.record), revision, false}}
				last = max(last, revision)
				continue
			}
			if len(want[key]) == 0 {
				want[key] = []state{{}}
			}
			want[key] = append(want[key], state{record: string(w.record)})
		}
		if done, ok := c.acks[i][0]; ok && len(st.writes) == 0 {
			generation = max(generation, done)
		}
	}
	if got := oldestGeneration(s); uint64(got) < generation {
		return fmt.Errorf("data keys have generation %d again; they had %d", got, generation)
	}
	for _, bucket := range []string{"sessions", "latches"} {
		got := map[string]state{}
		if err := s.Bucket(bucket).Range(func(name string, record []byte, revision uint64) bool {
			got[bucket+"/"+name] = state{record: string(record), revision: revision}
			return true
		}); err != nil {
			return err
		}
		for key, g := range got {
			last = max(last, g.revision)
			if want[key] == nil {
				return fmt.Errorf("%s is there, revision %d, and never was written", key, g.revision)
			}
		}
		for key, states := range want {
			if !strings.HasPrefix(key, bucket+"/") {
				continue
			}
			g := got[key]
			if !slices.ContainsFunc(states, func(w state) bool {
				return g.record == w.record && (w.back || w.revision == g.revision || w.revision == 0 && (g.revision > before || w.record == ""))
			}) {
				return fmt.Errorf("%s is %.20q at revision %d; want %.40v", key, g.record, g.revision, states)
			}
		}
	}
	revision, err := s.Bucket("latches").Swap(context.Background(), "CANARY-afterwards", 0, []byte("CANARY-afterwards"))
	if err == nil && revision <= last {
		err = fmt.Errorf("revision %d after %d", revision, last)
	}
	return err
}

// checkTree is bbolt's own check.
func checkTree(tx *bbolt.Tx) (err error) {
	for e := range tx.Check() {
		err = errors.Join(err, e)
	}
	return err
}

// call is a system call that did its work.
type call struct {
	name   string
	args   []string
	result int64
}

// traced are the system calls that change files or say that they are safe. The model
// knows no others: that these are all that the store makes, the end of run shows.
const traced = "openat,close,write,writev,pwrite64,pwritev,ftruncate,fallocate,fsync,fdatasync,linkat,renameat,renameat2,unlinkat,mkdirat"

// trace runs a child and returns its system calls, in the order in which they ended;
// what it says on standard output stands where it began to say so.
func (c *crash) trace(path string) []call {
	t := c.t
	out := filepath.Join(t.TempDir(), "calls")
	cmd := newChild(t, c.mode, path, fmt.Sprint(c.seed, " ", c.from))
	underStrace(t, cmd, slices.Concat([]string{"--seccomp-bpf", "-xx", "-s", "16777216", "-e", "trace=" + traced, "-o", out}, c.inject)...)
	cmd.Stdout = io.Discard
	if err := cmd.Run(); err != nil {
		t.Fatal(childErr(cmd, err))
	}
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(text) {
		if bytes.Contains(line, []byte("(INJECTED)")) {
			_, call, _ := strings.Cut(string(line), " ")
			call = strings.TrimPrefix(strings.TrimSpace(call), "<... ")
			c.faults[call[:strings.IndexAny(call, "( ")]]++
		}
	}
	calls, err := parseCalls(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return calls
}

// underStrace has a child run under strace.
func underStrace(t *testing.T, cmd *exec.Cmd, args ...string) {
	t.Helper()
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Fatal(err)
	}
	cmd.Path, cmd.Args = strace, slices.Concat([]string{"strace", "-f", "-qqq", "-e", "signal=none"}, args, []string{cmd.Path})
}

// parseCalls reads what strace -f -xx wrote, which is much.
func parseCalls(r io.Reader) ([]call, error) {
	var calls []call
	unfinished := map[string]string{} // by thread
	said := map[string]bool{}         // by thread: is what it is saying in calls already?
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		thread, text, _ := strings.Cut(lines.Text(), " ")
		text = strings.TrimLeft(text, " ")
		if begun, ok := strings.CutSuffix(text, "<unfinished ...>"); ok {
			begun = strings.TrimRight(begun, " ")
			if strings.HasSuffix(begun, ",") {
				begun += " "
			}
			unfinished[thread] = begun
			if strings.HasPrefix(begun, "write(1, ") {
				said[thread] = true
				name, args, _ := strings.Cut(begun, "(")
				fields := strings.Split(args, ", ")
				n, err := strconv.ParseInt(fields[len(fields)-1], 10, 64)
				if err != nil {
					return nil, fmt.Errorf("%.200q: %w", text, err)
				}
				calls = append(calls, call{name, fields, n})
			}
			continue
		}
		if strings.HasPrefix(text, "<... ") {
			_, end, _ := strings.Cut(text, " resumed>")
			text = unfinished[thread] + end
			delete(unfinished, thread)
			if said[thread] {
				delete(said, thread)
				continue
			}
		}
		at := strings.LastIndex(text, " = ")
		made, ok := strings.CutSuffix(strings.TrimRight(text[:max(at, 0)], " "), ")")
		name, args, ok2 := strings.Cut(made, "(")
		if !ok || !ok2 {
			return nil, fmt.Errorf("strace wrote %.200q", text)
		}
		came, _, _ := strings.Cut(text[at+len(" = "):], " ")
		if came == "?" { // it ended with the process
			continue
		}
		result, err := strconv.ParseInt(came, 10, 64)
		if err != nil {
			return nil, err
		}
		if result >= 0 {
			calls = append(calls, call{name, strings.Split(args, ", "), result})
		}
	}
	return calls, lines.Err()
}

// number returns an argument that is a number.
func (c call) number(i int) (int64, error) {
	if i >= len(c.args) {
		return 0, errors.New("arguments are missing")
	}
	return strconv.ParseInt(c.args[i], 10, 64)
}

// bytes returns an argument that is a string, as -xx writes it.
func (c call) bytes(i int) ([]byte, error) {
	if i >= len(c.args) {
		return nil, errors.New("arguments are missing")
	}
	s, ok := strings.CutPrefix(c.args[i], `"`)
	s, ok2 := strings.CutSuffix(s, `"`)
	if !ok || !ok2 {
		return nil, fmt.Errorf("%.40q is not a whole string", c.args[i])
	}
	return hex.DecodeString(strings.ReplaceAll(s, `\x`, ""))
}

// disk is a model of one: what is on it for good, and what was written since.
type disk struct {
	base  string
	names map[string]*node // as the process sees them
	safe  map[string]*node // as they are after a crash
	moves []move           // made since
	open  map[int64]*handle
}

// node is a file or a directory.
type node struct {
	dir     bool
	safe    []byte
	pending []change
}

// change is a write, or the end of the file if data is nil.
type change struct {
	offset int64
	data   []byte
}

// move gives names to nodes, or takes them away, at once.
type move struct {
	dir   string
	names map[string]*node // nil: the name goes
}

type handle struct {
	path   string
	node   *node
	offset int64
	sync   bool // after each write
}

func newDisk(base string) *disk {
	root := &node{dir: true}
	return &disk{base: base, names: map[string]*node{base: root}, safe: map[string]*node{base: root}, open: map[int64]*handle{}}
}

// opened reports whether a store has its name.
func (d *disk) opened() bool { return d.names[filepath.Join(d.base, "state", "store.db")] != nil }

// dirty reports whether a crash can leave more than one state.
func (d *disk) dirty() bool {
	if len(d.moves) > 0 {
		return true
	}
	for _, n := range d.safe {
		if len(n.pending) > 0 {
			return true
		}
	}
	return false
}

func (d *disk) move(dir string, names map[string]*node) {
	for name, n := range names {
		if n == nil {
			delete(d.names, name)
		} else {
			d.names[name] = n
		}
	}
	d.moves = append(d.moves, move{dir, names})
}

// apply does a system call, and returns what it wrote to standard output, or that it
// is a sync of what the store has.
func (d *disk) apply(c call) (said string, sync bool, err error) {
	fd, _ := c.number(0)
	h := d.open[fd]
	switch c.name {
	case "openat":
		path, err := c.bytes(1)
		if err != nil {
			return "", false, err
		}
		delete(d.open, c.result)
		p := string(path)
		if p != d.base && !strings.HasPrefix(p, d.base+"/") {
			return "", false, nil
		}
		n := d.names[p]
		if n == nil {
			if !strings.Contains(c.args[2], "O_CREAT") {
				return "", false, fmt.Errorf("%s was opened and is not there", p)
			}
			n = &node{}
			d.move(filepath.Dir(p), map[string]*node{p: n})
		}
		if strings.Contains(c.args[2], "O_TRUNC") || strings.Contains(c.args[2], "O_APPEND") {
			return "", false, fmt.Errorf("opened with %s, which the model does not know", c.args[2])
		}
		d.open[c.result] = &handle{path: p, node: n, sync: strings.Contains(c.args[2], "O_SYNC")}
	case "close":
		delete(d.open, fd)
	case "write":
		data, err := c.bytes(1)
		switch {
		case err != nil:
			return "", false, err
		case fd == 1:
			return string(data), false, nil
		case h != nil:
			h.write(h.offset, data[:c.result])
			h.offset += c.result
		}
	case "pwrite64":
		data, err := c.bytes(1)
		offset, err2 := c.number(3)
		if err := errors.Join(err, err2); err != nil {
			return "", false, err
		}
		if h != nil {
			h.write(offset, data[:c.result])
		}
	case "ftruncate":
		size, err := c.number(1)
		if err != nil {
			return "", false, err
		}
		if h != nil {
			h.node.pending = append(h.node.pending, change{size, nil})
		}
	case "fsync", "fdatasync":
		return "", h != nil, nil
	case "mkdirat", "unlinkat":
		path, err := c.bytes(1)
		if err != nil {
			return "", false, err
		}
		var n *node
		if c.name == "mkdirat" {
			n = &node{dir: true}
		}
		d.move(filepath.Dir(string(path)), map[string]*node{string(path): n})
	case "linkat", "renameat", "renameat2":
		from, err := c.bytes(1)
		to, err2 := c.bytes(3)
		if err := errors.Join(err, err2); err != nil {
			return "", false, err
		}
		n := d.names[string(from)]
		if n == nil || filepath.Dir(string(from)) != filepath.Dir(string(to)) {
			return "", false, fmt.Errorf("from %s to %s, which the model does not know", from, to)
		}
		names := map[string]*node{string(to): n}
		if c.name != "linkat" {
			names[string(from)] = nil
		}
		d.move(filepath.Dir(string(to)), names)
	default:
		return "", false, errors.New("the model does not know it")
	}
	return "", false, nil
}

// sync puts what a handle stands for on the disk for good: of a file what is in it, of
// a directory the names.
func (d *disk) sync(c call) {
	fd, _ := c.number(0)
	h := d.open[fd]
	if !h.node.dir {
		h.node.sync()
		return
	}
	var others []move
	for _, m := range d.moves {
		if m.dir == h.path {
			m.apply(d.safe)
		} else {
			others = append(others, m)
		}
	}
	d.moves = others
}

// committing tells whether what was written last to a file that is to be synced is one of
// bbolt's meta pages: with it a transaction is done, for all who read the file.
func (d *disk) committing(c call) bool {
	fd, _ := c.number(0)
	pending := d.open[fd].node.pending
	if len(pending) == 0 {
		return false
	}
	last, page := pending[len(pending)-1], os.Getpagesize()
	return len(last.data) == page && last.offset < 2*int64(page)
}

func (h *handle) write(offset int64, data []byte) {
	h.node.pending = append(h.node.pending, change{offset, data})
	if h.sync {
		h.node.sync()
	}
}

func (n *node) sync() { n.safe, n.pending = n.after(everything{}), nil }

func (m move) apply(names map[string]*node) {
	for name, n := range m.names {
		if n == nil {
			delete(names, name)
		} else {
			names[name] = n
		}
	}
}

// fate says what of the pending changes reaches the disk.
type fate interface {
	move() bool
	cut() bool
	// sectors says which sectors of a write do, by their number.
	sectors() func(i int) bool
}

type everything struct{}

func (everything) move() bool                { return true }
func (everything) cut() bool                 { return true }
func (everything) sectors() func(i int) bool { return func(int) bool { return true } }

type nothing struct{}

func (nothing) move() bool                { return false }
func (nothing) cut() bool                 { return false }
func (nothing) sectors() func(i int) bool { return func(int) bool { return false } }

// without is everything but one move.
type without struct {
	everything
	left int // moves until then
}

func (w *without) move() bool {
	w.left--
	return w.left != -1
}

// chance keeps each change with a probability; of a third of the writes some sectors.
type chance struct {
	r       *rand.Rand
	kept    float64
	inOrder bool // no move without those before it, as with a journal
	lost    bool // one was
}

func (c *chance) move() bool {
	kept := c.r.Float64() < c.kept && !(c.inOrder && c.lost)
	c.lost = c.lost || !kept
	return kept
}

func (c *chance) cut() bool { return c.r.Float64() < c.kept }

func (c *chance) sectors() func(i int) bool {
	if c.r.IntN(3) == 0 {
		return func(int) bool { return c.r.IntN(2) == 0 }
	}
	kept := c.r.Float64() < c.kept
	return func(int) bool { return kept }
}

// sectorSize is what a disk writes whole or not at all.
const sectorSize = 512

// after returns what is in a file after a crash.
func (n *node) after(f fate) []byte {
	b := bytes.Clone(n.safe)
	for _, c := range n.pending {
		if c.data == nil {
			if !f.cut() {
				continue
			}
			if c.offset > int64(len(b)) {
				b = append(b, make([]byte, c.offset-int64(len(b)))...)
			}
			b = b[:c.offset]
			continue
		}
		keep := f.sectors()
		for at, data := c.offset, c.data; len(data) > 0; {
			size := min(sectorSize-int(at%sectorSize), len(data))
			if keep(int(at / sectorSize)) {
				if end := at + int64(size); end > int64(len(b)) {
					b = append(b, make([]byte, end-int64(len(b)))...)
				}
				copy(b[at:], data[:size])
			}
			at, data = at+int64(size), data[size:]
		}
	}
	return b
}

// image is what a crash leaves: the files by their paths below the base.
type image map[string][]byte // nil: a directory

func (d *disk) image(f fate) image {
	names := maps.Clone(d.safe)
	for _, m := range d.moves {
		if f.move() {
			m.apply(names)
		}
	}
	contents := map[*node][]byte{} // a node with two names has one content
	im := image{}
	for _, path := range slices.Sorted(maps.Keys(names)) { // a directory before what is in it
		n := names[path]
		if parent := names[filepath.Dir(path)]; path != d.base && (parent == nil || !parent.dir) {
			continue // what is in a lost directory
		}
		if n.dir {
			im[strings.TrimPrefix(path, d.base)] = nil
			continue
		}
		if contents[n] == nil {
			contents[n] = append([]byte{}, n.after(f)...)
		}
		im[strings.TrimPrefix(path, d.base)] = contents[n]
	}
	return im
}

// write makes the files of an image below a directory.
func (im image) write(t *testing.T, base string) {
	t.Helper()
	for _, path := range slices.Sorted(maps.Keys(im)) {
		var err error
		if im[path] == nil {
			err = os.MkdirAll(base+path, 0o700)
		} else {
			err = os.WriteFile(base+path, im[path], 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
