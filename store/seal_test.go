package store

import (
	"bytes"
	"encoding/binary"
	"testing"
)

func testKeyring(t testing.TB) (*keyring, dataKey) {
	t.Helper()
	k, err := newKeyring(bytes.Repeat([]byte{7}, keySize), newID())
	if err != nil {
		t.Fatal(err)
	}
	_, wrapped, err := k.newDataKey("sessions", firstGeneration)
	if err != nil {
		t.Fatal(err)
	}
	// The key that comes out of its sealed form is the one that went in.
	key := k.recordKey("sessions", "CANARY-name")
	d, err := k.unwrap(format, "sessions", wrapped)
	if err != nil {
		t.Fatal(err)
	}
	raw := k.seal(d, "sessions", key, "CANARY-name", 7, []byte("CANARY-record"))
	name, record, sequence, err := k.open(d, "sessions", key, raw)
	if name != "CANARY-name" || string(record) != "CANARY-record" || sequence != 7 || err != nil {
		t.Fatalf("open: %q, %q, %d, %v", name, record, sequence, err)
	}
	return k, d
}

// Sealing the same twice gives nothing to compare.
func TestSealDiffers(t *testing.T) {
	k, d := testKeyring(t)
	key := k.recordKey("sessions", "a")
	a := k.seal(d, "sessions", key, "a", 1, []byte("x"))
	b := k.seal(d, "sessions", key, "a", 1, []byte("x"))
	if bytes.Equal(a[headerSize:], b[headerSize:]) {
		t.Error("two seals of the same record are the same")
	}
}

// Each part of a record's place counts by itself, whatever the keys are.
func TestBinding(t *testing.T) {
	k, d := testKeyring(t)
	key := k.recordKey("sessions", "a")
	raw := k.seal(d, "sessions", key, "a", 1, []byte("x"))
	other := *k
	other.id = newID()
	for name, open := range map[string]func() error{
		"store":      func() error { _, _, _, err := other.open(d, "sessions", key, raw); return err },
		"bucket":     func() error { _, _, _, err := k.open(d, "tickets", key, raw); return err },
		"record key": func() error { _, _, _, err := k.open(d, "sessions", k.recordKey("sessions", "b"), raw); return err },
		"generation": func() error {
			later := bytes.Clone(raw)
			later[4]++
			_, _, _, err := k.open(dataKey{d.generation + 1, d.aead}, "sessions", key, later)
			return err
		},
		"sequence": func() error {
			later := bytes.Clone(raw)
			later[headerSize-1]++
			_, _, _, err := k.open(d, "sessions", key, later)
			return err
		},
	} {
		if err := open(); err != errSeal {
			t.Errorf("with another %s: %v", name, err)
		}
	}
	if _, _, _, err := k.open(d, "sessions", key, raw); err != nil {
		t.Error(err)
	}
}

func TestRecordKeys(t *testing.T) {
	k, _ := testKeyring(t)
	seen := map[string]bool{}
	for _, p := range [][2]string{{"a", "bc"}, {"ab", "c"}, {"abc", ""}, {"", "abc"}} {
		seen[string(k.recordKey(p[0], p[1]))] = true
	}
	if len(seen) != 4 {
		t.Error("different places have the same record key")
	}
}

// Nothing opens but what was sealed.
func FuzzOpenRecord(f *testing.F) {
	k, d := testKeyring(f)
	key := k.recordKey("sessions", "name")
	sealed := k.seal(d, "sessions", key, "name", 7, []byte("record"))
	f.Add([]byte(nil), uint16(0), byte(0))
	f.Add([]byte{format}, uint16(0), byte(1))
	f.Add(sealed[:headerSize], uint16(1), byte(1))
	f.Add(sealed[:len(sealed)-1], uint16(5), byte(0x80))
	f.Add(append(bytes.Clone(sealed), 0), uint16(len(sealed)-1), byte(1))
	f.Fuzz(func(t *testing.T, raw []byte, at uint16, mask byte) {
		if _, _, _, err := k.open(d, "sessions", key, raw); err == nil && !bytes.Equal(raw, sealed) {
			t.Errorf("opened %x", raw)
		}
		changed := bytes.Clone(sealed)
		changed[int(at)%len(changed)] ^= mask
		if _, _, _, err := k.open(d, "sessions", key, changed); (err == nil) != (mask == 0) {
			t.Errorf("byte %d changed by %02x: %v", int(at)%len(changed), mask, err)
		}
		if _, err := k.unwrap(format, "sessions", raw); err == nil {
			t.Errorf("%x is a data key", raw)
		}
	})
}

func FuzzSplitName(f *testing.F) {
	f.Add([]byte(nil))
	f.Add([]byte{0, 0, 0, 0})
	f.Add([]byte("\x00\x00\x00\x04namerecord"))
	f.Add([]byte("\xff\xff\xff\xffname"))
	f.Fuzz(func(t *testing.T, plain []byte) {
		name, record, err := splitName(plain)
		if err != nil {
			return
		}
		again := append(binary.BigEndian.AppendUint32(nil, uint32(len(name))), name...)
		if again = append(again, record...); !bytes.Equal(again, plain) || record == nil {
			t.Errorf("%q and %q from %q", name, record, plain)
		}
	})
}
