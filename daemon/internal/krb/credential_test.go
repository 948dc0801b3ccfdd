package krb_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/krb"
	"github.com/sessionctl/sessionctl/daemon/internal/krb/ccache"
	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

const (
	minute = time.Minute
	hour   = time.Hour
)

// clock is a clock that the test moves.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func newClock() *clock { return &clock{at: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// typed is the credential of svc with a password.
func (l *lab) typed(text string) krb.Credential {
	return krb.Credential{Principal: krb.Principal{Components: []string{"svc"}, Realm: "RIG.TEST"}, Password: func() (string, error) { return text, nil }}
}

// A password makes the key that the KDC says: by its salt, iterations and
// enctype.
func TestPassword(t *testing.T) {
	for name, prepare := range map[string]func(*rig.KDC){
		"default":           func(*rig.KDC) {},
		"another salt":      func(k *rig.KDC) { k.SetSalt("svc", "RIG.TESTrenamed") },
		"salt not in ASCII": func(k *rig.KDC) { k.SetSalt("svc", "RIG.TESTjürgen") },
		"iterations":        func(k *rig.KDC) { k.SetIterations("svc", 10000) },
		"sha2":              func(k *rig.KDC) { k.AddPrincipal("svc", password, rig.AES256SHA2) },
		"aes128":            func(k *rig.KDC) { k.AddPrincipal("svc", password, rig.AES128SHA1) },
		"no preauth":        func(k *rig.KDC) { k.NoPreauth("svc") },
		"AD":                func(k *rig.KDC) { k.CaseInsensitive(true); k.SetSalt("svc", "RIG.TESTSvc") },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			prepare(l.kdc)
			e := krb.New(l.options)
			defer e.Close()
			cred := l.typed(password)
			if name == "AD" {
				cred.Principal.Components = []string{"SVC"}
			}
			if _, _, err := l.acceptor(site).Accept(initiate(t, e, cred, site).Token()); err != nil {
				t.Error(err)
			}
			if n := l.kdc.Counts().PreauthFailed; n != 0 {
				t.Errorf("%d attempts failed", n)
			}
		})
	}
}

// A wrong password is tried once, whatever enctypes there are, and by whomever.
func TestWrongPassword(t *testing.T) {
	l := newLab(t)
	cred := l.typed("CANARY-wrong")
	for range 3 {
		e := krb.New(l.options)
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				_, err := e.Initiate(t.Context(), cred, fmt.Sprintf("HTTP/%d.example", i), krb.InitiateOptions{})
				wantCode(t, err, api.BadCredentials, "the password of svc@RIG.TEST")
				if err := e.Authenticate(t.Context(), cred); api.CodeOf(err) != api.BadCredentials {
					t.Error(err)
				}
				if strings.Contains(fmt.Sprint(err), "CANARY") {
					t.Errorf("the error shows the password: %v", err)
				}
			})
		}
		wg.Wait()
		e.Close()
	}
	if n := l.kdc.Counts().PreauthFailed; n != 1 {
		t.Errorf("%d attempts, want 1", n)
	}
	e := krb.New(l.options)
	defer e.Close()
	if err := e.Forgive(t.Context(), cred); err != nil {
		t.Fatal(err)
	}
	l.kdc.Rekey("svc", "CANARY-wrong")
	if err := e.Authenticate(t.Context(), cred); err != nil {
		t.Error(err)
	}
}

// A KDC cannot make the agent compute for long.
func TestHugeIterations(t *testing.T) {
	l := newLab(t)
	if err := l.kdc.SetMode(rig.HugeIterations); err != nil {
		t.Fatal(err)
	}
	e := krb.New(l.options)
	defer e.Close()
	err := e.Authenticate(t.Context(), l.typed(password))
	wantCode(t, err, api.KDCError)
	if l.latch.sets != 0 {
		t.Error("latched")
	}
}

func TestNoPassword(t *testing.T) {
	l := newLab(t)
	e := krb.New(l.options)
	defer e.Close()
	cred := l.typed("")
	none := &api.Error{Code: api.NoSecret}
	cred.Password = func() (string, error) { return "", none }
	if err := e.Ready(t.Context(), cred); !errors.Is(err, none) {
		t.Error(err)
	}
	if n := l.kdc.Counts().AS; n != 0 {
		t.Errorf("%d messages", n)
	}
}

// arcfour-hmac is used only when it is asked for.
func TestRC4(t *testing.T) {
	l := newLab(t)
	l.kdc.AddPrincipal("svc", password, rig.RC4)
	l.kdc.AddService("HTTP/old.example", rig.RC4)
	cred := l.credential("svc")
	e := krb.New(l.options)
	defer e.Close()
	_, err := e.Initiate(t.Context(), cred, site, krb.InitiateOptions{})
	wantCode(t, err, api.EtypeUnsupported, "arcfour-hmac")
	if r := api.AsError(err).Remedy; !strings.Contains(r, "rc4 = true") {
		t.Errorf("remedy %q", r)
	}
	cred.RC4 = true
	for _, spn := range []string{site, "HTTP/old.example"} {
		if _, _, err := l.acceptor(spn).Accept(initiate(t, e, cred, spn).Token()); err != nil {
			t.Errorf("%s: %v", spn, err)
		}
	}
	aes := newLab(t)
	aes.kdc.AddService("HTTP/old.example", rig.RC4)
	e = krb.New(aes.options)
	defer e.Close()
	_, err = e.Initiate(t.Context(), aes.credential("svc"), "HTTP/old.example", krb.InitiateOptions{})
	wantCode(t, err, api.EtypeUnsupported, "HTTP/old.example")
}

// krb5.conf rules out enctypes, and orders them.
func TestPermittedEnctypes(t *testing.T) {
	l := newLab(t)
	permit := func(list string) krb.Options {
		o := l.options
		o.Config = l.config(strings.Replace(l.kdc.Krb5Conf(), "[libdefaults]", "[libdefaults]\npermitted_enctypes = "+list, 1))
		return o
	}
	cred := l.credential("svc")
	e := krb.New(permit("aes128-cts aes256-cts"))
	defer e.Close()
	initiate(t, e, cred, site)
	if got := l.kdc.LastTicket().SessionKeyType; got != rig.AES128SHA1 {
		t.Errorf("session key of enctype %d, want the first one of krb5.conf", got)
	}
	none := krb.New(permit("aes256-sha2"))
	defer none.Close()
	_, err := none.Initiate(t.Context(), cred, site, krb.InitiateOptions{})
	wantCode(t, err, api.EtypeUnsupported, "krb5.conf rule out")
}

// Without a PAC a member of many groups has a small token.
func TestNoPAC(t *testing.T) {
	l := newLab(t)
	l.kdc.SetPACSize("svc", 9000)
	e := krb.New(l.options)
	defer e.Close()
	cred := l.credential("svc")
	with := len(initiate(t, e, cred, site).Token())
	cred.NoPAC = true
	without := len(initiate(t, e, cred, site).Token())
	if with < 9000 || without > 1000 {
		t.Errorf("tokens of %d bytes with a PAC, %d without", with, without)
	}
	// Both are kept, and neither takes the place of the other.
	if again := len(initiate(t, e, cred, site).Token()); again != without {
		t.Errorf("then %d bytes", again)
	}
	l.counts(rig.Counts{AS: 4, ASTGT: 2, TGS: 2})
}

// A TGT is replaced ahead of its end, without anybody waiting, while an outage
// of the KDC goes unnoticed.
func TestAheadOfTheEnd(t *testing.T) {
	l := newLab(t)
	clock := newClock()
	l.options.Now = clock.now
	l.kdc.SetClock(clock.now)
	for i := range 10 {
		l.kdc.AddService(fmt.Sprintf("HTTP/%d.example", i))
	}
	cred := l.credential("svc")
	next := 0
	use := func(e *krb.Engine) {
		t.Helper()
		initiate(t, e, cred, fmt.Sprintf("HTTP/%d.example", next))
		next++
	}
	e := krb.New(l.options)
	defer e.Close()
	use(e)
	tgt := func() krb.TicketInfo {
		for _, ticket := range e.Tickets() {
			if strings.HasPrefix(ticket.Server, "krbtgt/") {
				return ticket
			}
		}
		t.Fatal("no TGT")
		return krb.TicketInfo{}
	}
	first := tgt()
	clock.advance(7 * hour)
	use(e)
	e.Settle()
	if n := l.kdc.Counts(); n.ASTGT != 1 {
		t.Fatalf("before three quarters of its life: %+v", n)
	}

	// Ahead of the end, and the KDC gives no TGT.
	clock.advance(hour)
	l.kdc.Refuse("svc", 60)
	use(e)
	e.Settle()
	if n := l.kdc.Counts(); n.ASTGT != 1 || n.TGS != 3 {
		t.Errorf("%+v, want the old TGT used", n)
	}

	// Not at once again, but a minute later.
	l.kdc.Refuse("svc", 0)
	use(e)
	e.Settle()
	if n := l.kdc.Counts(); n.ASTGT != 1 {
		t.Errorf("%+v, want no attempt within the minute", n)
	}
	clock.advance(minute)
	use(e)
	e.Settle()
	use(e)
	if n := l.kdc.Counts(); n.ASTGT != 2 {
		t.Errorf("%+v, want a new TGT", n)
	}
	if end := tgt().EndTime; !end.After(first.EndTime) {
		t.Errorf("the TGT still ends at %v", end)
	}
}

// One service, asked for again and again: neither its ticket nor the TGT comes to
// its end, and an outage in the last quarter of their life goes unnoticed.
func TestAheadForOneService(t *testing.T) {
	l := newLab(t)
	clock := newClock()
	l.options.Now = clock.now
	l.kdc.SetClock(clock.now)
	e, cred := krb.New(l.options), l.credential("svc")
	defer e.Close()
	a := l.acceptor(site)
	a.Now = clock.now
	for clock.now().Before(newClock().now().Add(48 * hour)) {
		// Down for two hours of each ten.
		mode := rig.Answering
		if hours := int(clock.now().Sub(newClock().now()).Hours()); hours%10 >= 8 {
			mode = rig.Refusing
		}
		if err := l.kdc.SetMode(mode); err != nil {
			t.Fatal(err)
		}
		c, err := e.Initiate(t.Context(), cred, site, krb.InitiateOptions{})
		if err == nil {
			_, _, err = a.Accept(c.Token())
		}
		if err != nil {
			t.Fatalf("at %v: %v", clock.now(), err)
		}
		e.Settle()
		clock.advance(20 * minute)
	}
	if n := l.kdc.Counts(); n.ASTGT > 9 || n.TGS > 12 {
		t.Errorf("%+v in two days of tickets of ten hours", n)
	}
}

// The TGT of a ticket cache is renewed in time also if nobody asks for anything:
// only its owner could make another.
func TestIdleTicketCache(t *testing.T) {
	l := newLab(t)
	l.kdc.SetRenewLife(7 * 24 * hour)
	l.options.Config = l.config(strings.Replace(l.kdc.Krb5Conf(), "[libdefaults]", "[libdefaults]\nrenew_lifetime = 7d", 1))
	var now atomic.Int64 // what time it is in the bubble, for the KDC outside
	l.kdc.SetClock(func() time.Time { return time.Unix(0, now.Load()) })
	synctest.Test(t, func(bubble *testing.T) {
		l.t = bubble
		defer func() { l.t = t }()
		l.options.Now = func() time.Time {
			at := time.Now()
			now.Store(at.UnixNano())
			return at
		}
		e := krb.New(l.options)
		cred := l.cache(e, l.credential("svc"))
		e.Close()
		l.options.Records = &records{}
		e = krb.New(l.options)
		defer e.Close()
		initiate(bubble, e, cred, site)
		// Its file is away for an hour, just when it is time.
		file := strings.TrimPrefix(cred.Cache, "FILE:")
		<-time.After(7 * hour)
		if err := os.Rename(file, file+".away"); err != nil {
			t.Fatal(err)
		}
		<-time.After(hour)
		if err := os.Rename(file+".away", file); err != nil {
			t.Fatal(err)
		}
		<-time.After(6 * 24 * hour)
		initiate(bubble, e, cred, site)
	})
	if n := l.kdc.Counts(); n.ASTGT != 1 || n.Renewed < 15 {
		t.Errorf("%+v, want the one login, renewed again and again", n)
	}
}

// A clock that is set right makes what was known of the KDC's clock wrong.
func TestClockSetRight(t *testing.T) {
	l := newLab(t)
	theirs := newClock()
	var wrong atomic.Int64 // how far ahead this machine's clock is
	wrong.Store(int64(2 * hour))
	l.kdc.SetClock(theirs.now)
	l.options.Now = func() time.Time { return theirs.now().Add(time.Duration(wrong.Load())) }
	l.options.Boot = func() time.Duration { return theirs.now().Sub(newClock().now()) }
	e, cred := krb.New(l.options), l.credential("svc")
	defer e.Close()
	if c := must(ccache.Parse(must(e.Export(t.Context(), cred)).Cache)); c.Offset != -2*hour {
		t.Fatalf("offset %v", c.Offset)
	}
	end := theirs.now().Add(10 * hour)
	theirs.advance(hour)
	wrong.Store(0)
	x := must(e.Export(t.Context(), cred))
	if c := must(ccache.Parse(x.Cache)); c.Offset != 0 || !x.EndTime.Equal(end) {
		t.Errorf("offset %v, ends %v instead of %v", c.Offset, x.EndTime, end)
	}
	// No KDC is needed for that, and services take the token.
	l.counts(rig.Counts{AS: 2, ASTGT: 1})
	a := l.acceptor(site)
	a.Now = theirs.now
	if _, _, err := a.Accept(initiate(t, e, cred, site).Token()); err != nil {
		t.Error(err)
	}
}

// cache writes what a credential exports into a file, as kinit would.
func (l *lab) cache(e *krb.Engine, cred krb.Credential) krb.Credential {
	l.t.Helper()
	x, err := e.Export(l.t.Context(), cred)
	if err != nil {
		l.t.Fatal(err)
	}
	cred.Keytab, cred.Password = "", nil
	cred.Cache = "FILE:" + l.file("krb5cc", x.Cache)
	return cred
}

// A ticket cache's TGT is used, renewed as long as that is possible, and
// followed when its owner makes another.
func TestTicketCache(t *testing.T) {
	l := newLab(t)
	clock := newClock()
	l.options.Now = clock.now
	l.kdc.SetClock(clock.now)
	l.kdc.SetRenewLife(7 * 24 * hour)
	l.options.Config = l.config(strings.Replace(l.kdc.Krb5Conf(), "[libdefaults]", "[libdefaults]\nrenew_lifetime = 7d", 1))
	e := krb.New(l.options)
	cred := l.cache(e, l.credential("svc"))
	e.Close()
	before := l.kdc.Counts()

	own := l.options
	own.Records = &records{}
	use := func() error {
		e := krb.New(own)
		defer e.Close()
		c, err := e.Initiate(t.Context(), cred, site, krb.InitiateOptions{})
		if err == nil {
			a := l.acceptor(site)
			a.Now = clock.now
			_, _, err = a.Accept(c.Token())
		}
		e.Settle()
		return err
	}
	for clock.now().Before(newClock().now().Add(6 * 24 * hour)) {
		if err := use(); err != nil {
			t.Fatalf("at %v: %v", clock.now(), err)
		}
		clock.advance(2 * hour)
	}
	after := l.kdc.Counts()
	if after.ASTGT != before.ASTGT {
		t.Errorf("%d logins, want none", after.ASTGT-before.ASTGT)
	}
	if after.Renewed < 15 {
		t.Errorf("%d renewals in six days of tickets of ten hours", after.Renewed)
	}
	clock.advance(2 * 24 * hour)
	err := use()
	wantCode(t, err, api.NoTicket, cred.Cache, "has ended")
	if r := api.AsError(err).Remedy; !strings.Contains(r, "kinit -c "+cred.Cache) {
		t.Errorf("remedy %q", r)
	}

	// Its owner logs in anew.
	e = krb.New(l.options)
	l.cache(e, l.credential("svc"))
	e.Close()
	if err := use(); err != nil {
		t.Error(err)
	}
	if err := os.Remove(strings.TrimPrefix(cred.Cache, "FILE:")); err != nil {
		t.Fatal(err)
	}
	wantCode(t, use(), api.CCacheUnusable)
}

// Tickets that nobody will ask for again are forgotten.
func TestForgotten(t *testing.T) {
	l := newLab(t)
	clock := newClock()
	l.options.Now = clock.now
	l.kdc.SetClock(clock.now)
	e := krb.New(l.options)
	defer e.Close()
	for i := range 30 {
		l.kdc.Rekey("svc", fmt.Sprintf("%s-%d", password, i))
		initiate(t, e, l.credential("svc"), site)
		clock.advance(12 * hour)
	}
	if n := l.records.count(); n > 6 {
		t.Errorf("%d records after 30 keytabs, want those of the last two", n)
	}
}

// What is exported has the ticket, its flags and times, and the KDC's clock.
func TestExport(t *testing.T) {
	l := newLab(t)
	clock := newClock()
	l.options.Now = clock.now
	l.kdc.SetClock(func() time.Time { return clock.now().Add(10 * minute) })
	l.kdc.SetRenewLife(7 * 24 * hour)
	l.options.Config = l.config(strings.Replace(l.kdc.Krb5Conf(), "[libdefaults]", "[libdefaults]\nrenew_lifetime = 2d\nforwardable = true", 1))
	e := krb.New(l.options)
	defer e.Close()
	x := must(e.Export(t.Context(), l.credential("svc")))
	c := must(ccache.Parse(x.Cache))
	if c.Offset != 10*minute || len(c.Credentials) != 1 || strings.Join(c.Principal.Components, "/") != "svc" {
		t.Fatalf("%d tickets, offset %v, of %v", len(c.Credentials), c.Offset, c.Principal)
	}
	got := c.Credentials[0]
	if want := clock.now().Add(10*minute + 10*hour); !got.EndTime.Equal(want) || !got.RenewTill.Equal(clock.now().Add(10*minute+48*hour)) {
		t.Errorf("ends %v, can be renewed till %v", got.EndTime, got.RenewTill)
	}
	const forwardable, renewable = 1 << 30, 1 << 23
	if got.Flags&forwardable == 0 || got.Flags&renewable == 0 {
		t.Errorf("flags %x", got.Flags)
	}
	if !x.EndTime.Equal(clock.now().Add(10*hour)) || !x.RefreshTime.Equal(clock.now().Add(7*hour+30*minute)) {
		t.Errorf("ends %v, refresh %v", x.EndTime, x.RefreshTime)
	}
	// Who comes back at that time gets a newer one; in an outage the old one.
	clock.advance(8 * hour)
	newer := must(e.Export(t.Context(), l.credential("svc")))
	if bytes.Equal(newer.Cache, x.Cache) || !newer.EndTime.After(x.EndTime) {
		t.Error("no newer TGT")
	}
	clock.advance(8 * hour)
	if err := l.kdc.SetMode(rig.Refusing); err != nil {
		t.Fatal(err)
	}
	same := must(e.Export(t.Context(), l.credential("svc")))
	if !bytes.Equal(same.Cache, newer.Cache) || !same.RefreshTime.After(clock.now()) {
		t.Error("an outage costs the TGT that lives")
	}
}

// A cache that is of no use says why.
func TestBadTicketCaches(t *testing.T) {
	l := newLab(t)
	e := krb.New(l.options)
	defer e.Close()
	good := l.cache(e, l.credential("svc"))
	other := good
	other.Principal = krb.Principal{Components: []string{"other"}, Realm: "RIG.TEST"}
	for name, c := range map[string]struct {
		cred krb.Credential
		code api.Code
		text string
	}{
		"good":      {good, "", ""},
		"missing":   {krb.Credential{Principal: good.Principal, Cache: "FILE:" + filepath.Join(l.dir, "none")}, api.CCacheUnusable, "none"},
		"another's": {other, api.CCacheUnusable, "other@RIG.TEST"},
		"unknown":   {krb.Credential{Principal: good.Principal, Cache: "MSLSA:"}, api.CCacheUnusable, "MSLSA"},
		"malformed": {krb.Credential{Principal: good.Principal, Cache: l.file("bad", []byte("CANARY-no cache"))}, api.CCacheUnusable, "bad"},
	} {
		err := e.Ready(t.Context(), c.cred)
		if c.code == "" && err == nil {
			continue
		}
		wantCode(t, err, c.code, c.text)
		if err != nil && strings.Contains(err.Error(), "CANARY") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A KDC, or who plays one, cannot make a password cheap to guess: the agent sends
// nothing that is made with few iterations.
func TestFewIterations(t *testing.T) {
	l := newLab(t)
	l.kdc.SetIterations("svc", 1000)
	e := krb.New(l.options)
	defer e.Close()
	wantCode(t, e.Authenticate(t.Context(), l.typed(password)), api.KDCError, "1000 iterations")
	l.counts(rig.Counts{AS: 1})
	if l.latch.sets != 0 {
		t.Error("latched")
	}
}
