package rig_test

import (
	"bytes"
	"crypto/md5"
	"encoding/binary"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jcmturner/gofork/encoding/asn1"
	"github.com/jcmturner/gokrb5/v8/asn1tools"
	"github.com/jcmturner/gokrb5/v8/gssapi"
	keytabs "github.com/jcmturner/gokrb5/v8/keytab"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/spnego"
	"github.com/jcmturner/gokrb5/v8/types"
	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

const service = "HTTP/app.example"

// token is what a client asks for.
type token struct {
	bindings string // "": none
	mutual   bool
	at       time.Time
}

// make makes an SPNEGO token of svc@RIG.TEST with a ticket that the keys of a
// keytab file seal.
func (o token) make(t *testing.T, keytabFile []byte) []byte {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	keys := keytabs.New()
	must(keys.Unmarshal(keytabFile))
	client := types.NewPrincipalName(1, "svc")
	ticket, key, err := messages.NewTicket(client, "RIG.TEST", types.NewPrincipalName(2, service), "RIG.TEST", types.NewKrbFlags(),
		keys, rig.AES256SHA1, int(keys.Entries[0].KVNO), o.at.UTC(), o.at.UTC(), o.at.Add(time.Hour).UTC(), time.Time{})
	must(err)
	auth, err := types.NewAuthenticator("RIG.TEST", client)
	must(err)
	auth.CTime, auth.Cusec = o.at.UTC(), o.at.Nanosecond()/1000
	sum := binary.LittleEndian.AppendUint32(nil, 16)
	if o.bindings == "" {
		sum = append(sum, make([]byte, 16)...)
	} else {
		hash := md5.Sum(append(binary.LittleEndian.AppendUint32(make([]byte, 16), uint32(len(o.bindings))), o.bindings...))
		sum = append(sum, hash[:]...)
	}
	auth.Cksum = types.Checksum{CksumType: 0x8003, Checksum: binary.LittleEndian.AppendUint32(sum, gssapi.ContextFlagInteg)}
	ap, err := messages.NewAPReq(ticket, key, auth)
	must(err)
	if o.mutual {
		types.SetFlag(&ap.APOptions, 2)
	}
	b, err := ap.Marshal()
	must(err)
	oid, err := asn1.Marshal(gssapi.OIDKRB5.OID())
	must(err)
	st := spnego.SPNEGOToken{Init: true, NegTokenInit: spnego.NegTokenInit{
		MechTypes:      []asn1.ObjectIdentifier{gssapi.OIDKRB5.OID()},
		MechTokenBytes: asn1tools.AddASNAppTag(append(append(oid, 1, 0), b...), 0),
	}}
	b, err = st.Marshal()
	must(err)
	return b
}

// verdict is what a reply says: "AP-REP", "accepted", "rejected", or the
// KRB-ERROR with which it rejects.
func verdict(t *testing.T, reply []byte) (string, messages.KRBError) {
	t.Helper()
	var st spnego.SPNEGOToken
	if err := st.Unmarshal(reply); err != nil {
		t.Fatalf("%v in %x", err, reply)
	}
	state, mech := st.NegTokenResp.State(), st.NegTokenResp.ResponseToken
	var inner spnego.KRB5Token
	if len(mech) > 0 {
		if err := inner.Unmarshal(mech); err != nil {
			t.Fatalf("%v in %x", err, mech)
		}
	}
	switch {
	case state == spnego.NegStateAcceptCompleted && inner.IsAPRep():
		return "AP-REP", inner.KRBError
	case state == spnego.NegStateAcceptCompleted && mech == nil:
		return "accepted", inner.KRBError
	case state == spnego.NegStateReject && inner.IsKRBError():
		return "KRB-ERROR", inner.KRBError
	case state == spnego.NegStateReject && mech == nil:
		return "rejected", inner.KRBError
	}
	t.Fatalf("reply %x", reply)
	return "", inner.KRBError
}

func TestAcceptor(t *testing.T) {
	type settings struct {
		Bindings                 []byte
		RequireBindings, Windows bool
	}
	const right, wrong = "tls-server-end-point:right", "tls-server-end-point:wrong"
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	k := newKDC(t)
	k.AddService(service)
	keys := k.Keytab(service)
	k.AddService(service) // the same version, another key
	other := k.Keytab(service)
	k.Rekey(service, "")
	next := k.Keytab(service)
	for _, tc := range []struct {
		name     string
		settings settings
		keys     []byte
		token    token
		verdict  string
		code     int32
		bound    bool
	}{
		{"mutual", settings{}, keys, token{"", true, now}, "AP-REP", 0, false},
		{"one-sided", settings{}, keys, token{"", false, now}, "accepted", 0, false},
		{"bound", settings{Bindings: []byte(right)}, keys, token{right, true, now}, "AP-REP", 0, true},
		{"bound, and must be", settings{Bindings: []byte(right), RequireBindings: true}, keys, token{right, true, now}, "AP-REP", 0, true},
		{"bound for nobody", settings{}, keys, token{right, true, now}, "AP-REP", 0, false},
		{"not bound", settings{Bindings: []byte(right)}, keys, token{"", true, now}, "AP-REP", 0, false},
		{"not bound, and must be", settings{Bindings: []byte(right), RequireBindings: true}, keys, token{"", true, now}, "rejected", 0, false},
		{"bound elsewhere", settings{Bindings: []byte(right)}, keys, token{wrong, true, now}, "KRB-ERROR", 60, false},
		{"bound elsewhere, one-sided", settings{Bindings: []byte(right)}, keys, token{wrong, false, now}, "rejected", 0, false},
		{"early", settings{}, keys, token{"", true, now.Add(6 * time.Minute)}, "KRB-ERROR", 37, false},
		{"another key", settings{}, other, token{"", true, now}, "KRB-ERROR", 31, false},
		{"another key, Windows", settings{Windows: true}, other, token{"", true, now}, "KRB-ERROR", 41, false},
		{"another version", settings{}, next, token{"", true, now}, "KRB-ERROR", 44, false},
		{"another version, one-sided", settings{}, next, token{"", false, now}, "rejected", 0, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a, err := rig.NewAcceptor(tc.keys, service)
			if err != nil {
				t.Fatal(err)
			}
			a.Now = func() time.Time { return now }
			a.Bindings, a.RequireBindings, a.Windows = tc.settings.Bindings, tc.settings.RequireBindings, tc.settings.Windows
			message := tc.token.make(t, keys)
			principal, reply, err := a.Accept(message)
			kind, e := verdict(t, reply)
			if kind != tc.verdict || e.ErrorCode != tc.code {
				t.Fatalf("%s with code %d, %v; want %s with %d", kind, e.ErrorCode, err, tc.verdict, tc.code)
			}
			if good := kind == "AP-REP" || kind == "accepted"; !good {
				if err == nil || principal != "" {
					t.Errorf("refused %q, %v", principal, err)
				}
				if kind == "KRB-ERROR" && !e.STime.Equal(now) {
					t.Errorf("the service's clock reads %v, want %v", e.STime, now)
				}
				return
			}
			if err != nil || principal != "svc@RIG.TEST" || a.Bound() != tc.bound || a.Flags() != gssapi.ContextFlagInteg {
				t.Errorf("%q, bound %v, flags %#x, %v", principal, a.Bound(), a.Flags(), err)
			}
			if got := a.LastTicket(); got.Client != "svc@RIG.TEST" || got.Server != service+"@RIG.TEST" || !got.EndTime.Equal(now.Add(time.Hour)) {
				t.Errorf("ticket %+v", got)
			}
			_, reply, err = a.Accept(message)
			want := "rejected"
			if tc.token.mutual {
				want = "KRB-ERROR"
			}
			if kind, e := verdict(t, reply); err == nil || kind != want || want == "KRB-ERROR" && e.ErrorCode != 34 {
				t.Errorf("replay: %s with code %d, %v", kind, e.ErrorCode, err)
			}
		})
	}
}

// judge lets MIT's GSSAPI make tokens and judge them: a line "TOKEN name token
// reply" for each, in hexadecimal.
const judge = `
import gssapi, sys
from gssapi.raw import ChannelBindings, accept_sec_context
right, wrong = (ChannelBindings(application_data=b"tls-server-end-point:" + w) for w in (b"right", b"wrong"))
name = gssapi.Name("HTTP/app.example@RIG.TEST", gssapi.NameType.kerberos_principal)
def token(mutual, bindings):
    flags = [gssapi.RequirementFlag.integrity] + [gssapi.RequirementFlag.mutual_authentication] * mutual
    return gssapi.SecurityContext(name=name, mech=gssapi.OID.from_int_seq("1.3.6.1.5.5.2"), usage="initiate",
                                  flags=flags, channel_bindings=bindings).step()
def accept(case, token, keytab, bindings):
    creds = gssapi.Credentials(usage="accept", store={"keytab": sys.argv[1] + "/" + keytab})
    try:
        reply = accept_sec_context(token, acceptor_creds=creds, channel_bindings=bindings).token
    except gssapi.exceptions.GSSError as e:
        reply = e.token
    print("TOKEN", case, token.hex(), reply.hex())
for mutual in (True, False):
    for client in (None, right, wrong):
        for server in (None, right):
            case = "service" + ("+bound" if server else "")
            t = token(mutual, client)
            accept(case, t, "service", server)
            if client is server is None:
                accept(case, t, "service", None)
    for keytab in ("next", "other"):
        accept(keytab, token(mutual, None), keytab, None)
`

// The acceptor gives tokens of MIT's client the verdicts that MIT's acceptor
// gives them.
func TestAcceptorJudgesAsMIT(t *testing.T) {
	rig.Require(t, "py_gssapi")
	k := newKDC(t)
	k.AddPrincipal("svc", password)
	k.AddService(service)
	files := map[string][]byte{"svc": k.Keytab("svc")}
	k.AddService(service)
	files["other"] = k.Keytab(service)
	k.Rekey(service, "")
	files["next"] = k.Keytab(service)
	k.AddService(service)
	files["service"] = k.Keytab(service)
	files["krb5.conf"] = []byte(k.Krb5Conf())
	dir := t.TempDir()
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "/usr/bin/python3", "-", dir)
	cmd.Stdin = strings.NewReader(judge)
	cmd.Env = append(os.Environ(), "KRB5_CONFIG="+filepath.Join(dir, "krb5.conf"), "KRB5CCNAME=FILE:"+filepath.Join(dir, "cc"),
		"KRB5_CLIENT_KTNAME="+filepath.Join(dir, "svc"), "KRB5RCACHENAME=file2:"+filepath.Join(dir, "replays"))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, &stderr)
	}
	acceptors := make(map[string]*rig.Acceptor)
	for _, name := range []string{"service", "service+bound", "next", "other"} {
		file, bound := strings.CutSuffix(name, "+bound")
		if acceptors[name], err = rig.NewAcceptor(files[file], service); err != nil {
			t.Fatal(err)
		}
		if bound {
			acceptors[name].Bindings = []byte("tls-server-end-point:right")
		}
	}
	seen := make(map[string]int)
	for line := range strings.Lines(string(out)) {
		words := strings.Fields(line)
		if len(words) != 4 || words[0] != "TOKEN" {
			t.Fatalf("line %q", line)
		}
		sent, err1 := hex.DecodeString(words[2])
		theirs, err2 := hex.DecodeString(words[3])
		if err1 != nil || err2 != nil {
			t.Fatalf("line %q", line)
		}
		_, ours, _ := acceptors[words[1]].Accept(sent)
		want, wantError := verdict(t, theirs)
		got, gotError := verdict(t, ours)
		if got != want || gotError.ErrorCode != wantError.ErrorCode {
			t.Errorf("%s: %s with code %d, MIT says %s with %d", words[1], got, gotError.ErrorCode, want, wantError.ErrorCode)
		}
		seen[want]++
	}
	if seen["AP-REP"] != 5 || seen["accepted"] != 5 || seen["KRB-ERROR"] != 4 || seen["rejected"] != 4 {
		t.Errorf("MIT's verdicts: %v", seen)
	}
}
