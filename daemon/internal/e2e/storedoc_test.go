package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const storePage = "docs/store.md"

// storeReader is somebody who does what docs/store.md says, with an agent that
// has its store where the page has it.
type storeReader struct {
	*world
	*home
	agent *agent // nil: it is stopped
	// What stands on the page for what is here: pairs.
	page  []string
	tools string // a directory, first in PATH
}

func newStoreReader(t *testing.T) *storeReader {
	t.Helper()
	r := &storeReader{world: inProcess(t)}
	r.home = newHome(t, r.world)
	r.home.store = filepath.Join(r.dir, ".local", "state", "sessionctl", "store.db")
	r.tools = filepath.Join(r.dir, "tools")
	must(t, os.Mkdir(r.tools, 0o700))
	must(t, os.Mkdir(filepath.Join(r.dir, "backup"), 0o700))
	// Its units find everything by themselves; so does a sessiond that is typed, here.
	must(t, os.WriteFile(filepath.Join(r.tools, "sessiond"), fmt.Appendf(nil, "#!/bin/sh\nexec '%s/sessiond' --config '%s' --store '%s' --socket '%s' --log-level error \"$@\"\n", bin, r.config, r.home.store, r.socket), 0o700))
	r.page = []string{"/media/backup", filepath.Join(r.dir, "backup"), "/home/build", r.dir}
	r.agent = r.start(t)
	return r
}

// here is a text of the page for this place, and there the other way round.
func (r *storeReader) here(text string) string { return strings.NewReplacer(r.page...).Replace(text) }
func (r *storeReader) there(text string) string {
	var back []string
	for i := 0; i < len(r.page); i += 2 {
		back = append(back, r.page[i+1], r.page[i])
	}
	return strings.NewReplacer(back...).Replace(text)
}

// counts are what two stores may differ in.
var counts = regexp.MustCompile(`\d+ (records|KiB)`)

// follow does what stands in a section's console blocks: systemctl is the test, all
// else is for a shell. What a command says is what the page shows.
func (r *storeReader) follow(t *testing.T, title string) {
	t.Helper()
	steps := shownIn(t, storePage, title)
	if len(steps) == 0 {
		t.Fatalf("%s: there is nothing to do", title)
	}
	for _, s := range steps {
		switch {
		case strings.HasPrefix(s.command, "systemctl --user stop sessiond.socket sessiond.service"):
			if r.agent != nil {
				r.agent.stop(t)
			}
			r.agent = nil
		case s.command == "systemctl --user start sessiond.socket":
			r.agent = r.start(t)
		default:
			cmd := exec.CommandContext(t.Context(), "sh", "-c", r.here(s.command))
			cmd.Dir = r.dir
			cmd.Env = append(r.env(), "SESSIONCTL_SOCKET="+r.socket, "PATH="+r.tools+":"+bin+":"+os.Getenv("PATH"))
			got := finish(t, cmd, "")
			got.stdout = regexp.MustCompile("(?m)^warning .*insecure_http.*\n").ReplaceAllString(got.stdout, "") // the page's sites have https
			said := oneSpace(counts.ReplaceAllString(r.there(got.stdout+got.stderr), "N $1"))
			if want := oneSpace(counts.ReplaceAllString(s.output, "N $1")); said != want || (got.status == 0) != !strings.Contains(want, "\n next: ") {
				t.Errorf("%s says (%d):\n%s\nthe page has:\n%s", s.command, got.status, said, want)
			}
		}
	}
}

// oneSpace is a text in which it does not count how wide columns are.
func oneSpace(text string) string {
	return strings.TrimSpace(regexp.MustCompile(` +`).ReplaceAllString(text, " "))
}

// logins returns how many the site has seen.
func (r *storeReader) logins(t *testing.T) int { return int(r.hits(t, "/").Negotiate) }

// TestStoreSteps: backup, restore, move, rekey and what to do without the key, as
// docs/store.md has them.
func TestStoreSteps(t *testing.T) {
	t.Run("back up and restore", func(t *testing.T) {
		r := newStoreReader(t)
		r.ok(t, "raw", "app")
		r.follow(t, "Where it is, and what is in it")
		r.follow(t, "Logout, purge and rekey")
		r.follow(t, "Back up")
		r.ok(t, "logout", "app")
		r.follow(t, "Restore")
		n := r.logins(t)
		if r.ok(t, "raw", "app"); r.logins(t) != n {
			t.Error("the session is not in the backup")
		}
		for _, file := range []string{"backup/store.db", ".local/state/sessionctl/store.db"} {
			if info, err := os.Stat(filepath.Join(r.dir, file)); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%s: %v, %v", file, info, err)
			}
		}
		r.agent.stop(t)
		noSecrets(t, r.agent)
	})
	t.Run("move", func(t *testing.T) {
		r := newStoreReader(t)
		r.ok(t, "raw", "app")
		build2 := t.TempDir()
		must(t, os.WriteFile(filepath.Join(r.tools, "ssh"), fmt.Appendf(nil, "#!/bin/sh\n[ \"$1\" = build2 ] || exit 1\nshift\ncd '%s' && exec sh -c \"$*\"\n", build2), 0o700))
		r.follow(t, "Move to another machine")
		if _, err := os.Stat(filepath.Dir(r.home.store)); !os.IsNotExist(err) {
			t.Errorf("something stays: %v", err)
		}
		r.home.store = filepath.Join(build2, ".local", "state", "sessionctl", "store.db")
		n := r.logins(t)
		r.start(t)
		if r.ok(t, "raw", "app"); r.logins(t) != n {
			t.Error("the session has not moved")
		}
	})
	t.Run("without the key", func(t *testing.T) {
		r := newStoreReader(t)
		r.ok(t, "raw", "app")
		key := strings.TrimSuffix(r.home.store, ".db") + ".key"
		r.agent.stop(t)
		r.agent = nil
		must(t, os.Rename(key, key+".away"))
		r.follow(t, "Without the key")
		if r.ok(t, "raw", "app"); r.logins(t) != 2 {
			t.Errorf("%d logins", r.logins(t))
		}
		// The key of another store.
		r.agent.stop(t)
		must(t, os.Rename(filepath.Join(filepath.Dir(key)+".old", "store.key.away"), key))
		got := r.run(t, "", filepath.Join(r.tools, "sessiond"))
		said := regexp.MustCompile(`the key in .* does not fit store`).FindString(got.stderr)
		if wantFailure(t, got, 5, "store_key_missing"); said == "" || !strings.Contains(readPage(t, storePage), "`the key in … does not fit store …`") {
			t.Errorf("%v", got)
		}
	})
	t.Run("from a key file to a credential", func(t *testing.T) {
		r := newStoreReader(t)
		r.ok(t, "raw", "app")
		r.agent.stop(t)
		credentials := filepath.Join(r.dir, "credentials")
		must(t, os.Mkdir(credentials, 0o700))
		must(t, os.Rename(strings.TrimSuffix(r.home.store, ".db")+".key", filepath.Join(credentials, "master")))
		r.extraEnv = []string{"CREDENTIALS_DIRECTORY=" + credentials}
		r.start(t)
		if out := r.ok(t, "status"); !regexp.MustCompile(`(?m)^key +credential master$`).MatchString(out) || strings.Contains(out, "the master key lies") {
			t.Errorf("%s", out)
		}
		if r.ok(t, "raw", "app"); r.logins(t) != 1 {
			t.Errorf("%d logins", r.logins(t))
		}
	})
}

// TestPassphrase: a store that a passphrase opens, on a terminal, which shows nothing of
// it; another passphrase, or none, as in a unit, opens nothing.
func TestPassphrase(t *testing.T) {
	const right = "CANARY-correct horse battery staple"
	const prompt = "Passphrase of the store: "
	w := inProcess(t)
	h := newHome(t, w)
	command := func() *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "sessiond"), "--config", h.config, "--store", h.store, "--socket", h.socket, "--passphrase")
		cmd.Env = h.env()
		return cmd
	}
	beside := strings.TrimSuffix(h.store, ".db")
	for range 2 {
		p := startOnTerminal(t, command())
		if p.until(t, prompt); p.echoes(t) {
			t.Error("what is typed would be shown")
		}
		if _, err := os.Lstat(h.socket); !os.IsNotExist(err) {
			t.Errorf("callers wait for somebody to type: %v", err)
		}
		p.master.Write([]byte(right + "\n"))
		if p.until(t, "the agent serves"); !p.echoes(t) {
			t.Error("the terminal was left without echo")
		}
		h.ok(t, "raw", "app")
		if out := h.ok(t, "status"); !regexp.MustCompile(`(?m)^key +passphrase with the salt in `+regexp.QuoteMeta(beside)+`\.salt$`).MatchString(out) || strings.Contains(out, "the master key lies") {
			t.Errorf("%s", out)
		}
		must(t, p.cmd.Process.Signal(syscall.SIGTERM))
		if p.end(t) != 0 || strings.Contains(p.screen.String(), "CANARY") {
			t.Errorf("%s", &p.screen)
		}
	}
	if n := w.hits(t, "/").Negotiate; n != 1 {
		t.Errorf("%d logins", n)
	}
	if _, err := os.Lstat(beside + ".key"); !os.IsNotExist(err) {
		t.Errorf("a key file was made: %v", err)
	}

	p := startOnTerminal(t, command())
	p.until(t, prompt)
	p.master.Write([]byte{3}) // Ctrl-C
	if p.until(t, "it was not waited for"); !p.echoes(t) || p.end(t) != 5 {
		t.Errorf("%s", &p.screen)
	}
	for stdin, want := range map[string]string{"CANARY-wrong\n": "the passphrase is not that of store " + h.store, "": "there is none on standard input", "\n" + right + "\n": "there is none on standard input"} {
		r := finish(t, command(), stdin)
		if wantFailure(t, r, 5, "store_key_missing"); !strings.Contains(r.stderr, want) || strings.Contains(r.stderr, "CANARY") {
			t.Errorf("%q: %v", stdin, r)
		}
	}
	unit := command() // without standard input, as systemd starts it
	unit.Env = append(unit.Env, "NOTIFY_SOCKET="+filepath.Join(h.dir, "notify"))
	var said strings.Builder
	unit.Stderr = &said
	if err := unit.Run(); unit.ProcessState.ExitCode() != 5 || !strings.Contains(said.String(), "a unit has neither") {
		t.Errorf("%v: %s", err, &said)
	}
	must(t, filepath.WalkDir(h.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || path == h.config {
			return err
		}
		b, err := os.ReadFile(path)
		if strings.Contains(string(b), "CANARY") {
			t.Errorf("a secret is in %s", path)
		}
		return err
	}))
}

// TestStoreDamage: what docs/store.md says of a damaged file, while the agent runs and
// at the start.
func TestStoreDamage(t *testing.T) {
	section := oneLine(section(t, storePage, "Damage"))
	says := func(out, phrase string) {
		t.Helper()
		if !strings.Contains(section, "`"+phrase+"`") {
			t.Errorf("the page does not say %q", phrase)
		}
		if !regexp.MustCompile("(?s)\nwarning .*" + strings.ReplaceAll(regexp.QuoteMeta(phrase), "…", ".*")).MatchString(out) {
			t.Errorf("status does not say %q: %s", phrase, out)
		}
	}
	r := newStoreReader(t)
	cookie := r.ok(t, "raw", "app")
	good, err := os.ReadFile(r.home.store)
	must(t, err)
	served := func() {
		t.Helper()
		if r.ok(t, "raw", "app") != cookie {
			t.Error("the session is not served from memory")
		}
	}
	must(t, os.Truncate(r.home.store, 0))
	says(r.ok(t, "status"), "it was put aside as …, and … records were saved from it")
	served()
	must(t, os.Remove(r.home.store))
	says(r.ok(t, "status"), "it was written anew, with all of its … records")
	key := strings.TrimSuffix(r.home.store, ".db") + ".key"
	must(t, os.Rename(key, key+".away"))
	must(t, os.Remove(r.home.store))
	says(r.ok(t, "status"), "the store is not in order: …")
	served()
	must(t, os.Rename(key+".away", key))
	says(r.ok(t, "status"), "it was written anew, with all of its … records")
	for _, kept := range r.asides(t) {
		must(t, os.Remove(kept))
	}
	must(t, r.agent.cmd.Process.Kill())
	<-r.agent.done
	clear(good[:os.Getpagesize()+64]) // bbolt's meta pages, of which each is a copy of the other
	must(t, os.WriteFile(r.home.store, good, 0o600))
	r.agent = r.start(t)
	says(r.ok(t, "status"), "it was put aside as …, and … records were saved from it")
	if r.ok(t, "raw", "app"); r.logins(t) != 1 {
		t.Error("the session was not saved")
	}
	kept, err := filepath.Glob(r.home.store + ".bad-*")
	must(t, err)
	if len(kept) != 1 {
		t.Fatalf("%s", kept)
	}
	if b, err := os.ReadFile(kept[0]); err != nil || string(b) != string(good) {
		t.Errorf("the damaged file is not kept as it was: %v", err)
	}
	r.follow(t, "Damage")
	if kept, err = filepath.Glob(r.home.store + ".bad-*"); err != nil || len(kept) > 0 {
		t.Errorf("%s, %v", kept, err)
	}
}

// TestStoreNumbers: each number on docs/store.md is the one in the code, and there is
// none that nobody has looked at; so are the words that it has from there.
func TestStoreNumbers(t *testing.T) {
	store := constants(t, "../../../store/*.go")
	span := func(name string) string { return words(time.Duration(store.of(t, name))) }
	count := func(name string) string { return strconv.Itoa(int(store.of(t, name))) }
	text := oneLine(regexp.MustCompile("(?s)\n```.*?\n```\n").ReplaceAllString(readPage(t, storePage), "\n"))
	for _, phrase := range []string{
		fmt.Sprintf("Argon2id with %s passes over %d MiB", count("stretchPasses"), int(store.of(t, "stretchMemory"))/1024),
		"sealed by AES-256-GCM", "the mode 0600", "from systemd 256 on", "keeps the last " + count("maxAside") + " files",
		fmt.Sprintf("room for %d,%03d records", int(store.of(t, "maxRecords"))/1000, int(store.of(t, "maxRecords"))%1000),
		count("keySize") + " random bytes",
		span("purgeQuiet") + " after the last such removal, " + span("purgeLimit") + " after the first at the latest",
		"again after " + span("purgeRetry"),
		"`status` says `format " + count("format") + "`",
		"A store of format " + count("oldestFormat") + " or " + strconv.Itoa(int(store.of(t, "format"))-1) + " is written anew",
	} {
		before, after, ok := strings.Cut(text, phrase)
		if !ok {
			t.Errorf("the page does not say %q", phrase)
		}
		text = before + " … " + after
	}
	text = regexp.MustCompile("`[^`]*`").ReplaceAllString(text, "`…`")
	for _, m := range regexp.MustCompile(`.{0,40}[0-9].{0,20}`).FindAllString(text, -1) {
		t.Errorf("a number that nobody has looked at: %s", m)
	}
	page := oneLine(readPage(t, storePage))
	for _, c := range []struct{ phrase, file, function, source string }{
		{"are not those that were written last: somebody else has changed the file, or it is damaged", "../../../store/set.go", "verify", `": somebody else has changed the file, or it is damaged`},
		{"records of sessions are not those that were written last", "../../../store/set.go", "verify", "records of %s are not those that were written last"},
		{"and at its end", "../../../store/write.go", "write", "if s.stale.removed {"},
		{"forgets them", "../keeper/latch.go", "Clear", "changed := err != nil"},
		{"a secret that no site has accepted yet is not tried", "../keeper/latch.go", "Begin", "s.Accepted && l.wrote"},
	} {
		if !strings.Contains(page, c.phrase) {
			t.Errorf("the page does not say %q", c.phrase)
		}
		if !strings.Contains(function(t, c.file, c.function), c.source) {
			t.Errorf("%s has no %s any more: does %q still hold?", c.function, c.source, c.phrase)
		}
	}
}
