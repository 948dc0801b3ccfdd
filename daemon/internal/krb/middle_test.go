package krb_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/jcmturner/gokrb5/v8/iana/nametype"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/krb"
	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// middle is a connection to a KDC on which somebody changes the answers. What
// happens to one is decided by its first byte, the tag of the message.
type middle struct {
	net.Conn
	change  func(answer []byte) []byte
	pending *bytes.Reader
}

func (c *middle) Read(b []byte) (int, error) {
	if c.pending == nil {
		var size [4]byte
		if _, err := io.ReadFull(c.Conn, size[:]); err != nil {
			return 0, err
		}
		answer := make([]byte, binary.BigEndian.Uint32(size[:]))
		if _, err := io.ReadFull(c.Conn, answer); err != nil {
			return 0, err
		}
		answer = c.change(answer)
		c.pending = bytes.NewReader(append(binary.BigEndian.AppendUint32(nil, uint32(len(answer))), answer...))
	}
	return c.pending.Read(b)
}

// through dials KDCs by way of somebody who changes the first answer for which
// change returns another one.
func through(change func(answer []byte) []byte) func(ctx context.Context, network, address string) (net.Conn, error) {
	done := false
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		if err != nil || network != "tcp" {
			return conn, err
		}
		return &middle{Conn: conn, change: func(answer []byte) []byte {
			if done {
				return answer
			}
			changed := change(bytes.Clone(answer))
			done = !bytes.Equal(changed, answer)
			return changed
		}}, nil
	}
}

const asRep = 0x6b

// A KRB-ERROR and much of a KDC-REP are not protected (RFC 4120, 5.4.2, 5.9.1):
// whoever changes one may cost the agent that login, and not the next ones.
func TestChangedOnTheWay(t *testing.T) {
	forged := func(code int32) func([]byte) []byte {
		return func([]byte) []byte {
			k := messages.NewKRBError(types.NewPrincipalName(nametype.KRB_NT_SRV_INST, "krbtgt/RIG.TEST"), "RIG.TEST", code, "")
			k.STime = time.Now().UTC()
			return must(k.Marshal())
		}
	}
	inReply := func(old, changed []byte) func([]byte) []byte {
		return func(b []byte) []byte {
			if b[0] != asRep {
				return b
			}
			return bytes.Replace(b, old, changed, 1)
		}
	}
	kvno := []byte{0xa0, 3, 2, 1, 18, 0xa1, 3, 2, 1, 1} // enctype and version of the ticket's key
	for name, change := range map[string]func([]byte) []byte{
		"an answer that does not open": func(b []byte) []byte {
			if b[0] == asRep {
				b[len(b)-5] ^= 1
			}
			return b
		},
		"the ticket's enctype":            inReply(kvno, []byte{0xa0, 3, 2, 1, 17, 0xa1, 3, 2, 1, 1}),
		"the ticket's version":            inReply(kvno, []byte{0xa0, 3, 2, 1, 18, 0xa1, 3, 2, 1, 77}),
		"the client's realm":              inReply([]byte("\x1b\x08RIG.TEST\xa4"), []byte("\x1b\x08rig.test\xa4")),
		"a refusal of what was not tried": forged(24),
		"a demand without data":           forged(25),
		"an unknown refusal":              forged(60),
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			changed := false
			l.options.Dial = through(func(b []byte) []byte {
				answer := change(bytes.Clone(b))
				changed = changed || !bytes.Equal(answer, b)
				return answer
			})
			e := krb.New(l.options)
			defer e.Close()
			cred := l.credential("svc")
			_, first := e.Initiate(t.Context(), cred, site, krb.InitiateOptions{})
			if !changed {
				t.Fatal("nothing was changed")
			}
			if _, err := e.Initiate(t.Context(), cred, site, krb.InitiateOptions{}); err != nil {
				t.Errorf("after %v: %v", first, err)
			}
			if l.latch.sets != 0 {
				t.Error("latched")
			}
		})
	}
}

// TestMITRekeyedRealm: after a realm's own key has changed, MIT's KDC says 60 of
// every TGT.
func TestMITRekeyedRealm(t *testing.T) {
	rig.Require(t, "krb5kdc", "kdb5_util", "kadmin.local")
	ctx, dir := t.Context(), t.TempDir()
	k := must(rig.StartMIT(ctx, filepath.Join(dir, "kdc"), "RIG.TEST"))
	t.Cleanup(k.Stop)
	keytab := filepath.Join(dir, "svc.keytab")
	for _, err := range []error{k.AddPrincipal(ctx, "svc", password), k.AddService(ctx, site), k.AddService(ctx, "HTTP/b.example"), k.Keytab(ctx, keytab, "svc")} {
		if err != nil {
			t.Fatal(err)
		}
	}
	l := newLab(t)
	l.options.Config = must(krb.LoadConfig(k.Krb5ConfFile()))
	e := krb.New(l.options)
	defer e.Close()
	cred := krb.Credential{Principal: krb.Principal{Components: []string{"svc"}, Realm: "RIG.TEST"}, Keytab: keytab}
	initiate(t, e, cred, site)
	if err := k.Rekey(ctx, "krbtgt/RIG.TEST", "CANARY-new-realm-key"); err != nil {
		t.Fatal(err)
	}
	initiate(t, e, cred, "HTTP/b.example")
}

// A KDC that refuses every TGT is not stormed with logins.
func TestEveryTGTRefused(t *testing.T) {
	l := newLab(t)
	clock := newClock()
	l.options.Now = clock.now
	l.kdc.SetClock(clock.now)
	e := krb.New(l.options)
	defer e.Close()
	cred := l.credential("svc")
	for range 20 {
		if _, err := e.Initiate(t.Context(), cred, site, krb.InitiateOptions{Fresh: true}); err != nil && api.CodeOf(err) != api.KDCError {
			t.Fatal(err)
		}
		l.kdc.Rekey("krbtgt/RIG.TEST", "") // whatever it has just issued
	}
	if n := l.kdc.Counts().ASTGT; n > 3 {
		t.Errorf("%d logins within a moment", n)
	}
	clock.advance(2 * minute)
	initiate(t, e, cred, site)
}
