package rig_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"reflect"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// asReq is an AS-REQ without pre-authentication.
func asReq(t *testing.T, realm, client string, padata ...types.PAData) []byte {
	t.Helper()
	req := messages.ASReq{KDCReqFields: messages.KDCReqFields{PVNO: 5, MsgType: 10, PAData: padata, ReqBody: messages.KDCReqBody{
		KDCOptions: types.NewKrbFlags(),
		Realm:      realm,
		CName:      types.NewPrincipalName(1, client),
		SName:      types.NewPrincipalName(2, "krbtgt/"+realm),
		Till:       time.Now().Add(time.Hour).UTC(),
		Nonce:      42,
		EType:      []int32{rig.AES256SHA1, rig.AES128SHA1, rig.RC4},
	}}}
	b, err := req.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// askUDP sends a datagram to a KDC and returns the answer.
func askUDP(t *testing.T, k *rig.KDC, message []byte) ([]byte, error) {
	t.Helper()
	conn, err := net.Dial("udp", k.Addr())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if _, err := conn.Write(message); err != nil {
		return nil, err
	}
	answer := make([]byte, 64<<10)
	n, err := conn.Read(answer)
	return answer[:n], err
}

// krbErrorIn decodes a KRB-ERROR.
func krbErrorIn(t *testing.T, b []byte) messages.KRBError {
	t.Helper()
	var e messages.KRBError
	if err := e.Unmarshal(b); err != nil {
		t.Fatalf("%v in %q", err, b)
	}
	return e
}

func TestKDCOverUDP(t *testing.T) {
	rig.Require(t, "kinit", "kvno")
	k := newKDC(t)
	k.AddPrincipal("svc", password)
	k.AddService("HTTP/app.example")
	mit := mitClient(t, strings.Replace(k.Krb5Conf(), "udp_preference_limit = 1\n", "udp_preference_limit = 1465\n", 1))
	login := func() {
		t.Helper()
		if out, err := mit(password+"\n", "kinit", "svc"); err != nil {
			t.Fatalf("kinit: %v: %s", err, out)
		}
		if out, err := mit("", "kvno", "HTTP/app.example"); err != nil {
			t.Fatalf("kvno: %v: %s", err, out)
		}
	}
	login()
	if got := k.Requests(); got != (rig.Requests{UDP: 3}) {
		t.Errorf("small messages: %+v", got)
	}
	// 52 makes the client come again over TCP.
	k.SetUDPLimit(100)
	login()
	if got := k.Requests(); got.TCP == 0 || got.UDP == 3 {
		t.Errorf("with a limit of 100 bytes: %+v", got)
	}
	if b, err := askUDP(t, k, asReq(t, "RIG.TEST", "svc")); err != nil || krbErrorIn(t, b).ErrorCode != 52 {
		t.Errorf("%x, %v", b, err)
	}
	// Each transport on its own.
	k.SetUDPLimit(4096)
	if err := k.SetUDP(rig.Refusing); err != nil {
		t.Fatal(err)
	}
	if b, err := askUDP(t, k, asReq(t, "RIG.TEST", "svc")); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("UDP refused: %x, %v", b, err)
	}
	if b, err := ask(t, k, asReq(t, "RIG.TEST", "svc")); err != nil || len(b) == 0 {
		t.Errorf("TCP alone: %x, %v", b, err)
	}
	login()
	if err := errors.Join(k.SetUDP(rig.Answering), k.SetTCP(rig.Refusing)); err != nil {
		t.Fatal(err)
	}
	if b, err := askUDP(t, k, asReq(t, "RIG.TEST", "svc")); err != nil || krbErrorIn(t, b).ErrorCode != 25 {
		t.Errorf("UDP alone: %x, %v", b, err)
	}
	if b, err := ask(t, k, asReq(t, "RIG.TEST", "svc")); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("TCP refused: %x, %v", b, err)
	}
	login()
	// Silence counts too.
	if err := k.SetUDP(rig.Silent); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("udp", k.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	before := k.Requests().UDP
	if _, err := conn.Write(asReq(t, "RIG.TEST", "svc")); err != nil {
		t.Fatal(err)
	}
	for k.Requests().UDP == before { // read, and not answered
		if t.Context().Err() != nil {
			t.Fatal("the datagram never arrived")
		}
		runtime.Gosched()
	}
	for _, mode := range []rig.Mode{rig.Garbage, rig.Truncating} {
		if err := k.SetUDP(mode); err != nil {
			t.Fatal(err)
		}
		b, err := askUDP(t, k, asReq(t, "RIG.TEST", "svc"))
		if e := new(messages.KRBError); err != nil || len(b) == 0 || e.Unmarshal(b) == nil {
			t.Errorf("mode %d: %q, %v", mode, b, err)
		}
	}
	for _, mode := range []rig.Mode{rig.HTTPServer, rig.HugeLength, rig.Flood, rig.LongFlood} {
		if err := k.SetMode(mode); err != nil {
			t.Fatal(err)
		}
		if b, err := askUDP(t, k, asReq(t, "RIG.TEST", "svc")); err == nil {
			t.Errorf("mode %d over UDP: %q", mode, b)
		}
	}
}

func TestKDCStreams(t *testing.T) {
	k := newKDC(t)
	k.AddPrincipal("svc", password)
	request := asReq(t, "RIG.TEST", "svc")
	set := func(mode rig.Mode) net.Conn {
		t.Helper()
		if err := k.SetMode(mode); err != nil {
			t.Fatal(err)
		}
		conn, err := net.Dial("tcp", k.Addr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		if _, err := conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(request))), request...)); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	if b, err := io.ReadAll(set(rig.HTTPServer)); err != nil || !bytes.HasPrefix(b, []byte("HTTP/1.1 400 ")) {
		t.Errorf("web server: %q, %v", b, err)
	}
	whole, err := io.ReadAll(set(rig.Answering))
	if err != nil {
		t.Fatal(err)
	}
	if len(whole) < 100 || binary.BigEndian.Uint32(whole) != uint32(len(whole)-4) {
		t.Errorf("answering: %x", whole)
	}
	// Two answers differ in length, by the digits of their microseconds.
	b, err := io.ReadAll(set(rig.Truncating))
	if err != nil || len(b) < 50 || len(b) != (4+int(binary.BigEndian.Uint32(b)))/2 || b[4] != whole[4] {
		t.Errorf("truncating: %x of an answer like %x, %v", b, whole, err)
	}
	for mode, length := range map[rig.Mode]uint32{rig.Flood: 100, rig.LongFlood: 1<<20 - 1} {
		conn := set(mode)
		b := make([]byte, 3<<20)
		if _, err := io.ReadFull(conn, b); err != nil || binary.BigEndian.Uint32(b) != length {
			t.Errorf("mode %d: length %d, %v", mode, binary.BigEndian.Uint32(b), err)
		}
		conn.Close() // ends the flood
	}
}

// MIT's client finds out each lie, or is not harmed by it.
func TestKDCLies(t *testing.T) {
	rig.Require(t, "kinit", "kvno")
	k := newKDC(t)
	k.AddPrincipal("svc", password)
	k.AddService("HTTP/app.example")
	mit := mitClient(t, k.Krb5Conf())
	set := func(mode rig.Mode) {
		t.Helper()
		if err := k.SetMode(mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		name    string
		mode    rig.Mode
		as, tgs string // what MIT says; "": it takes the lie
	}{
		{"nonce", rig.WrongNonce, "did not match expectations", "did not match expectations"},
		{"client", rig.WrongClient, "did not match expectations", "did not match expectations"},
		{"server", rig.WrongServer, "did not match expectations", "did not match expectations"},
		{"realm", rig.WrongRealm, "did not match expectations", ""},
		{"short key", rig.ShortKey, "", ""},
		{"key", rig.WrongKey, "Password incorrect", "Decrypt integrity check failed"},
		{"type", rig.WrongType, "Invalid message type", "Invalid message type"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			set(tc.mode)
			if out, err := mit(password+"\n", "kinit", "svc"); (err == nil) != (tc.as == "") || !strings.Contains(out, tc.as) {
				t.Errorf("kinit: %v: %s", err, out)
			}
			set(rig.Answering)
			if out, err := mit(password+"\n", "kinit", "svc"); err != nil {
				t.Fatalf("kinit: %v: %s", err, out)
			}
			set(tc.mode)
			if out, err := mit("", "kvno", "HTTP/app.example"); (err == nil) != (tc.tgs == "") || !strings.Contains(out, tc.tgs) {
				t.Errorf("kvno: %v: %s", err, out)
			}
		})
	}
	set(rig.HugeIterations)
	if out, err := mit(password+"\n", "kinit", "svc"); err == nil || !strings.Contains(out, "Invalid key generation parameters") {
		t.Errorf("kinit with huge iterations: %v: %s", err, out)
	}
	set(rig.ManyPAData)
	if out, err := mit(password+"\n", "kinit", "svc"); err != nil {
		t.Errorf("kinit with much METHOD-DATA: %v: %s", err, out)
	}
}

// methods asks for a TGT without pre-authentication and returns the METHOD-DATA
// of the refusal and its ETYPE-INFO2.
func methods(t *testing.T, k *rig.KDC, client string) (types.PADataSequence, types.ETypeInfo2) {
	t.Helper()
	b, err := ask(t, k, asReq(t, k.Realm(), client))
	if err != nil || len(b) < 4 {
		t.Fatalf("%x, %v", b, err)
	}
	e := krbErrorIn(t, b[4:])
	if e.ErrorCode != 25 {
		t.Fatalf("%v, want a demand for pre-authentication", e)
	}
	var data types.PADataSequence
	if err := data.Unmarshal(e.EData); err != nil {
		t.Fatal(err)
	}
	for _, pa := range data {
		if pa.PADataType == 19 {
			info, err := pa.GetETypeInfo2()
			if err != nil {
				t.Fatal(err)
			}
			return data, info
		}
	}
	t.Fatal("no ETYPE-INFO2")
	return nil, nil
}

func TestKDCDemands(t *testing.T) {
	k := newKDC(t)
	k.AddPrincipal("svc", password, rig.RC4, rig.AES128SHA1, rig.AES256SHA1)
	k.SetSalt("svc", "CANARY-salt")
	k.SetIterations("svc", 5000)
	set := func(mode rig.Mode) {
		t.Helper()
		if err := k.SetMode(mode); err != nil {
			t.Fatal(err)
		}
	}
	data, info := methods(t, k, "svc")
	want := types.ETypeInfo2{ // as the client orders the enctypes
		{EType: rig.AES256SHA1, Salt: "CANARY-salt", S2KParams: []byte{0, 0, 0x13, 0x88}},
		{EType: rig.AES128SHA1, Salt: "CANARY-salt", S2KParams: []byte{0, 0, 0x13, 0x88}},
		{EType: rig.RC4, Salt: "CANARY-salt"},
	}
	if !reflect.DeepEqual(info, want) || len(data) != 2 {
		t.Errorf("%d entries, %+v; want %+v", len(data), info, want)
	}
	set(rig.HugeIterations)
	if _, info = methods(t, k, "svc"); !bytes.Equal(info[0].S2KParams, []byte{0xff, 0xff, 0xff, 0xff}) {
		t.Errorf("huge iterations: %+v", info)
	}
	set(rig.ManyPAData)
	if data, _ = methods(t, k, "svc"); len(data) != 10_002 {
		t.Errorf("much METHOD-DATA: %d entries", len(data))
	}
	set(rig.ShortKey)
	k.NoPreauth("svc")
	b, err := ask(t, k, asReq(t, "RIG.TEST", "svc"))
	if err != nil || len(b) < 4 {
		t.Fatalf("%x, %v", b, err)
	}
	var rep messages.ASRep
	if err := rep.Unmarshal(b[4:]); err != nil {
		t.Fatal(err)
	}
	key, _, err := crypto.GetKeyFromPassword(password, rep.CName, rep.CRealm, rep.EncPart.EType, rep.PAData)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := crypto.DecryptEncPart(rep.EncPart, key, keyusage.AS_REP_ENCPART)
	if err != nil {
		t.Fatal(err)
	}
	var part messages.EncKDCRepPart
	if err := part.Unmarshal(plain); err != nil || part.Nonce != 42 || len(part.Key.KeyValue) != 31 {
		t.Errorf("short key: %d bytes, nonce %d, %v", len(part.Key.KeyValue), part.Nonce, err)
	}
}

// Accounts as AD and old realms have them, as MIT's kinit meets them.
func TestKDCAccounts(t *testing.T) {
	rig.Require(t, "kinit", "kvno")
	k := newKDC(t)
	k.CaseInsensitive(true)
	k.AddPrincipal("Svc", password)
	k.SetSalt("Svc", "OLD.TESTsvc")
	k.SetIterations("Svc", 5000)
	k.SetPACSize("Svc", 9000)
	k.AddPrincipal("old", password, rig.RC4)
	k.AddPrincipal("open", password)
	k.NoPreauth("open")
	k.AddService("HTTP/app.example", rig.RC4)
	mit := mitClient(t, k.Krb5Conf())
	kinit := func(args ...string) rig.Ticket {
		t.Helper()
		if out, err := mit(password+"\n", "kinit", args...); err != nil {
			t.Fatalf("kinit %v: %v: %s", args, err, out)
		}
		return k.LastTicket()
	}
	kvno := func() rig.Ticket {
		t.Helper()
		if out, err := mit("", "kvno", "HTTP/app.example"); err != nil {
			t.Fatalf("kvno: %v: %s", err, out)
		}
		return k.LastTicket()
	}

	if got := kinit("SVC"); got.Client != "SVC@RIG.TEST" || got.PAC != 9000 {
		t.Errorf("in another case: %+v", got)
	}
	if got := kvno(); got.Client != "SVC@RIG.TEST" || got.PAC != 9000 || got.KeyType != rig.RC4 || got.SessionKeyType != rig.RC4 {
		t.Errorf("service ticket %+v", got)
	}
	if got := kinit("-C", "SVC"); got.Client != "Svc@RIG.TEST" {
		t.Errorf("canonicalized: %+v", got)
	}
	if got := kinit("--no-request-pac", "svc"); got.PAC != 0 {
		t.Errorf("PAC not wanted: %+v", got)
	}
	if got := kvno(); got.PAC != 0 {
		t.Errorf("service ticket without a PAC: %+v", got)
	}
	if got := kinit("--request-pac", "svc"); got.PAC != 9000 {
		t.Errorf("PAC wanted: %+v", got)
	}

	if got := kinit("old"); got.KeyType != rig.AES256SHA1 || got.PAC != 0 {
		t.Errorf("rc4 principal: %+v", got)
	}
	before := k.Counts().AS
	got := kinit("open")
	if asked := k.Counts().AS - before; asked != 1 {
		t.Errorf("%d AS-REQs without pre-authentication", asked)
	}
	const preauth = 1 << 21
	if got.Flags&preauth != 0 || kvno().Flags&preauth != 0 {
		t.Errorf("flags %#x: nobody has pre-authenticated", got.Flags)
	}

	k.CaseInsensitive(false)
	if out, err := mit(password+"\n", "kinit", "svc"); err == nil || !strings.Contains(out, "not found in Kerberos database") {
		t.Errorf("case matters: %v: %s", err, out)
	}
}
