package krb_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jcmturner/gokrb5/v8/client"
	"github.com/jcmturner/gokrb5/v8/config"
	"github.com/jcmturner/gokrb5/v8/keytab"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/spnego"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/krb"
	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// The tests of this file put the engine beside gokrb5 v8.4.4's client, with the
// same files and the same KDC. What that client does is run and compared as well,
// except where it takes seconds: there the table has what was measured once. With
// -v each test logs its table in Markdown.

// table is one in Markdown.
type table struct{ lines []string }

func newTable(columns ...string) *table {
	t := &table{}
	t.row(columns...)
	t.lines = append(t.lines, strings.Repeat("|---", len(columns))+"|")
	return t
}

func (t *table) row(cells ...string) {
	t.lines = append(t.lines, "| "+strings.Join(cells, " | ")+" |")
}

func (t *table) log(tb testing.TB) {
	tb.Helper()
	tb.Log("\n" + strings.Join(t.lines, "\n"))
}

// came says what came of a login, for a table.
func came(err error) string {
	switch {
	case err == nil:
		return "token"
	case api.CodeOf(err) != "":
		return "`" + string(api.CodeOf(err)) + "`"
	}
	return "error"
}

// relay is the way to a KDC over TCP, and counts the messages, of which each has
// its own connection.
type relay struct {
	realm    string
	listener net.Listener
	messages atomic.Int32
	serving  sync.WaitGroup
}

// newRelay leads to a KDC, or if addr is empty nowhere: it refuses connections.
func newRelay(t *testing.T, realm, addr string) *relay {
	r := &relay{realm: realm, listener: must(net.Listen("tcp", "127.0.0.1:0"))}
	t.Cleanup(func() {
		r.listener.Close()
		r.serving.Wait()
	})
	if addr == "" {
		r.listener.Close()
		return r
	}
	r.serving.Go(func() {
		for {
			conn, err := r.listener.Accept()
			if err != nil {
				return
			}
			r.messages.Add(1)
			r.serving.Go(func() { r.carry(conn, addr) })
		}
	})
	return r
}

func (r *relay) carry(conn net.Conn, addr string) {
	defer conn.Close()
	kdc, err := net.Dial("tcp", addr)
	if err != nil {
		return
	}
	defer kdc.Close()
	r.serving.Go(func() {
		io.Copy(kdc, conn)
		kdc.Close()
	})
	io.Copy(conn, kdc)
}

func (r *relay) Realm() string { return r.realm }
func (r *relay) Addr() string  { return r.listener.Addr().String() }

// during returns how many messages a function sends.
func (r *relay) during(f func() error) (int, error) {
	before := r.messages.Load()
	err := f()
	return int(r.messages.Load() - before), err
}

// theirClient is gokrb5's client with the files that ours has.
func theirClient(t *testing.T, name, keytabFile, krb5conf string) *client.Client {
	t.Helper()
	kt, err := keytab.Load(keytabFile)
	if err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(krb5conf)
	if err != nil {
		t.Fatal(err)
	}
	cl := client.NewWithKeytab(name, "RIG.TEST", kt, c)
	t.Cleanup(cl.Destroy)
	return cl
}

// ourEngine has nothing from earlier.
func ourEngine(t *testing.T, krb5conf string, o krb.Options) *krb.Engine {
	t.Helper()
	c, err := krb.LoadConfig(krb5conf)
	if err != nil {
		t.Fatal(err)
	}
	o.Config, o.Records, o.Latch, o.Log = c, &records{}, &latch{}, slog.New(slog.DiscardHandler)
	e := krb.New(o)
	t.Cleanup(e.Close)
	return e
}

func keytabCredential(name, file string) krb.Credential {
	return krb.Credential{Principal: krb.Principal{Components: []string{name}, Realm: "RIG.TEST"}, Keytab: file}
}

// checkTheirs fails unless gokrb5's client did what is known of it: a text in its
// error, which has no other code, or "" if there is none.
func checkTheirs(t *testing.T, err error, text string) {
	t.Helper()
	if text == "" && err != nil || text != "" && (err == nil || !strings.Contains(err.Error(), text)) {
		t.Errorf("gokrb5's client: %v, want %q", err, text)
	}
}

// TestFailuresBeside is about what MIT's KDC refuses, and what only seems so.
func TestFailuresBeside(t *testing.T) {
	rig.Require(t, "krb5kdc", "kdb5_util", "kadmin.local", "faketime")
	ctx := t.Context()
	dir := t.TempDir()
	const spn = "HTTP/app.rig.test"
	path := func(name string) string { return filepath.Join(dir, name+".keytab") }
	check := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	start := func(name string, options ...rig.MITOption) *rig.MITKDC {
		k, err := rig.StartMIT(ctx, filepath.Join(dir, name), "RIG.TEST", options...)
		check(err)
		t.Cleanup(k.Stop)
		check(k.AddService(ctx, spn))
		return k
	}
	add := func(k *rig.MITKDC, name, keytab string, attributes ...rig.Attribute) {
		t.Helper()
		check(k.AddPrincipal(ctx, name, password, attributes...), k.Keytab(ctx, path(keytab), name))
	}
	k, ahead := start("kdc"), start("ahead", rig.WithClock(10*time.Minute))
	for name, attributes := range map[string][]rig.Attribute{
		"svc": nil, "gone": nil, "stale": nil, "rolled": nil, "Mixed.Case": nil,
		"expired": {rig.Expired}, "pwexpired": {rig.PasswordExpired}, "disabled": {rig.Disabled}, "hwauth": {rig.HardwareAuth}, "nopreauth": {rig.NoPreauth},
		"sha2": {rig.SHA2Only}, "aes128": {rig.AES128Only}, "rc4": {rig.RC4Only}, "camellia": {"-e camellia256-cts-cmac:normal"},
	} {
		add(k, name, name, attributes...)
	}
	add(ahead, "svc", "ahead")
	// MIT's KDC gives tickets for most services only after pre-authentication.
	check(k.AddService(ctx, "HTTP/open.rig.test", rig.NoPreauth))
	check(k.Delete(ctx, "gone"), k.Rekey(ctx, "stale", "CANARY-new"), k.Rekey(ctx, "rolled", "CANARY-new"), k.Keytab(ctx, path("rolled"), "rolled"))
	sameTime(t, path("rolled"))

	// A way to a KDC, and the krb5.conf that knows it alone.
	type way struct {
		*relay
		conf string
	}
	to := func(name, addr string) way {
		w := way{newRelay(t, "RIG.TEST", addr), filepath.Join(dir, name+".conf")}
		check(rig.Krb5Conf{Realms: []rig.Realm{w}}.WriteFile(w.conf))
		return w
	}
	live, early, nowhere := to("live", k.Addr()), to("ahead", ahead.Addr()), to("nowhere", "")

	// The longest that any of these may take with ours: nobody is silent.
	const limit = 2 * time.Second
	var worst time.Duration
	rows := newTable("case", "gokrb5 v8.4.4", "messages", "sessionctl", "messages")
	const noEnctype = "unknown or unsupported EType"
	for _, c := range []struct {
		name, principal string
		theirs          string // in the error
		theirMessages   int
		code            api.Code
		messages        int
		way             way    // live
		keytab          string // the principal's
		spn             string // the one that every KDC knows
		rc4             bool
	}{
		{name: "all is well", principal: "svc", theirMessages: 3, messages: 3},
		{name: "unknown principal", principal: "gone", theirs: "(6)", theirMessages: 1, code: api.PrincipalUnknown, messages: 1},
		{name: "rekeyed, old keytab", principal: "stale", theirs: "(24)", theirMessages: 2, code: api.BadCredentials, messages: 2},
		{name: "old and new key in one keytab, of the same time", principal: "rolled", theirs: "(24)", theirMessages: 2, messages: 3},
		{name: "principal expired", principal: "expired", theirs: "(1)", theirMessages: 1, code: api.PrincipalExpired, messages: 1},
		{name: "password expired", principal: "pwexpired", theirs: "(23)", theirMessages: 1, code: api.PasswordExpired, messages: 1},
		{name: "disabled", principal: "disabled", theirs: "(18)", theirMessages: 1, code: api.PrincipalDisabled, messages: 1},
		{name: "hardware authentication required", principal: "hwauth", theirs: "(25)", theirMessages: 2, code: api.KDCError, messages: 1},
		{name: "only an aes-sha2 key", principal: "sha2", theirs: noEnctype, theirMessages: 1, messages: 3},
		{name: "only an aes128 key", principal: "aes128", theirMessages: 3, messages: 3},
		{name: "only an rc4 key", principal: "rc4", theirMessages: 3, code: api.EtypeUnsupported, messages: 0},
		{name: "only an rc4 key, `rc4 = true`", principal: "rc4", theirMessages: 3, messages: 3, rc4: true},
		{name: "only a camellia key", principal: "camellia", theirs: noEnctype, theirMessages: 1, code: api.EtypeUnsupported, messages: 0},
		{name: "no pre-authentication required", principal: "nopreauth", theirMessages: 2, messages: 2, spn: "HTTP/open.rig.test"},
		{name: "a name with capitals", principal: "Mixed.Case", theirMessages: 3, messages: 3},
		{name: "the same, typed without", principal: "mixed.case", keytab: "Mixed.Case", theirs: "(6)", theirMessages: 1, messages: 3},
		{name: "unknown SPN", principal: "svc", spn: "HTTP/nosuch.rig.test", theirs: "(7)", theirMessages: 3, code: api.SPNUnknown, messages: 3},
		{name: "the KDC's clock 10 minutes ahead", principal: "svc", keytab: "ahead", way: early, theirs: "(37)", theirMessages: 2, messages: 3},
		{name: "the KDC refuses the connection", principal: "svc", way: nowhere, theirs: "connection refused", code: api.KDCUnreachable},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.way.relay == nil {
				c.way = live
			}
			cred := keytabCredential(c.principal, path(cmp.Or(c.keytab, c.principal)))
			cred.RC4 = c.rc4
			c.spn = cmp.Or(c.spn, spn)
			cl := theirClient(t, c.principal, cred.Keytab, c.way.conf)
			theirMessages, err := c.way.during(func() error {
				_, err := theirToken(cl, c.spn)
				return err
			})
			checkTheirs(t, err, c.theirs)
			theirs := "token"
			if err != nil {
				theirs = "error " + c.theirs
			}

			e := ourEngine(t, c.way.conf, krb.Options{})
			begun := time.Now()
			messages, err := c.way.during(func() error {
				_, err := e.Initiate(ctx, cred, c.spn, krb.InitiateOptions{})
				return err
			})
			took := time.Since(begun)
			worst = max(worst, took)
			wantCode(t, err, c.code)
			if err != nil && api.AsError(err).Remedy == "" {
				t.Errorf("no remedy for %v", err)
			}
			if took > limit {
				t.Errorf("it took %s, want %s at most", took, limit)
			}
			if theirMessages != c.theirMessages || messages != c.messages {
				t.Errorf("%d messages of gokrb5's client and %d of ours, want %d and %d", theirMessages, messages, c.theirMessages, c.messages)
			}
			rows.row(c.name, theirs, fmt.Sprint(theirMessages), came(err), fmt.Sprint(messages))
		})
	}

	// A second login with the key that was refused, on the way to a lock-out.
	t.Run("refused twice", func(t *testing.T) {
		failed := func(f func() error) int {
			before := must(k.Counts())
			for range 2 {
				if err := f(); err == nil {
					t.Error("no error")
				}
			}
			return must(k.Counts()).PreauthFailed - before.PreauthFailed
		}
		cl := theirClient(t, "stale", path("stale"), live.conf)
		theirs := failed(cl.Login)
		e := ourEngine(t, live.conf, krb.Options{})
		ours := failed(func() error {
			return e.Authenticate(ctx, keytabCredential("stale", path("stale")))
		})
		if theirs != 3 || ours != 1 {
			t.Errorf("%d failed attempts of gokrb5's client and %d of ours, want 3 and 1", theirs, ours)
		}
		rows.row("rekeyed, old keytab, two logins: attempts that the KDC counts", "error (24)", fmt.Sprint(theirs), "`bad_credentials`", fmt.Sprint(ours))
	})
	rows.log(t)
	t.Logf("with sessionctl, none took longer than %.1f ms", worst.Seconds()*1000)
}

// sameTime gives all keys of a keytab the same time, as one run of ktadd does.
func sameTime(t *testing.T, path string) {
	t.Helper()
	kt := must(keytab.Load(path))
	for i := range kt.Entries {
		kt.Entries[i].Timestamp = kt.Entries[0].Timestamp
	}
	if err := os.WriteFile(path, must(kt.Marshal()), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestSilentKDCsBeside is about KDCs that take connections and datagrams and never
// answer, beside a real one. gokrb5's client waits 5 seconds for each of them, in
// the order of chance, over both transports, and remembers nothing: that is too
// long for a test, so what is recorded was measured on loopback once.
func TestSilentKDCsBeside(t *testing.T) {
	rig.Require(t, "krb5kdc", "kdb5_util", "kadmin.local")
	ctx := t.Context()
	dir := t.TempDir()
	const spn = "HTTP/app.rig.test"
	k, err := rig.StartMIT(ctx, filepath.Join(dir, "kdc"), "RIG.TEST")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Stop)
	path := filepath.Join(dir, "svc.keytab")
	if err := errors.Join(k.AddService(ctx, spn), k.AddPrincipal(ctx, "svc", password), k.Keytab(ctx, path, "svc")); err != nil {
		t.Fatal(err)
	}
	cred := keytabCredential("svc", path)
	silent := func() string {
		kdc := must(rig.NewKDC("RIG.TEST"))
		t.Cleanup(kdc.Close)
		if err := kdc.SetMode(rig.Silent); err != nil {
			t.Fatal(err)
		}
		return kdc.Addr()
	}
	one, two := silent(), silent()
	conf := func(addrs ...string) string {
		file := filepath.Join(t.TempDir(), "krb5.conf")
		text := "[libdefaults]\ndns_lookup_kdc = false\n[realms]\nRIG.TEST = {\nkdc = " + strings.Join(addrs, "\nkdc = ") + "\n}\n[domain_realm]\n.rig.test = RIG.TEST\n"
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	rows := newTable("case", "gokrb5 v8.4.4 (recorded)", "MIT kinit 1.20.1 (recorded)", "sessionctl")

	for _, c := range []struct {
		name, theirs string
		addrs        []string
	}{
		{"1 silent KDC, the caller waits 0.3 s", "5.0 s over TCP, else 10.0 s: nobody can make it shorter", []string{one}},
		{"2 silent KDCs, the caller waits 0.3 s", "20.0 s", []string{one, two}},
	} {
		t.Run(c.name, func(t *testing.T) {
			const patience, slack = 300 * time.Millisecond, 300 * time.Millisecond
			e := ourEngine(t, conf(c.addrs...), krb.Options{})
			waiting, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			begun := time.Now()
			_, err := e.Initiate(waiting, cred, spn, krb.InitiateOptions{})
			took := time.Since(begun)
			if !errors.Is(err, context.DeadlineExceeded) || took < patience || took > patience+slack {
				t.Errorf("%v after %s", err, took)
			}
			rows.row(c.name, c.theirs, "–", fmt.Sprintf("%.2f s: the caller's deadline", took.Seconds()))
		})
	}

	// A login is three messages.
	const limit = 500 * time.Millisecond
	t.Run("live and silent", func(t *testing.T) {
		var worst time.Duration
		for range 8 {
			e := ourEngine(t, conf(one, k.Addr()), krb.Options{}) // the silent one first
			begun := time.Now()
			if _, err := e.Initiate(ctx, cred, spn, krb.InitiateOptions{}); err != nil {
				t.Fatal(err)
			}
			worst = max(worst, time.Since(begun))
		}
		if worst > limit {
			t.Errorf("a login took %s, want %s at most", worst, limit)
		}
		rows.row("1 silent and 1 live, 8 logins that know nothing yet", "2 ms … 10 s each, by chance", "–", fmt.Sprintf("%.2f s at most", worst.Seconds()))
	})
	t.Run("two silent and live", func(t *testing.T) {
		e := ourEngine(t, conf(one, two, k.Addr()), krb.Options{})
		var times []time.Duration
		for range 41 {
			begun := time.Now()
			if _, err := e.Initiate(ctx, cred, spn, krb.InitiateOptions{Fresh: true}); err != nil {
				t.Fatal(err)
			}
			times = append(times, time.Since(begun))
		}
		first, then := times[0], median(times[1:])
		if first > limit || then > 20*time.Millisecond {
			t.Errorf("the first ticket took %s, the others %s; want %s and 20ms at most", first, then, limit)
		}
		rows.row("2 silent and 1 live", "5 … 20 s, every time", "4.05 s", fmt.Sprintf("first ticket %.2f s, then %.1f ms", first.Seconds(), then.Seconds()*1000))
	})
	rows.log(t)
}

// TestNamesBeside is about the names of hosts: jira.rig.test is an alias of
// plain.rig.test in the DNS, as is wiki.rig.test, of which the KDC knows nothing.
// That the Host field of a request stays as it is, is package web's.
func TestNamesBeside(t *testing.T) {
	rig.Require(t, "krb5kdc", "kdb5_util", "kadmin.local")
	ctx := t.Context()
	dir := t.TempDir()
	k, err := rig.StartMIT(ctx, filepath.Join(dir, "kdc"), "RIG.TEST")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Stop)
	path := filepath.Join(dir, "svc.keytab")
	if err := errors.Join(k.AddService(ctx, "HTTP/plain.rig.test"), k.AddService(ctx, "HTTP/jira.rig.test"),
		k.AddPrincipal(ctx, "svc", password), k.Keytab(ctx, path, "svc")); err != nil {
		t.Fatal(err)
	}
	names := must(rig.NewDNS())
	t.Cleanup(names.Close)
	names.Host("plain.rig.test", netip.MustParseAddr("127.0.0.1"))
	names.CNAME("jira.rig.test", "plain.rig.test")
	names.CNAME("wiki.rig.test", "plain.rig.test")
	// gokrb5's client knows no other resolver.
	system := net.DefaultResolver
	net.DefaultResolver = names.Resolver()
	t.Cleanup(func() { net.DefaultResolver = system })

	forbidden := k.Krb5ConfFile() // dns_canonicalize_hostname = false
	fallback := filepath.Join(dir, "fallback.conf")
	text := bytes.Replace(mustRead(t, forbidden), []byte("dns_canonicalize_hostname = false"), []byte("dns_canonicalize_hostname = fallback"), 1)
	if err := os.WriteFile(fallback, text, 0o600); err != nil {
		t.Fatal(err)
	}
	// The stock file of Fedora and its kin says so.
	if _, err := config.Load(fallback); err == nil {
		t.Error("gokrb5 loads dns_canonicalize_hostname = fallback")
	}

	rows := newTable("URL", "`dns_canonicalize_hostname`", "gokrb5 v8.4.4: asks for", "and sends Host", "sessionctl: asks for")
	for _, c := range []struct {
		host, conf, value, spn string
		theirs, theirHost      string // SPN of the ticket, or part of the error
		code                   api.Code
		ours                   string
	}{
		{"jira.rig.test", forbidden, "false", "", "HTTP/plain.rig.test", "plain.rig.test", "", "HTTP/jira.rig.test"},
		{"jira.rig.test", fallback, "fallback", "", "HTTP/plain.rig.test", "plain.rig.test", "", "HTTP/jira.rig.test"},
		{"wiki.rig.test", fallback, "fallback", "", "HTTP/plain.rig.test", "plain.rig.test", "", "HTTP/plain.rig.test"},
		{"wiki.rig.test", forbidden, "false", "", "HTTP/plain.rig.test", "plain.rig.test", api.SPNUnknown, "HTTP/wiki.rig.test"},
		{"plain", fallback, "fallback", "", "(7)", "plain", api.SPNUnknown, "HTTP/plain"},
		{"127.0.0.1", fallback, "fallback", "", "(7)", "127.0.0.1", api.SPNUnknown, "HTTP/127.0.0.1"},
		{"127.0.0.1", fallback, "fallback", "HTTP/plain.rig.test", "HTTP/plain.rig.test", "127.0.0.1", "", "HTTP/plain.rig.test"},
	} {
		t.Run(c.host+" "+c.value+" "+c.spn, func(t *testing.T) {
			cl := theirClient(t, "svc", path, forbidden)
			request := must(http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.host+"/", nil))
			err := spnego.SetSPNEGOHeader(cl, request, c.spn)
			theirs := "`" + c.theirs + "`"
			if strings.HasPrefix(c.theirs, "HTTP/") {
				checkTheirs(t, err, "")
				if _, _, ok := cl.GetCachedTicket(c.theirs); !ok {
					t.Errorf("gokrb5's client has no ticket for %s", c.theirs)
				}
			} else {
				checkTheirs(t, err, c.theirs)
				theirs = "error " + c.theirs
			}
			if request.Host != c.theirHost {
				t.Errorf("gokrb5's client sends Host: %s, want %s", request.Host, c.theirHost)
			}

			e := ourEngine(t, c.conf, krb.Options{Resolver: names.Resolver()})
			spn, exact := "HTTP/"+c.host, false
			if c.spn != "" {
				spn, exact = c.spn, true
			}
			_, err = e.Initiate(ctx, keytabCredential("svc", path), spn, krb.InitiateOptions{Exact: exact})
			ours := "`" + c.ours + "`"
			if c.code != "" {
				wantCode(t, err, c.code, c.ours)
				if !strings.Contains(api.AsError(err).Remedy, "spn") {
					t.Errorf("the remedy %q does not name spn", api.AsError(err).Remedy)
				}
				ours += ": " + came(err)
			} else {
				wantCode(t, err, "")
				var got []string
				for _, ticket := range e.Tickets() {
					got = append(got, strings.TrimSuffix(ticket.Server, "@RIG.TEST"))
				}
				if want := c.ours + " krbtgt/RIG.TEST"; strings.Join(got, " ") != want {
					t.Errorf("tickets for %s, want %s", got, want)
				}
			}
			url := "http://" + c.host + "/"
			if c.spn != "" {
				url += " with `spn`"
			}
			rows.row(url, c.value, theirs, c.theirHost, ours)
		})
	}
	rows.log(t)
}

// TestWedgesBeside is about a TGT that has ended while it could not be renewed,
// after a night or an outage, though its renew-till is still to come: gokrb5's
// client goes on renewing it, the one of its own realm until Login is called, one
// of another realm until renew-till.
func TestWedgesBeside(t *testing.T) {
	rows := newTable("TGT that ended, renew-till to come", "gokrb5 v8.4.4: GetServiceTicket", "after AffirmLogin", "after Login", "a new client", "sessionctl")
	for _, c := range []struct {
		name, spn, other string
		theirs           string // in gokrb5's error
		healed           bool   // gokrb5's client, by a login
	}{
		{"of the own realm", "HTTP/app.rig.test", "HTTP/other.rig.test", "(32)", true},
		{"of another realm", "HTTP/app.b.test", "HTTP/other.b.test", "renewing TGT for B.TEST", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newForest(t, "RIG.TEST", "B.TEST")
			b := f.realms["B.TEST"]
			f.kdc.AddService("HTTP/other.rig.test")
			b.AddService("HTTP/other.b.test")
			conf := strings.Replace(f.kdc.Krb5Conf(b), "[libdefaults]", "[libdefaults]\nrenew_lifetime = 7d", 1) + "[domain_realm]\n.b.test = B.TEST\n.rig.test = RIG.TEST\n"
			file := f.file("beside.conf", []byte(conf))
			cred := f.credential("svc")
			kdcs := func(change func(*rig.KDC)) {
				for _, k := range f.realms {
					change(k)
				}
			}

			// gokrb5's client has the machine's clock. Its TGTs are made by KDCs whose
			// clocks are four minutes behind and live a second; then the KDCs' clocks
			// are four minutes ahead. So these have ended by more than the five minutes
			// that clocks may differ, and no clock differs by as much.
			kdcs(func(k *rig.KDC) {
				k.SetRenewLife(7 * 24 * hour)
				k.SetTicketLife(time.Second)
				k.SetClock(func() time.Time { return time.Now().Add(-4 * minute) })
			})
			cl := theirClient(t, "svc", cred.Keytab, file)
			ask := func(cl *client.Client) error {
				_, _, err := cl.GetServiceTicket(c.other)
				return err
			}
			if _, _, err := cl.GetServiceTicket(c.spn); err != nil {
				t.Fatalf("gokrb5's client: %v", err)
			}
			kdcs(func(k *rig.KDC) {
				k.SetTicketLife(10 * hour)
				k.SetClock(func() time.Time { return time.Now().Add(4 * minute) })
			})
			var theirs []string
			for i, step := range []struct {
				login func() error
				fails bool
			}{
				{func() error { return nil }, true},
				{cl.AffirmLogin, !c.healed},
				{cl.Login, !c.healed},
			} {
				if err := step.login(); err != nil {
					t.Errorf("gokrb5's client, login %d: %v", i, err)
				}
				err := ask(cl)
				t.Logf("gokrb5's client, step %d: %v", i, err)
				if step.fails {
					checkTheirs(t, err, c.theirs)
					theirs = append(theirs, "error "+c.theirs)
				} else {
					checkTheirs(t, err, "")
					theirs = append(theirs, "ticket")
				}
			}
			if err := ask(theirClient(t, "svc", cred.Keytab, file)); err != nil {
				t.Errorf("gokrb5's new client: %v", err)
			}

			clock := newClock()
			kdcs(func(k *rig.KDC) { k.SetClock(clock.now) })
			e := ourEngine(t, file, krb.Options{Now: clock.now})
			initiate(t, e, cred, c.spn)
			clock.advance(60 * hour)
			initiate(t, e, cred, c.other)
			rows.row(c.name, theirs[0], theirs[1], theirs[2], "ticket", "token")
		})
	}
	rows.log(t)
}

// sent records what is written to connections.
type sent struct {
	net.Conn
	messages *[][]byte
}

func (s sent) Write(b []byte) (int, error) {
	*s.messages = append(*s.messages, bytes.Clone(b))
	return s.Conn.Write(b)
}

// TestEncodingBeside compares messages that the engine encodes by itself, for
// speed, with what gokrb5 makes of the same content.
func TestEncodingBeside(t *testing.T) {
	l := newLab(t)
	// With all that a request can have.
	l.options.Config = l.config(strings.Replace(l.kdc.Krb5Conf(), "[libdefaults]", "[libdefaults]\nrenew_lifetime = 7d\nforwardable = true", 1))
	var wire [][]byte
	l.options.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		return sent{conn, &wire}, err
	}
	e := krb.New(l.options)
	defer e.Close()
	token := initiate(t, e, l.credential("svc"), site).Token()
	if len(wire) != 3 {
		t.Fatalf("%d messages, want AS-REQ, AS-REQ, TGS-REQ", len(wire))
	}
	var tgs messages.TGSReq
	var ticket, service messages.APReq
	var negotiate spnego.SPNEGOToken
	var mech spnego.KRB5Token
	const lengthPrefix = 4
	request := wire[2][lengthPrefix:]
	if err := errors.Join(tgs.Unmarshal(request), negotiate.Unmarshal(token), mech.Unmarshal(negotiate.NegTokenInit.MechTokenBytes)); err != nil {
		t.Fatal(err)
	}
	service = mech.APReq
	if err := ticket.Unmarshal(tgs.PAData[0].PADataValue); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		ours   []byte
		theirs func() ([]byte, error)
	}{
		"TGS-REQ":               {request, tgs.Marshal},
		"AP-REQ of the TGS-REQ": {tgs.PAData[0].PADataValue, ticket.Marshal},
		"NegTokenInit":          {token, negotiate.Marshal},
		"AP-REQ of the token":   {negotiate.NegTokenInit.MechTokenBytes[len(negotiate.NegTokenInit.MechTokenBytes)-len(must(service.Marshal())):], service.Marshal},
	} {
		theirs, err := c.theirs()
		if err != nil || !bytes.Equal(c.ours, theirs) {
			t.Errorf("%s: %x, gokrb5 makes %x, %v", name, c.ours, theirs, err)
		}
	}
}
