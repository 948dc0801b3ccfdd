package rig_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
	"go.uber.org/goleak"
)

// MIT's own programs take the in-process KDC for a KDC: with keys from a
// password and from a keytab, with each enctype.
func TestKDCServesMIT(t *testing.T) {
	rig.Require(t, "kinit", "kvno")
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	for name, etype := range map[string]int32{
		"aes256-sha1": rig.AES256SHA1, "aes128-sha1": rig.AES128SHA1,
		"aes256-sha2": rig.AES256SHA2, "aes128-sha2": rig.AES128SHA2,
	} {
		t.Run(name, func(t *testing.T) {
			k := newKDC(t)
			k.AddPrincipal("svc", "CANARY-password", etype)
			k.AddService("HTTP/app.example", etype)
			keytab := filepath.Join(t.TempDir(), "svc.keytab")
			if err := os.WriteFile(keytab, k.Keytab("svc"), 0o600); err != nil {
				t.Fatal(err)
			}
			mit := mitClient(t, k.Krb5Conf())
			if out, err := mit("", "kinit", "-kt", keytab, "svc"); err != nil {
				t.Fatalf("kinit with the keytab: %v: %s", err, out)
			}
			if out, err := mit("CANARY-password\n", "kinit", "svc"); err != nil {
				t.Fatalf("kinit with the password: %v: %s", err, out)
			}
			if out, err := mit("", "kvno", "HTTP/app.example"); err != nil || !strings.Contains(out, "kvno = 1") {
				t.Errorf("kvno: %v: %s", err, out)
			}
			if out, err := mit("", "kvno", "HTTP/none.example"); err == nil || !strings.Contains(out, "not found in Kerberos database") {
				t.Errorf("kvno of an unknown service: %v: %s", err, out)
			}
			if got, want := k.Counts(), (rig.Counts{AS: 4, ASTGT: 2, TGS: 1}); got != want {
				t.Errorf("counts %+v, want %+v", got, want)
			}
			k.Rekey("svc", "CANARY-other")
			if out, err := mit("", "kinit", "-kt", keytab, "svc"); err == nil || !strings.Contains(out, "Preauthentication failed") {
				t.Errorf("kinit with an old keytab: %v: %s", err, out)
			}
			k.Refuse("svc", 18)
			if out, err := mit("", "kinit", "-kt", keytab, "svc"); err == nil || !strings.Contains(out, "credentials have been revoked") {
				t.Errorf("kinit of a disabled principal: %v: %s", err, out)
			}
		})
	}
}

// mitClient returns what runs MIT's client programs with a krb5.conf and a ticket
// cache of their own.
func mitClient(t *testing.T, conf string) func(input, program string, args ...string) (string, error) {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "krb5.conf")
	if err := os.WriteFile(path, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	return func(input, program string, args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), program, args...)
		cmd.Env = append(os.Environ(), "KRB5_CONFIG="+path, "KRB5CCNAME=FILE:"+filepath.Join(dir, "cc"), "LC_ALL=C")
		cmd.Stdin = strings.NewReader(input)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
}

func newKDC(t *testing.T) *rig.KDC { return newRealm(t, "RIG.TEST") }

func newRealm(t *testing.T, realm string) *rig.KDC {
	t.Helper()
	k, err := rig.NewKDC(realm)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return k
}

// ask sends bytes to a KDC and returns what comes until it hangs up.
func ask(t *testing.T, k *rig.KDC, message []byte) ([]byte, error) {
	t.Helper()
	conn, err := net.Dial("tcp", k.Addr())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if _, err := conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(message))), message...)); err != nil {
		return nil, err
	}
	return io.ReadAll(conn)
}

func TestKDCModes(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	k := newKDC(t)
	set := func(mode rig.Mode) {
		t.Helper()
		if err := k.SetMode(mode); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := ask(t, k, []byte("nonsense")); err != nil || len(got) != 0 {
		t.Errorf("answering: %q, %v", got, err)
	}
	set(rig.Garbage)
	if got, err := ask(t, k, []byte("x")); err != nil || !bytes.Contains(got, []byte("HTTP/1.1")) {
		t.Errorf("garbage: %q, %v", got, err)
	}
	set(rig.Refusing)
	if got, err := ask(t, k, []byte("x")); err == nil {
		t.Errorf("refusing: %q", got)
	}
	set(rig.HugeLength)
	conn, err := net.Dial("tcp", k.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte{0, 0, 0, 0}); err != nil {
		t.Fatal(err)
	}
	var size [4]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil || binary.BigEndian.Uint32(size[:]) != 3<<30 {
		t.Errorf("huge length: %x, %v", size, err)
	}
	// Silent: the connection ends with the KDC, and not before it closes.
	set(rig.Silent)
	silent, err := net.Dial("tcp", k.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	if _, err := silent.Write([]byte{0, 0, 0, 1, 'x'}); err != nil {
		t.Fatal(err)
	}
	k.Close()
	if n, _ := silent.Read(make([]byte, 1)); n != 0 {
		t.Error("a silent KDC answered")
	}
}

func FuzzKDC(f *testing.F) {
	k, err := rig.NewKDC("RIG.TEST")
	if err != nil {
		f.Fatal(err)
	}
	defer k.Close()
	k.AddService("svc")
	f.Add([]byte{0x6a, 0x03, 0x30, 0x01, 0x00})
	f.Add([]byte{0x6c, 0x03, 0x30, 0x01, 0x00})
	f.Fuzz(func(t *testing.T, message []byte) {
		if _, err := ask(t, k, message); err != nil && len(message) < 1<<16 {
			t.Errorf("the KDC is gone: %v", err)
		}
		if n := k.Counts().ASTGT; n != 0 {
			t.Errorf("%d TGTs issued without a key", n)
		}
	})
}

func FuzzAcceptor(f *testing.F) {
	k, err := rig.NewKDC("RIG.TEST")
	if err != nil {
		f.Fatal(err)
	}
	k.AddService("HTTP/app.example")
	a, err := rig.NewAcceptor(k.Keytab("HTTP/app.example"), "HTTP/app.example")
	k.Close()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(rig.RejectToken())
	f.Add([]byte("NTLMSSP\x00"))
	f.Fuzz(func(t *testing.T, token []byte) {
		principal, reply, err := a.Accept(token)
		if err == nil || principal != "" {
			t.Errorf("accepted %q without a ticket", principal)
		}
		if len(reply) == 0 || reply[0] != 0xa1 {
			t.Errorf("reply %x is no NegTokenResp", reply)
		}
	})
}
