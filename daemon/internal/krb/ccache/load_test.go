package ccache

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sessionctl/sessionctl/api"
)

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// loads checks that the client's tickets come out of a cache.
func loads(t *testing.T, name string, client Principal) *Cache {
	t.Helper()
	c, err := Load(t.Context(), name, client)
	if err != nil {
		t.Fatal(err)
	}
	if !c.Principal.equal(client) {
		t.Errorf("%s is the cache of %s, not of %s", name, c.Principal, client)
	}
	return c
}

// unusable checks that there is nothing for the client in a cache, and that the
// error says all of words.
func unusable(t *testing.T, err error, words ...string) {
	t.Helper()
	var e *api.Error
	if !errors.As(err, &e) || e.Code != api.CCacheUnusable || e.Remedy == "" {
		t.Errorf("error %v", err)
		return
	}
	for _, word := range words {
		if !strings.Contains(e.Detail+"\n"+e.Remedy, word) {
			t.Errorf("%q, remedy %q: nothing of %q", e.Detail, e.Remedy, word)
		}
	}
	if strings.Contains(e.Detail+e.Remedy+err.Error(), "CANARY") {
		t.Errorf("a secret is in %q", e.Detail)
	}
}

func TestFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "krb5cc")
	write(t, path, encode(t, sample(alice)))
	for _, name := range []string{path, "FILE:" + path} {
		if got := loads(t, name, Principal{Realm: alice.Realm, Components: alice.Components}); !reflect.DeepEqual(got, sample(alice)) {
			t.Errorf("%+v", got)
		}
	}
	_, err := Load(t.Context(), path, bob)
	unusable(t, err, "bob@CCACHE.TEST", "alice@CCACHE.TEST", "correct the credential's principal")

	// Another cache under the same name is seen.
	next := filepath.Join(dir, "next")
	write(t, next, encode(t, sample(bob)))
	if err := os.Rename(next, path); err != nil {
		t.Fatal(err)
	}
	loads(t, path, bob)

	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "empty"), nil)
	write(t, filepath.Join(dir, "text"), []byte("CANARY-password\n"))
	write(t, filepath.Join(dir, "short"), encode(t, sample(alice))[:20])
	write(t, filepath.Join(dir, "large"), encode(t, sample(alice)))
	if err := os.Truncate(filepath.Join(dir, "large"), 1<<40); err != nil { // with a hole
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "keytab"), []byte("\x05\x02\x00\x00\x00\x2aCANARY-key"))
	// What is there is not to be lost by the next step.
	for name, words := range map[string][]string{
		"nothing": {"no such file", "as the agent's user: kinit -c FILE:" + filepath.Join(dir, "nothing") + " alice@CCACHE.TEST"},
		"fifo":    {"not a regular file", "kinit -c FILE:PATH"}, ".": {"not a regular file", "write DIR:PATH"},
		"large": {"larger than 4096 KiB", "kinit -c FILE:PATH"}, "empty": {"not a ticket cache", "kinit -c FILE:PATH"},
		"text": {"not a ticket cache", "kinit -c FILE:PATH"}, "short": {"ends before", "kinit -c FILE:PATH"},
		"keytab": {"that is a keytab", "write keytab in the place of ccache"},
	} {
		_, err := Load(t.Context(), "FILE:"+filepath.Join(dir, name), alice)
		unusable(t, err, words...)
	}
	_, err = Load(t.Context(), "FILE:/dev/zero", alice)
	unusable(t, err, "not a regular file")
}

// A KDC of Active Directory writes names in its own case. The cache of exactly the
// client's goes first.
func TestAnyCase(t *testing.T) {
	dir := t.TempDir()
	upper := Principal{Realm: alice.Realm, Components: []string{"Alice"}}
	write(t, filepath.Join(dir, "tkt1"), encode(t, sample(upper)))
	for _, name := range []string{filepath.Join(dir, "tkt1"), "DIR:" + dir} {
		if got, err := Load(t.Context(), name, alice); err != nil || got.Principal.Components[0] != "Alice" {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	write(t, filepath.Join(dir, "tkt2"), encode(t, sample(alice)))
	if got := loads(t, "DIR:"+dir, alice); got.Principal.Components[0] != alice.Components[0] {
		t.Errorf("beside one of exactly that name: %v", got.Principal)
	}
}

func TestNotOursToRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "krb5cc")
	write(t, path, encode(t, sample(alice)))
	if err := os.Chmod(path, 0); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		// For root to be refused, this thread, and no other, is nobody for a moment.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := unix.Setfsuid(65534); err != nil {
			t.Fatal(err)
		}
		defer unix.Setfsuid(0)
	}
	_, err := Load(t.Context(), path, alice)
	unusable(t, err, "permission denied", "let the agent's user read it")
}

func TestDirectory(t *testing.T) {
	dir := t.TempDir()
	name := "DIR:" + dir
	path := func(name string) string { return filepath.Join(dir, name) }
	_, err := Load(t.Context(), name, alice)
	unusable(t, err, "nothing is there", "kinit -c "+name+" alice@CCACHE.TEST")

	write(t, path("krb5cc"), encode(t, sample(alice))) // not one of the collection
	_, err = Load(t.Context(), name, alice)
	unusable(t, err, "nothing is there")

	first, second := sample(alice), sample(alice)
	first.Credentials = first.Credentials[:1]
	write(t, path("tkt1"), encode(t, first))
	write(t, path("tkt2"), encode(t, second))
	write(t, path("tkt3"), encode(t, sample(bob)))
	loads(t, name, bob)
	loads(t, "DIR::"+path("tkt3"), bob)
	_, err = Load(t.Context(), "DIR::"+path("tkt3"), alice)
	unusable(t, err, "bob@CCACHE.TEST")
	for primary, want := range map[string]*Cache{"tkt1\n": first, "tkt2\n": second, "tkt3\n": first, "tkt9\n": first, "../tkt2\n": first, "": first, "tkt2": second} {
		write(t, path("primary"), []byte(primary))
		if got := loads(t, name, alice); !reflect.DeepEqual(got, want) {
			t.Errorf("primary %q: %d credentials", primary, len(got.Credentials))
		}
	}

	// A damaged one matters only to whom no other belongs.
	write(t, path("tkt"), []byte("CANARY-password"))
	loads(t, name, alice)
	_, err = Load(t.Context(), name, Principal{Realm: "CCACHE.TEST", Components: []string{"carol"}})
	unusable(t, err, `"tkt": not a ticket cache`)
	_, err = Load(t.Context(), "DIR:"+path("none"), alice)
	unusable(t, err, "no such file")
}

// What others put there comes into a message quoted, and not at full length.
func TestNamesInMessages(t *testing.T) {
	owner := func(name string) []byte {
		return encode(t, &Cache{Principal: Principal{NameType: 1, Realm: "EVIL\x1b.TEST", Components: []string{name}}})
	}
	bounded := func(err error, words ...string) {
		t.Helper()
		unusable(t, err, words...)
		if s := err.Error() + api.AsError(err).Remedy; len(s) > 2<<10 || strings.ContainsAny(s, "\n\x1b") {
			t.Errorf("%d bytes: %.2000q", len(s), s)
		}
	}
	dir := t.TempDir()
	one := filepath.Join(dir, "one")
	write(t, one, owner("mallory\n"+strings.Repeat("x", 3900<<10)))
	_, err := Load(t.Context(), one, alice)
	bounded(err, `those of "mallory\\nxxx`, `xxx"…`)

	// Names that differ only in what is cut off are one in a message.
	for i := range 9 {
		write(t, filepath.Join(dir, "tkt"+strconv.Itoa(i)), owner(strings.Repeat("x", 1000)+strconv.Itoa(i)))
	}
	write(t, filepath.Join(dir, "tktA"), owner("carol"))
	_, err = Load(t.Context(), "DIR:"+dir, alice)
	bounded(err, `x"…, "carol@EVIL\x1b.TEST"`)
	for i := range 9 {
		write(t, filepath.Join(dir, "tkt"+strconv.Itoa(i)), owner(strconv.Itoa(i)+strings.Repeat("x", 200)))
	}
	_, err = Load(t.Context(), "DIR:"+dir, alice)
	bounded(err, `"0xxx`, `"4xxx`, "x\"… and others")

	// The name of a file in a directory is its owner's choice.
	for _, c := range []struct {
		make func(path string) error
		want string
	}{
		{func(path string) error { return os.WriteFile(path, []byte("x"), 0o600) }, "not a ticket cache"},
		{func(path string) error { return os.Mkdir(path, 0o700) }, "not a regular file"},
		{func(path string) error { return os.Symlink("\x1bnowhere", path) }, "no such file"},
	} {
		dir := t.TempDir()
		if err := c.make(filepath.Join(dir, "tkt\n\x1b[2J"+strings.Repeat("x", 230))); err != nil {
			t.Fatal(err)
		}
		_, err := Load(t.Context(), "DIR:"+dir, alice)
		bounded(err, `"tkt\n\x1b[2Jxxx`, `x"…: `, c.want)
	}
}

func TestOtherTypes(t *testing.T) {
	for name, word := range map[string]string{
		"MEMORY:x": "process that made it", "API:x": `"API"`, "MSLSA:": `"MSLSA"`, "file:/tmp/x": `"file"`, ":x": `""`, "": "no such file",
		"KEYRING:process:x": "process that made it", "KEYRING:thread:x": "process that made it", "KEYRING:nonsense:x": `"nonsense"`,
		"KEYRING:persistent:me": "not a uid", "KEYRING:persistent:-1": "not a uid",
	} {
		_, err := Load(t.Context(), name, alice)
		unusable(t, err, word, "kinit -c ")
	}
	_, err := load(t.Context(), "KCM:", alice, filepath.Join(t.TempDir(), "socket"))
	unusable(t, err, "no KCM daemon", "kinit -c FILE:")
}

func TestEndedContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "krb5cc")
	write(t, path, encode(t, sample(alice)))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, name := range []string{path, "DIR:" + filepath.Dir(path), "KCM:", "KEYRING:user:x"} {
		if c, err := Load(ctx, name, alice); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, %v", name, c, err)
		}
	}
}
