package store

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"testing"

	"github.com/sessionctl/sessionctl/api"
)

// said is a passphrase that somebody gives.
func said(text string) func() ([]byte, error) {
	return func() ([]byte, error) { return []byte(text), nil }
}

// TestPassphraseKey: the parameters are those of the format. The key was made by another
// implementation: argon2(1) of the reference one, with
//
//	printf CANARY-passphrase | argon2 0123456789abcdef -id -t 3 -k 65536 -p 4 -l 32 -r
func TestPassphraseKey(t *testing.T) {
	p := passphrase{said("CANARY-passphrase")}
	key, err := p.stretch([]byte("0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	const want = "af047f6a82ad04d12b7268475a2f2e4475ef516166329400c1bdc7a568d90bbe"
	if got := hex.EncodeToString(key.bytes); got != want {
		t.Errorf("the key is %s, not %s", got, want)
	}
}

// held returns how many bytes Go's runtime has of the kernel's memory.
func held() int64 {
	m := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(m)
	return int64(m[0].Value.Uint64()) - int64(m[1].Value.Uint64())
}

// TestPassphraseMemory: what the passphrase was stretched over is the kernel's again
// right away, and with it what a key could be made of.
func TestPassphraseMemory(t *testing.T) {
	debug.FreeOSMemory()
	before := held()
	p := passphrase{said("CANARY-passphrase")}
	if _, err := p.stretch(make([]byte, saltSize)); err != nil {
		t.Fatal(err)
	}
	const slack = stretchMemory << 10 / 4
	if more := held() - before; more > slack {
		t.Errorf("%d MiB more than before are held, of the %d MiB that it takes", more>>20, stretchMemory>>10)
	}
}

func TestKeyPassphrase(t *testing.T) {
	path := newPath(t)
	salt := filepath.Join(filepath.Dir(path), "store.salt")
	const right = "CANARY-correct horse battery staple"
	var given []byte
	reads := 0
	key := KeyPassphrase(salt, func() ([]byte, error) {
		reads++
		given = []byte(right)
		return given, nil
	})
	var log logBuffer
	s, err := Open(path, Options{Key: key, Log: log.logger()})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Status().KeySource; got != "passphrase with the salt in "+salt {
		t.Errorf("source %q", got)
	}
	r := mustSwap(t, s.Bucket("sessions"), "a", 0, []byte("x"))
	mustClose(t, s)
	if reads == 0 || !bytes.Equal(given, make([]byte, len(right))) {
		t.Errorf("%d reads; it is not cleared: %q", reads, given)
	}
	if strings.Contains(log.String(), "new master key") { // of which somebody is warned
		t.Error(log.String())
	}
	if info, err := os.Lstat(salt); err != nil || info.Mode() != 0o600 || info.Size() != 16 {
		t.Errorf("salt %v, %v", info, err)
	}
	if s, err = Open(path, Options{Key: key}); err != nil {
		t.Fatal(err)
	}
	wantRecord(t, s.Bucket("sessions"), "a", "x", r)
	mustClose(t, s)

	good, err := os.ReadFile(salt)
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	nothing := func() error { return nil }
	for name, c := range map[string]struct {
		spoil func() error
		read  func() ([]byte, error)
		words []string
	}{
		"another passphrase": {nothing, said("CANARY-wrong"), []string{"the passphrase is not that of store " + path, "with the right one"}},
		"none":               {nothing, said(""), []string{"it is empty"}},
		"not to be had":      {nothing, func() ([]byte, error) { return nil, errors.New("nobody is there") }, []string{"nobody is there"}},
		"refused": {nothing, func() ([]byte, error) {
			return nil, &api.Error{Code: api.StoreKeyMissing, Detail: "nobody is asked", Remedy: "ask somebody"}
		}, []string{"nobody is asked", "ask somebody"}},
		"no salt":         {func() error { return os.Remove(salt) }, said(right), []string{salt, "no such file", "bring the file of the salt back"}},
		"another salt":    {func() error { return os.WriteFile(salt, bytes.Repeat([]byte{7}, 16), 0o600) }, said(right), []string{salt + " is not its salt"}},
		"a short salt":    {func() error { return os.Truncate(salt, 15) }, said(right), []string{"15 bytes, not 16"}},
		"all may read it": {func() error { return os.Chmod(salt, 0o644) }, said(right), []string{"mode 0644"}},
	} {
		t.Run(name, func(t *testing.T) {
			if err := c.spoil(); err != nil {
				t.Fatal(err)
			}
			_, err := Open(path, Options{Key: KeyPassphrase(salt, c.read)})
			wantError(t, err, api.StoreKeyMissing, c.words...)
			if strings.Contains(fmt.Sprintf("%+v", api.AsError(err)), "CANARY") {
				t.Errorf("the passphrase is in %v", err)
			}
			if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, before) {
				t.Errorf("the store was touched: %v", err)
			}
		})
		if err := errors.Join(os.RemoveAll(salt), os.WriteFile(salt, good, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{path, salt} {
		if b, err := os.ReadFile(file); err != nil || bytes.Contains(b, []byte("CANARY")) {
			t.Errorf("the passphrase is in %s, or %v", file, err)
		}
	}
}
