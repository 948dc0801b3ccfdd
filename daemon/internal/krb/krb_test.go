package krb_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jcmturner/gokrb5/v8/gssapi"
	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/krb"
	"github.com/sessionctl/sessionctl/daemon/internal/rig"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	password = "CANARY-password"
	site     = "HTTP/app.example"
)

// lab is a realm with the principal svc and the service site, and what an
// engine for it needs.
type lab struct {
	t       *testing.T
	kdc     *rig.KDC
	dir     string
	records *records
	latch   *latch
	log     *bytes.Buffer
	options krb.Options
}

func newLab(t *testing.T) *lab {
	kdc, err := rig.NewKDC("RIG.TEST")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(kdc.Close)
	kdc.AddPrincipal("svc", password)
	kdc.AddService(site)
	l := &lab{t: t, kdc: kdc, dir: t.TempDir(), records: &records{}, latch: &latch{}, log: new(bytes.Buffer)}
	l.options = krb.Options{
		Config:  l.config(kdc.Krb5Conf()),
		Records: l.records,
		Latch:   l.latch,
		Log:     slog.New(slog.NewTextHandler(l.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	return l
}

func (l *lab) config(text string) *krb.Config {
	l.t.Helper()
	c, err := krb.LoadConfig(l.file("krb5.conf", []byte(text)))
	if err != nil {
		l.t.Fatal(err)
	}
	return c
}

func (l *lab) file(name string, data []byte) string {
	l.t.Helper()
	path := filepath.Join(l.dir, name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		l.t.Fatal(err)
	}
	return path
}

// credential writes the current keytab of a principal.
func (l *lab) credential(name string) krb.Credential {
	return krb.Credential{
		Principal: krb.Principal{Components: []string{name}, Realm: l.kdc.Realm()},
		Keytab:    l.file(name+".keytab", l.kdc.Keytab(name)),
	}
}

func (l *lab) acceptor(spn string) *rig.Acceptor {
	l.t.Helper()
	a, err := rig.NewAcceptor(l.kdc.Keytab(spn), spn)
	if err != nil {
		l.t.Fatal(err)
	}
	return a
}

func (l *lab) counts(want rig.Counts) {
	l.t.Helper()
	if got := l.kdc.Counts(); got != want {
		l.t.Errorf("KDC counts %+v, want %+v", got, want)
	}
}

func initiate(t *testing.T, e *krb.Engine, cred krb.Credential, spn string) *krb.Context {
	t.Helper()
	c, err := e.Initiate(t.Context(), cred, spn, krb.InitiateOptions{Mutual: true})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// wantCode fails unless err has the code and its text holds all of the parts.
func wantCode(t *testing.T, err error, code api.Code, parts ...string) {
	t.Helper()
	if api.CodeOf(err) != code {
		t.Errorf("error %v, want code %s", err, code)
		return
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q does not name %q", err, part)
		}
	}
}

// records is a store in memory.
type records struct {
	mu   sync.Mutex
	byte map[string][]byte
	rev  map[string]uint64
	err  error
}

func (r *records) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.byte)
}

func (r *records) Load(key string) ([]byte, uint64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.byte[key]), r.rev[key], r.err
}

func (r *records) Swap(_ context.Context, key string, revision uint64, record []byte) (uint64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return 0, r.err
	}
	if r.byte == nil {
		r.byte, r.rev = make(map[string][]byte), make(map[string]uint64)
	}
	if r.rev[key] != revision {
		return 0, errors.New("conflict")
	}
	if record == nil {
		delete(r.byte, key)
		delete(r.rev, key)
		return 0, nil
	}
	r.byte[key] = slices.Clone(record)
	r.rev[key]++
	return r.rev[key], nil
}

// latch keeps refusals in memory.
type latch struct {
	mu       sync.Mutex
	refusals map[string]*api.Error
	pending  map[string]int
	checks   int
	sets     int
	lost     int
	err      error // of End
	beginErr error
}

func (l *latch) Check(verifier, user string, secrets ...[]byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.checks++
	for _, s := range secrets {
		if e := l.refusals[verifier+user+string(s)]; e != nil {
			return e
		}
	}
	return nil
}

func (l *latch) Begin(ctx context.Context, verifier, user string, secret []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pending == nil {
		l.pending = make(map[string]int)
	}
	l.pending[verifier+user+string(secret)]++
	return cmp.Or(l.beginErr, ctx.Err())
}

func (l *latch) End(ctx context.Context, verifier, user string, secret []byte, verdict error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.pending, verifier+user+string(secret))
	if refusal, ok := errors.AsType[*api.Error](verdict); ok && refusal.Code.Refusal() {
		l.sets++
		if l.refusals == nil {
			l.refusals = make(map[string]*api.Error)
		}
		l.refusals[verifier+user+string(secret)] = refusal
	}
	return l.err
}

func (l *latch) Lost(string, string, []byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lost++
}

func (l *latch) Clear(_ context.Context, verifier, user string, secrets ...[]byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range secrets {
		delete(l.refusals, verifier+user+string(s))
	}
	return l.err
}

func TestInitiate(t *testing.T) {
	l := newLab(t)
	e, cred, a := krb.New(l.options), l.credential("svc"), l.acceptor(site)

	var tokens [][]byte
	for range 3 {
		c := initiate(t, e, cred, site)
		principal, reply, err := a.Accept(c.Token())
		if err != nil || principal != "svc@RIG.TEST" {
			t.Fatalf("the service says %q, %v", principal, err)
		}
		if mutual, err := c.Verify(reply); err != nil || !mutual {
			t.Errorf("Verify: %v, %v", mutual, err)
		}
		if f := a.Flags(); f&uint32(gssapi.ContextFlagDeleg) != 0 || f&uint32(gssapi.ContextFlagMutual) == 0 {
			t.Errorf("context flags %#x: mutual authentication, and never delegation", f)
		}
		tokens = append(tokens, c.Token())
	}
	if bytes.Equal(tokens[0], tokens[1]) || bytes.Equal(tokens[1], tokens[2]) {
		t.Error("a token was used twice")
	}
	l.counts(rig.Counts{AS: 2, ASTGT: 1, TGS: 1})

	c, err := e.Initiate(t.Context(), cred, site, krb.InitiateOptions{Fresh: true, Mutual: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.Accept(c.Token()); err != nil {
		t.Error(err)
	}
	l.counts(rig.Counts{AS: 2, ASTGT: 1, TGS: 2})
}

func TestTickets(t *testing.T) {
	l := newLab(t)
	e, cred := krb.New(l.options), l.credential("svc")
	if got := e.Tickets(); len(got) != 0 {
		t.Errorf("tickets before the first login: %v", got)
	}
	before := time.Now().Add(-2 * time.Second)
	initiate(t, e, cred, site)
	got := e.Tickets()
	var names []string
	for _, ti := range got {
		names = append(names, ti.Client+" "+ti.Server+" "+ti.Enctype)
		if ti.AuthTime.Before(before) || ti.EndTime.Sub(ti.AuthTime).Round(time.Minute) != 10*time.Hour || !ti.RenewTime.IsZero() {
			t.Errorf("times of %+v", ti)
		}
	}
	want := []string{
		"svc@RIG.TEST HTTP/app.example@RIG.TEST aes256-cts-hmac-sha1-96",
		"svc@RIG.TEST krbtgt/RIG.TEST@RIG.TEST aes256-cts-hmac-sha1-96",
	}
	if !slices.Equal(names, want) {
		t.Errorf("tickets %q, want %q", names, want)
	}
}

func TestEnctypes(t *testing.T) {
	for _, c := range []struct {
		name            string
		client, service []int32
	}{
		{"aes256-sha1", []int32{rig.AES256SHA1}, []int32{rig.AES256SHA1}},
		{"aes128-sha1", []int32{rig.AES128SHA1}, []int32{rig.AES128SHA1}},
		{"aes256-sha2", []int32{rig.AES256SHA2}, []int32{rig.AES256SHA2}},
		{"aes128-sha2", []int32{rig.AES128SHA2}, []int32{rig.AES128SHA2}},
		{"sha2 client, sha1 service", []int32{rig.AES256SHA2, rig.AES128SHA2}, []int32{rig.AES128SHA1}},
		{"all", []int32{rig.AES128SHA2, rig.AES256SHA2, rig.AES128SHA1, rig.AES256SHA1}, []int32{rig.AES256SHA2}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t)
			l.kdc.AddPrincipal("other", password, c.client...)
			l.kdc.AddService("HTTP/other.example", c.service...)
			ctx := initiate(t, krb.New(l.options), l.credential("other"), "HTTP/other.example")
			_, reply, err := l.acceptor("HTTP/other.example").Accept(ctx.Token())
			if err != nil {
				t.Fatal(err)
			}
			if mutual, err := ctx.Verify(reply); err != nil || !mutual {
				t.Errorf("Verify: %v, %v", mutual, err)
			}
		})
	}
}

// The KDC has a newer enctype than the keytab: only what the keytab holds is
// asked for and used.
func TestKeytabDecidesEnctype(t *testing.T) {
	l := newLab(t)
	l.kdc.AddPrincipal("both", password, rig.AES256SHA2)
	sha2 := l.credential("both")
	l.kdc.AddPrincipal("both", password, rig.AES256SHA1)
	_, err := krb.New(l.options).Initiate(t.Context(), sha2, site, krb.InitiateOptions{Mutual: true})
	wantCode(t, err, api.EtypeUnsupported, "aes256-cts-hmac-sha384-192", "both@RIG.TEST")
	l.counts(rig.Counts{AS: 1})
	if l.latch.sets != 0 {
		t.Error("latched without a refusal of the secret")
	}
}

func TestOneLoginForAll(t *testing.T) {
	l := newLab(t)
	sites := []string{site, "HTTP/b.example", "HTTP/c.example"}
	for _, s := range sites[1:] {
		l.kdc.AddService(s)
	}
	e, cred := krb.New(l.options), l.credential("svc")
	var wg sync.WaitGroup
	for i := range 60 {
		wg.Go(func() {
			if _, err := e.Initiate(t.Context(), cred, sites[i%3], krb.InitiateOptions{Mutual: true}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	l.counts(rig.Counts{AS: 2, ASTGT: 1, TGS: 3})
}

// Many callers for many sites with a wrong key make one attempt, also over a
// restart; a new keytab ends it.
func TestOneAttemptPerRefusedKey(t *testing.T) {
	for _, durable := range []error{nil, errors.New("disk full")} {
		l := newLab(t)
		l.latch.err = durable
		stale := l.credential("svc")
		l.kdc.Rekey("svc", password+"-2")

		e := krb.New(l.options)
		var wg sync.WaitGroup
		for i := range 40 {
			wg.Go(func() {
				_, err := e.Initiate(t.Context(), stale, fmt.Sprintf("HTTP/%d.example", i%10), krb.InitiateOptions{Fresh: i%2 == 0, Mutual: true})
				wantCode(t, err, api.BadCredentials, "svc@RIG.TEST", "version 1")
			})
		}
		wg.Wait()
		_, err := krb.New(l.options).Initiate(t.Context(), stale, site, krb.InitiateOptions{Mutual: true})
		wantCode(t, err, api.BadCredentials)
		l.counts(rig.Counts{AS: 2, PreauthFailed: 1})
		if l.latch.sets != 1 {
			t.Errorf("latched %d times", l.latch.sets)
		}

		initiate(t, e, l.credential("svc"), site)
		l.counts(rig.Counts{AS: 4, ASTGT: 1, PreauthFailed: 1, TGS: 1})
	}
}

// What is to be tried is written down before it is, and stays so when nobody
// knows what became of it.
func TestAttemptIsWrittenDown(t *testing.T) {
	l := newLab(t)
	l.latch.beginErr = &api.Error{Code: api.StoreFailed}
	_, err := krb.New(l.options).Initiate(t.Context(), l.credential("svc"), site, krb.InitiateOptions{Mutual: true})
	wantCode(t, err, api.StoreFailed)
	l.counts(rig.Counts{AS: 1}) // without pre-authentication

	// A KDC that takes the attempt and hangs up.
	l = newLab(t)
	l.options.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, address)
		if err == nil && len(l.latch.pending) > 0 {
			return hangUp{c}, nil
		}
		return c, err
	}
	_, err = krb.New(l.options).Initiate(t.Context(), l.credential("svc"), site, krb.InitiateOptions{Mutual: true})
	wantCode(t, err, api.KDCUnreachable)
	if len(l.latch.pending) != 1 || l.latch.lost != 1 {
		t.Errorf("pending: %d, lost: %d", len(l.latch.pending), l.latch.lost)
	}
	l.options.Dial = nil
	initiate(t, krb.New(l.options), l.credential("svc"), site)
	if len(l.latch.pending) != 0 {
		t.Errorf("pending after a success: %d", len(l.latch.pending))
	}
}

// hangUp is a connection whose peer never answers what it got.
type hangUp struct{ net.Conn }

func (hangUp) Read([]byte) (int, error) { return 0, io.EOF }

// Two keytabs that share a key: the key was refused, whatever else is beside it.
func TestRefusalIsOfTheKey(t *testing.T) {
	l := newLab(t)
	l.kdc.AddPrincipal("two", password, rig.AES256SHA1, rig.AES128SHA1)
	both := l.credential("two")
	both.Keytab = l.file("both.keytab", mustRead(t, both.Keytab))
	l.kdc.AddPrincipal("two", password, rig.AES256SHA1)
	one := l.credential("two")
	l.kdc.AddPrincipal("two", password+"-2", rig.AES256SHA1, rig.AES128SHA1)
	e := krb.New(l.options)
	var wg sync.WaitGroup
	for _, cred := range []krb.Credential{one, both, one, both} { // at once
		wg.Go(func() {
			_, err := e.Initiate(t.Context(), cred, site, krb.InitiateOptions{Mutual: true})
			wantCode(t, err, api.BadCredentials)
		})
	}
	wg.Wait()
	if n := l.kdc.Counts().PreauthFailed; n != 1 {
		t.Errorf("the key was refused %d times", n)
	}
	if err := e.Ready(t.Context(), both); api.CodeOf(err) != api.BadCredentials {
		t.Errorf("ready: %v", err)
	}
	if err := e.Forgive(t.Context(), both); err != nil {
		t.Fatal(err)
	}
	if err := e.Ready(t.Context(), both); err != nil {
		t.Errorf("ready after Forgive: %v", err)
	}
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		name    string
		code    int32
		want    api.Code
		latched bool
	}{
		{"expired", 1, api.PrincipalExpired, true},
		{"disabled", 18, api.PrincipalDisabled, true},
		{"password expired", 23, api.PasswordExpired, true},
		{"no enctype", 14, api.EtypeUnsupported, false},
		{"policy", 12, api.KDCError, false},
		{"clock", 37, api.ClockSkew, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t)
			l.kdc.Refuse("svc", c.code)
			e := krb.New(l.options)
			for range 2 {
				_, err := e.Initiate(t.Context(), l.credential("svc"), site, krb.InitiateOptions{Mutual: true})
				wantCode(t, err, c.want)
			}
			if c.latched {
				l.counts(rig.Counts{AS: 1})
			} else {
				l.counts(rig.Counts{AS: 2})
			}
		})
	}
	t.Run("unknown", func(t *testing.T) {
		l := newLab(t)
		cred := l.credential("svc")
		l.kdc.AddPrincipal("nobody", password)
		cred.Keytab = l.file("nobody.keytab", l.kdc.Keytab("nobody"))
		cred.Principal.Components = []string{"nobody"}
		stranger := newLab(t)
		stranger.options.Records = l.records
		_, err := krb.New(stranger.options).Initiate(t.Context(), cred, site, krb.InitiateOptions{Mutual: true})
		wantCode(t, err, api.PrincipalUnknown, "nobody@RIG.TEST")
		if stranger.latch.sets != 1 {
			t.Error("not latched")
		}
	})
}

func TestRestart(t *testing.T) {
	l := newLab(t)
	cred, a := l.credential("svc"), l.acceptor(site)
	initiate(t, krb.New(l.options), cred, site)
	l.kdc.Close()

	e := krb.New(l.options)
	c := initiate(t, e, cred, site)
	_, reply, err := a.Accept(c.Token())
	if err != nil {
		t.Fatal(err)
	}
	if mutual, err := c.Verify(reply); err != nil || !mutual {
		t.Errorf("Verify: %v, %v", mutual, err)
	}
	if got := e.Tickets(); len(got) != 2 || got[0].Server != "HTTP/app.example@RIG.TEST" {
		t.Errorf("tickets %v", got)
	}

	// A new site needs the KDC.
	_, err = e.Initiate(t.Context(), cred, "HTTP/new.example", krb.InitiateOptions{Mutual: true})
	wantCode(t, err, api.KDCUnreachable, "RIG.TEST", l.kdc.Addr())
}

// The stored TGT serves new sites after a restart.
func TestRestartWithTGT(t *testing.T) {
	l := newLab(t)
	l.kdc.AddService("HTTP/new.example")
	cred := l.credential("svc")
	initiate(t, krb.New(l.options), cred, site)
	initiate(t, krb.New(l.options), cred, "HTTP/new.example")
	l.counts(rig.Counts{AS: 2, ASTGT: 1, TGS: 2})
}

func TestBadRecords(t *testing.T) {
	l := newLab(t)
	cred := l.credential("svc")
	initiate(t, krb.New(l.options), cred, site)
	if len(l.records.byte) != 2 {
		t.Fatalf("%d records", len(l.records.byte))
	}
	keys := slices.Collect(maps.Keys(l.records.byte))
	first, second := l.records.byte[keys[0]], l.records.byte[keys[1]]
	for name, spoil := range map[string]func(){
		"damaged": func() {
			for _, k := range keys {
				l.records.byte[k] = l.records.byte[k][:len(l.records.byte[k])-1]
			}
		},
		"exchanged": func() { l.records.byte[keys[0]], l.records.byte[keys[1]] = second, first },
		"unreadable": func() {
			l.records.err = errors.New("disk failed")
		},
	} {
		t.Run(name, func(t *testing.T) {
			before := l.kdc.Counts()
			l.log.Reset()
			spoil()
			initiate(t, krb.New(l.options), cred, site)
			if after := l.kdc.Counts(); after.ASTGT != before.ASTGT+1 || after.TGS != before.TGS+1 {
				t.Errorf("counts from %+v to %+v", before, after)
			}
			if !strings.Contains(l.log.String(), "level=WARN") {
				t.Errorf("no warning in %s", l.log)
			}
			l.records.err = nil
			l.records.byte[keys[0]], l.records.byte[keys[1]] = first, second
		})
	}
}

// A changed key leaves the old key's tickets alone.
func TestNewKeyNewTickets(t *testing.T) {
	l := newLab(t)
	e := krb.New(l.options)
	initiate(t, e, l.credential("svc"), site)
	l.kdc.Rekey("svc", password+"-2")
	initiate(t, e, l.credential("svc"), site)
	l.counts(rig.Counts{AS: 4, ASTGT: 2, TGS: 2})
}

// A keytab with two versions: only the higher one is tried.
func TestHighestVersionOnly(t *testing.T) {
	l := newLab(t)
	old := l.kdc.Keytab("svc")
	l.kdc.Rekey("svc", password+"-2")
	cred := l.credential("svc")
	for name, file := range map[string][]byte{
		"old first": append(slices.Clone(old), l.kdc.Keytab("svc")[2:]...),
		"new first": append(l.kdc.Keytab("svc"), old[2:]...),
	} {
		t.Run(name, func(t *testing.T) {
			cred.Keytab = l.file("both.keytab", file)
			if _, err := krb.New(l.options).Initiate(t.Context(), cred, site, krb.InitiateOptions{Fresh: true, Mutual: true}); err != nil {
				t.Error(err)
			}
			if n := l.kdc.Counts().PreauthFailed; n != 0 {
				t.Errorf("%d refused attempts", n)
			}
		})
	}
}

// A KDC whose own key changed refuses the TGT: one new login, for all callers.
func TestRefusedTGT(t *testing.T) {
	l := newLab(t)
	for i := range 5 {
		l.kdc.AddService(fmt.Sprintf("HTTP/%d.example", i))
	}
	e, cred := krb.New(l.options), l.credential("svc")
	initiate(t, e, cred, site)
	l.kdc.Rekey("krbtgt/RIG.TEST", "")
	var wg sync.WaitGroup
	for i := range 5 {
		wg.Go(func() {
			if _, err := e.Initiate(t.Context(), cred, fmt.Sprintf("HTTP/%d.example", i), krb.InitiateOptions{Mutual: true}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	l.counts(rig.Counts{AS: 4, ASTGT: 2, TGS: 6})
}

func TestServices(t *testing.T) {
	l := newLab(t)
	l.kdc.Alias("HTTP/moved.example", "krbtgt/ELSE.TEST")
	l.kdc.Alias("HTTP/alias.example", site)
	l.options.Config = l.config(l.kdc.Krb5Conf() + "[domain_realm]\n.far.example = FAR.TEST\n")
	e, cred := krb.New(l.options), l.credential("svc")
	for _, c := range []struct {
		spn   string
		code  api.Code
		parts []string
	}{
		{"HTTP/none.example", api.SPNUnknown, []string{"HTTP/none.example@RIG.TEST"}},
		{"HTTP/moved.example", api.Krb5ConfInvalid, []string{"HTTP/moved.example@RIG.TEST to ELSE.TEST"}},
		{"HTTP/alias.example", "", nil}, // a KDC may name a service by its own name (RFC 6806, 6)
		{"HTTP/a.far.example", api.SPNUnknown, []string{"no way for svc@RIG.TEST to the realm FAR.TEST"}},
		{"HTTP", api.ConfigInvalid, []string{"HTTP"}},
		{"HTTP/", api.ConfigInvalid, []string{"HTTP/"}},
	} {
		_, err := e.Initiate(t.Context(), cred, c.spn, krb.InitiateOptions{Mutual: true})
		wantCode(t, err, c.code, c.parts...)
	}
	if _, err := e.Initiate(t.Context(), cred, site+"@RIG.TEST", krb.InitiateOptions{Mutual: true}); err != nil {
		t.Error(err)
	}
}

func TestTGTOfAnotherRealm(t *testing.T) {
	l := newLab(t)
	l.kdc.Alias("krbtgt/RIG.TEST", "krbtgt/ELSE.TEST")
	_, err := krb.New(l.options).Initiate(t.Context(), l.credential("svc"), site, krb.InitiateOptions{Mutual: true})
	wantCode(t, err, api.KDCError, "krbtgt/ELSE.TEST")
	l.counts(rig.Counts{AS: 2, ASTGT: 1})
}

func TestNoKDCConfigured(t *testing.T) {
	l := newLab(t)
	l.options.Config = l.config("[libdefaults]\ndefault_realm = RIG.TEST\ndns_lookup_kdc = false\n")
	_, err := krb.New(l.options).Initiate(t.Context(), l.credential("svc"), site, krb.InitiateOptions{Mutual: true})
	wantCode(t, err, api.Krb5ConfInvalid, "RIG.TEST", filepath.Join(l.dir, "krb5.conf"))
	if e := api.AsError(err); !strings.Contains(e.Remedy, "RIG.TEST = { kdc =") {
		t.Errorf("remedy %q names no line to add", e.Remedy)
	}
}

func TestBadKDCs(t *testing.T) {
	for mode, text := range map[rig.Mode]string{
		rig.Refusing:   "connection refused",
		rig.Garbage:    "no Kerberos message",
		rig.HugeLength: "3221225472 bytes",
	} {
		t.Run(text, func(t *testing.T) {
			l := newLab(t)
			bad, err := rig.NewKDC("RIG.TEST")
			if err != nil {
				t.Fatal(err)
			}
			defer bad.Close()
			if err := bad.SetMode(mode); err != nil {
				t.Fatal(err)
			}
			conf := func(kdcs ...string) *krb.Config {
				return l.config("[realms]\nRIG.TEST = {\nkdc = " + strings.Join(kdcs, "\nkdc = ") + "\n}\n")
			}
			l.options.Config = conf(bad.Addr())
			_, err = krb.New(l.options).Initiate(t.Context(), l.credential("svc"), site, krb.InitiateOptions{Mutual: true})
			wantCode(t, err, api.KDCUnreachable, "RIG.TEST", bad.Addr(), text)

			l.options.Config = conf(bad.Addr(), l.kdc.Addr())
			initiate(t, krb.New(l.options), l.credential("svc"), site)
			l.counts(rig.Counts{AS: 2, ASTGT: 1, TGS: 1})
		})
	}
}

// A KDC that goes and comes back is used again.
func TestKDCReturns(t *testing.T) {
	l := newLab(t)
	e, cred := krb.New(l.options), l.credential("svc")
	if err := l.kdc.SetMode(rig.Refusing); err != nil {
		t.Fatal(err)
	}
	_, err := e.Initiate(t.Context(), cred, site, krb.InitiateOptions{Mutual: true})
	wantCode(t, err, api.KDCUnreachable)
	if err := l.kdc.SetMode(rig.Answering); err != nil {
		t.Fatal(err)
	}
	initiate(t, e, cred, site)
}

// A caller that leaves cancels nothing, and does not wait.
func TestCallerLeaves(t *testing.T) {
	l := newLab(t)
	dialing, open := make(chan struct{}, 10), make(chan struct{})
	l.options.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		dialing <- struct{}{}
		select {
		case <-open:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	e, cred := krb.New(l.options), l.credential("svc")
	leave, cancel := context.WithCancel(t.Context())
	left, stayed := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := e.Initiate(leave, cred, site, krb.InitiateOptions{Mutual: true})
		left <- err
	}()
	<-dialing
	go func() {
		_, err := e.Initiate(t.Context(), cred, site, krb.InitiateOptions{Mutual: true})
		stayed <- err
	}()
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), site) {
		t.Errorf("the caller that left got %v", err)
	}
	close(open)
	if err := <-stayed; err != nil {
		t.Errorf("the caller that stayed got %v", err)
	}
	l.counts(rig.Counts{AS: 2, ASTGT: 1, TGS: 1})
}

// A KDC that is silent costs a caller no more than its own deadline.
func TestSilentKDC(t *testing.T) {
	l := newLab(t)
	if err := l.kdc.SetMode(rig.Silent); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	e := krb.New(l.options)
	defer e.Close()
	_, err := e.Initiate(ctx, l.credential("svc"), site, krb.InitiateOptions{Mutual: true})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

// A clock that differs from the KDC's is made allowance for, as MIT's library
// does, unless krb5.conf forbids it.
func TestClockSkew(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	for offset, text := range map[time.Duration]string{
		10 * time.Minute:     "10m0s ahead of",
		-10 * time.Minute:    "10m0s behind",
		3 * 24 * time.Hour:   "72h0m0s ahead of",
		-3 * 24 * time.Hour:  "72h0m0s behind",
		-250 * time.Second:   "",
		1500 * time.Hour * 8: "ahead of",
	} {
		l := newLab(t)
		theirs := func() time.Time { return now.Add(offset) }
		l.options.Now = func() time.Time { return now }
		l.kdc.SetClock(theirs)
		a := l.acceptor(site)
		a.Now = theirs
		cred := l.credential("svc")
		for range 2 { // the second engine reads what the first one stored
			c := initiate(t, krb.New(l.options), cred, site)
			if _, reply, err := a.Accept(c.Token()); err != nil {
				t.Errorf("offset %v: the service refuses the token: %v", offset, err)
			} else if mutual, err := c.Verify(reply); !mutual || err != nil {
				t.Errorf("offset %v: %v, %v", offset, mutual, err)
			}
		}
		l.counts(rig.Counts{AS: 2, ASTGT: 1, TGS: 1})
		if text == "" {
			continue
		}
		l.options.Config = l.config(strings.Replace(l.kdc.Krb5Conf(), "[libdefaults]", "[libdefaults]\nkdc_timesync = 0", 1))
		l.options.Records = &records{}
		_, err := krb.New(l.options).Initiate(t.Context(), cred, site, krb.InitiateOptions{Mutual: true})
		if offset < -24*time.Hour || offset > 0 && offset < 24*time.Hour || offset < 0 {
			wantCode(t, err, api.ClockSkew, "KDC", text)
		}
		if l.latch.sets != 0 {
			t.Error("latched")
		}
	}
}

// A KDC that does not mind the client's clock, but whose own is wrong: with
// kdc_timesync = 0 the ticket is not used.
func TestClockSkewOfTicket(t *testing.T) {
	l := newLab(t)
	l.options.Config = l.config(strings.Replace(l.kdc.Krb5Conf(), "[libdefaults]", "[libdefaults]\nkdc_timesync = 0", 1))
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	var behind atomic.Int64
	l.kdc.SetClock(func() time.Time { return now })
	l.options.Now = func() time.Time { return now.Add(-time.Duration(behind.Load())) }
	var dials atomic.Int32
	l.options.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		if dials.Add(1) == 2 {
			conn = &readHook{conn, func() { behind.Store(int64(6 * time.Minute)) }}
		}
		return conn, err
	}
	_, err := krb.New(l.options).Initiate(t.Context(), l.credential("svc"), site, krb.InitiateOptions{Mutual: true})
	wantCode(t, err, api.ClockSkew, "6m0s ahead of")
	l.counts(rig.Counts{AS: 2, ASTGT: 1})
	if n := dials.Load(); n != 2 {
		t.Errorf("%d messages, want 2", n)
	}
}

// readHook calls a function before it reads.
type readHook struct {
	net.Conn
	before func()
}

func (c *readHook) Read(b []byte) (int, error) {
	c.before()
	return c.Conn.Read(b)
}

// Tickets are replaced before they end, on a clock that the test moves.
func TestTicketsEnd(t *testing.T) {
	l := newLab(t)
	var mu sync.Mutex
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	clock := func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return now
	}
	advance := func(d time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		now = now.Add(d)
	}
	l.options.Now = clock
	l.kdc.SetClock(clock)
	l.kdc.SetTicketLife(time.Hour)
	e, cred := krb.New(l.options), l.credential("svc")
	defer e.Close()
	for _, step := range []struct {
		after time.Duration
		want  rig.Counts
	}{
		{0, rig.Counts{AS: 2, ASTGT: 1, TGS: 1}},
		// The TGT is replaced ahead of its end.
		{54 * time.Minute, rig.Counts{AS: 4, ASTGT: 2, TGS: 1}},
		// 59 minutes: 60 seconds are left of the service ticket, too little.
		{5 * time.Minute, rig.Counts{AS: 4, ASTGT: 2, TGS: 2}},
		// 10 hours later both have ended.
		{10 * time.Hour, rig.Counts{AS: 6, ASTGT: 3, TGS: 3}},
	} {
		advance(step.after)
		initiate(t, e, cred, site)
		e.Settle()
		l.counts(step.want)
	}
	advance(55*time.Minute + time.Second)
	// The TGT is in its last five minutes; a new site needs a new one.
	l.kdc.AddService("HTTP/late.example")
	initiate(t, e, cred, "HTTP/late.example")
	e.Settle()
	l.counts(rig.Counts{AS: 8, ASTGT: 4, TGS: 4})
	advance(2 * time.Hour)
	if got := e.Tickets(); len(got) != 0 {
		t.Errorf("ended tickets are listed: %v", got)
	}
}

// Even tickets that live shorter than the agent likes are used, each once.
func TestShortLife(t *testing.T) {
	l := newLab(t)
	l.kdc.SetTicketLife(30 * time.Second)
	e, cred, a := krb.New(l.options), l.credential("svc"), l.acceptor(site)
	for range 2 {
		if _, _, err := a.Accept(initiate(t, e, cred, site).Token()); err != nil {
			t.Error(err)
		}
	}
	// The TGT serves until 3 seconds before its end.
	l.counts(rig.Counts{AS: 2, ASTGT: 1, TGS: 2})
}

func TestVerify(t *testing.T) {
	l := newLab(t)
	e, cred, a := krb.New(l.options), l.credential("svc"), l.acceptor(site)
	c := initiate(t, e, cred, site)
	_, good, err := a.Accept(c.Token())
	if err != nil {
		t.Fatal(err)
	}
	_, replayed, err := a.Accept(c.Token())
	if err == nil {
		t.Fatal("the acceptor took a token twice")
	}
	_, other, err := a.Accept(initiate(t, e, cred, site).Token())
	if err != nil {
		t.Fatal(err)
	}
	late := l.acceptor(site)
	late.Now = func() time.Time { return time.Now().Add(-time.Hour) }
	_, skewed, _ := late.Accept(initiate(t, e, cred, site).Token())
	sender := initiate(t, e, cred, site)
	otherKey := l.kdc.Keytab(site)
	otherKey[bytes.Index(otherKey, []byte{0, 18, 0, 32})+4] ^= 1
	l.kdc.AddService("HTTP/other.example")
	l.kdc.Rekey(site, "")
	_, stale, _ := l.acceptor(site).Accept(sender.Token())
	_, elsewhere, _ := l.acceptor("HTTP/other.example").Accept(sender.Token())
	wrong, err := rig.NewAcceptor(otherKey, site)
	if err != nil {
		t.Fatal(err)
	}
	_, unsealed, _ := wrong.Accept(sender.Token())
	flipped := slices.Clone(good)
	flipped[len(flipped)-3] ^= 1
	accepted, err := base64.StdEncoding.DecodeString("oRQwEqADCgEAoQsGCSqGSIb3EgECAg==")
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		token  []byte
		mutual bool
		code   api.Code
		text   string
	}{
		{"AP-REP", good, true, "", ""},
		{"accepted without AP-REP", accepted, false, "", ""},
		{"AP-REP for another token", other, false, api.MutualAuthFailed, "another token"},
		{"AP-REP with a flipped bit", flipped, false, api.MutualAuthFailed, "session key"},
		{"plain reject", rig.RejectToken(), false, api.NegotiateRejected, site},
		{"replay", replayed, false, api.Replay, "34"},
		{"stale key", stale, false, api.ServiceKeyMismatch, "(44)"},
		{"another key", unsealed, false, api.ServiceKeyMismatch, "(31)"},
		{"another service", elsewhere, false, api.ServiceKeyMismatch, "(35)"},
		{"clock", skewed, false, api.ClockSkew, "behind"},
		{"empty", nil, false, api.MutualAuthFailed, "NegTokenResp"},
		{"large", make([]byte, 1<<18+1), false, api.MutualAuthFailed, "262145 bytes"},
		{"client's own token", c.Token(), false, api.MutualAuthFailed, "NegTokenResp"},
		{"another round", []byte{0xa1, 0x07, 0x30, 0x05, 0xa0, 0x03, 0x0a, 0x01, 0x01}, false, api.NegotiateRejected, "another round"},
	} {
		mutual, err := c.Verify(tc.token)
		if mutual != tc.mutual || api.CodeOf(err) != tc.code {
			t.Errorf("%s: %v, %v; want %v, %s", tc.name, mutual, err, tc.mutual, tc.code)
		} else if err != nil && !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: error %q does not name %q", tc.name, err, tc.text)
		}
	}
	// No change of a bit in the AP-REP's ciphertext goes unnoticed, and none
	// elsewhere does harm.
	for i := range len(good) * 8 {
		b := slices.Clone(good)
		b[i/8] ^= 1 << (i % 8)
		if mutual, _ := c.Verify(b); mutual && i/8 >= len(good)-64 {
			t.Errorf("bit %d of the AP-REP does not matter", i)
		}
	}
}

// Neither logs nor errors tell passwords and keys, whatever happens.
func TestSecretsStaySecret(t *testing.T) {
	l := newLab(t)
	e := krb.New(l.options)
	var said strings.Builder
	note := func(_ *krb.Context, err error) {
		if err != nil {
			a := api.AsError(err)
			fmt.Fprintf(&said, "%v %+v %s %s %v\n", err, err, a.Detail, a.Remedy, a.Err)
		}
	}
	cred := l.credential("svc")
	note(e.Initiate(t.Context(), cred, site, krb.InitiateOptions{Mutual: true}))
	fmt.Fprintf(&said, "%+v\n%+v\n", e.Tickets(), cred)

	// A keytab whose keys read CANARY-…, refused, then cut off at each byte.
	const canary = "CANARY-0123456789abcdef-keytab-k" // 32 bytes
	file := l.kdc.Keytab("svc")
	at := bytes.Index(file, []byte{0, 18, 0, 32}) + 4
	copy(file[at:], canary)
	cred.Keytab = l.file("canary.keytab", file)
	note(e.Initiate(t.Context(), cred, site, krb.InitiateOptions{Mutual: true}))
	if n := l.kdc.Counts().PreauthFailed; n != 1 {
		t.Fatalf("%d refused attempts, want 1", n)
	}
	for n := range file {
		cred.Keytab = l.file("canary.keytab", file[:n])
		if err := krb.Check(t.Context(), l.options.Config, krb.Credential{Principal: cred.Principal, Keytab: cred.Keytab}); err != nil {
			note(nil, err)
		}
	}

	all := l.log.String() + said.String()
	if !strings.Contains(all, "svc@RIG.TEST") {
		t.Fatal("nothing was said at all")
	}
	key := file[at : at+32]
	for _, secret := range []string{"CANARY-", fmt.Sprint([]byte(key)), hex.EncodeToString(key), base64.StdEncoding.EncodeToString(key)} {
		if strings.Contains(all, secret) {
			t.Errorf("the secret %q was told", secret)
		}
	}
	for name := range l.records.byte {
		if strings.Contains(name, "CANARY-") {
			t.Error("a record's name holds a key")
		}
	}
}
