package krb

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jcmturner/gofork/encoding/asn1"
	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	"github.com/jcmturner/gokrb5/v8/iana/nametype"
	"github.com/jcmturner/gokrb5/v8/iana/patype"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// refusing is a KRB-ERROR whose code tells which fake KDC sent it.
func refusing(t testing.TB, code int32) []byte {
	t.Helper()
	e := messages.NewKRBError(types.PrincipalName{NameString: []string{"krbtgt", "R"}}, "R", code, "")
	b, err := e.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Tokens of the same instant differ in their time, also when the clock is set
// back a little; when it is set back far, the new time counts.
func TestStamp(t *testing.T) {
	now := time.Unix(1e9, 0)
	e := New(Options{Now: func() time.Time { return now }})
	first := e.stamp(0)
	if second := e.stamp(0); !second.After(first) {
		t.Errorf("%s follows %s", second, first)
	}
	now = now.Add(-10 * time.Millisecond)
	if third := e.stamp(0); !third.After(first) {
		t.Errorf("%s follows %s", third, first)
	}
	now = now.Add(-time.Hour)
	if got := e.stamp(0); !got.Equal(now) {
		t.Errorf("%s after the clock was set to %s", got, now)
	}
}

func sampleSealed() messages.Ticket {
	return messages.Ticket{TktVNO: 5, Realm: "R",
		SName:   types.PrincipalName{NameType: nametype.KRB_NT_SRV_HST, NameString: []string{"HTTP", "h"}},
		EncPart: types.EncryptedData{EType: 18, KVNO: 3, Cipher: []byte("sealed")}}
}

func sampleTicket() *ticket {
	inside := sampleSealed()
	sealed, err := inside.Marshal()
	if err != nil {
		panic(err)
	}
	return &ticket{
		client: Principal{[]string{"svc"}, "R"},
		server: Principal{[]string{"HTTP", "h"}, "R"},
		sealed: sealed,
		key:    types.EncryptionKey{KeyType: 18, KeyValue: []byte("CANARY-session-key-of-32-bytes-!")},
		auth:   time.Unix(1e9, 0).UTC(),
		start:  time.Unix(1e9, 0).UTC(),
		end:    time.Unix(2e9, 0).UTC(),
	}
}

func TestRecord(t *testing.T) {
	want := sampleTicket()
	b, err := want.encode("asked")
	if err != nil {
		t.Fatal(err)
	}
	got, _, err := decodeTicket(b)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("decoded %+v, %v", got, err)
	}
	for n := range b {
		if _, _, err := decodeTicket(b[:n]); err == nil {
			t.Errorf("the first %d bytes of %d are taken for a record", n, len(b))
		}
	}
	if _, _, err := decodeTicket(append(b, 0)); err == nil {
		t.Error("a byte too many is taken")
	}
	b[0]++
	if _, _, err := decodeTicket(b); err == nil || !strings.Contains(err.Error(), "version") {
		t.Errorf("another version: %v", err)
	}
	want.client.Components = make([]string, 1<<8)
	if _, err := want.encode("asked"); err == nil {
		t.Error("a name of 256 components is encoded")
	}
}

func FuzzDecodeTicket(f *testing.F) {
	b, err := sampleTicket().encode("asked")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:len(b)/2])
	f.Fuzz(func(t *testing.T, b []byte) {
		ticket, _, err := decodeTicket(b)
		if err != nil {
			if strings.Contains(err.Error(), "CANARY-") {
				t.Errorf("error %v tells the key", err)
			}
			return
		}
		ticket.usable(time.Unix(1e9, 0))
		again, err := ticket.encode("asked")
		if err != nil {
			return // what gokrb5 reads it does not always write
		}
		if back, _, err := decodeTicket(again); err != nil || back.client.String() != ticket.client.String() || !back.end.Equal(ticket.end) {
			t.Errorf("%+v reads back as %+v, %v", ticket, back, err)
		}
	})
}

func FuzzParseReply(f *testing.F) {
	f.Add(refusing(f, 25))
	f.Add(preauthRequired(f))
	f.Add(preauthRequired(f)[:60])
	f.Add(asReply(f, 3, 100))
	kdc, err := rig.NewKDC("R")
	if err != nil {
		f.Fatal(err)
	}
	defer kdc.Close()
	kdc.AddPrincipal("svc", "CANARY-password")
	kdc.AddService("HTTP/h")
	path := filepath.Join(f.TempDir(), "keytab")
	if err := os.WriteFile(path, kdc.Keytab("svc"), 0o600); err != nil {
		f.Fatal(err)
	}
	conf := filepath.Join(f.TempDir(), "krb5.conf")
	if err := os.WriteFile(conf, []byte(kdc.Krb5Conf()), 0o600); err != nil {
		f.Fatal(err)
	}
	config, err := LoadConfig(conf)
	if err != nil {
		f.Fatal(err)
	}
	var replies [][]byte
	e := New(Options{
		Config:  config,
		Records: none{}, Latch: none{}, Log: slog.New(slog.DiscardHandler),
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, address)
			return &recorder{Conn: conn, replies: &replies}, err
		},
	})
	if _, err := e.Initiate(f.Context(), Credential{Principal: Principal{[]string{"svc"}, "R"}, Keytab: path}, "HTTP/h", InitiateOptions{Mutual: true}); err != nil {
		f.Fatal(err)
	}
	for _, r := range replies {
		f.Add(r)
	}
	src := source{config: config, keys: []types.EncryptionKey{{KeyType: 18, KeyValue: make([]byte, 32)}}, etypes: []int32{18}}
	typed := source{config: config, password: "CANARY-password", etypes: []int32{17, 18, 19, 20}}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseReply(b)
		if err != nil {
			return
		}
		set := 0
		if r.refusal != nil {
			set++
			_ = e.asRefused(r.refusal, src, true)
			_ = e.tgsRefused(r.refusal, Principal{})
			for _, src := range []source{src, typed} {
				x := &asExchange{e: e, src: src}
				x.learn(r.refusal)
				_, _, _ = x.preauthentication(r.refusal.EData)
			}
		}
		if rep := fieldsOf(r); rep != nil {
			set++
			if _, err := e.ticketFrom(rep, messages.KDCReqBody{}, Principal{}, src.etypes, src.keys[0], 3); err == nil {
				t.Error("a ticket under the key of zeros")
			}
		}
		if set != 1 {
			t.Errorf("%d kinds of answer at once", set)
		}
	})
}

// FuzzKRBError gives the agent KRB-ERRORs (RFC 4120, 5.9.1) of every field that it
// looks at.
func FuzzKRBError(f *testing.F) {
	for _, code := range []int32{6, 7, 14, 18, 23, 24, 25, 37, 52, 60, 91} {
		f.Add(code, int64(1e9), "NEEDED_PREAUTH", []byte{0x30, 0x00})
	}
	info, err := asn1.Marshal(types.ETypeInfo2{{EType: 18, Salt: "Rsvc", S2KParams: []byte{0, 0, 0x10, 0}}})
	if err != nil {
		f.Fatal(err)
	}
	methods, err := asn1.Marshal(types.PADataSequence{{PADataType: patype.PA_ETYPE_INFO2, PADataValue: info},
		{PADataType: patype.PA_ENC_TIMESTAMP, PADataValue: []byte{}}, {PADataType: patype.PA_FX_COOKIE, PADataValue: []byte("cookie")}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(int32(25), int64(2e9), "", methods)
	conf := filepath.Join(f.TempDir(), "krb5.conf")
	if err := os.WriteFile(conf, []byte("[libdefaults]\ndefault_realm = R\n"), 0o600); err != nil {
		f.Fatal(err)
	}
	config, err := LoadConfig(conf)
	if err != nil {
		f.Fatal(err)
	}
	e := New(Options{Config: config, Records: none{}, Latch: none{}, Log: slog.New(slog.DiscardHandler)})
	src := source{config: config, client: Principal{[]string{"svc"}, "R"}, password: "CANARY-password", etypes: []int32{17, 18, 19, 20}}
	f.Fuzz(func(t *testing.T, code int32, stime int64, text string, data []byte) {
		k := messages.NewKRBError(types.PrincipalName{NameString: []string{"krbtgt", "R"}}, "R", code, text)
		k.STime, k.EData = time.Unix(stime%(1<<34), 0).UTC(), data
		b, err := k.Marshal()
		if err != nil {
			return
		}
		r, err := parseReply(b)
		if err != nil {
			return
		}
		x := &asExchange{e: e, src: src}
		x.learn(r.refusal)
		key, _, err := x.preauthentication(r.refusal.EData)
		if err == nil && len(key.KeyValue) == 0 {
			t.Error("no key and no error")
		}
		for _, err := range []error{err, e.asRefused(r.refusal, src, true), e.asRefused(r.refusal, src, false), e.tgsRefused(r.refusal, src.client), (&Context{now: time.Now}).refused(r.refusal)} {
			if err != nil && (api.CodeOf(err) == "" || strings.Contains(err.Error(), "CANARY-")) {
				t.Errorf("%v", err)
			}
		}
	})
}

func fieldsOf(r reply) *messages.KDCRepFields {
	switch {
	case r.as != nil:
		return &r.as.KDCRepFields
	case r.tgs != nil:
		return &r.tgs.KDCRepFields
	}
	return nil
}

// recorder keeps what was read, without the length in front.
type recorder struct {
	net.Conn
	replies *[][]byte
}

func (r *recorder) Read(b []byte) (int, error) {
	n, err := r.Conn.Read(b)
	if n > 4 {
		*r.replies = append(*r.replies, slices.Clone(b[:n]))
	}
	return n, err
}

// none has no records and no refusals.
type none struct{}

func (none) Load(string) ([]byte, uint64, error) { return nil, 0, nil }
func (none) Swap(context.Context, string, uint64, []byte) (uint64, error) {
	return 0, errors.New("kept nowhere")
}
func (none) Check(string, string, ...[]byte) error                    { return nil }
func (none) Begin(context.Context, string, string, []byte) error      { return nil }
func (none) End(context.Context, string, string, []byte, error) error { return nil }
func (none) Lost(string, string, []byte, error)                       {}
func (none) Clear(context.Context, string, string, ...[]byte) error   { return nil }

func FuzzVerify(f *testing.F) {
	kdc, err := rig.NewKDC("R")
	if err != nil {
		f.Fatal(err)
	}
	kdc.AddService("HTTP/h")
	keytab := kdc.Keytab("HTTP/h")
	kdc.Close()
	acceptor, err := rig.NewAcceptor(keytab, "HTTP/h")
	if err != nil {
		f.Fatal(err)
	}
	e := New(Options{})
	c, err := e.newContext(sampleTicket(), InitiateOptions{Mutual: true})
	if err != nil {
		f.Fatal(err)
	}
	_, reply, _ := acceptor.Accept(c.Token()) // refused: the ticket is for another key
	f.Add(reply)
	f.Add(rig.RejectToken())
	f.Add([]byte{0xa1, 0x14, 0x30, 0x12, 0xa0, 0x03, 0x0a, 0x01, 0x00, 0xa1, 0x0b, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x12, 0x01, 0x02, 0x02})
	f.Fuzz(func(t *testing.T, token []byte) {
		mutual, err := c.Verify(token)
		if mutual {
			t.Error("proved without the key")
		}
		if err != nil && api.CodeOf(err) == api.Unknown {
			t.Errorf("error without a code: %v", err)
		}
	})
}

func TestKeytab(t *testing.T) {
	kdc, err := rig.NewKDC("R")
	if err != nil {
		t.Fatal(err)
	}
	defer kdc.Close()
	kdc.AddPrincipal("svc", "CANARY-password", rig.AES128SHA2, rig.AES256SHA1)
	kdc.AddPrincipal("a/b", "CANARY-password", rig.AES128SHA1)
	svc := Principal{[]string{"svc"}, "R"}
	both := kdc.Keytab("svc", "a/b")
	rc4 := slices.Clone(kdc.Keytab("a/b"))
	at := bytes.Index(rc4, []byte{0, 17, 0, 16})
	rc4[at+1] = 23
	short := slices.Clone(kdc.Keytab("a/b"))
	short[at+1] = 18
	dir := t.TempDir()
	file := func(name string, b []byte) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(file("target", both), link); err != nil {
		t.Fatal(err)
	}
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		path string
		who  Principal
		code api.Code
		text string
	}{
		{"good", file("good", both), svc, "", ""},
		{"through a link", link, svc, "", ""},
		{"two components", file("good", both), Principal{[]string{"a", "b"}, "R"}, "", ""},
		{"missing", filepath.Join(dir, "none"), svc, api.KeytabUnreadable, "no such file"},
		{"directory", dir, svc, api.KeytabUnreadable, "not a regular file"},
		{"pipe", pipe, svc, api.KeytabUnreadable, "not a regular file"},
		{"large", file("large", make([]byte, maxKeytabSize+1)), svc, api.KeytabUnreadable, "larger than 1024 KiB"},
		{"text", file("text", []byte("CANARY-no keytab")), svc, api.KeytabUnreadable, "malformed"},
		{"empty", file("empty", nil), svc, api.KeytabUnreadable, "malformed"},
		{"no keys", file("nokeys", []byte{5, 2, 0, 0, 0, 0}), svc, api.KeytabUnreadable, "holds no keys"},
		{"somebody else's", file("else", kdc.Keytab("a/b")), svc, api.KeytabUnreadable, `no key of svc@R; it has keys of "a/b@R"`},
		{"another realm", file("good", both), Principal{[]string{"svc"}, "S"}, api.KeytabUnreadable, "svc@R"},
		{"rc4 only", file("rc4", rc4), Principal{[]string{"a", "b"}, "R"}, api.EtypeUnsupported, "arcfour-hmac"},
		{"short key", file("short", short), Principal{[]string{"a", "b"}, "R"}, api.KeytabUnreadable, "key of 16 bytes"},
	} {
		_, err := readKeytab(c.path, c.who, false)
		if api.CodeOf(err) != c.code {
			t.Errorf("%s: %v, want code %q", c.name, err, c.code)
		} else if err != nil && (!strings.Contains(err.Error(), c.text) || !strings.Contains(err.Error(), c.path)) {
			t.Errorf("%s: error %q does not name %q and the file", c.name, err, c.text)
		} else if err != nil && strings.Contains(err.Error(), "CANARY-") {
			t.Errorf("%s: error %q tells the file's bytes", c.name, err)
		}
	}

	k, err := parseKeytab(both, "keytab", svc, false)
	if err != nil {
		t.Fatal(err)
	}
	etypes := func(s source) (ids []int32) {
		for _, k := range s.keys {
			ids = append(ids, k.KeyType)
		}
		return ids
	}
	if got := etypes(k); !slices.Equal(got, []int32{rig.AES256SHA1, rig.AES128SHA2}) {
		t.Errorf("enctypes %v, want MIT's order", got)
	}
	if again, err := parseKeytab(kdc.Keytab("svc"), "keytab", svc, false); err != nil || again.fingerprint() != k.fingerprint() {
		t.Errorf("the same keys in another file: another fingerprint, %v", err)
	}
	// An enctype that only an older version has does not count.
	older := kdc.Keytab("svc")
	kdc.AddPrincipal("svc", "CANARY-password", rig.AES256SHA2)
	kdc.Rekey("svc", "CANARY-password-2")
	newer, err := parseKeytab(append(older, kdc.Keytab("svc")[2:]...), "keytab", svc, false)
	if err != nil || newer.kvno != 2 || !slices.Equal(etypes(newer), []int32{rig.AES256SHA2}) {
		t.Errorf("version %d, enctypes %v, %v; want those of version 2 alone", newer.kvno, etypes(newer), err)
	}
	if other, err := parseKeytab(kdc.Keytab("svc"), "keytab", svc, false); err != nil || other.fingerprint() == k.fingerprint() {
		t.Errorf("other keys: the same fingerprint, %v", err)
	}
}

func FuzzParseKeytab(f *testing.F) {
	kdc, err := rig.NewKDC("R")
	if err != nil {
		f.Fatal(err)
	}
	kdc.AddService("svc")
	f.Add(kdc.Keytab("svc"))
	kdc.Close()
	f.Add([]byte{5, 2, 0xff, 0xff, 0xff, 0xf0})
	f.Add([]byte{5, 1, 0, 0, 0, 1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := parseKeytab(b, "keytab", Principal{[]string{"svc"}, "R"}, true)
		if err == nil && len(k.keys) == 0 {
			t.Error("no keys and no error")
		}
		for _, key := range k.keys {
			if et, ok := enctypeOf(key.KeyType); !ok || len(key.KeyValue) != et.keySize {
				t.Errorf("a key of enctype %d, %d bytes", key.KeyType, len(key.KeyValue))
			}
		}
	})
}

// A reply that is not the answer to the request is not used, even though it
// is sealed with the right key.
func TestTicketFrom(t *testing.T) {
	e := New(Options{})
	key := types.EncryptionKey{KeyType: 18, KeyValue: []byte("CANARY-reply-key-of-thirty-two-b")}
	client := Principal{[]string{"svc"}, "R"}
	for name, c := range map[string]struct {
		spoil func(*messages.KDCRepFields, *messages.EncKDCRepPart)
		want  string
	}{
		"as asked":          {func(*messages.KDCRepFields, *messages.EncKDCRepPart) {}, ""},
		"another nonce":     {func(_ *messages.KDCRepFields, p *messages.EncKDCRepPart) { p.Nonce++ }, "nonce"},
		"another client":    {func(r *messages.KDCRepFields, _ *messages.EncKDCRepPart) { r.CName.NameString = []string{"root"} }, "root@R"},
		"another realm":     {func(r *messages.KDCRepFields, _ *messages.EncKDCRepPart) { r.CRealm = "S" }, "svc@S"},
		"two servers":       {func(r *messages.KDCRepFields, _ *messages.EncKDCRepPart) { r.Ticket.Realm = "S" }, "differ"},
		"no server":         {func(r *messages.KDCRepFields, _ *messages.EncKDCRepPart) { r.Ticket.SName.NameString = nil }, "differ"},
		"a short key":       {func(_ *messages.KDCRepFields, p *messages.EncKDCRepPart) { p.Key.KeyValue = []byte("short") }, "session key"},
		"an odd key":        {func(_ *messages.KDCRepFields, p *messages.EncKDCRepPart) { p.Key.KeyType = 23 }, "arcfour-hmac"},
		"sealed for others": {nil, errUndecipherable.Error()},
	} {
		sample := sampleTicket()
		rep := &messages.KDCRepFields{CRealm: "R", CName: types.PrincipalName{NameString: []string{"svc"}}, Ticket: sampleSealed()}
		part := messages.EncKDCRepPart{Key: sample.key, Nonce: 7, Flags: types.NewKrbFlags(),
			LastReqs: []messages.LastReq{{LRValue: sample.auth}}, AuthTime: sample.auth, EndTime: sample.end, SRealm: "R", SName: rep.Ticket.SName}
		with := key
		if c.spoil == nil {
			with.KeyValue = bytes.ToUpper(key.KeyValue)
		} else {
			c.spoil(rep, &part)
		}
		plain, err := part.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if rep.EncPart, err = crypto.GetEncryptedData(plain, with, keyusage.AS_REP_ENCPART, 1); err != nil {
			t.Fatal(err)
		}
		got, err := e.ticketFrom(rep, messages.KDCReqBody{Nonce: 7}, client, []int32{17, 18}, key, keyusage.AS_REP_ENCPART)
		switch {
		case c.want == "" && (err != nil || !reflect.DeepEqual(got, sample)):
			t.Errorf("%s: %+v, %v", name, got, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: error %v, want %q", name, err, c.want)
		}
	}
}
