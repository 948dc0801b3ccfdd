package e2e

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/store"
)

var damageSeed = flag.Uint64("damage-seed", 0, "of the damage to stores; 0: another one each time in the long form")

const (
	damageRecords = 300 // beside those of the agent's own
	olderRecords  = 240 // that an older copy has
	onePageLoss   = damageRecords * 2 / 100
)

// A wound is what is done to the file of a store.
type wound struct {
	name string
	// lost is how many records may be lost.
	lost int
	// inPlace: the file itself has changed. noticed: the agent cannot fail to see it.
	// session: its record is not touched.
	inPlace, noticed, session bool
	// do damages the store at path, whose file is what the agent wrote, and says how. bad
	// is what lies at path then, nil: nothing that has to be kept.
	do func(r *rand.Rand, o *original, path string) (how string, bad []byte, err error)
}

// atStart are done while no agent runs.
var atStart = []wound{
	{name: "one bit", inPlace: true, lost: onePageLoss, do: inFile(func(r *rand.Rand, file []byte) (string, []byte) {
		return flip(file, r.IntN(len(file)), r.IntN(8))
	})},
	{name: "one bit of a page's head", inPlace: true, lost: onePageLoss, do: inFile(func(r *rand.Rand, file []byte) (string, []byte) {
		return flip(file, anyPage(r, file)+r.IntN(200), r.IntN(8))
	})},
	{name: "one page zeroed", inPlace: true, lost: onePageLoss, do: inFile(zeroPage)},
	{name: "one sector of garbage", inPlace: true, lost: onePageLoss, do: inFile(func(r *rand.Rand, file []byte) (string, []byte) {
		at := r.IntN(len(file)/512) * 512
		garbage(r, file[at:at+512])
		return fmt.Sprint("at ", at), file
	})},
	{name: "both meta pages zeroed", inPlace: true, noticed: true, session: true, lost: onePageLoss, do: inFile(func(_ *rand.Rand, file []byte) (string, []byte) {
		clear(file[:2*os.Getpagesize()])
		return "", file
	})},
	{name: "cut off", inPlace: true, lost: damageRecords, do: inFile(cutOff)},
	{name: "no store", inPlace: true, noticed: true, lost: damageRecords, do: inFile(func(r *rand.Rand, file []byte) (string, []byte) {
		n := r.IntN(len(file))
		garbage(r, file[:n])
		return fmt.Sprintf("%d bytes of garbage", n), file[:n]
	})},
}

// underAgent are done to the store of an agent that runs.
var underAgent = []wound{
	{name: "cut off", inPlace: true, lost: damageRecords, do: inFile(cutOff)},
	{name: "one page zeroed", inPlace: true, lost: onePageLoss, do: inFile(zeroPage)},
	{name: "an older copy over it", inPlace: true, lost: damageRecords - olderRecords + onePageLoss, noticed: true, do: func(r *rand.Rand, o *original, path string) (string, []byte, error) {
		if r.IntN(2) == 0 {
			return "by cp", o.older, os.WriteFile(path, o.older, 0o600) // which empties it first
		}
		return "in its place", o.older, overwrite(path, o.older)
	}},
	{name: "replaced", noticed: true, do: replace},
	{name: "removed", noticed: true, do: func(_ *rand.Rand, _ *original, path string) (string, []byte, error) {
		return "", nil, os.Remove(path)
	}},
	{name: "its directory removed", noticed: true, do: func(_ *rand.Rand, _ *original, path string) (string, []byte, error) {
		return "", nil, os.RemoveAll(filepath.Dir(path))
	}},
}

// inFile is a change of the file itself, as programs make it that open and write it.
func inFile(change func(r *rand.Rand, file []byte) (how string, changed []byte)) func(*rand.Rand, *original, string) (string, []byte, error) {
	return func(r *rand.Rand, _ *original, path string) (string, []byte, error) {
		file, err := os.ReadFile(path)
		if err != nil {
			return "", nil, err
		}
		how, changed := change(r, file)
		return how, changed, overwrite(path, changed)
	}
}

// overwrite writes what is new in a file, in its place, and cuts it off where that ends:
// no byte is away for a moment that does not go for good.
func overwrite(path string, file []byte) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(file, 0)
	return errors.Join(err, f.Truncate(int64(len(file))), f.Close())
}

func flip(file []byte, at, bit int) (string, []byte) {
	file[at] ^= 1 << bit
	return fmt.Sprintf("bit %d of the byte at %d", bit, at), file
}

// anyPage returns where one begins.
func anyPage(r *rand.Rand, file []byte) int {
	return r.IntN(len(file)/os.Getpagesize()) * os.Getpagesize()
}

func zeroPage(r *rand.Rand, file []byte) (string, []byte) {
	at := anyPage(r, file)
	clear(file[at : at+os.Getpagesize()])
	return fmt.Sprint("at ", at), file
}

func cutOff(r *rand.Rand, file []byte) (string, []byte) {
	n := r.IntN(len(file))
	return fmt.Sprintf("after %d of %d bytes", n, len(file)), file[:n]
}

func garbage(r *rand.Rand, b []byte) {
	for i := range b {
		b[i] = byte(r.Uint32())
	}
}

// replace gives the name of the store to something else.
func replace(r *rand.Rand, o *original, path string) (how string, bad []byte, err error) {
	other := path + ".other"
	switch how = []string{"garbage", "nothing", "another store", "an older copy", "a directory", "a symbolic link"}[r.IntN(6)]; how {
	case "garbage":
		bad = make([]byte, 1+r.IntN(1<<17))
		garbage(r, bad)
	case "nothing":
		bad = []byte{}
	case "another store":
		bad = o.other
	case "an older copy":
		bad = o.older
	case "a directory":
		return how, nil, errors.Join(os.Mkdir(other, 0o700), os.WriteFile(filepath.Join(other, "file"), nil, 0o600), os.Remove(path), os.Rename(other, path))
	case "a symbolic link":
		elsewhere := filepath.Join(filepath.Dir(filepath.Dir(path)), "elsewhere")
		return how, o.older, errors.Join(os.WriteFile(elsewhere, o.older, 0o600), os.Symlink(elsewhere, other), os.Rename(other, path))
	}
	return how, bad, errors.Join(os.WriteFile(other, bad, 0o600), os.Rename(other, path))
}

// original is what the stores are before they are damaged.
type original struct {
	*world
	key   []byte
	files [2][]byte // as one has grown, and written anew by a rekey
	older []byte    // before its last records
	other []byte    // with another key
	// records are all versions of those that no agent looks at.
	records map[string][]string
}

func newOriginal(t *testing.T) *original {
	t.Helper()
	o := &original{world: inProcess(t), records: map[string][]string{}}
	h := newHome(t, o.world)
	another := filepath.Join(t.TempDir(), "other.db")
	for _, s := range []struct {
		path     string
		from, to int
		copied   *[]byte
	}{{h.store, 0, olderRecords, &o.older}, {h.store, olderRecords, damageRecords, &o.files[0]}, {another, 0, 5, &o.other}} {
		st, err := store.Open(s.path, store.Options{Key: store.KeyFile(strings.TrimSuffix(s.path, ".db") + ".key")})
		must(t, err)
		var puts sync.WaitGroup
		var mu sync.Mutex
		for i := s.from; i < s.to; i++ {
			puts.Go(func() {
				bucket := []string{"sessions", "sessions", "tickets", "latches"}[i%4]
				name := fmt.Sprint("CANARY-name-", i)
				var revision uint64
				for n := range 1 + i%5/4 { // some have an older version in the file
					record := fmt.Sprintf("CANARY-%d-%d-%s", i, n, strings.Repeat("x", 700+i*37%800))
					var err error
					if revision, err = st.Bucket(bucket).Swap(t.Context(), name, revision, []byte(record)); err != nil {
						t.Error(err)
						return
					}
					if s.path == h.store {
						mu.Lock()
						o.records[bucket+"/"+name] = append(o.records[bucket+"/"+name], record)
						mu.Unlock()
					}
				}
			})
		}
		puts.Wait()
		must(t, st.Close())
		*s.copied, err = os.ReadFile(s.path)
		must(t, err)
	}
	var err error
	o.key, err = os.ReadFile(keyOf(h))
	must(t, err)
	a := h.start(t)
	h.ok(t, "raw", "app")
	a.stop(t)
	o.files[0], err = os.ReadFile(h.store)
	must(t, err)
	a = h.start(t)
	h.ok(t, "rekey")
	a.stop(t)
	o.files[1], err = os.ReadFile(h.store)
	must(t, err)
	if left := o.left(t, h); left != damageRecords {
		t.Fatalf("%d records in a store that nobody has damaged", left)
	}
	return o
}

// home is one with a store of its own.
func (o *original) home(t *testing.T, file []byte) *home {
	t.Helper()
	h := newHome(t, o.world)
	must(t, os.Mkdir(filepath.Dir(h.store), 0o700))
	must(t, os.WriteFile(h.store, file, 0o600))
	must(t, os.WriteFile(keyOf(h), o.key, 0o600))
	return h
}

// keyOf returns where the master key of a home's store is.
func keyOf(h *home) string { return strings.TrimSuffix(h.store, ".db") + ".key" }

// left counts the records in the store of an agent that does not run. All must be what
// was written once.
func (o *original) left(t *testing.T, h *home) (n int) {
	t.Helper()
	st, err := store.Open(h.store, store.Options{Key: store.KeyFile(keyOf(h))})
	must(t, err)
	defer st.Close()
	if err := st.Status().Err; err != nil {
		t.Error(err)
	}
	for _, bucket := range []string{"sessions", "tickets", "latches", "passwords", "lives"} {
		err := st.Bucket(bucket).Range(func(name string, record []byte, _ uint64) bool {
			versions, filler := o.records[bucket+"/"+name]
			switch {
			case filler && slices.Contains(versions, string(record)):
				n++
			case filler || strings.HasPrefix(name, "CANARY-"):
				t.Errorf("%s %s: %.40q was never written", bucket, name, record)
			}
			return true
		})
		if err != nil && api.CodeOf(err) != api.StoreDamaged { // some do not open, and are not counted
			t.Errorf("%s: %v", bucket, err)
		}
	}
	return n
}

// saying is what `sessionctl status` tells here.
type saying struct {
	Warnings []string `json:"warnings"`
	Sessions []struct {
		Site       string `json:"site"`
		NotDurable bool   `json:"not_durable"`
	} `json:"sessions"`
}

func (h *home) saying(t *testing.T) (s saying) {
	t.Helper()
	must(t, json.Unmarshal([]byte(h.ok(t, "status", "-o", "json")), &s))
	return s
}

// durable tells whether the site's session is in the store.
func (s saying) durable() bool {
	for _, site := range s.Sessions {
		if site.Site == "app" && !site.NotDurable {
			return true
		}
	}
	return false
}

// asides returns what was put aside.
func (h *home) asides(t *testing.T) []string {
	t.Helper()
	names, err := filepath.Glob(h.store + ".bad-*")
	must(t, err)
	return names
}

// said checks that the one file that was put aside is what was bad, and that status
// names it, and the log once.
func (h *home) said(t *testing.T, a *agent, kept []string, bad []byte) {
	t.Helper()
	if len(kept) != 1 {
		t.Errorf("%d files were put aside: %v", len(kept), kept)
		return
	}
	name := filepath.Base(kept[0])
	if bad != nil {
		if was, err := os.ReadFile(kept[0]); err != nil || !bytes.Equal(was, bad) {
			t.Errorf("%s is not what was bad: %d bytes of %d, %v", name, len(was), len(bad), err)
		}
	}
	warnings := h.saying(t).Warnings
	if !slices.ContainsFunc(warnings, func(w string) bool { return strings.Contains(w, name) }) {
		t.Errorf("status does not name %s: %q", name, warnings)
	}
	if n := a.lines(name); n != 1 {
		t.Errorf("the log names %s %d times:\n%s", name, n, a.log)
	}
}

// lines counts those of the log with a text in them.
func (a *agent) lines(text string) (n int) {
	for line := range strings.Lines(a.log.String()) {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

// busy returns for how long the agent has computed.
func (a *agent) busy(t *testing.T) time.Duration {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", a.cmd.Process.Pid))
	must(t, err)
	_, rest, _ := strings.Cut(string(b), ") ") // proc_pid_stat(5): utime and stime are fields 14 and 15, in 1/100 s
	f := strings.Fields(rest)
	var sum int
	for _, field := range f[11:13] {
		n, err := strconv.Atoi(field)
		must(t, err)
		sum += n
	}
	return time.Duration(sum) * 10 * time.Millisecond
}

// alive fails the test if the agent has ended.
func (a *agent) alive(t *testing.T) {
	t.Helper()
	select {
	case <-a.done:
		t.Fatalf("the agent has ended: %v\n%s", a.err, a.log)
	default:
	}
}

// watched is an agent that has nothing to do any more.
type watched struct {
	*agent
	since  time.Time
	busy   time.Duration
	logged int
}

// watch begins once nothing is under way in the agent.
func watch(t *testing.T, a *agent) watched {
	return watched{a, time.Now(), a.busy(t), len(a.log.String())}
}

// idle ends the watch: the agent was idle and did not go on to warn.
func (w watched) idle(t *testing.T) {
	t.Helper()
	w.alive(t)
	took, busy := time.Since(w.since), w.agent.busy(t)-w.busy
	if busy > took/20+100*time.Millisecond {
		t.Errorf("of %v with nothing to do, the agent has computed for %v", took, busy)
	}
	// A purge may still tell what it has left out, once.
	if more := w.log.String()[w.logged:]; strings.Count(more, "level=WARN")+strings.Count(more, "level=ERROR") > 1 {
		t.Errorf("the log goes on:\n%.2000s", more)
	}
}

// tally is what became of the files of a wound.
type tally struct {
	wound string
	aside int
	lost  []int
	slow  time.Duration
}

// answers asks for the session, and whose it is, and takes the time since the agent was
// started, or the store damaged.
func (y *tally) answers(t *testing.T, o *original, h *home, since time.Time) {
	t.Helper()
	cookie := h.ok(t, "raw", "app")
	took := time.Since(since)
	y.slow = max(y.slow, took)
	limit := 2 * time.Second
	if raceFlag == "-race" { // with which a program is some ten times slower to start
		limit *= 5
	}
	if took > limit {
		t.Errorf("the answer came after %v", took)
	}
	if who := whoami(t, o.world, cookie); who != me {
		t.Errorf("a session of %s is served", who)
	}
}

// ends stops the agent, or kills it.
func (a *agent) ends(t *testing.T, kill bool) {
	t.Helper()
	if !kill {
		a.stop(t)
		return
	}
	must(t, a.cmd.Process.Kill())
	<-a.done
}

// count adds what is left in the store.
func (y *tally) count(t *testing.T, o *original, h *home, w wound) {
	t.Helper()
	lost := damageRecords - o.left(t, h)
	y.lost = append(y.lost, lost)
	if lost < 0 || lost > w.lost {
		t.Errorf("%d of %d records are lost", lost, damageRecords)
	}
}

// again starts the agent once more, which finds a good store, with the session.
func (y *tally) again(t *testing.T, o *original, h *home, kept []string) {
	t.Helper()
	logins := o.hits(t, "/").Negotiate
	began := time.Now()
	a := h.start(t)
	y.answers(t, o, h, began)
	if n := o.hits(t, "/").Negotiate - logins; n != 0 {
		t.Errorf("the next start needs %d logins", n)
	}
	if now := h.asides(t); !slices.Equal(now, kept) {
		t.Errorf("the next start finds it damaged again: %v, %v", kept, now)
	}
	for _, w := range h.saying(t).Warnings {
		if strings.Contains(w, h.store) {
			t.Errorf("the next start warns: %s", w)
		}
	}
	a.stop(t)
	noSecrets(t, a)
}

// atStart is for a store that was damaged while no agent had it.
func (y *tally) atStart(t *testing.T, r *rand.Rand, o *original, w wound, h *home) (*agent, func()) {
	how, bad, err := w.do(r, o, h.store)
	must(t, err)
	keepOnFailure(t, h, how, bad)
	logins := o.hits(t, "/").Negotiate
	began := time.Now()
	a := h.start(t)
	y.answers(t, o, h, began)
	if w.session && o.hits(t, "/").Negotiate != logins {
		t.Error("the session was not saved from the damaged file")
	}
	kept := h.asides(t)
	if len(kept) > 0 {
		y.aside++
		h.said(t, a, kept, bad)
	} else if w.noticed || strings.Contains(a.log.String(), "was damaged") {
		t.Error("a damaged store was not kept")
	}
	kill := r.IntN(2) == 0
	return a, func() {
		h.ok(t, "refresh", "app") // a write, from which on the set hashes are those of what is left
		if !h.saying(t).durable() {
			t.Error("the session is not durable")
		}
		a.alive(t)
		a.ends(t, kill)
		noSecrets(t, a)
		y.again(t, o, h, kept)
		y.count(t, o, h, w)
	}
}

// underAgent is for a store that is damaged while the agent uses it.
func (y *tally) underAgent(t *testing.T, r *rand.Rand, o *original, w wound, h *home) (*agent, func()) {
	a := h.start(t)
	h.ok(t, "raw", "app")
	before := h.saying(t).Warnings
	how, bad, err := w.do(r, o, h.store)
	damaged := time.Now()
	must(t, err)
	// What makes the agent look at its store.
	touch := [][]string{{"status"}, {"refresh", "app"}, {"logout", "app"}, {"rekey"}}[r.IntN(4)]
	keepOnFailure(t, h, how+", then "+touch[0], bad)
	y.answers(t, o, h, damaged)
	if _, err := os.Stat(keyOf(h)); errors.Is(err, os.ErrNotExist) {
		return a, y.withoutKey(t, r, o, w, h, a)
	}
	touched := time.Now()
	h.ok(t, touch...)
	y.answers(t, o, h, touched)
	if touch[0] != "status" && w.inPlace {
		bad = nil // which the agent may have written to before it saw what has become of it
	}
	until(t, "the session is durable", func() bool { return h.saying(t).durable() })
	now, kept := h.saying(t), h.asides(t)
	switch {
	case len(kept) > 0:
		y.aside++
		h.said(t, a, kept, bad)
	case w.noticed && slices.Equal(now.Warnings, before):
		t.Errorf("nothing is said: %q", now.Warnings)
	case bad != nil && w.noticed:
		t.Error("nothing was kept")
	}
	kill := r.IntN(2) == 0
	return a, func() {
		if len(kept) == 0 { // else what was lost is stored again by itself
			h.ok(t, "refresh", "app")
			until(t, "the session is durable at the end", func() bool { return h.saying(t).durable() })
			if kept = h.asides(t); len(kept) > 0 {
				y.aside++
				h.said(t, a, kept, nil)
			}
		}
		a.alive(t)
		a.ends(t, kill)
		noSecrets(t, a)
		if len(kept) == 0 { // a purge at the end may have come upon it
			if kept = h.asides(t); len(kept) > 0 {
				y.aside++
				if n := a.lines(filepath.Base(kept[0])); n != 1 {
					t.Errorf("the log names %s %d times:\n%s", kept[0], n, a.log)
				}
			}
		}
		if len(kept) == 0 && !w.noticed { // what the agent has not touched it finds now
			began := time.Now()
			a := h.start(t)
			y.answers(t, o, h, began)
			if kept = h.asides(t); len(kept) > 0 {
				y.aside++
				h.said(t, a, kept, nil)
			}
			h.ok(t, "refresh", "app")
			a.stop(t)
		}
		y.again(t, o, h, kept)
		y.count(t, o, h, w)
	}
}

// withoutKey goes on where the key file is gone with the store. Nothing can be stored
// that would open at the next start: that is said, and ends when the key is brought
// back. Else the next start makes a new store.
func (y *tally) withoutKey(t *testing.T, r *rand.Rand, o *original, w wound, h *home, a *agent) func() {
	touched := time.Now()
	h.ok(t, "refresh", "app")
	y.answers(t, o, h, touched)
	now := h.saying(t)
	if now.durable() || !slices.ContainsFunc(now.Warnings, func(w string) bool { return strings.Contains(w, "was removed") && strings.Contains(w, keyOf(h)) }) {
		t.Errorf("durable: %v, %q", now.durable(), now.Warnings)
	}
	back, kill := r.IntN(2) == 0, r.IntN(2) == 0
	if back {
		must(t, os.MkdirAll(filepath.Dir(h.store), 0o700))
		must(t, os.WriteFile(keyOf(h), o.key, 0o600))
		touched := time.Now()
		h.ok(t, "refresh", "app")
		y.answers(t, o, h, touched)
		if now := h.saying(t); !now.durable() || a.lines("all of its") != 1 {
			t.Errorf("with the key again: durable: %v, %q", now.durable(), now.Warnings)
		}
	}
	return func() {
		a.alive(t)
		a.ends(t, kill)
		noSecrets(t, a)
		if back {
			y.again(t, o, h, nil)
			y.count(t, o, h, w)
			return
		}
		began := time.Now()
		a := h.start(t)
		y.answers(t, o, h, began)
		if !h.saying(t).durable() {
			t.Error("the session is not durable in a new store")
		}
		a.stop(t)
		y.again(t, o, h, nil)
	}
}

// keepOnFailure says what was done, and keeps the damaged file (go test -artifacts).
func keepOnFailure(t *testing.T, h *home, how string, bad []byte) {
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		t.Log("the damage: ", how)
		key, err := os.ReadFile(keyOf(h))
		dir, mkdir := os.MkdirTemp(t.ArtifactDir(), "")
		err = errors.Join(err, mkdir, os.WriteFile(filepath.Join(dir, "store.key"), key, 0o600))
		if bad != nil {
			err = errors.Join(err, os.WriteFile(filepath.Join(dir, "store.db"), bad, 0o600))
		}
		if err != nil {
			t.Log(err)
		}
	})
}

// TestDamage: an agent whose store is damaged serves all the same, at once, and does not
// end; it keeps the damaged file, has lost no more than the damage has taken, and says
// what has happened.
func TestDamage(t *testing.T) { testDamage(t, atStart, 4, (*tally).atStart) }

// TestDamageUnderAgent: so does one whose store is damaged, replaced or removed while it
// runs.
func TestDamageUnderAgent(t *testing.T) { testDamage(t, underAgent, 4, (*tally).underAgent) }

func testDamage(t *testing.T, wounds []wound, files int, try func(*tally, *testing.T, *rand.Rand, *original, wound, *home) (*agent, func())) {
	seed := *damageSeed
	if raceFlag == "-race" {
		files = 1
	}
	if os.Getenv("STORE_TORTURE") != "" {
		files, seed = 500, cmp.Or(seed, rand.Uint64())
	}
	seed = cmp.Or(seed, 1)
	t.Logf("-damage-seed=%d", seed)
	tallies := make([]tally, len(wounds))
	t.Run("with", func(t *testing.T) {
		for n, w := range wounds {
			t.Run(w.name, func(t *testing.T) {
				t.Parallel()
				y := &tallies[n]
				y.wound = w.name
				o := newOriginal(t)
				var idle []func()
				for i := range files {
					r := rand.New(rand.NewPCG(seed, uint64(n*files+i)))
					one := func(t *testing.T) (*agent, func()) { return try(y, t, r, o, w, o.home(t, o.files[i%2])) }
					if i%25 > 0 {
						t.Run(fmt.Sprint(i), func(t *testing.T) { _, finish := one(t); finish() })
						continue
					}
					// Of these agents, what they do while the others have their turn is watched.
					a, finish := one(t)
					watch := watch(t, a)
					idle = append(idle, func() { watch.idle(t); finish() })
				}
				for _, end := range idle {
					end()
				}
			})
		}
	})
	var table strings.Builder
	tab := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tab, "damage\tfiles\tput aside\tlost at most\tlost, median\tslowest answer")
	aside := 0
	for _, y := range tallies {
		aside += y.aside
		slices.Sort(y.lost)
		if len(y.lost) == 0 {
			continue
		}
		fmt.Fprintf(tab, "%s\t%d\t%d\t%d\t%d\t%v\n", y.wound, len(y.lost), y.aside, y.lost[len(y.lost)-1], y.lost[len(y.lost)/2], y.slow.Round(time.Millisecond))
	}
	tab.Flush()
	t.Logf("of %d records:\n%s", damageRecords, &table)
	if aside == 0 {
		t.Error("no file was found to be bad")
	}
}
